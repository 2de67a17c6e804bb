"""How a format's table of names is written, and how it is applied.

A rule says: their name, ours, and what holds the numbers. `{i}` stands for a
number, `*` for the tensor's name in its layer (weight and bias):

    Rule('blocks.{i}.attn.qkv.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR)

A kind such as LINEAR lists, for each of their tensors, ours and the change of
layout. Rules with `part` make one tensor together: the parts are joined along
the last axis.
"""

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

ROWS = 128              # that a transposition takes at once


def keep(array: np.ndarray) -> np.ndarray:
    return array


def transpose_linear(array: np.ndarray) -> np.ndarray:
    """[out, in] of PyTorch <-> [in, out] of Paddle."""
    return array.T if array.ndim == 2 else array


# Layers of PyTorch: {their tensor: (our tensor, change of layout)}.
LINEAR = {'weight': ('weight', transpose_linear), 'bias': ('bias', keep)}
PLAIN = {'weight': ('weight', keep), 'bias': ('bias', keep)}    # norms and convolutions
TENSOR = {'': ('', keep)}                                       # a tensor that is no layer's
# torch.nn.MultiheadAttention's own names of its three projections in one.
IN_PROJ = {'in_proj_weight': ('weight', transpose_linear), 'in_proj_bias': ('bias', keep)}


class Rule(NamedTuple):
    """See the module's text."""

    theirs: str
    ours: str
    kind: dict
    part: int = 0


def same_names(*names: str) -> tuple[Rule, ...]:
    """Return rules for tensors that have our name and layout already."""
    return tuple(Rule(name, name, PLAIN if name.endswith('*') else TENSOR) for name in names)


@dataclass(frozen=True)
class AddZeros:
    """A Format.prepare that adds zeros for a bias that the source does without.

    weight: their name of the layer's weight, whose `axis` is as long as the bias. where: their
    name of a tensor that only such sources have; None: all of the format.
    """

    weight: str
    bias: str
    axis: int = 0
    where: str | None = None

    def __call__(self, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = tensors.get(self.weight)
        if found is not None and found.ndim > self.axis and (
                self.where is None or self.where in tensors):
            tensors.setdefault(self.bias, np.zeros(found.shape[self.axis], np.float32))
        return tensors


# What wraps a network in other people's programs, and so stands before its tensors' names.
WRAPPERS = frozenset((
    'module', '_orig_mod', 'model', 'backbone', 'encoder', 'base_encoder', 'net', 'network',
    'visual', 'trunk', 'vision_model', 'timm_model', 'student', 'teacher'))


def read_nothing(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """The default of Format.read_record: a file says nothing of itself."""
    return {}


def prepare_nothing(tensors: dict) -> dict:
    """The default of Format.prepare."""
    return tensors


@dataclass
class Format:
    """A format: its table and its sources' conventions.

    name: for the report. kinds: containers it comes in. signature: patterns of
    names; a file with a match for each is of this format, be it behind wrappers such as
    `module.`, of WRAPPERS or of this format. rules: for the names behind the wrapper. outer:
    for heads, which stand beside it. ignored: patterns of names that carry nothing a model
    here has (`**` also stands for dots). numerics: what the source computes with (arguments of
    the models' set_numerics). read_record: called with the config.json, {their name behind
    the wrapper: ndarray} and all names in the file, returns what the file says of itself:
    numerics, num_heads, pool, preprocessing, project_resize (how the project that trained it
    resizes position embeddings, where that is not position_resize), and assumed, sentences on
    what it does not say. prepare: changes {their name behind the wrapper: ndarray} where rules
    cannot say it. position_resize: how the source resizes position embeddings. preprocessing:
    of the source's released models, {mean, std, crop_pct, interpolation}.
    """

    name: str
    kinds: tuple[str, ...]
    signature: tuple[str, ...]
    rules: tuple[Rule, ...]
    numerics: dict[str, Any]
    position_resize: str
    wrappers: tuple[str, ...] = ()
    outer: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    read_record: Callable[[dict, dict, Iterable[str]], dict] = read_nothing
    prepare: Callable[[dict], dict] = prepare_nothing
    preprocessing: dict[str, Any] = field(default_factory=dict)

    def find_prefix(self, kind: str, names: Iterable[str]) -> str | None:
        """Return what stands before the names of this format in a file, None for another format.

        kind: of the container. The shortest prefix before which the whole signature is found.
        """
        if kind not in self.kinds or not self.signature:
            return None
        found = [{prefix for name in names if (prefix := self._split(pattern, name)) is not None}
                 for pattern in self.signature]
        shared = set.intersection(*found)
        return min(shared, key=lambda prefix: (len(prefix), prefix)) if shared else None

    def _split(self, pattern, name):
        match = _compile('{prefix}' + pattern).fullmatch(name)
        if match is None:
            return None
        words = match['prefix'].split('.')[:-1]
        return match['prefix'] if all(
            word in WRAPPERS or word in self.wrappers for word in words) else None

    def convert(self, tensors: dict[str, np.ndarray], prefix: str = '') -> 'Converted':
        """Return {their name: ndarray} under our names. Without any rules every name is ours."""
        if not self.rules:
            return Converted({name: Tensor([(name, array)]) for name, array in tensors.items()})
        inside = {name.removeprefix(prefix): array for name, array in tensors.items()
                  if name.startswith(prefix)}
        outside = {name: array for name, array in tensors.items() if not name.startswith(prefix)}
        result, pieces = Converted(), {}
        self._collect(self.prepare(inside), (*self.rules, *self.outer), prefix, pieces,
                      result.leftover)
        self._collect(outside, self.outer, '', pieces, result.outside)
        for name in [name for name in result.leftover if self._is_ignored(name, prefix)]:
            result.outside.append(name)
            result.leftover.remove(name)
        result.tensors = {ours: Tensor(_fill_gaps(parts)) for ours, parts in pieces.items()}
        return result

    def _collect(self, tensors, rules, prefix, pieces, rest):
        """Add {our name: {part: (their name, ndarray)}} to pieces, names without a rule to rest."""
        for name, array in tensors.items():
            ours, part, change = _find(rules, name)
            if ours is None or part in pieces.get(ours, {}):
                rest.append(prefix + name)
            else:
                pieces.setdefault(ours, {})[part] = (prefix + name, change(array))

    def _is_ignored(self, name, prefix):
        name = name.removeprefix(prefix)
        return any(_compile(pattern).fullmatch(name) for pattern in self.ignored)

    def convert_back(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return {their name: ndarray} for {our name: ndarray}. Raises KeyError without a rule.

        Only for tables whose changes of layout undo themselves: keep and transpose_linear. A tensor
        that their several make is split into equal parts; without a wrapper's prefix, and without
        the rules for what is outside.
        """
        return {theirs: part for name, array in arrays.items()
                for theirs, part in self._find_back(name, array)}

    def _find_back(self, name, array):
        """Return [(their name, ndarray)] of one of our tensors."""
        for number, rule in enumerate(self.rules):
            for theirs, (ours, change) in rule.kind.items():
                match = _compile(rule.ours.replace('*', ours)).fullmatch(name)
                if match:
                    group = self._list_parts(number)
                    return [(_substitute(part.theirs, theirs, match.groupdict()), change(piece))
                            for part, piece in zip(group, np.split(array, len(group), axis=-1))]
        raise KeyError(name)

    def _list_parts(self, number):
        """Return the rules that follow one another and make one tensor of ours with this one."""
        group = [self.rules[number]]
        for rule in self.rules[number + 1:]:
            if rule.ours != group[0].ours or rule.part != len(group):
                break
            group.append(rule)
        return group


@dataclass
class Written:
    """Weights as another project has them, from a function of convert_weights.py's -to.

    tensors: {their name: ndarray}. ours: {our name: ndarray}, what reading them back gives, but
    for zeros that they do without. files: {name: content} of JSON that belongs beside. notes: what
    the user should know.
    """

    tensors: dict[str, np.ndarray]
    ours: dict[str, np.ndarray]
    files: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Converted:
    """What Format.convert makes of a file.

    tensors: {our name: Tensor}. leftover: their names that no rule knows. outside: their names
    that are no part of the network, such as a text tower or a decoder.
    """

    tensors: dict[str, 'Tensor'] = field(default_factory=dict)
    leftover: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)


def _find(rules, name):
    """Return (our name, part, change of layout) for their name; our name None: no rule."""
    for rule in rules:
        for theirs, (ours, change) in rule.kind.items():
            match = _compile(rule.theirs.replace('*', theirs)).fullmatch(name)
            if match:
                return _substitute(rule.ours, ours, match.groupdict()), rule.part, change
    return None, 0, keep


def _fill_gaps(parts):
    """Return [(their name, ndarray)] in order; a vector left out between two others is zero.

    So is the bias of the keys in models whose queries and values have one.
    """
    if set(parts) == {0, 2} and all(array.ndim == 1 for _, array in parts.values()):
        parts = {**parts, 1: (parts[0][0], np.zeros_like(parts[0][1]))}
    return [parts[part] for part in sorted(parts)]


class Tensor:
    """A tensor of a checkpoint in our layout; its numbers are joined only when asked for.

    pieces: [(their name, ndarray in our layout)], to be joined along the last axis.
    """

    def __init__(self, pieces: Iterable[tuple[str, np.ndarray]]) -> None:
        self.origins = [name for name, _ in pieces]
        self.arrays = [array for _, array in pieces]

    @property
    def shape(self) -> list[int]:
        """Its shape as a list; [] where the parts do not fit together."""
        first = self.arrays[0].shape
        if len(self.arrays) == 1:
            return list(first)
        if not self.fits:
            return []
        return [*first[:-1], sum(array.shape[-1] for array in self.arrays)]

    @property
    def fits(self) -> bool:
        """Whether the parts, such as queries, keys and values, can be joined."""
        first = self.arrays[0].shape
        return len(self.arrays) == 1 or bool(first) and all(
            array.shape == first for array in self.arrays)

    def get(self) -> np.ndarray:
        """Return the ndarray."""
        return self.arrays[0] if len(self.arrays) == 1 else np.concatenate(self.arrays, axis=-1)

    def copy_to(self, array: np.ndarray) -> None:
        """Write the numbers into an ndarray of the same shape."""
        if len(self.arrays) == 1:
            copy_array(self.arrays[0], array)
            return
        start = 0
        for piece in self.arrays:
            stop = start + piece.shape[-1]
            copy_array(piece, array[..., start:stop])
            start = stop


def copy_array(source: np.ndarray, target: np.ndarray) -> None:
    """Copy an ndarray into another of the same shape, in the target's type."""
    if source.ndim != 2 or source.flags.c_contiguous:
        np.copyto(target, source, casting='unsafe')
    else:
        _transpose(source.T, target)


def _transpose(source, target):
    """Write a matrix [rows, columns] into another, [columns, rows].

    By blocks of rows whose length is no power of two: read down the columns they stay in the
    cache, which takes a third of the time of NumPy's own transposition.
    """
    block = np.empty((ROWS, source.shape[1] + 32), source.dtype)[:, :source.shape[1]]
    for start in range(0, len(source), ROWS):
        part = source[start:start + ROWS]
        np.copyto(block[:len(part)], part)
        np.copyto(target[:, start:start + ROWS], block[:len(part)].T, casting='unsafe')


@functools.cache
def _compile(pattern):
    text = re.escape(pattern).replace(r'\*\*', '.+').replace(r'\*', r'\w+')
    text = text.replace(r'\{prefix\}', r'(?P<prefix>(?:\w+\.)*?)')
    return re.compile(re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>[0-9]{1,4})', text))


def _substitute(pattern, tensor, numbers):
    name = pattern.replace('*', tensor)
    for placeholder, number in numbers.items():
        name = name.replace('{' + placeholder + '}', number)
    return name
