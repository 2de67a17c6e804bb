"""Looks at a folder of pictures before a model is trained on it: what is there and can be read.

Every picture is decoded once. What cannot be read, and a picture that lies there twice, is left
out and listed, so that training and validation share nothing.
"""

import csv
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.data.folders import count_endings, list_folder, walk
from common.data.images import ImageError, decode_image, list_remedies, show_path
from common.data.layout import (
    check_depth,
    find_parts,
    join_names,
    refuse_classless,
    refuse_path,
)
from common.data.lists import protect_name
from common.data.table import SampleTable, choose_part
from common.errors import UserError
from common.files import KEEP_NAMES, open_regular
from common.machine.environment import count_cores
from common.terminal import is_terminal

LARGEST_FILE = 256 << 20        # bytes; a picture has less
LOOSE = 'in no class folder'
OTHER_KIND = 'no ending of a picture that is read here'
THUMB = 16                      # pixels a side, gray: enough to see which way something looks
MOST_THUMBS = 2_000             # of all pictures, evenly


class Picture(NamedTuple):
    """A picture that can be read. path: relative to the root. sides: (width, height), pixels.

    thumb: uint8 [THUMB * THUMB], gray; None where there are more than MOST_THUMBS.
    """

    path: str
    label: int
    is_train: bool
    sides: tuple[int, int]
    thumb: bytes | None = None


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

    def measure_mirroring(self) -> float:
        """Return how much less the training pictures' mirror images are like them, 1: not at all.

        The median distance of a picture's mirror image to the nearest other picture of its class,
        over that of the picture itself; the mean over the classes. Of photographs about 1, of
        writing above 1.4, of things that are always taken from one side between. 1 where no class
        has two pictures to compare.
        """
        shown = [picture for picture in self.pictures if picture.is_train and picture.thumb]
        labels = np.array([picture.label for picture in shown])
        thumbs = np.array([np.frombuffer(picture.thumb, np.uint8) for picture in shown], np.float32)
        ratios = [compare_mirrored(thumbs[labels == label]) for label in np.unique(labels)
                  if (labels == label).sum() > 1]
        return float(np.mean(ratios)) if ratios else 1.0


def survey_folder(path: str, val_fraction: float) -> Survey:
    """Look at root/CLASS/..., or root/train/CLASS and root/val/CLASS; return the Survey.

    val_fraction: share of each class that is held back where there is no val folder, chosen by
    the names: the same pictures whenever it is asked again. Raises UserError for a folder that
    holds no two classes of pictures.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(root):
        refuse_path(path, root)
    parts = find_parts(root)
    listings = {part: list_folder(os.path.join(root, part)) for part in parts}
    for part, listing in listings.items():
        if not listing.folders:
            refuse_classless(os.path.join(root, part), listing)
    names = sorted({name for listing in listings.values() for name in listing.folders})
    check_depth(root, parts, names)
    left_out: list[tuple[str, str]] = []
    found = []
    for part, is_train in sorted(parts.items(), key=lambda item: item[1]):  # validation first
        for name in names:
            if os.path.isdir(os.path.join(root, part, name)):
                found += [(file, name, is_train) for file in
                          _list_files(root, os.path.join(part, name), left_out)]
    pictures = _keep_readable(root, found, left_out)
    left_out += [(os.path.join(part, name), LOOSE) for part, listing in
                 {'': list_folder(root), **listings}.items() for name in listing.pictures]
    used = sorted({name for _, name, *_ in pictures})
    if len(used) < 2:
        raise UserError(f'{show_path(root)}: pictures that can be read lie in {len(used)} class '
                        f'folder{"s" * (len(used) != 1)}{_show_names(used)}; a classifier needs '
                        f'two or more.{_show_reasons(left_out)}')
    labels = {name: label for label, name in enumerate(used)}
    listed = [Picture(file, labels[name], is_train, sides, thumb)
              for file, name, is_train, sides, thumb in pictures]
    is_split = len(parts) == 1
    if is_split:
        listed = _hold_back(listed, val_fraction)
    learnt = {picture.label for picture in listed if picture.is_train}
    unknown = [name for name in used if labels[name] not in learnt]
    if unknown:
        part = next(part for part, is_train in parts.items() if is_train)
        raise UserError(f'{show_path(os.path.join(root, part))} has no picture that can be read of '
                        f'{join_names(unknown)}, and the other part has.'
                        f'{_show_reasons(left_out)}')
    return Survey(root, used, listed, is_split, left_out)


def compare_mirrored(thumbs: np.ndarray) -> float:
    """Return the ratio of Survey.measure_mirroring of one class.

    thumbs: float32 [N, THUMB * THUMB], N > 1. Brightness and contrast make no difference.
    """
    vectors = thumbs - thumbs.mean(axis=1, keepdims=True)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)
    mirrored = vectors.reshape(-1, THUMB, THUMB)[:, :, ::-1].reshape(vectors.shape)
    medians = []
    for looked_at in (vectors, mirrored):
        likeness = looked_at @ vectors.T
        np.fill_diagonal(likeness, -1)          # with no picture's own mirror image either
        medians.append(np.median(np.sqrt(np.clip(2 - 2 * likeness.max(axis=1), 1e-6, None))))
    return float(medians[1] / medians[0])


def write_table(survey: Survey, path: str) -> None:
    """Write the pictures as a table that DATA.DATASET csv reads: path, label, split."""
    rows = [(os.fsdecode(protect_name(os.fsencode(picture.path))), picture.label,
             'train' if picture.is_train else 'val')
            for picture in survey.pictures]
    write_rows(path, ('path', 'label', 'split'), rows)


def write_rows(path: str, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a new .csv file; names of files keep their own bytes."""
    with open(path, 'x', newline='', encoding='utf-8', errors=KEEP_NAMES) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _list_files(root, folder, left_out):
    """Return the paths of a class folder's pictures, relative to the root; others are left out."""
    paths = []
    for parent, listing in walk(os.path.join(root, folder)):
        relative = os.path.relpath(parent, root)
        paths += [os.path.join(relative, name) for name in listing.pictures]
        left_out += [(os.path.join(relative, name),
                      f'{OTHER_KIND} ({os.path.splitext(name)[1].lower() or "none"})')
                     for name in listing.others]
    return sorted(paths)


def _keep_readable(root, found, left_out):
    """Return [(path, class, is_train, sides, thumb)] of the pictures that can be read, each once.

    Of the same picture in a class the name that a reader takes for the original is kept.
    """
    kept = {}                                       # digest: what is returned
    step = -(-len(found) // MOST_THUMBS)
    with ThreadPool(count_cores()) as pool:         # Pillow decodes outside Python's lock
        looks = pool.imap(lambda item: _look(os.path.join(root, item[1][0]), item[0] % step == 0),
                          enumerate(found), chunksize=8)
        bar = tqdm(looks, total=len(found), desc='Looking at the pictures', unit='picture',
                   disable=not is_terminal(sys.stderr), leave=False)
        for (path, name, is_train), (sides, thumb, digest, problem) in zip(found, bar):
            if problem:
                left_out.append((path, problem))
                continue
            other = kept.get(digest)
            if other and other[1:3] == (name, is_train) and _order(path) < _order(other[0]):
                del kept[digest]                    # the better name takes its own place
                left_out.append((other[0], f'the same picture as {show_path(path)}'))
            elif other:
                left_out.append((path, f'the same picture as {show_path(other[0])}'))
                continue
            kept[digest] = path, name, is_train, sides, thumb
    return list(kept.values())


def _order(path):
    """Return what sorts names as people do: a.jpg, a (2).jpg, a (10).jpg."""
    return [int(text) if text.isdecimal() else text
            for text in re.split(r'(\d+)', os.path.splitext(path)[0])], path


def _look(path, with_thumb):
    """Return (sides, thumb or None, digest of the file, '') of a picture.

    Of what cannot be read (None, None, None, what is wrong).
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LARGEST_FILE:
                return None, None, None, f'{size:,} bytes are too many for a picture'
            data = file.read(size)
        image = decode_image(data, show_path(path))
    except ImageError as error:
        return None, None, None, str(error).removeprefix(f'{show_path(path)}: ')
    except OSError as error:
        return None, None, None, f'cannot be read: {error.strerror}.'
    thumb = image.resize((THUMB, THUMB), Image.Resampling.BOX).convert('L').tobytes() \
        if with_thumb else None
    return image.size, thumb, hashlib.sha256(data).digest(), ''


def _hold_back(pictures, fraction):
    """Return the pictures, those that choose_part holds back marked as of validation."""
    table = SampleTable()
    for picture in pictures:
        table.append(os.fsencode(picture.path), picture.label)
    chosen = set(choose_part(table, fraction, is_train=False).tolist()) if fraction else set()
    return [picture._replace(is_train=index not in chosen)
            for index, picture in enumerate(pictures)]


def _show_names(names):
    return f' ({", ".join(map(show_path, names))})' if names else ''


def _show_reasons(left_out):
    """Return the first file that is left out, and how many there are."""
    if not left_out:
        return ''
    path, reason = left_out[0]
    return f' {len(left_out):,} files are left out, such as {show_path(path)}: {reason}'


def count_reasons(left_out: list[tuple[str, str]]) -> Counter:
    """Return how many files are left out for which reason, the name of another file apart.

    Files of other kinds are one reason, with their endings and how some of them could be read.
    """
    counts = Counter(reason.partition(' as ')[0].partition(': ')[0].rstrip('.')
                     for _, reason in left_out if not reason.startswith(OTHER_KIND))
    endings = count_endings(path for path, reason in left_out if reason.startswith(OTHER_KIND))
    if endings:
        kinds = [ending for ending, _ in endings.most_common()]
        counts['; '.join([f'of other kinds ({join_names(kinds)})', *list_remedies(kinds)])] = \
            sum(endings.values())
    return counts
