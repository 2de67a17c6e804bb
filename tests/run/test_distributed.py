"""Several processes: the figures of one process, and an end for all when one fails."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import paddle
import pytest

from common.run.launch import _wait, run_single
from tests.support.images import VAL_IMAGES, make_imagenet
from tests.support.paths import ROOT, find_run
from ViT.config import get_config
from ViT.project import PROJECT
from ViT.vit import build_vit

pytestmark = pytest.mark.runs

DIGITS = os.path.join(ROOT, 'ViT', 'configs', 'vit_digits.yaml')
TINY = ['MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2']
SECONDS = 60            # on a busy machine; within which all processes end after one has failed


def read_metrics(output, event):
    with open(find_run(output) / 'metrics.jsonl') as file:
        entries = [json.loads(line) for line in file]
    return [entry for entry in entries if entry['event'] == event]


def start(*argv, log_dir=None):
    """Run faulty_main.py to its end; return the process and its seconds after the fault."""
    command = [sys.executable]
    if log_dir:
        command += ['-m', 'paddle.distributed.launch', '--nproc_per_node', '2', '--log_dir',
                    log_dir]
    with tempfile.TemporaryDirectory() as folder:
        fault = os.path.join(folder, 'time')
        program = os.path.join(ROOT, 'tests', 'support', 'faulty_main.py')
        done = subprocess.run([*command, program, *argv],
                              env=os.environ | {'FAULT_TIME': fault}, capture_output=True,
                              text=True, check=False, timeout=240)
        ended = time.time()
        if not os.path.exists(fault):
            return done, None
        with open(fault) as file:
            return done, ended - float(file.read())


# The same figures

@pytest.fixture(scope='module')
def jobs(tmp_path_factory):
    """Train and evaluate in two processes, all in one start; returns a folder and flags."""
    folder = tmp_path_factory.mktemp('ranks')
    images = make_imagenet(folder / 'images')
    weights = str(folder / 'weights.pdparams')
    opts = ['-opts', *TINY, 'MODEL.PATCH_SIZE', '8', 'MODEL.NUM_CLASSES', '7']
    evaluation = ['-dataset=imagenet2012', f'-data_path={images}', '-image_size=32', '-eval',
                  f'-pretrained={weights}', '-num_workers=0', *opts]
    training = [f'-cfg={DIGITS}', '-num_workers=0', '-opts', 'TRAIN.NUM_STEPS', '20',
                'TRAIN.WARMUP_STEPS', '2', 'REPORT_FREQ', '1', *TINY]
    paddle.seed(3)
    model = build_vit(get_config(flags={'DATA.IMAGE_SIZE': 32}, opts=opts[1:]))
    for parameter in model.parameters():        # initial logits are too close to zero
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    paddle.save(model.state_dict(), weights)
    two = [[f'-output={folder}/2-{size}', f'-batch_size={size}', *evaluation]
           for size in (1, 7, 64)]
    two.append([f'-output={folder}/2-train', '-batch_size=16', *training])
    done, _ = start('jobs', json.dumps(two))
    assert done.returncode == 0, done.stderr
    return folder, evaluation, training


def test_evaluation_is_exact_for_any_batch_size_and_two_processes(jobs):
    folder, evaluation, _ = jobs
    results = []
    for size in (1, 7, 64):
        assert run_single(PROJECT, [f'-output={folder}/1-{size}', f'-batch_size={size}',
                                    *evaluation]) == 0
        results += [read_metrics(f'{folder}/{processes}-{size}', 'eval')[0]
                    for processes in (1, 2)]
    for result in results:
        assert result['images'] == VAL_IMAGES
        assert (result['acc1'], result['acc5']) == (results[0]['acc1'], results[0]['acc5'])
        assert result['loss'] == pytest.approx(results[0]['loss'], abs=1e-6)
    assert 0 < results[0]['acc1'] < results[0]['acc5'] < 100


def test_two_processes_follow_one_with_twice_the_batch(jobs):
    folder, _, training = jobs
    assert run_single(PROJECT, [f'-output={folder}/1-train', '-batch_size=32', *training]) == 0
    one, two = (read_metrics(f'{folder}/{processes}-train', 'train_step')
                for processes in (1, 2))
    assert len(one) == len(two) == 20
    for expected, found in zip(one, two):
        assert found['loss'] == pytest.approx(expected['loss'], abs=1e-5)
        assert found['grad_norm'] == pytest.approx(expected['grad_norm'], rel=1e-3)
        assert found['lr'] == expected['lr']
    assert one[-1]['loss'] != one[0]['loss']
    evals = [read_metrics(f'{folder}/{processes}-train', 'eval')[0] for processes in (1, 2)]
    assert evals[0]['loss'] == pytest.approx(evals[1]['loss'], abs=1e-5)


# Faults

def train_flags(output, *opts):
    return [f'-cfg={DIGITS}', '-nprocs=2', '-device=cpu', '-num_workers=0', '-batch_size=16',
            f'-output={output}', '-opts', 'TRAIN.NUM_STEPS', '2000', 'TRAIN.WARMUP_EPOCHS', '0',
            'VALIDATE_FREQ', '1000', *TINY, *opts]


@pytest.mark.parametrize('kind, code, text', [
    ('raise', 1, 'RuntimeError: rank 1 has had enough'),
    ('exit', 7, 'rank 1 leaves'),
    ('kill', 128 + signal.SIGKILL, 'SIGKILL'),
])
def test_all_end_when_one_fails(kind, code, text, tmp_path):
    done, seconds = start(kind, *train_flags(tmp_path))
    assert done.returncode == code, done.stderr
    assert done.stderr.count(text) == 1, done.stderr
    assert done.stderr.count('Traceback') == (kind == 'raise')
    assert seconds < SECONDS


def test_what_does_not_end_by_itself_is_killed(monkeypatch):
    monkeypatch.setattr('common.run.launch.GRACE_SECONDS', 0.5)
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=time.sleep, args=(60,)),
                 context.Process(target=os._exit, args=(3,))]
    for process in processes:
        process.start()
    started = time.monotonic()
    assert _wait(processes) == 3
    assert time.monotonic() - started < 20
    assert processes[0].exitcode == -signal.SIGKILL


@pytest.mark.parametrize('kind, text', [('raise', 'rank 1 has had enough'), ('kill', None)])
def test_all_end_under_the_launcher(kind, text, tmp_path):
    done, seconds = start(kind, *train_flags(tmp_path / 'runs')[:1],
                          *train_flags(tmp_path / 'runs')[2:],
                          log_dir=str(tmp_path / 'log'))
    assert done.returncode != 0
    logs = ''.join(path.read_text(errors='replace') for path in (tmp_path / 'log').iterdir())
    assert text is None or text in logs + done.stdout + done.stderr
    assert seconds < SECONDS


def test_a_loss_that_is_not_finite_stops_every_process(tmp_path):
    done, _ = start('none', *train_flags(
        tmp_path, 'TRAIN.BASE_LR', '1e30', 'TRAIN.GRAD_CLIP', 'None'))
    assert done.returncode == 1
    assert done.stderr.count('not finite') == 1 and 'update 2' in done.stderr
    assert 'learning rate 1.0e+30' in done.stderr and 'good checkpoint' in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_signal_saves_and_auto_resume_goes_on_in_the_same_folder(tmp_path):
    done, seconds = start('SIGTERM', *train_flags(tmp_path))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert done.stderr.count('Stopped by SIGTERM') == 1 and seconds < SECONDS
    folder = find_run(tmp_path)
    assert os.path.exists(folder / 'last.pdparams')
    done, _ = start('none', '-resume=auto', *train_flags(tmp_path, 'TRAIN.NUM_STEPS', '10'))
    assert done.returncode == 0, done.stderr
    assert find_run(tmp_path) == folder
    log = (tmp_path / folder / 'log.txt').read_text()
    assert 'Resuming from' in log and 'Done: 10 updates' in log


@pytest.mark.parametrize('name', ['SIGINT', 'SIGUSR1'])
def test_other_signals_save_too(name, tmp_path):
    number = getattr(signal, name)
    done, seconds = start(name, *train_flags(tmp_path))
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.count(f'Stopped by {name}') == 1 and seconds < SECONDS
    assert 'Traceback' not in done.stderr
    checkpoint = paddle.load(str(find_run(tmp_path) / 'last.pdparams'))
    assert 0 < checkpoint['update'] < 2000


def list_children(pid):
    """Return the numbers of the processes that a process has started for ranks."""
    children = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(')')[2].split()[1])
            if parent == pid and b'spawn_main' in (path.parent / 'cmdline').read_bytes():
                children.append(int(path.parent.name))
    return children


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='looks for processes in /proc')
@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGUSR1'])
def test_a_signal_during_the_start_ends_all_without_a_traceback(name, tmp_path):
    """As Ctrl-C does, to the whole group, while the ranks import Paddle."""
    program = ROOT / 'ViT' / 'main_multi_gpu.py'
    with subprocess.Popen([sys.executable, program, *train_flags(tmp_path / 'runs')],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        try:
            while len(ranks := list_children(process.pid)) < 2:
                assert process.poll() is None
                time.sleep(0.02)
            os.killpg(process.pid, getattr(signal, name))
            output, errors = process.communicate(timeout=120)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + getattr(signal, name), errors
    for word in ('Traceback', 'multiprocessing', 'resource_tracker', 'was ended by'):
        assert word not in output + errors
    assert not any(os.path.exists(f'/proc/{rank}') for rank in ranks)


def test_ranks_are_started_without_semaphores(tmp_path):
    """Something else may remove them, and Python's clean-up then prints tracebacks."""
    code = (f'import multiprocessing.synchronize, sys; sys.path.insert(0, {str(ROOT)!r})\n'
            'from common.run.launch import run_multi\n'
            'from ViT.project import PROJECT\n'
            'def refuse(*arguments, **options): raise RuntimeError("a semaphore")\n'
            'if __name__ == "__main__":\n'
            '    multiprocessing.synchronize.SemLock.__init__ = refuse\n'
            '    sys.exit(run_multi(PROJECT, sys.argv[1:]))\n')
    (tmp_path / 'program.py').write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / 'program.py',
         *train_flags(tmp_path / 'runs', 'TRAIN.NUM_STEPS', '2')],
        capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert 'Traceback' not in done.stderr and 'resource_tracker' not in done.stderr
