"""A tiny run in this process whose lines, bars, pictures or tables fail at a chosen call."""

import errno
import io
import os
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from common.checkpoints.content import read_checkpoint
from common.run import log, results
from common.run.launch import run_single
from common.training import confusion
from tests.support.colours import list_arguments
from ViT.project import PROJECT


class Fault:
    """Counts calls; from the first-th on (or at it alone) they fail."""

    def __init__(self, first=None, always=True, error=None):
        self.first, self.always = first, always
        self.error = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.calls = self.failures = 0

    def call(self):
        self.calls += 1
        if self.first is not None and (
                self.calls >= self.first if self.always else self.calls == self.first):
            self.failures += 1
            raise self.error


class Stream(io.StringIO):
    """A terminal whose writes and flushes may fail."""

    encoding = 'latin-1'

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def isatty(self):
        return True

    def write(self, text):
        self.fault.call()
        text.encode(self.encoding)
        return super().write(text)

    def flush(self):
        self.fault.call()


def wrap(monkeypatch, owner, name, fault, applies=lambda *arguments: True):
    real = getattr(owner, name)

    def call(*arguments, **options):
        if applies(*arguments):
            fault.call()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


def is_file(name):
    # A file that was opened by its descriptor has no name of its own.
    return lambda file, *rest: os.path.basename(
        os.readlink(f'/proc/self/fd/{file.fileno()}')) == name


SINKS = {
    'stdout': lambda patch, fault: patch.setattr(sys, 'stdout', Stream(fault)),
    'stderr': lambda patch, fault: patch.setattr(sys, 'stderr', Stream(fault)),
    'log.txt': lambda patch, fault: wrap(patch, log, 'append_line', fault, is_file('log.txt')),
    'metrics.jsonl': lambda patch, fault: wrap(
        patch, log, 'append_line', fault, is_file('metrics.jsonl')),
    'results.csv': lambda patch, fault: wrap(patch, results, 'append_line', fault),
    'picture': lambda patch, fault: wrap(patch, Image.Image, 'save', fault),
    'font': lambda patch, fault: wrap(patch, ImageDraw.ImageDraw, 'text', fault),
    'tables': lambda patch, fault: wrap(patch, confusion, '_write_csv', fault),
    'bar': lambda patch, fault: wrap(patch, log.tqdm, 'update', fault),
    'bar that closes': lambda patch, fault: wrap(
        patch, log.tqdm, 'close', fault, lambda bar: not bar.disable),
}


def run(data, folder, **options):
    """Train in this process; return (weights as bytes, lines of log.txt)."""
    options = {'TRAIN__NUM_EPOCHS': 2, 'REPORT_FREQ': 2, **options}
    assert run_single(PROJECT, ['-device=cpu', f'-data_path={data}', f'-output={folder}',
                                *list_arguments(**options)]) == 0
    made = next(Path(folder).glob('train-*'))
    weights = read_checkpoint(str(made / 'last.pdparams'))['model']
    return {name: array.tobytes() for name, array in weights.items()}, \
        (made / 'log.txt').read_text(encoding='utf-8').splitlines()


def try_fault(sink, first, always, data, folder, monkeypatch):
    """Run with a sink failing from the first-th call on; return (Fault, weights, log lines)."""
    fault = Fault(first, always)
    with monkeypatch.context() as patch:
        if sink.startswith('bar'):
            patch.setattr(sys, 'stderr', Stream(Fault()))       # or there would be no bar
        SINKS[sink](patch, fault)
        weights, lines = run(data, folder)
    return fault, weights, lines
