"""A training job on the digits, small enough to be started hundreds of times, and its result.

It has everything whose state must survive: dropout, stochastic depth, mixup and cutmix, random
erasing, EMA, accumulation with a shorter last group, two loader workers, saves in mid-epoch.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common.checkpoints.content import read_checkpoint
from common.checkpoints.find import BEST, LAST, list_checkpoints
from tests.support.paths import ROOT

OPTIONS = {
    'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 2, 'MODEL.NUM_HEADS': 2, 'MODEL.DROPOUT': 0.1,
    'MODEL.ATTENTION_DROPOUT': 0.1, 'MODEL.DROPPATH': 0.2, 'TRAIN.NUM_EPOCHS': 2,
    'TRAIN.WARMUP_EPOCHS': 1, 'TRAIN.MIXUP_ALPHA': 0.8, 'TRAIN.CUTMIX_ALPHA': 1.0,
    'TRAIN.RANDOM_ERASE_PROB': 0.5, 'TRAIN.MODEL_EMA': True, 'TRAIN.MODEL_EMA_DECAY': 0.9,
    'VALIDATE_FREQ': 1, 'SAVE_FREQ': 1, 'SAVE_STEPS': 3, 'REPORT_FREQ': 2,
}
MARK = 'DIGITS_JOB'          # variable by which a job's processes are found
PATIENCE = 300              # seconds for what takes a few on a quiet machine
TIMES = ('seconds', 'images_per_second')


class Job:
    """A command that is started, ended in some way, and started again, in one output folder.

    processes: of the training. options: config keys beside OPTIONS. flags: further
    arguments. launch: arguments of paddle.distributed.launch, which then starts the job.
    """

    def __init__(self, folder, processes=1, options=None, flags=(), resume='auto', launch=None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes = processes
        self.launch = launch
        self.resume = resume
        self.options = {**OPTIONS, **(options or {})}
        self.flags = list(flags)
        self.process = None
        self.output = self.folder / 'output.txt'

    def arguments(self):
        """Return the command-line arguments of a main script."""
        options = [str(item) for pair in self.options.items() for item in pair]
        resume = [f'-resume={self.resume}'] if self.resume else []
        spawns = self.processes > 1 and self.launch is None
        processes = [f'-nprocs={self.processes}'] if spawns else []
        return ['-cfg=configs/vit_digits.yaml', '-device=cpu', f'-output={self.folder}',
                '-batch_size=32', '-image_size=16', '-accum_iter=4', *resume, *processes,
                *self.flags, '-opts', *options]

    def start(self, fault=None, folder=None, **environment):
        """Start it anew, in a working folder. fault: see faulty_os.parse_fault."""
        environment = {**os.environ, MARK: str(self.folder), **environment}
        if fault:
            environment['FAULT'] = fault
        kind = 'multi' if self.processes > 1 else 'single'
        launcher = []
        if self.launch is not None:
            launcher = ['-m', 'paddle.distributed.launch', '--nproc_per_node',
                        str(self.processes), '--log_dir', str(self.folder / 'logs'),
                        *self.launch]
        with open(self.output, 'w', encoding='utf-8') as output:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(ROOT / 'tests/support/main_with_fault.py'), kind,
                 *self.arguments()],
                env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                cwd=folder)
        return self

    def wait(self, seconds=120):
        """Return the exit code, once every process of the job has ended."""
        try:
            code = self.process.wait(seconds)
            self.wait_for_all()
        finally:
            self.end()
        return code

    def run(self, **options):
        """Start, wait, and return the exit code."""
        return self.start(**options).wait()

    def wait_for(self, condition, seconds=PATIENCE):
        """Wait until condition() is true or the job has ended; return what it is then."""
        deadline = time.monotonic() + seconds
        while not condition() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.005)
        return condition()

    def wait_for_text(self, text, seconds=PATIENCE):
        """Wait until the output has this text."""
        assert self.wait_for(lambda: text in self.text, seconds), self.text

    def wait_for_all(self, seconds=PATIENCE):
        """Wait until no process of the job is left. Fails after so many seconds."""
        deadline = time.monotonic() + seconds
        while left := self.find_processes():
            assert time.monotonic() < deadline, f'processes left: {left}\n{self.text}'
            time.sleep(0.02)

    def end(self):
        """Kill whatever is left of it."""
        for pid in self.find_processes():
            kill(pid, signal.SIGKILL)
        self.process.wait()

    @property
    def text(self):
        return self.output.read_text(encoding='utf-8', errors='replace')

    def find_ranks(self):
        """Return the process ids of the ranks started so far, in their order."""
        return sorted(pid for pid, parent in self.find_processes().items()
                      if parent == self.process.pid)

    def find_processes(self):
        """Return {pid: parent} of every living process of the job (Linux).

        Python's resource tracker is left out: nothing depends on it.
        """
        mark = f'{MARK}={self.folder}'.encode()
        found = {}
        for name in os.listdir('/proc'):
            if name.isdigit() and mark in read_process(name, 'environ').split(b'\0'):
                state, parent, *_ = (read_process(name, 'stat').rpartition(b')')[2].split()
                                     or (b'X', b'0'))
                if state not in b'ZX' and b'resource_tracker' not in read_process(name, 'cmdline'):
                    found[int(name)] = int(parent)
        return found

    def find_checkpoints(self):
        """Return the entries of every checkpoint, newest first, the files being good or not."""
        entries = [entry for folder in self.folder.glob('train-*')
                   for entry in list_checkpoints(folder)]
        return sorted(entries, key=lambda entry: -entry.time)

    def read_result(self):
        """Return {name: array or plain value} of all that the finished run has come to."""
        path = self.find_checkpoints()[0].path
        checkpoint = read_checkpoint(path)
        result = {f'model {name}': array for name, array in checkpoint['model'].items()}
        result.update((f'ema {name}', array) for name, array in checkpoint['model_ema'].items())
        for name, state in checkpoint['optimizer'].items():
            result.update((f'{key} {name}', array) for key, array in state.items())
        for key in ('update', 'epoch', 'loss', 'learning_rate', 'meter', 'best', 'ema_updates'):
            result[key] = checkpoint[key]
        folder = os.path.dirname(path)
        result['metrics'] = read_metrics(folder)
        for name in (BEST, LAST):
            linked = read_checkpoint(os.path.join(folder, name))
            result[name] = (linked['update'], linked['best'], linked['awaits_validation'])
            result.update((f'{name} {key}', array) for key, array in linked['model'].items())
        result['left'] = [name for name in os.listdir(folder)
                          if name.startswith('.') or name.endswith(('.lock', '.tmp'))]
        return result


def read_metrics(folder):
    """Return the lines of metrics.jsonl without times and speeds."""
    lines = (Path(folder) / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES}
            for line in lines]


def assert_same_result(found, expected):
    """Fail unless two results are equal in every bit."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
            assert found[name].tobytes() == value.tobytes(), name
        else:
            assert found[name] == value, name


def read_process(pid, name):
    """Return a file below /proc, empty if the process has ended or is another user's."""
    try:
        with open(f'/proc/{pid}/{name}', 'rb') as file:
            return file.read()
    except OSError:
        return b''


def kill(pid, number):
    """Send a signal, unless the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
