"""Which entries of a folder are read: one rule for training, prediction and checks.

Hidden files and folders and what macOS adds to archives (__MACOSX) are left out, and linked
folders are read, except for a link that leads back to a folder it lies in.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from common.data.images import is_image_name, list_remedies, show_path
from common.errors import UserError

IGNORED = ('__MACOSX',)
# What people call the parts of a data set, in capitals or not.
PART_WORDS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val',
              'validation': 'val', 'dev': 'val', 'test': 'test', 'testing': 'test'}
SHOWN_ENDINGS = 5


class Listing(NamedTuple):
    """Names in one folder, sorted: pictures, folders, and the files with another ending."""

    pictures: list[str]
    folders: list[str]
    others: list[str]


def list_folder(folder: str) -> Listing:
    """Return what is read of a folder. Raises UserError naming one that cannot be read."""
    listing = Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith('.') or entry.name in IGNORED:
                    continue
                kind = listing.others
                if entry.is_dir():
                    kind = listing.folders
                elif is_image_name(entry.name):
                    kind = listing.pictures
                kind.append(entry.name)
    except OSError as error:
        raise UserError(f'Cannot read the folder {show_path(folder)}: {error.strerror}.') from None
    for names in listing:
        names.sort()
    return listing


def walk(folder: str, _above: tuple = ()) -> Iterator[tuple[str, Listing]]:
    """Yield (path, Listing) of a folder, then of every folder below it."""
    listing = list_folder(folder)
    yield folder, listing
    here = (*_above, _identify(folder))
    for name in listing.folders:
        path = os.path.join(folder, name)
        if _identify(path) not in here:         # a link back would never end
            yield from walk(path, here)


def count_endings(names: Iterable[str]) -> Counter:
    """Return how many names have which ending."""
    return Counter(os.path.splitext(name)[1].lower() or 'none' for name in names)


def describe_left_out(endings: Counter) -> str:
    """Return how many files are left out for their endings, and which of them could be read."""
    count = sum(endings.values())
    text = f'{count:,} file{"s have" if count > 1 else " has"} no ending of a picture and ' \
           f'{"are" if count > 1 else "is"} left out ({describe_endings(endings)})'
    return '; '.join([text, *list_remedies(endings)])


def describe_endings(counts: Counter) -> str:
    """Return how many names have which ending, as text: ".xcf 24, .txt 1"."""
    parts = [f'{show_path(ending)} {count:,}' for ending, count in
             counts.most_common(SHOWN_ENDINGS)]
    return ', '.join(parts) + (', ...' if len(counts) > SHOWN_ENDINGS else '')


def find_part(part: str, beside: Iterable[str], look: Callable[[str], tuple[bool, bool]]
              ) -> str | None:
    """Return the name of the folder that holds a part of the data, None where there is none.

    part: "train" or "val"; its folder may be called by another of PART_WORDS. beside: names of the
    folders at the root. look: tells of a folder whether pictures and folders lie in it: one with
    pictures of its own, no folders and other classes beside it is a class of that name. Raises
    UserError where it could be one of two.
    """
    names = set(beside)
    found = sorted(name for name in names if is_spelling(name, part)
                   and not _is_class(name, *look(name), names))
    if part in found:
        return part
    if len(found) > 1:
        raise UserError(f'The folders {show_path(found[0])} and {show_path(found[1])} could both '
                        f'be the part "{part}". Rename one.')
    return found[0] if found else None


def find_part_in(root: str, part: str) -> str | None:
    """Return the name of the folder in `root` that holds a part of the data, as find_part does."""
    def look(name):
        inside = list_folder(os.path.join(root, name))
        return bool(inside.pictures), bool(inside.folders)

    return find_part(part, list_folder(root).folders, look)


def is_spelling(name: str, *parts: str) -> bool:
    """Tell whether a folder is called as people call one of the parts."""
    return PART_WORDS.get(name.lower()) in parts


def guess_part(path: str) -> str | None:
    """Return the part that a word in a path names, the last one; None if there is none."""
    found = [PART_WORDS[word] for word in re.split('[^a-z]+', path.lower()) if word in PART_WORDS]
    return found[-1] if found else None


def _is_class(name, has_pictures, has_folders, beside):
    others = beside - {name}
    return has_pictures and not has_folders and bool(others) \
        and not any(other.lower() in PART_WORDS for other in others)


def _identify(folder):
    """Return what two paths of the same folder have in common."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
