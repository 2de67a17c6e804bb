"""The command line of the main scripts: PaddleViT's flags, and what was missing there.

Flags that stand for an option are declared with it, in common/config.py.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, NoReturn

from yacs.config import CfgNode

from common.config import Options, get_value, list_unset
from common.data.datasets import count_classes
from common.deploy.formats import is_exported
from common.errors import UserError, suggest
from common.option import Option, list_options, shorten, show
from common.project import Project
from common.weights import find_preprocessing, open_weights
from common.weights.load import INIT_ONLY, count_outputs
from common.weights.registry import resolve
from common.yaml_text import read_yaml

logger = logging.getLogger(__name__)

QUOTE = ' Quote names that have spaces, as in "My Pictures".'

EXAMPLES = """examples:
  python {script} -cfg=configs/{digits_config}.yaml
  python {script} -cfg=configs/{model}.yaml -dataset=imagenet2012 \\
      -data_path=/dataset/imagenet -eval -pretrained=./{model}.pdparams
  python {script} -cfg=configs/{recipe}.yaml -data_path=/my/pictures \\
      -num_classes=5 -pretrained=./{model}.pdparams

Flags take one or two dashes, and their value after a space or "=". Any option of config.py
can be set with -opts KEY VALUE; flags win over the yaml file, -opts over flags, and of what is
given twice the last. -opts itself may be given more than once.
"""


class FlagParser(argparse.ArgumentParser):
    """Flags with one or two dashes, spelt out; raises UserError where argparse would exit."""

    def add_flag(self, name: str, *aliases: str, **options: Any) -> None:
        spellings = [f'{dashes}{text}' for text in (name, *aliases) for dashes in ('-', '--')]
        self.add_argument(*spellings, dest=name, **options)

    def parse_known_args(self, args: Iterable[str] | None = None,
                         namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, with the home folder for a ~ that the shell has left, as after "="."""
        args = sys.argv[1:] if args is None else args
        return super().parse_known_args([expand_home(argument) for argument in args], namespace)

    def check_names(self, argv: list[str]) -> None:
        """Raise UserError for a flag that is not spelt out exactly."""
        names = [name.lstrip('-') for name in self._option_string_actions]
        for argument in argv:           # argparse would take -batch for -batch_size
            name = argument.split('=', 1)[0].lstrip('-')
            if argument.startswith('-') and name[:1].isalpha() and name not in names:
                name = shorten(name, 50)
                raise UserError(f'Unknown flag -{name}.{suggest(name, set(names))}')

    def error(self, message: str) -> NoReturn:
        words = message.partition('unrecognized arguments: ')[2].split()
        quote = QUOTE if any(not word.startswith('-') for word in words) else ''
        raise UserError(f'{message[0].upper()}{shorten(message[1:])}.{quote} -h lists every flag.')


def parse_command_line(project: Project, argv: list[str], script: str,
                       needs_model: bool = False) -> CfgNode:
    """Return the frozen config that the arguments ask for.

    project: common.project.Project. argv: arguments without the script's name. needs_model:
    refuse to train the defaults' model, where nothing says which model is meant.
    Raises UserError for an unknown flag, key or value.
    """
    parser = _build_parser(project, script)
    parser.check_names(argv)
    known, unexpected = parser.parse_known_args(argv)
    if unexpected:
        raise UserError(f'Unexpected argument {show(unexpected[0])}: values follow a flag, as in '
                        f'-cfg FILE.{QUOTE}')
    flags = {key: getattr(known, option.flags[0])
             for key, option in list_flags(project.options).items()
             if getattr(known, option.flags[0]) not in (None, False)}
    if known.eval and known.batch_size and not known.batch_size_eval:
        flags['DATA.BATCH_SIZE_EVAL'] = known.batch_size    # as in PaddleViT
    path = find_config(known.cfg, project.folder) if known.cfg else None
    if needs_model and path is None and not list_own_options(project) & {*flags, *known.opts}:
        path = _find_run_config(project, flags, known.opts)
    return build_config(project, path, flags, known.opts)


def _find_run_config(project, flags, opts):
    """Return the yaml file of the run that is continued; None: the weights tell their model.

    Raises UserError where nothing does.
    """
    config = project.get_config(flags=flags, opts=opts)
    if config.MODEL.RESUME:
        # Here: it imports Paddle, which scripts without a model do without.
        from common.checkpoints.find import find_run_config

        path = find_run_config(config.MODEL.RESUME, config.SAVE)
        if path is not None:
            if 'BASE' in read_yaml(path):       # a run writes none: nobody has asked for that file
                raise UserError(f'{path} names other files (BASE), which no run writes there. If '
                                f'it is your own, take it by -cfg={path}.')
            logger.info('The options of the run that is continued: %s', path)
            return path
    elif config.MODEL.PRETRAINED:
        return None
    small, usual = project.example_configs
    raise UserError(f"""Which model? Name its yaml file, or weights, which tell theirs:
  -cfg=configs/{small}.yaml      a small one on data that comes with the code, in minutes
  -cfg=configs/{usual}.yaml -dataset=imagenet2012 -data_path=DIR
  -pretrained=FILE -eval -dataset=imagenet2012 -data_path=DIR
  python finetune.py DIR      your own pictures, one folder a class""")


def build_config(project: Project, path: str | None, flags: dict[str, Any],
                 opts: list[str]) -> CfgNode:
    """Return project.get_config(...), with what the weights of MODEL.PRETRAINED and the data tell.

    Of the weights that is their preprocessing and their model, of the data the number of
    classes. It holds for options that neither the yaml file nor flags nor -opts set. Weights that
    cannot be read are refused where they are loaded, unless nothing else tells the model, data
    where it is opened; a run that is continued does not load them.
    Raises UserError for an unknown key or value, and for weights that do not tell their model;
    RunError for a download that fails.
    """
    config = project.get_config(path, flags=flags, opts=opts)
    told = _read_told(project, path, config, {*flags, *opts})
    if not config.EVAL:
        told.pop('MODEL.NUM_CLASSES', None)
    unset = [key for key in list_unset(project.options, path, {*told, 'MODEL.NUM_CLASSES'})
             if key not in flags and key not in opts]
    flags = {**{key: told[key] for key in unset if key in told}, **flags}
    try:
        config = project.get_config(path, flags=flags, opts=opts)
    except UserError as error:
        if path is None and is_exported(config.MODEL.PRETRAINED):   # which records no model
            raise UserError(f'{error}\n{config.MODEL.PRETRAINED} is an exported model: name the '
                            'yaml file it was trained with by -cfg.') from None
        raise
    if config.EVAL or 'MODEL.NUM_CLASSES' not in unset:
        return config
    num_classes = count_classes(config)
    if num_classes in (None, config.MODEL.NUM_CLASSES):
        return config
    return project.get_config(path, flags={**flags, 'MODEL.NUM_CLASSES': num_classes}, opts=opts)


def _read_told(project, path, config, given):
    """Return {key: value} that the weights tell of themselves. given: keys of flags and opts."""
    source = config.MODEL.PRETRAINED
    if not source:
        return {}
    if is_exported(source):
        return _read_exported(source)
    own = list_own_options(project)
    wants_model = path is None and not own & given
    try:
        weights = None
        if wants_model or config.EVAL or resolve(source, project).endswith('.pdparams'):
            weights = open_weights(source, project)
        stated = weights.preprocessing_options if weights else find_preprocessing(source, project)
    except UserError:
        if wants_model:         # which nothing else tells
            raise
        return {}
    told = {}
    if weights is not None:
        told = _read_model(project, weights) if wants_model else \
            _adopt_record(project, weights, path, config, given)
        if config.EVAL and (count := count_outputs(weights, project)):
            told.setdefault('MODEL.NUM_CLASSES', count)
    channels = told.get('DATA.IMAGE_CHANNELS', config.DATA.IMAGE_CHANNELS)
    return told | {key: value for key, value in stated.items()  # a number for each channel
                   if not isinstance(value, list) or len(value) == channels}


def _read_exported(folder):
    """Return {key: value} of what an exported folder is for."""
    # Here: it imports Paddle, which scripts without a model do without.
    from common.data.preprocessing import list_recorded_options
    from common.deploy.engine import read_check
    from common.deploy.preprocessing import load_preprocessing
    logits, image_size = read_check(folder)
    return {**list_recorded_options(asdict(load_preprocessing(folder))),
            'DATA.IMAGE_SIZE': image_size, 'MODEL.NUM_CLASSES': logits.shape[1]}


def list_own_options(project: Project) -> set[str]:
    """Return the keys of the options that a model directory adds to the shared ones."""
    return set(list_options(project.options)) - set(list_options(Options))


def _read_model(project, weights):
    """Return {key: value} of the model that weights are of: as recorded, or as the tensors tell."""
    recorded = _list_recorded(project, weights)
    if recorded:
        keys = ('MODEL.NAME', 'DATA.IMAGE_SIZE', 'DATA.IMAGE_CHANNELS')
        return recorded | {key: weights.options[key] for key in keys if key in weights.options}
    if project.read_options is None:
        raise UserError(f'{weights.path} does not say which model it is of; name its yaml file, '
                        f'such as -cfg=configs/{project.example_configs[1]}.yaml.')
    return project.read_options(weights)


def _adopt_record(project, weights, path, config, given):
    """Return {key: value} of the recorded model for the keys that nobody has set, said in a line.

    Nothing where a key that somebody has set is another one: the difference is refused where the
    weights are loaded, naming both.
    """
    recorded = _list_recorded(project, weights)
    others = {key for key, value in recorded.items() if value != get_value(config, key)}
    unset = {key for key in list_unset(project.options, path, recorded) if key not in given}
    if not others or others - unset:
        return {}
    logger.info('As recorded in %s: %s', weights.path,
                ', '.join(f'{key} {show(recorded[key])}' for key in sorted(others)))
    return recorded


def _list_recorded(project, weights):
    """Return {key: value} of the options of the model alone that a checkpoint records."""
    kind = weights.options.get('MODEL.TYPE')
    if kind != project.get_config().MODEL.TYPE:
        return {}
    return {key: weights.options[key] for key in list_own_options(project)
            if key.startswith('MODEL.') and key in weights.options and key not in INIT_ONLY}


def expand_home(argument: str) -> str:
    """Return an argument with the home folder for the ~ that it, or its value, begins with."""
    flag, equals, value = argument.partition('=')
    if argument.startswith('-') and equals and value.startswith('~'):
        return f'{flag}={os.path.expanduser(value)}'
    return os.path.expanduser(argument) if argument.startswith('~') else argument


def find_config(path: str, folder: str) -> str:
    """Return the yaml file's path: as given, or else relative to the model directory."""
    path = os.path.expanduser(path)
    beside_the_script = os.path.join(folder, path)
    if not os.path.exists(path) and os.path.exists(beside_the_script):
        return beside_the_script
    return path


def _build_parser(project, script):
    digits_config, model = project.example_configs
    recipe = f'finetune/{model}'        # pre-training's own warms up for longer than most runs last
    if not os.path.exists(os.path.join(project.folder, 'configs', f'{recipe}.yaml')):
        recipe = model
    parser = FlagParser(
        prog=script, description=f'Train or evaluate {project.name}.', allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(script=script, digits_config=digits_config, model=model,
                               recipe=recipe))
    parser.add_flag('cfg', metavar='FILE', help='yaml file of the model and its recipe')
    for key, option in list_flags(project.options).items():
        add_option_flag(parser, key, option)
    parser.add_flag('opts', nargs='*', action='extend', default=[], metavar='KEY VALUE',
                    help='any options of config.py, for example TRAIN.BASE_LR 3e-4')
    return parser


def list_flags(options: type[Options] = Options) -> dict[str, Option]:
    """Return {key: Option} of the options that have a flag."""
    return {key: option for key, option in list_options(options).items() if option.flag}


def add_option_flag(parser: FlagParser, key: str, option: Option) -> None:
    """Add an option's flag; its value stays text, which load_config reads and checks."""
    name, *others = option.flags
    names = [f'{dashes}{flag}' for flag in (name, *others) for dashes in ('-', '--')]
    text = f'{option.help} [{key}]'.replace('%', '%%')
    if option.type is bool:
        parser.add_argument(*names, dest=name, action='store_true', help=text)
    else:
        metavar = 'N' if option.type is int else 'X'
        parser.add_argument(*names, dest=name, metavar=metavar, help=text)
