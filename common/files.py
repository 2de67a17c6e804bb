"""Opening files that others may have put there, and writing files without harm to others."""

import codecs
import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, BinaryIO, TextIO

from common.errors import UserError
from common.terminal import escape_controls

# How text is encoded that holds names: bytes that are not UTF-8 are written as they are, and what
# no file's name can be, such as half a surrogate pair out of JSON, as an escape.
KEEP_NAMES = 'keep-names'
MAX_LINE = 1 << 20              # letters of a line in a table, or in metrics.jsonl
TEMPORARY = '.writing'          # ending of a file that is not complete
Identity = tuple[int, int]      # device and inode: the same by whatever name
_noting: list[set[Identity]] = []


def identify(status: os.stat_result) -> Identity:
    """Return what two names of one file have in common."""
    return status.st_dev, status.st_ino


def _keep_name(error):
    """Return the bytes of what cannot be encoded, and where to go on, as codecs wants it."""
    text = error.object[error.start:error.end]
    data = b''.join(bytes([ord(letter) - 0xdc00]) if '\udc80' <= letter <= '\udcff' else
                    letter.encode('ascii', 'backslashreplace') for letter in text)
    return data, error.end


codecs.register_error(KEEP_NAMES, _keep_name)


@contextlib.contextmanager
def note_reads() -> Iterator[set[Identity]]:
    """Give the set of the files that are read within the block, as far as by open_regular."""
    read: set[Identity] = set()
    _noting.append(read)
    try:
        yield read
    finally:
        _noting.remove(read)


def refuse_overwriting(path: str, read: AbstractSet[Identity]) -> None:
    """Raise UserError if an output is one of the files that were read, by whatever name."""
    with contextlib.suppress(OSError):
        if identify(os.stat(path)) in read:
            raise UserError(f'{escape_controls(path)} is read by this command, and would be '
                            'written over. Choose another file for the output.')


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
        for read in _noting:
            read.add(identify(os.fstat(descriptor)))
        return open(descriptor, 'rb', buffering)
    except BaseException:
        os.close(descriptor)
        raise


def read_lines(file: TextIO, source: str) -> Iterator[str]:
    """Yield the lines of a text file. Raises UserError for one of more than MAX_LINE letters.

    source: what the message calls the file, which may be of any size.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise UserError(f'{escape_controls(source)}, line {number}: more than {MAX_LINE:,} '
                            'letters without a line end, which is no text of this kind.')
        yield line


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
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f'.{name}{TEMPORARY}')
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)                        # of a process that was killed, or a link
        with open(os.open(temporary, flags, 0o666), 'wb') as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def open_own(path: str, flags: int) -> int:
    """Return the descriptor of a file that a run keeps, which is made where there is none.

    Raises OSError, also for a link, which may lead to any file, and for what is no regular file.
    """
    if os.path.islink(path):
        raise OSError(errno.ELOOP, 'it is a link, which is not followed', path)
    descriptor = os.open(path, flags | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0)
                         | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0), 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, 'it is not a regular file', path)
    return descriptor


def write_json(path: str, values: Any, indent: int = 1) -> None:
    """Write a JSON file, as UTF-8; bytes of names that are not UTF-8 become JSON's escapes.

    Raises OSError.
    """
    text = json.dumps(values, ensure_ascii=False, indent=indent) + '\n'
    with replace_file(path) as file:
        file.write(text.encode('utf-8', 'backslashreplace'))    # \udc80 to \udcff, read as such
