"""Whole runs that are interrupted and started again end where the uninterrupted one ends.

The long form, with hundreds of interruptions at random times, is in tests/slow/test_kills.py.
"""

import json
import math
import os
import shutil
import signal
from pathlib import Path

import paddle
import pytest

from common.checkpoints.content import read_checkpoint
from common.weights.trailer import read_summary
from tests.support.data_folders import make_folders
from tests.support.digits_job import Job, assert_same_result, kill, read_metrics
from tests.support.paths import FIXTURES

pytestmark = pytest.mark.runs

UPDATES = {1: 22, 2: 12}        # of the job, by number of processes


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The uninterrupted job in one process."""
    job = Job(tmp_path_factory.mktemp('whole'))
    assert job.run() == 0, job.text
    return job


@pytest.fixture(scope='module')
def whole_of_two(tmp_path_factory):
    """The uninterrupted job in two processes."""
    job = Job(tmp_path_factory.mktemp('whole-of-two'), processes=2)
    assert job.run() == 0, job.text
    return job


def kill_all(job):
    for pid in job.find_processes():
        kill(pid, signal.SIGKILL)


@pytest.mark.parametrize('processes', [1, 2])
def test_killed_anywhere_and_resumed_bit_for_bit(tmp_path, request, processes):
    expected = request.getfixturevalue('whole' if processes == 1 else 'whole_of_two')
    job = Job(tmp_path, processes)
    dead = -signal.SIGKILL if processes == 1 else 128 + signal.SIGKILL
    assert job.run(fault='any:30:kill') == dead, job.text      # inside the second save
    job.start().wait_for_text('Saving')                        # in training
    kill_all(job)
    assert job.wait() == -signal.SIGKILL
    job.start().wait_for_text('Effective batch')               # saved between two SAVE_STEPS
    kill(job.process.pid, signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM, job.text
    assert 'Stopped by SIGTERM' in job.text
    assert job.run() == 0, job.text
    assert 'Resuming from' in job.text and len(list(tmp_path.glob('train-*'))) == 1
    result = job.read_result()
    assert result['update'] == UPDATES[processes]
    assert_same_result(result, expected.read_result())


def test_two_processes_stop_while_they_validate(tmp_path):
    """Each after a batch of its own; the run that continues begins with the validation."""
    options = {'DATA.BATCH_SIZE_EVAL': 1}       # 225 batches of each, twice
    whole = Job(tmp_path / 'whole', 2, options)
    assert whole.run() == 0, whole.text
    job = Job(tmp_path / 'job', 2, options)
    job.start().wait_for_text('Epoch 1/2: train loss')
    kill(job.process.pid, signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM, job.text
    assert 'Evaluation (averaged weights)' not in job.text
    assert read_checkpoint(job.find_checkpoints()[0].path)['awaits_validation']
    assert job.run() == 0, job.text
    assert_same_result(job.read_result(), whole.read_result())


def test_the_result_is_that_of_all_that_was_asked_for(whole):
    """Fails if the job above no longer has the state that it is there to lose."""
    result = whole.read_result()
    log = whole.text
    assert '32 images x 1 processes x 4 accumulated; 11 updates' in log     # 42 = 10 * 4 + 2
    assert log.count('The best so far: ') >= 1      # saved before it was validated, and told once
    assert any(name.startswith('moment1 ') for name in result)
    assert any((result[name] != result[f'model {name[4:]}']).any()
               for name in result if name.startswith('ema '))
    assert [line['event'] for line in result['metrics']].count('train_step') == 11
    assert [(line['event'], line.get('weights')) for line in result['metrics'][-3:]] == [
        ('train_epoch', None), ('eval', 'model'), ('eval', 'ema')]


def test_what_a_run_keeps(whole):
    folder, = whole.folder.glob('train-*')
    updates = sorted(read_summary(path)['update'] for path in folder.glob('Epoch-*'))
    assert updates == [18, 21, 22]          # the newest, which is the best, and KEEP others
    assert read_summary(folder / 'best.pdparams')['update'] == 22
    assert read_summary(folder / 'last.pdparams')['update'] == 22


def find_update(job, update):
    return next(Path(entry.path) for entry in job.find_checkpoints()
                if entry.summary['update'] == update)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == 'bit flipped':
        content[len(content) // 2] ^= 1
    else:
        del content[len(content) // 2:]
    path.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, whole):
    job = Job(tmp_path / 'copy')
    shutil.copytree(whole.folder, job.folder, dirs_exist_ok=True)   # hard links become files
    entries = job.find_checkpoints()
    damaged = {}
    for entry in entries:
        if entry.summary['update'] == 22:
            damaged[entry.path] = 'checksum does not match'
            damage(Path(entry.path), 'bit flipped')
        elif entry.summary['update'] == 21:
            damaged[entry.path] = 'cut short'
            damage(Path(entry.path), 'truncated')
    assert len(damaged) == 4                # the newest under three names
    assert job.run() == 0, job.text
    for path, reason in damaged.items():
        line, = (line for line in job.text.splitlines() if f'Passed over {path}' in line)
        assert reason in line
    assert 'update 18): the newest that is good' in job.text
    assert_same_result(job.read_result(), whole.read_result())


def test_a_path_begins_a_new_folder_and_takes_over_the_best(tmp_path, whole):
    source = find_update(whole, 18)
    job = Job(tmp_path, resume=source, options={
        'KEEP': 0, 'VALIDATE_FREQ': 100, 'SAVE_STEPS': None, 'SAVE_MINUTES': 60})
    job.start().wait_for_text('Effective batch')
    folder, = tmp_path.glob('train-*')
    assert folder != source.parent
    assert job.wait() == 0, job.text
    assert job.text.count('Saving ') == 1   # at the end, before validating
    assert read_checkpoint(str(folder / 'best.pdparams'))['best'] is not None
    found = read_metrics(folder)
    assert [line['update'] for line in found if line['event'] == 'train_step'] == [20, 22]
    assert found[:2] == [line for line in read_metrics(source.parent)
                         if line['event'] == 'train_step' and line['update'] > 18]


def test_one_process_to_two_and_back(tmp_path, whole):
    source = find_update(whole, 18)
    two = Job(tmp_path / 'two', processes=2, resume=source)
    assert two.run() == 0, two.text
    assert 'Saved by 1 processes, resumed by 2: the run continues, but not bit for bit' in two.text
    assert 'An epoch had 11 updates and has 6 now: continuing at update 10, after 1.64' in two.text
    assert two.read_result()['update'] == 12
    middle, = (entry.path for entry in two.find_checkpoints()
               if os.path.basename(entry.path).startswith('Epoch-2'))
    one = Job(tmp_path / 'one', resume=middle, options={'TRAIN.NUM_EPOCHS': 3})
    assert one.run() == 0, one.text
    assert 'Saved by 2 processes, resumed by 1' in one.text
    assert 'continuing at update 22' in one.text and one.read_result()['update'] == 33


def test_another_paddle_goes_on_with_it(tmp_path):
    """The fixtures were saved at update 18 of the job, by each version."""
    version = '3.3.1' if paddle.__version__.startswith('2.') else '2.6.2'
    job = Job(tmp_path, resume=FIXTURES / 'checkpoint' / f'digits-{version}.pdparams',
              options={'TRAIN.BASE_LR': 2e-3, 'TRAIN.SMOOTHING': 0.0,         # as they were saved,
                       'FAST': False})      # with dropout as Paddle's own layer draws it
    assert job.run() == 0, job.text
    other = f'Saved with Paddle {version}, resumed with {paddle.__version__}: results may differ'
    assert other in job.text
    expected = json.loads((FIXTURES / 'checkpoint' / 'digits.json').read_text())
    assert len(expected) == 5
    found = job.read_result()['metrics']
    for line, expected_line in zip(found, expected, strict=True):
        for key, value in expected_line.items():
            if isinstance(value, float) and key not in ('acc1', 'acc5'):
                assert math.isclose(line[key], value, rel_tol=1e-3), (key, line)
            elif key not in ('acc1', 'acc5'):
                assert line[key] == value
            else:
                assert abs(line[key] - value) < 1        # percent of 450 images


def test_paddlevits_checkpoint_goes_on(tmp_path):
    classes = [f'class{number}' for number in range(7)]
    job = Job(tmp_path / 'run', options={
        'MODEL.EMBED_DIM': 48, 'MODEL.DEPTH': 3, 'MODEL.NUM_HEADS': 4, 'MODEL.PATCH_SIZE': 16,
        'MODEL.NUM_CLASSES': 7, 'DATA.IMAGE_SIZE': 64, 'DATA.BATCH_SIZE': 7,
        'TRAIN.NUM_EPOCHS': 5, 'DATA.DATASET': 'imagefolder',
        'DATA.DATA_PATH': make_folders(tmp_path / 'images', classes),
    }, resume=FIXTURES / 'weights/vit/paddlevit_pdparams/Epoch-3-Loss-6.9.pdparams')
    assert job.run() == 0, job.text
    assert 'a checkpoint of PaddleViT: epoch 3. It has no position inside the epoch' in job.text
    assert 'no averaged weights (EMA): the average starts from the weights' in job.text
    assert 'NOT restored' not in job.text           # the optimizer's state was
    steps = [line for line in job.read_result()['metrics'] if line['event'] == 'train_epoch']
    assert [line['epoch'] for line in steps] == [4, 5]


def test_saves_by_the_clock(tmp_path):
    """Every update comes 0.6 ms or more after the last save."""
    job = Job(tmp_path, options={'SAVE_STEPS': None, 'SAVE_FREQ': 100, 'VALIDATE_FREQ': 100,
                                 'SAVE_MINUTES': 1e-5, 'KEEP': 1})
    assert job.run() == 0, job.text
    assert job.text.count('Saving ') == UPDATES[1]
    assert len(list(tmp_path.glob('train-*/Epoch-*'))) == 2         # best and last are one
