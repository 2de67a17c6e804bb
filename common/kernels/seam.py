"""Puts kernels in the place of a built model's plain functions, where they give the same numbers.

See the package's text for what a layer declares. A kernel gets the plain function as its first
argument. Before it is installed, both are run on one small example, forward and backward; where
they differ, as where a model's own function computes something else, the plain one stays.
Paddle's own dropout layers declare nothing: on a CPU their `forward` is replaced.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from paddle.nn import functional as F

from common.kernels import cpu, fused, separate
from common.machine.host_memory import keep_freed_memory

KINDS: dict[str, dict[str, Any]] = {
    'plain': {}, 'cpu': cpu.KERNELS, 'fused': fused.KERNELS, 'separate': separate.KERNELS,
    'onnx': separate.ONNX_KERNELS}
TOLERANCE = {'float32': 1e-5, 'float16': 2e-2, 'bfloat16': 5e-2}      # of the largest value

logger = logging.getLogger(__name__)


def install(model: paddle.nn.Layer, kind: str, dtype: str = 'float32') -> int:
    """Install the kernels of a kind in place of whatever was; return in how many layers.

    kind: "plain" (none), "cpu" (for a model on the CPU: quick in float32, in dynamic mode),
    "fused" (attention in half precision on an accelerator) or "separate" (for exports; "onnx" for
    those that become ONNX). dtype: that the kernels are compared in. A kernel that fails the
    comparison is left out, which the log says once.
    """
    if kind == 'cpu':
        keep_freed_memory()
    count = 0
    for layer in model.sublayers(include_self=True):
        _remove(layer)
        names = [name for name in getattr(type(layer), 'kernels', ()) if name in KINDS[kind]]
        if KINDS[kind].get('project_heads') is separate.project_heads and 'project_heads' in names:
            undo = separate.prepare(layer)
            if undo is None:
                continue
            layer.undo_kernels = undo
            names = ['project_heads']           # the others belong to layers without a projection
        elif kind == 'cpu' and cpu.is_usual(layer):
            layer.forward = functools.partial(cpu.dropout, layer)
        else:
            names = [name for name in names
                     if find_difference(name, getattr(type(layer), name), kind, dtype) is None]
        _replace(layer, names, KINDS[kind])
        count += bool(names)
    return count


@contextlib.contextmanager
def installed(model: paddle.nn.Layer, kind: str) -> Iterator[None]:
    """Within the block the model has the kernels of a kind; after it, those that it had."""
    before = [{name: vars(layer)[name] for name in _list_names(layer) if name in vars(layer)}
              for layer in model.sublayers(include_self=True)]
    layers = model.sublayers(include_self=True)
    install(model, kind)
    try:
        yield
    finally:
        for layer, functions in zip(layers, before):
            _remove(layer)
            for name, function in functions.items():
                setattr(layer, name, function)


def _replace(layer, names, kernels):
    for name in names:
        setattr(layer, name, functools.partial(kernels[name], getattr(type(layer), name)))


def _list_names(layer):
    """Return the names of a layer's functions that kernels replace."""
    return ('forward',) if cpu.is_usual(layer) else getattr(type(layer), 'kernels', ())


def _remove(layer):
    for name in _list_names(layer):
        vars(layer).pop(name, None)
    undo = vars(layer).pop('undo_kernels', None)
    if undo is not None:
        undo()


@functools.cache
def find_difference(name: str, plain: Callable, kind: str, dtype: str = 'float32') -> str | None:
    """Return what speaks against a kernel for a plain function, and log it; None: nothing does."""
    kernel = functools.partial(KINDS[kind][name], plain)
    problem = None
    try:
        for make_example in EXAMPLES[name]:
            expected = run_example(plain, *make_example(dtype))
            found = run_example(kernel, *make_example(dtype))
            problem = problem or compare(found, expected, TOLERANCE[dtype])
    except Exception as error:              # the plain function is anybody's, and so its errors
        problem = f'{type(error).__name__}: {str(error).strip().splitlines()[-1:]}'
    if problem:
        logger.warning('Kernel %s (%s) is not used: %s.', name, kind, problem)
    return problem


def run_example(function: Callable, arguments: list, leaves: list[paddle.Tensor]
                ) -> list[np.ndarray]:
    """Return the outputs of a function, then the gradients of the leaves, as float32 arrays."""
    outputs = function(*arguments)
    outputs = [outputs] if isinstance(outputs, paddle.Tensor) else list(outputs)
    weights = np.random.default_rng(1)
    loss = sum((output.astype('float32') * _draw(weights, output.shape, 'float32')).sum()
               for output in outputs)
    loss.backward()
    return [_to_array(tensor) for tensor in [*outputs, *(leaf.grad for leaf in leaves)]]


def compare(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> str | None:
    """Return how two runs of an example differ, None where they agree."""
    if [array.shape for array in found] != [array.shape for array in expected]:
        return 'its outputs have other shapes'
    differences = [np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)
                   for a, b in zip(found, expected)]
    worst = max(differences)
    return None if worst <= tolerance else \
        f"it differs from the model's own function by {100 * worst:.3g} %"


# One small example of each function's arguments, and which of their tensors have gradients.

Example = tuple[list, list[paddle.Tensor]]


class ExampleLinear:
    """A linear layer to the functions that take one, made without random numbers or names."""

    def __init__(self, weight: paddle.Tensor, bias: paddle.Tensor) -> None:
        self.weight, self.bias = weight, bias
        self._forward_pre_hooks = self._forward_post_hooks = ()

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.linear(x, self.weight, self.bias)


class ExampleDropout:
    """A dropout layer that drops nothing and that nobody looks at."""

    training, p = False, 0.0
    _forward_pre_hooks = _forward_post_hooks = ()

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        return x


def make_linear_example(dtype: str) -> Example:
    x, weight, bias = leaves = _make_leaves(dtype, (2, 3, 6), (6, 4), (4,))
    return [x, weight, bias], leaves


def make_norm_example(dtype: str) -> Example:
    x, weight, bias = leaves = _make_leaves(dtype, (2, 3, 8), (8,), (8,))
    return [x, weight, bias, 1e-3], leaves


def make_gelu_example(form: str) -> Callable[[str], Example]:
    def make(dtype):
        hidden, weight, bias = leaves = _make_leaves(dtype, (2, 3, 6), (6, 4), (4,))
        return [hidden, form, ExampleLinear(weight, bias), ExampleDropout()], leaves
    return make


def make_projection_example(dtype: str) -> Example:
    tokens, weight, bias = leaves = _make_leaves(dtype, (2, 3, 8), (8, 24), (24,))
    return [tokens, ExampleLinear(weight, bias), 2], leaves


def make_attention_example(dtype: str) -> Example:
    leaves = _make_leaves(dtype, *[(2, 2, 3, 4)] * 3)
    return [*leaves, 0.7, ExampleDropout()], leaves


EXAMPLES: dict[str, list[Callable[[str], Example]]] = {
    'linear': [make_linear_example], 'layer_norm': [make_norm_example],
    'gelu_linear': [make_gelu_example('erf'), make_gelu_example('tanh')],
    'project_heads': [make_projection_example], 'attention': [make_attention_example]}


def _make_leaves(dtype, *shapes):
    generator = np.random.default_rng(0)
    leaves = [_draw(generator, shape, dtype) for shape in shapes]
    for leaf in leaves:
        leaf.stop_gradient = False
    return leaves


def _draw(generator, shape, dtype) -> Any:
    return paddle.to_tensor(generator.standard_normal(shape).astype('float32')).astype(dtype)


def _to_array(tensor):
    return tensor.astype('float32').numpy()
