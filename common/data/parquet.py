"""Pictures in parquet files, as Hugging Face publishes image sets.

A row group of parquet can only be read as a whole, and training reads rows in random
order. So every row group is read once, in order, and the encoded pictures are copied
into one file in the cache, which all workers and later runs share. A worker holds one
picture at a time, as with folders; whoever copies holds a data page and 32 pictures.
"""

import contextlib
import json
import os
import shutil
import sys
from typing import Any

import numpy as np
from tqdm import tqdm
from yacs.config import CfgNode

from common.data.archives import MemberReader, places_fit
from common.data.images import ImageError, show_path
from common.data.index_file import Index, index_path, open_index
from common.data.members import MAX_MEMBER_BYTES, describe_member
from common.data.parts import Labelled, LabelTexts, find_files
from common.data.shards import names_fit
from common.data.table import SampleTable
from common.errors import UserError, suggest
from common.terminal import is_terminal

PLACES = {'offset': np.int64, 'size': np.uint32, 'shard': np.int32, 'row': np.int64}
IMAGE_NAMES = ('image', 'img')
LABEL_NAMES = ('label', 'labels', 'fine_label', 'cls')
ROWS_AT_ONCE = 32               # pictures in memory while they are copied
BUFFER_BYTES = 1 << 20          # that are read at once of a column


class ParquetReader(MemberReader):
    """Pictures copied from parquet files. places: in the copy, and file and row it came from."""

    def __init__(self, table: SampleTable, places: dict[str, np.ndarray], paths: list[str],
                 copy: str):
        folder = os.path.dirname(paths[0])
        origin = show_path(paths[0]) if len(paths) == 1 else \
            f'{len(paths):,} parquet files in {show_path(folder)}'
        super().__init__(table, places, folder, origin, [copy])
        self.sources = paths

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded picture. Raises ImageError naming file and row."""
        size = int(self.places['size'][index])
        try:
            data = self.files.read(0, int(self.places['offset'][index]), size)
        except OSError as error:
            raise ImageError(f'{self.describe(index)}: its copy in the cache cannot be read: '
                             f'{error.strerror}.') from None
        if len(data) != size:
            raise ImageError(f'{self.describe(index)}: its copy in the cache is cut short: '
                             f'{show_path(self.files.paths[0])}.')
        return data

    def describe(self, index: int) -> str:
        """Return file, row and the name in it, printable."""
        path = self.sources[int(self.places['shard'][index])]
        row = f'row {int(self.places["row"][index])}'
        name = self.table.name(index)
        return describe_member(path, os.fsencode(row) + (b', ' + name if name else b''))


def load_parquet(config: CfgNode) -> dict[str, Labelled]:
    """Return the parts of the parquet files that the config names. Raises UserError."""
    data = config.DATA
    parts = find_files(data.DATA_PATH, data.VAL_PATH, '.parquet')
    return {part: open_parquet(paths, data.IMAGE_COLUMN, data.LABEL_COLUMN)
            for part, paths in parts.items()}


def open_parquet(paths: list[str], image_column: str = '', label_column: str = '') -> Labelled:
    """Return the pictures of parquet files with their labels."""
    kind = f'parquet {image_column} {label_column}'
    copy = f'{index_path(kind, paths)}.pictures'
    index = open_index(kind, paths, PLACES,
                       lambda: build_index(paths, image_column, label_column, copy),
                       lambda index: _is_possible(index, paths, copy), is_cache_needed=True)
    return Labelled(ParquetReader(index.table, index.places, paths, copy),
                    index.header['class_names'])


def build_index(paths: list[str], image_column: str, label_column: str, copy: str) -> Index:
    """Copy the pictures of parquet files into the file `copy` and index it. Raises UserError."""
    _import_pyarrow()
    _check_space(paths, copy)
    columns = _Columns()
    part = f'{copy}.part'
    try:
        with open(part, 'wb') as target:
            for number, path in enumerate(paths):
                with _reading(path):
                    _copy_file(path, number, image_column, label_column, columns, target)
        index = columns.finish(paths)
        os.replace(part, copy)
        return index
    except OSError as error:
        raise _cannot_write(part, error) from None
    finally:
        if os.path.exists(part):
            os.remove(part)


class _Columns:
    """What the rows of all files hold, beside the pictures themselves."""

    def __init__(self):
        self.table = SampleTable()
        self.labels = LabelTexts()
        self.places = {name: [] for name in PLACES}     # lists of arrays, one a batch
        self.class_names: Any = False                   # False: no file has been read yet
        self.end = 0

    def finish(self, paths):
        if not len(self.table):
            raise UserError(f'{show_path(paths[0])}: no picture in it'
                            + (f' or the {len(paths) - 1} others' if paths[1:] else '') + '.')
        mapping, names = self.labels.resolve()
        labels = mapping[self.table.labels]
        if self.class_names and (names is not None or labels.max() >= len(self.class_names)):
            raise UserError(f'{show_path(paths[0])}: labels and the {len(self.class_names)} class '
                            'names of its schema do not fit.')
        places = {name: np.concatenate(arrays).astype(PLACES[name])
                  for name, arrays in self.places.items()}
        return Index(self.table.replace_labels(labels), places,
                     {'class_names': self.class_names or names})


def _copy_file(path, number, image_column, label_column, columns, target):
    """Append the pictures of one file to the open file `target`, and the rest to columns."""
    pyarrow, parquet = _import_pyarrow()
    with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
        schema = file.schema_arrow
        image = _find_column(schema, image_column, IMAGE_NAMES, 'IMAGE', path)
        label = _find_column(schema, label_column, LABEL_NAMES, 'LABEL', path)
        names = _read_class_names(schema, label)
        if columns.class_names is not False and columns.class_names != names:
            raise UserError(f'{show_path(path)} has other class names than the files before it.')
        columns.class_names = names
        kind = schema.field(label).type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_string(kind)
                or pyarrow.types.is_large_string(kind)):
            raise UserError(f'{show_path(path)}: column {label!r} is {kind}; labels are integers '
                            'or text.')
        row = 0
        with tqdm(total=file.metadata.num_rows, unit='img', disable=not is_terminal(sys.stderr),
                  desc=f'Reading {show_path(os.path.basename(path))}') as bar:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[image, label]):
                pictures, files = _split_images(batch.column(0), path, image)
                sizes = []
                for picture, name, text in zip(pictures, files, batch.column(1)):
                    where = f'{show_path(path)}: row {row + len(sizes)}'
                    data = picture.as_buffer() if picture.is_valid else None
                    if data is None or not text.is_valid:
                        raise UserError(
                            f'{where}: no {"label" if data is not None else "picture"} in it. '
                            'Pictures must be embedded: with bytes, not a path alone.')
                    if data.size > MAX_MEMBER_BYTES:
                        raise UserError(f'{where}: {data.size:,} bytes are too many for a picture.')
                    _write(target, data)
                    sizes.append(data.size)
                    columns.table.append(os.fsencode(name or ''),
                                         columns.labels.add(str(text.as_py()), where))
                _add_places(columns, number, row, sizes)
                row += len(sizes)
                bar.update(len(sizes))


@contextlib.contextmanager
def _reading(path):
    """Turn what pyarrow raises for a damaged file into UserError."""
    pyarrow, _ = _import_pyarrow()
    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0].rstrip('.')[:200]
        raise UserError(f'{show_path(path)} is not a whole parquet file: {reason}.') from None


def _write(target, data):
    try:
        target.write(data)
    except OSError as error:
        raise _cannot_write(target.name, error) from None


def _cannot_write(path, error):
    return UserError(f'Cannot copy pictures to {show_path(path)}: {error.strerror or error}. '
                     'VIT_CACHE names another folder.')


def _add_places(columns, number, row, sizes):
    ends = columns.end + np.cumsum(sizes, dtype=np.int64)
    for name, values in (('offset', ends - sizes), ('size', np.array(sizes)),
                         ('shard', np.full(len(sizes), number)),
                         ('row', np.arange(row, row + len(sizes)))):
        columns.places[name].append(values.astype(PLACES[name]))
    columns.end = int(ends[-1]) if len(ends) else columns.end


def _split_images(column, path, name):
    """Return (scalars of encoded pictures, names or None) of a column of pictures."""
    pyarrow, _ = _import_pyarrow()
    names = [None] * len(column)
    if pyarrow.types.is_struct(column.type):
        fields = [field.name for field in column.type]
        if 'bytes' in fields:
            if 'path' in fields:
                names = column.field('path').to_pylist()
            column = column.field('bytes')
    if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
        raise UserError(f'{show_path(path)}: column {name!r} is {column.type}; pictures are '
                        'binary, or a struct with "bytes".')
    return column, names


def _find_column(schema, name, usual, key, path):
    """Return the name of a column. Raises UserError listing the columns there are."""
    found = name or next((word for word in usual if word in schema.names), '')
    if found in schema.names:
        return found
    hint = suggest(found, schema.names) if found else \
        f' Columns: {", ".join(map(show_path, schema.names[:20]))}.'
    raise UserError(f'{show_path(path)}: no column {found or usual[0]!r} (DATA.{key}_COLUMN).'
                    f'{hint}')


def _read_class_names(schema, label):
    """Return the names of a ClassLabel in the schema's metadata; None if it has none."""
    try:
        tree = json.loads((schema.metadata or {}).get(b'huggingface', b'{}'))
        names = tree['info']['features'][label]['names']
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names or None


def _check_space(paths, copy):
    folder = os.path.dirname(copy)
    needed = sum(os.path.getsize(path) for path in paths)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f'{show_path(folder)} has {free / 1e9:.1f} GB free; a copy of the pictures '
                        f'takes about {needed / 1e9:.1f} GB. VIT_CACHE names another folder.')


def _is_possible(index, paths, copy):
    """Tell whether the numbers of an index fit the copy."""
    files = index.places['shard']
    where = {name: index.places[name] for name in ('offset', 'size')}
    return (os.path.exists(copy) and files.min() >= 0 and files.max() < len(paths)
            and names_fit(index.table.labels, index.header['class_names'])
            and places_fit(where, np.array([os.path.getsize(copy)])))


def _import_pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('Reading parquet files needs pyarrow: pip install pyarrow') from None
    return pyarrow, pyarrow.parquet
