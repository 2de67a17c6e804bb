"""Reads MindSpore's .ckpt, a protobuf message, without MindSpore.

    Checkpoint  { repeated Value value = 1; }
    Value       { string tag = 1; TensorProto tensor = 2; MapTensorProto = 3; }
    TensorProto { repeated int64 dims = 1; string tensor_type = 2; bytes tensor_content = 3; }

A tensor above 512 MB comes as several values with one tag, to be joined in
order. With crc_check the file ends in "crc_num" and ten bytes of CRC-32.
"""

import os
import zlib
from typing import BinaryIO

import numpy as np

from common.weights.safe_pickle import Contents, PickleError, check_shape
from common.weights.torch_file import decode

DTYPES = {'Int8': 'i1', 'UInt8': 'u1', 'Int16': 'i2', 'UInt16': 'u2', 'Int32': 'i4',
          'UInt32': 'u4', 'Int64': 'i8', 'UInt64': 'u8', 'Float16': 'f2', 'Float32': 'f4',
          'Float64': 'f8', 'BFloat16': 'bf16', 'Bool': 'b1'}
CRC_MARK = b'crc_num'
MAX_VALUES = 100_000            # slices in a file; a ViT-H has 400 tensors


def read(file: BinaryIO) -> Contents:
    """Return ({name: ndarray}, {}). Text entries are left out. Raises PickleError."""
    data = file.read(os.fstat(file.fileno()).st_size)
    view = memoryview(data)
    if data[-17:-10] == CRC_MARK:
        view = view[:-17]
        if zlib.crc32(view) != int.from_bytes(data[-10:], 'big'):
            raise PickleError('damaged: the checksum does not fit.')
    slices = {}
    for count, (number, value) in enumerate(_read_fields(view)):
        if number != 1 or isinstance(value, int) or count >= MAX_VALUES:
            raise PickleError('not a MindSpore checkpoint, encrypted, or damaged.')
        fields = dict(_read_fields(value))
        if 1 not in fields or 2 not in fields:
            raise PickleError('holds a value that is no tensor.')
        tensor = _read_tensor(fields[2])
        if tensor is not None:
            slices.setdefault(_read_text(fields[1]), []).append(tensor)
    return {name: _join(name, parts) for name, parts in slices.items()}, {}


def _read_tensor(message):
    """Return (shape, dtype, bytes), or None for text."""
    shape, kind, content = [], None, b''
    for number, value in _read_fields(message):
        if number == 1 and isinstance(value, int) and len(shape) < 8:
            shape.append(value)
        elif number == 2:
            kind = _read_text(value)
        elif number == 3 and not isinstance(value, int):
            content = value
        else:
            raise PickleError('not a MindSpore checkpoint, or damaged.')
    if kind == 'str':
        return None
    if kind not in DTYPES:
        raise PickleError(f'holds a tensor of the type {kind!r}.')
    return tuple(shape), DTYPES[kind], content


def _join(name, parts):
    shape, dtype, _ = parts[0]
    if any(part[:2] != (shape, dtype) for part in parts):
        raise PickleError(f'damaged: the slices of {name} differ in shape.')
    stored = np.dtype('u2' if dtype == 'bf16' else dtype)
    check_shape(shape, stored, sum(len(content) for _, _, content in parts))
    return decode(b''.join(content for _, _, content in parts), dtype).reshape(shape)


def _read_text(value):
    try:
        return bytes(value[:1000]).decode()
    except (UnicodeDecodeError, TypeError):
        raise PickleError('not a MindSpore checkpoint, or damaged.') from None


def _read_fields(message):
    """Yield (field number, int or memoryview) for each field of a protobuf message."""
    if isinstance(message, int):
        raise PickleError('not a MindSpore checkpoint, or damaged.')
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        value, position = _read_varint(message, position)
        if key & 7 == 0:                            # a number
            yield key >> 3, value
        elif key & 7 == 2:                          # bytes, text or a message
            if value > len(message) - position:
                raise PickleError(f'damaged or cut short: {value:,} bytes announced, '
                                  f'{len(message) - position:,} left.')
            yield key >> 3, message[position:position + value]
            position += value
        else:
            raise PickleError('not a MindSpore checkpoint, encrypted, or damaged.')


def _read_varint(message, position):
    """Return (number, position behind it): seven bits a byte, the lowest first."""
    number = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7f) << shift
        if byte < 0x80:
            return number, position
    raise PickleError('damaged or cut short: a number has no end.')
