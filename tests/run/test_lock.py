"""One run at a time in a folder; a lock of a run that is no more holds nothing."""

import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from common.checkpoints.content import read_checkpoint
from common.errors import UserError
from common.run import folder as folder_module
from common.run import lock as lock_module
from common.run.launch import run_single
from common.run.lock import NAME, RunLock, describe_process, refuse_running
from tests.support.paths import ROOT
from ViT.project import PROJECT

OPTIONS = ['-cfg=configs/vit_digits.yaml', '-num_workers=0', '-batch_size=16', '-opts',
           'MODEL.DEPTH', '1', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2',
           'TRAIN.WARMUP_EPOCHS', '0', 'TRAIN.NUM_STEPS', '4', 'VALIDATE_FREQ', '1000']
needs_fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


@contextlib.contextmanager
def hold(folder, model='vit_digits'):
    """Hold the lock of a folder in another process, which is then killed; yields its id."""
    code = (f'import time\nfrom common.run.lock import RunLock\n'
            f'lock = RunLock({str(folder)!r}, {model!r}, 0)\n'
            'print("held", flush=True)\ntime.sleep(100)\n')
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE,
                          text=True) as process:
        try:
            assert process.stdout.readline() == 'held\n'
            yield process.pid
        finally:
            process.kill()


@pytest.mark.runs
def test_the_second_is_refused_and_a_killed_one_holds_nothing(tmp_path):
    with hold(tmp_path) as pid:
        started = time.monotonic()
        with pytest.raises(UserError, match=f'in use by another run .process {pid} on .*-output'):
            RunLock(tmp_path, 'vit_digits', 0.3)
        assert 0.3 <= time.monotonic() - started < 60
        with pytest.raises(UserError, match=f'process {pid}'):
            refuse_running(tmp_path.parent, 'vit_digits', 0)
        refuse_running(tmp_path.parent, 'another model', 0)
        os.kill(pid, signal.SIGKILL)
        RunLock(tmp_path, 'vit_digits').release()       # waits for its end
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', ['run.lock', 'log.txt', 'metrics.jsonl', 'config.yaml',
                                  'per_class.csv', '.last.pdparams.writing'])
def test_links_in_a_run_folder_are_not_followed(tmp_path, capsys, name):
    """A run that goes on by itself writes into nothing that a link in its folder leads to."""
    precious = tmp_path / 'precious'
    arguments = ['-device=cpu', f'-output={tmp_path}/runs', '-resume=auto', *OPTIONS]
    assert run_single(PROJECT, arguments) == 0
    folder, = (tmp_path / 'runs').glob('train-*')
    if (folder / name).exists():
        (folder / name).rename(precious)
    else:
        precious.write_text('precious')
    before = precious.read_bytes()
    (folder / name).symlink_to(precious)
    code = run_single(PROJECT, [*arguments, 'TRAIN.NUM_STEPS', '6'])
    text = capsys.readouterr()
    assert precious.read_bytes() == before
    if name == 'run.lock':
        assert code == 2 and 'run.lock: it is a link, which is not followed' in text.err
    else:
        assert code == 0 and read_checkpoint(str(folder / 'last.pdparams'))['update'] == 6
    if name in ('log.txt', 'metrics.jsonl'):
        assert f'{name} cannot be written: it is a link' in text.out + text.err


def test_what_a_killed_run_has_not_finished_is_removed(tmp_path):
    """It is killed in its first save: nobody continues in its folder, and it takes gigabytes."""
    folder = tmp_path / 'train-1'
    folder.mkdir()
    (folder / NAME).write_text('{"model": "vit_digits", "pid": 1, "host": "of long ago"}')
    for name in ('.Epoch-1-Loss-2.pdparams.writing', 'log.txt'):
        (folder / name).write_text('')
    refuse_running(tmp_path, 'another model')
    assert len(os.listdir(folder)) == 3
    refuse_running(tmp_path, 'vit_digits')
    assert os.listdir(folder) == ['log.txt']


@pytest.mark.runs
def test_a_run_that_goes_on_elsewhere_is_not_continued(tmp_path, monkeypatch):
    """Also where it has no checkpoint yet; a stale lock is no obstacle."""
    monkeypatch.setattr(lock_module, 'WAIT_SECONDS', 0)
    other = tmp_path / 'train-1'
    other.mkdir()
    arguments = [f'-output={tmp_path}', '-resume=auto', *OPTIONS]
    with hold(other):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            assert run_single(PROJECT, arguments) == 2
        assert f'{other} is in use by another run' in errors.getvalue()
        assert 'Traceback' not in errors.getvalue()
        assert os.listdir(tmp_path) == ['train-1']
    assert NAME in os.listdir(other)
    assert run_single(PROJECT, arguments) == 0
    assert not list(tmp_path.rglob(NAME))               # none is left, the stale one neither


def test_one_process_at_a_time_chooses_its_folder(tmp_path, monkeypatch):
    """Two that begin together would both find no run to continue."""
    fcntl = pytest.importorskip('fcntl')

    def is_locked():
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)

    seen = []
    monkeypatch.setattr(folder_module, 'refuse_running', lambda *_: seen.append(is_locked()))
    config = PROJECT.get_config(flags={'SAVE': str(tmp_path), 'MODEL.RESUME': 'auto'})
    _, resume_path, lock = folder_module.choose_folder(config)
    lock.release()
    assert resume_path is None and seen == [True] and not is_locked()


@needs_fork
@pytest.mark.parametrize('difference, is_refused', [
    ({}, True), ({'start': 1}, False), ({'boot': 'another'}, False), ({'host': 'x'}, False),
    ({'pid': 2 ** 22 + 5}, False), (None, False)])
def test_file_systems_without_locks(tmp_path, monkeypatch, difference, is_refused):
    """The record decides: a process with this id, started then, since this boot."""
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', refuse)
    record = 'damaged' if difference is None else json.dumps(
        {**describe_process(os.getppid()), **difference})
    (tmp_path / NAME).write_text(record)
    if is_refused:
        with pytest.raises(UserError, match=f'process {os.getppid()}'):
            RunLock(tmp_path, 'vit_digits', 0)
    else:
        lock = RunLock(tmp_path, 'vit_digits', 0)
        assert json.loads((tmp_path / NAME).read_text())['pid'] == os.getpid()
        lock.release()
    assert (tmp_path / NAME).exists() == is_refused


@needs_fork
def test_forked_processes_hold_nothing(tmp_path):
    """Loader workers outlive a killed run by a second."""
    lock = RunLock(tmp_path, 'a', 0)
    child = os.fork()
    if child == 0:
        try:
            RunLock(tmp_path, 'a', 0)
            os._exit(1)
        except UserError:
            os._exit(0)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    lock.release()
