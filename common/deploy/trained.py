"""A trained model from a checkpoint: its config, weights, preprocessing and class names.

Checkpoints written here record all of these, so that they need no yaml; for others
the config says what the file does not.
"""

import logging
import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import paddle
from yacs.config import CfgNode

from common.checkpoints.record import FIELDS
from common.cli import FlagParser, add_option_flag, build_config, find_config, list_flags
from common.config import Options, read_dump
from common.data.classes import (
    IMAGENET,
    read_class_names,
    read_imagenet_names,
    rename_classes,
    translate_ids,
)
from common.data.preprocessing import (
    Preprocessing,
    check_channels,
    list_recorded_options,
    read_preprocessing,
)
from common.deploy.preprocessing import check_class_names
from common.errors import UserError
from common.machine.device import allow_tf32, choose_device
from common.project import Project
from common.weights import load_from_config
from common.weights.containers import open_container
from common.weights.read import read_names
from common.weights.registry import resolve

logger = logging.getLogger(__name__)

# The options that every script which uses a trained model takes as flags.
FLAGS = {key: option for key, option in list_flags().items()
         if key in ('MODEL.PRETRAINED', 'DATA.IMAGE_SIZE', 'MODEL.NUM_CLASSES', 'DEVICE')}
# Options that name files or devices of the machine that trained.
FILES = ('DATA.DATA_PATH', 'DATA.LABELS', 'MODEL.RESUME', 'MODEL.PRETRAINED', 'SAVE', 'DEVICE',
         'NPROCS')
# Fields of a checkpoint that using its weights reads.
RECORDED = ('config', 'preprocessing', 'class_names', 'best', 'epoch', 'update', 'data')


@dataclass
class Trained:
    """A model in eval mode, and what using it takes.

    record: what its checkpoint says beside the weights, see read_record. source: the weights' name
    or path.
    """

    model: Any
    config: CfgNode
    preprocessing: Preprocessing
    record: dict[str, Any] = field(default_factory=dict)
    source: str = ''


def add_model_flags(parser: FlagParser) -> None:
    """Add the flags that load_trained reads to a FlagParser."""
    parser.add_flag('cfg', metavar='FILE', help='yaml file of the model; checkpoints written here '
                    'need none')
    for key, option in FLAGS.items():
        add_option_flag(parser, key, option)
    parser.add_flag('labels', metavar='FILE', help='class names, one a line')
    parser.add_flag('opts', nargs='*', action='extend', default=[], metavar='KEY VALUE',
                    help='any options of config.py, for example DATA.CROP_PCT 0.9')


def parse_model_flags(argv: Sequence[str]) -> Namespace:
    """Return what load_trained reads, from flags as they stand on a command line."""
    parser = FlagParser()
    add_model_flags(parser)
    return parser.parse_args(argv)


def load_trained(project: Project, arguments: Any) -> Trained:
    """Return the Trained model that the flags name, on the device they name.

    Precedence: the yaml file, or else the checkpoint's recorded config; the checkpoint's
    preprocessing; flags; -opts. Raises UserError.
    """
    if not arguments.pretrained:
        raise UserError('Which weights? Give -pretrained=FILE. A checkpoint of a run will do, '
                        'such as <run folder>/best.')
    recorded = read_record(arguments.pretrained, project)
    given = {key: getattr(arguments, option.flags[0]) for key, option in FLAGS.items()
             if getattr(arguments, option.flags[0]) is not None}
    path, options = _choose_config(project, arguments, recorded)
    flags = {**options, 'EVAL': True, **list_recorded_options(recorded.get('preprocessing', {})),
             **given}
    config = build_config(project, path, flags, arguments.opts)
    names = recorded.get('class_names')
    if 'config' not in recorded and names and len(names) != config.MODEL.NUM_CLASSES:
        names = None                # what lies beside other people's weights may be of another head
    names = choose_class_names(names, config, arguments)
    preprocessing = read_preprocessing(config, names)
    check_channels(preprocessing)
    device = choose_device(config.DEVICE)
    paddle.set_device(device)
    allow_tf32(config.TF32, device)
    model: Any = project.build_model(config)
    load_from_config(model, config)
    model.eval()
    return Trained(model, config, preprocessing, recorded, arguments.pretrained)


def choose_class_names(recorded: list[str] | None, config: Any, arguments: Any
                       ) -> list[str] | None:
    """Return the names of a model's classes: recorded, or of -labels or DATA.LABELS.

    The labels file of the training, which its yaml file names, may be gone once the checkpoint
    records the names.
    """
    names, source = recorded, arguments.pretrained
    labels = config.DATA.LABELS
    if not labels and not arguments.labels:
        names = find_shown_names(recorded, config)
    if labels and (recorded is None or os.path.exists(labels) or 'DATA.LABELS' in arguments.opts):
        names, source = rename_classes(recorded, read_class_names(labels), labels), labels
    if arguments.labels:
        source = arguments.labels
        names = rename_classes(recorded, read_class_names(source), source)
    check_class_names(names, config.MODEL.NUM_CLASSES, source)
    return names


def find_shown_names(recorded: list[str] | None, config: Any) -> list[str] | None:
    """Return the names to show for classes that no labels file names; None: their numbers.

    WordNet ids are translated. Weights that record no names are ImageNet's, by the number of
    their classes, unless they were trained here on something else.
    """
    if recorded is not None:
        return translate_ids(recorded)
    names = read_imagenet_names(config.MODEL.NUM_CLASSES)
    if names is None or config.DATA.DATASET not in (IMAGENET, Options.DATA.DATASET.default):
        return None
    logger.info('The weights do not name their %s classes: they are taken for those of ImageNet '
                '(-labels=FILE for others).', f'{len(names):,}')
    return list(names)


def read_record(source: str, project: Project | None = None) -> dict[str, Any]:
    """Return what a checkpoint records beside its weights, without the fields that are not right.

    Of RECORDED: config, preprocessing, class_names, the best validation, how far it had come.
    """
    container = open_container(resolve(source, project))
    tree, names = container.tree, read_names(container)
    record = {key: tree[key] for key in RECORDED
              if tree.get(key) is not None and FIELDS[key][0](tree[key])}
    record.pop('class_names', None)
    return record if names is None else record | {'class_names': names}


def _choose_config(project, arguments, recorded):
    """Return (path of the yaml file that is named or None, options that the checkpoint records).

    A record is data: what it says of files on the machine that trained is left out.
    """
    if arguments.cfg:
        return find_config(arguments.cfg, project.folder), {}
    if 'config' not in recorded:
        return None, {}                                 # the weights themselves tell
    source = arguments.pretrained
    options = read_dump(recorded['config'], f'The config recorded in {source}')
    found, wanted = options.get('MODEL.TYPE'), project.get_config().MODEL.TYPE
    if found != wanted:
        raise UserError(f'{source} is a checkpoint of {str(found)[:40]}, and this script is for '
                        f"{wanted}. Use the same script in the other model's directory.")
    options = {key: value for key, value in options.items() if key not in FILES}
    try:
        project.get_config(flags=options)
    except UserError as error:
        raise UserError(f'{source} records a config that cannot be used: {error}') from None
    return None, options
