"""Looks at a folder of pictures before a model is trained on it: what is there and can be read.

Every picture is decoded once. What cannot be read, and a picture that lies there twice, is left
out and listed, so that training and validation share nothing.
"""

import csv
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common.data.folders import PART_NAMES, is_class, list_folder, walk
from common.data.images import ImageError, decode_image, show_path
from common.data.lists import protect_name
from common.data.table import SampleTable, choose_part
from common.errors import UserError
from common.files import open_regular
from common.machine.environment import count_cores
from common.terminal import is_terminal

VAL_NAMES = ('val', 'validation', 'valid')
LARGEST_FILE = 256 << 20        # bytes; a picture has less


class Picture(NamedTuple):
    """A picture that can be read. path: relative to the root. sides: (width, height), pixels."""

    path: str
    label: int
    is_train: bool
    sides: tuple[int, int]


@dataclass
class Survey:
    """What a folder holds.

    class_names: of the classes that have a picture, in the order of their labels. left_out:
    (path, reason) of every file in a class folder that is not used. is_split: whether the
    validation pictures were held back here, and not by the folder itself.
    """

    root: str
    class_names: list[str]
    pictures: list[Picture]
    is_split: bool
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def count(self, is_train: bool) -> np.ndarray:
        """Return the number of pictures of each class in a part, int [classes]."""
        labels = [picture.label for picture in self.pictures if picture.is_train == is_train]
        return np.bincount(labels, minlength=len(self.class_names))

    def measure_sides(self) -> tuple[int, int]:
        """Return the median of the pictures' shorter and of their longer sides, in pixels."""
        sides = np.sort([picture.sides for picture in self.pictures], axis=1)
        shorter, longer = np.median(sides, axis=0)
        return int(shorter), int(longer)


def survey_folder(path: str, val_fraction: float) -> Survey:
    """Look at root/CLASS/..., or root/train/CLASS and root/val/CLASS; return the Survey.

    val_fraction: share of each class that is held back where there is no val folder, chosen by
    the names: the same pictures whenever it is asked again. Raises UserError for a folder that
    holds no two classes of pictures.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        unpack = ' Unpack it first.' if os.path.isfile(root) else ''
        raise UserError(f'No such folder: {show_path(path)}.{unpack} It must hold the pictures, '
                        'one folder a class.')
    parts = _find_parts(root)
    names = sorted({name for part in parts for name in list_folder(os.path.join(root, part))
                    .folders})
    if not names:
        _refuse(root, parts)
    left_out: list[tuple[str, str]] = []
    found = []
    for part, is_train in sorted(parts.items(), key=lambda item: item[1]):  # validation first
        for name in names:
            if os.path.isdir(os.path.join(root, part, name)):
                found += [(file, name, is_train) for file in
                          _list_files(root, os.path.join(part, name), left_out)]
    pictures = _keep_readable(root, found, left_out)
    used = sorted({name for _, name, _, _ in pictures})
    if len(used) < 2:
        raise UserError(f'{show_path(root)}: pictures that can be read lie in {len(used)} class '
                        f'folder{"s" * (len(used) != 1)}{_show_names(used)}; a classifier needs '
                        f'two or more.{_show_reasons(left_out)}')
    labels = {name: label for label, name in enumerate(used)}
    listed = [Picture(file, labels[name], is_train, sides)
              for file, name, is_train, sides in pictures]
    is_split = len(parts) == 1
    if is_split:
        listed = _hold_back(listed, val_fraction)
    if not any(picture.is_train for picture in listed):
        raise UserError(f'{show_path(os.path.join(root, "train"))} has no picture that can be '
                        f'read.{_show_reasons(left_out)}')
    return Survey(root, used, listed, is_split, left_out)


def write_table(survey: Survey, path: str) -> None:
    """Write the pictures as a table that DATA.DATASET csv reads: path, label, split."""
    rows = [(os.fsdecode(protect_name(os.fsencode(picture.path))), picture.label,
             'train' if picture.is_train else 'val')
            for picture in survey.pictures]
    write_rows(path, ('path', 'label', 'split'), rows)


def write_rows(path: str, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a new .csv file; names of files keep their own bytes."""
    with open(path, 'x', newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _find_parts(root):
    """Return {folder of a part: is it for training}; {'': True} where the root has the classes."""
    beside = set(list_folder(root).folders)

    def is_part(name):
        if name not in beside:
            return False
        inside = list_folder(os.path.join(root, name))
        return not is_class(name, bool(inside.pictures), bool(inside.folders), beside)

    val = next((name for name in VAL_NAMES if is_part(name)), None)
    if is_part('train'):
        return {'train': True} if val is None else {'train': True, val: False}
    if val is not None and beside <= {*PART_NAMES, *VAL_NAMES}:
        raise UserError(f'{show_path(root)} has the folder {val} and no train to learn from.')
    return {'': True}


def _list_files(root, folder, left_out):
    """Return the paths of a class folder's pictures, relative to the root; others are left out."""
    paths = []
    for parent, listing in walk(os.path.join(root, folder)):
        relative = os.path.relpath(parent, root)
        paths += [os.path.join(relative, name) for name in listing.pictures]
        left_out += [(os.path.join(relative, name), f'no ending of a picture that is read here '
                      f'({os.path.splitext(name)[1].lower() or "none"})')
                     for name in listing.others]
    return sorted(paths)


def _keep_readable(root, found, left_out):
    """Return [(path, class, is_train, sides)] of the pictures that can be read, each once."""
    kept, seen = [], {}
    with ThreadPool(count_cores()) as pool:         # Pillow decodes outside Python's lock
        looks = pool.imap(lambda item: _look(os.path.join(root, item[0])), found, chunksize=8)
        bar = tqdm(looks, total=len(found), desc='Looking at the pictures', unit='picture',
                   disable=not is_terminal(sys.stderr), leave=False)
        for (path, name, is_train), (sides, digest, problem) in zip(found, bar):
            if problem:
                left_out.append((path, problem))
            elif digest in seen:
                left_out.append((path, f'the same picture as {show_path(seen[digest])}'))
            else:
                seen[digest] = path
                kept.append((path, name, is_train, sides))
    return kept


def _look(path):
    """Return (sides, digest of the file, '') of a picture, or (None, None, what is wrong)."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                return None, None, f'{size:,} bytes are too many for a picture'
            data = file.read(size)
        sides = decode_image(data, '').size
    except ImageError as error:
        return None, None, str(error).removeprefix(': ')
    except OSError as error:
        return None, None, f'cannot be read: {error.strerror}.'
    return sides, hashlib.sha256(data).digest(), ''


def _hold_back(pictures, fraction):
    """Return the pictures, those that choose_part holds back marked as of validation."""
    table = SampleTable()
    for picture in pictures:
        table.append(os.fsencode(picture.path), picture.label)
    chosen = set(choose_part(table, fraction, is_train=False).tolist()) if fraction else set()
    return [picture._replace(is_train=index not in chosen)
            for index, picture in enumerate(pictures)]


def _refuse(root, parts):
    """Raise UserError for a folder without class folders."""
    for part in parts:
        if list_folder(os.path.join(root, part)).pictures:
            raise UserError(f'{show_path(os.path.join(root, part))} has pictures but no class '
                            'folders, so their classes are unknown. Sort them into one folder a '
                            'class, such as cat/ and dog/.')
    raise UserError(f'{show_path(root)} holds no class folders with pictures.')


def _show_names(names):
    return f' ({", ".join(map(show_path, names))})' if names else ''


def _show_reasons(left_out):
    """Return the first file that is left out, and how many there are."""
    if not left_out:
        return ''
    path, reason = left_out[0]
    return f' {len(left_out):,} files are left out, such as {show_path(path)}: {reason}'


def count_reasons(left_out: list[tuple[str, str]]) -> Counter:
    """Return how many files are left out for which reason, the name of another file apart."""
    return Counter(reason.partition(' as ')[0].partition(': ')[0].rstrip('.')
                   for _, reason in left_out)
