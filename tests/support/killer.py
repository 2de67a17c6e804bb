"""Kills a whole run at a chosen call that changes its folder or /dev/shm (see kill_at.c)."""

import os
import subprocess
from collections import Counter
from pathlib import Path

from common.checkpoints.find import LAST
from tests.support.paths import ROOT

SOURCE = ROOT / 'tests/support/kill_at.c'
LINE = 64                   # bytes of a line of the trace
HOWS = ('before', 'half', 'after')
SHARED = '/dev/shm'


def build_killer(folder):
    """Compile the library to be preloaded; return its path."""
    path = Path(folder) / 'kill_at.so'
    subprocess.run(['cc', '-O1', '-shared', '-fPIC', str(SOURCE), '-o', str(path), '-ldl'],
                   check=True)
    return path


class Killer:
    """Starts a job's runs under the library, and keeps what it did.

    job: of digits_job. calls: [(pid, call, name)] of all its runs so far.
    """

    def __init__(self, job, library):
        self.job = job
        self.library = library
        self.calls = []
        self.shared_before = os.listdir(SHARED)     # of others, whose process ids come again

    def run(self, at=0, how='before', whom='all'):
        """Run to the end, or to call number `at`; return (exit code, this run's calls)."""
        trace = self.job.folder / 'trace.txt'
        trace.unlink(missing_ok=True)
        code = self.job.run(LD_PRELOAD=str(self.library), KILL_FOLDER=f'{self.job.folder}/train-',
                            KILL_TRACE=str(trace), KILL_AT=str(at), KILL_HOW=how, KILL_WHOM=whom)
        calls = [(int(line[:7]), line[8:18].strip(), line[19:].strip())
                 for line in trace.read_text(encoding='utf-8').splitlines()] \
            if trace.exists() else []
        self.calls += calls
        return code, calls

    def find_shared_files(self):
        """Return the names in /dev/shm that belong to a process of these runs."""
        processes = {str(pid) for pid, _, _ in self.calls}
        return [name for name in set(os.listdir(SHARED)) - set(self.shared_before)
                if processes & set(name.replace('-', '_').split('_'))]


def read_all(job):
    """Return all that a run leaves: see Job.read_result, and its folders.

    A folder without a checkpoint is of a run that was killed before its first save: what may be
    in it are a log, a config and metrics.
    """
    result = job.read_result()
    for folder in sorted(job.folder.glob('train-*')):
        names = sorted(os.listdir(folder))
        if LAST in names:
            result['names'] = names
            result.update((name, (folder / name).read_bytes())
                          for name in names if name.endswith(('.csv', '.png')))
            config = (folder / 'config.yaml').read_text(encoding='utf-8')
            result['config.yaml'] = config.replace(str(job.folder), 'OUTPUT')
        else:
            assert set(names) <= {'log.txt', 'config.yaml', 'metrics.jsonl'}, names
    return result


def describe_call(call, name):
    """Return a call as a kind: "write metrics.jsonl", "rename checkpoint", "open /dev/shm"."""
    if name.startswith('.Epoch-'):
        name = 'unfinished checkpoint'
    elif name.startswith('Epoch-'):
        name = 'checkpoint'
    elif name.startswith('train-'):
        name = 'run folder'
    elif name.startswith(('vit-loader', '.vit-loader', 'paddle_')):
        name = 'loader\'s in /dev/shm'
    return f'{call} {name}'


def count_kinds(calls):
    return Counter(describe_call(call, name) for _, call, name in calls)
