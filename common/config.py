"""The options that every model shares, and how they are read.

Order of precedence: defaults here and in the model's `config.py`, the yaml
file (with `BASE` inheritance), command-line flags, `-opts`. Names and
defaults are PaddleViT's where PaddleViT has the option.
"""

import ast
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import yaml
from yacs.config import CfgNode

from common.errors import UserError, suggest

# Options whose default is None, with the type that a value must have.
OPTIONAL = {
    'DATA.BATCH_SIZE_EVAL': int,
    'DATA.LABELS': str,
    'MODEL.RESUME': str,
    'MODEL.PRETRAINED': str,
    'TRAIN.NUM_STEPS': int,
    'TRAIN.WARMUP_STEPS': int,
    'TRAIN.GRAD_CLIP': float,
    'TRAIN.LINEAR_SCALED_LR': int,
    'TRAIN.RECIPE_BATCH': int,
    'TRAIN.CUTMIX_MINMAX': list,
    'TRAIN.EARLY_STOP_EPOCHS': int,
    'TRAIN.CLASS_WEIGHTS': list,
    'SAVE_STEPS': int,
    'SAVE_MINUTES': float,
    'NPROCS': int,
}

CHOICES = {
    'DATA.INTERPOLATION': ('bicubic', 'bilinear', 'lanczos', 'nearest'),
    'MODEL.GELU': ('erf', 'tanh'),
    'MODEL.NUMERICS': ('source', 'model'),
    'MODEL.POSITION_RESIZE': ('source', 'timm', 'google', 'bicubic'),
    'MODEL.HEAD_INIT': ('zero', 'trunc_normal'),
    'TRAIN.INTERPOLATION': ('bicubic', 'bilinear', 'random'),
    'TRAIN.CROP': ('random_resized', 'resize'),
    'TRAIN.MIXUP_MODE': ('batch', 'pair', 'elem'),
    'TRAIN.RANDOM_ERASE_MODE': ('pixel', 'const', 'rand'),
    'TRAIN.LR_SCHEDULER.NAME': ('cosine', 'linear', 'step', 'polynomial', 'constant'),
    'TRAIN.OPTIMIZER.NAME': ('AdamW', 'Adam', 'SGD', 'Momentum', 'Lamb', 'Lars'),
    'EVAL_ENGINE': ('auto', 'model', 'plain', 'onednn', 'openvino'),
    'AMP_LEVEL': ('O1', 'O2'),
    'AMP_DTYPE': ('float16', 'bfloat16'),
}

POSITIVE = (
    'DATA.BATCH_SIZE', 'DATA.BATCH_SIZE_EVAL', 'DATA.IMAGE_SIZE', 'DATA.IMAGE_CHANNELS',
    'DATA.CROP_PCT', 'MODEL.NUM_CLASSES', 'MODEL.LAYER_NORM_EPS', 'TRAIN.NUM_EPOCHS',
    'TRAIN.NUM_STEPS', 'TRAIN.ACCUM_ITER', 'TRAIN.GRAD_CLIP', 'TRAIN.LINEAR_SCALED_LR',
    'REPORT_FREQ', 'VALIDATE_FREQ', 'SAVE_FREQ', 'SAVE_STEPS', 'SAVE_MINUTES', 'NPROCS',
    'TRAIN.EARLY_STOP_EPOCHS', 'TRAIN.RANDOM_ERASE_COUNT', 'TRAIN.RECIPE_BATCH',
    'TRAIN.LAYER_DECAY', 'TRAIN.HEAD_LR_SCALE',
)

NOT_NEGATIVE = (
    'DATA.NUM_WORKERS', 'TRAIN.LAST_EPOCH', 'TRAIN.WARMUP_EPOCHS', 'TRAIN.WARMUP_STEPS',
    'TRAIN.COOLDOWN_EPOCHS', 'TRAIN.WEIGHT_DECAY', 'TRAIN.BASE_LR', 'TRAIN.WARMUP_START_LR',
    'TRAIN.END_LR', 'TRAIN.MIXUP_ALPHA', 'TRAIN.CUTMIX_ALPHA', 'TRAIN.COLOR_JITTER', 'SEED',
    'KEEP', 'WATCHDOG_SECONDS', 'TRAIN.OPTIMIZER.EPS',
)

PROBABILITIES = (
    'DATA.VAL_FRACTION', 'MODEL.DROPOUT', 'MODEL.ATTENTION_DROPOUT', 'MODEL.DROPPATH',
    'TRAIN.SMOOTHING', 'TRAIN.HFLIP', 'TRAIN.MIXUP_PROB', 'TRAIN.MIXUP_SWITCH_PROB',
    'TRAIN.RANDOM_ERASE_PROB', 'TRAIN.MODEL_EMA_DECAY', 'TRAIN.LAYER_DECAY',
)


class ModelRules(NamedTuple):
    """What a model's own options must satisfy, added to the tables above.

    optional: {key: type} of options that may be None. choices: {key: valid
    values}. positive: keys above 0. check: called with the merged tree; raises
    UserError where options do not fit together.
    """

    optional: dict = {}
    choices: dict = {}
    positive: tuple = ()
    check: Callable = None


# Lists of numbers: how many (None: one a channel), and the least that each may be.
NUMBER_LISTS = {
    'DATA.IMAGENET_MEAN': (None, -math.inf),
    'DATA.IMAGENET_STD': (None, 1e-6),
    'TRAIN.OPTIMIZER.BETAS': (2, 0),
    'TRAIN.CROP_SCALE': (2, 1e-3),
    'TRAIN.CROP_RATIO': (2, 1e-2),
    'TRAIN.AFFINE_SCALE': (2, 1e-2),
}


RANGES = ('TRAIN.CROP_SCALE', 'TRAIN.CROP_RATIO', 'TRAIN.AFFINE_SCALE')


def build_default_config():
    """Return a new tree with every shared option at its default."""
    config = CfgNode()
    config.BASE = ['']                      # yaml files to read first, relative to this one

    data = config.DATA = CfgNode()
    data.DATASET = 'digits'                 # imagenet2012, imagefolder, cifar10, cifar100, digits
    data.DATA_PATH = ''                     # the root of the data set, or its train/ or val/
    data.BATCH_SIZE = 128                   # images a process and micro-batch
    data.BATCH_SIZE_EVAL = None             # images a process; None: BATCH_SIZE
    data.IMAGE_SIZE = 224                   # pixels, height and width
    data.IMAGE_CHANNELS = 3
    data.CROP_PCT = 0.875                   # evaluation: resize to IMAGE_SIZE / CROP_PCT, then crop
    data.INTERPOLATION = 'bicubic'          # evaluation
    data.IMAGENET_MEAN = [0.5, 0.5, 0.5]    # of pixels scaled to [0, 1]; R, G, B
    data.IMAGENET_STD = [0.5, 0.5, 0.5]
    data.NUM_WORKERS = 2                    # loader processes; 0: load in the training process
    data.USE_SHARED_MEMORY = True           # False where /dev/shm is small (containers, notebooks)
    data.SKIP_CORRUPT = False               # True: count unreadable training images and go on
    data.VAL_FRACTION = 0.0                 # share split off for validation where there is no val/
    data.LABELS = None                      # file with one class name a line

    model = config.MODEL = CfgNode()
    model.TYPE = ''
    model.NAME = ''
    model.PRETRAINED = None                 # file, folder or registry name
    model.RESUME = None                     # checkpoint to continue from, or "auto"
    model.NUM_CLASSES = 1000
    model.DROPOUT = 0.0
    model.ATTENTION_DROPOUT = 0.0
    model.DROPPATH = 0.0                    # stochastic depth: rate of the last block
    model.GELU = 'erf'                      # erf or tanh (approximation)
    model.LAYER_NORM_EPS = 1e-6
    model.RECOMPUTE = False                 # recompute activations in backward to save memory
    model.NUMERICS = 'source'               # GELU and epsilon as the checkpoint's source has them
    model.PRETRAINED_EMA = True             # prefer a checkpoint's averaged weights
    model.POSITION_RESIZE = 'source'        # how position embeddings are resized
    model.HEAD_INIT = 'zero'                # a head of another size: zero or trunc_normal
    model.ALLOW_MISSING = False             # evaluate although the file lacks tensors
    model.FREEZE = ''                       # "", "backbone", or the number of first blocks

    train = config.TRAIN = CfgNode()
    train.LAST_EPOCH = 0                    # epochs already done (PaddleViT's -last_epoch)
    train.NUM_EPOCHS = 300
    train.NUM_STEPS = None                  # optimizer updates; overrides NUM_EPOCHS
    train.WARMUP_EPOCHS = 0
    train.WARMUP_STEPS = None               # updates; overrides WARMUP_EPOCHS
    train.COOLDOWN_EPOCHS = 0               # further epochs at END_LR
    train.BASE_LR = 1e-3
    train.WARMUP_START_LR = 0.0
    train.END_LR = 0.0
    train.LINEAR_SCALED_LR = None           # batch size BASE_LR belongs to; None: no scaling
    train.RECIPE_BATCH = None               # images an update the recipe is for: warn of another
    train.WEIGHT_DECAY = 0.05
    train.NO_WEIGHT_DECAY = []              # parameter names beside biases, norms and tokens
    train.LAYER_DECAY = 1.0                 # learning-rate factor a block towards the input
    train.HEAD_LR_SCALE = 1.0               # learning-rate factor of the classifier
    train.GRAD_CLIP = 1.0                   # global norm; None: off
    train.ACCUM_ITER = 1                    # micro-batches an update
    train.MODEL_EMA = False
    train.MODEL_EMA_DECAY = 0.99996         # an update
    train.MODEL_EMA_WARMUP = False          # start with a faster average
    train.SMOOTHING = 0.0                   # label smoothing
    train.CLASS_WEIGHTS = None              # list of one factor a class, or ["balanced"]
    train.EARLY_STOP_EPOCHS = None          # stop after so many validations without a new best

    schedule = train.LR_SCHEDULER = CfgNode()
    schedule.NAME = 'cosine'
    schedule.MILESTONES = [30, 60, 90]      # step: epochs
    schedule.DECAY_RATE = 0.1               # step: factor at each milestone
    schedule.POWER = 1.0                    # polynomial
    schedule.FROM_START = False             # count the decay from update 0 (timm), not from warmup

    optimizer = train.OPTIMIZER = CfgNode()
    optimizer.NAME = 'AdamW'
    optimizer.EPS = 1e-8
    optimizer.BETAS = [0.9, 0.999]
    optimizer.MOMENTUM = 0.9
    optimizer.NESTEROV = False

    train.CROP = 'random_resized'           # or "resize": the whole image
    train.CROP_SCALE = [0.08, 1.0]          # share of the area
    train.CROP_RATIO = [0.75, 4 / 3]        # width / height
    train.INTERPOLATION = 'bicubic'
    train.HFLIP = 0.5                       # probability
    train.AFFINE_DEGREES = 0.0              # random affine: rotation, +- degrees
    train.AFFINE_TRANSLATE = 0.0            # +- share of the size
    train.AFFINE_SCALE = [1.0, 1.0]
    train.AFFINE_SHEAR = 0.0                # +- degrees
    train.COLOR_JITTER = 0.0                # only where AUTO_AUGMENT is off, as in timm
    train.AUTO_AUGMENT = ''                 # "rand-m9-mstd0.5-inc1", "original", "v0"; "": off
    train.RANDOM_ERASE_PROB = 0.0
    train.RANDOM_ERASE_MODE = 'pixel'
    train.RANDOM_ERASE_COUNT = 1
    train.RANDOM_ERASE_SPLIT = False        # leave the first half of each batch alone
    train.MIXUP_ALPHA = 0.0
    train.CUTMIX_ALPHA = 0.0
    train.CUTMIX_MINMAX = None
    train.MIXUP_PROB = 1.0
    train.MIXUP_SWITCH_PROB = 0.5           # probability of cutmix where both are on
    train.MIXUP_MODE = 'batch'

    config.SAVE = './output'                # run directories are made in here
    config.SAVE_FREQ = 1                    # epochs
    config.SAVE_STEPS = None                # updates
    config.SAVE_MINUTES = None
    config.KEEP = 2                         # checkpoints kept beside the best and the last
    config.REPORT_FREQ = 50                 # updates
    config.VALIDATE_FREQ = 1                # epochs
    config.SEED = 0
    config.EVAL = False
    config.AMP = False                      # mixed precision
    config.AMP_LEVEL = 'O1'
    config.AMP_DTYPE = 'float16'
    config.DEVICE = 'auto'                  # cpu, gpu, gpu:N
    config.NPROCS = None                    # processes; None: every visible GPU
    config.WATCHDOG_SECONDS = 1800          # a step longer than this is a hang; 0: off
    config.SAVE_BAD_BATCH = False           # keep the batch that made the loss not finite
    config.VISUALDL = False
    config.FAST = True                      # CPU fast paths; False: Paddle's plain operators
    config.EVAL_ENGINE = 'model'             # of -eval on a CPU: auto, model (no engine), ...
    return config


def load_config(defaults, path=None, flags=None, opts=None, rules=None):
    """Return a frozen copy of `defaults` with a yaml file, flags and options merged in.

    path: yaml file or None. flags: {"DATA.BATCH_SIZE": 32, ...}, as parsed from
    the command line. opts: ["TRAIN.BASE_LR", "3e-4", ...]. rules: ModelRules.
    Raises UserError naming the source of a value that is unknown or wrong.
    """
    rules = rules or ModelRules()
    config = defaults.clone()
    config.defrost()
    if path is not None:
        _merge_yaml(config, path, rules, including=())
    for key, value in (flags or {}).items():
        _set(config, key, value, rules, source='command line')
    opts = list(opts or [])
    if len(opts) % 2:
        raise UserError(f'-opts takes pairs KEY VALUE; {opts[-1]!r} has no value.')
    for key, text in zip(opts[::2], opts[1::2]):
        _set(config, key, _parse(text), rules, source='-opts')
    check_config(config, rules)
    config.freeze()
    return config


def check_config(config, rules):
    """Raise UserError for a value outside its range, naming the key."""
    for key in (*POSITIVE, *rules.positive):
        value = _get(config, key)
        if value is not None and not value > 0:
            raise UserError(f'{key} must be above 0, not {value}.')
    for key in NOT_NEGATIVE:
        value = _get(config, key)
        if value is not None and not value >= 0:
            raise UserError(f'{key} must be 0 or more, not {value}.')
    for key in PROBABILITIES:
        value = _get(config, key)
        if not 0 <= value <= 1:
            raise UserError(f'{key} must be from 0 to 1, not {value}.')
    for key, choices in {**CHOICES, **rules.choices}.items():
        value = _get(config, key)
        if value not in choices:
            raise UserError(f'{key}: unknown value {value!r}.{suggest(value, choices)}')
    for key, (count, lowest) in NUMBER_LISTS.items():
        _check_numbers(key, _get(config, key), count or config.DATA.IMAGE_CHANNELS, lowest)
    for key in list_keys(config):
        value = _get(config, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f'{key} must be a finite number, not {value}.')
    if config.MODEL.DROPPATH == 1:
        raise UserError('MODEL.DROPPATH must be below 1: nothing would be left of the last block.')
    if config.SEED >= 2 ** 63:
        raise UserError(f'SEED must be below 2 ** 63, not {config.SEED}.')
    if rules.check:
        rules.check(config)


def _check_numbers(key, values, count, lowest):
    """Raise UserError unless `values` are `count` finite numbers of at least `lowest`.

    The second number of a range must not be below the first.
    """
    are_numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool)
                      and math.isfinite(value) for value in values)
    if len(values) != count or not are_numbers:
        raise UserError(f'{key} needs {count} numbers, not {values}.')
    if min(values) < lowest:
        raise UserError(f'{key} must be {lowest:g} or more, not {values}.')
    if key in RANGES and values[0] > values[1]:
        raise UserError(f'{key}: the range {values} ends before it begins.')


def list_keys(config, prefix=''):
    """Return every option's full name, such as "TRAIN.BASE_LR"."""
    keys = []
    for name, value in config.items():
        if isinstance(value, CfgNode):
            keys += list_keys(value, f'{prefix}{name}.')
        else:
            keys.append(prefix + name)
    return keys


def dump_config(config):
    """Return yaml text that loads again with `-cfg`, whatever folder it lies in."""
    plain = yaml.safe_load(config.dump())
    plain.pop('BASE', None)
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)


def _merge_yaml(config, path, rules, including):
    path = os.path.abspath(path)
    if path in including:
        raise UserError(f'{path}: BASE goes in a circle: {" -> ".join([*including, path])}.')
    for base in _as_list(_read_yaml(path).get('BASE')):
        if base:
            base = os.path.join(os.path.dirname(path), base)
            _merge_yaml(config, base, rules, (*including, path))
    tree = _read_yaml(path)
    tree.pop('BASE', None)
    for key, value in _flatten(tree, config, path):
        _set(config, key, value, rules, source=path)


def _read_yaml(path):
    try:
        with open(path, encoding='utf-8') as file:
            tree = yaml.safe_load(file)
    except OSError as error:
        raise UserError(f'Cannot read the config file {path}: {error.strerror}.') from None
    except UnicodeDecodeError:
        raise UserError(f'{path} is not a yaml text file.') from None
    except yaml.YAMLError as error:
        where = getattr(error, 'problem_mark', None)
        line = f', line {where.line + 1}' if where else ''
        problem = getattr(error, 'problem', None) or 'not yaml'
        raise UserError(f'{path}{line}: {problem}.') from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f'{path}: expected "KEY: value" lines, found a {type(tree).__name__}.')
    return tree


def _as_list(value):
    return value if isinstance(value, list) else [value] if value else []


def _flatten(tree, config, source, prefix=''):
    """Yield (full key, value) for every leaf of a yaml tree."""
    for name, value in tree.items():
        key = f'{prefix}{name}'
        if isinstance(value, dict) and isinstance(_get(config, key), CfgNode):
            yield from _flatten(value, config, source, f'{key}.')
        else:
            yield key, value


def _get(config, key):
    node = config
    for name in key.split('.'):
        if not isinstance(node, CfgNode) or name not in node:
            return None
        node = node[name]
    return node


def _set(config, key, value, rules, source):
    keys = list_keys(config)
    if key not in keys:
        if isinstance(_get(config, key), CfgNode):
            raise UserError(f'{source}: {key} is a group of options and takes no value itself.')
        raise UserError(f'{source}: unknown key {key}.{_suggest_key(key, keys)}')
    *groups, name = key.split('.')
    node = config
    for group in groups:
        node = node[group]
    node[name] = _convert(key, value, node[name], {**OPTIONAL, **rules.optional}, source)


def _suggest_key(key, keys):
    """Prefer an option of the same name in another group (MODEL.TRANS.DEPTH -> MODEL.DEPTH)."""
    name = str(key).rsplit('.', 1)[-1]
    same_name = [valid for valid in keys if valid.rsplit('.', 1)[-1] == name]
    if same_name:
        return f' Did you mean {same_name[0]}?'
    return suggest(key, keys) if suggest(key, keys).startswith(' Did') else ''


def _convert(key, value, default, optional, source):
    """Return the value in the option's type. Raises UserError if it has another."""
    if default is None or key in optional:
        if value is None:
            return None
        wanted = optional.get(key, str)
    else:
        wanted = type(default)
    if isinstance(value, str) and wanted is not str:
        value = _parse(value)               # yaml reads 1e-6 as text
    if wanted is list and isinstance(value, tuple):
        value = list(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is str and key == 'MODEL.FREEZE' and isinstance(value, int):
        value = str(value)
    if type(value) is not wanted:
        raise UserError(
            f'{source}: {key} must be {_TYPE_NAMES[wanted]}, not {value!r} '
            f'({_TYPE_NAMES.get(type(value), type(value).__name__)}).')
    return value


_TYPE_NAMES = {
    int: 'an integer', float: 'a number', str: 'text', bool: 'true or false', list: 'a list',
    type(None): 'nothing', dict: 'a group',
}


def _parse(text):
    """Read a command-line value as Python would; anything else is text."""
    lower = text.lower()
    if lower in ('true', 'false'):
        return lower == 'true'
    if lower in ('none', 'null'):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
