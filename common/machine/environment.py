"""CPU settings that Paddle reads once, when it is first imported.

Paddle's wheel bundles an MKL of 2019 that sends AMD processors down a slow
path, and Paddle starts with one thread. Both are decided by environment
variables, so `tune_cpu()` runs before the first `import paddle`. Whatever the
user has set stays as it is.

This module needs nothing but the standard library.
"""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from common.machine.noise import drop_remarks

# Of a container, in bytes: cgroup v2 and v1.
MEMORY_LIMITS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')
# Variables set here, for processes started from this one: they may set them anew.
_MARKER = 'VIT_CPU_TUNED'
# How many processes share the cores, for those that share_cores() was called for.
_SHARED_BY = 'VIT_CPU_SHARED_BY'

# MKL's AVX-512 code needs all of these; its AVX2 code needs the second set.
_AVX512 = {'avx512f', 'avx512cd', 'avx512dq', 'avx512bw', 'avx512vl'}
_AVX2 = {'avx2', 'fma'}


def tune_cpu() -> None:
    """Set threads and the MKL code path for this machine, unless the user did; import Paddle.

    Does nothing once Paddle is imported. describe_cpu() tells what was set.
    """
    if 'paddle' not in sys.modules:
        launched = os.environ.get('PADDLE_LOCAL_SIZE')      # by paddle.distributed.launch
        share_cores(int(launched or os.environ.get(_SHARED_BY, '1')))
        _import_paddle()


def _import_paddle():
    """Import Paddle without its remarks on OMP_NUM_THREADS and ccache, which do not apply."""
    with drop_remarks('OMP_NUM_THREADS'), _kept_root_logger(), warnings.catch_warnings(), \
            usable_home(), contextlib.suppress(ImportError):    # whoever needs it will say so
        warnings.filterwarnings('ignore', message='No ccache found')
        # Paddle 2.6 brings its own zlib, which Python's crashes on if it is loaded later.
        import zlib  # noqa: F401

        import paddle  # noqa: F401


@contextlib.contextmanager
def _kept_root_logger():
    """Undo what is done to Python's root logger within the block, which is the user's.

    Paddle gives it a handler, which would print into what drop_remarks has collected.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextlib.contextmanager
def usable_home() -> Iterator[None]:
    """Let HOME be a folder that can be written to within the block.

    Paddle makes a cache folder in it when it is imported, and fails where that is not possible.
    """
    cache = os.path.join(os.path.expanduser('~'), '.cache', 'paddle', 'dataset')
    with contextlib.ExitStack() as stack:
        try:
            if not os.path.isabs(cache):            # a relative HOME: it would be made right here
                raise NotADirectoryError(cache)
            os.makedirs(cache, exist_ok=True)
        except OSError:
            home = os.environ.pop('HOME', None)
            os.environ['HOME'] = stack.enter_context(tempfile.TemporaryDirectory())
            stack.callback(_set_home, home)
        yield


def _set_home(home):
    if home is None:
        os.environ.pop('HOME', None)
    else:
        os.environ['HOME'] = home


def share_cores(processes: int) -> None:
    """Set what `tune_cpu` sets, for processes that are started from here and share the cores."""
    inherited = set(filter(None, os.environ.get(_MARKER, '').split(',')))
    users = {name: value for name, value in os.environ.items() if name not in inherited}
    vendor, flags = read_cpu()
    chosen = choose_settings(vendor, flags, count_cores() // processes, users)
    os.environ.update(chosen)
    os.environ[_MARKER] = ','.join(chosen)
    os.environ[_SHARED_BY] = str(processes)


def count_sharing() -> int:
    """Return how many processes of this machine share its cores, as share_cores was told."""
    return max(1, int(os.environ.get(_SHARED_BY, '1')))


def describe_cpu() -> str:
    """Return one line for the log: what was chosen here, and what the user had set."""
    ours = list(filter(None, os.environ.get(_MARKER, '').split(',')))
    users = [name for name in _TUNED if name in os.environ and name not in ours]
    parts = [f'{name}={os.environ[name]}' for name in ours] or ['nothing to set']
    parts += [f'{name}={os.environ[name]} (already set)' for name in users]
    return 'CPU settings: ' + ', '.join(parts)


_TUNED = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'KMP_BLOCKTIME', 'MKL_DEBUG_CPU_TYPE')


def choose_settings(vendor: str, flags: AbstractSet[str], cores: int,
                    environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables to set, as a dict of text.

    vendor: "AuthenticAMD", "GenuineIntel" or other. flags: the processor's
    features as /proc/cpuinfo names them. cores: for this process. environment:
    what the user has set; those names are never in the result.
    """
    settings = {'OMP_NUM_THREADS': str(max(1, cores)),
                # Milliseconds that a thread of OpenMP looks for its next work, and keeps a core
                # from NumPy's threads and the loader's processes. The default is 200.
                'KMP_BLOCKTIME': '1'}
    # MKL 2019 takes its fast paths on Intel only; this variable names one. A path that
    # the processor lacks would be an illegal instruction, hence the check of its flags.
    if vendor == 'AuthenticAMD' and 'MKL_ENABLE_INSTRUCTIONS' not in environment:
        if flags >= _AVX512 | _AVX2:
            settings['MKL_DEBUG_CPU_TYPE'] = '7'
        elif flags >= _AVX2:
            settings['MKL_DEBUG_CPU_TYPE'] = '5'
    if 'MKL_NUM_THREADS' in environment:
        settings.pop('OMP_NUM_THREADS')
    return {name: value for name, value in settings.items() if name not in environment}


def read_cpu(path: str = '/proc/cpuinfo') -> tuple[str, set[str]]:
    """Return (vendor, set of feature flags); ("", empty) where it cannot be read."""
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            text = file.read()
    except OSError:
        return '', set()
    fields = {}
    for line in text.split('\n\n', 1)[0].splitlines():
        name, _, value = line.partition(':')
        fields[name.strip()] = value.strip()
    return fields.get('vendor_id', ''), set(fields.get('flags', '').split())


def count_cores() -> int:
    """Return how many processors this process may use (affinity and container quota)."""
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = read_cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def read_cpu_quota(root: str = '/sys/fs/cgroup', own: str = '/proc/self/cgroup') -> float | None:
    """Return the processors that a container's quota allows, such as 1.5; None: no quota.

    root: where control groups are mounted, version 2 or 1. own: the file that names the groups of
    this process, below whose path the limits are where the container sees its host's groups.
    """
    below = {'': ''}
    with contextlib.suppress(OSError), open(own, encoding='utf-8') as file:
        for line in file:
            _, names, path = line.rstrip('\n').split(':', 2)
            below.update(dict.fromkeys(names.split(','), path.lstrip('/')))
    quotas = []
    for path in {'', below['']}:
        with contextlib.suppress(OSError, ValueError), \
                open(os.path.join(root, path, 'cpu.max'), encoding='ascii') as file:
            quota, period = file.read().split()
            quotas.append(int(quota) / int(period))         # "max" is no number
    for path in {'', below.get('cpu', '')}:
        with contextlib.suppress(OSError, ValueError):
            quota, period = (_read_number(os.path.join(root, 'cpu', path, f'cpu.cfs_{name}_us'))
                             for name in ('quota', 'period'))
            if quota > 0:                                   # -1: none
                quotas.append(quota / period)
    return min(quotas, default=None)


def measure_memory() -> int | None:
    """Return the bytes of memory of this machine, or of the container it runs in; None: unknown."""
    if not hasattr(os, 'sysconf'):          # Windows
        return None
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    for path in MEMORY_LIMITS:
        # There may be no such cgroup, and "max" is no number.
        with contextlib.suppress(OSError, ValueError), open(path, encoding='ascii') as file:
            memory = min(memory, int(file.read()))
    return memory


def _read_number(path):
    with open(path, encoding='ascii') as file:
        return int(file.read())
