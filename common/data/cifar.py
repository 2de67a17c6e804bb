"""CIFAR-10 and CIFAR-100 from the official "python version", as an archive or its folder.

Nothing in the files is run: the pickles are read by common.weights.safe_pickle.
"""

import gzip
import io
import os
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from common.data.official import fetch_official
from common.errors import UserError
from common.weights.safe_pickle import NUMPY_FUNCTIONS, PickleError, Reader

SIDE = 32
MAX_FILE_BYTES = 1 << 30            # CIFAR-100's training file has 155 million


class Layout(NamedTuple):
    """What an archive holds."""

    folder: str
    train_files: tuple
    val_files: tuple
    names_file: str
    label_key: str
    names_key: str
    num_classes: int


LAYOUTS = {
    'cifar10': Layout(
        'cifar-10-batches-py', tuple(f'data_batch_{n}' for n in range(1, 6)), ('test_batch',),
        'batches.meta', 'labels', 'label_names', 10),
    'cifar100': Layout(
        'cifar-100-python', ('train',), ('test',), 'meta', 'fine_labels', 'fine_label_names', 100),
}


def load_cifar(name: str, data_path: str,
               is_train: bool) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return (images uint8 [N, 32, 32, 3], labels int64 [N], class names) of a part.

    name: "cifar10" or "cifar100". data_path: the .tar.gz, the extracted folder, a
    folder that holds either, or "" to download. Raises UserError.
    """
    layout = LAYOUTS[name]
    source = _find_source(name, data_path)
    files = layout.train_files if is_train else layout.val_files
    contents = _read_files(source, layout, (*files, layout.names_file))
    images, labels = [], []
    for file in files:
        part_images, part_labels = _parse_part(contents[file], layout, f'{source}: {file}')
        images.append(part_images)
        labels.append(part_labels)
    class_names = contents[layout.names_file].get(layout.names_key)
    if not isinstance(class_names, list) or len(class_names) != layout.num_classes:
        raise UserError(
            f'{source}: {layout.names_file} does not name {layout.num_classes} classes.')
    return np.concatenate(images), np.concatenate(labels), [_to_text(n) for n in class_names]


def download_cifar(name: str) -> str:
    """Return the path of the official archive in Paddle's cache, downloading it if it is not there.

    Address, checksum and place are those of paddle.vision.datasets. Raises UserError.
    """
    from paddle.vision.datasets import cifar as official

    url, md5 = {
        'cifar10': (official.CIFAR10_URL, official.CIFAR10_MD5),
        'cifar100': (official.CIFAR100_URL, official.CIFAR100_MD5),
    }[name]
    return fetch_official(url, md5, 'cifar')


def _find_source(name, data_path):
    """Return the archive or the folder with the files."""
    if not data_path:
        return download_cifar(name)
    layout, path = LAYOUTS[name], os.path.expanduser(data_path)
    if os.path.isfile(path):
        return path
    archive = layout.folder.replace('-batches-py', '-python') + '.tar.gz'
    for candidate in (path, os.path.join(path, layout.folder)):
        if os.path.exists(os.path.join(candidate, layout.names_file)):
            return candidate
    if os.path.isfile(os.path.join(path, archive)):
        return os.path.join(path, archive)
    if not os.path.exists(path):
        raise UserError(f'No such file or folder: {data_path} (-data_path).')
    raise UserError(
        f'{data_path} holds neither {archive} nor the folder {layout.folder} '
        f'with {layout.names_file} in it.')


def _read_files(source, layout, names):
    """Return {file name: unpickled dict with text keys}."""
    if os.path.isdir(source):
        contents = {}
        for name in names:
            path = os.path.join(source, name)
            try:
                with open(path, 'rb') as file:
                    contents[name] = _unpickle(file, os.path.getsize(path), f'{source}: {name}')
            except OSError as error:
                raise UserError(f'Cannot read {path}: {error.strerror}.') from None
        return contents
    try:
        members = _read_archive(source, {f'{layout.folder}/{name}' for name in names})
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{source} is not a whole .tar.gz archive: {reason}.') from None
    contents = {}
    for name in names:
        content = members.get(f'{layout.folder}/{name}')
        if content is None:
            raise UserError(f'{source} does not hold {layout.folder}/{name}.')
        contents[name] = _unpickle(io.BytesIO(content), len(content), f'{source}: {name}')
    return contents


def _read_archive(source, names):
    """Return {member's name: bytes} of those `names` that a .tar.gz holds."""
    contents = {}
    with gzip.open(source) as stream:
        with tarfile.open(fileobj=stream, mode='r|') as archive:
            for member in archive:
                if member.name in names and member.isfile() and member.size <= MAX_FILE_BYTES:
                    contents[member.name] = archive.extractfile(member).read()
        while stream.read(1 << 20):     # the checksum stands at the very end
            pass
    return contents


def _unpickle(file, size, where):
    try:
        tree = Reader(file, size, NUMPY_FUNCTIONS).read()
    except PickleError as error:
        raise UserError(f'{where}: {error}') from None
    if not isinstance(tree, dict):
        raise UserError(f'{where}: expected a dictionary, found a {type(tree).__name__}.')
    return {_to_text(key): value for key, value in tree.items()}


def _parse_part(content, layout, where):
    """Return (images uint8 [N, 32, 32, 3], labels int64 [N])."""
    pixels, labels = content.get('data'), content.get(layout.label_key)
    row = 3 * SIDE * SIDE           # the red plane, then green, then blue
    if (not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2
            or pixels.shape[1] != row or not len(pixels)):
        raise UserError(f'{where}: expected "data", uint8 [N, {row}].')
    if (not isinstance(labels, list) or len(labels) != len(pixels)
            or any(type(label) is not int or not 0 <= label < layout.num_classes
                   for label in labels)):
        raise UserError(
            f'{where}: expected "{layout.label_key}", {len(pixels)} integers below '
            f'{layout.num_classes}.')
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _to_text(value):
    return value.decode('latin1') if isinstance(value, bytes) else value
