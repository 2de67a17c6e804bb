"""Pictures with labels, maps over pictures, and figures made of panels: Pillow only."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (20, 20, 20), (255, 255, 255)
MARGIN = 8                      # pixels between panels

# From black over purple and orange to light yellow, as bright as the value is high.
HEAT_COLOURS = np.array([(0, 0, 8), (80, 18, 108), (182, 54, 86), (246, 140, 20), (250, 252, 170)])

# Pillow's own font has Latin letters; these have Chinese ones. First on Linux, then Windows, macOS.
WIDE_FONTS = ('NotoSansCJK-Regular.ttc', 'NotoSansCJKsc-Regular.otf', 'wqy-microhei.ttc',
              'wqy-zenhei.ttc', 'DroidSansFallbackFull.ttf', 'msyh.ttc', 'simsun.ttc',
              'PingFang.ttc', 'STHeiti Light.ttc')

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Panel(NamedTuple):
    """A picture of a figure, with a title of one line. image: PIL RGB, any size."""

    title: str
    image: Image.Image


def colour_heat(values: np.ndarray) -> np.ndarray:
    """Return uint8 RGB [..., 3] of values from 0 to 1."""
    places = np.linspace(0, 1, len(HEAT_COLOURS))
    channels = [np.interp(values, places, channel) for channel in HEAT_COLOURS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def enlarge(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Up-sample a map [rows, columns] bilinearly to `size` (width, height): float32 array."""
    image = Image.fromarray(np.asarray(weights, np.float32))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def overlay(image: Image.Image, weights: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """Return a PIL RGB image with a map over it, whose highest value is the lightest colour."""
    heat = enlarge(weights, image.size)
    heat = np.clip(heat / max(float(heat.max()), 1e-12), 0, 1)
    return Image.blend(image, Image.fromarray(colour_heat(heat)), opacity)


def make_figure(rows: Sequence[Sequence[Panel]], panel_size: int) -> Image.Image:
    """Return one PIL image of rows of Panel, each `panel_size` pixels a side."""
    title_height = 18
    columns = max(len(row) for row in rows)
    width = columns * (panel_size + MARGIN) + MARGIN
    height = len(rows) * (panel_size + title_height + MARGIN) + MARGIN
    figure = Image.new('RGB', (width, height), PAPER)
    draw = ImageDraw.Draw(figure)
    for i, row in enumerate(rows):
        top = MARGIN + i * (panel_size + title_height + MARGIN)
        for j, panel in enumerate(row):
            left = MARGIN + j * (panel_size + MARGIN)
            write_line(draw, (left, top), panel.title, 12, panel_size)
            figure.paste(panel.image.resize((panel_size, panel_size), Image.Resampling.BICUBIC),
                         (left, top + title_height))
    return figure


def draw_text_panel(lines: Sequence[str], size: int) -> Image.Image:
    """Return a square PIL image with lines of text."""
    image = Image.new('RGB', (size, size), (244, 244, 244))
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        write_line(draw, (6, 6 + 20 * i), line, 13, size - 12)
    return image


def draw_labels(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return a copy of a PIL RGB image with lines of text on a band below it."""
    size = max(12, min(image.size) // 24)
    width = max(image.width, 160)
    band = len(lines) * (size + size // 2) + size // 2
    result = Image.new('RGB', (width, image.height + band), PAPER)
    result.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(result)
    for i, line in enumerate(lines):
        top = image.height + size // 2 + i * (size + size // 2)
        write_line(draw, (size // 2, top), line, size, width - size)
    return result


def write_line(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, size: int,
               width: int) -> None:
    """Draw a line of text, cut off with "..." where it is wider than `width` pixels."""
    font, text = choose_font(' '.join(text.split()), size)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + '...', font=font) > width:
            text = text[:-1]
        text += '...'
    draw.text(position, text, fill=INK, font=font)


def choose_font(text: str, size: int) -> tuple[Font, str]:
    """Return (font, text); letters that no font here has are replaced by "?"."""
    if text.isascii():
        return _load_default(size), text
    wide = _load_wide(size)
    if wide is not None:
        return wide, text
    return _load_default(size), text.encode('latin-1', 'replace').decode('latin-1')


@functools.cache
def _load_default(size):
    try:
        return ImageFont.load_default(size)
    except TypeError:                       # Pillow 10.0 has it in one size
        return ImageFont.load_default()


@functools.cache
def _load_wide(size):
    fonts = (_open_font(name, size) for name in WIDE_FONTS)
    return next((font for font in fonts if font is not None), None)


def _open_font(name, size):
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None
