"""A checkpoint's bytes: written so that a kill or a full disk at any moment loses nothing.

A file is a pickle that `paddle.load` reads, then the trailer of common.weights.trailer.
"""

import io
import os
import pickle
import zlib
from collections.abc import Callable

import numpy as np

from common.files import TEMPORARY
from common.weights.safe_pickle import NAMED_FUNCTIONS, Checker, PickleError
from common.weights.trailer import (
    CheckpointError,
    forget_cached,
    pack_trailer,
    verify_checkpoint,
)

CHUNK = 1 << 20                     # bytes written or read at once

_EMPTY = np.zeros(0)


class NamedArray:
    """Pickles as `tuple((name, array))`, which is how paddle.save stores a tensor."""

    def __init__(self, name: str, array: np.ndarray):
        self.name = name
        self.array = array

    def __reduce__(self):
        return tuple, ((self.name, _UncopiedArray(self.array)),)


class _UncopiedArray:
    """Pickles as its array does, without copying its bytes first."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(array.shape)

    def __reduce__(self):
        rebuild, arguments, (version, *_) = _EMPTY.__reduce__()
        view = self.array.view()
        view.flags.writeable = False        # a buffer that can change would pickle as bytearray
        return rebuild, arguments, (
            version, view.shape, view.dtype, False, pickle.PickleBuffer(view))


def write_checkpoint(path: str, payload: object, summary: dict,
                     check: Callable[[object], None] | None = None) -> None:
    """Write `payload` (what pickle takes) and `summary` (what JSON takes) durably to path.

    The bytes go to a temporary file in the same folder, are synced, read back from the disk by
    the reader that will resume from them, and only renamed if their checksum is that of the
    bytes that were in memory: `path` is at every moment either what it was or complete. The
    payload must not change meanwhile. check: called with the content that was read back, its
    arrays standing for shapes only; what it raises is a failure too. Raises OSError, or
    CheckpointError where the disk returns other bytes than were written or the reader does not
    understand them; the temporary file is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}{TEMPORARY}')
    _remove_if_there(temporary)         # a link would be followed
    try:
        size, crc, trailer = _write_file(temporary, payload, summary)
        content = _read_back(temporary, size, crc, trailer)
        if check is not None:
            check(content)
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException:
        _remove_if_there(temporary)
        raise


def link_checkpoint(source: str, path: str) -> None:
    """Make `path` a second name of the file `source`, or a copy where links are unsupported.

    Replaces `path` in one step. Raises OSError.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}{TEMPORARY}')
    _remove_if_there(temporary)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            _copy_file(source, temporary)
        os.replace(temporary, path)     # does nothing where both are already the same file
        sync_folder(folder)
    finally:
        _remove_if_there(temporary)


def remove_temporary_files(folder: str) -> list[str]:
    """Remove what an interrupted write left in a folder. Returns the names removed."""
    names = [name for name in os.listdir(folder)
             if name.startswith('.') and name.endswith(TEMPORARY)]
    for name in names:
        _remove_if_there(os.path.join(folder, name))
    return names


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable; nothing on systems that cannot open folders."""
    if not hasattr(os, 'O_DIRECTORY'):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _RawFile(io.RawIOBase):
    """What BufferedWriter writes to: a descriptor that may take a part of the bytes only."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def writable(self):
        return True

    def write(self, data):
        written = os.write(self.descriptor, data)
        if written == 0:
            raise CheckpointError('the disk takes no more bytes')
        return written


class _ChecksummedWriter:
    """The `write` that pickle needs; keeps size and CRC-32 of what went by."""

    def __init__(self, file):
        self.file = file
        self.crc = 0
        self.size = 0

    def write(self, data):
        data = memoryview(data).cast('B')
        self.crc = zlib.crc32(data, self.crc)
        self.size += len(data)
        self.file.write(data)


class _ChecksummedReader:
    """The `read` and `readline` that safe_pickle needs; keeps size and CRC-32 of what went by."""

    def __init__(self, file):
        self.file = file
        self.crc = 0
        self.size = 0

    def read(self, size):
        return self._take_in(self.file.read(size))

    def readline(self, limit):
        return self._take_in(self.file.readline(limit))

    def skip_to(self, end):
        """Read on, until so many bytes have gone by or there are no more."""
        while self.size < end and self.read(min(CHUNK, end - self.size)):
            continue

    def _take_in(self, data):
        self.crc = zlib.crc32(data, self.crc)
        self.size += len(data)
        return data


def _write_file(path, payload, summary):
    """Write a new file and sync it; return (size of the pickle, its CRC-32, the trailer)."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, 'O_BINARY', 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        buffered = io.BufferedWriter(_RawFile(descriptor), CHUNK)
        checksummed = _ChecksummedWriter(buffered)
        pickler = pickle.Pickler(checksummed, protocol=5)   # writes arrays without a copy of each
        pickler.fast = True         # its memo would keep every object for as long as it works
        pickler.dump(payload)
        trailer = pack_trailer(summary, checksummed.size, checksummed.crc)
        buffered.write(trailer)
        buffered.flush()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return checksummed.size, checksummed.crc, trailer


def _read_back(path, size, crc, trailer):
    """Return the content of a file, without its arrays' numbers, as our own reader sees it.

    Raises CheckpointError unless every byte is as it was written.
    """
    content = problem = None
    with open(os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0)), 'rb', CHUNK) as file:
        forget_cached(file.fileno())
        checksummed = _ChecksummedReader(file)
        try:
            content = Checker(checksummed, size, NAMED_FUNCTIONS).read()
        except PickleError as error:
            problem = error
        checksummed.skip_to(size)
        stored_trailer = file.read()
        forget_cached(file.fileno())        # these gigabytes are not read again soon
    if checksummed.size + len(stored_trailer) < size + len(trailer):
        raise CheckpointError('the disk returned fewer bytes than were written')
    if (checksummed.crc, stored_trailer) != (crc, trailer):
        raise CheckpointError('the disk returned other bytes than were written')
    if problem is not None:
        raise CheckpointError(f'it could not be read again: {problem}')
    return content


def _copy_file(source, path):
    with open(source, 'rb') as old, open(path, 'wb') as new:
        while chunk := old.read(CHUNK):
            new.write(chunk)
        new.flush()
        os.fsync(new.fileno())
    verify_checkpoint(path)


def _remove_if_there(path):
    try:
        os.remove(path)
    except OSError:
        return                          # also a read-only folder: there is nothing to be done
