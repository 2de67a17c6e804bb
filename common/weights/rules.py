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
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ROWS = 128              # that a transposition takes at once


def keep(array):
    return array


def transpose_linear(array):
    """[out, in] of PyTorch <-> [in, out] of Paddle."""
    return array.T if array.ndim == 2 else array


# Layers of PyTorch: {their tensor: (our tensor, change of layout)}.
LINEAR = {'weight': ('weight', transpose_linear), 'bias': ('bias', keep)}
PLAIN = {'weight': ('weight', keep), 'bias': ('bias', keep)}    # norms and convolutions
TENSOR = {'': ('', keep)}                                       # a tensor that is no layer's


class Rule(NamedTuple):
    """See the module's text."""

    theirs: str
    ours: str
    kind: dict
    part: int = 0


def same_names(*names):
    """Return rules for tensors that have our name and layout already."""
    return tuple(Rule(name, name, PLAIN if name.endswith('*') else TENSOR) for name in names)


def read_nothing(config, names):
    """The default of Format.read_numerics: a file says nothing of its numerics."""
    return {}


@dataclass
class Format:
    """A format: its table and its sources' conventions.

    name: for the report. kinds: containers it comes in. signature: patterns of
    names; a file with a match for each is of this format. numerics: what the
    source computes with (arguments of the models' set_numerics). read_numerics:
    called with the config.json and the names, returns what differs in this file.
    position_resize: how the source resizes position embeddings. prefix: removed
    from their names. ignored: names that carry nothing a model here has.
    """

    name: str
    kinds: tuple
    signature: tuple
    rules: tuple
    numerics: dict
    position_resize: str
    prefix: str = ''
    ignored: tuple = ()
    read_numerics: Callable = read_nothing

    def matches(self, kind, names):
        """Tell whether a container of `kind` with these tensor names is of this format."""
        names = [name.removeprefix(self.prefix) for name in names]
        return kind in self.kinds and all(
            any(_compile(pattern).fullmatch(name) for name in names)
            for pattern in self.signature)

    def convert(self, tensors):
        """Return ({our name: Tensor}, [names without a rule]) for {their name: ndarray}.

        Without any rules every name is ours.
        """
        if not self.rules:
            return {name: Tensor([(name, array)]) for name, array in tensors.items()}, []
        pieces, leftover = {}, []
        for name, array in tensors.items():
            ours, part, change = self._find(name.removeprefix(self.prefix))
            if ours is None or part in pieces.get(ours, {}):
                leftover.append(name)
            else:
                pieces.setdefault(ours, {})[part] = (name, change(array))
        return {ours: Tensor([parts[part] for part in sorted(parts)])
                for ours, parts in pieces.items()}, leftover

    def is_ignored(self, name):
        """Tell whether a name without a rule can be left out."""
        name = name.removeprefix(self.prefix)
        return any(_compile(pattern).fullmatch(name) for pattern in self.ignored)

    def _find(self, name):
        """Return (our name, part, change of layout) for their name; our name None: no rule."""
        for rule in self.rules:
            for theirs, (ours, change) in rule.kind.items():
                match = _compile(rule.theirs.replace('*', theirs)).fullmatch(name)
                if match:
                    return _substitute(rule.ours, ours, match.groupdict()), rule.part, change
        return None, 0, keep

    def convert_back(self, arrays):
        """Return {their name: ndarray} for {our name: ndarray}. Raises KeyError without a rule.

        Only for tables whose changes of layout undo themselves: keep and transpose_linear.
        """
        return {self._find_back(name, array)[0]: self._find_back(name, array)[1]
                for name, array in arrays.items()}

    def _find_back(self, name, array):
        for rule in self.rules:
            for theirs, (ours, change) in rule.kind.items():
                match = _compile(rule.ours.replace('*', ours)).fullmatch(name)
                if match:
                    return _substitute(rule.theirs, theirs, match.groupdict()), change(array)
        raise KeyError(name)


class Tensor:
    """A tensor of a checkpoint in our layout; its numbers are joined only when asked for.

    pieces: [(their name, ndarray in our layout)], to be joined along the last axis.
    """

    def __init__(self, pieces):
        self.origins = [name for name, _ in pieces]
        self.arrays = [array for _, array in pieces]

    @property
    def shape(self):
        """Its shape as a list; [] where the parts do not fit together."""
        first = self.arrays[0].shape
        if len(self.arrays) == 1:
            return list(first)
        if not first or any(array.shape[:-1] != first[:-1] for array in self.arrays):
            return []
        return [*first[:-1], sum(array.shape[-1] for array in self.arrays)]

    def get(self):
        """Return the ndarray."""
        return self.arrays[0] if len(self.arrays) == 1 else np.concatenate(self.arrays, axis=-1)

    def copy_to(self, array):
        """Write the numbers into an ndarray of the same shape."""
        if len(self.arrays) == 1:
            copy_array(self.arrays[0], array)
            return
        start = 0
        for piece in self.arrays:
            stop = start + piece.shape[-1]
            copy_array(piece, array[..., start:stop])
            start = stop


def copy_array(source, target):
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
    text = re.escape(pattern).replace(r'\*', r'\w+')
    return re.compile(re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>[0-9]{1,4})', text))


def _substitute(pattern, tensor, numbers):
    name = pattern.replace('*', tensor)
    for placeholder, number in numbers.items():
        name = name.replace('{' + placeholder + '}', number)
    return name
