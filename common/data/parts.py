"""Training and validation part of data sets whose labels are written beside the pictures."""

import glob
import itertools
import logging
import os
import re
from dataclasses import dataclass

import numpy as np

from common.data.folders import guess_part, walk
from common.data.images import show_path
from common.data.readers import Reader
from common.data.table import MAX_LABEL, choose_part
from common.errors import UserError

logger = logging.getLogger(__name__)

MAX_FILES = 1_000_000       # that a pattern may name
SEPARATOR = '::'            # between several paths, as in WebDataset


@dataclass
class Labelled:
    """Pictures of a part. class_names: sorted, where labels are text; None: labels are integers."""

    reader: Reader
    class_names: list[str] | None

    def select(self, indices: np.ndarray) -> 'Labelled':
        """Return the samples `indices`, with the same class names."""
        return Labelled(self.reader.select(indices), self.class_names)


class LabelTexts:
    """Labels as they are written, each kept once, and what integers they are in the end."""

    def __init__(self):
        self.codes: dict[str, int] = {}
        self.places: list[str] = []         # where each was met first
        self._written: dict[str, int] = {}  # codes of the labels with the blanks around them

    def add(self, text: str, place: str) -> int:
        """Return the code of a label. place: where it stands, for messages.

        Labels that differ only in the blanks around them are one, which the log says.
        """
        code = self._written.get(text)
        if code is None:
            bare = text.strip()
            code = self.codes.get(bare)
            if code is None:
                code = self.codes[bare] = len(self.codes)
                self.places.append(place)
            else:
                logger.warning('%s: the label %r is the same class as %r at %s: blanks around a '
                               'label do not count.', place, text, bare, self.places[code])
            self._written[text] = code
        return code

    def resolve(self) -> tuple[np.ndarray, list[str] | None]:
        """Return (labels int32 [codes], class names): integers as they are, else sorted texts.

        Raises UserError for other numbers than integers from 0, naming the place.
        """
        texts = list(self.codes)
        if all(text.isascii() and text.isdigit() for text in texts):
            for text, place in zip(texts, self.places):
                if int(text) > MAX_LABEL:
                    self._refuse_number(text, place)
            return np.array([int(text) for text in texts], np.int32), None
        numbers = [_is_number(text) for text in texts]
        if all(numbers):
            wrong = next(n for n, text in enumerate(texts) if not text.isdigit())
            self._refuse_number(texts[wrong], self.places[wrong])
        if '' in self.codes:
            raise UserError(f'{self.places[self.codes[""]]}: the label is empty.')
        names = sorted(texts)
        order = {name: label for label, name in enumerate(names)}
        return np.array([order[text] for text in texts], np.int32), names

    def _refuse_number(self, text, place):
        raise UserError(
            f'{place}: the label must be an integer from 0, or text, not {show_path(text)!r}.')


def join_parts(parts: dict[str, Labelled], is_train: bool, val_fraction: float,
               evaluate_all: bool, source: str) -> tuple[Labelled, bool]:
    """Return (the part asked for, whether val_fraction divides it).

    parts: "train" and "val", as far as there are any. Where there is no validation part,
    the share val_fraction is split off; without one, an evaluation takes all if evaluate_all.
    source: for messages.
    Raises UserError where a part is missing or the parts' classes differ.
    """
    train, val = parts.get('train'), parts.get('val')
    if train and val:
        return _match(train, val, source)[not is_train], False
    if val:
        if is_train:
            raise UserError(f'{source}: nothing to train on, only validation data.')
        return val, False
    assert train is not None
    if val_fraction > 0:
        chosen = choose_part(train.reader.table, val_fraction, is_train)
        return train.select(chosen), True
    if not is_train and not evaluate_all:
        raise UserError(
            f'{source}: no validation data. Give it as -opts DATA.VAL_PATH PATH, or split a '
            'share off: -opts DATA.VAL_FRACTION 0.1')
    return train, True


def find_files(data_path: str, val_path: str, ending: str) -> dict[str, list[str]]:
    """Return {part: files} of shards, sorted. Raises UserError for what is missing.

    data_path, val_path: files, folders, globs, patterns such as "x-{000..127}.tar", several
    joined by "::". Files below a folder are of the part that a word in their path names
    ("train-00000.tar", "validation/0.parquet"); where there is no other validation data, the
    test files are it. ending: such as ".tar".
    """
    if not data_path:
        raise UserError(f'This data set needs its {ending} files, or their folder: -data_path=PATH')
    parts: dict[str, list[str]] = {}
    for path in _expand_paths(data_path, 'data_path'):
        if os.path.isdir(path):
            _sort_folder(path, ending, parts)
        else:
            parts.setdefault('train', []).append(path)
    if val_path:
        parts['val'] = []
        for path in _expand_paths(val_path, 'opts DATA.VAL_PATH'):
            found: dict[str, list[str]] = {}
            if os.path.isdir(path):
                _sort_folder(path, ending, found)
            parts['val'] += [file for files in found.values() for file in files] or [path]
    test = parts.pop('test', [])
    if test and 'val' not in parts:
        logger.info('Validation data: the files called test, %d of them', len(test))
        parts['val'] = test
    both = sorted(set(parts.get('train', [])) & set(parts.get('val', [])))
    if both:
        raise UserError(f'{show_path(both[0])} is both training and validation data.')
    return parts


def expand_braces(pattern: str) -> list[str]:
    """Return the texts that a pattern stands for: {a,b} and {007..131}, zeros kept, as in bash."""
    match = re.search(r'\{([^{}]*)\}', pattern)
    if not match:
        return [pattern]
    span = re.fullmatch(r'(\d+)\.\.(\d+)', match[1])
    if span:
        first, last = span.groups()
        if int(last) - int(first) >= MAX_FILES:
            raise UserError(f'{show_path(pattern)} names too many files.')
        choices = [f'{n:0{len(first)}}' for n in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(',')
    start, end = pattern[:match.start()], pattern[match.end():]
    rest = expand_braces(end)
    if len(choices) * len(rest) > MAX_FILES:
        raise UserError(f'{show_path(pattern)} names too many files.')
    return [start + choice + tail for choice, tail in itertools.product(choices, rest)]


def _expand_paths(text, flag):
    """Return the existing paths that a text names, in its order."""
    paths = []
    for pattern in text.split(SEPARATOR):
        if not os.path.exists(os.path.expanduser(pattern)):
            pattern = pattern.strip()               # of "A :: B"
        pattern = os.path.abspath(os.path.expanduser(pattern))
        found = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
        if glob.has_magic(pattern) and not os.path.exists(pattern):
            found = [path for part in found for path in sorted(glob.glob(part)) or [part]]
        missing = [path for path in found if not os.path.exists(path)]
        if missing:
            count = f'{len(missing)} of {len(found)} files are missing, such as ' \
                if len(found) > 1 else 'No such file or folder: '
            raise UserError(f'{count}{show_path(missing[0])} (-{flag}).')
        paths += found
    return paths


def _sort_folder(folder, ending, parts):
    """Add the files below a folder to their parts."""
    files = []
    for path, listing in walk(folder):
        files += [os.path.join(path, name) for name in listing.others
                  if name.lower().endswith((ending, f'{ending}.gz'))]
    if not files:
        raise UserError(f'{show_path(folder)} holds no {ending} file.')
    words = {path: guess_part(os.path.relpath(path, folder)) for path in sorted(files)}
    if not any(words.values()):
        name = guess_part(os.path.basename(folder)) or 'train'
        words = dict.fromkeys(words, name)
    for path, part in words.items():
        if part is None:
            raise UserError(f'{show_path(path)}: is it training or validation data? Put "train" or '
                            '"val" into its name, as the other files have it.')
        parts.setdefault(part, []).append(path)


def _match(train, val, source):
    """Return both parts with the class names of the training part."""
    if train.class_names == val.class_names:
        return train, val
    if train.class_names is None or val.class_names is None:
        raise UserError(f'{source}: the labels of one part are integers and those of the other '
                        'are text.')
    new = sorted(set(val.class_names) - set(train.class_names))
    if new:
        more = f' and {len(new) - 3} more' if len(new) > 3 else ''
        raise UserError(f'{source}: classes of the validation data have no training image: '
                        f'{", ".join(map(show_path, new[:3]))}{more}.')
    order = {name: label for label, name in enumerate(train.class_names)}
    mapping = np.array([order[name] for name in val.class_names], np.int32)
    relabel(val.reader, mapping)
    return train, Labelled(val.reader, train.class_names)


def relabel(reader: Reader, mapping: np.ndarray) -> None:
    """Replace each label of a reader's table by mapping[label]."""
    reader.table = reader.table.replace_labels(mapping[reader.table.labels])


def _is_number(text):
    try:
        float(text)
        return True
    except ValueError:
        return False
