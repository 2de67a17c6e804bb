"""The files that Paddle's loader workers make in /dev/shm, and what killed ones leave there.

Paddle names a worker's files by its process id and removes them when they have been read; a
worker that is killed leaves those that were under way. So that a later run can tell whose they
were and that nobody needs them, a worker keeps a lock on a file of ours, its mark, which the
system releases when the worker ends, however it ends and in whatever container.
"""

import contextlib
import glob
import os
import re
import secrets
import stat

FOLDER = '/dev/shm'
MARK = 'vit-loader-'                # then the worker's process id, and something unique


def mark_worker() -> str | None:
    """Make and lock this process's mark; return its path, or None where that cannot be."""
    try:
        import fcntl
        path = os.path.join(FOLDER, f'{MARK}{os.getpid()}-{secrets.token_hex(4)}')
        # It has no name before it is locked, so that it always ends with its process.
        descriptor = os.open(FOLDER, os.O_TMPFILE | os.O_RDWR, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)      # until this process ends
        os.link(f'/proc/self/fd/{descriptor}', path, src_dir_fd=descriptor, follow_symlinks=True)
        return path
    except (OSError, ImportError, AttributeError):
        return None


def remove_own_files(mark: str | None) -> None:
    """Remove this process's files and its mark: nobody is left to read them."""
    _remove_files(os.getpid(), 0.0)
    if mark is not None:
        _remove(mark)


def remove_left_files() -> int:
    """Remove what killed workers of this user have left; return the number of bytes.

    A mark without a lock is a dead worker's. Its files are those of its process id that are not
    older than the mark, unless that id is now another process's.
    """
    removed = 0
    for mark in glob.glob(os.path.join(FOLDER, f'{MARK}*')):
        found = re.match(rf'{MARK}(\d+)-', os.path.basename(mark))
        with contextlib.suppress(OSError):
            status = os.lstat(mark)         # a link of another user may lead to any device
            if found is None or not stat.S_ISREG(status.st_mode) \
                    or status.st_uid != os.getuid() or not _is_unlocked(mark):
                continue
            process = int(found[1])
            if not _is_running(process):
                removed += _remove_files(process, status.st_ctime)
                _remove(mark)
    return removed


def _remove_files(process, since):
    removed = 0
    for path in glob.glob(os.path.join(FOLDER, f'paddle_{process}_*')):
        with contextlib.suppress(OSError):
            status = os.lstat(path)
            if status.st_uid == os.getuid() and status.st_mtime >= since:
                os.unlink(path)
                removed += status.st_size
    return removed


def _is_running(process):
    try:
        with open(f'/proc/{process}/stat', 'rb') as file:
            return file.read().rpartition(b')')[2].split()[0] not in (b'Z', b'X')
    except OSError:
        return False


def _is_unlocked(path):
    import fcntl
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)
