"""A fault of the disk at every system call of a run's saves; nothing is lost, nothing differs.

python -m pytest -m slow tests/slow/test_disk_faults.py -s      (about 15 minutes on two cores)
"""

import contextlib
import io

import pytest

from common.checkpoints import file as checkpoint_file
from common.checkpoints import store as checkpoint_store
from common.run.launch import run_single
from tests.support.digits_job import Job, assert_same_result
from tests.support.faulty_os import parse_fault
from ViT.project import PROJECT

pytestmark = pytest.mark.slow
OPTIONS = {'TRAIN.NUM_EPOCHS': 1, 'SAVE_STEPS': 5, 'DATA.NUM_WORKERS': 0}


def run_here(job, fault, monkeypatch):
    """Run the job in this process; return (exit code, errors, calls of the system)."""
    errors = io.StringIO()
    with monkeypatch.context() as patched, contextlib.redirect_stderr(errors), \
            contextlib.redirect_stdout(errors):
        patched.setattr(checkpoint_file, 'os', fault)
        patched.setattr(checkpoint_store, 'os', fault)
        patched.setattr(checkpoint_file, 'CHUNK', 1 << 16)      # several writes a save
        code = run_single(PROJECT, job.arguments())
    return code, errors.getvalue(), fault.calls


@pytest.mark.parametrize('error', ['ENOSPC', 'EIO', 'EACCES', 'EDQUOT', 'short', 'slow'])
def test_a_fault_at_every_call(tmp_path, monkeypatch, error):
    function = 'write' if error == 'short' else 'any'
    whole = Job(tmp_path / 'whole', options=OPTIONS)
    code, errors, calls = run_here(whole, parse_fault(f'{function}:-1:{error}'), monkeypatch)
    assert code == 0 and calls > 9, errors
    expected = whole.read_result()
    failed = 0
    for call in range(1, calls + 1):
        job = Job(tmp_path / str(call), options=OPTIONS)
        fault = parse_fault(f'{function}:{call}:{error}')
        code, errors, _ = run_here(job, fault, monkeypatch)
        failed += code
        if code:                            # the last save of all failed
            assert code == 1 and 'Could not save' in errors, errors
        if code or 'could not be put in order' in errors:
            code, errors, _ = run_here(job, parse_fault('any:-1:EIO'), monkeypatch)
        assert code == 0, errors
        assert_same_result(job.read_result(), expected)
    print(f'{error}: {calls} runs, {failed} of which ended with an error and were resumed')
    assert (failed > 0) == (error not in ('short', 'slow'))
