"""A trained model from a checkpoint: its config, weights, preprocessing and class names.

Checkpoints written here record all of these, so that they need no yaml; for others
the config says what the file does not.
"""

import contextlib
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import paddle
import yaml

from common.cli import find_config
from common.data.preprocessing import (
    Preprocessing,
    check_channels,
    list_recorded_options,
    read_preprocessing,
)
from common.deploy.preprocessing import check_class_names, read_labels
from common.errors import UserError
from common.machine.device import choose_device
from common.weights import load_from_config
from common.weights.containers import open_container
from common.weights.registry import resolve

# flag, config key, type, help; for every script that uses a trained model
FLAGS = (
    ('pretrained', 'MODEL.PRETRAINED', str,
     'weights: a checkpoint of a run, a file of any known format, a folder, or a name'),
    ('image_size', 'DATA.IMAGE_SIZE', int, 'height and width of the model\'s input, in pixels'),
    ('num_classes', 'MODEL.NUM_CLASSES', int, 'number of classes'),
    ('device', 'DEVICE', str, 'auto (a GPU if there is one), cpu, gpu or gpu:N'),
)


@dataclass
class Trained:
    """A model in eval mode, and what using it takes."""

    model: Any
    config: Any
    preprocessing: Preprocessing


def add_model_flags(parser):
    """Add the flags that load_trained reads to a FlagParser."""
    parser.add_flag('cfg', metavar='FILE', help='yaml file of the model; checkpoints written here '
                    'need none')
    for name, key, kind, text in FLAGS:
        parser.add_flag(name, type=kind, metavar='N' if kind is int else 'X',
                        help=f'{text} [{key}]')
    parser.add_flag('labels', metavar='FILE', help='class names, one a line')
    parser.add_flag('opts', nargs='*', default=[], metavar='KEY VALUE',
                    help='any options of config.py, for example DATA.CROP_PCT 0.9')


def load_trained(project, arguments):
    """Return the Trained model that the flags name, on the device they name.

    Precedence: the yaml file, or else the checkpoint's recorded config; the checkpoint's
    preprocessing; flags; -opts. Raises UserError.
    """
    if not arguments.pretrained:
        raise UserError('Which weights? Give -pretrained=FILE. A checkpoint of a run will do, '
                        'such as <run folder>/best.')
    recorded = read_record(arguments.pretrained, project)
    given = {key: getattr(arguments, name) for name, key, *_ in FLAGS
             if getattr(arguments, name) is not None}
    flags = {'EVAL': True, **list_recorded_options(recorded.get('preprocessing', {})), **given}
    with _find_config(project, arguments, recorded) as path:
        config = project.get_config(path, flags=flags, opts=arguments.opts)
    names, source = recorded.get('class_names'), arguments.pretrained
    for labels in (config.DATA.LABELS, arguments.labels):
        if labels:
            names, source = read_labels(labels), labels
    check_class_names(names, config.MODEL.NUM_CLASSES, source)
    preprocessing = read_preprocessing(config, names)
    check_channels(preprocessing)
    paddle.set_device(choose_device(config.DEVICE))
    model = project.build_model(config)
    load_from_config(model, config)
    model.eval()
    return Trained(model, config, preprocessing)


def read_record(source, project=None):
    """Return what a checkpoint records beside its weights: config, preprocessing, class_names."""
    tree = open_container(resolve(source, project)).tree
    kinds = {'config': str, 'preprocessing': dict, 'class_names': (list, tuple)}
    record = {key: tree[key] for key, kind in kinds.items() if isinstance(tree.get(key), kind)}
    if 'class_names' in record:
        record['class_names'] = [str(name) for name in record['class_names']]
    return record


@contextlib.contextmanager
def _find_config(project, arguments, recorded):
    """Give the path of the yaml file: the one named, or one with the recorded config."""
    if arguments.cfg:
        yield find_config(arguments.cfg, project.folder)
        return
    if 'config' not in recorded:
        raise UserError(f'{arguments.pretrained} does not say which model it is of; name its yaml '
                        f'file, such as -cfg=configs/{project.example_configs[1]}.yaml.')
    _check_type(project, arguments.pretrained, recorded['config'])
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'config.yaml')
        with open(path, 'w', encoding='utf-8') as file:
            file.write(recorded['config'])
        yield path


def _check_type(project, source, text):
    """Raise UserError if a recorded config is of another model than the project's."""
    try:
        found = yaml.safe_load(text)['MODEL']['TYPE']
    except (yaml.YAMLError, TypeError, KeyError):
        raise UserError(f'{source} is damaged: its config cannot be read.') from None
    wanted = project.get_config().MODEL.TYPE
    if found != wanted:
        raise UserError(f'{source} is a checkpoint of {found}, and this script is for {wanted}. '
                        "Use the same script in the other model's directory.")
