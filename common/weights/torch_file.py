"""Reads what torch.save wrote, without PyTorch: the zip layout and the older stream.

Both are a pickle that refers to storages, which are raw bytes elsewhere in the
file. The pickle goes through safe_pickle, where classes that are not about
tensors (argparse.Namespace, mmengine's buffers) become inert placeholders.
"""

import mmap
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np

from common.machine.environment import count_cores
from common.weights.safe_pickle import (
    NUMPY_FUNCTIONS,
    Contents,
    Inert,
    PickleError,
    Reader,
)

# torch.serialization.MAGIC_NUMBER as a pickle of protocol 2.
LEGACY_MAGIC = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'

STORAGE_DTYPES = {
    'FloatStorage': 'f4', 'DoubleStorage': 'f8', 'HalfStorage': 'f2', 'BFloat16Storage': 'bf16',
    'LongStorage': 'i8', 'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1',
    'ByteStorage': 'u1', 'BoolStorage': 'b1',
}


class StorageType:
    """Stands for a class such as torch.FloatStorage."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype


class Storage:
    """Raw numbers somewhere in the file; read when first used, and kept."""

    def __init__(self, dtype: str, count: int, read: Callable[[int], memoryview] | None) -> None:
        self.dtype = dtype
        self.count = count
        self.read = read            # byte count -> bytes
        self.values: np.ndarray | None = None

    def get(self) -> np.ndarray:
        if self.values is None:
            itemsize = 2 if self.dtype == 'bf16' else np.dtype(self.dtype).itemsize
            self.values = decode(self.read(self.count * itemsize), self.dtype)
        return self.values


class StoredTensor:
    """A tensor before its storage is read."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...],
                 strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def get(self) -> np.ndarray:
        values = self.storage.get()
        strides = [stride * values.itemsize for stride in self.strides]
        return np.ndarray(self.shape, values.dtype, values.data, self.offset * values.itemsize,
                          strides)


def decode(data: bytes | memoryview, dtype: str) -> np.ndarray:
    """Return raw bytes as an array; bfloat16 ("bf16") becomes float32."""
    if dtype == 'bf16':
        return (np.frombuffer(data, '<u2').astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype)


def read_zip(file: BinaryIO) -> Contents:
    """Return (tree, {}) of a torch.save archive. Raises PickleError."""
    size = left = os.fstat(file.fileno()).st_size
    members = []
    try:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist()
                       if name == 'data.pkl' or name.endswith('/data.pkl')]
            if len(pickles) != 1:
                raise PickleError('a torch archive with several pickles.')
            folder = pickles[0][:-len('data.pkl')]
            if f'{folder}constants.pkl' in archive.namelist():
                raise PickleError('a TorchScript program. Save the state dict instead: '
                                  'torch.save(model.state_dict(), path).')

            def read(name, count=None):
                nonlocal left
                info = archive.getinfo(folder + name)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                    raise PickleError(f'{name} is packed as torch never does.')
                if count is not None and info.file_size != count:
                    raise PickleError(f'damaged: {name} has {info.file_size:,} bytes, '
                                      f'not {count:,}.')
                left -= info.file_size
                if left < 0:
                    raise PickleError('holds the same data again and again.')
                members.append((info, _map_member(content, info)))
                return members[-1][1]

            if f'{folder}byteorder' in archive.namelist() and bytes(read('byteorder')) != b'little':
                raise PickleError('written on a big-endian machine, which is not supported.')
            storages = {}

            def load_persistent(identifier):
                dtype, key, count = _check_identifier(identifier)
                if key not in storages:
                    storages[key] = Storage(dtype, count, lambda n: read(f'data/{key}', n))
                return _check_same(storages[key], dtype)

            pickle_size = archive.getinfo(pickles[0]).file_size
            with archive.open(pickles[0]) as stream:
                tree = _read_pickle(stream, min(pickle_size, size), load_persistent)
            tensors = _get_tensors(tree)
            with ThreadPoolExecutor(min(count_cores(), 8)) as pool:
                for _ in pool.map(_check_sum, members):
                    pass                    # raises what a thread raised
            return tensors, {}
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, RuntimeError,
            ValueError, OverflowError, TypeError, struct.error) as error:
        raise PickleError(f'damaged or cut short ({error}).') from None


def _map_member(content, info):
    """Return the bytes of an unpacked zip member as a view of the mapped file."""
    # The local header: 26 bytes, the lengths of name and extra field, both of these, the data.
    header = info.header_offset
    name_size, extra_size = struct.unpack('<HH', content[header + 26:header + 30])
    start = header + 30 + name_size + extra_size
    data = content[start:start + info.file_size]
    if len(data) != info.file_size:
        raise PickleError(f'damaged or cut short: {info.filename} is incomplete.')
    return data


def _check_sum(member):
    info, data = member
    if zlib.crc32(data) != info.CRC:
        raise PickleError(f'damaged: the checksum of {info.filename} does not fit.')


def read_legacy(file: BinaryIO) -> Contents:
    """Return (tree, {}) of what torch.save wrote before PyTorch 1.6. Raises PickleError.

    The file is five pickles (magic number, version, machine, object, storage
    keys), then each storage: its length as an 8-byte integer and its numbers.
    """
    storages = {}

    def load_persistent(identifier):
        dtype, key, count = _check_identifier(identifier)
        if identifier[-1] is not None and len(identifier) == 6:
            raise PickleError('holds views of storages, as PyTorch before 0.4 wrote them.')
        if key not in storages:
            storages[key] = Storage(dtype, count, None)
        return _check_same(storages[key], dtype)

    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    for _ in range(2):
        _read_pickle(file, end - file.tell(), None)
    machine = _read_pickle(file, end - file.tell(), None)
    if isinstance(machine, dict) and machine.get('little_endian') is False:
        raise PickleError('written on a big-endian machine, which is not supported.')
    tree = _read_pickle(file, end - file.tell(), load_persistent)
    keys = _read_pickle(file, end - file.tell(), None)
    if not isinstance(keys, list) or set(map(str, keys)) != set(map(str, storages)):
        raise PickleError('damaged: the list of storages does not fit.')

    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def read(count):
        stored = int.from_bytes(file.read(8), 'little')
        start = file.tell()
        if start + count > end or stored * itemsize != count:
            raise PickleError('damaged or cut short: a storage is incomplete.')
        file.seek(count, os.SEEK_CUR)
        return content[start:start + count]

    for key in keys:
        storage = storages.get(key)
        if storage is None or storage.values is not None:
            raise PickleError('damaged: the list of storages does not fit.')
        itemsize = 2 if storage.dtype == 'bf16' else np.dtype(storage.dtype).itemsize
        storage.read = read
        storage.get()
    return _get_tensors(tree), {}


def _read_pickle(stream, size, load_persistent):
    functions = {
        **NUMPY_FUNCTIONS,
        ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
        ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
        ('torch._utils', '_rebuild_parameter'): lambda reader, tensor, *_: tensor,
        # A parameter with attributes of its own.
        ('torch._utils', '_rebuild_parameter_with_state'): lambda reader, tensor, *_: tensor,
    }
    return Reader(stream, size, functions, _resolve, load_persistent).read()


def _resolve(module, name):
    if module == 'torch' and name in STORAGE_DTYPES:
        return StorageType(STORAGE_DTYPES[name])
    return Inert(f'{module}.{name}')


def _check_identifier(identifier):
    """Return (dtype, key, number count) of a persistent id. Raises PickleError."""
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
        raise PickleError('damaged: a storage is not described as torch does.')
    word, storage_type, key, _, count = identifier[:5]
    if (word != 'storage' or not isinstance(storage_type, StorageType)
            or not isinstance(key, str) or type(count) is not int or count < 0):
        raise PickleError('damaged: a storage is not described as torch does.')
    return storage_type.dtype, key, count


def _check_same(storage, dtype):
    if storage.dtype != dtype:
        raise PickleError('damaged: a storage has two types.')
    return storage


def _rebuild_tensor(reader, storage, offset, shape, strides, *_):
    if not isinstance(storage, Storage):
        raise PickleError('damaged: a tensor without a storage.')
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) > 8 or len(
            shape) != len(strides):
        raise PickleError('damaged: a tensor without a shape.')
    if any(type(number) is not int or number < 0 for number in (offset, *shape, *strides)):
        raise PickleError('damaged: a tensor with a strange shape.')
    count = 1
    for number in shape:
        count *= number
    last = offset + sum((number - 1) * stride for number, stride in zip(shape, strides))
    if count > storage.count or (count and last >= storage.count):
        raise PickleError(f'damaged: a tensor of shape {list(shape)} lies outside its storage of '
                          f'{storage.count:,} numbers.')
    return StoredTensor(storage, offset, shape, strides if count else (0,) * len(shape))


def _get_tensors(tree):
    """Replace the tensors in nested dicts by ndarrays; nothing else matters further on."""
    seen, branches = set(), [tree] if isinstance(tree, dict) else []
    while branches:
        branch = branches.pop()
        if id(branch) in seen:
            continue
        seen.add(id(branch))
        # Optimizer state is never used here, and often larger than the weights.
        branch.pop('optimizer', None)
        for key, value in branch.items():
            if isinstance(value, StoredTensor):
                branch[key] = value.get()
            elif isinstance(value, dict):
                branches.append(value)
    return tree
