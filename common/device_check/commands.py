"""The commands that users type: resuming, several processes, signals, memory, export."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from common.device_check.report import CheckFailed, CheckSkipped, Context
from common.machine.device import count_accelerators
from common.weights.trailer import read_summary

UPDATES = 8
BATCH = 64
SECONDS = 120               # that a short run may take, on a busy machine
GRACE_SECONDS = 60          # within which all processes end after one of them has
WATCHDOG_SECONDS = 10
PROCESSES_TOLERANCE = 1e-3  # of losses: sums over processes are added in another order
TOO_LARGE = 2048            # pixels, whose attention needs hundreds of gigabytes


class Run:
    """A command of the model directory, with a folder for its output."""

    def __init__(self, context: Context, name: str, flags: Sequence[str] = (),
                 opts: Sequence[str] = (), processes: int = 1, updates: int = UPDATES):
        script = 'main_multi_gpu.py' if processes > 1 else 'main_single_gpu.py'
        self.output = Path(context.folder) / name
        device = context.kind if processes > 1 else context.device
        spawn = [f'-nprocs={processes}'] if processes > 1 else []
        self.command = [
            sys.executable, script, f'-cfg=configs/{context.project.example_configs[0]}.yaml',
            f'-device={device}', f'-output={self.output}', '-num_workers=0',
            f'-batch_size={BATCH // processes}', *spawn, *flags, '-opts', 'TRAIN.NUM_STEPS',
            str(updates), 'TRAIN.WARMUP_EPOCHS', '0', 'REPORT_FREQ', '1', 'VALIDATE_FREQ', '1000',
            *opts]
        self.folder = context.project.folder

    def start(self) -> subprocess.Popen:
        """Start it, with what it prints in output.txt, in a session of its own."""
        self.output.mkdir(parents=True, exist_ok=True)
        with open(self.output / 'output.txt', 'ab') as file:
            return subprocess.Popen(self.command, cwd=self.folder, stdout=file, stderr=file,
                                    start_new_session=True)

    def finish(self, expected: int = 0) -> 'Run':
        """Run it to its end. Raises CheckFailed for another exit code than expected."""
        with started(self) as process:
            code = self.wait(process, SECONDS)
        if code != expected:
            raise self.fail(f'exit code {code}, not {expected}')
        return self

    def wait(self, process: subprocess.Popen, seconds: float) -> int:
        """Return its process's exit code. Raises CheckFailed if it does not end in time."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self.fail(f'still running after {seconds:.0f} s') from None

    def fail(self, text: str) -> CheckFailed:
        """Return what is raised where it did not do as it should, with what it has printed."""
        said = (self.output / 'output.txt').read_text(errors='replace').strip()
        end = ' | '.join(said.splitlines()[-3:])[-400:]
        return CheckFailed(f'{text}: {end}', {'command': self.command, 'output': said[-4000:]})

    def find_folder(self) -> Path | None:
        """Return its run folder, None as long as there is none."""
        folders = [path for path in self.output.iterdir() if path.is_dir()]
        return folders[0] if folders else None

    def read_steps(self) -> list[dict[str, Any]]:
        """Return the metrics of its updates so far."""
        folder = self.find_folder()
        path = folder and folder / 'metrics.jsonl'
        if not path or not path.exists():
            return []
        with contextlib.suppress(ValueError):       # a line that is being written
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            return [line for line in lines if line['event'] == 'train_step']
        return []

    def read_losses(self) -> list[float]:
        return [step['loss'] for step in self.read_steps()]


@contextlib.contextmanager
def started(run: Run) -> Iterator[subprocess.Popen]:
    """A run's process; whatever is left of its session is killed at the end."""
    process = run.start()
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for rank in find_ranks(process.pid).values():       # each leads a group of its own
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, signal.SIGKILL)
        process.wait()


def check_resume(context: Context, precision: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """Eight updates are four, a checkpoint, and four more; to the bit if the device repeats.

    precision: further arguments.
    """
    flags = [part for part in precision if part.startswith('-')]
    opts = [part for part in precision if not part.startswith('-')]
    name = 'resume' + '-'.join(opts[1::2])
    whole = Run(context, f'{name}-1', flags, ['SAVE_STEPS', '4', *opts]).finish()
    losses = whole.read_losses()
    checkpoint = next((path for path in whole.find_folder().glob('Epoch-*.pdparams')
                       if read_summary(str(path))['update'] == 4), None)
    if checkpoint is None:
        raise CheckFailed(f'no checkpoint of update 4 in {whole.find_folder()}')
    rest = Run(context, f'{name}-2', [*flags, f'-resume={checkpoint}'], opts).finish()
    found, expected = np.array(rest.read_losses()), np.array(losses[4:])
    if found.shape != expected.shape:
        raise CheckFailed(f'{len(found)} updates after the resume, not {len(expected)}')
    error = float(np.abs(found / expected - 1).max())
    is_deterministic = True
    if error or not opts:               # a resume that is exact to the bit says so by itself
        again = Run(context, f'{name}-3', flags, opts).finish()
        is_deterministic = again.read_losses() == losses
    repeats = 'repeats itself to the bit' if is_deterministic else 'does not repeat itself'
    figures = {'deterministic': is_deterministic, 'error': error, 'losses': losses}
    if error > (0 if is_deterministic else 1e-2):
        raise CheckFailed(f'the device {repeats}, and the losses after a resume differ by '
                          f'{error:.1e}', {**figures, 'resumed': rest.read_losses()})
    return f'the device {repeats}; losses after a resume differ by {error:.1e}', figures


def check_processes(context: Context) -> tuple[str, dict[str, Any]]:
    """N processes with an Nth of the batch each train as one does."""
    require_processes(context)
    opts = ['TRAIN.MODEL_EMA', 'True', *find_options_without_dropout(context)]
    one = Run(context, 'one', opts=opts).finish()
    many = Run(context, 'many', opts=opts, processes=context.processes).finish()
    found, expected = np.array(many.read_losses()), np.array(one.read_losses())
    error = float(np.abs(found / expected - 1).max()) if found.shape == expected.shape else np.inf
    if not error <= PROCESSES_TOLERANCE:
        raise CheckFailed(f'losses of {context.processes} processes differ by {error:.1e} from '
                          f'those of one, more than {PROCESSES_TOLERANCE:.0e}',
                          {'one': expected.tolist(), 'many': found.tolist()})
    speed = [run.read_steps()[-1]['images_per_second'] for run in (one, many)]
    return (f'losses of {context.processes} processes are those of one within {error:.1e}',
            {'error': error, 'images_per_second': speed})


def find_options_without_dropout(context: Context) -> list[str]:
    """Return the first tiny model that draws nothing, as -opts: each process draws its own."""
    paddle.set_device('cpu')            # the devices are for the processes
    for options in context.project.tiny_models.values():
        model: Any = context.project.build_model(context.project.get_config(flags=dict(options)))
        if not any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in model.sublayers()):
            pairs = {'MODEL.DROPPATH': 0.0, **options}.items()
            return [str(part) for pair in pairs for part in pair]
    raise CheckSkipped('every model of this directory drops something')


def require_processes(context: Context) -> None:
    if context.processes < 2:
        raise CheckSkipped('needs two devices or more')


def check_signal(context: Context, name: str) -> tuple[str, dict[str, Any]]:
    """Send a signal to rank 1 (of one process: to it), and see that all end as they should."""
    number = getattr(signal, name)
    expected = {'SIGKILL': 128 + signal.SIGKILL, 'SIGSTOP': 1, 'SIGTERM': 128 + signal.SIGTERM}
    if name != 'SIGTERM':
        require_processes(context)
    run = Run(context, name, opts=['WATCHDOG_SECONDS', str(WATCHDOG_SECONDS)],
              processes=context.processes, updates=1_000_000)
    with started(run) as process:
        wait_for(lambda: len(run.read_steps()) > 2 or process.poll() is not None, SECONDS)
        if process.poll() is not None:
            raise run.fail(f'ended with code {process.returncode}')
        ranks = find_ranks(process.pid)
        os.kill(ranks.get(1, process.pid), number)
        sent = time.monotonic()
        code = run.wait(process, GRACE_SECONDS + WATCHDOG_SECONDS)
        seconds = time.monotonic() - sent
        wait_for(lambda: not any(is_running(rank) for rank in ranks.values()), 10)
        left = [rank for rank in ranks.values() if is_running(rank)]
    if code != expected[name]:
        raise run.fail(f'exit code {code}, not {expected[name]}')
    if left:
        raise run.fail(f'{len(left)} processes are left behind')
    if name == 'SIGTERM' and not (run.find_folder() / 'last.pdparams').exists():
        raise run.fail('no checkpoint was saved')
    saved = ', a checkpoint was saved' if name == 'SIGTERM' else ''
    return f'exit code {code} after {seconds:.1f} s{saved}', {'seconds': seconds}


def find_ranks(parent: int) -> dict[int, int]:
    """Return {rank: process} of the processes that a run has spawned."""
    ranks = {}
    for folder in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((folder / 'stat').read_text().rpartition(')')[2].split()[1]) != parent:
                continue
            for entry in (folder / 'environ').read_bytes().split(b'\0'):
                if entry.startswith(b'PADDLE_TRAINER_ID='):
                    ranks[int(entry.partition(b'=')[2])] = int(folder.name)
    return ranks


def is_running(process: int) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds, or the time is over."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


def check_memory(context: Context) -> tuple[str, dict[str, Any]]:
    """A batch that is far too large ends with advice and exit code 1."""
    if context.kind == 'cpu':
        raise CheckSkipped('it would take the memory of the whole machine')
    run = Run(context, 'memory', [f'-image_size={TOO_LARGE}'], updates=1).finish(expected=1)
    text = (run.output / 'output.txt').read_text(errors='replace')
    if 'Out of memory' not in text or 'Try, in this order' not in text:
        raise run.fail('exit code 1 without advice')
    return f'{BATCH} images of {TOO_LARGE} pixels: exit code 1, with what to change', {}


def check_export(context: Context) -> tuple[str, dict[str, Any]]:
    """Export what was trained on the device, which compares the exported model's logits."""
    trained = Run(context, 'resume-1')          # there already, unless that check has failed
    if not trained.output.exists() or not trained.find_folder():
        trained = Run(context, 'export').finish()
    weights = trained.find_folder() / 'last.pdparams'
    ended = subprocess.run(
        [sys.executable, 'export_model.py', f'-pretrained={weights}',
         f'-output={trained.output}/exported'], cwd=context.project.folder, timeout=SECONDS,
        capture_output=True, text=True)
    if ended.returncode:
        raise CheckFailed(f'exit code {ended.returncode}: {ended.stderr.strip()[-400:]}',
                          {'output': ended.stdout[-4000:], 'errors': ended.stderr[-4000:]})
    said = [line for line in ended.stdout.splitlines() if line.strip()]
    return 'the exported model computes what the trained one does', {'output': said[-10:]}


def list_checks(context: Context) -> list[tuple[str, Callable]]:
    """Return the checks; the processes that they start are the only ones on the device."""
    checks: list[tuple[str, Callable]] = [('resume, float32', check_resume)]
    if context.kind != 'cpu':
        checks.append(('resume, O2 float16', functools.partial(
            check_resume, precision=['-amp', 'AMP_LEVEL', 'O2'])))
    checks += [('several processes', check_processes)]
    if os.path.isdir('/proc'):
        checks += [(f'{name} to a process', functools.partial(check_signal, name=name))
                   for name in ('SIGTERM', 'SIGKILL', 'SIGSTOP')]
    return [*checks, ('a batch that is too large', check_memory), ('export', check_export)]


def count_devices(device: str) -> int:
    """Return how many devices of a kind there are; two processes for a CPU."""
    kind = device.partition(':')[0]
    return 2 if kind == 'cpu' else count_accelerators().get(kind, 1)
