"""Image paths and labels: read from a list file or from folders, kept in little memory.

A list file has one image a line, `path label`, split at the last blank, tab or
comma, the path relative to the data set's root. Empty lines and lines that
start with `#` are left out; a byte-order mark and Windows line ends do no harm.
"""

import os
import zlib
from array import array

import numpy as np

from common.data.images import is_image_name, show_path
from common.errors import UserError

MAX_LABEL = 2**31 - 1


class PathTable:
    """Paths and labels of a data set: the paths' own bytes and 12 bytes more a sample.

    root: folder that relative paths start from. source: the list file, or None for
    a folder. labels: int32 [N].
    """

    def __init__(self, root, source=None):
        self.root = os.fsencode(root)
        self.source = source
        self._paths = bytearray()
        self._ends = array('q')
        self._labels = array('i')

    def append(self, path, label):
        """Add a sample. path: bytes, relative to the root or absolute."""
        self._paths += path
        self._ends.append(len(self._paths))
        self._labels.append(label)

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, index):
        """Return the full path of a sample as bytes."""
        return os.path.join(self.root, self.relative_path(index))

    def relative_path(self, index):
        """Return the path of a sample as it was given, as bytes."""
        start = self._ends[index - 1] if index else 0
        return bytes(self._paths[start:self._ends[index]])

    @property
    def labels(self):
        return np.frombuffer(self._labels, dtype=np.int32)

    @property
    def nbytes(self):
        """Memory in use, in bytes."""
        return sum(memoryview(part).nbytes for part in (self._paths, self._ends, self._labels))

    def checksum(self):
        """Return the CRC-32 of paths and labels."""
        return zlib.crc32(self._labels, zlib.crc32(self._paths))

    def select(self, indices):
        """Return a new table with the samples of `indices`, in that order."""
        assert self.source is None, 'the line numbers of a list would not fit'
        chosen = PathTable(self.root)
        labels = self.labels
        for index in indices:
            chosen.append(self.relative_path(index), labels[index])
        return chosen

    def locate(self, index):
        """Return where a sample was listed, such as "val_list.txt, line 7", or its folder."""
        if self.source is None:
            return show_path(self.root)
        for sample, (line, _) in enumerate(_read_lines(self.source)):
            if sample == index:
                return f'{self.source}, line {line}'
        return self.source


def read_list(source, root, num_classes):
    """Read a list file. Returns a PathTable. Raises UserError naming the line.

    num_classes: labels must be from 0 to num_classes - 1.
    """
    table = PathTable(root, source)
    try:
        for line, text in _read_lines(source):
            path, label = _split_line(text, line, source)
            if label >= num_classes:
                raise UserError(
                    f'{source}, line {line}: label {label} is outside the {num_classes} classes '
                    f'(0 to {num_classes - 1}). Check the list or MODEL.NUM_CLASSES.')
            table.append(path, label)
    except OSError as error:
        raise UserError(f'Cannot read the list file {source}: {error.strerror}.') from None
    if not len(table):
        raise UserError(f'{source} lists no image.')
    return table


def write_list(table, path):
    """Write a PathTable as a list file. Raises UserError for a name that a line cannot hold."""
    part = f'{path}.part'
    try:
        with open(part, 'wb') as file:
            for index, label in enumerate(table.labels):
                name = table.relative_path(index)
                if b'\n' in name or b'\r' in name or name != name.strip() or name[:1] == b'#':
                    raise UserError(
                        f'{show_path(table[index])}: a list file cannot hold this name. '
                        f'Rename the file.')
                file.write(b'%s %d\n' % (name, label))
        os.replace(part, path)
    except OSError as error:
        raise UserError(f'Cannot write {path}: {error.strerror}.') from None
    finally:
        if os.path.exists(part):
            os.remove(part)


def scan_classes(folder):
    """Return the class names of a folder: its subfolders, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.'))


def scan_folder(root, subfolder, class_names):
    """List the images below root/subfolder/CLASS, class by class, names sorted.

    class_names: list of str; a class's place in it is its label. Returns a
    PathTable with paths relative to `root`. Raises UserError if there is none.
    """
    table = PathTable(root)
    for label, name in enumerate(class_names):
        for path in _walk(os.path.join(root, subfolder, name), os.path.join(subfolder, name)):
            table.append(os.fsencode(path), label)
    if not len(table):
        raise UserError(
            f'{os.path.join(root, subfolder)} holds no image in a class folder '
            f'(CLASS/NAME.jpg, png, bmp, gif, webp, tif or ppm).')
    return table


def has_loose_images(folder):
    """Tell whether image files lie directly in a folder."""
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) and entry.is_file() for entry in entries)


def split_table(table, fraction, is_train):
    """Return the training or the validation part of a table that has no validation folder.

    Of each class, the share `fraction` (rounded; at least one image is left on
    each side of a class of two or more) goes to validation, chosen by a checksum
    of the path: the same on every machine, and whatever the seed of the run.
    """
    labels = table.labels
    checksums = np.array(
        [zlib.crc32(table.relative_path(index)) for index in range(len(table))], np.uint32)
    is_val = np.zeros(len(table), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * fraction)
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        is_val[members[np.argsort(checksums[members], kind='stable')[:count]]] = True
    return table.select(np.flatnonzero(is_val != is_train))


def _read_lines(source):
    """Yield (line number from 1, bytes without blanks around) of the lines with content."""
    with open(source, 'rb') as file:
        for line, text in enumerate(file, 1):
            if line == 1:
                text = text.removeprefix(b'\xef\xbb\xbf')
            text = text.strip()
            if text and not text.startswith(b'#'):
                yield line, text


def _split_line(text, line, source):
    """Return (path, label) of a list line."""
    if b'\0' in text:
        raise UserError(f'{source}, line {line}: not plain text. Save the list as UTF-8.')
    fields = text.rsplit(None, 1)
    if not fields[-1].isdigit() and b',' in text:
        fields = [field.strip() for field in text.rsplit(b',', 1)]
    if len(fields) != 2:
        raise UserError(
            f'{source}, line {line}: expected "path label", found {show_path(text)!r}.')
    if not fields[1].isdigit() or int(fields[1]) > MAX_LABEL:
        raise UserError(
            f'{source}, line {line}: the label must be an integer from 0, not '
            f'{show_path(fields[1])!r}.')
    return fields[0], int(fields[1])


def _walk(folder, relative):
    """Return the relative paths of all images below a folder, sorted."""
    paths = []
    with os.scandir(folder) as entries:
        for entry in entries:
            path = os.path.join(relative, entry.name)
            if entry.is_dir():
                if not entry.name.startswith('.'):
                    paths += _walk(entry.path, path)
            elif is_image_name(entry.name):
                paths.append(path)
    return sorted(paths)
