"""One training run at a time in a run folder: a lock that ends with the process that holds it."""

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator

from common.checkpoints.file import remove_temporary_files
from common.errors import UserError
from common.files import open_own, open_regular

NAME = 'run.lock'
WAIT_SECONDS = 15           # for a killed run's last process, which may take some to end
HELD = (errno.EAGAIN, errno.EACCES)

logger = logging.getLogger(__name__)


class RunLock:
    """The lock of a run folder, held from here to `release` or to the end of the process.

    The system's own lock (POSIX, which also network file systems know) says whether a run is
    alive, so that one that was killed, or whose machine was switched off, holds nothing. The
    file names process, host and start time for the message, and decides by itself where the
    file system has no locks. Raises UserError if another process holds the lock for
    `wait_seconds` more, and OSError where the folder cannot be written to.
    """

    def __init__(self, folder: str, model_name: str, wait_seconds: float | None = None):
        self.path = os.path.join(folder, NAME)
        self.descriptor = None
        deadline = time.monotonic() + (WAIT_SECONDS if wait_seconds is None else wait_seconds)
        while not self._try_to_take():
            if time.monotonic() >= deadline:
                raise UserError(
                    f'{folder} is in use by another run ({describe(read_record(self.path))}). '
                    'Wait for its end, or choose another -output.')
            time.sleep(0.1)
        record = {**describe_process(os.getpid()), 'model': model_name}
        with contextlib.suppress(OSError):          # a full disk: the lock itself is held
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(record).encode(), 0)

    def release(self) -> None:
        """Give the folder free, and leave no file behind."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            os.close(self.descriptor)
            self.descriptor = None

    def _try_to_take(self):
        descriptor = open_own(self.path, os.O_RDWR)
        if is_free(descriptor, self.path) and _is_same_file(descriptor, self.path):
            self.descriptor = descriptor
            return True
        os.close(descriptor)
        return False


def is_free(descriptor: int, path: str) -> bool:
    """Take the system's lock on an open file; return whether that worked."""
    try:
        import fcntl
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except ImportError:                             # Windows
        return not is_alive(read_record(path))
    except OSError as error:
        return error.errno not in HELD and not is_alive(read_record(path))


@contextlib.contextmanager
def choose_alone(parent: str) -> Iterator[None]:
    """Within the block no other process chooses its run folder in `parent`."""
    descriptor = None
    with contextlib.suppress(OSError, ImportError):
        import fcntl
        os.makedirs(parent, exist_ok=True)
        descriptor = os.open(parent, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def refuse_running(parent: str, model_name: str, wait_seconds: float | None = None) -> None:
    """Raise UserError where a run of this model is going on in a folder of `parent`.

    What runs that are no more have left is removed: their lock files, unfinished checkpoints.
    """
    for name in sorted(os.listdir(parent)) if os.path.isdir(parent) else []:
        folder = os.path.join(parent, name)
        record = read_record(os.path.join(folder, NAME))
        if record is not None and record.get('model') in (None, model_name):
            with contextlib.suppress(OSError):      # of another user: not to be continued either
                lock = RunLock(folder, model_name, wait_seconds)
                remove_temporary_files(folder)
                lock.release()


def read_record(path: str) -> dict | None:
    """Return what a lock file says of its holder; {} if that is damaged, None without a file."""
    try:
        with open_regular(path) as file:
            record = json.loads(file.read(1 << 16))
    except OSError:
        return None
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def describe_process(pid: int) -> dict:
    """Return what tells a process from all others: host, id, boot of the machine, start."""
    boot = start = None
    with contextlib.suppress(OSError, IndexError):
        with open('/proc/sys/kernel/random/boot_id', encoding='ascii') as file:
            boot = file.read().strip()
        with open(f'/proc/{pid}/stat', 'rb') as file:
            start = int(file.read().rpartition(b')')[2].split()[19])    # clock ticks since boot
    return {'host': socket.gethostname(), 'pid': pid, 'boot': boot, 'start': start}


def is_alive(record: dict | None) -> bool:
    """Whether the process that a lock file names runs on this machine.

    That of another host cannot be asked, and counts as ended.
    """
    if not record or record.get('host') != socket.gethostname() \
            or not isinstance(record.get('pid'), int) or record['pid'] == os.getpid():
        return False
    try:
        os.kill(record['pid'], 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    now = describe_process(record['pid'])
    return all(record.get(key) == now[key] for key in ('boot', 'start'))


def describe(record: dict | None) -> str:
    """Return who holds a lock, for a message."""
    if not record:
        return 'which does not say its name'
    return f'process {record.get("pid")} on {record.get("host")}'


def _is_same_file(descriptor, path):
    """Whether the name still leads to the open file: its holder may just have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False
