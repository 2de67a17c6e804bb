"""Pictures in .tar shards with a label beside each, as WebDataset has them, read in place.

A sample is the members of one name up to its first dot: KEY.jpg with KEY.cls, KEY.json
or KEY.txt. An index of all shards gives random access, so that order, resuming and
evaluation are as exact as from folders.
"""

import json
import os
from array import array

import numpy as np
from yacs.config import CfgNode

from common.data.archives import MemberReader, places_fit
from common.data.images import ALL_EXTENSIONS, show_path
from common.data.index_file import Index, open_index
from common.data.members import (
    Member,
    MemberFiles,
    bar_of,
    check_picture,
    describe_member,
    list_members,
    read_tar_member,
    recognise_archive,
)
from common.data.parts import Labelled, LabelTexts, find_files
from common.data.table import SampleTable
from common.errors import UserError

PLACES = {'offset': np.int64, 'size': np.uint32, 'shard': np.int32}
LABEL_ENDINGS = ('cls', 'json', 'txt')          # the first that a sample has holds its label
JSON_KEYS = ('label', 'cls', 'class', 'class_name')
MAX_LABEL_BYTES = 1 << 20
IMAGE_ENDINGS = tuple(ending[1:] for ending in ALL_EXTENSIONS)


class ShardReader(MemberReader):
    """Pictures in several .tar files."""

    def __init__(self, table: SampleTable, places: dict[str, np.ndarray], paths: list[str]):
        folder = os.path.dirname(paths[0])
        origin = show_path(paths[0]) if len(paths) == 1 else \
            f'{len(paths):,} shards in {show_path(folder)}'
        super().__init__(table, places, folder, origin, paths)

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded picture. Raises ImageError naming shard and member."""
        file, offset, size = (int(self.places[name][index]) for name in ('shard', 'offset', 'size'))
        return read_tar_member(self.files, file, offset, size, self.describe(index))

    def describe(self, index: int) -> str:
        """Return shard and member, printable."""
        path = self.files.paths[int(self.places['shard'][index])]
        return describe_member(path, self.table.name(index))


def load_shards(config: CfgNode) -> dict[str, Labelled]:
    """Return the parts of the shards that the config names. Raises UserError."""
    parts = find_files(config.DATA.DATA_PATH, config.DATA.VAL_PATH, '.tar')
    return {part: open_shards(paths, config.DATA.LABEL_COLUMN) for part, paths in parts.items()}


def open_shards(paths: list[str], label_key: str = '') -> Labelled:
    """Return the pictures of shards with their labels. label_key: of .json members."""
    index = open_index(f'shards {label_key}', paths, PLACES, lambda: build_index(paths, label_key),
                       lambda index: _is_possible(index, paths))
    return Labelled(ShardReader(index.table, index.places, paths), index.header['class_names'])


def build_index(paths: list[str], label_key: str) -> Index:
    """Read the lists of members, and the labels, of shards into an Index. Raises UserError."""
    table, labels = SampleTable(), LabelTexts()
    places = {name: array(np.dtype(dtype).char) for name, dtype in PLACES.items()}
    with bar_of(paths) as bar:
        for number, path in enumerate(paths):
            for name, member, label in _read_shard(path, label_key, bar):
                table.append(name, labels.add(*label))
                for place, value in (('offset', member.offset), ('size', member.size),
                                     ('shard', number)):
                    places[place].append(value)
    if not len(table):
        raise UserError(f'{show_path(paths[0])}: no picture in this shard'
                        + (f' or the {len(paths) - 1} others' if paths[1:] else '') + '.')
    mapping, class_names = labels.resolve()
    return Index(table.replace_labels(mapping[table.labels]),
                 {name: np.array(values) for name, values in places.items()},
                 {'class_names': class_names})


def _read_shard(path, label_key, bar):
    """Yield (name, Member, (label, where it stands)) of a shard's samples, in its order."""
    kind = recognise_archive(path)
    if kind != 'tar':
        raise UserError(f'{show_path(path)} is a .{kind} file; shards are .tar files.')
    samples: dict[bytes, dict[str, Member]] = {}
    for member in list_members(path, kind, bar):
        folder, _, name = member.name.rpartition(b'/')
        if member.is_folder or name.startswith(b'.'):
            continue
        key, _, ending = name.partition(b'.')
        key = folder + b'/' + key if folder else key
        sample = samples.setdefault(key, {})
        ending = os.fsdecode(ending).lower()
        if ending in sample:
            raise UserError(f'{describe_member(path, member.name)}: is in the shard more than '
                            'once.')
        sample[ending] = member
    files = MemberFiles([path])
    for key, sample in samples.items():
        pictures = [ending for ending in sample if ending.rpartition('.')[2] in IMAGE_ENDINGS]
        where = describe_member(path, key)
        if len(pictures) > 1:
            raise UserError(f'{where}: {len(pictures)} pictures in one sample. A sample is what '
                            'has the same name up to the first dot.')
        if not pictures:
            if any(ending in sample for ending in LABEL_ENDINGS):
                raise UserError(f'{where}: a label without a picture.')
            continue
        picture = sample[pictures[0]]
        check_picture(path, picture)
        ending = next((ending for ending in LABEL_ENDINGS if ending in sample), None)
        if ending is None:
            raise UserError(f'{where}: no label. Expected '
                            f'{", ".join(f".{ending}" for ending in LABEL_ENDINGS)} beside the '
                            'picture.')
        yield picture.name, picture, _read_label(files, sample[ending], ending, label_key)


def _read_label(files, member, ending, label_key):
    """Return (label as text, where it stands)."""
    where = describe_member(files.paths[0], member.name)
    if member.size > MAX_LABEL_BYTES:
        raise UserError(f'{where}: {member.size:,} bytes are too many for a label.')
    data = read_tar_member(files, 0, member.offset, member.size, where)
    try:
        text = data.decode('utf-8-sig')
        if ending != 'json':
            return text.strip('\r\n'), where
        tree = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f'{where}: not {"JSON" if ending == "json" else "UTF-8 text"}.') from None
    if isinstance(tree, dict):
        key = label_key or next((key for key in JSON_KEYS if key in tree), 'label')
        tree = tree.get(key)
    if type(tree) not in (int, str):
        raise UserError(f'{where}: expected a label, an integer or text, under '
                        f'"{label_key or JSON_KEYS[0]}" (DATA.LABEL_COLUMN).')
    return str(tree), where


def _is_possible(index, paths):
    """Tell whether the numbers of an index fit its shards."""
    return (names_fit(index.table.labels, index.header['class_names'])
            and places_fit(index.places, np.array([os.path.getsize(path) for path in paths])))


def names_fit(labels: np.ndarray, class_names: list[str] | None) -> bool:
    """Tell whether labels are numbers of the class names, if there are any."""
    if class_names is not None and not all(isinstance(name, str) for name in class_names):
        return False
    return len(labels) > 0 and labels.min() >= 0 and (
        class_names is None or int(labels.max()) < len(class_names))
