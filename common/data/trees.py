"""A folder of images as a tree: list files, parts and class folders. Archives are trees too."""

import os
from typing import Protocol

from common.data.folders import find_part_in, is_spelling, list_folder
from common.data.images import show_path
from common.data.lists import (
    LIST_NAMES,
    read_list,
    scan_classes,
    scan_folder,
)
from common.data.readers import Reader
from common.errors import UserError

PARTS = {'train': LIST_NAMES[True], 'val': LIST_NAMES[False]}   # folder -> its list file


class Tree(Protocol):
    """What data sets of images in folders are read from. part: "train", "val" or "", the root."""

    def describe(self, part: str = '') -> str:
        """Return the root or the folder of a part, printable."""

    def has_list(self, part: str) -> bool:
        """Tell whether there is the list file of a part."""

    def read_list(self, part: str, num_classes: int) -> Reader:
        """Return the pictures that the list file names. Raises UserError."""

    def has_folder(self, part: str) -> bool:
        """Tell whether there is the folder of a part."""

    def scan_classes(self, part: str) -> list[str]:
        """Return the names of the class folders, sorted."""

    def count_loose(self, part: str) -> int:
        """Return how many pictures lie in a part and in no class folder."""

    def scan(self, part: str, class_names: list[str]) -> Reader:
        """Return the pictures of a part, class by class. Raises UserError if there is none."""


class FolderTree:
    """A folder on disk."""

    def __init__(self, root: str):
        self.root = root

    def describe(self, part: str = '') -> str:
        """Return the root or the folder of a part."""
        return self._join(part)

    def has_list(self, part: str) -> bool:
        """Tell whether there is the list file of a part."""
        return os.path.exists(self._join(PARTS[part]))

    def read_list(self, part: str, num_classes: int) -> Reader:
        """Return the pictures that the list file names. Raises UserError."""
        return read_list(self._join(PARTS[part]), self.root, num_classes)

    def has_folder(self, part: str) -> bool:
        """Tell whether there is the folder of a part."""
        return find_part_in(self.root, part) is not None

    def scan_classes(self, part: str) -> list[str]:
        """Return the names of the class folders, sorted."""
        return scan_classes(self._join(part))

    def count_loose(self, part: str) -> int:
        """Return how many pictures lie in a part and in no class folder."""
        return len(list_folder(self._join(part)).pictures)

    def scan(self, part: str, class_names: list[str]) -> Reader:
        """Return the pictures of a part, class by class. Raises UserError if there is none."""
        return scan_folder(self.root, self._name(part), class_names)

    def _join(self, part):
        return os.path.join(self.root, self._name(part)) if part else self.root

    def _name(self, part):
        """Return the folder of a part as it is spelt here; other names as they are."""
        return find_part_in(self.root, part) or part if part in PARTS else part


def open_tree(data_path: str) -> Tree:
    """Return the tree of a folder, or of a .zip or .tar file. Raises UserError."""
    path = os.path.abspath(os.path.expanduser(data_path))
    if data_path and os.path.isfile(path):
        from common.data.archives import ArchiveTree

        return ArchiveTree(path)
    return FolderTree(find_root(data_path))


def find_root(data_path: str) -> str:
    """Return the data set's root for a path that is the root, or its train or val folder."""
    if not data_path:
        raise UserError('This data set needs its folder, or its .zip or .tar file: -data_path=DIR')
    path = os.path.abspath(os.path.expanduser(data_path))
    if not os.path.isdir(path):
        raise UserError(f'No such folder: {show_path(data_path)} (-data_path). It must hold the '
                        'data set.')
    if any(os.path.exists(os.path.join(path, name)) for name in PARTS.values()):
        return path
    if any(find_part_in(path, part) for part in PARTS):
        return path
    if is_spelling(os.path.basename(path), *PARTS):
        return os.path.dirname(path)
    return path

