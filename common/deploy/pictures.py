"""Which pictures the arguments name, and where what is made of them is written."""

import contextlib
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from common.data.archives import list_pictures
from common.data.folders import count_endings, walk
from common.data.images import (
    decode_image,
    is_image_name,
    list_remedies,
    read_image,
    show_path,
)
from common.data.readers import Reader
from common.errors import RunError, UserError
from common.files import Identity, identify, open_regular, replace_file

ARCHIVES = ('.zip', '.tar')
# Endings of weights, models, arrays, archives and configs, which a text with predictions must not
# be written over by a slip.
NO_TEXT = (*ARCHIVES, '.tgz', '.gz', '.pdparams', '.pdopt', '.pdmodel', '.pdiparams',
           '.safetensors', '.npz', '.npy', '.pth', '.pt', '.bin', '.ckpt', '.onnx', '.xml',
           '.yaml', '.yml')
MARK = 'written by vit-paddle'  # in pictures of ours
MARK_WITHIN = 4096              # bytes from the start


class Picture(NamedTuple):
    """A picture's path, and its path below the folder or in the archive that was asked for.

    reader, row: of a picture in an archive, whose path is archive and member.
    """

    path: str
    name: str
    reader: Reader | None = None
    row: int = 0

    def read(self, upright: bool = False) -> Image.Image:
        """Return the picture, RGB; upright: as EXIF's orientation says. Raises ImageError."""
        if self.reader is None:
            return read_image(self.path, upright)
        return decode_image(self.reader.read_bytes(self.row), self.path, upright)


def find_pictures(arguments: Iterable[str], lines: Iterable[str],
                  left_out: Counter | None = None) -> Iterator[Picture]:
    """Yield the Picture of every argument, in order; nothing is read ahead.

    arguments: files, folders and .zip and .tar files (searched through), globs, and "-" for
    `lines`, paths, one a line. left_out: counts the endings of the files in folders and archives
    that are no pictures. Raises UserError for a pattern, a folder or an archive without pictures.
    """
    left_out = Counter() if left_out is None else left_out
    for argument in arguments:
        if argument == '-':
            yield from (Picture(path, os.path.basename(path))
                        for path in (line.rstrip('\r\n') for line in lines) if path)
        elif os.path.isdir(argument):
            yield from _search(argument, left_out)
        elif argument.lower().endswith(ARCHIVES) and os.path.isfile(argument):
            yield from _open_archive(argument, left_out)
        elif glob.has_magic(argument) and not os.path.exists(argument):
            yield from _match(argument)
        else:
            yield Picture(argument, os.path.basename(argument))


def list_inputs(arguments: Sequence[str], folder: str | None
                ) -> tuple[int | None, set[Identity] | None]:
    """Return (number of pictures, their files); (None, None): not known beforehand.

    folder: of the output; where it is None or not there yet, no files are returned.
    """
    if '-' in arguments:
        return None, None
    may_meet = folder is not None and os.path.exists(folder)
    count, inputs = 0, set()
    for picture in find_pictures(arguments, ()):
        count += 1
        if may_meet:
            with contextlib.suppress(OSError):          # in an archive, or missing
                inputs.add(identify(os.stat(picture.path)))
    return count, inputs


def check_output_file(path: str | None, arguments: Sequence[str]) -> None:
    """Raise UserError for a file for text that is one of the pictures, or called like weights."""
    if path is None:
        return
    if path.lower().endswith(NO_TEXT):
        raise UserError(f'-output={show_path(path)}: predictions are text, and a file of this '
                        'ending holds something else. Take .csv, .jsonl or .txt.')
    if not os.path.exists(path):
        return
    status = identify(os.stat(path))
    inputs = list_inputs(arguments, os.path.dirname(path) or '.')[1] or set()
    for argument in arguments:                          # an archive itself
        with contextlib.suppress(OSError):
            inputs.add(identify(os.stat(argument)))
    if is_image_name(os.path.basename(path)) or status in inputs:
        raise UserError(f'-output={show_path(path)} is a picture, which would be written over.')


def save_output(image: Image.Image, path: str) -> None:
    """Write a picture of ours, by which it is known again. Raises RunError.

    It takes the place of the file of this name when it is whole; no link is followed.
    """
    try:
        with replace_file(path) as file:
            if path.endswith('.png'):
                note = PngInfo()
                note.add_text('Software', MARK)
                image.save(file, 'PNG', pnginfo=note)
            else:
                image.save(file, 'JPEG', quality=90, comment=MARK.encode())
    except OSError as error:
        raise RunError(f'Cannot write {show_path(path)}: {error.strerror or error}.') from None


def is_own_output(path: str) -> bool:
    """Tell whether a file was written by save_output."""
    try:
        with open_regular(path) as file:
            return not os.path.islink(path) and MARK.encode() in file.read(MARK_WITHIN)
    except OSError:
        return False


class OutputNames:
    """Paths in an output folder, no two the same, and none of a file that is not our own output.

    inputs: files of the pictures, which are not written over either; None where they are not
    known beforehand: then no file is written over.
    """

    def __init__(self, folder: str, inputs: AbstractSet[Identity] | None = frozenset()):
        self.folder = folder
        self.taken = set()
        self.inputs = inputs

    def make(self, name: str, extension: str) -> str:
        """Return <folder>/<name><extension>, numbered if it is taken; its folder is made."""
        name = os.path.join(*(part for part in name.split(os.sep) if part not in ('', '.', '..')))
        path = os.path.join(self.folder, name + extension)
        number = 2
        while path in self.taken:
            path = os.path.join(self.folder, f'{name}-{number}{extension}')
            number += 1
        self.taken.add(path)
        if os.path.lexists(path):
            self._check_own(path)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except OSError as error:
            raise UserError(f'Cannot write to {show_path(self.folder)}: '
                            f'{error.strerror}.') from None
        return path


    def _check_own(self, path):
        """Raise UserError for a file that must not be written over."""
        if not is_own_output(path):
            raise UserError(f'{show_path(path)} would be written over, which this script has not '
                            'made. Choose another folder for the output, or move it away.')
        if self.inputs is None or identify(os.stat(path)) in self.inputs:
            raise UserError(f'{show_path(path)} would be written over, which is one of the '
                            'pictures, or may be. Choose another folder for the output.')


def _search(folder, left_out):
    found, others = False, Counter()
    for parent, listing in walk(folder):
        others += count_endings(listing.others)
        for name in listing.pictures:
            found = True
            path = os.path.join(parent, name)
            yield Picture(path, os.path.relpath(path, folder))
    if not found:
        _refuse_pictureless(f'{show_path(folder)}: no pictures in this folder.', others)
    left_out.update(others)


def _open_archive(path, left_out):
    reader, others = list_pictures(path)
    for index, name in enumerate(reader.table.iterate_names()):
        yield Picture(reader.describe(index), os.fsdecode(name).replace('/', os.sep), reader, index)
    if not len(reader.table):
        _refuse_pictureless(f'{show_path(path)}: no pictures in this archive.',
                            count_endings(others))
    left_out.update(count_endings(others))


def _refuse_pictureless(problem, endings):
    raise UserError(' '.join([problem, *(f'{remedy}.' for remedy in list_remedies(endings))]))


def _match(pattern):
    found = False
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if os.path.isfile(path):
            found = True
            yield Picture(path, os.path.basename(path))
    if not found:
        raise UserError(f'{show_path(pattern)}: no file matches.')
