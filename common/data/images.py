"""Reading image files: any format of Pillow's to RGB, and one clear error for a bad one."""

import contextlib
import os

import numpy as np
from PIL import Image

from common.data import pixels
from common.errors import UserError

EXTENSIONS = (
    '.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm',
)

# Pixels that an image may have after a resize: Pillow's own limit for files, against
# "decompression bombs". 179 million pixels are 0.7 GB in memory.
MAX_PIXELS = 178_956_970
END_OF_JPEG = b'\xff\xd9'


class ImageError(UserError):
    """An image is missing, is not an image, is damaged or is unreasonably large."""


def read_image(path, count_rows=None):
    """Return the image of a file as a PIL image in mode RGB.

    path: str or bytes. count_rows: callable ((width, height)) -> the rows, from the top,
    that will be looked at. Those below may stay black in a JPEG file, which saves time,
    and damage there is not noticed. Of an animation the first frame is read. Transparency
    is dropped, 16-bit values above 255 are clipped and the EXIF orientation is left alone,
    as timm and torchvision do. Raises ImageError, starting with the path.
    """
    try:
        with Image.open(path) as image:
            # convert('RGB') copies even an RGB image; loading it is enough.
            if image.mode == 'RGB':
                if count_rows is not None and _is_worth_cutting(image):
                    rows = count_rows(image.size)
                    if rows < image.height:
                        return _load_rows(image, rows) or read_image(path)
                image.load()
                return image
            return image.convert('RGB')
    except FileNotFoundError:
        raise ImageError(f'{show_path(path)}: no such image file.') from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds, EOFError to struct.error
        raise ImageError(f'{show_path(path)}: {_describe(path, error)}') from None


def check_size(size):
    """Raise ImageError if an image of `size` (width, height) would be unreasonably large."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f'{width} x {height} pixels are too many (at most {MAX_PIXELS}).')


def to_array(image):
    """Return a PIL RGB image as uint8 [height, width, 3]."""
    return np.asarray(image, dtype=np.uint8)


def is_image_name(name):
    """Tell whether a file name has the extension of an image, hidden files left out."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


def show_path(path):
    """Return a path as text that can be printed, whatever bytes it holds."""
    text = os.fsdecode(path)
    if text.isprintable():
        return text
    return text.encode('unicode_escape', 'backslashreplace').decode('ascii')


def _is_worth_cutting(image):
    """Tell whether an open file is a whole JPEG of ordinary size."""
    if image.format != 'JPEG' or len(image.tile) != 1 or not pixels.can_look_into(image):
        return False
    image.fp.seek(-len(END_OF_JPEG), os.SEEK_END)
    return image.fp.read() == END_OF_JPEG


def _load_rows(image, rows):
    """Decode the first rows of an open JPEG file; return the image, or None if it is damaged."""
    (decoder, _, *rest), = image.tile
    image.tile = [(decoder, (0, 0, image.width, rows), *rest)]
    with contextlib.suppress(OSError):      # the decoder minds that it cannot go to the end
        image.load()
    return image if pixels.is_decoded(image, rows - 1) else None


def _describe(path, error):
    if isinstance(error, OSError) and error.strerror:
        return f'cannot be read: {error.strerror}.'
    try:
        if os.path.getsize(path) == 0:
            return 'the file is empty.'
    except OSError:
        pass
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not an image, or a damaged one.'
    reason = str(error).strip().rstrip('.') or type(error).__name__
    return f'damaged image: {reason}.'
