"""Puts the weights of any checkpoint into a model, and reports what was done."""

import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError, suggest
from common.machine.environment import count_cores
from common.machine.host_memory import share
from common.weights.checkpoint import list_first, read_checkpoint
from common.weights.registry import resolve
from common.weights.resize import resize_positions
from common.weights.rules import copy_array

logger = logging.getLogger(__name__)

POSITION_NAMES = ('position_embedding', 'pos_embed')
HEADS = ('classifier.', 'head.')
PRE_LOGITS = 'pre_logits.'

# Names of the published sizes by (embed_dim, depth).
VIT_SIZES = {(192, 12): 'vit_tiny', (384, 12): 'vit_small', (768, 12): 'vit_base',
             (1024, 24): 'vit_large', (1280, 32): 'vit_huge'}
T2T_SIZES = {(256, 7): 't2t_vit_7', (256, 10): 't2t_vit_10', (256, 12): 't2t_vit_12',
             (384, 14): 't2t_vit_14', (448, 19): 't2t_vit_19', (512, 24): 't2t_vit_24'}


@dataclass
class LoadReport:
    """What load_pretrained did. Names are the model's, but in `unexpected` the file's.

    source: the file. entry: the part of it that was taken ('' for all of it).
    loaded: names filled from the file, resized ones included. missing: names the
    file lacks. unexpected: names in the file that were left out, with the reason.
    resized: {name: "from ... to ..., method"}. replaced: {name: reason}.
    numerics: of the source. numerics_changed: {setting: (before, now)}.
    """

    format: str
    source: str
    entry: str = ''
    loaded: list = field(default_factory=list)
    missing: list = field(default_factory=list)
    unexpected: dict = field(default_factory=dict)
    resized: dict = field(default_factory=dict)
    replaced: dict = field(default_factory=dict)
    numerics: dict = field(default_factory=dict)
    numerics_changed: dict = field(default_factory=dict)

    @property
    def complete(self):
        """True if every tensor of the model came from the file."""
        return not self.missing and not self.replaced

    def summary(self):
        """Return the report as lines for the log."""
        total = len(self.loaded) + len(self.missing) + len(self.replaced)
        entry = f', {self.entry}' if self.entry else ''
        lines = [f'Weights from {self.source} ({self.format}{entry}): '
                 f'loaded {len(self.loaded)} of {total} tensors.']
        lines += [f'Resized {name} {how}.' for name, how in self.resized.items()]
        lines += [f'Replaced {name}: {reason}.' for name, reason in self.replaced.items()]
        if self.missing:
            lines.append(f'Not in the file, so newly initialised: {list_first(self.missing)}.')
        by_reason = {}
        for name, reason in self.unexpected.items():
            by_reason.setdefault(reason, []).append(name)
        lines += [f'Left out {list_first(names)}: {reason}.'
                  for reason, names in by_reason.items()]
        for name, (before, now) in self.numerics_changed.items():
            lines.append(f'The source computes with {name} {now}; the model had {before}, '
                         'and was changed (MODEL.NUMERICS model keeps it).')
        return lines


@dataclass(frozen=True)
class LoadOptions:
    """How load_pretrained fits a checkpoint to a model. Raises UserError for an unknown choice.

    numerics: 'source' sets GELU, LayerNorm's epsilon and the activation of the
    pre-logits as the checkpoint's source has them; 'model' changes nothing.
    use_ema: prefer the averaged weights of a training checkpoint.
    position_resize: 'source' (as the source does), 'timm', 'google' or 'bicubic'.
    head_init: what a head of another size becomes: 'zero', or 'trunc_normal' from `seed`.
    allow_missing: keep the model's values for whatever the file lacks, not only
    for the head and the pre-logits.
    """

    numerics: str = 'source'
    use_ema: bool = True
    position_resize: str = 'source'
    head_init: str = 'zero'
    seed: int = 0
    allow_missing: bool = False

    def __post_init__(self):
        _check_choice('numerics', self.numerics, ('source', 'model'))
        _check_choice('position_resize', self.position_resize,
                      ('source', 'timm', 'google', 'bicubic'))
        _check_choice('head_init', self.head_init, ('zero', 'trunc_normal'))


def load_pretrained(model, source, **options):
    """Load a checkpoint of any known format into a model; return a LoadReport.

    model: VisionTransformer or T2TViT. source: a file (.pdparams may be left off),
    a Hugging Face folder, or a name of the registry, which is downloaded once.
    options: those of LoadOptions, such as numerics='model'.

    Nothing in a file is ever run, and a model is changed only if all fits.
    Raises UserError if it does not, naming both sides.
    """
    options = LoadOptions(**options)
    checkpoint = read_checkpoint(resolve(source), options.use_ema)
    report = LoadReport(checkpoint.format, checkpoint.path, checkpoint.entry)
    parameters = model.state_dict()
    tensors = dict(checkpoint.tensors)
    report.unexpected = dict.fromkeys(checkpoint.ignored, 'no part of the classifier')
    shapes = {name: list(value.shape) for name, value in parameters.items()}

    _drop_pre_logits(tensors, shapes, report)
    new_values = _plan_head(tensors, shapes, report, options)
    new_values |= _plan_positions(model, checkpoint, tensors, report, options)
    _check_fit(checkpoint, tensors, shapes, report, new_values, options.allow_missing)

    _fill(parameters, new_values, tensors)
    report.numerics = checkpoint.numerics
    if options.numerics == 'source':
        report.numerics_changed = _set_numerics(model, checkpoint.numerics)
    return report


def load_from_config(model, config):
    """load_pretrained as MODEL.PRETRAINED and its options say; logs and returns the report.

    Raises UserError for an evaluation of a model that the file does not fill,
    unless MODEL.ALLOW_MISSING.
    """
    options = config.MODEL
    report = load_pretrained(
        model, options.PRETRAINED, numerics=options.NUMERICS, use_ema=options.PRETRAINED_EMA,
        position_resize=options.POSITION_RESIZE, head_init=options.HEAD_INIT, seed=config.SEED,
        allow_missing=options.ALLOW_MISSING)
    for line in report.summary():
        logger.info(line)
    if config.EVAL and not report.complete and not options.ALLOW_MISSING:
        lacking = list_first([*report.missing, *report.replaced])
        raise UserError(
            f'{report.source} does not fill the model, so its accuracy would mean nothing; not '
            f'from the file: {lacking}.\nChoose the config that belongs to the weights '
            '(MODEL.NUM_CLASSES?), or set MODEL.ALLOW_MISSING True.')
    return report


def describe_numerics(model):
    """Return what a checkpoint records of a model beside its weights, as plain values.

    Keys: gelu, layer_norm_eps, pre_logits_activation (None: no such layer) and
    grid_size, the rows and columns of the position embedding.
    """
    return {'pre_logits_activation': None, **model.get_numerics(),
            'grid_size': list(model.grid_size)}


def _set_numerics(model, numerics):
    before = describe_numerics(model)
    changed = {name: (before[name], value) for name, value in numerics.items()
               if before[name] is not None and before[name] != value}
    model.set_numerics(**{name: now for name, (_, now) in changed.items()})
    return changed


def _drop_pre_logits(tensors, shapes, report):
    """Leave out the pre-logits, and the head behind them, if the model has none."""
    if any(name.startswith(PRE_LOGITS) for name in shapes):
        return
    dropped = [name for name in tensors if name.startswith(PRE_LOGITS)]
    if dropped:
        for name in dropped:
            for origin in tensors.pop(name).origins:
                report.unexpected[origin] = ('the model has no pre-logits layer '
                                             '(MODEL.REPRESENTATION_SIZE)')
        for name in [name for name in tensors if name.startswith(HEADS)]:
            report.replaced[name] = 'it was trained behind the pre-logits, which were left out'
            del tensors[name]


def _plan_head(tensors, shapes, report, options):
    """Return {name: ndarray} for a head that the file lacks or has in another size."""
    heads = [name for name in shapes if name.startswith(HEADS)]
    found = {name: tensors[name].shape for name in heads if name in tensors}
    features = {name: shape[0] for name, shape in found.items() if len(shape) == 2}
    if heads and all(found.get(name) == shapes[name] for name in heads):
        return {}
    if any(features[name] != shapes[name][0] for name in features):
        return {}                               # not another head but another model
    for name in heads:
        if name in found:
            report.replaced[name] = (f'{found[name][-1] if found[name] else "no"} classes in the '
                                     f'file, {shapes[name][-1]} in the model; '
                                     f'initialised by {options.head_init}')
            del tensors[name]
        elif name in report.replaced:
            report.replaced[name] += f'; initialised by {options.head_init}'
        else:
            report.missing.append(name)
    generator = np.random.default_rng(options.seed)
    return {name: _make_head(shapes[name], options.head_init, generator) for name in heads}


def _make_head(shape, head_init, generator):
    """Return zeros, or for a weight a normal of deviation 0.02, cut at two deviations."""
    if head_init == 'zero' or len(shape) == 1:
        return np.zeros(shape, np.float32)
    values = generator.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = generator.standard_normal(outside.sum())
    return (0.02 * values).astype(np.float32)


def _plan_positions(model, checkpoint, tensors, report, options):
    """Return {name: ndarray} for a position embedding whose grid is not the model's."""
    parameters = model.state_dict()
    name = next((name for name in POSITION_NAMES if name in parameters), None)
    if name is None or name not in tensors:
        return {}
    shape = tensors[name].shape
    if len(shape) != 3 or shape[0] != 1 or shape[2] != parameters[name].shape[2]:
        return {}                               # another model; _check_fit says so
    prefix = int('cls_token' in tensors)
    num_patches = shape[1] - prefix
    new_grid = tuple(model.grid_size)
    old_grid = checkpoint.grid_size
    if old_grid is None:
        side = math.isqrt(max(num_patches, 0))
        # Every published checkpoint has a square grid.
        old_grid = (side, side) if side * side == num_patches else new_grid
    if old_grid[0] * old_grid[1] != num_patches or num_patches <= 0:
        raise UserError(f'{checkpoint.path}: {name} has {num_patches} patches, which are no '
                        f'square grid and not the model\'s {new_grid[0]} x {new_grid[1]}.')
    if prefix != model.num_prefix_tokens or old_grid == new_grid:
        return {}
    method = options.position_resize
    if method == 'source':
        method = checkpoint.position_resize
    report.resized[name] = (f'from {old_grid[0]} x {old_grid[1]} to {new_grid[0]} x '
                            f'{new_grid[1]} patches, method {method}')
    return {name: resize_positions(tensors[name].get(), prefix, old_grid, new_grid, method)}


def _check_fit(checkpoint, tensors, shapes, report, new_values, allow_missing):
    """Fill report.loaded and report.missing. Raises UserError if the rest does not fit."""
    outside = [tensor.origins[0] for name, tensor in tensors.items() if name not in shapes]
    outside += checkpoint.leftover
    wrong = [name for name in shapes if name in tensors and name not in new_values
             and tensors[name].shape != shapes[name]]
    wrong += [name for name in shapes if name in tensors and name not in wrong
              and any(array.dtype.kind not in 'f' for array in tensors[name].arrays)]
    absent = [name for name in shapes
              if name not in tensors and name not in report.missing and name not in report.replaced]
    report.missing += absent
    optional = [name for name in absent if name.startswith(PRE_LOGITS) or allow_missing]
    if wrong or outside or absent != optional:
        raise UserError(_explain(checkpoint, tensors, shapes, wrong, outside, absent))
    report.loaded = [name for name in shapes if name in tensors]


def _explain(checkpoint, tensors, shapes, wrong, outside, absent):
    """Return the message for a checkpoint that does not fit: likely cause, then the facts."""
    found = _describe({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    wanted = _describe(shapes)
    lines = [f'{checkpoint.path} ({checkpoint.format}) does not fit the model: this is {found}, '
             f'the config is {wanted}.']
    if found == wanted:
        lines = [f'{checkpoint.path} ({checkpoint.format}) does not fit the model, although both '
                 f'are {found}: other options, or a damaged file.']
    facts = []
    if wrong:
        name = wrong[0]
        dtypes = {str(array.dtype) for array in tensors[name].arrays}
        facts.append(f'{len(wrong)} of another shape or type, first {name}: file '
                     f'{tensors[name].shape} {", ".join(sorted(dtypes))}, model {shapes[name]}')
    if absent:
        facts.append(f'only in the model: {list_first(absent)}')
    if outside:
        facts.append(f'only in the file: {list_first(outside)}')
    return '\n'.join([*lines, f'Details: {"; ".join(facts)}.'])


def _describe(shapes):
    """Return a model's likely name from the shapes of its tensors, such as vit_base_patch16."""
    embed_dim = (shapes.get('cls_token') or [0])[-1]
    numbers = [int(match[1]) for match in
               (re.match(r'(?:encoder\.layers|blocks)\.(\d+)\.', name) for name in shapes) if match]
    depth = len(set(numbers))
    if 'patch_embedding.patch_embedding.weight' in shapes:
        patch = (shapes['patch_embedding.patch_embedding.weight'] or [0])[-1]
        name = VIT_SIZES.get((embed_dim, depth), 'a ViT')
        if 'resnet.conv_root.weight' in shapes:
            return f'a ResNet hybrid of {name} (embed_dim {embed_dim}, depth {depth})'
        return f'{name}_patch{patch} (embed_dim {embed_dim}, depth {depth})' if name != 'a ViT' \
            else f'a ViT (patch {patch}, embed_dim {embed_dim}, depth {depth})'
    name = T2T_SIZES.get((embed_dim, depth), 'a T2T-ViT')
    kind = ' with transformer tokens' if any('.attn.qkv' in name and 'patch_embed' in name
                                            for name in shapes) else ''
    return f'{name}{kind} (embed_dim {embed_dim}, depth {depth})'


def _fill(parameters, new_values, tensors):
    """Write values into the parameters of these names, several at a time."""
    import paddle  # here: listing and converting files does without it

    def fill(name):
        parameter, tensor = parameters[name], tensors.get(name)
        if name in new_values:
            parameter.set_value(_cast(new_values[name], parameter))
        elif tensor is None:
            return
        elif parameter.place.is_cpu_place() and parameter.dtype == paddle.float32:
            tensor.copy_to(share(parameter))        # three times as fast as set_value
        else:
            parameter.set_value(_cast(tensor.get(), parameter))

    with ThreadPoolExecutor(min(count_cores(), 8)) as pool:
        for _ in pool.map(fill, parameters):
            pass                                    # raises what a thread raised


def _cast(array, parameter):
    """Return what set_value takes: an ndarray, or a tensor of a type that NumPy lacks."""
    import paddle
    array = make_contiguous(array)
    return array if parameter.dtype == paddle.float32 else \
        paddle.to_tensor(array).astype(parameter.dtype)


def make_contiguous(array):
    """Return an array as float32, row by row in memory and aligned."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.require(array, np.float32, ['C', 'A'])
    copy = np.empty(array.shape, np.float32)
    copy_array(array, copy)
    return copy


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f'{name}: unknown value {value!r}.{suggest(value, choices)}')
