"""A failing disk, vanishing data, hung ranks, a lost launcher: bounded, said, and nothing lost.

Faults at every call of a save are in tests/checkpoints/test_files.py, and for whole runs in
tests/slow/test_disk_faults.py; ranks that fail are in test_distributed.py.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from common.weights.trailer import verify_checkpoint
from tests.support.data_folders import make_folders, make_image
from tests.support.digits_job import Job, assert_same_result, kill
from tests.support.paths import FIXTURES, ROOT

pytestmark = pytest.mark.runs

PREPROCESS = FIXTURES / 'preprocess'
SECONDS = 300           # within which every process ends; about 15 on a quiet machine


def check_end(job, started, text):
    """The job has ended in time, has said why once, and its checkpoints are good."""
    assert time.monotonic() - started < SECONDS, job.text
    assert not job.find_processes()
    assert job.text.count(text) == 1, job.text
    entries = job.find_checkpoints()
    assert entries
    for entry in entries:
        verify_checkpoint(entry.path)


# The disk

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    job = Job(tmp_path_factory.mktemp('whole'), options={'TRAIN.NUM_EPOCHS': 1})
    assert job.run() == 0, job.text
    return job.read_result()


@pytest.mark.parametrize('fault, code, message', [
    ('write:0:ENOSPC', 1, 'No space left on device. There is no earlier one.'),
    ('fsync:2:EIO', 0, 'Input/output error. There is no earlier one.'),
    ('any:0:slow', 0, None),
])
def test_a_run_on_a_failing_disk(tmp_path, whole, fault, code, message):
    job = Job(tmp_path, options={'TRAIN.NUM_EPOCHS': 1})
    assert job.run(fault=fault) == code, job.text
    if message:
        assert f'Could not save {tmp_path}' in job.text and message in job.text
        assert 'Traceback' not in job.text
    if code:                                            # the disk is repaired
        assert job.text.splitlines()[-1].startswith('error: Could not save')
        assert job.run() == 0, job.text
    assert_same_result(job.read_result(), whole)


# The data

IMAGES = {'DATA.DATASET': 'imagefolder', 'MODEL.NUM_CLASSES': 3, 'DATA.BATCH_SIZE': 4,
          'TRAIN.ACCUM_ITER': 1, 'DATA.IMAGE_SIZE': 16}


def test_images_that_vanish_while_training(tmp_path):
    """The run ends with the first one's path, and goes on when they are back."""
    def options(images):
        return {**IMAGES, 'DATA.DATA_PATH': images, 'TRAIN.NUM_EPOCHS': 40, 'SAVE_STEPS': 20,
                'SAVE_FREQ': 1000, 'VALIDATE_FREQ': 1000}

    images = make_folders(tmp_path / 'images', per_class=8)
    whole = Job(tmp_path / 'whole', options=options(images))
    assert whole.run() == 0, whole.text
    job = Job(tmp_path / 'run', options=options(images))
    job.start().wait_for_text('Saving')
    started = time.monotonic()
    os.rename(f'{images}/train', f'{images}/gone')
    assert job.wait() == 2, job.text
    check_end(job, started, 'no such image file')
    assert f'{images}/train/' in job.text and 'Traceback' not in job.text
    os.rename(f'{images}/gone', f'{images}/train')
    assert job.run() == 0 and 'Resuming from' in job.text
    assert_same_result(job.read_result(), whole.read_result())


def test_every_odd_kind_of_image_trains(tmp_path):
    """EXIF, CMYK, palette, 16 bits, animation, names with blanks, line feeds and other scripts."""
    images = tmp_path / 'images'
    for number, path in enumerate(sorted([*PREPROCESS.glob('*.jpg'), *PREPROCESS.glob('*.png')])):
        for part in ('train', 'val'):
            folder = images / part / ('a', 'b b', 'ü\n')[number % 3]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f'日本 {number}{path.suffix}')
    frames = [Image.new('RGB', (9, 8), color) for color in ('red', 'blue')]
    frames[0].save(images / 'train/a/moves.gif', save_all=True, append_images=frames[1:])
    (images / 'train/a/empty.jpg').touch()
    make_image(str(images / 'train/a/cut.jpg'), (300, 300))
    os.truncate(images / 'train/a/cut.jpg', 2000)
    options = {**IMAGES, 'DATA.DATA_PATH': images, 'TRAIN.NUM_EPOCHS': 3, 'TRAIN.WARMUP_EPOCHS': 0}
    job = Job(tmp_path / 'run', options=options)
    assert job.run() == 2                               # unless it is asked to skip them
    assert 'empty.jpg' in job.text or 'cut.jpg' in job.text
    job = Job(tmp_path / 'run', options={**options, 'DATA.SKIP_CORRUPT': True})
    assert job.run() == 0, job.text
    line, = (line for line in job.text.splitlines() if 'unreadable images were skipped' in line)
    assert '2 unreadable' in line and 'empty.jpg' in line and 'cut.jpg' in line


# Several processes

def test_a_hung_rank_ends_the_job(tmp_path):
    job = Job(tmp_path, 2, {'TRAIN.NUM_EPOCHS': 1000, 'WATCHDOG_SECONDS': 4})
    assert job.start().wait_for(job.find_checkpoints), job.text
    started = time.monotonic()
    kill(job.find_ranks()[1], signal.SIGSTOP)
    assert job.wait() == 1
    check_end(job, started, 'error: no progress for')


def test_ranks_end_when_the_starting_process_is_lost(tmp_path):
    job = Job(tmp_path, 2, {'TRAIN.NUM_EPOCHS': 1000})
    assert job.start().wait_for(job.find_checkpoints), job.text
    started = time.monotonic()
    kill(job.process.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert 'the starting process is gone' in job.text
    check_end(job, started, 'Training vit_digits')


def test_ranks_end_when_the_launcher_is_lost(tmp_path):
    job = Job(tmp_path, 2, {'TRAIN.NUM_EPOCHS': 1000}, launch=[])
    assert job.start().wait_for(job.find_checkpoints), read_logs(job)
    started = time.monotonic()
    kill(job.process.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert time.monotonic() - started < SECONDS
    assert 'the starting process is gone' in read_logs(job)
    for entry in job.find_checkpoints():
        verify_checkpoint(entry.path)


def read_logs(job):
    """Return what the ranks of a launched job have said."""
    return ''.join(path.read_text(errors='replace')
                   for path in sorted((job.folder / 'logs').glob('workerlog.*')))


@pytest.mark.parametrize('what', ['config', 'data'])
def test_a_rank_with_other_options_or_files(tmp_path, what):
    options, environment = {}, {'RANK_1_ARGUMENTS': '-seed=5'}
    message = 'The processes disagree on the config'
    if what == 'data':
        options = {**IMAGES, 'DATA.DATA_PATH': 'images'}
        for name in ('here', 'there'):
            make_folders(tmp_path / name / 'images')
        cats = tmp_path / 'there/images/train/cat'
        os.rename(cats / '3.jpg', cats / '4.jpg')
        environment = {'RANK_1_FOLDER': str(tmp_path / 'there')}
        message = 'The processes disagree on the data set'
    job = Job(tmp_path / 'run', 2, options, launch=[])
    started = time.monotonic()
    code = job.start(folder=tmp_path / 'here' if what == 'data' else None, **environment).wait()
    # The launcher's own code is rank 0's: 1, or -15 where it ended that rank before it could.
    assert code and 'code 1' in job.text, job.text
    assert time.monotonic() - started < SECONDS
    assert message in read_logs(job) and 'Traceback' not in read_logs(job)
    assert 'Give every process the same files and options' in read_logs(job)


def test_the_launcher_stops_and_restarts_a_job_by_itself(tmp_path):
    """Its SIGTERM, which comes three times, saves; a rank's death restarts the job."""
    options = {'TRAIN.NUM_EPOCHS': 4}
    whole = Job(tmp_path / 'whole', 2, options)
    assert whole.run() == 0, whole.text
    job = Job(tmp_path / 'run', 2, options, launch=[])
    job.start().wait_for(lambda: 'Effective batch' in read_logs(job))
    kill(job.process.pid, signal.SIGTERM)
    assert job.wait() != 0
    assert 'Stopped by SIGTERM' in read_logs(job) and job.find_checkpoints()
    # Paddle restarts a job where etcd holds it together; elastic_level is off by default.
    job.launch = ['--master', 'etcd://127.0.0.1:2379', '--job_id', 'digits', '--elastic_level',
                  '1', '--max_restart', '3', '--elastic_timeout', '5']
    shutil.rmtree(tmp_path / 'run/logs')
    job.start(PYTHONPATH=str(ROOT / 'tests/support/fake_etcd'))
    job.wait_for(lambda: 'Saving' in read_logs(job))
    kill(job.find_ranks()[1], signal.SIGKILL)
    assert job.wait(180) == 0, job.text
    assert 'Pod failed' in job.text
    assert_same_result(job.read_result(), whole.read_result())


# Memory

def test_a_save_takes_one_more_copy_of_the_state(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / 'tests/support/saving_memory.py', tmp_path], cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, check=True)
    copies = float(done.stdout.split()[-1])
    assert 0.8 < copies < 1.15, done.stdout
