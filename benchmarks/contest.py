"""Timing in pairs: contestants are processes that wait, and each in turn runs one repetition.

A contestant prints "ready" when it is warm; for each line "go" it repeats its work once and
prints one JSON object: wall and CPU seconds and, after the last, its peak memory.
"""

import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

LONG = 5.0              # seconds
SETTLE = 0.4            # seconds between two turns: OpenMP's threads go on spinning for 0.2
HERE = os.path.dirname(os.path.abspath(__file__))


class Result(NamedTuple):
    """Of one contestant. wall, cpu: medians, seconds a repetition. peak: bytes."""

    wall: float
    cpu: float
    peak: int


class Contestant:
    """A process that repeats a piece of work when it is told to."""

    def __init__(self, python, script, *arguments, environment=None):
        self.command = [python, os.path.join(HERE, script), *map(str, arguments)]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
        while self._read_line() != 'ready':
            pass

    def _read_line(self):
        line = self.process.stdout.readline()
        if not line:
            lines = self.process.stderr.read().strip().splitlines()
            raise RuntimeError(lines[-1] if lines else f'exit code {self.process.wait()}')
        return line.strip()

    def repeat(self):
        self.process.stdin.write('go\n')
        self.process.stdin.flush()
        line = self._read_line()
        while not line.startswith('{'):
            line = self._read_line()
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(contestants, repetitions):
    """Run contestants in turn; return {name: Result}, and {name: text} of those that cannot.

    contestants: {name: () -> Contestant}. All stay in memory, so that turns follow each other
    without start-up, SETTLE apart; one that waits takes no processor time.
    """
    started = {name: start_or_fail(start) for name, start in contestants.items()}
    failed = {name: item for name, item in started.items() if isinstance(item, str)}
    running = {name: item for name, item in started.items() if name not in failed}
    measured = {name: [] for name in running}
    for _ in range(repetitions):
        for name, contestant in running.items():
            measured[name].append(contestant.repeat())
            time.sleep(SETTLE)
    for contestant in running.values():
        contestant.close()
    return {name: Result(statistics.median(item['wall'] for item in items),
                         statistics.median(item['cpu'] for item in items),
                         items[-1]['peak'])
            for name, items in measured.items()}, failed


def start_or_fail(start):
    """Return the Contestant, or the reason that there is none."""
    try:
        return start()
    except (RuntimeError, OSError) as error:
        return str(error)


def serve(work, warm_up=2):
    """Be a contestant: run `work` on each line of the standard input, after `warm_up` runs.

    One is enough of a work that takes long: what the first run prepares is little of it.
    """
    for _ in range(warm_up):
        started = time.perf_counter()
        work()
        if time.perf_counter() - started > LONG:
            break
    print('ready', flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), read_cpu_seconds()
        work()
        print(json.dumps({'wall': time.perf_counter() - wall, 'cpu': read_cpu_seconds() - cpu,
                          'peak': read_peak_memory()}), flush=True)


def read_cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_peak_memory():
    """Return the peak resident memory of this process in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory():
    """For the peers too: the setting of the C library that our own side uses."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0)
    libc.mallopt(-1, 2 ** 31 - 1)


def describe_machine():
    """Return one line: processor, cores, memory, load, system."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        name = next(line.partition(':')[2].strip() for line in file
                    if line.startswith('model name'))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2 ** 30
    return (f'{name}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GB, '
            f'Linux {platform.release()}, load {os.getloadavg()[0]:.1f}')


def format_row(cells, widths):
    return '| ' + ' | '.join(str(cell).ljust(width) for cell, width in zip(cells, widths)) + ' |'


def print_table(head, rows):
    """Print a table in Markdown."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    print(format_row(head, widths))
    print('|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    for row in rows:
        print(format_row(row, widths), flush=True)
