"""The end of our checkpoint files: a checksum of all before it, and what the file holds in short.

    pickle | summary (JSON) | magic, pickle length, summary length, CRC-32 of all before it

Readers of pickles, `paddle.load` among them, stop before the summary. The CRC catches every
truncation and every run of up to 32 damaged bits, and misses any other damage once in 4e9.
The summary holds what choosing among files needs, so that listing a folder does not unpickle
gigabytes.
"""

import json
import os
import struct
import zlib

from common.errors import RunError
from common.files import open_regular

MAGIC = b'\x00ViTckpt'
FOOTER = struct.Struct('<8sQII')
CRC = struct.Struct('<I')
MAX_SUMMARY = 1 << 20
CHUNK = 1 << 20                     # bytes read at once


class CheckpointError(RunError):
    """A checkpoint could not be written, or is not what was written."""


def pack_trailer(summary: dict, pickle_size: int, pickle_crc: int) -> bytes:
    """Return the bytes that follow a pickle of so many bytes and this CRC-32."""
    text = json.dumps(summary).encode()
    start = text + FOOTER.pack(MAGIC, pickle_size, len(text), 0)[:-CRC.size]
    return start + CRC.pack(zlib.crc32(start, pickle_crc))


def has_trailer(path: str) -> bool:
    """Whether a file ends as ours do. Raises OSError."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        return MAGIC in file.read()


def read_summary(path: str) -> dict:
    """Return the summary of a file, reading the trailer alone. Raises as verify_checkpoint."""
    return read_trailer(path)[0]


def verify_checkpoint(path: str) -> dict:
    """Return the summary of a complete, undamaged file.

    Raises CheckpointError saying what is wrong, and OSError if it cannot be read.
    """
    with open_regular(path) as file:
        forget_cached(file.fileno())
        summary, stored_crc, size = read_trailer(path)
        crc = 0
        left = size - CRC.size
        buffer = memoryview(bytearray(CHUNK))
        while left:
            count = min(left, file.readinto(buffer))      # type: ignore[attr-defined]
            if not count:
                raise CheckpointError('shrank while it was read')
            crc = zlib.crc32(buffer[:count], crc)
            left -= count
    if crc != stored_crc:
        raise CheckpointError('its checksum does not match: the file is damaged')
    return summary


def read_trailer(path: str) -> tuple[dict, int, int]:
    """Return (summary, CRC, file size). Raises CheckpointError if there is no whole trailer."""
    with open_regular(path) as file:
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
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        raise CheckpointError('its summary is damaged')
    return summary, crc, size


def forget_cached(descriptor: int) -> None:
    """Let the system forget what it has cached of a file, so that the disk is what is read."""
    if hasattr(os, 'posix_fadvise'):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
