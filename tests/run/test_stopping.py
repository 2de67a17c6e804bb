"""Signals save and end a run; a loss that is not finite ends it with what is needed to go on."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common.run.launch import run_single
from ViT.project import PROJECT

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TINY = ['MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2',
        'TRAIN.WARMUP_EPOCHS', '0', 'VALIDATE_FREQ', '1000']


class Acting:
    """Training images that call `act` when so many have been read."""

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


def train(output, *opts, flags=(), act=None, images=72):
    """Train in this process, 16 images an update; return (exit code, stderr)."""
    def get_dataset(config, is_train):
        dataset = PROJECT.get_dataset(config, is_train)
        return Acting(dataset, images, act) if is_train and act else dataset

    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = run_single(replace(PROJECT, get_dataset=get_dataset), [
            '-cfg=configs/vit_digits.yaml', '-num_workers=0', '-batch_size=16',
            f'-output={output}', *flags, '-opts', *TINY, *opts])
    return code, errors.getvalue()


def read_run(output):
    folder, = (entry.path for entry in os.scandir(output))
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
    assert code == 0 and 'Nothing to do' in read_run(tmp_path).log


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
                          check=False, timeout=30)
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
                          check=False, timeout=30)
    assert done.returncode == 1 and done.stdout.strip() == 'alive'
    assert 'no progress' in done.stderr and 'update 2' in done.stderr


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
