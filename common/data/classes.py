"""Classes are matched by name wherever both sides have names: data, checkpoints, labels files."""

import codecs
import contextlib
import functools
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

from common.data.images import show_path
from common.errors import UserError
from common.files import open_regular

IMAGENET = 'imagenet2012'
IMAGENET_CLASSES = 1000
MAX_LABEL_BYTES = 64 << 20      # of a labels file
ANY_LABEL = 2 ** 31 - 1         # a number of classes that no label exceeds
ASSETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'assets')
# Files in ASSETS with the names of the classes, by their number.
KNOWN_NAMES = {IMAGENET_CLASSES: 'imagenet_names.txt', 21_843: 'imagenet21k_names.txt'}


def read_class_names(path: str) -> list[str]:
    """Return the class names of a text file, one a line. Raises UserError naming the line.

    Bytes that are not UTF-8 are kept as in names of folders. Blanks around a name do not belong
    to it; a name that would be lost in this way stands in quotes (see quote_name).
    """
    try:
        with open_regular(path, io.DEFAULT_BUFFER_SIZE) as file:
            data = file.read(MAX_LABEL_BYTES + 1)
    except OSError as error:
        raise UserError(f'Cannot read the labels {show_path(path)}: {error.strerror}.') from None
    if len(data) > MAX_LABEL_BYTES or b'\0' in data:
        problem = 'are not plain text' if b'\0' in data else \
            f'are larger than {MAX_LABEL_BYTES >> 20} MB'
        raise UserError(f'The labels {show_path(path)} {problem}. One class name a line is '
                        'expected, as UTF-8.')
    text = data.removeprefix(codecs.BOM_UTF8).decode('utf-8', 'surrogateescape')
    lines = re.split('\r\n|\r|\n', text)
    while lines and not lines[-1].strip():
        lines.pop()
    names = [_read_name(line) for line in lines]
    if not names:
        raise UserError(f'{show_path(path)} is empty; one class name a line is expected.')
    if '' in names:
        raise UserError(f'{show_path(path)}, line {names.index("") + 1}: an empty line between '
                        'the names, of which each line is one class. Remove the line, or write '
                        'the name there.')
    return names


def write_class_names(path: str, names: Iterable[str]) -> None:
    """Write a text file, which must not exist, from which read_class_names returns these names.

    Raises FileExistsError, also for a link that leads nowhere, and OSError.
    """
    text = ''.join(f'{quote_name(name)}\n' for name in names)
    with open(path, 'xb') as file:
        file.write(text.encode('utf-8', 'surrogateescape'))


def quote_name(name: str) -> str:
    """Return the line of a labels file for a class name: itself, or a JSON string.

    The latter where a line would be read as another name: with blanks or a byte-order mark at
    its ends, or line ends in it.
    """
    return json.dumps(name) if _needs_quotes(name) else name


def _needs_quotes(name):
    return (re.search('[\r\n\0]|^\ufeff', name) is not None or not _is_file_name(name)
            or _read_name(name) != name)


def _read_name(line):
    """Return the name in a line; quotes belong to a name that does not need them."""
    line = line.strip()
    if line[:1] == line[-1:] == '"':
        with contextlib.suppress(ValueError, RecursionError):
            name = json.loads(line)
            if _needs_quotes(name):
                return name
    return line


def _is_file_name(name):
    """Whether a name has bytes, UTF-8 or not: lone halves of surrogates, as in JSON, have none."""
    try:
        name.encode('utf-8', 'surrogateescape')
        return True
    except UnicodeEncodeError:
        return False


def match_classes(found: Sequence[str], recorded: Sequence[str], data: str, source: str
                  ) -> list[int]:
    """Return the label in `recorded` of each class that was found.

    found: names in the order of the data's labels. recorded: names in the order of the model's
    classes. data, source: what messages call the two. Raises UserError naming both sides where a
    class that was found is not among those recorded.
    """
    if list(found) == list(recorded):
        return list(range(len(recorded)))
    names, known = _spell(found, recorded)
    places = {name: label for label, name in enumerate(known)}
    for name in names:
        if known.count(name) > 1:
            raise UserError(f'{source}: two classes are called {show_path(name)}, so that the '
                            f'classes of {data}, which stand in another order, cannot be matched.')
    if set(names) <= set(places):
        return [places[name] for name in names]
    raise UserError(describe_difference(found, recorded, data, source))


def are_among(names: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether all of some names are among others."""
    first, second = _spell(names, others)
    return set(first) <= set(second)


def are_same(names: Sequence[str], others: Sequence[str]) -> bool:
    """Tell whether two lists hold the same names, in whatever order."""
    return are_among(names, others) and are_among(others, names)


def _spell(*lists):
    """Return lists of names in which the same letters are the same characters.

    macOS takes accents apart (Unicode's NFD) where others do not; here they are put together
    (NFC), unless two names of one list would be one.
    """
    spelt = [[unicodedata.normalize('NFC', name) for name in names] for names in lists]
    is_clear = all(len(set(new)) == len(set(old)) for new, old in zip(spelt, lists))
    return spelt if is_clear else [list(names) for names in lists]


def describe_difference(found: Sequence[str], recorded: Sequence[str], data: str, source: str
                        ) -> str:
    """Return the message for classes that are not the same. Arguments as for match_classes."""
    return (f'{data}, and {source}, have other classes: {compare_names(found, recorded)}. Labels '
            'are matched by name.')


def compare_names(found: Sequence[str], recorded: Sequence[str]) -> str:
    """Return in words which names only one side has."""
    found, recorded = _spell(found, recorded)
    only_found = [name for name in found if name not in set(recorded)]
    only_recorded = [name for name in recorded if name not in set(found)]
    parts = [f'only in the data: {_list_names(only_found)}'] if only_found else []
    parts += [f'only in the checkpoint: {_list_names(only_recorded)}'] if only_recorded else []
    return '; '.join(parts)


def rename_classes(known: Sequence[str] | None, names: Sequence[str], source: str
                   ) -> list[str]:
    """Return the names to show for classes known by other names, or by none.

    known: in the order of the labels, or None. names: of a labels file, called `source`. Where it
    holds the known names in another order, these stand; other names take their places line by
    line. Raises UserError for another number of names, or for some of the known names at places
    of other classes.
    """
    if known is None:
        return list(names)
    old, new = _spell(known, names)
    if set(old) == set(new):
        return list(known)
    if len(names) != len(known):
        raise UserError(f'{source} has {len(names)} class names; there are {len(known)} classes.')
    moved = [name for label, name in enumerate(new) if name in old and old[label] != name]
    if moved:
        line, place = new.index(moved[0]) + 1, old.index(moved[0]) + 1
        raise UserError(f'{source} names {show_path(moved[0])} in line {line}, which is the class '
                        f'in place {place}.')
    return list(names)


def list_known_names(recorded: Sequence[str] | None, num_classes: int,
                     found: Sequence[str] | None) -> list[str] | None:
    """Return the names of a model's classes: recorded, or by convention; None: not known.

    Models of 1000 classes that say nothing are of ImageNet where the data's folders are named by
    WordNet ids, or by labels as ImageNetV2's are, and have these in their order.
    """
    labels = [str(label) for label in range(num_classes)]
    if recorded is None and found and num_classes == IMAGENET_CLASSES and set(found) <= set(labels):
        return labels
    ids = read_imagenet_ids()
    are_ids = found and num_classes == IMAGENET_CLASSES and set(found) <= set(ids)
    if are_ids and (recorded is None or not set(found) <= set(recorded)):
        return list(ids)
    return None if recorded is None else list(recorded)


@functools.cache
def read_imagenet_ids() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's classes (ILSVRC 2012), in the order of their labels."""
    with open(os.path.join(ASSETS, 'imagenet_ids.txt'), encoding='ascii') as file:
        return tuple(file.read().split())


@functools.cache
def read_imagenet_names(num_classes: int) -> tuple[str, ...] | None:
    """Return the English names of ImageNet's 1,000 or ImageNet-21k's 21,843 classes, else None."""
    if num_classes not in KNOWN_NAMES:
        return None
    with open(os.path.join(ASSETS, KNOWN_NAMES[num_classes]), encoding='ascii') as file:
        return tuple(file.read().splitlines())


def translate_ids(names: Sequence[str]) -> list[str]:
    """Return class names in English where all of them are WordNet ids of ImageNet's classes."""
    english = dict(zip(read_imagenet_ids(), read_imagenet_names(IMAGENET_CLASSES)))
    return [english[name] for name in names] if set(names) <= set(english) else list(names)


def _list_names(names):
    shown = ', '.join(show_path(name) for name in names[:3])
    return shown + (f' and {len(names) - 3} more' if len(names) > 3 else '')
