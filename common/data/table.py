"""Names and labels of a data set's samples, kept in little memory."""

import zlib
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from common.errors import UserError

MAX_LABEL = 2**31 - 1
MAX_NAME = 2**16 - 1        # bytes of a name
BLOCK = 256                 # samples between two places that are known without adding lengths


class SampleTable:
    """Names (bytes) and labels of samples: the names' own bytes and 6 bytes more a sample.

    Made empty and filled by append(), or from arrays: names uint8 [bytes], lengths uint16 [N],
    labels int32 [N]. A name is a path as it was given, and identifies its sample.
    """

    def __init__(self, names: np.ndarray | None = None, lengths: np.ndarray | None = None,
                 labels: np.ndarray | None = None):
        # Growing arrays, or NumPy's of a finished table.
        self._names: Any = bytearray() if names is None else names
        self._lengths: Any = array('H') if lengths is None else lengths
        self._labels: Any = array('i') if labels is None else labels
        self._starts: np.ndarray | None = None      # of each block, int64; made when needed

    def append(self, name: bytes, label: int) -> None:
        """Add a sample. Raises UserError for a name that is too long to be one."""
        if len(name) > MAX_NAME:
            raise UserError(f'A name of {len(name):,} bytes is too long: {name[:40]!r}...')
        self._names += name
        self._lengths.append(len(name))
        self._labels.append(label)
        self._starts = None

    def __len__(self) -> int:
        return len(self._lengths)

    def name(self, index: int) -> bytes:
        """Return the name of a sample, as it was given."""
        if self._starts is None:
            self._starts = self._find_starts()
        index = range(len(self))[index]
        block = index // BLOCK
        start = int(self._starts[block]) + int(self.lengths[block * BLOCK:index].sum())
        return bytes(self._names[start:start + int(self._lengths[index])])

    def iterate_names(self) -> Iterable[bytes]:
        """Yield the name of every sample, in order."""
        start = 0
        for length in self._lengths:
            yield bytes(self._names[start:start + int(length)])
            start += int(length)

    @property
    def names(self) -> np.ndarray:
        """The bytes of all names, uint8."""
        return np.frombuffer(self._names, np.uint8)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each name, uint16 [N]."""
        return np.frombuffer(self._lengths, np.uint16)

    @property
    def labels(self) -> np.ndarray:
        """Labels, int32 [N]."""
        return np.frombuffer(self._labels, np.int32)

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        return sum(memoryview(part).nbytes for part in (self._names, self._lengths, self._labels))

    def checksum(self) -> int:
        """Return the CRC-32 of names and labels."""
        return zlib.crc32(self.labels.data, zlib.crc32(self.names.data))

    def select(self, indices: np.ndarray | slice) -> 'SampleTable':
        """Return a table of the samples `indices`, in that order; of neighbours without a copy."""
        part = as_slice(indices)
        if isinstance(part, slice):
            start = int(self.lengths[:part.start].sum(dtype=np.int64))
            size = int(self.lengths[part].sum(dtype=np.int64))
            return SampleTable(self.names[start:start + size], self.lengths[part],
                               self.labels[part])
        chosen = SampleTable()
        labels = self.labels
        for index in part:
            chosen.append(self.name(index), labels[index])
        return chosen

    def replace_labels(self, labels: np.ndarray) -> 'SampleTable':
        """Return a table of the same names with other labels, int32 [N]."""
        return SampleTable(self.names, self.lengths, labels)

    def _find_starts(self) -> np.ndarray:
        sizes = np.add.reduceat(self.lengths, np.arange(0, len(self), BLOCK), dtype=np.int64)
        return np.concatenate([[0], np.cumsum(sizes)[:-1]])


def as_slice(indices: np.ndarray | slice) -> np.ndarray | slice:
    """Return the slice that indices are where they follow one another, else the indices."""
    if isinstance(indices, slice):
        return indices
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1 and (
            np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def choose_part(table: SampleTable, fraction: float, is_train: bool) -> np.ndarray:
    """Return the indices of the training or the validation part of a table that has one part.

    Of each class, the share `fraction` (rounded; at least one image is left on
    each side of a class of two or more) goes to validation, chosen by a checksum
    of the name: the same on every machine, and whatever the seed of the run.
    """
    labels = table.labels
    checksums = np.fromiter(
        (zlib.crc32(name) for name in table.iterate_names()), np.uint32, len(table))
    is_val = np.zeros(len(table), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(len(members) * fraction)
        if len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        is_val[members[np.argsort(checksums[members], kind='stable')[:count]]] = True
    return np.flatnonzero(is_val != is_train)
