"""Pictures with labels, maps over pictures, and figures made of panels: Pillow only."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from common.fonts import fit, write

INK, PAPER = (20, 20, 20), (255, 255, 255)
MARGIN = 8                      # pixels between panels

# From black over purple and orange to light yellow, as bright as the value is high.
HEAT_COLOURS = np.array([(0, 0, 8), (80, 18, 108), (182, 54, 86), (246, 140, 20), (250, 252, 170)])

TITLE = 18                      # pixels of the letters above a panel


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


def choose_scale(weights: np.ndarray) -> float:
    """Return the weight that is drawn at full brightness: the largest of a map.

    It is no less than that of even attention, 1 / places, so that rows that sum to almost nothing
    stay dark.
    """
    return max(float(np.max(weights)), 1 / np.size(weights))


def scale_map(weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map [rows, columns] at a `size` (width, height), from 0 to 1 = choose_scale."""
    return np.clip(enlarge(weights, size) / choose_scale(weights), 0, 1)


def overlay(image: Image.Image, weights: np.ndarray, opacity: float = 0.6) -> Image.Image:
    """Return a PIL RGB image with a map over it, lightest where the map is highest."""
    heat = scale_map(weights, image.size)
    return Image.blend(image, Image.fromarray(colour_heat(heat)), opacity)


def darken(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Return a PIL RGB image that is dark where a map is low."""
    shares = scale_map(weights, image.size)[..., None]
    return Image.fromarray((np.asarray(image) * shares).round().astype(np.uint8))


def make_figure(rows: Sequence[Sequence[Panel]], panel_size: int, heading: str = '',
                legend: str = '') -> Image.Image:
    """Return one PIL image of rows of Panel, each `panel_size` pixels a side.

    heading: a line above all. legend: a line below all, beside the colours of maps.
    """
    title_height = TITLE + 9
    columns = max(len(row) for row in rows)
    width = columns * (panel_size + MARGIN) + MARGIN
    top = MARGIN + (2 * TITLE if heading else 0)
    bottom = 2 * TITLE + MARGIN if legend else 0
    height = top + len(rows) * (panel_size + title_height + MARGIN) + bottom
    figure = Image.new('RGB', (width, height), PAPER)
    draw = ImageDraw.Draw(figure)
    if heading:
        write_line(draw, (MARGIN, MARGIN), heading, TITLE + 3, width - 2 * MARGIN)
    for i, row in enumerate(rows):
        above = top + i * (panel_size + title_height + MARGIN)
        for j, panel in enumerate(row):
            left = MARGIN + j * (panel_size + MARGIN)
            write_line(draw, (left, above), panel.title, TITLE, panel_size)
            figure.paste(panel.image.resize((panel_size, panel_size), Image.Resampling.BICUBIC),
                         (left, above + title_height))
    if legend:
        bar = np.broadcast_to(np.linspace(0, 1, 200), (TITLE, 200))
        figure.paste(Image.fromarray(colour_heat(bar)), (MARGIN, height - bottom))
        write_line(draw, (MARGIN + 210, height - bottom), legend, TITLE, width - 220 - MARGIN)
    return figure


def draw_text_panel(lines: Sequence[str], size: int) -> Image.Image:
    """Return a square PIL image with lines of text."""
    image = Image.new('RGB', (size, size), (244, 244, 244))
    draw = ImageDraw.Draw(image)
    letters = max(12, size // 20)
    for i, line in enumerate(lines):
        write_line(draw, (letters // 2, letters // 2 + i * (letters * 3 // 2)), line, letters,
                   size - letters)
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
    write(draw, position, fit(text, size, width), size, INK)
