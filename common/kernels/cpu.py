"""Kernels for models on the CPU: same numbers, less time and memory.

Paddle's CPU kernels are quick where they call MKL and slow elsewhere: the sum over a
batch (the gradient of a bias), the gradients of GELU and of LayerNorm, and every copy
of a transposed tensor run on one core, some at a hundredth of the memory's speed.
Parameters, their names and hooks stay as they are. What dropout chooses is another, because
Paddle draws its random numbers on one core; the seed still decides it.

Each kernel gets the layer's own function first and leaves to it what it cannot compute:
other types than float32, static graphs, and attention whose probabilities somebody wants.
Tensors are read and written through NumPy arrays that share their memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer, PyLayerContext
from paddle.nn import functional as F

from common.kernels import row_kernels
from common.kernels.row_kernels import (
    Mask,
    gelu,
    gelu_backward_,
    layer_norm_backward,
    softmax_,
    softmax_backward_,
    sum_rows,
)
from common.machine.host_memory import make_contiguous, run_by_rows, share


def fits(*tensors: paddle.Tensor) -> bool:
    """Whether the kernels can take these: float32, not empty, outside static graphs."""
    return paddle.in_dynamic_mode() and all(
        tensor.dtype == paddle.float32 and tensor.size for tensor in tensors)


def apply(function: type[PyLayer], *arguments: Any) -> Any:
    """Run a PyLayer; without autograd where no gradient is wanted."""
    if paddle.is_grad_enabled() and any(
            isinstance(item, paddle.Tensor) and not item.stop_gradient for item in arguments):
        return function.apply(*arguments)
    with paddle.no_grad():
        return function.forward(NoContext(), *arguments)


class NoContext:
    """Stands in for a PyLayer's context where nothing is kept for backward."""

    def save_for_backward(self, *tensors: paddle.Tensor) -> None:
        pass


def has_hooks(layer: Any) -> bool:
    """Whether somebody looks at what a layer gets or gives."""
    return bool(layer._forward_pre_hooks or layer._forward_post_hooks)


def is_dropping(dropout: Any) -> bool:
    """Whether a dropout layer changes what it gets."""
    return bool(dropout.training and dropout.p)


# Dropout


class Chance(NamedTuple):
    """What dropout drops: a share `rate` of the numbers, chosen by `key`."""

    rate: float
    key: int


def draw_chance(dropout: nn.Dropout) -> Chance | None:
    """Return what a dropout layer drops this time, None where it does nothing.

    The key is drawn from Paddle's generator, so that paddle.seed decides it.
    """
    if not is_dropping(dropout):
        return None
    high, low = paddle.randint(0, 2 ** 31 - 1, [2], 'int64').tolist()
    return Chance(dropout.p, high << 31 | low)


def draw_mask(dropout: nn.Dropout, size: int) -> Mask | None:
    """Return which of `size` numbers a dropout layer keeps; None where it does nothing."""
    chance = draw_chance(dropout)
    return None if chance is None else Mask(size, *chance)


def is_usual(dropout: Any) -> bool:
    """Whether a layer is Paddle's own dropout, of single numbers that are scaled in training."""
    return type(dropout) is nn.Dropout and dropout.axis is None \
        and dropout.mode == 'upscale_in_train'


class Dropout(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: paddle.Tensor, mask: Mask) -> paddle.Tensor:
        ctx.mask = mask
        return row_kernels.dropout(x, mask)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> paddle.Tensor:
        return row_kernels.dropout(make_contiguous(grad), ctx.mask)


def dropout(layer: nn.Dropout, x: paddle.Tensor) -> paddle.Tensor:
    """Take the place of nn.Dropout.forward."""
    if not is_dropping(layer) or not fits(x):
        return nn.Dropout.forward(layer, x)
    return apply(Dropout, make_contiguous(x), draw_mask(layer, x.size))


# Linear layers


def multiply_and_add(x: paddle.Tensor, weight: paddle.Tensor,
                     bias: paddle.Tensor | None) -> paddle.Tensor:
    """Return x @ weight + bias. x: [..., in]; weight: [in, out]."""
    output = paddle.matmul(x.reshape([-1, x.shape[-1]]), weight)
    if bias is not None:
        array, values = share(output), share(bias)

        def add(rows):
            array[rows] += values

        run_by_rows(add, array)
    return output.reshape([*x.shape[:-1], weight.shape[1]])


def linear_gradients(ctx: PyLayerContext, x: paddle.Tensor, weight: paddle.Tensor,
                     grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
    """Return the gradients of x, weight and bias that are wanted, None for the others.

    x: [rows, in]. grad: [rows, out]. The sum over rows is a product with ones.
    """
    wants_x, wants_weight, wants_bias = ctx.wanted
    grad_x = paddle.matmul(grad, weight, transpose_y=True) if wants_x else None
    grad_weight = paddle.matmul(x, grad, transpose_x=True) if wants_weight else None
    grad_bias = sum_rows(grad) if wants_bias else None
    return grad_x, grad_weight, grad_bias


def wants_gradient(tensor: paddle.Tensor | None) -> bool:
    return tensor is not None and not tensor.stop_gradient


class Linear(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: paddle.Tensor, weight: paddle.Tensor,
                bias: paddle.Tensor | None = None) -> paddle.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.wanted = [wants_gradient(tensor) for tensor in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return multiply_and_add(x, weight, bias)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        grads = linear_gradients(ctx, x.reshape([-1, x.shape[-1]]), weight,
                                 grad.reshape([-1, grad.shape[-1]]))
        grad_x = None if grads[0] is None else grads[0].reshape(x.shape)
        return (grad_x, *grads[1:]) if ctx.has_bias else (grad_x, grads[1])


def linear(plain: Callable, x: paddle.Tensor, weight: paddle.Tensor,
           bias: paddle.Tensor | None) -> paddle.Tensor:
    if not fits(x, weight):
        return plain(x, weight, bias)
    return apply(Linear, x, weight) if bias is None else apply(Linear, x, weight, bias)


# GELU


class Gelu(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: paddle.Tensor, approximate: bool) -> paddle.Tensor:
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return gelu(x, approximate)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> paddle.Tensor:
        x, = ctx.saved_tensor()
        output = paddle.assign(grad)
        gelu_backward_(output, x, ctx.approximate)
        return output


class GeluLinear(PyLayer):
    """linear(dropout(gelu(x))); backward computes what is between again, a fifth of a block's
    activations."""

    @staticmethod
    def forward(ctx: PyLayerContext, x: paddle.Tensor, approximate: bool, weight: paddle.Tensor,
                bias: paddle.Tensor, mask: Mask | None) -> paddle.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.approximate, ctx.mask = approximate, mask
        ctx.wanted = [wants_gradient(tensor) for tensor in (x, weight, bias)]
        return multiply_and_add(gelu(x, approximate, mask), weight, bias)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        active = gelu(x, ctx.approximate, ctx.mask).reshape([-1, x.shape[-1]])
        grad_x, grad_weight, grad_bias = linear_gradients(
            ctx, active, weight, grad.reshape([-1, grad.shape[-1]]))
        if grad_x is not None:
            gelu_backward_(grad_x, x, ctx.approximate, ctx.mask)
            grad_x = grad_x.reshape(x.shape)
        return grad_x, grad_weight, grad_bias


def gelu_linear(plain: Callable, hidden: paddle.Tensor, form: str, linear: Any,
                dropout: Any) -> paddle.Tensor:
    if not fits(hidden, linear.weight) or form not in ('erf', 'tanh'):
        return plain(hidden, form, linear, dropout)
    hidden, approximate = make_contiguous(hidden), form == 'tanh'
    if is_dropping(dropout) and not is_usual(dropout) or has_hooks(dropout) \
            or linear.bias is None or has_hooks(linear):
        return linear(dropout(apply(Gelu, hidden, approximate)))
    return apply(GeluLinear, hidden, approximate, linear.weight, linear.bias,
                 draw_mask(dropout, hidden.size))


# LayerNorm


class LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor,
                epsilon: float) -> paddle.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        ctx.wanted = [wants_gradient(tensor) for tensor in (x, weight, bias)]
        return F.layer_norm(x, [x.shape[-1]], weight, bias, epsilon)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        x, weight = ctx.saved_tensor()
        grads = layer_norm_backward(make_contiguous(grad), x, weight, ctx.epsilon)
        return tuple(grad if wanted else None for grad, wanted in zip(grads, ctx.wanted))


def layer_norm(plain: Callable, x: paddle.Tensor, weight: paddle.Tensor | None,
               bias: paddle.Tensor | None, epsilon: float) -> paddle.Tensor:
    if weight is None or bias is None or not fits(x, weight):
        return plain(x, weight, bias, epsilon)
    return apply(LayerNorm, make_contiguous(x), weight, bias, epsilon)


# Attention


def copy_heads(source: paddle.Tensor, shape: Sequence[int], order: Sequence[int]) -> paddle.Tensor:
    """Return the tensor reshaped and transposed, in new memory."""
    array = share(source).reshape(shape).transpose(order)
    output = paddle.empty(array.shape, 'float32')
    copy_batch(share(output), array)
    return output


def copy_batch(target: np.ndarray, source: np.ndarray) -> None:
    """Copy an array, some of the first axis on each core."""
    def copy(rows):
        target[rows] = source[rows]

    run_by_rows(copy, target)


class SplitHeads(PyLayer):
    """[B, N, 3 * H * d] -> q, k, v of [B, H, N, d] each."""

    @staticmethod
    def forward(ctx: PyLayerContext, qkv: paddle.Tensor,
                num_heads: int) -> tuple[paddle.Tensor, ...]:
        batch, num_tokens, width = qkv.shape
        ctx.shape = (batch, num_tokens, 3, num_heads, width // num_heads // 3)
        array = share(qkv).reshape(ctx.shape)
        outputs = []
        for part in range(3):
            outputs.append(paddle.empty([batch, num_heads, num_tokens, ctx.shape[-1]], 'float32'))
            copy_batch(share(outputs[-1]), array[:, :, part].transpose(0, 2, 1, 3))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: PyLayerContext, *grads: paddle.Tensor) -> paddle.Tensor:
        batch, num_tokens = ctx.shape[:2]
        output = paddle.empty([batch, num_tokens, math.prod(ctx.shape[2:])], 'float32')
        array = share(output).reshape(ctx.shape)
        for part, grad in enumerate(grads):
            copy_batch(array[:, :, part], share(make_contiguous(grad)).transpose(0, 2, 1, 3))
        return output


def merge_heads(heads: paddle.Tensor) -> paddle.Tensor:
    """[B, H, N, d] -> [B, N, H * d]."""
    batch, num_heads, num_tokens, head_size = heads.shape
    return copy_heads(heads, heads.shape, (0, 2, 1, 3)).reshape(
        [batch, num_tokens, num_heads * head_size])


class MergeHeads(PyLayer):
    @staticmethod
    def forward(ctx: PyLayerContext, heads: paddle.Tensor) -> paddle.Tensor:
        ctx.shape = heads.shape
        return merge_heads(heads)

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> paddle.Tensor:
        return split_gradient(grad, ctx.shape)


def split_gradient(grad: paddle.Tensor, shape: Sequence[int]) -> paddle.Tensor:
    """[B, N, H * d] -> `shape`, [B, H, N, d]."""
    batch, num_heads, num_tokens, head_size = shape
    return copy_heads(make_contiguous(grad), (batch, num_tokens, num_heads, head_size),
                      (0, 2, 1, 3))


class Attend(PyLayer):
    """Merged dropout(softmax(scale q k^T)) v; backward computes the probabilities again.

    They are the largest of a block's activations where tokens are many: [B, H, N, N].
    """

    @staticmethod
    def forward(ctx: PyLayerContext, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor,
                scale: float, mask: Mask | None) -> paddle.Tensor:
        q = q * scale
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.mask = scale, mask
        scores = paddle.matmul(q, k, transpose_y=True)
        probabilities = softmax_(scores, mask, scores)
        return merge_heads(paddle.matmul(probabilities, v))

    @staticmethod
    def backward(ctx: PyLayerContext, grad: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        q, k, v = ctx.saved_tensor()
        grad = split_gradient(grad, q.shape)
        scores = paddle.matmul(q, k, transpose_y=True)
        kept = scores if ctx.mask is None else paddle.empty_like(scores)
        probabilities = softmax_(scores, ctx.mask, kept)
        grad_v = paddle.matmul(kept, grad, transpose_x=True)
        grad_scores = paddle.matmul(grad, v, transpose_y=True)
        softmax_backward_(grad_scores, probabilities, ctx.mask)
        grad_q = paddle.matmul(grad_scores, k).scale_(ctx.scale)
        return grad_q, paddle.matmul(grad_scores, q, transpose_x=True), grad_v


def project_heads(plain: Callable, tokens: paddle.Tensor, projection: Any,
                  num_heads: int) -> tuple[paddle.Tensor, ...]:
    if not fits(tokens, projection.weight):
        return plain(tokens, projection, num_heads)
    return apply(SplitHeads, projection(tokens), num_heads)


def attention(plain: Callable, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor,
              scale: float, dropout: Any) -> paddle.Tensor:
    if not fits(q, k, v):
        return plain(q, k, v, scale, dropout)
    if is_dropping(dropout) and not is_usual(dropout) or has_hooks(dropout):
        scores = paddle.matmul(q * scale, k, transpose_y=True)
        probabilities = dropout(F.softmax(scores, axis=-1))
        return apply(MergeHeads, paddle.matmul(probabilities, v))
    return apply(Attend, make_contiguous(q), make_contiguous(k), make_contiguous(v), scale,
                 draw_mask(dropout, math.prod(q.shape[:-1]) * k.shape[-2]))


KERNELS = {'linear': linear, 'layer_norm': layer_norm, 'gelu_linear': gelu_linear,
           'project_heads': project_heads, 'attention': attention}
