"""From any checkpoint file to tensors under our names: which format, which weights in it."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.config import read_dump
from common.errors import UserError
from common.option import show
from common.project import Project, list_projects
from common.weights.containers import Container, open_container
from common.weights.preprocessing import check_preprocessing, name_options, read_stated
from common.weights.rules import Format, Tensor

# Where training checkpoints keep their weights, the preferred entry first.
EMA_ENTRIES = ('model_ema', 'state_dict_ema', 'ema_state_dict')
RAW_ENTRIES = ('model', 'state_dict', 'params')
# Entries of other people's training programs, and of both halves of a teacher and a student.
OTHER_ENTRIES = ('model_state_dict', 'net', 'network', 'module', 'teacher', 'encoder', 'student')

# The containers that this project and others on Paddle write a model's own names to.
OWN_KINDS = ('paddle', 'safetensors')
# Forms of what differs between the sources of checkpoints; a model may know fewer.
FORMS = {'gelu': ('erf', 'tanh', 'quick'), 'pre_logits_activation': ('tanh', 'relu')}


@dataclass
class Weights:
    """A file's tensors under our names and in our layout.

    project: whose format it is in. tensors: {our name: rules.Tensor}. leftover: {their name:
    Tensor} of what has no place in a model of that project. ignored: their names of what is no
    part of the image classifier. entry: where in the file the weights were, '' at the top.
    numerics: arguments of set_numerics. num_heads, pool: of the blocks and in front of the
    head, where the file or what lies beside it says so. grid_size: (rows, cols) of the position
    embedding, None where the file does not say. position_resize: how the source resizes it.
    project_resize: how the project that trained it does, where that is another way, else ''.
    assumed: sentences on what the file does not say and was taken for granted. preprocessing:
    mean, std, crop_pct and interpolation, as far as they are known. preprocessing_source: who
    says so. class_names: of the head, None where the file does not say.
    options: {full key: value} of the config that a training run here records, else {}.
    """

    path: str
    project: Project | None
    format: str
    entry: str
    tensors: dict[str, Tensor]
    leftover: dict[str, Tensor]
    ignored: list[str]
    numerics: dict[str, Any]
    position_resize: str
    grid_size: tuple[int, int] | None
    num_heads: int | None = None
    pool: str | None = None
    project_resize: str = ''
    assumed: list[str] = field(default_factory=list)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    preprocessing_source: str = ''
    class_names: list[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def preprocessing_options(self) -> dict[str, Any]:
        """The preprocessing as {config key: value}."""
        return name_options(self.preprocessing)


def read_weights(path: str | os.PathLike, use_ema: bool = True, project: Project | None = None,
                 own_names: Iterable[str] = ()) -> Weights:
    """Return the Weights in a file or Hugging Face folder of any known format.

    use_ema: take the averaged weights of a training checkpoint, where it has them. project:
    whose formats are tried before those of the other model directories. own_names: of the state
    dict that the weights are for; a file that has them is taken as it is. Raises UserError for
    a file that is no checkpoint of a known format.
    """
    container = open_container(path)
    entry, tensors = _choose_weights(container, use_ema)
    owner, form, prefix = _choose_format(container, tensors, project, set(own_names))
    stated = _read_record(container)
    options = _read_options(container)
    try:
        stated = {**form.read_record(container.config, _strip(tensors, prefix), tensors),
                  **stated}
        converted = form.convert(tensors, prefix)
    except UserError as error:
        raise UserError(f'{container.path}: {error}') from None
    if form is get_own_format(owner):           # a newer model may have more names than the table
        known = [name for name in converted.leftover if name in own_names]
        converted.tensors |= {name: Tensor([(name, tensors[name])]) for name in known}
        converted.leftover = [name for name in converted.leftover if name not in known]
    numerics = {**form.numerics,
                **{name: stated[name] for name in (*FORMS, 'layer_norm_eps') if name in stated}}
    if not any(name.startswith(owner.before_head) for name in converted.tensors):
        numerics.pop('pre_logits_activation', None)
    check_numerics(numerics, container.path)
    scalars = [name for name in converted.leftover if tensors[name].ndim == 0]
    preprocessing, said_by = _read_preprocessing(
        container, form.name, stated.get('preprocessing', form.preprocessing))
    return Weights(
        path=container.path, project=owner, format=form.name, entry=entry,
        tensors=converted.tensors,
        leftover={name: Tensor([(name, tensors[name])]) for name in converted.leftover
                  if name not in scalars},
        ignored=converted.outside + scalars, numerics=numerics,
        position_resize=form.position_resize, grid_size=stated.get('grid_size'),
        num_heads=_check_heads(stated.get('num_heads', options.get('MODEL.NUM_HEADS'))),
        pool=stated.get('pool', options.get('MODEL.POOL')),
        project_resize=stated.get('project_resize', ''), assumed=stated.get('assumed', []),
        preprocessing=preprocessing, preprocessing_source=said_by,
        class_names=read_names(container), options=options)


def read_names(container: Container) -> list[str] | None:
    """Return the names of the classes: ours, Hugging Face's id2label, timm's label_names.

    Hugging Face writes LABEL_0, LABEL_1, ... where nobody has named them.
    """
    names = container.tree.get('class_names') or container.config.get('label_names')
    labels = container.config.get('id2label')
    if not names and isinstance(labels, dict):
        numbers = [str(number) for number in range(len(labels))]
        names = [labels[number] for number in numbers] if set(labels) == set(numbers) else None
        if names and names[0] == 'LABEL_0':
            names = None
    if not names or not isinstance(names, (list, tuple)) \
            or not all(isinstance(name, str) for name in names):
        return None
    return list(names)


def _read_options(container):
    """Return {full key: value} of a recorded config; {} where there is none."""
    text = container.tree.get('config')
    return read_dump(text, f'The config recorded in {container.path}') \
        if isinstance(text, str) else {}


def _strip(tensors, prefix):
    """Return {name behind the prefix: ndarray}."""
    return {name.removeprefix(prefix): array for name, array in tensors.items()
            if name.startswith(prefix)}


def _check_heads(count):
    return count if type(count) is int and 0 < count < 10_000 else None


def _read_preprocessing(container, name, of_family):
    """Return ({mean, std, crop_pct, interpolation}, who says so).

    of_family: what weights of the format `name` are used with, where no file says it.
    """
    recorded = container.tree.get('preprocessing')
    if isinstance(recorded, dict):
        return check_preprocessing(recorded), 'the checkpoint'
    stated = read_stated(container.config, container.processor)
    if stated:
        return stated, 'preprocessor_config.json' if container.processor else 'config.json'
    return dict(of_family), f'weights of {name}'


_WRAPPED = re.compile(r'^(?:module\.|_orig_mod\.)+')


def get_own_format(project: Project) -> Format:
    """Return the format of a file with the names of the project's models."""
    return project.own_format or Format(
        name=project.name, kinds=OWN_KINDS, signature=(), rules=(), numerics={},
        position_resize='timm')


def _choose_format(container, names, project, own_names):
    """Return (Project, Format, prefix of its names) of a file's tensors. Raises UserError."""
    # Other people's .safetensors, whose names may be the same, say that they are PyTorch's.
    may_be_own = container.kind in OWN_KINDS and container.metadata.get('format') != 'pt'
    is_own = project and may_be_own and has_same_names(names, own_names)
    if is_own and project.folder:
        return project, get_own_format(project), ''
    projects = [project] if project else []
    projects += [other for other in list_projects() if other is not project]
    for candidate in projects:
        # Of a class without a model directory: a format that keeps the names may know more.
        formats = () if is_own else candidate.formats
        for form in (get_own_format(candidate), *formats):
            prefix = form.find_prefix(container.kind, names)
            if prefix is not None:
                return candidate, form, prefix
    # Without a model to compare with: what is nobody else's.
    if is_own or project and may_be_own and not own_names and project.own_format is None:
        return project, get_own_format(project), ''
    known = [form.name for candidate in projects
             for form in (get_own_format(candidate), *candidate.formats)]
    whose = project.name if project else ' or '.join(other.name for other in projects)
    stated = container.config.get('model_type') or container.config.get('architecture')
    named = f' config.json calls it {str(stated)[:60]!r}.' if stated else ''
    raise UserError(f'{container.path}: no known format of {whose} weights.{named} Names in the '
                    f'file: {list_first(names)}. Known: {", ".join(known)}.')


def has_same_names(names: Iterable[str], own_names: Iterable[str]) -> bool:
    """Tell whether a file's names are a model's own, be it of another depth or without its head.

    Names that differ in numbers alone count once. Three quarters of the model's must be there.
    """
    found, own = ({re.sub(r'\d+', '#', name) for name in group} for group in (names, own_names))
    return bool(own) and len(found & own) >= 0.75 * len(own)


def list_first(names: Iterable, count: int = 4) -> str:
    """Return the first names as text: "a, b, c, d, ... (12 in all)"."""
    names = [str(name)[:80] for name in names]
    more = f', ... ({len(names)} in all)' if len(names) > count else ''
    return (', '.join(names[:count]) or 'none') + more


def _choose_weights(container, use_ema):
    """Return (entry, {name: ndarray}) of the wanted weights."""
    tree = container.tree
    entries = (*EMA_ENTRIES, *RAW_ENTRIES) if use_ema else (*RAW_ENTRIES, *EMA_ENTRIES)
    for entry in (*entries, *OTHER_ENTRIES):
        if isinstance(tree.get(entry), dict):
            tensors = _get_tensors(tree[entry])
            if tensors:
                return entry, tensors
    tensors = _get_tensors(tree)
    if not tensors:
        raise UserError(f'{container.path} holds no tensors. Entries in it: {list_first(tree)}.')
    return '', tensors


def _get_tensors(branch):
    """Return the arrays of a state dict, without what DataParallel and compilers put in front.

    Arrays of no numbers are left out: they are what no register tokens are written as.
    """
    tensors = {}
    for name, value in branch.items():
        if isinstance(name, str) and isinstance(value, np.ndarray) and value.size:
            tensors[_WRAPPED.sub('', name)] = value
    return tensors


def _read_record(container):
    """Return the numerics and grid that checkpoints written here record, {} for others."""
    record = container.tree.get('numerics') or container.metadata.get('numerics') or {}
    if isinstance(record, str):                 # a .safetensors keeps text only
        try:
            record = json.loads(record)
        except (ValueError, RecursionError):
            record = None
    if not isinstance(record, dict):
        raise UserError(f'{container.path} is damaged: its record of the numerics is unreadable.')
    known = (*FORMS, 'layer_norm_eps', 'grid_size', 'num_heads')
    record = {key: record[key] for key in known if record.get(key) is not None}
    grid = record.get('grid_size')
    if grid is not None:
        if not isinstance(grid, (list, tuple)) or len(grid) != 2 or any(
                type(size) is not int or not 0 < size < 10_000 for size in grid):
            raise UserError(f'{container.path} is damaged: its grid size is {str(grid)[:40]}.')
        record['grid_size'] = tuple(grid)
    return record


def check_numerics(numerics: dict[str, Any], path: str) -> None:
    """Raise UserError for what no model computes with: an unknown form, an epsilon that is none.

    Paddle refuses an epsilon above 1e-3 when it comes to the first LayerNorm.
    """
    epsilon = numerics.get('layer_norm_eps', 0)
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= 1e-3:
        raise UserError(f'{path}: a LayerNorm epsilon of {show(epsilon)} makes no sense: it is '
                        'from 0 to 1e-3.')
    for name, forms in FORMS.items():
        value = numerics.get(name, forms[0])
        if not isinstance(value, str) or value not in forms:
            raise UserError(f'{path}: unknown {name.replace("_", " ")} {str(value)[:40]!r}.')
