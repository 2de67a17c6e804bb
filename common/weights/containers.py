"""Opens a checkpoint file of any kind, told by its first bytes, as a tree of NumPy arrays."""

import io
import json
import os
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from common.errors import UserError
from common.files import open_regular
from common.weights import mindspore_file, safe_pickle, safetensors_file, torch_file
from common.weights.safe_pickle import Contents, PickleError, check_shape
from common.weights.trailer import CheckpointError, has_trailer, verify_checkpoint

# What Hugging Face's save_pretrained names its files, the preferred one first.
FOLDER_FILES = ('model.safetensors', 'pytorch_model.bin')
INDEX_ENDING = '.index.json'        # of weights that are split over several files


@dataclass
class Container:
    """An opened file. tree: nested dicts with ndarrays. config, processor: what config.json and
    preprocessor_config.json beside it hold, {} where there is none."""

    path: str
    kind: str               # paddle, torch, safetensors, npz or mindspore
    tree: dict
    config: dict = field(default_factory=dict)
    processor: dict = field(default_factory=dict)
    metadata: dict = field(default_factory=dict)


def open_container(source: str | os.PathLike) -> Container:
    """Return the Container of a file, or of a Hugging Face folder.

    Nothing in the file is run, and sizes are checked before memory is taken.
    Raises UserError naming the path and the reason.
    """
    path = os.fspath(source)
    if os.path.isdir(path):
        path = _find_in_folder(path)
    if path.endswith(INDEX_ENDING):
        return _open_shards(path)
    try:
        with open_regular(path, io.DEFAULT_BUFFER_SIZE) as file:
            kind, read = _recognize(file)
            is_ours = kind == 'paddle' and has_trailer(path)
            if is_ours:
                verify_checkpoint(path)
            file.seek(0)
            tree, metadata = read(file)
    except OSError as error:
        raise UserError(f'Cannot read {path}: {error.strerror or error}.') from None
    except PickleError as error:
        raise UserError(f'{path}: {error}') from None
    except CheckpointError as error:
        raise UserError(f'{path}: {error}.') from None
    except MemoryError:
        raise UserError(f'{path}: too large for the memory of this machine.') from None
    if not isinstance(tree, dict):
        raise UserError(f'{path}: holds no dictionary of tensors, but a {type(tree).__name__}.')
    if 'format_version' in tree and not is_ours:
        raise UserError(f'{path}: its end, with the checksum, is missing.')
    config, processor = _read_beside(path, kind)
    return Container(path, kind, tree, config, processor, metadata)


def _read_beside(path, kind):
    """Return what config.json and preprocessor_config.json beside the weights hold.

    They belong to PyTorch's files only. Beside a file that Hugging Face does not name so, one
    that cannot be read is another program's.
    """
    if kind not in ('torch', 'safetensors'):
        return {}, {}
    folder, name = os.path.split(path)
    try:
        config = read_json(folder, 'config.json') or read_json(folder, 'open_clip_config.json')
        return config, read_json(folder, 'preprocessor_config.json')
    except UserError:
        if name in FOLDER_FILES or name.endswith(INDEX_ENDING):
            raise
        return {}, {}


def _find_in_folder(folder):
    for name in FOLDER_FILES:
        for path in (os.path.join(folder, name), os.path.join(folder, name + INDEX_ENDING)):
            if os.path.isfile(path):
                return path
    raise UserError(f'{folder} holds no weights: expected {" or ".join(FOLDER_FILES)}. '
                    'Give the checkpoint file itself.')


def _open_shards(path):
    """Return one Container of the files that an index.json of Hugging Face names."""
    folder, index = os.path.split(path)
    shards = read_json(folder, index).get('weight_map')
    names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
    # A name with a folder in it would lead anywhere.
    if not names or any(os.path.basename(name) != name or name.endswith(INDEX_ENDING)
                        for name in names):
        raise UserError(f'{path} is no index of weights: its weight_map must name files beside it.')
    tree = {}
    for name in names:
        if not os.path.isfile(os.path.join(folder, name)):
            raise UserError(f'{path}: {name}, which it names, is not there. Fetch all '
                            f'{len(names)} files.')
        part = open_container(os.path.join(folder, name))
        tree.update(part.tree)
    missing = set(map(str, shards)) - set(tree)
    if missing:
        raise UserError(f'{path}: {sorted(missing)[0][:80]}, which it lists, is in none of its '
                        f'{len(names)} files.')
    return Container(path, part.kind, tree, part.config, part.processor, part.metadata)


def read_json(folder: str, name: str) -> dict:
    """Return a JSON file beside a Hugging Face checkpoint, {} where there is none."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return {}
    try:
        with open_regular(path, io.DEFAULT_BUFFER_SIZE) as file:
            config = json.loads(file.read(1 << 22))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} is not a readable {name}: {error}.') from None
    return config if isinstance(config, dict) else {}


def _recognize(file):
    """Return (kind, reader) for the file's first bytes. Raises PickleError if none fits."""
    start = file.read(64)
    size = os.fstat(file.fileno()).st_size
    if safetensors_file.is_safetensors(start, size):    # first: its length may look like another
        return 'safetensors', safetensors_file.read
    if start.startswith(b'PK\x03\x04'):
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise PickleError(f'damaged or cut short ({error}).') from None
        if any(name.endswith('data.pkl') for name in names):
            return 'torch', torch_file.read_zip
        if any(name.endswith('.npy') for name in names):
            return 'npz', read_npz
        raise PickleError('a zip archive without weights. If it was packed by hand, unpack it.')
    if start.startswith(torch_file.LEGACY_MAGIC):
        return 'torch', torch_file.read_legacy
    if start.startswith(b'\x80'):
        return 'paddle', _read_paddle
    if start.startswith(b'version https://git-lfs'):
        raise PickleError('only a Git LFS pointer; fetch the file itself with "git lfs pull".')
    if start.lstrip()[:1] == b'<':
        raise PickleError('a web page, not a checkpoint; the download went wrong.')
    if start.startswith(b'\n'):
        return 'mindspore', mindspore_file.read
    if size == 0:
        raise PickleError('the file is empty.')
    raise PickleError('not a checkpoint of a known kind (.pdparams, .npz, .safetensors, .pth, '
                      '.bin, .ckpt), or damaged.')


def _read_paddle(file):
    """Read what paddle.save wrote; a second pickle, of convert.py, goes into the metadata."""
    size = os.fstat(file.fileno()).st_size
    tree = safe_pickle.Reader(file, size, safe_pickle.PADDLE_FUNCTIONS).read()
    metadata = {}
    if file.peek(1)[:1] == b'\x80':
        metadata = safe_pickle.Reader(file, size - file.tell(), safe_pickle.PADDLE_FUNCTIONS).read()
    return safe_pickle.join_large_arrays(tree), metadata if isinstance(metadata, dict) else {}


_NPY_HEADER = re.compile(
    rb"\{'descr': '[<|=]?(?P<dtype>[a-z]\d+)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]{0,99})\), \}\s*")


def read_npz(file: BinaryIO) -> Contents:
    """Read the arrays of numbers in a NumPy archive: ({name: ndarray}, {}). Raises PickleError."""
    # Weights hardly compress, but a head of zeros does.
    limit = 8 * os.fstat(file.fileno()).st_size + (64 << 20)
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                limit -= info.file_size
                if limit < 0:
                    raise PickleError('unpacks to far more than its own size.')
                if info.filename.endswith('.npy'):
                    with archive.open(info) as member:
                        arrays[info.filename[:-4]] = _read_npy(member, info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError,
            RuntimeError, OverflowError, IndexError) as error:
        raise PickleError(f'damaged or cut short ({str(error)[:100]}).') from None
    return arrays, {}


def _read_npy(member, size):
    start = member.read(8)
    length_bytes = 2 if start[6:7] == b'\x01' else 4
    if start[:6] != b'\x93NUMPY':
        raise PickleError(f'{member.name} is not a NumPy array.')
    header_size = int.from_bytes(member.read(length_bytes), 'little')
    if header_size > 1 << 16:
        raise PickleError(f'{member.name} is damaged.')
    header = _NPY_HEADER.fullmatch(member.read(header_size))
    dtype = header and header['dtype'].decode()
    if dtype not in safe_pickle.DTYPES:
        raise PickleError(f'{member.name} is not an array of numbers, or damaged.')
    shape = tuple(int(number) for number in header['shape'].split(b',') if number.strip())
    num_bytes = size - 8 - length_bytes - header_size
    check_shape(shape, np.dtype(dtype), num_bytes)
    data = member.read(num_bytes)
    if len(data) != num_bytes:
        raise PickleError('damaged or cut short.')
    order = 'F' if header['fortran'] == b'True' else 'C'
    return np.frombuffer(data, dtype).reshape(shape, order=order)
