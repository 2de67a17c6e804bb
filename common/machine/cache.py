"""The folder for what can be fetched or made again: downloads, indexes and compiled
kernels; and locks on its files."""

import contextlib
import os
import sys
from collections.abc import Iterator


def cache_folder() -> str:
    """Return VIT_CACHE, or vit-paddle in the platform's folder for caches. It may not exist."""
    if os.environ.get('VIT_CACHE'):
        return os.path.abspath(os.path.expanduser(os.environ['VIT_CACHE']))
    home = os.path.expanduser('~')
    if sys.platform == 'win32':
        base = os.environ.get('LOCALAPPDATA') or os.path.join(home, 'AppData', 'Local')
    elif sys.platform == 'darwin':
        base = os.path.join(home, 'Library', 'Caches')
    else:
        base = os.environ.get('XDG_CACHE_HOME') or os.path.join(home, '.cache')
    return os.path.join(base, 'vit-paddle')


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    """Let one process at a time through; the lock ends with the process that holds it."""
    with open(path, 'a+b') as file:
        if sys.platform == 'win32':
            import msvcrt
            file.seek(0)
            while True:
                with contextlib.suppress(OSError):
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
