"""A checkpoint's bytes: written so that a kill or a full disk at any moment loses nothing.

A file is a pickle that `paddle.load` reads, then a trailer that it ignores:

    pickle | summary (JSON) | magic, pickle length, summary length, CRC-32 of all before it

The CRC catches every truncation and every run of up to 32 damaged bits, and
misses any other damage once in 4e9. The summary holds what choosing among
files needs, so that listing a folder does not unpickle gigabytes.

Bytes go to the disk and come back past the system's page cache where it allows
that (O_DIRECT). Filling the cache with gigabytes that nobody reads costs more
processor time than all the rest, and what is verified must be what the disk has.
"""

import errno
import json
import mmap
import os
import pickle
import struct

import numpy as np

from common.errors import RunError
from common.kernels.bulk import are_equal, crc32

MAGIC = b'\x00ViTckpt'
FOOTER = struct.Struct('<8sQII')
CRC = struct.Struct('<I')
MAX_SUMMARY = 1 << 20
CHUNK = 4 << 20                     # bytes written or read at once
TEMPORARY = '.writing'              # ending of a file that is not complete

_EMPTY = np.zeros(0)


class CheckpointError(RunError):
    """A checkpoint could not be written, or is not what was written."""


class NamedArray:
    """Pickles as `tuple((name, array))`, which is how paddle.save stores a tensor."""

    def __init__(self, name, array):
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


def write_checkpoint(path, payload, summary):
    """Write `payload` (what pickle takes) and `summary` (what JSON takes) durably to path.

    The bytes go to a temporary file in the same folder, are synced, read back
    and compared with the payload, and only then renamed, so that `path` is at
    every moment either what it was or complete. The payload must not change
    meanwhile. Raises OSError, or CheckpointError where the disk returns other
    bytes than were written; the temporary file is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}{TEMPORARY}')
    try:
        trailer = _write_file(temporary, payload, summary)
        _read_back(temporary, payload, trailer)
        os.replace(temporary, path)
        sync_folder(folder)
    except BaseException:
        _remove_if_there(temporary)
        raise


def link_checkpoint(source, path):
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


def verify_checkpoint(path):
    """Return the summary of a complete, undamaged file.

    Raises CheckpointError saying what is wrong, and OSError if it cannot be read.
    """
    with _open_uncached(path, os.O_RDONLY) as file:
        summary, stored_crc, size = _read_trailer(path)
        crc = 0
        left = size - CRC.size
        buffer = _Chunk()
        while left:
            count = min(left, file.read_into(buffer.memory))
            if not count:
                raise CheckpointError('shrank while it was read')
            crc = crc32(buffer.bytes[:count], crc)
            left -= count
    if crc != stored_crc:
        raise CheckpointError('its checksum does not match: the file is damaged')
    return summary


def read_summary(path):
    """Return the summary of a file, reading the trailer alone. Raises as verify_checkpoint."""
    return _read_trailer(path)[0]


def remove_temporary_files(folder):
    """Remove what an interrupted write left in a folder. Returns the names removed."""
    names = [name for name in os.listdir(folder)
             if name.startswith('.') and name.endswith(TEMPORARY)]
    for name in names:
        _remove_if_there(os.path.join(folder, name))
    return names


def sync_folder(folder):
    """Make the names in a folder durable; nothing on systems that cannot open folders."""
    if not hasattr(os, 'O_DIRECTORY'):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _ChecksummedFile:
    """The `write` that pickle needs, in whole chunks, and a checksum kept of what went by."""

    def __init__(self, file):
        self.file = file
        self.crc = 0
        self.size = 0
        self.buffer = _Chunk()
        self.filled = 0

    def write(self, data):
        data = np.frombuffer(data, 'uint8')
        self.size += len(data)
        while len(data):
            part = data[:CHUNK - self.filled]
            self.crc = crc32(part, self.crc)
            self.buffer.bytes[self.filled:self.filled + len(part)] = part
            self.filled += len(part)
            data = data[len(part):]
            if self.filled == CHUNK:
                self.flush()

    def flush(self):
        self.file.write(memoryview(self.buffer.bytes[:self.filled]))
        self.filled = 0


class _ComparedFile:
    """A `write` that raises CheckpointError unless the file has these bytes there already."""

    def __init__(self, file):
        self.file = file
        self.buffer = _Chunk()
        self.start = self.end = 0           # what of the buffer is still to be compared

    def write(self, data):
        data = np.frombuffer(data, 'uint8')
        while len(data):
            if self.start == self.end:
                self._fill()
            part = data[:self.end - self.start]
            stored = self.buffer.bytes[self.start:self.start + len(part)]
            if not are_equal(part, stored):
                raise CheckpointError('the disk returned other bytes than were written')
            self.start += len(part)
            data = data[len(part):]

    def _fill(self):
        self.start, self.end = 0, self.file.read_into(self.buffer.memory)
        if not self.end:
            raise CheckpointError('the disk returned fewer bytes than were written')


class _Chunk:
    """CHUNK bytes, aligned as the disk needs them.

    NumPy copies them: it lets training run meanwhile, as a memoryview does not.
    """

    def __init__(self):
        self.memory = mmap.mmap(-1, CHUNK)
        self.bytes = np.frombuffer(self.memory, 'uint8')


class _UncachedFile:
    """A file read or written from front to back, past the page cache for as long as that works.

    The system takes only whole, aligned blocks then: what is left over, or left by a write
    that was cut short, goes the usual way.
    """

    def __init__(self, descriptor, is_direct):
        self.descriptor = descriptor
        self.is_direct = is_direct

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self.descriptor)

    def write(self, chunk):
        while chunk:
            if self.is_direct and len(chunk) % mmap.PAGESIZE:
                self._leave_direct()
            written = self._try(os.write, chunk)
            if written == 0:
                raise CheckpointError('the disk takes no more bytes')
            chunk = chunk[written:]         # a nearly full disk takes a part
            if chunk:
                self._leave_direct()

    def read_into(self, buffer):
        """Fill the buffer from where the last call ended; return the number of bytes."""
        return self._try(os.readv, [buffer]) if hasattr(os, 'readv') else \
            self._read_and_copy(buffer)

    def _read_and_copy(self, buffer):
        data = os.read(self.descriptor, len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def _try(self, function, argument):
        try:
            return function(self.descriptor, argument)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.is_direct:
                raise
        self._leave_direct()                # the file system promised more than it keeps
        return function(self.descriptor, argument)

    def _leave_direct(self):
        if self.is_direct:
            import fcntl
            flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            self.is_direct = False


def _open_uncached(path, flags):
    flags |= getattr(os, 'O_BINARY', 0)
    if hasattr(os, 'O_DIRECT'):
        try:
            return _UncachedFile(os.open(path, flags | os.O_DIRECT, 0o666), is_direct=True)
        except OSError as error:
            if error.errno != errno.EINVAL:         # not every file system can
                raise
    descriptor = os.open(path, flags, 0o666)
    if hasattr(os, 'posix_fadvise'):                # then at least forget what it has cached
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return _UncachedFile(descriptor, is_direct=False)


def _write_file(path, payload, summary):
    """Write a new file and sync it; return its trailer."""
    with _open_uncached(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        checksummed = _ChecksummedFile(file)
        _pickle(payload, checksummed)
        text = json.dumps(summary).encode()
        trailer = text + FOOTER.pack(MAGIC, checksummed.size, len(text), 0)[:-CRC.size]
        checksummed.write(trailer)
        stored_crc = CRC.pack(checksummed.crc)
        checksummed.write(stored_crc)
        checksummed.flush()
        os.fsync(file.descriptor)
    return trailer + stored_crc


def _read_back(path, payload, trailer):
    """Raise CheckpointError unless the file starts with these bytes."""
    with _open_uncached(path, os.O_RDONLY) as file:
        compared = _ComparedFile(file)
        _pickle(payload, compared)
        compared.write(trailer)


def _pickle(payload, file):
    pickler = pickle.Pickler(file, protocol=5)      # writes arrays without a copy of each
    pickler.fast = True         # its memo would keep every object for as long as it works
    pickler.dump(payload)


def _read_trailer(path):
    """Return (summary, CRC, file size). Raises CheckpointError if there is no whole trailer."""
    with open(path, 'rb', buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size < FOOTER.size:
            raise CheckpointError(f'cut short: it has {size} bytes')
        file.seek(size - FOOTER.size)
        magic, pickle_size, text_size, crc = FOOTER.unpack(file.read(FOOTER.size))
        if magic != MAGIC:
            raise CheckpointError(
                'has no checksum at its end: cut short, or not written by this code')
        if text_size > MAX_SUMMARY or pickle_size + text_size + FOOTER.size != size:
            raise CheckpointError('its length is not the one recorded in it')
        file.seek(pickle_size)
        text = file.read(text_size)
    try:
        summary = json.loads(text)
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise CheckpointError('its summary is damaged')
    return summary, crc, size


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
