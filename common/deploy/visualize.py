"""visualize_attention.py: attention maps over pictures, in one figure each, and as arrays."""

import argparse
import logging
import os
import re
import sys
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from common.cli import FlagParser
from common.data.folders import describe_left_out
from common.data.images import ImageError, show_path
from common.data.preprocessing import Preprocessing
from common.deploy.attention import Attention, make_map, record_attention, roll_out
from common.deploy.drawing import (
    Panel,
    choose_scale,
    darken,
    draw_text_panel,
    make_figure,
    overlay,
)
from common.deploy.pictures import OutputNames, find_pictures, list_inputs, save_output
from common.deploy.ranking import format_share, rank_classes
from common.deploy.trained import add_model_flags, load_trained
from common.errors import RunError, UserError, report_errors
from common.files import replace_file
from common.project import Project
from common.run.log import start_logging

PANEL = 480                     # pixels, as DINO's pictures of heads
COLUMNS = 4                     # panels a row
LEGEND = ('0 to the weight in the title of each map: its largest, or that of even attention where '
          'the whole map has less')

EXAMPLES = """examples:
  python visualize_attention.py cat.jpg -pretrained=./output/train-20260101-10-00-00/best
  python visualize_attention.py pictures/ -cfg=configs/{model}.yaml \\
      -pretrained=./{model}.pdparams -layer=6 -token=3,4 -save_arrays

The figure holds the picture as the model sees it, the predictions, attention rollout
(Abnar and Zuidema, 2020), each head of one layer, and the rollout up to every layer.
"""

logger = logging.getLogger(__name__)


def main(project: Project, argv: list[str] | None = None) -> int:
    """Draw the attention of a model over pictures; return the exit code.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(project, argv)
    start_logging()
    trained = load_trained(project, arguments)
    token_modules = project.list_token_modules(trained.model)
    names = OutputNames(arguments.output, list_inputs(arguments.images, arguments.output)[1])
    failed, left_out = 0, Counter()
    for picture in find_pictures(arguments.images, sys.stdin, left_out):
        try:
            image = picture.read(trained.preprocessing.exif_orientation)
            crop = trained.preprocessing.crop(image)
        except ImageError as error:
            failed += 1
            logger.error('error: %s', error)
            continue
        attention = record_attention(
            trained.model, trained.preprocessing.normalize([crop]), token_modules)
        view = View(attention, arguments.layer, arguments.token)
        path = names.make(os.path.splitext(picture.name)[0], '.attention.png')
        heading = f'{show_path(picture.name)} - {trained.config.MODEL.NAME}, ' \
                  f'{show_path(trained.source)}'
        save_output(draw(view, crop, trained.preprocessing, heading), path)
        logger.info('%s: %s', show_path(picture.path), show_path(path))
        if arguments.save_arrays:
            with replace_file(path.removesuffix('.png') + '.npz') as file:
                np.savez_compressed(file, **view.list_arrays())
    if left_out:
        logger.warning('%s', describe_left_out(left_out))
    if failed:
        raise RunError(f'{failed:,} of the pictures could not be read; they are named above.')


class View:
    """The maps of the first image of an Attention, for a layer and a token.

    layer: 1 is the first, -1 the last. token: None for what the classifier reads (the class
    token, or all tokens of the image where it reads their mean), or "ROW,COLUMN" from 0.
    Raises UserError for a layer or a token that the model has not.
    """

    def __init__(self, attention: Attention, layer: int = -1, token: str | None = None) -> None:
        self.attention = attention
        depth = len(attention.layers)
        if not 1 <= abs(layer) <= depth:
            raise UserError(f'-layer={layer}: the model has layers 1 to {depth} (or -1, the last).')
        self.layer = layer if layer > 0 else depth + 1 + layer
        self.cell = parse_cell(token, attention.grid)
        self.tokens = attention.reader
        self.shares = None if attention.shares is None else attention.shares[0]
        if self.cell is not None:
            self.shares = None
            self.tokens = [attention.prefix + self.cell[0] * attention.grid[1] + self.cell[1]]
        self.rollout = roll_out(attention.layers)[:, 0]                     # [L, T, T]

    def map_rollout(self) -> np.ndarray:
        """Return [L, rows, columns], of the rollout up to every layer."""
        return self._map(self.rollout)

    def map_heads(self) -> np.ndarray:
        """Return [H, rows, columns], of the heads of the chosen layer."""
        return self._map(self.attention.layers[self.layer - 1, 0])

    def map_stem(self) -> dict[str, np.ndarray]:
        """Return {name: [rows, columns]}: what the token modules' tokens attend to.

        The mean over their tokens inside the chosen one, or over all of them.
        """
        maps = {}
        for name, (weights, grid) in self.attention.stem.items():
            tokens: np.ndarray = np.arange(grid[0] * grid[1]).reshape(grid)
            if self.cell is not None:
                height, width = (fine // coarse for fine, coarse in zip(grid, self.attention.grid))
                row, column = self.cell[0] * height, self.cell[1] * width
                tokens = tokens[row:row + height, column:column + width]
            maps[name] = make_map(weights[0], tokens.reshape(-1), 0, grid)
        return maps

    def name_token(self) -> str:
        if self.cell is not None:
            return f'token {self.cell[0]},{self.cell[1]}'
        if self.shares is not None:
            return 'tokens by the pooling'
        return 'class token' if self.attention.reader == [0] else 'mean of tokens'

    def list_arrays(self) -> dict[str, Any]:
        """Return what is saved as .npz: attention, rollout, their maps, and the logits."""
        arrays = {'logits': self.attention.logits[0], 'attention': self.attention.layers[:, 0],
                  'rollout': self.rollout, 'rollout_maps': self.map_rollout(),
                  'head_maps': self.map_heads(), 'layer': self.layer, 'tokens': self.tokens,
                  'grid': self.attention.grid, 'prefix_tokens': self.attention.prefix}
        if self.shares is not None:
            arrays['shares'] = self.shares
        for name, (weights, grid) in self.attention.stem.items():
            arrays[name.replace(' ', '_')] = weights[0]
            arrays[name.replace(' ', '_') + '_grid'] = grid
        return arrays

    def _map(self, weights):
        return make_map(weights, self.tokens, self.attention.prefix, self.attention.grid,
                        self.shares)


def parse_cell(text: str | None, grid: tuple[int, int]) -> tuple[int, int] | None:
    """Return (row, column) of "ROW,COLUMN", None for None. Raises UserError."""
    if text is None:
        return None
    match = re.fullmatch(r'(\d+),(\d+)', text)
    if not match or int(match[1]) >= grid[0] or int(match[2]) >= grid[1]:
        raise UserError(f'-token={text}: give ROW,COLUMN of a token, from 0,0 to '
                        f'{grid[0] - 1},{grid[1] - 1}.')
    return int(match[1]), int(match[2])


def draw(view: View, crop: Image.Image, preprocessing: Preprocessing, heading: str = ''
         ) -> Image.Image:
    """Return the figure of a View. crop: what the model sees. heading: the line above all."""
    # Nearest keeps the pixels of a small picture visible.
    method = Image.Resampling.NEAREST if crop.width < PANEL // 4 else Image.Resampling.BICUBIC
    picture = crop.resize((PANEL, PANEL), method)

    def panel(title, weights):
        return Panel(name_map(title, weights), overlay(picture, weights))

    ranked = rank_classes(view.attention.logits, 5)[0]
    lines = [f'{format_share(share)}  {preprocessing.show_class(index)}' for index, share in ranked]
    heads, rollout = view.map_heads(), view.map_rollout()
    panels = [Panel('input', picture), Panel('predictions', draw_text_panel(lines, PANEL)),
              panel(f'rollout, {view.name_token()}', rollout[-1]),
              Panel(f'rollout, {view.name_token()}: what is attended to',
                    darken(picture, rollout[-1])),
              panel(f'layer {view.layer}, mean of heads', heads.mean(axis=0)),
              *(panel(name, weights) for name, weights in view.map_stem().items())]
    rows = _wrap(panels)
    rows += _wrap([panel(f'layer {view.layer}, head {i}', weights)
                   for i, weights in enumerate(heads, 1)])
    rows += _wrap([panel(f'rollout to layer {i}', weights)
                   for i, weights in enumerate(rollout, 1)])
    return make_figure(rows, PANEL, heading, LEGEND)


def name_map(name: str, weights: np.ndarray) -> str:
    """Return the title of a map: with the weight that is brightest, and a sum of almost nothing.

    A performer's rows may sum to that, as its epsilon allows.
    """
    total = float(weights.sum())
    almost_nothing = f', sum {total:.1g}' if total < 0.01 else ''
    return f'{name} (0 to {choose_scale(weights):.2g}{almost_nothing})'


def _wrap(panels):
    return [panels[i:i + COLUMNS] for i in range(0, len(panels), COLUMNS)]


def _parse(project, argv):
    parser = FlagParser(
        prog='visualize_attention.py', allow_abbrev=False,
        description=f'Show what {project.name} attends to.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    parser.add_argument('images', nargs='+', metavar='IMAGE',
                        help='picture, folder, glob, or "-" for paths from the standard input')
    add_model_flags(parser)
    parser.add_flag('layer', type=int, default=-1, metavar='N',
                    help='layer whose heads are shown: 1 is the first, -1 the last (default)')
    parser.add_flag('token', metavar='ROW,COLUMN',
                    help='token whose attention is shown (default: what the classifier reads)')
    parser.add_flag('output', default=os.path.join('.', 'attention'), metavar='DIR',
                    help='folder for the figures (default: ./attention)')
    parser.add_flag('save_arrays', action='store_true',
                    help='write attention, rollout and maps beside each figure, as .npz')
    parser.check_names(argv)
    return parser.parse_args(argv)
