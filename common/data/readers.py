"""The seam between a data set and where its bytes lie: an index, and a reader of it.

A new kind of storage is a Reader: it has a table of names and labels, and returns
the bytes of a sample. Order, resuming, decoding and augmentation do not know it.
"""

import copy
import io
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image

from common.data.images import ImageError, decode_image, open_image, read_image, show_path
from common.data.table import SampleTable
from common.errors import UserError

SomeReader = TypeVar('SomeReader', bound='Reader')
SomeListedReader = TypeVar('SomeListedReader', bound='ListedReader')

CHECKED_PATHS = 64          # images of a list that are looked for before training starts


class Reader:
    """Samples of a table, and how the bytes of each are fetched.

    table: names and labels. origin: what the log names as the source, printable.
    root: bytes, the folder or archive. upright: whether pictures are turned as EXIF's orientation
    says. Worker processes inherit the reader, so a file that it keeps open must be read without a
    position of its own (os.pread).
    """

    upright = False

    def __init__(self, table: SampleTable, root: str | bytes, origin: str):
        self.table = table
        self.root = os.fsencode(root)
        self.origin = origin

    def read_bytes(self, index: int) -> bytes:
        """Return the encoded picture. Raises ImageError naming it."""
        raise NotImplementedError

    def read_image(self, index: int) -> Image.Image:
        """Return the picture of a sample, RGB. Raises ImageError naming it."""
        return decode_image(self.read_bytes(index), self.describe(index), self.upright)

    def open_image(self, index: int) -> Image.Image:
        """Return the picture with its pixels not decoded yet. Raises what Pillow raises."""
        return open_image(io.BytesIO(self.read_bytes(index)))

    def describe(self, index: int) -> str:
        """Return the path of a sample, or archive and member, printable."""
        raise NotImplementedError

    def locate(self, index: int) -> str:
        """Return where the sample is listed, such as "val_list.txt, line 7"; '' if nowhere."""
        return ''

    def check(self) -> None:
        """Raise UserError if files are missing that should be there."""

    def select(self: SomeReader, indices: np.ndarray | slice) -> SomeReader:
        """Return a reader of the samples `indices`, in that order."""
        part = copy.copy(self)
        part.table = self.table.select(indices)
        return part


class FileReader(Reader):
    """Pictures in files of their own; names are paths relative to the root, or absolute."""

    def __init__(self, table: SampleTable, root: str | bytes):
        super().__init__(table, root, show_path(root))

    def path(self, index: int) -> bytes:
        """Return the full path of a sample."""
        return os.path.join(self.root, self.table.name(index))

    def read_image(self, index: int) -> Image.Image:
        """Return the picture of a sample, RGB. Raises ImageError naming it."""
        return read_image(self.path(index), self.upright)

    def open_image(self, index: int) -> Image.Image:
        """Return the picture with its pixels not decoded yet. Raises what Pillow raises."""
        return open_image(self.path(index))

    def describe(self, index: int) -> str:
        """Return the path, printable."""
        return show_path(self.path(index))


class ListedReader(FileReader):
    """Pictures in files that a text file names, one a row.

    listing: that file. find_line: callable (row from 0) -> its line from 1, for messages.
    """

    def __init__(self, table: SampleTable, root: str | bytes, listing: str,
                 find_line: Callable[[int], int]) -> None:
        super().__init__(table, root)
        self.origin = self.listing = listing
        self._find_line = find_line
        self._rows: np.ndarray | None = None        # of the listing, where a part is selected

    def read_image(self, index: int) -> Image.Image:
        """Return the picture of a sample, RGB. Raises ImageError naming it and its line."""
        try:
            return super().read_image(index)
        except ImageError as error:
            if os.path.exists(self.path(index)):
                raise
            raise ImageError(f'{error} ({self.locate(index)})') from None

    def locate(self, index: int) -> str:
        """Return the listing and the line of a sample."""
        line = self._find_line(index if self._rows is None else int(self._rows[index]))
        return f'{self.listing}, line {line}' if line else self.listing

    def check(self) -> None:
        """Look for some of the listed files, spread over the list: all may take minutes."""
        for index in np.unique(np.linspace(0, len(self.table) - 1, CHECKED_PATHS).astype(int)):
            if not os.path.exists(self.path(index)):
                raise UserError(
                    f'{self.locate(index)}: no such image file: {self.describe(index)}. '
                    f'Paths are relative to {show_path(self.root)}.')

    def select(self: SomeListedReader, indices: np.ndarray | slice) -> SomeListedReader:
        """Return a reader of the samples `indices`, in that order."""
        part = super().select(indices)
        rows = np.arange(len(self.table)) if self._rows is None else self._rows
        part._rows = rows[indices]
        return part
