"""Letters on pictures: a font that has those of a text, and a hint where none here has."""

import functools
import logging
import os
import unicodedata

from PIL import ImageDraw, ImageFont

logger = logging.getLogger(__name__)

# Pillow's own font has Latin letters; these have Chinese ones. First on Linux, then Windows, macOS.
WIDE_FONTS = ('NotoSansCJK-Regular.ttc', 'NotoSansCJKsc-Regular.otf', 'wqy-microhei.ttc',
              'wqy-zenhei.ttc', 'DroidSansFallbackFull.ttf', 'msyh.ttc', 'simsun.ttc',
              'PingFang.ttc', 'STHeiti Light.ttc')
VARIABLE = 'VIT_FONT'           # names a font's file

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def choose_font(text: str, size: int) -> tuple[Font, str]:
    """Return (font, text); letters that no font here has are replaced by "?", which is said once.

    size: pixels.
    """
    text = unicodedata.normalize('NFC', text)
    if text.isascii():
        return load_default(size), text
    wide = load_wide(size)
    if wide is not None:
        return wide, text
    drawable = text.encode('latin-1', 'replace').decode('latin-1')
    if drawable != text:
        _say_what_to_install()
    font = load_default(size)
    try:
        font.getlength(drawable)
    except UnicodeError:                    # Pillow 10.0's bitmap font has fewer letters still
        drawable = text.encode('ascii', 'replace').decode('ascii')
    return font, drawable


def measure(text: str, size: int) -> int:
    """Return the width of a line of text in pixels."""
    font, text = choose_font(text, size)
    return int(font.getlength(text) + 0.5)


def fit(text: str, size: int, width: int) -> str:
    """Return a text on one line, cut off with "..." where it is wider than `width` pixels."""
    text = ' '.join(text.split())
    if measure(text, size) <= width:
        return text
    while text and measure(text + '...', size) > width:
        text = text[:-1]
    return text + '...'


def write(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, size: int,
          fill: tuple[int, int, int] = (20, 20, 20), anchor: str | None = None) -> None:
    """Draw a line of text. anchor: Pillow's, such as "mm"; None: the position is its top left."""
    font, text = choose_font(text, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        anchor = None                       # bitmap fonts know none
    draw.text(position, text, fill=fill, font=font, anchor=anchor)


@functools.cache
def load_default(size: int) -> Font:
    """Return Pillow's own font."""
    try:
        return ImageFont.load_default(size)
    except TypeError:                       # Pillow 10.0 has it in one size
        return ImageFont.load_default()


@functools.cache
def load_wide(size: int) -> Font | None:
    """Return a font with letters beside the Latin ones, None where there is none."""
    names = (os.environ.get(VARIABLE), *WIDE_FONTS)
    fonts = (_open_font(name, size) for name in names if name)
    return next((font for font in fonts if font is not None), None)


@functools.cache
def _say_what_to_install():
    logger.warning('No font here has letters such as Chinese ones, which are drawn as "?". '
                   'Install one (Debian and Ubuntu: apt install fonts-noto-cjk), or set '
                   '%s=/path/to/font.ttf.', VARIABLE)


def _open_font(name, size):
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
