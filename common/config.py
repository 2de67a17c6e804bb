"""The options that every model shares, and how they are read.

Order of precedence: defaults here and in the model's `config.py`, the yaml
file (with `BASE` inheritance), command-line flags, `-opts`. Names and
defaults are PaddleViT's where PaddleViT has the option. docs/options.md is
made from these lines (python -m common.tools.options), options_cn.md from
docs/options_cn.yaml.
"""

import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import yaml
from yacs.config import CfgNode

from common.errors import UserError, suggest
from common.machine.environment import measure_memory
from common.option import Option, copy_default, list_options, parse, shorten, show
from common.yaml_text import parse_yaml, read_yaml

MAX_FILES = 100         # that one config may stand on
FILTERS = ('bicubic', 'bilinear', 'lanczos', 'nearest')
# Conditions of several options (Option.needs).
MOMENTS = ('TRAIN.OPTIMIZER.NAME=AdamW,Adam,Lamb',)
DECAYS = 'TRAIN.LR_SCHEDULER.NAME=cosine,linear,polynomial'
WARMUP = 'TRAIN.WARMUP_EPOCHS|TRAIN.WARMUP_STEPS'
CUTMIX = 'TRAIN.CUTMIX_ALPHA|TRAIN.CUTMIX_MINMAX'
IN_TABLES = 'DATA.DATASET=csv,shards,parquet'
IN_COLUMNS = 'DATA.DATASET=csv,parquet'
IN_FILES = '!DATA.DATASET=digits,cifar10,cifar100,mnist,fashion_mnist'


class Options:
    """Every shared option. A model directory's class inherits, and adds its own."""

    BASE = Option([''], each=str, help='yaml files to read first, relative to this one')

    class DATA:
        DATASET = Option('digits', flag='dataset',
                         help='imagenet2012, imagefolder, csv, shards, parquet, cifar10, cifar100, '
                         'mnist, fashion_mnist or digits')
        DATA_PATH = Option('', flag='data_path', path='home',
                           help='root of the data set, its train/ or val/ folder, or the file '
                           'that holds it')
        VAL_PATH = Option('', path='home', needs=(IN_TABLES,),
                          help='validation data, where it is not found at DATA_PATH')
        TABLE = Option('', needs=('DATA.DATASET=csv',),
                       help='the table, with paths relative to DATA_PATH; "": DATA_PATH is it')
        IMAGE_COLUMN = Option('', needs=(IN_COLUMNS,),
                              help='column with the path, or the picture; "": the usual names')
        LABEL_COLUMN = Option('', needs=(IN_TABLES,),
                              help='column, or key of a .json, with the label; "": the usual '
                              'names')
        SPLIT_COLUMN = Option('', needs=('DATA.DATASET=csv',),
                              help='column that says train or val; "": the usual names')
        BATCH_SIZE = Option(128, above=0, flag='batch_size',
                            help='images a process and micro-batch')
        BATCH_SIZE_EVAL = Option(None, kind=int, above=0, flag='batch_size_eval',
                                 help='images a process when evaluating; none: BATCH_SIZE')
        IMAGE_SIZE = Option(224, above=0, at_most=65_535, flag='image_size',
                            help="height and width of the model's input, in pixels")
        IMAGE_CHANNELS = Option(3, above=0, at_most=1024, help='channels of an image')
        CROP_PCT = Option(0.875, at_least=0.05, at_most=1,
                          help='evaluation: resize to IMAGE_SIZE / CROP_PCT, then crop')
        INTERPOLATION = Option('bicubic', choices=FILTERS, help='evaluation: filter of the resize')
        IMAGENET_MEAN = Option([0.5, 0.5, 0.5], each=float,
                               help='of pixels scaled to [0, 1]; R, G, B')
        IMAGENET_STD = Option([0.5, 0.5, 0.5], each=float, at_least=1e-6,
                              help='of pixels scaled to [0, 1]; R, G, B')
        NUM_WORKERS = Option('auto', kind=int, also=('auto',), at_least=0, at_most=1024,
                             flag='num_workers',
                             help='processes that load images, for each training process; 0: '
                             'none; auto: 2, on accelerators its share of the cores but one, 16 '
                             'at most')
        USE_SHARED_MEMORY = Option(True, needs=('DATA.NUM_WORKERS',),
                                   help='False where /dev/shm is small (containers, notebooks)')
        SKIP_CORRUPT = Option(False, needs=(IN_FILES,),
                              help='count unreadable images and go on')
        EXIF_ORIENTATION = Option(False, needs=(IN_FILES,),
                                  help="turn pictures as EXIF's orientation says; off, since "
                                  "the references' evaluations on ImageNet ignore it")
        VAL_FRACTION = Option(0.0, at_least=0, at_most=1,
                              help='share split off for validation where there is no val/')
        LABELS = Option(None, kind=str, path='absolute', help='file with one class name a line')

    class MODEL:
        TYPE = Option('', help='the model family; fixed by the directory')
        NAME = Option('', help='names the run and its checkpoints')
        PRETRAINED = Option(None, kind=str, flag='pretrained', path='home',
                            help='weights: a file of any known format (.pdparams may be left '
                            'off), a folder, or a name')
        RESUME = Option(None, kind=str, flag='resume', path='home',
                        help='checkpoint or run folder to continue from; "auto": the newest good '
                        'one under -output')
        NUM_CLASSES = Option(1000, above=0, flag='num_classes',
                             help='number of classes; a head of another size is made anew')
        DROPOUT = Option(0.0, at_least=0, at_most=1, help='of embeddings, projections and MLPs')
        ATTENTION_DROPOUT = Option(0.0, at_least=0, at_most=1, help='of attention probabilities')
        DROPPATH = Option(0.0, at_least=0, below=1,
                          help='stochastic depth: rate of the last block')
        GELU = Option('erf', choices=('erf', 'tanh'), help='erf, or its approximation by tanh')
        LAYER_NORM_EPS = Option(1e-6, above=0, at_most=1e-3, help="LayerNorm's epsilon")
        RECOMPUTE = Option(False, help='recompute activations in backward to save memory')
        NUMERICS = Option('source', choices=('source', 'model'), needs=('MODEL.PRETRAINED',),
                          help="GELU and epsilon: those of the checkpoint's source, or MODEL's")
        PRETRAINED_EMA = Option(True, needs=('MODEL.PRETRAINED',),
                                help="prefer a checkpoint's averaged weights")
        POSITION_RESIZE = Option('source', choices=('source', 'timm', 'google', 'bicubic',
                                                   'bicubic_offset'),
                                 needs=('MODEL.PRETRAINED',),
                                 help='how position embeddings are resized')
        HEAD_INIT = Option('zero', choices=('zero', 'trunc_normal'), needs=('MODEL.PRETRAINED',),
                           help='how a head starts that has another size or other classes '
                           "than the checkpoint's")
        ALLOW_MISSING = Option(False, needs=('EVAL',),
                               help='evaluate although the file lacks tensors')
        FREEZE = Option('', pattern='(backbone|[0-9]{1,6})?',
                        help='"backbone", or the number of first blocks; "": nothing is frozen')

    class TRAIN:
        LAST_EPOCH = Option(0, at_least=0, flag='last_epoch',
                            help='epochs already done, for the learning-rate schedule')
        NUM_EPOCHS = Option(300, above=0, needs=('!TRAIN.NUM_STEPS',),
                            help='length of the run without cooldown')
        NUM_STEPS = Option(None, kind=int, above=0,
                           help='optimizer updates; overrides NUM_EPOCHS')
        WARMUP_EPOCHS = Option(0, at_least=0, needs=('TRAIN.WARMUP_STEPS=None',),
                               help='epochs of linear warmup')
        WARMUP_STEPS = Option(None, kind=int, at_least=0,
                              help='updates; overrides WARMUP_EPOCHS')
        COOLDOWN_EPOCHS = Option(0, at_least=0, help='further epochs at END_LR')
        BASE_LR = Option(1e-3, at_least=0, help='peak learning rate, for updates of '
                         'LINEAR_SCALED_LR images where that is set')
        WARMUP_START_LR = Option(0.0, at_least=0, needs=(WARMUP,),
                                 help='learning rate of the first update of the warmup')
        END_LR = Option(0.0, at_least=0, help='learning rate at the end',
                        needs=(DECAYS,))
        LINEAR_SCALED_LR = Option(None, kind=int, above=0,
                                  help='batch size BASE_LR belongs to; none: no scaling')
        RECIPE_BATCH = Option(None, kind=int, above=0,
                              help='images an update the recipe is for: warn of another')
        WEIGHT_DECAY = Option(0.05, at_least=0, help='not of biases, norms and tokens')
        NO_WEIGHT_DECAY = Option([], each=str, needs=('TRAIN.WEIGHT_DECAY',),
                                 help='parameter names beside biases, norms and tokens')
        LAYER_DECAY = Option(1.0, above=0, at_most=1,
                             help='learning-rate factor a block towards the input')
        HEAD_LR_SCALE = Option(1.0, above=0, help='learning-rate factor of the classifier')
        GRAD_CLIP = Option(1.0, kind=float, above=0, help='global norm of gradients; none: off')
        ACCUM_ITER = Option(1, above=0, flag='accum_iter',
                            help='micro-batches an optimizer update')
        MODEL_EMA = Option(False, help='average the weights over the updates')
        MODEL_EMA_DECAY = Option(0.99996, at_least=0, at_most=1, needs=('TRAIN.MODEL_EMA',),
                                 help='of the average, an update')
        MODEL_EMA_WARMUP = Option(False, needs=('TRAIN.MODEL_EMA',),
                                  help='start with a faster average')
        SMOOTHING = Option(0.0, at_least=0, at_most=1, help='label smoothing')
        CLASS_WEIGHTS = Option(None, kind=list, each=float, at_least=0, also=(['balanced'],),
                               help='one factor a class, or balanced: by the number of its images')
        EARLY_STOP_EPOCHS = Option(None, kind=int, above=0,
                                   help='stop after so many validations without a new best')
        EARLY_STOP_STEPS = Option(None, kind=int, above=0,
                                  help='stop after so many updates without a new best')

        class LR_SCHEDULER:
            NAME = Option('cosine', help='shape of the decay after the warmup',
                          choices=('cosine', 'linear', 'step', 'polynomial', 'constant'))
            MILESTONES = Option([30, 60, 90], each=float, at_least=0, help='step: epochs',
                                needs=('TRAIN.LR_SCHEDULER.NAME=step',))
            DECAY_RATE = Option(0.1, at_least=0, at_most=1, help='step: factor at each milestone',
                                needs=('TRAIN.LR_SCHEDULER.NAME=step',))
            POWER = Option(1.0, at_least=0, at_most=1000, help='polynomial: exponent',
                           needs=('TRAIN.LR_SCHEDULER.NAME=polynomial',))
            FROM_START = Option(False, help='count the decay from update 0 (timm), not from '
                                'warmup', needs=(DECAYS, WARMUP))

        class OPTIMIZER:
            NAME = Option('AdamW', choices=('AdamW', 'Adam', 'SGD', 'Momentum', 'Lamb', 'Lars'),
                          help='SGD is Momentum; Lars is refused: Paddle lacks it')
            EPS = Option(1e-8, at_least=0, needs=MOMENTS, help='added to the root of the second '
                         'moment')
            BETAS = Option([0.9, 0.999], count=2, each=float, at_least=0, below=1, needs=MOMENTS,
                           help='decay of the first and the second moment')
            MOMENTUM = Option(0.9, at_least=0, below=1, help='of the gradients',
                              needs=('TRAIN.OPTIMIZER.NAME=SGD,Momentum',))
            NESTEROV = Option(False, needs=('TRAIN.OPTIMIZER.NAME=SGD,Momentum',),
                              help="Nesterov's momentum")

        LOSS = Option('cross_entropy', choices=('cross_entropy', 'binary'),
                      help='binary: a yes or no of every class by itself (arXiv 2204.07118)')
        REPEATED_AUGMENTS = Option(1, at_least=1, at_most=64,
                                   help='draws of an image in a row, each augmented anew; an epoch '
                                   'then has a share of the images')
        CROP = Option('random_resized', choices=('random_resized', 'resize', 'simple'),
                      help='a random part of the image, the whole image, or a random square of '
                      'the whole height or width (arXiv 2204.07118)')
        CROP_SCALE = Option([0.08, 1.0], count=2, each=float, at_least=1e-3, at_most=1,
                            is_range=True, needs=('TRAIN.CROP=random_resized',),
                            help='share of the area')
        CROP_RATIO = Option([0.75, 4 / 3], count=2, each=float, at_least=1e-2, at_most=100,
                            is_range=True, needs=('TRAIN.CROP=random_resized',),
                            help='width / height')
        INTERPOLATION = Option('bicubic', choices=('bicubic', 'bilinear', 'random'),
                               help='filter of the crop and of AUTO_AUGMENT')
        HFLIP = Option(0.5, at_least=0, at_most=1, help='probability of a mirrored image')
        AFFINE_DEGREES = Option(0.0, at_least=0, at_most=180, help='random rotation, +- degrees')
        AFFINE_TRANSLATE = Option(0.0, at_least=0, at_most=1,
                                  help='random shift, +- share of the size')
        AFFINE_SCALE = Option([1.0, 1.0], count=2, each=float, at_least=1e-2, at_most=100,
                              is_range=True, help='random factor of the size')
        AFFINE_SHEAR = Option(0.0, at_least=0, below=90, help='random shear, +- degrees')
        COLOR_JITTER = Option(0.0, at_least=0, at_most=100, needs=('!TRAIN.AUTO_AUGMENT',),
                              help='strength of random brightness, contrast and saturation; '
                              'only where AUTO_AUGMENT is off, as in timm')
        AUTO_AUGMENT = Option('', help='"rand-m9-mstd0.5-inc1", "original", "v0", "three-j0.3"; '
                              '"": off')
        RANDOM_ERASE_PROB = Option(0.0, at_least=0, at_most=1,
                                   help='probability of random erasing in an image')
        RANDOM_ERASE_MODE = Option('pixel', choices=('pixel', 'const', 'rand'),
                                   needs=('TRAIN.RANDOM_ERASE_PROB',),
                                   help='noise in every pixel, the mean, or one colour')
        RANDOM_ERASE_COUNT = Option(1, at_least=1, at_most=1000,
                                    needs=('TRAIN.RANDOM_ERASE_PROB',),
                                    help='largest number of rectangles')
        RANDOM_ERASE_SPLIT = Option(False, needs=('TRAIN.RANDOM_ERASE_PROB',),
                                    help='leave the first half of each batch alone')
        MIXUP_ALPHA = Option(0.0, at_least=0, at_most=1000, help='0: no mixup')
        CUTMIX_ALPHA = Option(0.0, at_least=0, at_most=1000, needs=('!TRAIN.CUTMIX_MINMAX',),
                              help='0: no CutMix')
        CUTMIX_MINMAX = Option(None, kind=list, count=2, each=float, at_least=0, at_most=1,
                               is_range=True, help='[smallest, largest] side of the box, as '
                               'shares; replaces CUTMIX_ALPHA')
        MIXUP_PROB = Option(1.0, at_least=0, at_most=1, needs=(f'TRAIN.MIXUP_ALPHA|{CUTMIX}',),
                            help='probability of mixing at all')
        MIXUP_SWITCH_PROB = Option(0.5, at_least=0, at_most=1,
                                   needs=('TRAIN.MIXUP_ALPHA', CUTMIX),
                                   help='probability of CutMix where both are on')
        MIXUP_MODE = Option('batch', choices=('batch', 'pair', 'elem'),
                            needs=(f'TRAIN.MIXUP_ALPHA|{CUTMIX}',),
                            help='what shares one draw: the batch, a pair, or nothing')

    SAVE = Option('./output', flag='output', path='home',
                  help='folder in which run folders are made')
    SAVE_FREQ = Option(1, above=0, help='epochs between checkpoints')
    SAVE_STEPS = Option(None, kind=int, above=0, help='updates between checkpoints')
    SAVE_MINUTES = Option(None, kind=float, above=0, help='minutes between checkpoints')
    KEEP = Option(2, at_least=0, help='checkpoints kept beside the best and the last')
    REPORT_FREQ = Option(50, above=0, help='updates between reports')
    VALIDATE_FREQ = Option(1, above=0, help='epochs between validations')
    BEST = Option('highest', choices=('highest', 'latest'),
                  help='which validation is the best: the first with the highest acc1, or the last')
    SEED = Option(0, at_least=0, at_most=2 ** 63 - 1, flag='seed',
                  help='seed of initialisation, order, augmentation and dropout')
    EVAL = Option(False, flag='eval', help='evaluate and stop')
    AMP = Option(False, flag='amp', help='mixed precision (AMP_LEVEL and AMP_DTYPE choose which)')
    AMP_LEVEL = Option('O1', choices=('O1', 'O2'), needs=('AMP',),
                       help='O2 keeps the weights in half precision too')
    AMP_DTYPE = Option('float16', choices=('float16', 'bfloat16'), needs=('AMP',),
                       help='half-precision type')
    TF32 = Option(True, help='GPUs that have it round the factors of float32 products to 10 bits '
                  "(Paddle's default); False: exact, slower")
    DEVICE = Option('auto', flag='device', help='auto (an accelerator if there is one), '
                    'cpu, gpu, gpu:N, or another accelerator that Paddle lists')
    NPROCS = Option(None, kind=int, above=0, flag='nprocs ngpus',
                    help='main_multi_gpu: processes to start (none: one for each visible '
                    "accelerator, or one on the CPU); -ngpus is PaddleViT's name")
    WATCHDOG_SECONDS = Option(1800, at_least=0, help='a step longer than this is a hang; 0: off')
    SAVE_BAD_BATCH = Option(False, help='keep the batch that made the loss not finite')
    VISUALDL = Option(False, flag='visualdl', help='write VisualDL logs to the run folder')
    FAST = Option(True, help="CPU fast paths; False: Paddle's plain operators")
    EVAL_ENGINE = Option('auto', choices=('auto', 'model', 'plain', 'onednn', 'openvino'),
                         needs=('EVAL',), help='of -eval on a CPU; auto: a faster one where it '
                         'is repaid (most with the package openvino), else the model without what '
                         'no head reads; model: the model, whole')


def build_default_config(options: type[Options] = Options) -> CfgNode:
    """Return a new tree with every option of a class at its default."""
    config = CfgNode()
    for key, option in list_options(options).items():
        *groups, name = key.split('.')
        node = config
        for group in groups:
            node = node.setdefault(group, CfgNode())
        node[name] = copy_default(option)
    return config


def load_config(options: type[Options], path: str | None = None,
                flags: dict[str, Any] | None = None, opts: Iterable[str] | None = None,
                check: Callable[[CfgNode], None] | None = None) -> CfgNode:
    """Return the frozen config: the options' defaults with a yaml file, flags and opts merged in.

    path: yaml file or None. flags: {"DATA.BATCH_SIZE": 32, ...}; text is read as from the
    command line. opts: ["TRAIN.BASE_LR", "3e-4", ...]. check: the model's, called with the
    merged tree, raises UserError where options do not fit together. Raises UserError naming
    the source of a value that is unknown or wrong.
    """
    known = list_options(options)
    config = build_default_config(options)
    if path is not None:
        _merge_yaml(config, path, known, including=(), read=[])
    for key, value in (flags or {}).items():
        source = f'-{known[key].flags[0]}' if key in known and known[key].flag else 'command line'
        _set(config, key, value, known, source)
    for key, text in _pair(list(opts or [])):
        is_text = key in known and known[key].type is str
        _set(config, key, _read_text(text) if is_text else parse(text), known, source='-opts')
    check_config(config, known)
    if check is not None:
        check(config)
    config.freeze()
    return config


def list_unset(options: type[Options], path: str | None, keys: Iterable[str]) -> list[str]:
    """Return those of the keys that a yaml file and its BASEs leave at their defaults."""
    known, config, unset = list_options(options), build_default_config(options), object()
    for key in keys:
        group, _, name = key.rpartition('.')
        (get_value(config, group) if group else config)[name] = unset
    if path is not None:
        _merge_yaml(config, path, known, including=(), read=[])
    return [key for key in keys if get_value(config, key) is unset]


def check_config(config: CfgNode, options: dict[str, Option]) -> None:
    """Raise UserError for a value outside its range, and for shared options that do not fit."""
    for key, option in options.items():
        fault = option.find_fault(get_value(config, key))
        if fault:
            raise UserError(f'{key}: {fault}' if fault.startswith(('unknown', 'the range')) else
                            f'{key} {fault}.')
    channels = config.DATA.IMAGE_CHANNELS
    for key in ('DATA.IMAGENET_MEAN', 'DATA.IMAGENET_STD'):
        values = get_value(config, key)
        if len(values) != channels:
            raise UserError(f'{key} needs {channels} numbers, one a channel, not {show(values)}.')


def check_arguments(check: Callable[..., None], arguments: dict[str, Any],
                    keys: dict[str, str]) -> None:
    """Call a model's check of its constructor's arguments; say its ValueError with the keys.

    The rules stand once, in the model's file, which is read without a config too. arguments:
    all of the constructor's, of which `check` takes some. keys: {argument: option} where the
    option is not MODEL and the argument in capital letters.
    """
    wanted = inspect.signature(check).parameters
    try:
        check(**{name: arguments[name] for name in wanted})
    except ValueError as error:
        names = {name: keys.get(name, f'MODEL.{name.upper()}') for name in wanted}
        text = re.sub(r'\b(' + '|'.join(names) + r')\b', lambda match: names[match[0]], str(error))
        raise UserError(f'{text}.') from None


def check_memory(weights: int) -> None:
    """Raise UserError if so many float32 weights are more than this machine's memory.

    The system would end a process that tries, without a word of why.
    """
    available = measure_memory()
    if available is not None and 4 * weights > available:
        raise UserError(f'The model would have {weights:.2g} weights, {4 * weights / 1e9:,.0f} GB; '
                        f'this machine has {available / 1e9:,.0f} GB. Check the sizes under MODEL '
                        'and DATA.IMAGE_SIZE.')


def list_unused(config: CfgNode, options: type[Options]) -> list[str]:
    """Return a line for each option that is not at its default and that this run does not read.

    An evaluation reads nothing of TRAIN, which its yaml file may well be full of: one line.
    """
    lines = []
    if config.EVAL and config.TRAIN != build_default_config(options).TRAIN:
        lines.append('TRAIN, all of it (EVAL is True)')
    for key, option in list_options(options).items():
        value = get_value(config, key)
        if value == option.default or config.EVAL and key.startswith('TRAIN.'):
            continue
        reasons = [need for need in option.needs if not _holds(config, need)]
        if reasons:
            others = [f'{other} is {show(get_value(config, other))}'
                      for other in reasons[0].lstrip('!').split('=')[0].split('|')]
            lines.append(f'{key} {show(value)} ({" and ".join(others)})')
    return lines


def _holds(config, need):
    """Return whether a condition of Option.needs is met."""
    keys, has_values, wanted = need.lstrip('!').partition('=')
    found = [get_value(config, key) for key in keys.split('|')]
    holds = str(found[0]) in wanted.split(',') if has_values else any(found)
    return holds != need.startswith('!')


def get_value(config: CfgNode, key: str) -> Any:
    """Return the value, or the group, of a full key; None if there is none."""
    node = config
    for name in key.split('.'):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def dump_config(config: CfgNode) -> str:
    """Return yaml text that loads again with `-cfg`, whatever folder it lies in."""
    plain = yaml.safe_load(config.dump())
    plain.pop('BASE', None)
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)


def read_dump(text: str, source: str) -> dict[str, Any]:
    """Return {full key: value} of what dump_config wrote, as a checkpoint records it.

    Such a text is a record and never names files to read, so BASE is refused. source: what
    messages call it. Raises UserError.
    """
    tree = parse_yaml(text, source)
    if 'BASE' in tree:
        raise UserError(f'{source} is damaged: its recorded config names other files (BASE).')
    return dict(_flatten(tree))


def _merge_yaml(config, path, options, including, read):
    """Merge a file after its BASEs. including: the files it is a BASE of. read: all so far."""
    path = os.path.abspath(path)
    if path in including:
        raise UserError(f'{path}: BASE goes in a circle: {" -> ".join([*including, path])}.')
    read.append(path)
    if len(read) > MAX_FILES:
        raise UserError(f'{including[0]}: more than {MAX_FILES} files are its BASE.')
    tree = read_yaml(path)
    for base in _list_bases(tree.pop('BASE', None), path):
        base = os.path.join(os.path.dirname(path), base)
        _merge_yaml(config, base, options, (*including, path), read)
    for key, value in _flatten(tree, config):
        _set(config, key, value, options, source=path)


def _list_bases(value, path):
    bases = value if isinstance(value, list) else [value]
    if not all(base is None or isinstance(base, str) for base in bases):
        raise UserError(f'{path}: BASE names yaml files, not {show(value)}.')
    return [base for base in bases if base]


def _flatten(tree: dict, config: CfgNode | None = None, prefix: str = '') -> Iterator:
    """Yield (full key, value) for every leaf of a yaml tree; of `config`'s groups where given."""
    for name, value in tree.items():
        key = f'{prefix}{name if isinstance(name, str) else show(name)}'
        is_group = config is None or isinstance(get_value(config, key), CfgNode)
        if isinstance(value, dict) and is_group:
            yield from _flatten(value, config, f'{key}.')
        else:
            yield key, value


def _pair(opts):
    """Yield (key, text) of -opts; a list that the shell cut at its blanks is put together."""
    opts = list(opts)
    while opts:
        key = opts.pop(0)
        name, equals, value = key.partition('=')
        if equals:
            raise UserError(f'-opts takes pairs KEY VALUE; write {shorten(f"{name} {value}")}')
        if not opts:
            raise UserError(f'-opts takes pairs KEY VALUE; {show(key)} has no value.')
        text = opts.pop(0)
        while text.count('[') > text.count(']') and opts:
            text += f' {opts.pop(0)}'
        yield key, text


def _read_text(text):
    """Return the value for an option that is text: as it is given, without quotes."""
    value = parse(text)
    return value if value is None or isinstance(value, str) else text


def _set(config, key, value, options, source):
    if key == 'BASE':
        raise UserError(f'{source}: BASE stands in yaml files only. Name the file with -cfg.')
    if key not in options:
        if isinstance(get_value(config, key), CfgNode):
            raise UserError(f'{source}: {key} is a group of options and takes no value itself.')
        key = shorten(key, 100)
        raise UserError(f'{source}: unknown key {key}.{_suggest_key(key, options)}')
    *groups, name = key.split('.')
    node = get_value(config, '.'.join(groups)) if groups else config
    try:
        node[name] = options[key].convert(value)
    except ValueError as error:
        raise UserError(f'{source}: {key} {error}.') from None


def _suggest_key(key, keys):
    """Prefer an option of the same name in another group (MODEL.TRANS.DEPTH -> MODEL.DEPTH)."""
    name = key.rsplit('.', 1)[-1]
    same_name = [valid for valid in keys if valid.rsplit('.', 1)[-1] == name]
    if same_name:
        return f' Did you mean {same_name[0]}?'
    suggestion = suggest(key, keys)
    return suggestion if suggestion.startswith(' Did') else ''
