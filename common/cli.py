"""The command line of the main scripts: PaddleViT's flags, and what was missing there."""

import argparse
import os

from common.errors import UserError, suggest

# flag, config key, type, help
VALUE_FLAGS = (
    ('dataset', 'DATA.DATASET', str, 'imagenet2012, imagefolder, cifar10, cifar100 or digits'),
    ('data_path', 'DATA.DATA_PATH', str, 'root of the data set, or its train/ or val/ folder'),
    ('output', 'SAVE', str, 'folder in which run folders are made (default: ./output)'),
    ('batch_size', 'DATA.BATCH_SIZE', int, 'images a process and micro-batch'),
    ('batch_size_eval', 'DATA.BATCH_SIZE_EVAL', int, 'images a process when evaluating'),
    ('image_size', 'DATA.IMAGE_SIZE', int, 'height and width of the model\'s input, in pixels'),
    ('num_classes', 'MODEL.NUM_CLASSES', int,
     'number of classes; a head of another size is made anew'),
    ('accum_iter', 'TRAIN.ACCUM_ITER', int, 'micro-batches an optimizer update'),
    ('pretrained', 'MODEL.PRETRAINED', str,
     'weights: a file of any known format (.pdparams may be left off), a folder, or a name'),
    ('resume', 'MODEL.RESUME', str,
     'checkpoint or run folder to continue from; "auto": the newest good one under -output'),
    ('last_epoch', 'TRAIN.LAST_EPOCH', int, 'epochs already done, for the learning-rate schedule'),
    ('device', 'DEVICE', str, 'auto (a GPU if there is one), cpu, gpu or gpu:N'),
    ('num_workers', 'DATA.NUM_WORKERS', int, 'processes that load images; 0: none'),
    ('nprocs', 'NPROCS', int, 'main_multi_gpu: processes to start (default: every visible GPU)'),
    ('ngpus', 'NPROCS', int, 'PaddleViT\'s name for -nprocs'),
    ('seed', 'SEED', int, 'seed of initialisation, order, augmentation and dropout'),
)

SWITCHES = (
    ('eval', 'EVAL', 'evaluate and stop'),
    ('amp', 'AMP', 'mixed precision (AMP_LEVEL and AMP_DTYPE choose which)'),
    ('visualdl', 'VISUALDL', 'write VisualDL logs to the run folder'),
)

EXAMPLES = """examples:
  python {script} -cfg=configs/{digits_config}.yaml
  python {script} -cfg=configs/{model}.yaml -dataset=imagenet2012 \\
      -data_path=/dataset/imagenet -eval -pretrained=./{model}.pdparams
  python {script} -cfg=configs/{model}.yaml -data_path=/my/pictures -dataset=imagefolder \\
      -num_classes=5 -pretrained=./{model}.pdparams -opts TRAIN.BASE_LR 1e-4

Flags take one or two dashes, and their value after a space or "=". Any option of config.py
can be set with -opts KEY VALUE; flags win over the yaml file, -opts over flags.
"""


class FlagParser(argparse.ArgumentParser):
    """Flags with one or two dashes, spelt out; raises UserError where argparse would exit."""

    def add_flag(self, name, **options):
        self.add_argument(f'-{name}', f'--{name}', dest=name, **options)

    def check_names(self, argv):
        """Raise UserError for a flag that is not spelt out exactly."""
        names = [name.lstrip('-') for name in self._option_string_actions]
        for argument in argv:           # argparse would take -batch for -batch_size
            name = argument.split('=', 1)[0].lstrip('-')
            if argument.startswith('-') and name[:1].isalpha() and name not in names:
                raise UserError(f'Unknown flag -{name}.{suggest(name, set(names))}')

    def error(self, message):
        raise UserError(f'{message[0].upper()}{message[1:]}. -h lists every flag.')


def parse_command_line(project, argv, script):
    """Return the frozen config that the arguments ask for.

    project: common.project.Project. argv: arguments without the script's name.
    Raises UserError for an unknown flag, key or value.
    """
    parser = _build_parser(project, script)
    parser.check_names(argv)
    known, unexpected = parser.parse_known_args(argv)
    if unexpected:
        raise UserError(f'Unexpected argument {unexpected[0]!r}: values follow a flag, as in '
                        '-cfg FILE.')
    given = vars(known)
    flags = {key: given[name] for name, key, *_ in VALUE_FLAGS if given[name] is not None}
    flags |= {key: True for name, key, _ in SWITCHES if given[name]}
    if known.eval and known.batch_size and not known.batch_size_eval:
        flags['DATA.BATCH_SIZE_EVAL'] = known.batch_size    # as PaddleViT does
    path = find_config(known.cfg, project.folder) if known.cfg else None
    return project.get_config(path, flags=flags, opts=known.opts)


def find_config(path, folder):
    """Return the yaml file's path: as given, or else relative to the model directory."""
    beside_the_script = os.path.join(folder, path)
    if not os.path.exists(path) and os.path.exists(beside_the_script):
        return beside_the_script
    return path


def _build_parser(project, script):
    digits_config, model = project.example_configs
    parser = FlagParser(
        prog=script, description=f'Train or evaluate {project.name}.', allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(script=script, digits_config=digits_config, model=model))
    parser.add_flag('cfg', metavar='FILE', help='yaml file of the model and its recipe')
    for name, key, kind, text in VALUE_FLAGS:
        metavar = 'N' if kind is int else 'X'
        parser.add_flag(name, type=kind, metavar=metavar, help=f'{text} [{key}]')
    for name, key, text in SWITCHES:
        parser.add_flag(name, action='store_true', help=f'{text} [{key}]')
    parser.add_flag('opts', nargs='*', default=[], metavar='KEY VALUE',
                    help='any options of config.py, for example TRAIN.BASE_LR 3e-4')
    return parser
