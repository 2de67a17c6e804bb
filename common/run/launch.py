"""Starting a run: in this process, in several on this machine, or as part of a launched job.

Every way ends in an exit code: 0 done, 1 a failure, 2 wrong input, 128 + N signal N.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import warnings

from yacs.config import CfgNode

from common.machine.environment import count_cores, share_cores, tune_cpu

tune_cpu()      # before Paddle is imported

import paddle
import paddle.distributed as dist
from paddle.distributed.spawn import _get_subprocess_env_list

from common.cli import parse_command_line
from common.errors import FIRST_ERROR_FILE, UserError, report_errors
from common.machine.device import choose_device, count_accelerators, get_backend
from common.machine.distributed import is_launched, wait_for_all
from common.machine.noise import drop_remarks
from common.project import Project
from common.run.job import run
from common.run.log import hold_log
from common.training.stopping import SIGNALS, Watchdog

GRACE_SECONDS = 10          # for the other processes to end, after one has failed
_DEFAULT_START_METHOD = multiprocessing.get_all_start_methods()[0]


def run_single(project: Project, argv: list[str] | None = None) -> int:
    """Train or evaluate in this process; return the exit code.

    argv: arguments without the script's name; None: those of the command line.
    """
    code = report_errors(_run_single, project, sys.argv[1:] if argv is None else argv)
    if argv is None:
        _ignore_signals()
    return code


def run_multi(project: Project, argv: list[str] | None = None) -> int:
    """Train or evaluate in several processes; return the exit code.

    Joins the job where paddle.distributed.launch started this process; otherwise starts
    one process for each visible GPU, or NPROCS processes.
    """
    code = report_errors(_run_multi, project, sys.argv[1:] if argv is None else argv)
    if is_launched():
        _leave(code)
    if argv is None:
        _ignore_signals()
    return code


def _run_single(project, argv):
    hold_log()
    config = parse_command_line(project, argv, 'main_single_gpu.py', needs_model=True)
    if is_launched() and int(os.environ['PADDLE_TRAINERS_NUM']) > 1:
        raise UserError('main_single_gpu.py is one process; under paddle.distributed.launch use '
                        'main_multi_gpu.py.')
    if config.NPROCS not in (None, 1):
        raise UserError(f'main_single_gpu.py is one process; -nprocs={config.NPROCS} is for '
                        'main_multi_gpu.py.')
    run(project, config)


def _run_multi(project, argv):
    hold_log()
    config = parse_command_line(project, argv, 'main_multi_gpu.py', needs_model=True)
    if is_launched():
        if _is_child_of_launcher():
            _end_with_parent()
        join_processes(config.DEVICE, config.WATCHDOG_SECONDS)
        run(project, config)
        return 0
    processes, backend = choose_processes(config)
    if processes == 1:
        run(project, config)
        return 0
    return _spawn(project, argv, processes, backend)


def choose_processes(config: CfgNode) -> tuple[int, str]:
    """Return (number of processes, backend). Raises UserError for more than the devices."""
    wanted = config.NPROCS
    device = choose_device(config.DEVICE)
    if device == 'cpu':
        limit = max(2, count_cores())       # two always work, so that any machine can try it
        if wanted is not None and wanted > limit:
            raise UserError(f'-nprocs={wanted} is more than this machine\'s {limit} processor '
                            'cores can serve.')
        return wanted or 1, get_backend(device)
    kind = device.partition(':')[0]
    count = count_accelerators()[kind]
    if ':' in config.DEVICE:
        raise UserError(f'-device={kind}:N is one device; for several use -nprocs, and '
                        'CUDA_VISIBLE_DEVICES (of other accelerators: their own variable) to '
                        'choose which.')
    if wanted is not None and wanted > count:
        raise UserError(f'-nprocs={wanted}, but Paddle sees {count} {kind.upper()}'
                        f'{"s" * (count != 1)}.')
    return wanted or count, get_backend(device)


def _spawn(project, argv, processes, backend):
    """Start the processes, pass signals on, and return the first failure's exit code."""
    share_cores(processes)                  # read by Paddle in the processes started below
    os.environ.setdefault('GLOG_minloglevel', '1')      # how they found each other is no news
    ranks, received = [], []

    def forward(number, frame):
        received.append(number)
        for rank in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, number)

    previous = {number: signal.signal(number, forward) for number in _signal_numbers()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FIRST_ERROR_FILE] = os.path.join(folder, 'first_error')
        try:
            _start_ranks(ranks, project, argv, make_environments(processes, backend))
            code = _wait(ranks)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            del os.environ[FIRST_ERROR_FILE]
    return 128 + received[0] if received and code else code


def make_environments(processes: int, backend: str) -> list[dict[str, str]]:
    """Return the variables by which each process finds its rank, the others and its device."""
    for name in ('CUDA_VISIBLE_DEVICES', 'XPU_VISIBLE_DEVICES'):
        if name in os.environ:          # Paddle compares the numbers as text, spaces and all
            os.environ[name] = os.environ[name].replace(' ', '')
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*CPUONLY mode')
        return _get_subprocess_env_list(processes, {'backend': backend})


def _start_ranks(ranks, project, argv, environments):
    """Start a process for each environment, and append it to `ranks`.

    Unlike paddle.distributed.spawn, which makes two queues for each process, this makes no
    semaphore. Their clean-up prints tracebacks at exit where something else removed them.
    Signals wait until all are started, and in each of them until it can handle them.
    """
    context = multiprocessing.get_context('spawn')
    _mask_signals(block=True)
    if os.name == 'posix':
        from multiprocessing import resource_tracker
        # Starting the tracker unblocks SIGINT and SIGTERM again (up to Python 3.11).
        resource_tracker.ensure_running()
        _mask_signals(block=True)
    try:
        for environment in environments:
            rank = context.Process(target=_work, args=(project, argv))
            with _environment(environment):
                rank.start()
            ranks.append(rank)
    finally:
        _mask_signals(block=False)


@contextlib.contextmanager
def _environment(variables):
    """Have these environment variables, for a process that starts meanwhile.

    Proxies are left out: with them the processes would not find each other.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    for name in ('http_proxy', 'https_proxy'):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _signal_numbers():
    """Return the numbers of the signals that end a run after a checkpoint; Windows lacks some."""
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


def _mask_signals(block):
    """Keep those signals waiting, or let them in."""
    if hasattr(signal, 'pthread_sigmask'):
        how = signal.SIG_BLOCK if block else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, _signal_numbers())


def join_processes(wanted: str, limit: float) -> None:
    """Join the processes that were started together, up to a first word between all of them.

    wanted: DEVICE of the config. limit: seconds, after which a process that waits for another
    in vain gives up; 0: never. On GPUs it is here that networks and drivers that do not suit
    each other hang.
    """
    device = choose_device(wanted)
    if get_backend(device) == 'xccl':       # without these Paddle takes Gloo for a plug-in
        os.environ['PADDLE_DISTRI_BACKEND'] = 'xccl'
        os.environ['PADDLE_XCCL_BACKEND'] = device.partition(':')[0]
    paddle.set_device(device)
    with Watchdog(limit) as watchdog:
        watchdog.feed('joining the other processes')
        with drop_remarks(r'^=+( Modified FLAGS detected =+)?$|^FLAGS\('):
            dist.init_parallel_env()
        wait_for_all()


def _wait(processes):
    """Wait for all to end; after a failure end the others. Returns the first failure's code."""
    code, deadline = 0, None
    alive = {process.sentinel: process for process in processes}
    while alive:
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        for sentinel in multiprocessing.connection.wait(list(alive), timeout):
            process = alive.pop(sentinel)
            process.join()
            if process.exitcode and not code:
                code = process.exitcode if process.exitcode > 0 else 128 - process.exitcode
                if process.exitcode < 0:
                    name = signal.Signals(-process.exitcode).name
                    print(f'error: process {process.pid} was ended by {name}', file=sys.stderr)
                deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() >= deadline:
            for process in alive.values():
                process.kill()
            deadline = time.monotonic() + GRACE_SECONDS
    return code


def _work(project, argv):
    """Be one of the spawned processes."""
    with contextlib.suppress(AttributeError, OSError):
        os.setpgid(0, 0)        # Ctrl-C reaches the parent only, which passes it on once
    for number in _signal_numbers():        # until the run has handlers of its own
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    _mask_signals(block=False)
    # A spawned process would spawn its loader workers too, each importing Paddle for seconds.
    multiprocessing.set_start_method(_DEFAULT_START_METHOD, force=True)
    _end_with_parent()

    def join_and_run(project, argv):
        hold_log()
        config = parse_command_line(project, argv, 'main_multi_gpu.py', needs_model=True)
        join_processes(config.DEVICE, config.WATCHDOG_SECONDS)
        run(project, config)

    _leave(report_errors(join_and_run, project, argv))


def _leave(code):
    """End this rank at once: Paddle's teardown waits for the others for seconds, or crashes."""
    for worker in multiprocessing.active_children():
        worker.kill()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _ignore_signals():
    """Ignore signals: the program ends, and one more Ctrl-C would print where Python tidies up."""
    for number in _signal_numbers():
        signal.signal(number, signal.SIG_IGN)


def _end_with_parent():
    """End this process when the one that started it is gone, which would leave it behind."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        print('error: the starting process is gone; ending', file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_child_of_launcher():
    """Whether the parent is paddle.distributed.launch, not a shell that may end before us."""
    try:
        with open(f'/proc/{os.getppid()}/cmdline', 'rb') as file:
            return b'paddle.distributed' in file.read()
    except OSError:                         # not Linux
        return False
