"""Opening files that others may have put there: regular files alone."""

import errno
import os
import stat
from typing import BinaryIO


def open_regular(path: str | bytes | os.PathLike, buffering: int = 0) -> BinaryIO:
    """Return the open file, for reading bytes. Raises OSError, also for what is no regular file.

    A pipe without a writer would wait for ever, and a device may never end.
    """
    flags = os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)
    descriptor = os.open(path, flags)
    try:
        if stat.S_ISDIR(mode := os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, 'not a regular file but a pipe, a socket or a device', path)
        return open(descriptor, 'rb', buffering)
    except BaseException:
        os.close(descriptor)
        raise
