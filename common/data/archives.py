"""A .zip or .tar file with the layout of a folder of images, read in place.

Its index gives the pictures in the order of the unpacked folder, under the same names, so that
training from either is the same.
"""

import os
import weakref
from array import array
from collections import Counter, defaultdict
from typing import TypeVar

import numpy as np

from common.data.folders import IGNORED, count_endings, find_part, is_spelling
from common.data.images import is_image_name, list_extensions, show_path
from common.data.index_file import Index, open_index
from common.data.lists import (
    LIST_NAMES,
    choose_name,
    parse_list,
    refuse_pictureless,
    warn_left_out,
)
from common.data.members import (
    DEFLATED,
    MAX_MEMBER_BYTES,
    Member,
    MemberFiles,
    check_picture,
    describe_member,
    list_members,
    read_tar_member,
    read_zip_member,
    recognise_archive,
)
from common.data.readers import Reader
from common.data.table import MAX_LABEL, SampleTable, as_slice
from common.errors import UserError

SomeMembers = TypeVar('SomeMembers', bound='MemberReader')
PLACES = {
    'tar': {'offset': np.int64, 'size': np.uint32},
    'zip': {'offset': np.int64, 'size': np.uint32, 'packed': np.uint32, 'crc': np.uint32,
            'method': np.uint8}}
PARTS = ('train', 'val')
LISTS = {'train': LIST_NAMES[True], 'val': LIST_NAMES[False]}
MAX_LIST_BYTES = 1 << 30
ROWS_AT_ONCE = 1 << 20          # of an index that are checked, so that copies stay small

# Indexes that readers of this process use, by path, size and time of their archives.
_IN_USE: 'weakref.WeakValueDictionary[tuple, Index]' = weakref.WeakValueDictionary()


class MemberReader(Reader):
    """Pictures that are members of archives. places: {name: array [N]}, where their bytes lie."""

    def __init__(self, table: SampleTable, places: dict[str, np.ndarray], root: str, origin: str,
                 paths: list[str]):
        super().__init__(table, root, origin)
        self.places = places
        self.files = MemberFiles(paths)

    def select(self: SomeMembers, indices: np.ndarray | slice) -> SomeMembers:
        """Return a reader of the samples `indices`, in that order."""
        part = super().select(indices)
        part.places = select_places(self.places, indices)
        return part


class ArchiveReader(MemberReader):
    """Pictures in one .zip or .tar file. prefix: of the names of its members."""

    def __init__(self, table: SampleTable, places: dict[str, np.ndarray], path: str, kind: str,
                 prefix: bytes):
        super().__init__(table, places, path, show_path(path), [path])
        self.kind = kind
        self.prefix = prefix
        self.index: Index | None = None

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded picture. Raises ImageError naming archive and member."""
        where = self.describe(index)
        offset, size = int(self.places['offset'][index]), int(self.places['size'][index])
        if self.kind == 'tar':
            return read_tar_member(self.files, 0, offset, size, where)
        packed, crc, method = (int(self.places[name][index])
                               for name in ('packed', 'crc', 'method'))
        name = self.prefix + self.table.name(index)
        return read_zip_member(
            self.files, Member(name, False, offset, size, packed, crc, method), where)

    def describe(self, index: int) -> str:
        """Return archive and member, printable."""
        return describe_member(self.root, self.prefix + self.table.name(index))


class ArchiveTree:
    """An archive as a tree of folders: what common.data.trees.FolderTree is for a folder."""

    def __init__(self, path: str):
        self.path = path
        self.kind = recognise_archive(path)
        index = self._open_index()
        self.parts = index.header['parts']          # {part: [first, stop, class names]}
        self.lists = index.header['lists']          # {part: [first, stop]}
        self.folders = index.header['folders']      # {part: its folder}
        self.loose = index.header['loose']          # {part: pictures in no class folder}
        self.endings = index.header['endings']      # {part: {ending: files left out}}
        self._all = ArchiveReader(index.table, index.places, path, self.kind,
                                  os.fsencode(index.header['prefix']))
        self._all.index = index                     # for as long as a reader is in use

    def _open_index(self) -> Index:
        """Return the index, the same one for training and validation of a process."""
        path, info = self.path, os.stat(self.path)
        key = path, info.st_size, info.st_mtime_ns
        index = _IN_USE.get(key)
        if index is None:
            # With other endings of pictures an archive holds other pictures.
            kind = ' '.join(['archive', self.kind, *list_extensions()])
            index = open_index(kind, [path], PLACES[self.kind],
                               lambda: build_archive_index(path, self.kind),
                               lambda index: _is_possible(index, info.st_size))
            _IN_USE[key] = index
        return index

    def describe(self, part: str = '') -> str:
        """Return the archive, or a folder in it, printable."""
        folder = self.folders.get(part, part)
        return describe_member(self.path, os.fsencode(folder)) if part else show_path(self.path)

    def has_list(self, part: str) -> bool:
        """Tell whether the archive holds the list file of "train" or "val"."""
        return part in self.lists

    def read_list(self, part: str, num_classes: int) -> ArchiveReader:
        """Return the pictures that a list file names. Raises UserError for a label too large."""
        reader = self._all.select(slice(*self.lists[part]))
        label = int(reader.table.labels.max())
        if label >= num_classes:
            raise UserError(
                f'{self.describe(LISTS[part])}: label {label} is outside the {num_classes} '
                f'classes (0 to {num_classes - 1}). Check the list or MODEL.NUM_CLASSES.')
        return reader

    def has_folder(self, part: str) -> bool:
        """Tell whether there is a folder "train" or "val" at the root."""
        return part in self.parts

    def scan_classes(self, part: str) -> list[str]:
        """Return the class names of a part, sorted; of part '' those at the root."""
        return self.parts[part][2] if part in self.parts else []

    def count_loose(self, part: str) -> int:
        """Return how many pictures lie in a part and in no class folder."""
        return self.loose.get(part, 0)

    def scan(self, part: str, class_names: list[str]) -> ArchiveReader:
        """Return the pictures of a part, class by class. Raises UserError if there is none."""
        first, stop, classes = self.parts[part]
        if first == stop:
            refuse_pictureless(self.describe(part), Counter(self.endings[part]))
        reader = self._all.select(slice(first, stop))
        labels, used = reader.table.labels, set()
        for row in range(0, len(labels), ROWS_AT_ONCE):
            used.update(np.unique(labels[row:row + ROWS_AT_ONCE]).tolist())
        warn_left_out(self.describe(part), Counter(self.endings[part]),
                      [name for label, name in enumerate(classes) if label not in used],
                      self.loose[part])
        return reader


def select_places(places: dict[str, np.ndarray], indices: np.ndarray | slice
                  ) -> dict[str, np.ndarray]:
    """Return the places of the samples `indices`; of neighbours without a copy."""
    part = as_slice(indices)
    return {name: array[part] for name, array in places.items()}


def list_pictures(path: str) -> tuple[ArchiveReader, list[str]]:
    """Return (every picture in an archive, names of its other files).

    Pictures may be in any folders; their names are sorted.
    """
    kind = recognise_archive(path)
    found = _Found(path, kind)
    for member in list_members(path, kind):
        found.add(member)
    names = list(found.table.iterate_names())
    found.check_twice(names)
    order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
    places = {name: np.array(values) for name, values in found.places.items()}
    reader = ArchiveReader(found.table, places, path, kind, b'').select(order)
    return reader, [os.fsdecode(name) for name in found.others]


def build_archive_index(path: str, kind: str) -> Index:
    """Read the list of an archive's members into an Index. Raises UserError."""
    found = _Found(path, kind)
    for member in list_members(path, kind):
        found.add(member)
    return found.build()


class _Found:
    """What is noted of the members of an archive while they are listed."""

    def __init__(self, path, kind):
        self.path = path
        self.kind = kind
        self.table = SampleTable()
        self.places = {name: array(np.dtype(dtype).char)
                       for name, dtype in PLACES[kind].items()}
        self.folders = defaultdict(set)         # {depth: names of folders}, depths 1 to 3
        self.lists = {}                         # {name: Member} of what may be a list file
        self.others = []                        # names of files that are no pictures

    def add(self, member):
        parts = member.name.split(b'/')
        if any(part.startswith(b'.') or os.fsdecode(part) in IGNORED for part in parts):
            return
        for depth in range(1, min(len(parts) + member.is_folder, 4)):
            self.folders[depth].add(b'/'.join(parts[:depth]))
        if member.is_folder:
            return
        if os.fsdecode(parts[-1]) in LISTS.values() and len(parts) <= 2:
            self.lists[member.name] = member
        if is_image_name(os.fsdecode(parts[-1])):
            check_picture(self.path, member)
            self.table.append(member.name, 0)
            for name, values in self.places.items():
                values.append(getattr(member, name))
        else:
            self.others.append(member.name)

    def build(self):
        prefix = self._find_prefix()
        names = [name[len(prefix):] for name in self.table.iterate_names()]
        self.check_twice(names)
        depth = 1 + bool(prefix)
        tops = {name[len(prefix):] for name in self.folders[depth]}
        lists = {part: self.lists[prefix + name.encode()] for part, name in LISTS.items()
                 if prefix + name.encode() in self.lists}
        index = _Builder(names, self.places)
        header = {'prefix': os.fsdecode(prefix), 'folders': {}, 'parts': {}, 'lists': {},
                  'loose': {}, 'endings': {}}
        if lists:
            rows = {name: row for row, name in enumerate(names)}
            for part, member in lists.items():
                header['lists'][part] = index.add(*self._read_list(part, member, rows))
            return index.finish(header)
        header['folders'] = self._find_parts(tops, prefix, names)
        for part in header['folders'] or ['']:
            below = os.fsencode(header['folders'][part]) + b'/' if part else b''
            start = prefix + below
            at = depth + bool(part)
            classes = sorted(os.fsdecode(name[len(start):]) for name in self.folders[at]
                             if name.startswith(start))
            rows, labels = _sort_rows(names, below, classes)
            header['parts'][part] = [*index.add(rows, labels), classes]
            header['endings'][part] = count_endings(
                os.fsdecode(name) for name in self.others
                if name.startswith(start) and b'/' in name[len(start):])
            header['loose'][part] = sum(
                name.startswith(below) and b'/' not in name[len(below):] for name in names)
        return index.finish(header)

    def _find_parts(self, tops, prefix, names):
        """Return {part: the folder that holds it} of those that there are."""
        def look(folder):
            below = os.fsencode(folder) + b'/'
            return (any(n.startswith(below) and n.count(b'/') == 1 for n in names),
                    any(name.startswith(prefix + below)
                        for name in self.folders[2 + bool(prefix)]))

        beside = [os.fsdecode(name) for name in tops]
        found = {part: find_part(part, beside, look) for part in PARTS}
        return {part: folder for part, folder in found.items() if folder is not None}

    def _find_prefix(self):
        """Return the one folder, with its slash, that everything lies in; b'' if there is none."""
        tops = self.folders[1]
        if len(tops) != 1:
            return b''
        top, = tops
        if is_spelling(os.fsdecode(top), *PARTS):
            return b''
        prefix = top + b'/'
        names = self.table.iterate_names()
        is_root = all(name.startswith(prefix) and name.count(b'/') >= 2 for name in names)
        has_parts = any(name.startswith(prefix)
                        and is_spelling(os.fsdecode(name[len(prefix):]), *PARTS)
                        for name in self.folders[2])
        has_lists = any(name.startswith(prefix) for name in self.lists)
        return prefix if is_root or has_parts or has_lists else b''

    def check_twice(self, names):
        if len(set(names)) < len(names):
            seen = set()
            for name in names:
                if name in seen:
                    raise UserError(f'{describe_member(self.path, name)}: is in the archive more '
                                    'than once. Pack it anew.')
                seen.add(name)

    def _read_list(self, part, member, rows):
        """Return (rows, labels) of a list file in the archive."""
        source = describe_member(self.path, member.name)
        if member.size > MAX_LIST_BYTES or member.encrypted:
            raise UserError(f'{source}: cannot be read: too large, or encrypted.')
        files = MemberFiles([self.path])
        data = read_tar_member(files, 0, member.offset, member.size, source) \
            if self.kind == 'tar' else read_zip_member(files, member, source)
        chosen, labels = [], []
        for line, path, label in parse_list(data.splitlines(), source, MAX_LABEL + 1):
            name = choose_name(path, rows.__contains__, f'{source}, line {line}')
            row = rows.get(name.removeprefix(b'./'))
            if row is None:
                raise UserError(f'{source}, line {line}: no such image file in the archive: '
                                f'{show_path(name)}.')
            chosen.append(row)
            labels.append(label)
        if not chosen:
            raise UserError(f'{source} lists no image.')
        return np.array(chosen), np.array(labels, np.int32)


class _Builder:
    """Puts rows of what was found into the order of an index."""

    def __init__(self, names, places):
        self.names = names
        self.sources = {name: np.array(values) for name, values in places.items()}
        self.table = SampleTable()
        self.rows = []

    def add(self, rows, labels):
        """Append rows with labels. Returns [first, stop] of their places in the index."""
        first = len(self.table)
        for row, label in zip(rows.tolist(), labels.tolist()):
            self.table.append(self.names[row], label)
        self.rows.append(rows)
        return [first, len(self.table)]

    def finish(self, header):
        rows = np.concatenate(self.rows) if self.rows else np.zeros(0, np.int64)
        return Index(self.table, {name: values[rows] for name, values in self.sources.items()},
                     header)


def _sort_rows(names, below, classes):
    """Return (rows, labels) of the pictures in class folders: by class, then by name."""
    numbers = {os.fsencode(name): label for label, name in enumerate(classes)}
    found = []
    for row, name in enumerate(names):
        if name.startswith(below):
            folder, slash, _ = name[len(below):].partition(b'/')
            if slash:
                found.append((numbers[folder], os.fsdecode(name), row))
    found.sort()
    return (np.array([row for *_, row in found], np.int64),
            np.array([label for label, *_ in found], np.int32))


def _is_possible(index, size):
    """Tell whether the numbers of an index fit an archive of `size` bytes."""
    header, count = index.header, len(index.table)
    spans = [span[:2] for span in (*header['parts'].values(), *header['lists'].values())]
    labels = index.table.labels
    return (isinstance(header['prefix'], str)
            and all(isinstance(name, str) for name in header['folders'].values())
            and header['loose'].keys() == header['parts'].keys()
            and all(type(count) is int for count in header['loose'].values())
            and all(0 <= first <= stop <= count for first, stop in spans)
            and header['endings'].keys() == header['parts'].keys()
            and all(type(n) is int for found in header['endings'].values() for n in found.values())
            and all(isinstance(name, str) for _, _, names in header['parts'].values()
                    for name in names)
            and all(not len(labels[first:stop]) or
                    labels[first:stop].min() >= 0 and labels[first:stop].max() < len(names)
                    for first, stop, names in header['parts'].values())
            and places_fit(index.places, np.array([size])))


def places_fit(places: dict[str, np.ndarray], sizes: np.ndarray) -> bool:
    """Tell whether all members lie in their archives. sizes: int64 [archives], bytes of each."""
    for first in range(0, len(places['offset']), ROWS_AT_ONCE):
        part = {name: values[first:first + ROWS_AT_ONCE] for name, values in places.items()}
        length = part['packed' if 'packed' in part else 'size'].astype(np.int64)
        numbers = part.get('shard', np.zeros(len(length), np.int32))
        if (numbers.min() < 0 or numbers.max() >= len(sizes) or part['offset'].min() < 0
                or (part['offset'] + length > sizes[numbers]).any()
                or part['size'].max() > MAX_MEMBER_BYTES
                or 'method' in part and not np.isin(part['method'], (0, DEFLATED)).all()):
            return False
    return True
