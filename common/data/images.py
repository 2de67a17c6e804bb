"""Reading image files to RGB: the formats of EXTENSIONS alone, and one clear error for a bad one.

Every picture of the project is opened here. Pillow tells formats by their content and knows many
more; one of them, PostScript, is a language that Ghostscript would run.
"""

import io
import os
from typing import IO

from PIL import Image

from common.errors import UserError
from common.files import open_regular

EXTENSIONS = (
    '.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm',
)
# What files of these names hold, as Pillow calls it. Photographs of several frames (MPO) are JPEG.
FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'WEBP', 'TIFF', 'PPM')

# Pixels that an image may have after a resize: Pillow's own limit for files, against
# "decompression bombs". 179 million pixels are 0.7 GB in memory.
MAX_PIXELS = 178_956_970
# Bytes of a file that are read at once; photographs have less.
READ_WHOLE = 32 << 20


class ImageError(UserError):
    """An image is missing, is not an image, is damaged or is unreasonably large."""


def read_image(path: str | bytes) -> Image.Image:
    """Return the image of a file as a PIL image in mode RGB.

    Of an animation the first frame is read. Transparency is dropped, 16-bit values above
    255 are clipped and the EXIF orientation is left alone, as timm and torchvision do.
    Raises ImageError, starting with the path.
    """
    try:
        with _open(path) as image:
            return _to_rgb(image)
    except FileNotFoundError:
        raise ImageError(f'{show_path(path)}: no such image file.') from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds, EOFError to struct.error
        raise ImageError(f'{show_path(path)}: {_describe(error, _is_empty(path))}') from None


def decode_image(data: bytes, name: str) -> Image.Image:
    """Return the image that the bytes of a file hold, as read_image does of the file itself.

    name: what an ImageError starts with.
    """
    try:
        with _open_bytes(data) as image:
            return _to_rgb(image)
    except Exception as error:      # as in read_image
        raise ImageError(f'{name}: {_describe(error, not data)}') from None


def open_image(source: str | bytes | IO[bytes]) -> Image.Image:
    """Return the PIL image of a path or an open file, its pixels not decoded yet.

    Raises OSError for what is no regular file and what Pillow raises, UnidentifiedImageError
    for a format that is not one of FORMATS.
    """
    if isinstance(source, (str, bytes)):
        open_regular(source).close()
    return Image.open(source, formats=FORMATS)


def check_upload(path: str | bytes, max_bytes: int, max_pixels: int) -> None:
    """Raise ImageError for a file of a stranger, or its image, above these limits.

    Reads no more than the beginning of the file.
    """
    try:
        with open_regular(path) as file, open_image(file) as image:
            size, (width, height) = os.fstat(file.fileno()).st_size, image.size
    except Exception as error:      # as in read_image
        raise ImageError(f'{show_path(path)}: {_describe(error, _is_empty(path))}') from None
    if size > max_bytes:
        raise ImageError(f'{show_path(path)}: {size:,} bytes are too many (at most '
                         f'{max_bytes:,}).')
    if width * height > max_pixels:
        raise ImageError(f'{show_path(path)}: {width} x {height} pixels are too many (at most '
                         f'{max_pixels:,}).')


def _to_rgb(image):
    # convert('RGB') copies even an RGB image; loading it is enough.
    if image.mode == 'RGB':
        image.load()
        return image
    return image.convert('RGB')


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
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


def show_path(path: str | bytes | os.PathLike) -> str:
    """Return a path as text that can be printed, whatever bytes it holds."""
    text = os.fsdecode(path)
    if text.isprintable():
        return text
    return text.encode('unicode_escape', 'backslashreplace').decode('ascii')


def _is_empty(path):
    try:
        return os.path.getsize(path) == 0
    except OSError:
        return False


def _describe(error, is_empty):
    if isinstance(error, OSError) and error.strerror:
        return f'cannot be read: {error.strerror}.'
    if is_empty:
        return 'the file is empty.'
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not an image, or a damaged one.'
    reason = str(error).strip().rstrip('.') or type(error).__name__
    return f'damaged image: {reason}.'
