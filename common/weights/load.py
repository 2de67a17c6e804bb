"""Puts the weights of any checkpoint into a model, and reports what was done."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.config import Options, get_value
from common.data.classes import are_among, compare_names, list_known_names
from common.errors import UserError, suggest
from common.machine.environment import count_cores
from common.machine.host_memory import share
from common.option import list_options, show
from common.project import Model, Project, find_project
from common.weights.positions import plan_positions
from common.weights.preprocessing import name_options, read_beside
from common.weights.read import Weights, list_first, read_weights
from common.weights.registry import resolve
from common.weights.rules import copy_array

logger = logging.getLogger(__name__)

INIT_ONLY = ('MODEL.ZERO_HEAD',)         # of a new model: they say nothing of a trained one


@dataclass
class LoadReport:
    """What load_pretrained did. Names are the model's, but in `unexpected` the file's.

    source: the file. entry: the part of it that was taken ('' for all of it).
    loaded: names filled from the file, resized ones included. missing: names the
    file lacks. unexpected: names in the file that were left out, with the reason.
    resized: {name: "from ... to ..., method"}. replaced: {name: reason}.
    numerics: of the source. numerics_changed: {setting: (before, now)}.
    numerics_unstated: {setting of the model: its value} of what the file does not tell.
    assumed: sentences on what else it does not tell.
    preprocessing: mean, std, crop_pct and interpolation of the source, as far as known.
    preprocessing_source: who says so. class_names: of the model's classes, None where they are
    not known. options: {key: value} of the config that the file records.
    """

    format: str
    source: str
    entry: str = ''
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    numerics: dict[str, Any] = field(default_factory=dict)
    numerics_changed: dict[str, tuple] = field(default_factory=dict)
    numerics_unstated: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    preprocessing_source: str = ''
    class_names: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if every tensor of the model came from the file."""
        return not self.missing and not self.replaced

    def summary(self) -> list[str]:
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
        for name, value in self.numerics_unstated.items():
            lines.append(f'The file does not say the {name.replace("_", " ")} that it was trained '
                         f'with; it is {value}, as in the config.')
        lines += self.assumed
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
    position_resize: 'source' (as the source does), 'timm', 'google' 'bicubic' or 'bicubic_offset'.
    head_init: what a head of another size becomes: 'zero', or 'trunc_normal' from `seed`.
    allow_missing: keep the model's values for whatever the file lacks, not only
    for the head and the pre-logits.
    class_names: of the data that the model is trained on; a head for other classes is made anew.
    """

    numerics: str = 'source'
    use_ema: bool = True
    position_resize: str = 'source'
    head_init: str = 'zero'
    seed: int = 0
    allow_missing: bool = False
    class_names: Sequence[str] | None = None

    def __post_init__(self):
        _check_choice('numerics', self.numerics, ('source', 'model'))
        _check_choice('position_resize', self.position_resize,
                      ('source', 'timm', 'google', 'bicubic', 'bicubic_offset'))
        _check_choice('head_init', self.head_init, ('zero', 'trunc_normal'))


def load_pretrained(model: Model, source: str | os.PathLike, **options: Any) -> LoadReport:
    """Load a checkpoint of any known format into a model; return a LoadReport.

    model: of a model directory, or of a subclass. source: a file (.pdparams may be left off),
    a Hugging Face folder, or a name of released weights, which are downloaded once.
    options: those of LoadOptions, such as numerics='model'.

    A file with the model's own names is taken as it is; others are converted by the formats of
    the model's directory. Nothing in a file is ever run, and a model is changed only if all fits.
    Raises UserError if it does not, naming both sides.
    """
    wanted = LoadOptions(**options)
    project = find_project(model)
    parameters = model.state_dict()
    weights = read_weights(resolve(source, project), wanted.use_ema, project, parameters)
    report = LoadReport(weights.format, weights.path, weights.entry)
    tensors = dict(weights.tensors)
    report.unexpected = dict.fromkeys(weights.ignored, 'no part of the classifier')
    shapes = {name: list(value.shape) for name, value in parameters.items()}

    _check_arithmetic(model, weights, tensors, shapes, project)
    report.unexpected |= project.fit_weights(tensors, shapes)
    _drop_layers(tensors, shapes, report, project)
    report.class_names, report.options = weights.class_names, weights.options
    new_values = _plan_head(tensors, shapes, report, wanted, project)
    new_values |= plan_positions(
        model, weights, tensors, report.resized, wanted.position_resize, project)
    _check_fit(weights, tensors, shapes, report, new_values, wanted.allow_missing, project)
    _check_finite(weights.path, tensors)

    report.numerics = weights.numerics
    report.numerics_unstated = {name: value for name, value in model.get_numerics().items()
                                if name == 'gelu' and name not in weights.numerics}
    report.assumed = weights.assumed
    report.preprocessing = weights.preprocessing
    report.preprocessing_source = weights.preprocessing_source
    if wanted.numerics == 'source':
        report.numerics_changed = _set_numerics(model, weights)
    _fill(parameters, new_values, tensors)
    return report


def load_from_config(model: Model, config: Any, class_names: Sequence[str] | None = None
                     ) -> LoadReport:
    """load_pretrained as MODEL.PRETRAINED and its options say; logs and returns the report.

    class_names: of the data, see LoadOptions. Raises UserError for an evaluation of a model that
    the file does not fill, unless MODEL.ALLOW_MISSING, and for options of the model that are not
    those that the file was trained with.
    """
    options = config.MODEL
    report = load_pretrained(
        model, options.PRETRAINED, numerics=options.NUMERICS, use_ema=options.PRETRAINED_EMA,
        position_resize=options.POSITION_RESIZE, head_init=options.HEAD_INIT, seed=config.SEED,
        allow_missing=options.ALLOW_MISSING, class_names=None if config.EVAL else class_names)
    check_recorded_options(report, config, find_project(model))
    for line in [*report.summary(), *compare_preprocessing(report, config.get('DATA'))]:
        logger.info(line)
    if config.EVAL and not report.complete and not options.ALLOW_MISSING:
        lacking = list_first([*report.missing, *report.replaced])
        raise UserError(
            f'{report.source} does not fill the model, so its accuracy would mean nothing; not '
            f'from the file: {lacking}.\nChoose the config that belongs to the weights '
            '(MODEL.NUM_CLASSES?), or set MODEL.ALLOW_MISSING True.')
    return report


def check_recorded_options(report: LoadReport, config: Any, project: Project) -> None:
    """Raise UserError where the config contradicts the one that the weights were trained with.

    Options of the model that change shapes were compared by these. An evaluation compares all
    others; training may begin from weights of another pooling, whose head is then made anew.
    """
    keys = project.fixed_options
    if config.EVAL and not config.MODEL.ALLOW_MISSING:
        shared = list_options(Options)
        keys = tuple(key for key in list_options(project.options)
                     if key.startswith('MODEL.') and key not in shared and key not in INIT_ONLY)
    wrong = [key for key in keys if key in report.options
             and report.options[key] != get_value(config, key)]
    if wrong:
        was = ', '.join(f'{key} {show(report.options[key])}' for key in wrong)
        now = ', '.join(f'{key} {show(get_value(config, key))}' for key in wrong)
        raise UserError(f'{report.source} was trained with {was}; here it is {now}.\n'
                        'Give its own config (-cfg=<run folder>/config.yaml), or set these options '
                        'as they were.')


def find_preprocessing(source: str | os.PathLike, project: Project) -> dict[str, Any]:
    """Return {config key: value} of the preprocessing that weights state, {} for none.

    Files beside the weights that state all of it save reading the weights. Raises UserError.
    """
    path = resolve(source, project)
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    # A checkpoint of our own records it, whatever else lies in its folder.
    stated = {} if path.endswith('.pdparams') else read_beside(folder)
    return name_options(stated) if stated else open_weights(path, project).preprocessing_options


def open_weights(source: str | os.PathLike, project: Project) -> Weights:
    """Return the Weights of a file, a folder or a released name. Raises UserError."""
    return read_weights(resolve(source, project), project=project)


def count_outputs(weights: Weights, project: Project) -> int | None:
    """Return the number of classes that the head in a file has, None for a file without one."""
    shapes = [tensor.shape for name, tensor in sorted(weights.tensors.items())
              if name.startswith(project.heads)]
    return next((shape[-1] for shape in shapes if len(shape) == 2), None)


def compare_preprocessing(report: LoadReport, data: Any) -> list[str]:
    """Return lines for the log: the source's preprocessing, and where the config's is another.

    data: the DATA group of a config tree, None for none.
    """
    if data is None or not report.preprocessing:
        return []
    stated = name_options(report.preprocessing)
    ours = {key: data[key.removeprefix('DATA.')] for key in stated}
    texts = [f'{key} {value}' for key, value in stated.items() if ours[key] == value]
    source = report.preprocessing_source
    lines = [f'Preprocessing of {source}: {", ".join(texts)}.'] if texts else []
    lines += [f'{source[0].upper()}{source[1:]} says {key} {value}; it is {ours[key]}, as set.'
              for key, value in stated.items() if ours[key] != value]
    return lines


def describe_numerics(model: Model) -> dict[str, Any]:
    """Return what a checkpoint records of a model beside its weights, as plain values.

    Keys: gelu, layer_norm_eps, pre_logits_activation (None: no such layer), num_heads (None:
    not known) and grid_size, the rows and columns of the position embedding.
    """
    return {'pre_logits_activation': None, **model.get_numerics(),
            'num_heads': find_project(model).count_heads(model),
            'grid_size': list(model.grid_size)}


def _set_numerics(model, weights):
    """Compute as the source does; return {setting: (before, now)}. Raises UserError."""
    before = model.get_numerics()
    changed = {name: (before[name], value) for name, value in weights.numerics.items()
               if name in before and before[name] != value}
    try:
        model.set_numerics(**{name: now for name, (_, now) in changed.items()})
    except ValueError as error:
        model.set_numerics(**{name: value for name, (value, _) in changed.items()})
        raise UserError(f'{weights.path}: {error}.') from None
    return changed


def _check_arithmetic(model, weights, tensors, shapes, project):
    """Raise UserError where the file says that its network computes otherwise than the model.

    The number of heads leaves no trace in the shapes, nor what the head reads.
    """
    heads = project.count_heads(model)
    if weights.num_heads and heads and weights.num_heads != heads:
        raise UserError(f'{weights.path} was trained with {weights.num_heads} attention heads, and '
                        f'the model has {heads}. Set MODEL.NUM_HEADS {weights.num_heads}.')
    pool = getattr(model, 'pool', None)
    keeps_head = any(name.startswith(project.heads) and name in tensors
                     and tensors[name].shape == shape for name, shape in shapes.items())
    if weights.pool and pool and weights.pool != pool and keeps_head:
        raise UserError(f'{weights.path}: its head reads features of pooling {weights.pool!r}, and '
                        f"the model's reads {pool!r}. Set MODEL.POOL {weights.pool}.")


def _drop_layers(tensors, shapes, report, project):
    """Leave out what the model does without: pre-logits with the head behind them, pooling."""
    for name in [name for name in tensors if name.startswith(project.optional_layers)
                 and not any(own.startswith(project.optional_layers) for own in shapes)]:
        for origin in tensors.pop(name).origins:
            report.unexpected[origin] = 'the model has no such layer'
    if any(name.startswith(project.before_head) for name in shapes):
        return
    dropped = [name for name in tensors if name.startswith(project.before_head)]
    if dropped:
        for name in dropped:
            for origin in tensors.pop(name).origins:
                report.unexpected[origin] = ('the model has no pre-logits layer '
                                             '(MODEL.REPRESENTATION_SIZE)')
        for name in [name for name in tensors if name.startswith(project.heads)]:
            report.replaced[name] = 'it was trained behind the pre-logits, which were left out'
            del tensors[name]


def _plan_head(tensors, shapes, report, options, project):
    """Return {name: ndarray} for a head that the file lacks or has in another size."""
    heads = [name for name in shapes if name.startswith(project.heads)]
    found = {name: tensors[name].shape for name in heads if name in tensors}
    features = {name: shape[0] for name, shape in found.items() if len(shape) == 2}
    fits = heads and all(found.get(name) == shapes[name] for name in heads)
    others = _find_other_classes(report, options, shapes, heads) if fits else ''
    if fits and not others:
        return {}
    if any(features[name] != shapes[name][0] for name in features):
        return {}                               # not another head but another model
    for name in heads:
        if name in found:
            reason = others or (f'{found[name][-1] if found[name] else "no"} classes in the file, '
                                f'{shapes[name][-1]} in the model')
            report.replaced[name] = f'{reason}; initialised by {options.head_init}'
            del tensors[name]
        elif name in report.replaced:
            report.replaced[name] += f'; initialised by {options.head_init}'
        else:
            report.missing.append(name)
    generator = np.random.default_rng(options.seed)
    return {name: _make_head(shapes[name], options.head_init, generator) for name in heads}


def _find_other_classes(report, options, shapes, heads):
    """Return in words which classes of the data the file's head does not know, '' for none."""
    if options.class_names is None or report.class_names is None:
        return ''
    names = list_known_names(report.class_names, shapes[heads[0]][-1], options.class_names)
    if are_among(options.class_names, names):
        return ''
    return f'other classes ({compare_names(options.class_names, names)})'


def _make_head(shape, head_init, generator):
    """Return zeros, or for a weight a normal of deviation 0.02, cut at two deviations."""
    if head_init == 'zero' or len(shape) == 1:
        return np.zeros(shape, np.float32)
    values = generator.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = generator.standard_normal(outside.sum())
    return (0.02 * values).astype(np.float32)


def _check_fit(weights, tensors, shapes, report, new_values, allow_missing, project):
    """Fill report.loaded and report.missing. Raises UserError if the rest does not fit."""
    outside = [tensor.origins[0] for name, tensor in tensors.items() if name not in shapes]
    outside += weights.leftover
    wrong = [name for name in shapes if name in tensors and name not in new_values
             and tensors[name].shape != shapes[name]]
    wrong += [name for name in shapes if name in tensors and name not in wrong
              and any(array.dtype.kind not in 'f' for array in tensors[name].arrays)]
    absent = [name for name in shapes
              if name not in tensors and name not in report.missing and name not in report.replaced]
    report.missing += absent
    optional = [name for name in absent
                if allow_missing or name.startswith(project.before_head)]
    if wrong or outside or absent != optional:
        raise UserError(_explain(weights, tensors, shapes, wrong, outside, absent, project))
    report.loaded = [name for name in shapes if name in tensors]


def _check_finite(path, tensors):
    """Raise UserError naming a tensor with a NaN or an infinity, several tensors at a time."""
    def find(name):
        return name if not all(map(_is_finite, tensors[name].arrays)) else None

    with ThreadPoolExecutor(min(count_cores(), 8)) as pool:
        bad = [name for name in pool.map(find, tensors) if name is not None]
    if bad:
        raise UserError(f'{path}: NaN or infinity in {list_first(bad)}: the training that wrote '
                        'it diverged, or the file is damaged.')


def _is_finite(array):
    if array.dtype.kind != 'f':
        return True
    with np.errstate(over='ignore', invalid='ignore'):
        total = array.sum(dtype=np.promote_types(array.dtype, np.float32))
    # A sum is quicker than to look at every number, but may itself overflow.
    return bool(np.isfinite(total) or np.isfinite(array).all())


def _explain(weights: Weights, tensors, shapes, wrong, outside, absent, project: Project) -> str:
    """Return the message for a checkpoint that does not fit: likely cause, then the facts."""
    found = weights.project.describe({name: tensor.shape
                                      for name, tensor in weights.tensors.items()})
    wanted = project.describe(shapes)
    lines = [f'{weights.path} ({weights.format}) does not fit the model: this is {found}, '
             f'the config is {wanted}.']
    if found == wanted:
        lines = [f'{weights.path} ({weights.format}) does not fit the model, although both '
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
    array = to_float32(array)
    return array if parameter.dtype == paddle.float32 else \
        paddle.to_tensor(array).astype(parameter.dtype)


def to_float32(array: np.ndarray) -> np.ndarray:
    """Return an array as float32, row by row in memory and aligned."""
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.require(array, np.float32, ['C', 'A'])
    copy = np.empty(array.shape, np.float32)
    copy_array(array, copy)
    return copy


def _check_choice(name, value, choices):
    if value not in choices:
        raise UserError(f'{name}: unknown value {value!r}.{suggest(value, choices)}')
