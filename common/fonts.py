"""Letters on pictures: a font that has those of a text, and a hint where none here has."""

import functools
import logging
import os
import unicodedata

from PIL import ImageDraw, ImageFont

from common.data.images import show_path

logger = logging.getLogger(__name__)
_said: list[str] = []          # letters that a warning has named

# Pillow's own font has no letters with accents. Latin, Greek and Cyrillic ones first, then Chinese,
# Japanese and Korean ones; of Linux, Windows and macOS.
FONTS = ('DejaVuSans.ttf', 'LiberationSans-Regular.ttf', 'NotoSans-Regular.ttf', 'arial.ttf',
         'Arial.ttf', 'Arial Unicode.ttf', 'NotoSansCJK-Regular.ttc', 'NotoSansCJKsc-Regular.otf',
         'wqy-microhei.ttc', 'wqy-zenhei.ttc', 'DroidSansFallbackFull.ttf', 'msyh.ttc',
         'simsun.ttc', 'PingFang.ttc', 'STHeiti Light.ttc')
PACKAGES = {'fonts-dejavu-core': ('LATIN', 'GREEK', 'CYRILLIC'),
            'fonts-noto-cjk': ('CJK', 'HIRAGANA', 'KATAKANA', 'HANGUL')}
VARIABLE = 'VIT_FONT'           # names a font's file
NO_LETTER = '\U0010ffff'        # which fonts draw as they draw every letter that they lack

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def choose_font(text: str, size: int) -> tuple[Font, str]:
    """Return (font, text): the first font with all letters of a text, or with most of them.

    Letters that it lacks are replaced by "?", which is said once. size: pixels.
    """
    text = unicodedata.normalize('NFC', text)
    if text.isascii():
        return load_default(size), text
    best, lacking = load_default(size), set(text)
    for font in _iterate_fonts(size):
        missing = {letter for letter in text if not has_letter(font, letter)}
        if len(missing) < len(lacking):
            best, lacking = font, missing
        if not missing:
            return font, text
    _say_what_to_install(''.join(sorted(lacking)))
    return best, ''.join('?' if letter in lacking else letter for letter in text)


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


@functools.lru_cache(maxsize=10_000)
def has_letter(font: Font, letter: str) -> bool:
    """Tell whether a font draws a letter as itself, and not as one that it lacks."""
    if letter.isascii() or letter.isspace():
        return True
    try:
        return _draw(font, letter) != _draw(font, NO_LETTER)
    except UnicodeError:                    # bitmap fonts
        return False


def _draw(font, letter):
    """Return what is the same of two letters that look the same: (size, pixels)."""
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _iterate_fonts(size):
    """Yield the fonts that are here, the preferred one first; one is opened when it is asked for.
    """
    if (named := _open_font(os.environ.get(VARIABLE), size)) is not None:
        yield named
    yield load_default(size)
    yield from filter(None, (_open_font(name, size) for name in FONTS))


def _say_what_to_install(letters):
    """Log which letters no font has, once: other letters that are missing later are not said."""
    if _said:
        return
    _said.append(letters)
    alphabets = {unicodedata.name(letter, '').split(' ')[0].split('-')[0] for letter in letters}
    packages = [package for package, scripts in PACKAGES.items() if alphabets & {*scripts}]
    install = f'Install one (Debian and Ubuntu: apt install {" ".join(packages)}), or set' \
        if packages else 'Set'
    logger.warning('No font here has the letters %s, which are drawn as "?". %s '
                   '%s=/path/to/font.ttf.', show_path(letters), install, VARIABLE)


@functools.cache
def _open_font(name, size):
    """Return a font by its file's path or name, None where there is none."""
    try:
        return ImageFont.truetype(name, size) if name else None
    except OSError:
        return None
