"""The fake accelerator: compiled once a session, and the environment in which Paddle finds it."""

import json
import os
import shutil
import subprocess
import sys

import paddle
import pytest

from tests.support.paths import ROOT, find_run

SOURCES = ROOT / 'tests' / 'support' / 'fake_device'
TYPE = 'metax_gpu'              # of the plug-ins' types, one that Paddle 3.3 allows bfloat16
IS_PADDLE_3 = int(paddle.__version__.split('.')[0]) >= 3


def build(folder):
    """Compile the plug-in into a folder; skip the test where that cannot be done."""
    if shutil.which('g++') is None:
        pytest.skip('no C++ compiler')
    if sys.platform != 'linux':
        pytest.skip('the fake accelerator needs Linux')
    half = ['half'] if IS_PADDLE_3 else []
    subprocess.run(['sh', SOURCES / 'build.sh', os.path.dirname(paddle.__file__), folder, *half],
                   check=True, timeout=600)


def make_environment(folder, **variables):
    """Return the environment of a process that has the fake accelerator."""
    return {**os.environ, 'CUSTOM_DEVICE_ROOT': str(folder), 'FAKE_TYPE': TYPE,
            'FLAGS_use_stride_kernel': '0', 'GLOG_minloglevel': '2', **variables}


def run_jobs(environment, jobs, timeout=600):
    """Run scripts one after the other in one process; return its ended process.

    jobs: see device_jobs.py. Raises no error: see its `returncode`.
    """
    return subprocess.run([sys.executable, ROOT / 'tests' / 'support' / 'device_jobs.py'],
                          input=json.dumps(jobs), env=environment, cwd=ROOT, timeout=timeout,
                          capture_output=True, text=True)


def read_metrics(parent, event):
    """Return the lines of an event in the only run folder below `parent`."""
    folder = find_run(parent)
    lines = (json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines())
    return [line for line in lines if line['event'] == event]
