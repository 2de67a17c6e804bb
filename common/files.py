"""Opening files that others may have put there, and writing files without harm to others."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
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


@contextlib.contextmanager
def write_new(path: str) -> Iterator[BinaryIO]:
    """Give a file that is written beside `path` and gets its name when it is whole.

    Nothing is written over, and no link is followed. Raises OSError, FileExistsError among them.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    with replace_file(path) as file:
        yield file


@contextlib.contextmanager
def replace_file(path: str) -> Iterator[BinaryIO]:
    """Give a file that is written beside `path` and takes its place when it is whole.

    A link of that name is replaced and not followed. Raises OSError.
    """
    temporary = f'{path}.{os.getpid()}.tmp'
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0)
    try:
        with open(os.open(temporary, flags, 0o666), 'wb') as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        if not isinstance(error, FileExistsError):      # the file of another
            with contextlib.suppress(OSError):
                os.remove(temporary)
        raise
