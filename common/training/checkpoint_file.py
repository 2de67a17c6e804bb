"""A checkpoint's bytes: written so that a kill or a full disk at any moment loses nothing.

A file is a pickle that `paddle.load` reads, then a trailer that it ignores:

    pickle | summary (JSON) | magic, pickle length, summary length, CRC-32 of all before it

The CRC catches every truncation and every run of up to 32 damaged bits, and
misses any other damage once in 4e9. The summary holds what choosing among
files needs, so that listing a folder does not unpickle gigabytes.
"""

import json
import os
import pickle
import struct
import zlib

from common.errors import RunError

MAGIC = b'\x00ViTckpt'
FOOTER = struct.Struct('<8sQII')
CRC = struct.Struct('<I')
MAX_SUMMARY = 1 << 20
CHUNK = 4 << 20                     # bytes read at once
TEMPORARY = '.writing'              # ending of a file that is not complete


class CheckpointError(RunError):
    """A checkpoint could not be written, or is not what was written."""


class NamedArray:
    """Pickles as `tuple((name, array))`, which is how paddle.save stores a tensor."""

    def __init__(self, name, array):
        self.name = name
        self.array = array

    def __reduce__(self):
        return tuple, ((self.name, self.array),)


def write_checkpoint(path, payload, summary):
    """Write `payload` (what pickle takes) and `summary` (what JSON takes) durably to path.

    The bytes go to a temporary file in the same folder, are synced, read back
    and compared with their checksum, and only then renamed, so that `path`
    is at every moment either what it was or complete. Raises OSError, or
    CheckpointError where the disk returns other bytes than were written;
    the temporary file is removed.
    """
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f'.{name}{TEMPORARY}')
    try:
        _write_file(temporary, payload, summary)
        verify_checkpoint(temporary)
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
    with open(path, 'rb', buffering=0) as file:
        summary, stored_crc, size = _read_trailer(file)
        _drop_cached_pages(file)
        file.seek(0)
        crc = 0
        left = size - CRC.size
        while left:
            chunk = file.read(min(CHUNK, left))
            if not chunk:
                raise CheckpointError('shrank while it was read')
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
    if crc != stored_crc:
        raise CheckpointError('its checksum does not match: the file is damaged')
    return summary


def read_summary(path):
    """Return the summary of a file, reading the trailer alone. Raises as verify_checkpoint."""
    with open(path, 'rb', buffering=0) as file:
        return _read_trailer(file)[0]


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
    """The `write` that pickle needs: no buffer, and a checksum kept of what went by."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.crc = 0
        self.size = 0

    def write(self, chunk):
        chunk = memoryview(chunk).cast('B')
        self.crc = zlib.crc32(chunk, self.crc)
        self.size += len(chunk)
        while chunk:
            written = os.write(self.descriptor, chunk)
            if written == 0:
                raise CheckpointError('the disk takes no more bytes')
            chunk = chunk[written:]     # a nearly full disk takes a part


def _write_file(path, payload, summary):
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, 'O_BINARY', 0),
                         0o666)
    try:
        file = _ChecksummedFile(descriptor)
        pickler = pickle.Pickler(file, protocol=4)
        pickler.fast = True     # its memo would keep the bytes of every array: a second copy
        pickler.dump(payload)
        pickle_size = file.size
        text = json.dumps(summary).encode()
        file.write(text)
        file.write(FOOTER.pack(MAGIC, pickle_size, len(text), 0)[:-CRC.size])
        file.write(CRC.pack(file.crc))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_trailer(file):
    """Return (summary, CRC, file size). Raises CheckpointError if there is no whole trailer."""
    size = file.seek(0, os.SEEK_END)
    if size < FOOTER.size:
        raise CheckpointError(f'cut short: it has {size} bytes')
    file.seek(size - FOOTER.size)
    magic, pickle_size, text_size, crc = FOOTER.unpack(file.read(FOOTER.size))
    if magic != MAGIC:
        raise CheckpointError('has no checksum at its end: cut short, or not written by this code')
    if text_size > MAX_SUMMARY or pickle_size + text_size + FOOTER.size != size:
        raise CheckpointError('its length is not the one recorded in it')
    file.seek(pickle_size)
    try:
        summary = json.loads(file.read(text_size))
    except ValueError:
        summary = None
    if not isinstance(summary, dict):
        raise CheckpointError('its summary is damaged')
    return summary, crc, size


def _drop_cached_pages(file):
    """Have the next read come from the disk, not from memory, where the system allows it."""
    if hasattr(os, 'posix_fadvise'):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


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
