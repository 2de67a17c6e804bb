"""Which entries of a folder are read: one rule for training, prediction and checks.

Hidden files and folders and what macOS adds to archives (__MACOSX) are left out, and linked
folders are read, except for a link that leads back to a folder it lies in.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.data.images import is_image_name, list_remedies, show_path
from common.errors import UserError

IGNORED = ('__MACOSX',)
PART_NAMES = {'train', 'val', 'test', 'validation'}
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


def is_class(name: str, has_pictures: bool, has_folders: bool, beside: set[str]) -> bool:
    """Tell whether a folder "train" or "val" is a class of that name, and not a part of the data.

    A class has pictures of its own and other classes beside it. beside: names of the folders
    there, its own too.
    """
    others = beside - {name}
    return has_pictures and not has_folders and bool(others) and not others & PART_NAMES


def _identify(folder):
    """Return what two paths of the same folder have in common."""
    status = os.stat(folder)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
