"""Reading image files to RGB: the formats of EXTENSIONS alone, and one clear error for a bad one.

Every picture of the project is opened here. Pillow tells formats by their content and knows many
more; one of them, PostScript, is a language that Ghostscript would run.
"""

import contextlib
import functools
import io
import logging
import mmap
import os
import re
from collections.abc import Iterable
from typing import IO, NamedTuple

from PIL import ExifTags, Image, features

from common.errors import UserError
from common.files import open_regular

EXTENSIONS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm',
    '.pgm',
)
# What files of these names hold, as Pillow calls it. Photographs of several frames (MPO) are JPEG.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')


class OptionalFormat(NamedTuple):
    """A format that not every installation reads.

    name: as Pillow calls it. extensions: of its files. brands: at bytes 8 to 12 of its files.
    remedy: what makes it readable.
    """

    name: str
    extensions: tuple[str, ...]
    brands: tuple[bytes, ...]
    remedy: str


OPTIONAL_FORMATS = (
    OptionalFormat('AVIF', ('.avif',), (b'avif', b'avis'),
                   'Pillow 11.3 or newer: pip install -U Pillow'),
    OptionalFormat('HEIF', ('.heic', '.heif'),
                   (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'),
                   'pillow-heif: pip install pillow-heif'),
)
ALL_EXTENSIONS = EXTENSIONS + tuple(
    extension for form in OPTIONAL_FORMATS for extension in form.extensions)
BRAND_BYTES = 12                # of a file's beginning that tell an optional format
# The turns and mirrorings that undo the values of EXIF's orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}

# Pixels that an image may have after a resize: Pillow's own limit for files, against
# "decompression bombs". 179 million pixels are 0.7 GB in memory.
MAX_PIXELS = 178_956_970
# Bytes of a file that are read at once; photographs have less.
READ_WHOLE = 32 << 20

# What pictures lose on their way to RGB of 8 bits, by kind, in words that follow a name.
LOSSES = {
    'range': 'its values are not whole numbers from 0 to 255, so that what is above becomes white '
             'and fractions black, as in timm and torchvision. Convert such pictures to 8 bits '
             'first.',
    'transparency': 'it is partly transparent, and shows the colours stored there, often black, as '
                    'in timm and torchvision. Paste such pictures onto a background first, if '
                    'that is not meant.',
}
_said = mmap.mmap(-1, len(LOSSES))      # which of them; loaders' workers, which are forks, share it
logger = logging.getLogger(__name__)


class ImageError(UserError):
    """An image is missing, is not an image, is damaged or is unreasonably large."""


def read_image(path: str | bytes, upright: bool = False) -> Image.Image:
    """Return the image of a file as a PIL image in mode RGB.

    Of an animation the first frame is read. Transparency is dropped and 16-bit values above
    255 are clipped, as timm and torchvision do; to_rgb says so. upright: turn it as EXIF's
    orientation says, which these leave alone; TIFF and HEIC are turned by their decoders in any
    case.
    Raises ImageError, starting with the path.
    """
    try:
        with _open(path) as image:
            return to_rgb(image, upright, path)
    except FileNotFoundError:
        raise ImageError(f'{show_path(path)}: no such image file.') from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds, EOFError to struct.error
        raise ImageError(f'{show_path(path)}: {_describe(error, _read_head(path))}') from None


def decode_image(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """Return the image that the bytes of a file hold, as read_image does of the file itself.

    name: what an ImageError starts with.
    """
    try:
        with _open_bytes(data) as image:
            return to_rgb(image, upright, name)
    except Exception as error:      # as in read_image
        raise ImageError(f'{name}: {_describe(error, data[:BRAND_BYTES])}') from None


def open_image(source: str | bytes | IO[bytes]) -> Image.Image:
    """Return the PIL image of a path or an open file, its pixels not decoded yet.

    Raises OSError for what is no regular file and what Pillow raises, UnidentifiedImageError
    for a format that is not one of list_formats().
    """
    if isinstance(source, (str, bytes)):
        open_regular(source).close()
    return Image.open(source, formats=list_formats())


def to_rgb(image: Image.Image, upright: bool = False, name: str | bytes = 'A picture'
           ) -> Image.Image:
    """Return a PIL image in mode RGB; upright: turned as its EXIF orientation says.

    It may be the image itself. What it loses, one of LOSSES, stands in its info['loss']; the first
    of each kind is in the log, by its name. Raises what Pillow raises for one that it cannot
    decode.
    """
    # convert('RGB') copies even an RGB image; loading it is enough.
    if image.mode == 'RGB':
        image.load()
        rgb = image
    else:
        rgb = image.convert('RGB')
    loss = rgb.info['loss'] = _find_loss(image)         # also over what a file calls so
    if loss is not None:
        kind = list(LOSSES).index(loss)
        if not _said[kind]:
            _said[kind] = 1
            logger.warning('%s: %s (Others are not named.)', show_path(name), LOSSES[loss])
    turn = UPRIGHT.get(_read_orientation(image)) if upright else None
    return rgb if turn is None else rgb.transpose(turn)


def _find_loss(image):
    """Return which of LOSSES the conversion of an image to RGB brings about, None for none."""
    with contextlib.suppress(Exception):        # a palette or a transparency that is damaged
        if image.mode[0] in 'IF':               # integers of 16 or 32 bits, floats
            low, high = image.convert('F').getextrema()
            is_fraction = image.mode == 'F' and high <= 1
            return None if low >= 0 and high <= 255 and not is_fraction else 'range'
        if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
            opacity = image.convert('RGBA').getchannel('A')
            return 'transparency' if opacity.getextrema()[0] < 255 else None
    return None


@functools.cache
def list_formats() -> tuple[str, ...]:
    """Return the formats that are read here, as Pillow calls them: of FORMATS and optional ones."""
    return FORMATS + tuple(form.name for form in OPTIONAL_FORMATS if _can_read(form.name))


@functools.cache
def list_extensions() -> tuple[str, ...]:
    """Return the endings of the files that are read here: those of list_formats()."""
    return EXTENSIONS + tuple(extension for form in OPTIONAL_FORMATS
                              if form.name in list_formats() for extension in form.extensions)


def list_remedies(endings: Iterable[str]) -> list[str]:
    """Return what to install for those of the endings whose pictures cannot be read here."""
    wanted = set(endings)
    return [f'{" and ".join(found)} can be read with {form.remedy}' for form in OPTIONAL_FORMATS
            if (found := sorted(wanted & set(form.extensions) - set(list_extensions())))]


def _can_read(name):
    """Tell whether an optional format can be read; its plug-in is then known to Pillow."""
    if name == 'AVIF':
        return 'avif' in features.get_supported_modules()
    try:
        from pillow_heif import register_heif_opener
        register_heif_opener(thumbnails=False)
    except Exception:               # missing, or there and broken
        return False
    return True


def check_upload(path: str | bytes, max_bytes: int, max_pixels: int) -> None:
    """Raise ImageError for a file of a stranger, or its image, above these limits.

    Reads no more than the beginning of the file.
    """
    try:
        with open_regular(path) as file, open_image(file) as image:
            size, (width, height) = os.fstat(file.fileno()).st_size, image.size
    except Exception as error:      # as in read_image
        raise ImageError(f'{show_path(path)}: {_describe(error, _read_head(path))}') from None
    if size > max_bytes:
        raise ImageError(f'{show_path(path)}: {size:,} bytes are too many (at most '
                         f'{max_bytes:,}).')
    if width * height > max_pixels:
        raise ImageError(f'{show_path(path)}: {width} x {height} pixels are too many (at most '
                         f'{max_pixels:,}).')


def _read_orientation(image):
    """Return EXIF's orientation, 1 to 8; 1 where there is none or the EXIF data is damaged."""
    with contextlib.suppress(Exception):        # as many kinds as the decoders raise
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if isinstance(orientation, int) else 1
    return 1


def _open(path):
    """Return open_image(path), of bytes that are read at once: Pillow decodes these faster."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size) if size <= READ_WHOLE else b''
    if not data or len(data) != size:           # too large, or the read was cut short
        return open_image(path)
    return _open_bytes(data)


def _open_bytes(data):
    image = open_image(io.BytesIO(data))
    if len(image.tile) == 1:
        image.decodermaxblock = len(data)       # in one piece, not joined from several
    return image


def check_size(size: tuple[int, int]) -> None:
    """Raise ImageError if an image of `size` (width, height) would be unreasonably large."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f'{width} x {height} pixels are too many (at most {MAX_PIXELS}).')


def is_image_name(name: str) -> bool:
    """Tell whether a file name has the extension of an image, hidden files left out."""
    return name.lower().endswith(list_extensions()) and not name.startswith('.')


def show_path(path: str | bytes | os.PathLike) -> str:
    """Return a path as text that can be printed, whatever bytes it holds."""
    text = os.fsdecode(path)
    if text.isprintable():
        return text
    return text.encode('unicode_escape', 'backslashreplace').decode('ascii')


def _read_head(path):
    """Return the first bytes of a file, b'' of an empty one, None of one that cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(BRAND_BYTES)
    except OSError:
        return None


def _describe(error, head):
    """Return a decoder's error in words. head: the file's first BRAND_BYTES, None if not known."""
    if isinstance(error, OSError) and error.strerror:
        return f'cannot be read: {error.strerror}.'
    if head == b'':
        return 'the file is empty.'
    if isinstance(error, Image.UnidentifiedImageError):
        for form in OPTIONAL_FORMATS:
            if head and head[4:8] == b'ftyp' and head[8:] in form.brands \
                    and form.name not in list_formats():
                return f'a picture in {form.name}, which can be read with {form.remedy}'
        return 'not an image, or a damaged one.'
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r'\((\d+) pixels\)', str(error))
        count = f'{int(found[1]):,}' if found else 'its'
        return f'{count} pixels are too many (at most {2 * MAX_PIXELS:,}).'
    reason = str(error).strip().rstrip('.') or type(error).__name__
    return f'damaged image: {reason}.'
