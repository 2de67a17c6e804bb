"""Image paths and labels, read from a list file or from folders.

A list file has one image a line, `path label`, split at the last blank, tab or
comma, the path relative to the data set's root. Empty lines and lines that
start with `#` are left out; a byte-order mark and Windows line ends do no harm.
A name that begins with a blank or `#` is written with `./` before it.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from common.data.folders import count_endings, describe_left_out, list_folder, walk
from common.data.images import list_extensions, list_remedies, show_path
from common.data.readers import FileReader, ListedReader
from common.data.table import MAX_LABEL, SampleTable
from common.errors import UserError
from common.files import write_new

logger = logging.getLogger(__name__)

LIST_NAMES = {True: 'train_list.txt', False: 'val_list.txt'}    # by is_train
MAX_LINE = 1 << 16              # bytes of a list file's line
LABELS_NAME = 'labels.txt'      # class names beside the lists, one a line


def read_list(source: str, root: str, num_classes: int) -> ListedReader:
    """Read a list file. Raises UserError naming the line.

    num_classes: labels must be from 0 to num_classes - 1.
    """
    table = SampleTable()
    folder = os.fsencode(root)
    try:
        with open(source, 'rb') as file:
            for line, path, label in parse_list(_read_lines(file), source, num_classes):
                table.append(choose_name(path, lambda name: os.path.lexists(
                    os.path.join(folder, name)), f'{source}, line {line}'), label)
    except OSError as error:
        raise UserError(f'Cannot read the list file {source}: {error.strerror}.') from None
    if not len(table):
        raise UserError(f'{source} lists no image.')
    return ListedReader(table, root, source, lambda row: _find_line(source, row))


def parse_list(lines: Iterable[bytes], source: str,
               num_classes: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield (line number, path, label) of a list file's lines. Raises UserError naming the line.

    Blanks before a path are kept: choose_name tells whether they belong to it.
    """
    for line, text in _iterate_lines(lines):
        if len(text) > MAX_LINE:
            raise UserError(f'{source}, line {line}: more than {MAX_LINE:,} bytes. A list file has '
                            'one image a line: path label.')
        path, label = _split_line(text.lstrip(), line, source)
        path = text[:len(text) - len(text.lstrip())] + path
        if label >= num_classes:
            raise UserError(
                f'{source}, line {line}: label {label} is outside the {num_classes} classes '
                f'(0 to {num_classes - 1}). Check the list or MODEL.NUM_CLASSES.')
        yield line, path, label


def choose_name(path: bytes, exists: Callable[[bytes], bool], place: str) -> bytes:
    """Return a path that a table names, without the blanks around it unless they belong to it.

    Of a table that was written on Windows the backslashes become slashes, where that is a file.
    exists: tells whether there is a file of a name. place: for messages.
    Raises UserError where there is a file of either name.
    """
    bare = path.strip()
    if b'\\' in bare and not exists(bare) and exists(slashed := bare.replace(b'\\', b'/')):
        return slashed
    if bare == path or not exists(path):
        return bare
    if exists(bare):
        raise UserError(f'{place}: there are both {show_path(path)!r} and {show_path(bare)!r}. '
                        'Write ./ before the name that is meant.')
    return path


def protect_name(path: bytes) -> bytes:
    """Return a relative path as a table can hold it, whose readers take blanks away."""
    return path if path == path.strip() and path[:1] != b'#' else b'./' + path


def write_list(table: SampleTable, path: str) -> None:
    """Write a table as a list file, which must not exist.

    Raises UserError for a name that a line cannot hold.
    """
    try:
        with write_new(path) as file:
            for name, label in zip(table.iterate_names(), table.labels):
                name = protect_name(name)
                if b'\n' in name or b'\r' in name or name != name.strip():
                    raise UserError(
                        f'{show_path(name)}: a list file cannot hold this name. '
                        f'Rename the file.')
                file.write(b'%s %d\n' % (name, label))
    except OSError as error:
        raise UserError(f'Cannot write {show_path(path)}: {error.strerror}.') from None


def scan_classes(folder: str) -> list[str]:
    """Return the class names of a folder: its subfolders, sorted, hidden ones left out."""
    return list_folder(folder).folders


def scan_folder(root: str, subfolder: str, class_names: Iterable[str]) -> FileReader:
    """List the images below root/subfolder/CLASS, class by class, names sorted.

    A class's place in class_names is its label; names are relative to `root`.
    Raises UserError if there is none.
    """
    table = SampleTable()
    others, empty = [], []
    for label, name in enumerate(class_names):
        paths, left_out = _find_pictures(root, os.path.join(subfolder, name))
        others += left_out
        if not paths:
            empty.append(name)
        for path in paths:
            table.append(os.fsencode(path), label)
    if len(table):
        part = os.path.normpath(os.path.join(root, subfolder))
        warn_left_out(show_path(part), count_endings(others), empty,
                      len(list_folder(part).pictures))
    else:
        refuse_pictureless(show_path(os.path.join(root, subfolder)), count_endings(others))
    return FileReader(table, root)


def refuse_pictureless(where: str, endings: Counter) -> NoReturn:
    """Raise UserError for a part without a picture. endings: of the files that it has."""
    remedies = ''.join(f' {remedy}.' for remedy in list_remedies(endings))
    raise UserError(f'{where} holds no image in a class folder (CLASS/NAME'
                    f'{", ".join(list_extensions())}).{remedies}')


def warn_left_out(where: str, endings: Counter, empty: list[str], loose: int) -> None:
    """Log which files and class folders of a part hold no picture, and what is not used of it.

    endings: of files left out. loose: how many pictures lie in no class folder.
    """
    if loose:
        logger.warning('%s: %s picture%s in no class folder, and %s left out', where,
                       f'{loose:,}', *(('s lie', 'are') if loose > 1 else (' lies', 'is')))
    if endings:
        logger.warning('%s: %s', where, describe_left_out(endings))
    if empty:
        logger.warning('%s: %d class folders hold no picture: %s', where, len(empty),
                       ', '.join(map(show_path, empty[:5])) + (', ...' if empty[5:] else ''))


def _iterate_lines(lines):
    """Yield (line number from 1, bytes without blanks at the end) of the lines with content."""
    for line, text in enumerate(lines, 1):
        if line == 1:
            text = text.removeprefix(b'\xef\xbb\xbf')
        text = text.rstrip()
        if text and not text.lstrip().startswith(b'#'):
            yield line, text


def _read_lines(file):
    """Yield the lines of a file; of a longer one than MAX_LINE a part."""
    while line := file.readline(MAX_LINE + 1):
        yield line


def _find_line(source, row):
    """Return the line of the row-th entry; None where the list has fewer by now."""
    with open(source, 'rb') as file:
        for number, (line, _) in enumerate(_iterate_lines(_read_lines(file))):
            if number == row:
                return line
    return None


def _split_line(text, line, source):
    """Return (path, label) of a list line."""
    if b'\0' in text:
        raise UserError(f'{source}, line {line}: not plain text. Save the list as UTF-8.')
    fields = text.rsplit(None, 1)
    if not fields[-1].isdigit() and b',' in text:
        fields = [field.strip() for field in text.rsplit(b',', 1)]
    fields[0] = fields[0].removesuffix(b',').rstrip()          # "path, label"
    if len(fields) != 2:
        raise UserError(
            f'{source}, line {line}: expected "path label", found {show_path(text)!r}.')
    if not fields[1].isdigit() or int(fields[1]) > MAX_LABEL:
        raise UserError(
            f'{source}, line {line}: the label must be an integer from 0, not '
            f'{show_path(fields[1])!r}.')
    return fields[0], int(fields[1])


def _find_pictures(root, subfolder):
    """Return (sorted paths of the pictures below a folder, names of its other files).

    Paths are relative to the root.
    """
    paths, others = [], []
    top = os.path.join(root, subfolder)
    for folder, listing in walk(top):
        relative = os.path.normpath(os.path.join(subfolder, os.path.relpath(folder, top)))
        paths += [os.path.join(relative, name) for name in listing.pictures]
        others += listing.others
    return sorted(paths), others
