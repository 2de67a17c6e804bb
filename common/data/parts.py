"""Training and validation part of data sets whose labels are written beside the pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from common.data.images import show_path
from common.data.readers import Reader
from common.data.table import MAX_LABEL, choose_part
from common.errors import UserError

# Values of a split column, and words in the names of files, by the part they mean.
PART_WORDS = {'train': 'train', 'training': 'train', 'val': 'val', 'valid': 'val',
              'validation': 'val', 'dev': 'val', 'test': 'test', 'testing': 'test'}


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
        self.places: list[Callable[[], str] | str] = []     # where each was met first

    def add(self, text: str, place: str) -> int:
        """Return the code of a label. place: where it stands, for messages."""
        code = self.codes.get(text)
        if code is None:
            code = self.codes[text] = len(self.codes)
            self.places.append(place)
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


def join_parts(parts: dict[str, Labelled], config, is_train: bool,
               source: str) -> tuple[Labelled, bool]:
    """Return (the part asked for, whether VAL_FRACTION divides it).

    parts: "train" and "val", as far as there are any. source: for messages. Where there is no
    validation part, VAL_FRACTION splits one off; an evaluation alone (EVAL) takes all.
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
    if config.DATA.VAL_FRACTION > 0:
        chosen = choose_part(train.reader.table, config.DATA.VAL_FRACTION, is_train)
        return train.select(chosen), True
    if not is_train and not config.EVAL:
        raise UserError(
            f'{source}: no validation data. Give it as -opts DATA.VAL_PATH PATH, or split a '
            'share off: -opts DATA.VAL_FRACTION 0.1')
    return train, True


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
