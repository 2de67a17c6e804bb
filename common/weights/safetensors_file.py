"""Reads and writes .safetensors: a JSON header with names and offsets, then raw numbers."""

import json
import math
import mmap
import os
from typing import Any, BinaryIO

import numpy as np

from common.weights.safe_pickle import Contents, PickleError
from common.weights.torch_file import decode

DTYPES = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'BF16': 'bf16', 'I64': 'i8', 'I32': 'i4',
          'I16': 'i2', 'I8': 'i1', 'U64': 'u8', 'U32': 'u4', 'U16': 'u2', 'U8': 'u1', 'BOOL': 'b1'}
MAX_HEADER = 100_000_000        # bytes; the limit of the reference implementation


def is_safetensors(start: bytes, size: int) -> bool:
    """Tell from a file's first bytes and its size whether it is one."""
    return size > 9 and 2 <= int.from_bytes(start[:8], 'little') <= size - 8 and start[8:9] == b'{'


def read(file: BinaryIO) -> Contents:
    """Return ({name: ndarray}, metadata). Raises PickleError.

    The arrays are views of the file, which is mapped, not read.
    """
    size = os.fstat(file.fileno()).st_size
    header_size = int.from_bytes(file.read(8), 'little')
    if header_size > min(MAX_HEADER, size - 8):
        raise PickleError('damaged or cut short: the header is longer than the file.')
    try:
        header = json.loads(file.read(header_size).decode('utf-8'), parse_constant=_refuse_constant,
                            object_pairs_hook=_refuse_duplicates)
        metadata = header.pop('__metadata__', None) or {}
        places = {name: _check_place(name, entry['dtype'], entry['shape'], entry['data_offsets'])
                  for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PickleError(f'damaged: the header is not that of a .safetensors '
                          f'({str(error)[:100]}).') from None
    if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()):
        raise PickleError('damaged: its __metadata__ is not text by names.')
    _check_order(places, size - 8 - header_size)
    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[8 + header_size:]
    return {name: decode(content[begin:end], dtype).reshape(shape)
            for name, (dtype, shape, begin, end) in places.items()}, metadata


def _refuse_constant(text):
    raise ValueError(f'{text} is not JSON')


def _refuse_duplicates(pairs):
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError('a name stands there twice')
    return entries


def _check_place(name, dtype, shape, offsets):
    """Return (NumPy's or our type, shape, first byte, end) of a tensor. Raises PickleError."""
    name = name[:100]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise PickleError(f'{name} has the type {str(dtype)[:20]!r}, which is not supported.')
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else []
    if len(numbers) != len(shape) + 2 or len(shape) > 8 or any(
            type(number) is not int or not 0 <= number < 1 << 63 for number in numbers):
        raise PickleError(f'damaged: {name} has no proper shape or place.')
    begin, end = offsets
    itemsize = 2 if dtype == 'BF16' else np.dtype(DTYPES[dtype]).itemsize
    if end - begin != itemsize * math.prod(shape):
        raise PickleError(f'damaged: {name} of shape {shape} does not fill its {end - begin:,} '
                          'bytes.')
    return DTYPES[dtype], shape, begin, end


def _check_order(places, size):
    """Raise PickleError unless the tensors fill `size` bytes, each byte once, as in the format."""
    last = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != last:
            raise PickleError(f'damaged or cut short: {name[:100]} starts at byte {begin:,} of the '
                              f'numbers, the tensor before it ends at {last:,}.')
        last = end
    if last != size:
        raise PickleError(f'damaged or cut short: the tensors end at byte {last:,} of {size:,}.')


def write(path: str, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write {name: ndarray} and {text: text} to a .safetensors file."""
    names = {code: name for name, code in DTYPES.items()}
    header: dict[str, Any] = {'__metadata__': metadata}
    offset = 0
    for name, array in arrays.items():
        header[name] = {'dtype': names[array.dtype.str[1:]], 'shape': list(array.shape),
                        'data_offsets': [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)             # the numbers start at a multiple of 8 bytes
    with open(path, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
