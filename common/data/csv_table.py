"""Pictures in files that a table names: `path,label` and, if wanted, `split`.

Separated by commas, semicolons or tabs; a cell in quotes may hold any of them. The
header may be missing: the columns then are path, label and split, in this order.
"""

import csv
import logging
import os
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from yacs.config import CfgNode

from common.data.folders import PART_WORDS
from common.data.images import is_image_name, show_path
from common.data.lists import choose_name
from common.data.parts import Labelled, LabelTexts, relabel
from common.data.readers import ListedReader
from common.data.table import SampleTable
from common.errors import UserError, suggest
from common.files import read_lines

logger = logging.getLogger(__name__)

# Names that a header may have for a column, in lower case, the config's aside.
PATH_NAMES = ('path', 'image', 'file', 'filename', 'file_name', 'filepath', 'image_path', 'img')
LABEL_NAMES = ('label', 'class', 'target', 'category', 'labels', 'class_name')
SPLIT_NAMES = ('split', 'part', 'subset', 'set')
PARTS = ('train', 'val', 'test')


class Columns(NamedTuple):
    """Places of the columns in a row, from 0; split: None where there is none."""

    path: int
    label: int
    split: int | None


def load_csv(config: CfgNode) -> dict[str, Labelled]:
    """Return the parts of the table, or tables, that the config names. Raises UserError."""
    data = config.DATA
    tables, root = _find_tables(data)
    names = (data.IMAGE_COLUMN, data.LABEL_COLUMN, data.SPLIT_COLUMN)
    if len(tables) == 1 and 'train' in tables:
        return read_table(tables['train'], root, config.MODEL.NUM_CLASSES, names)
    return {part: read_table(path, root, config.MODEL.NUM_CLASSES, names, part)[part]
            for part, path in tables.items()}


def read_table(source: str, root: str, num_classes: int, names: tuple[str, str, str] = ('', '', ''),
               part: str = '') -> dict[str, Labelled]:
    """Return {part: its pictures} of a table; without a split column all are of one part.

    root: what paths are relative to. num_classes: integer labels must be below. names: of the
    columns for path, label and split, '' where the usual ones will do. part: what the whole
    table is, whatever its split column says. Raises UserError naming the line.
    """
    table, labels, splits = SampleTable(), LabelTexts(), array('b')
    folder = os.fsencode(root)
    for line, path, label, split in _iterate_rows(source, names):
        if not path.strip():
            raise UserError(f'{source}, line {line}: the path is empty.')
        code = labels.add(label, f'{source}, line {line}')
        name = choose_name(os.fsencode(path), lambda name: os.path.lexists(
            os.path.join(folder, name)), f'{source}, line {line}')
        table.append(name, code)
        splits.append(_read_split(split, source, line) if split is not None and not part else 0)
    if not len(table):
        raise UserError(f'{source} lists no image.')
    mapping, class_names = labels.resolve()
    if class_names is None and mapping.max() >= num_classes:
        code = int(np.argmax(mapping >= num_classes))
        raise UserError(
            f'{labels.places[code]}: label {mapping[code]} is outside the {num_classes} classes '
            f'(0 to {num_classes - 1}). Check the table or MODEL.NUM_CLASSES.')
    reader = ListedReader(table, root, source, lambda row: _find_line(source, names, row))
    relabel(reader, mapping)
    whole = Labelled(reader, class_names)
    if part or not any(splits):
        return {part or 'train': whole}
    numbers = np.array(splits)
    test = int((numbers == PARTS.index('test')).sum())
    if test:
        logger.info('%s: %d rows are of the split test and are left out', source, test)
    return {name: whole.select(np.flatnonzero(numbers == number))
            for number, name in enumerate(PARTS[:2]) if (numbers == number).any()}


def _find_tables(data):
    """Return ({part: path of its table}, folder that paths are relative to)."""
    path = os.path.abspath(os.path.expanduser(data.DATA_PATH))
    if not data.DATA_PATH:
        raise UserError('csv needs its table, or the folder with train.csv and val.csv: '
                        '-data_path=FILE')
    if not os.path.exists(path):
        raise UserError(f'No such file or folder: {show_path(data.DATA_PATH)} (-data_path).')
    if data.TABLE:
        tables, root = {'train': _expand(data.TABLE, path)}, path
    elif os.path.isdir(path):
        tables = {part: os.path.join(path, f'{part}{ending}') for part in ('train', 'val')
                  for ending in ('.tsv', '.csv')
                  if os.path.isfile(os.path.join(path, f'{part}{ending}'))}
        root = path
        if not tables:
            raise UserError(f'{show_path(path)} holds neither train.csv nor val.csv. Give the '
                            'table itself: -data_path=FILE, or -opts DATA.TABLE FILE')
    else:
        tables, root = {'train': path}, os.path.dirname(path)
    if data.VAL_PATH:
        tables['val'] = _expand(data.VAL_PATH, root)
    return tables, root


def _expand(path, root):
    """Return the full path of a table that may be given relative to the root."""
    path = os.path.expanduser(path)
    return path if os.path.exists(path) else os.path.join(root, path)


def _iterate_rows(source, names) -> Iterator[tuple[int, str, str, str | None]]:
    """Yield (line from 1, path, label, split) of the rows with content, blanks around kept."""
    try:
        with open(source, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
            head = file.read(1 << 16)
            if '\0' in head:
                raise UserError(f'{source}: not plain text. Save the table as UTF-8.')
            lines = [line for line in head.splitlines() if line.strip()]
            delimiter = _find_delimiter(lines[0]) if lines else ','
            second = next(csv.reader(lines[1:2], delimiter=delimiter), [])
            file.seek(0)
            rows = csv.reader(read_lines(file, source), strict=True, delimiter=delimiter)
            columns = None
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                if columns is None:
                    columns, is_header = _find_columns(row, second, names, source)
                    if is_header:
                        continue
                if len(row) <= max(c for c in columns if c is not None):
                    raise UserError(f'{source}, line {rows.line_num}: {len(row)} cells, expected '
                                    f'{1 + max(c for c in columns if c is not None)} or more.')
                if '\0' in ''.join(row):
                    raise UserError(f'{source}, line {rows.line_num}: not plain text. Save the '
                                    'table as UTF-8.')
                yield (rows.line_num, row[columns.path], row[columns.label],
                       None if columns.split is None else row[columns.split].strip())
    except csv.Error as error:
        raise UserError(f'{source}, line {rows.line_num}: {error}.') from None
    except OSError as error:
        raise UserError(f'Cannot read the table {source}: {error.strerror}.') from None


def _find_delimiter(line):
    if '\t' in line:
        return '\t'
    return ';' if ';' in line and ',' not in line else ','


def _find_columns(row, second, names, source):
    """Return (Columns, whether the row is a header) of a table's first row.

    second: the cells of the row below, which tell two columns apart where their names do not.
    """
    cells = [cell.strip() for cell in row]
    lower = [cell.lower() for cell in cells]
    pictures = [place for place, cell in enumerate(second) if is_image_name(cell.strip())]
    has_usual = bool(pictures) or any(cell in (*PATH_NAMES, *LABEL_NAMES) for cell in lower)
    is_header = any(names) or has_usual and not any(map(is_image_name, cells))
    if not is_header:
        if len(cells) < 2 or len(cells) > 3:
            raise UserError(f'{source}: {len(cells)} columns and no header. Expected path, label '
                            'and perhaps split; name them in a first line.')
        return Columns(0, 1, 2 if len(cells) == 3 else None), False
    found = []
    for name, usual, key in zip(names, (PATH_NAMES, LABEL_NAMES, SPLIT_NAMES),
                                ('IMAGE', 'LABEL', 'SPLIT')):
        place = None
        if name:
            if name not in cells:
                raise UserError(f'{source}: no column {name!r} (DATA.{key}_COLUMN).'
                                f'{suggest(name, cells)}')
            place = cells.index(name)
        else:
            place = next((lower.index(word) for word in usual if word in lower), None)
        if place is None and key != 'SPLIT' and len(cells) == 2 and len(pictures) == 1 \
                and not set(lower) & set(SPLIT_NAMES):
            place = pictures[0] if key == 'IMAGE' else 1 - pictures[0]
        if place is None and key != 'SPLIT':
            raise UserError(
                f'{source}: which column is the {key.lower()}? Name it: -opts '
                f'DATA.{key}_COLUMN X. Columns: {", ".join(map(show_path, cells[:20]))}.')
        found.append(place)
    return Columns(*found), True


def _read_split(text, source, line):
    """Return the number of a part in PARTS."""
    part = PART_WORDS.get(text.lower())
    if part is None:
        raise UserError(f'{source}, line {line}: unknown split {show_path(text)!r}.'
                        f'{suggest(text, PART_WORDS)}')
    return PARTS.index(part)


def _find_line(source, names, row):
    """Return the line of the row-th picture; None where the table has fewer by now."""
    for number, (line, *_) in enumerate(_iterate_rows(source, names)):
        if number == row:
            return line
    return None
