"""Parameters and multiply-accumulates of a model directory's configurations, as a table."""

import glob
import os
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import paddle
from paddle import nn
from yacs.config import CfgNode

from common.cli import FlagParser, build_config, find_config
from common.config import get_value
from common.errors import report_errors
from common.option import list_options
from common.project import Model, Project
from common.terminal import say


class ModelInfo(NamedTuple):
    """Size and cost of one configuration; MACs are for one image."""

    name: str
    image_size: int
    params: int                 # every tensor of the state dict, fixed tables among them
    layer_params: int           # as paddle.flops counts: without class token, position embedding
    macs: int                   # convolutions and linear layers
    macs_with_attention: int    # and the products of attention


def measure_config(get_config: Callable[..., CfgNode], build_model: Callable[[CfgNode], Model],
                   path: str) -> ModelInfo:
    """Return the ModelInfo of a yaml file.

    A model's blocks have equal shapes, so its size and cost are linear in
    MODEL.DEPTH: one block and two give them exactly, without the time and the
    memory that all the weights of a large model take.
    """
    return measure_options(lambda opts: get_config(path, opts=opts), build_model)


def measure_options(load: Callable[[list[str]], CfgNode],
                    build_model: Callable[[CfgNode], Model]) -> ModelInfo:
    """Return the ModelInfo of the config that load(opts) gives: see measure_config."""
    config = load([])
    one, two = (measure_model(build_model(load(['MODEL.DEPTH', str(depth)])),
                              config.DATA.IMAGE_CHANNELS, config.DATA.IMAGE_SIZE)
                for depth in (1, 2))
    counts = [first + (config.MODEL.DEPTH - 1) * (second - first)
              for first, second in zip(one, two)]
    return ModelInfo(config.MODEL.NAME, config.DATA.IMAGE_SIZE, *counts)


def measure_model(model: paddle.nn.Layer, channels: int,
                  image_size: int | tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (params, layer_params, macs, macs_with_attention) by running one image."""
    leaves = [layer for layer in model.sublayers() if not layer.sublayers()]
    macs = []

    def count(layer, inputs, output):
        # Each output element costs its fan-in: in_features, or channels times the kernel's area.
        weight = layer.weight
        fan_in = weight.shape[0] if isinstance(layer, nn.Linear) else weight[0].size
        macs.append(int(output.size) * int(fan_in))

    hooks = [layer.register_forward_post_hook(count) for layer in leaves
             if isinstance(layer, (nn.Linear, nn.Conv2D))]
    model.eval()
    with paddle.no_grad():
        model(paddle.zeros([1, channels, image_size, image_size]))
    for hook in hooks:
        hook.remove()
    params = sum(int(tensor.size) for tensor in model.state_dict().values())
    layer_params = sum(int(tensor.size) for layer in leaves for tensor in layer.parameters())
    return params, layer_params, sum(macs), sum(macs) + model.attention_macs()


def format_table(infos: Iterable[ModelInfo]) -> list[str]:
    """Return the lines of a table, one a model."""
    name_width = max([len(info.name) for info in infos] + [5])
    lines = [f'{"model":{name_width}}  image  {"params":>12}  {"in layers":>12}  '
             f'{"GMACs":>8}  with attention']
    lines += [f'{info.name:{name_width}}  {info.image_size:5}  {info.params:12,}  '
              f'{info.layer_params:12,}  {info.macs / 1e9:8.3f}  '
              f'{info.macs_with_attention / 1e9:14.3f}' for info in infos]
    return lines


def main(project: Project, argv: list[str] | None = None) -> int:
    """Print the table of the configs of a model directory; return the exit code.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    parser = FlagParser(
        prog='model_info.py', allow_abbrev=False,
        description='Parameters and multiply-accumulates (MACs) of every config. "in layers" '
                    'leaves out what belongs to no layer (class token, position embedding), as '
                    'paddle.flops and PaddleViT\'s tables do.')
    parser.add_flag('cfg', metavar='FILE', help='only this yaml file')
    parser.add_flag('pretrained', metavar='X', help='only the model that these weights are of')
    options = parser.parse_args(argv)
    if options.pretrained:
        flags = {'MODEL.PRETRAINED': options.pretrained, 'EVAL': True}
        path = find_config(options.cfg, project.folder) if options.cfg else None
        config = build_config(project, path, flags, [])
        known = {key: get_value(config, key) for key in list_options(project.options)}
        del known['BASE']
        infos = [measure_options(lambda opts: project.get_config(flags=known, opts=opts),
                                 project.build_model)]
        say('\n'.join(format_table(infos)))
        return
    if options.cfg:
        paths = [find_config(options.cfg, project.folder)]
    else:
        paths = sorted(glob.glob(os.path.join(project.folder, 'configs', '[!_]*.yaml')))
    infos = [measure_config(project.get_config, project.build_model, path) for path in paths]
    say('\n'.join(format_table(infos)))
