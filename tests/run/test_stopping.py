"""Signals save and end a run; a loss that is not finite ends it with what is needed to go on."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common.checkpoints import file as checkpoint_file
from common.checkpoints.content import read_checkpoint
from common.data import shared_files
from common.data.images import ImageError
from common.run.launch import make_environments, run_single
from common.training.stopping import Watchdog
from common.weights.trailer import read_summary
from tests.support.digits_job import read_metrics
from tests.support.faulty_os import FaultyOs
from tests.support.paths import ROOT, find_run
from ViT.project import PROJECT

pytestmark = pytest.mark.runs

TINY = ['MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2',
        'TRAIN.WARMUP_EPOCHS', '0', 'VALIDATE_FREQ', '1000']


class Acting:
    """Images that call `act` when so many have been read."""

    def __init__(self, dataset, count, act):
        self.dataset, self.left, self.act = dataset, count, act

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, key):
        self.left -= 1
        if self.left == 0:
            self.act()
        return self.dataset[key]


def train(output, *opts, flags=(), act=None, images=72, while_training=True):
    """Train in this process, 16 images an update; return (exit code, stderr).

    act: called when so many training images, or validation images, have been read.
    """
    def get_dataset(config, is_train):
        dataset = PROJECT.get_dataset(config, is_train)
        return Acting(dataset, images, act) if act and is_train == while_training else dataset

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = run_single(replace(PROJECT, get_dataset=get_dataset), [
            '-cfg=configs/vit_digits.yaml', '-num_workers=0', '-batch_size=16',
            f'-output={output}', *flags, '-opts', *TINY, *opts])
    return code, errors.getvalue()


def read_run(output):
    folder = find_run(output)
    with open(os.path.join(folder, 'log.txt')) as file:
        log = file.read()
    return SimpleNamespace(folder=folder, log=log, names=os.listdir(folder))


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1'])
def test_a_signal_ends_the_update_saves_and_exits(name, tmp_path):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    code, errors = train(tmp_path, 'TRAIN.NUM_STEPS', '100',
                         act=lambda: os.kill(os.getpid(), number))
    assert code == 128 + number and f'Stopped by {name}' in errors
    assert signal.getsignal(number) == before
    run = read_run(tmp_path)
    checkpoint = paddle.load(os.path.join(run.folder, 'last.pdparams'))
    assert checkpoint['update'] == 5            # in which image 72 is
    assert 'Saved at update 5 of 100. To go on: the same command with -resume=auto.' in run.log


def test_auto_resume_goes_on_in_the_same_folder(tmp_path):
    train(tmp_path, 'TRAIN.NUM_STEPS', '8', 'REPORT_FREQ', '1',
          act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    code, _ = train(tmp_path, 'TRAIN.NUM_STEPS', '8', 'REPORT_FREQ', '1', flags=['-resume=auto'])
    assert code == 0
    run = read_run(tmp_path)
    assert 'Done: 8 updates' in run.log
    with open(os.path.join(run.folder, 'metrics.jsonl')) as file:
        steps = [json.loads(line).get('update') for line in file if 'train_step' in line]
    assert steps == list(range(1, 9))           # none twice, none left out
    code, _ = train(tmp_path, 'TRAIN.NUM_STEPS', '8', flags=['-resume=auto'])
    assert code == 0 and 'Nothing to do' in (log := read_run(tmp_path).log)
    assert 'to go on, raise TRAIN.NUM_STEPS.' in log


def test_a_second_signal_ends_at_once():
    code = textwrap.dedent("""
        import os, signal, time
        from common.training.stopping import StopRequest
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            print(stop.number, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        """)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM and done.stdout.strip() == '2'
    assert 'a second signal stops at once' in done.stderr


def test_the_watchdog_ends_a_hang():
    code = textwrap.dedent("""
        import time
        from common.training.stopping import Watchdog
        with Watchdog(0.5) as watchdog:
            for update in range(3):
                watchdog.feed(f'update {update}')
                time.sleep(0.3)             # 0.9 s in all, but never 0.5 without a sign
            print('alive', flush=True)
            time.sleep(60)
        """)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=300)
    assert done.returncode == 1 and done.stdout.strip() == 'alive'
    assert 'no progress' in done.stderr and 'update 2' in done.stderr


@pytest.mark.skipif(sys.platform != 'linux', reason='the C library by its Linux name')
def test_the_watchdog_ends_a_hang_that_keeps_pythons_lock():
    """As a blocking copy behind a collective operation that never ends: no thread can run."""
    code = textwrap.dedent("""
        import ctypes
        from common.training.stopping import Watchdog
        with Watchdog(0.5) as watchdog:
            watchdog.feed('update 3')
            ctypes.PyDLL(None).sleep(60)
        """)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          check=False, timeout=300)
    assert done.returncode == 1
    assert 'Timeout' in done.stderr and 'line 6 in <module>' in done.stderr


def test_a_process_that_no_other_joins_gives_up(tmp_path):
    """Before training, where Paddle waits for the others for 15 minutes, or for ever."""
    done = subprocess.run(
        [sys.executable, 'main_multi_gpu.py', '-cfg=configs/vit_digits.yaml', '-device=cpu',
         f'-output={tmp_path}', '-opts', 'WATCHDOG_SECONDS', '2'], cwd=ROOT / 'ViT',
        env={**os.environ, **make_environments(2, 'gloo')[0]}, capture_output=True, text=True,
        check=False, timeout=120)
    assert done.returncode == 1
    assert 'Timeout' in done.stderr or 'while joining the other processes' in done.stderr
    assert 'in join_processes' in done.stderr           # where it waits


def test_a_loss_that_is_not_finite(tmp_path):
    code, errors = train(tmp_path, 'TRAIN.NUM_STEPS', '20', 'TRAIN.BASE_LR', '0.5e31',
                         'TRAIN.WARMUP_START_LR', '1e-4', 'TRAIN.WARMUP_STEPS', '10',
                         'TRAIN.GRAD_CLIP', 'None', 'SAVE_STEPS', '1', 'SAVE_BAD_BATCH', 'True')
    run = read_run(tmp_path)
    assert code == 1 and 'Traceback' not in errors
    assert 'not finite' in errors and 'update 3' in errors and 'learning rate 1.0e+30' in errors
    good, = (name for name in run.names if name.startswith('Epoch') and name in errors)
    assert paddle.load(os.path.join(run.folder, good))['update'] == 2
    batch, = (name for name in run.names if name.startswith('bad-batch'))
    assert os.path.join(run.folder, batch) in errors
    with np.load(os.path.join(run.folder, batch)) as saved:
        assert saved['images'].shape == (16, 32, 32, 3) and saved['images'].dtype == np.uint8
        assert len(saved['labels']) == len(saved['indices']) == 16


def test_no_bad_batch_unless_asked(tmp_path):
    code, errors = train(tmp_path, 'TRAIN.NUM_STEPS', '9', 'TRAIN.BASE_LR', '1e30',
                         'TRAIN.GRAD_CLIP', 'None')
    assert code == 1 and 'none yet' in errors
    assert not any(name.startswith('bad-batch') for name in read_run(tmp_path).names)


class BadImage:
    def __call__(self):
        raise ImageError('of no kind that we know')


def read_end(output):
    """Return what the run in a folder has come to: newest checkpoint, best's epoch, metrics."""
    folder = read_run(output).folder
    newest, best = (read_checkpoint(os.path.join(folder, f'{name}.pdparams'))
                    for name in ('last', 'best'))
    return SimpleNamespace(
        weights=newest['model'], update=newest['update'], best=(newest['best'], best['update']),
        awaits_validation=newest['awaits_validation'], metrics=read_metrics(folder))


def assert_same_end(found, expected):
    assert (found.update, found.best) == (expected.update, expected.best)
    assert found.metrics == expected.metrics
    for name, array in expected.weights.items():
        np.testing.assert_array_equal(found.weights[name], array)


VALIDATED = ('TRAIN.NUM_STEPS', '168', 'VALIDATE_FREQ', '1', 'REPORT_FREQ', '40',
             'TRAIN.MODEL_EMA', 'True', 'DATA.BATCH_SIZE_EVAL', '50')        # two epochs


@pytest.fixture(scope='module')
def validated(tmp_path_factory):
    """The end of two epochs with validation, which nothing has interrupted."""
    folder = tmp_path_factory.mktemp('validated')
    assert train(folder, *VALIDATED)[0] == 0
    return read_end(folder)


@pytest.mark.parametrize('images, save_freq', [     # first epoch, its average, second epoch
    (60, '1'), (60, '1000'), (510, '1000'), (960, '1')])
def test_a_signal_while_validating_ends_it_at_the_next_batch(
        tmp_path, validated, images, save_freq):
    options = (*VALIDATED, 'SAVE_FREQ', save_freq)
    code, errors = train(tmp_path, *options, while_training=False, images=images,
                         act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert code == 128 + signal.SIGTERM, errors
    found = read_end_of_stopped(tmp_path)
    assert found['awaits_validation'] and found['update'] == (84 if images < 900 else 168)
    evaluations = [line for line in read_metrics(read_run(tmp_path).folder)
                   if line['event'] == 'eval']
    assert len(evaluations) == images // 450
    code, errors = train(tmp_path, *options, flags=['-resume=auto'])
    assert code == 0, errors
    assert_same_end(read_end(tmp_path), validated)
    assert not read_end(tmp_path).awaits_validation


def read_end_of_stopped(output):
    return read_checkpoint(os.path.join(read_run(output).folder, 'last.pdparams'))


def test_an_error_while_validating_does_not_lose_the_epoch(tmp_path, validated):
    options = (*VALIDATED, 'SAVE_FREQ', '1000')
    code, errors = train(tmp_path, *options, while_training=False, images=60, act=BadImage())
    assert code == 2 and 'of no kind that we know' in errors
    assert read_end_of_stopped(tmp_path)['update'] == 84
    assert train(tmp_path, *options, flags=['-resume=auto'])[0] == 0
    assert_same_end(read_end(tmp_path), validated)


def test_a_run_that_stopped_early_has_ended(tmp_path):
    """A rate of zero: nothing improves after the first epoch."""
    options = ('TRAIN.NUM_STEPS', '840', 'VALIDATE_FREQ', '1', 'TRAIN.BASE_LR', '1e-30',
               'TRAIN.EARLY_STOP_EPOCHS', '2')
    code, _ = train(tmp_path, *options)
    run = read_run(tmp_path)
    assert code == 0 and 'Stopping early: no better than epoch 1' in run.log
    assert 'Done: 252 updates' in run.log
    before = read_metrics(run.folder)
    code, _ = train(tmp_path, *options, flags=['-resume=auto'])
    run = read_run(tmp_path)
    assert code == 0 and 'Nothing to do: the run was stopped early at update 252' in run.log
    assert 'To go on, raise TRAIN.EARLY_STOP_EPOCHS.' in run.log
    assert read_metrics(run.folder) == before
    more = (*options[:-1], '3')                     # more patience: it goes on
    assert train(tmp_path, *more, flags=['-resume=auto'])[0] == 0
    assert 'Done: 336 updates' in read_run(tmp_path).log


def test_what_a_kill_after_the_last_save_has_left_is_put_in_order(tmp_path, tmp_path_factory,
                                                                   monkeypatch):
    """Links that are behind, files that were to go, reports that are missing."""
    options = ('TRAIN.NUM_STEPS', '168', 'VALIDATE_FREQ', '1', 'SAVE_STEPS', '30', 'KEEP', '1')
    assert train(tmp_path, *options)[0] == 0
    run = read_run(tmp_path)
    expected = {name: Path(run.folder, name).read_bytes() for name in run.names
                if name != 'log.txt'}
    old = min((name for name in run.names if name.startswith('Epoch-')),
              key=lambda name: read_summary(os.path.join(run.folder, name))['update'])
    for name in ('best.pdparams', 'last.pdparams'):
        os.remove(os.path.join(run.folder, name))
        os.link(os.path.join(run.folder, old), os.path.join(run.folder, name))
    # Killed while confusion.png was written: the table of mistakes comes after it.
    for name in ('mistakes.csv', 'confusion.png'):
        os.remove(os.path.join(run.folder, name))
    shared = tmp_path_factory.mktemp('shared')
    monkeypatch.setattr(shared_files, 'FOLDER', str(shared))
    (shared / f'vit-loader-{2 ** 22 + 1}-abc').touch()          # of a worker of long ago
    code, _ = train(tmp_path, *options, flags=['-resume=auto'])
    assert os.listdir(shared) == []
    run = read_run(tmp_path)
    assert code == 0 and 'Nothing to do' in run.log
    assert {name: Path(run.folder, name).read_bytes() for name in run.names
            if name != 'log.txt'} == expected


def test_a_failed_save_does_not_hide_the_error_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_file, 'os', FaultyOs('write', 0, errno.ENOSPC))
    code, errors = train(tmp_path, 'TRAIN.NUM_STEPS', '20', 'TRAIN.BASE_LR', '0.5e31',
                         'TRAIN.WARMUP_START_LR', '1e-4', 'TRAIN.WARMUP_STEPS', '10',
                         'TRAIN.GRAD_CLIP', 'None', 'SAVE_STEPS', '1')
    assert code == 1 and 'not finite' in errors and 'Could not save' not in errors
    assert 'No space left on device' in read_run(tmp_path).log


def test_the_watchdog_watches_a_second_time():
    watchdog = Watchdog(60)
    with watchdog:
        first = watchdog.closed
    assert first.is_set()
    with watchdog:
        assert not watchdog.closed.is_set()


def test_metrics_of_a_run_that_goes_on_with_another_batch(tmp_path):
    """Updates are counted anew; what is on record of the epochs before stays."""
    options = ['TRAIN.NUM_EPOCHS', '3', 'VALIDATE_FREQ', '1']
    assert train(tmp_path, *options)[0] == 0
    before = read_metrics(read_run(tmp_path).folder)
    options[1] = '5'
    assert train(tmp_path, *options, 'DATA.BATCH_SIZE', '64', flags=['-resume=auto'])[0] == 0
    after = read_metrics(read_run(tmp_path).folder)
    assert after[:len(before)] == before
    epochs = [line['epoch'] for line in after if line['event'] == 'train_epoch']
    assert epochs == [1, 2, 3, 4, 5]


class Empty:
    """Validation data without images."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return 0


def test_no_validation_images_are_no_best_and_no_nan(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), 'Acting', lambda dataset, *_: Empty(dataset))
    options = ('TRAIN.NUM_EPOCHS', '2', 'VALIDATE_FREQ', '1', 'TRAIN.EARLY_STOP_EPOCHS', '1')
    code, errors = train(tmp_path, *options, while_training=False, act=print)
    assert code == 0, errors
    run = read_run(tmp_path)
    assert 'There are no validation images' in run.log and 'best' not in run.log
    assert 'best.pdparams' not in run.names and 'last.pdparams' in run.names
    assert {line['event'] for line in read_metrics(run.folder)} == {'train_epoch', 'train_step'}
