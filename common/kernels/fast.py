"""The model's arithmetic on a CPU, arranged for speed: same numbers, other kernels.

Paddle's CPU kernels are quick where they call MKL and slow elsewhere: the sum over a
batch (the gradient of a bias), the gradients of GELU and of LayerNorm, and every copy
of a transposed tensor run on one core, some at a hundredth of the memory's speed; and
each large tensor is fetched from the system and given back, page by page.
`accelerate(model)` replaces the `forward` of the layers concerned on a built model, and
keeps freed memory in the process. Parameters, their names, hooks, dropout and
the order of random numbers stay as they are. On a GPU nothing of this is used.

Tensors are read and written through NumPy arrays that share their memory.
"""

import math
import types

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.nn import functional as F

from common.kernels.row_kernels import (
    compute_layer_norm_gradients,
    gelu,
    multiply_by_gelu_slope,
    multiply_by_softmax_slope,
    softmax_,
    sum_rows,
)
from common.machine.host_memory import (
    keep_freed_memory,
    make_contiguous,
    run_by_rows,
    share,
)


def accelerate(model):
    """Give a model's layers their fast forward, in place. Returns how many got one.

    Applies to float32 in dynamic mode; a layer falls back to its own forward for anything
    else. `restore(model)` undoes it. For a model on the CPU only.
    """
    keep_freed_memory()
    count = 0
    for layer in model.sublayers(include_self=True):
        forward = choose_forward(layer)
        if forward is not None:
            layer.plain_forward = layer.forward
            layer.forward = types.MethodType(forward, layer)
            count += 1
    return count


def restore(model):
    """Give every layer its own forward back."""
    for layer in model.sublayers(include_self=True):
        if 'plain_forward' in vars(layer):
            del layer.forward, layer.plain_forward


def choose_forward(layer):
    """Return the fast forward for a layer, or None. Blocks are told by their parts."""
    if type(layer) is nn.Linear:
        return forward_linear
    if type(layer) is nn.LayerNorm and len(layer._normalized_shape) == 1 \
            and layer.weight is not None and layer.bias is not None:
        return forward_layer_norm
    if type(layer) is nn.GELU:
        return forward_gelu
    parts = set(layer._sub_layers)
    if {'fc1', 'fc2', 'dropout'} <= parts <= {'fc1', 'fc2', 'dropout', 'act'} and (
            hasattr(layer, 'gelu') or isinstance(layer._sub_layers.get('act'), nn.GELU)):
        return forward_mlp
    return forward_attention if is_attention(layer) else None


def is_attention(layer):
    """Whether a layer is multi-head attention: of the blocks, not of a token module."""
    parts = set(layer._sub_layers) - {'out', 'proj'}        # others, such as norms of q and k, act
    return parts == {'qkv', 'attn_dropout', 'proj_dropout'} and hasattr(layer, 'num_heads')


def get_scale(layer):
    """Return the factor of the queries of a layer for which is_attention."""
    return layer.scale if hasattr(layer, 'scale') else layer.head_size ** -0.5


def fits(*tensors):
    """Whether the fast path can take these: float32, not empty, outside static graphs."""
    return paddle.in_dynamic_mode() and all(
        tensor.dtype == paddle.float32 and tensor.size for tensor in tensors)


def apply(function, *arguments):
    """Run a PyLayer; without autograd where no gradient is wanted."""
    if paddle.is_grad_enabled() and any(
            isinstance(item, paddle.Tensor) and not item.stop_gradient for item in arguments):
        return function.apply(*arguments)
    with paddle.no_grad():
        return function.forward(NoContext(), *arguments)


class NoContext:
    """Stands in for a PyLayer's context where nothing is kept for backward."""

    def save_for_backward(self, *tensors):
        pass


# Linear layers


def multiply_and_add(x, weight, bias):
    """Return x @ weight + bias. x: [..., in]; weight: [in, out]."""
    output = paddle.matmul(x.reshape([-1, x.shape[-1]]), weight)
    if bias is not None:
        array, values = share(output), share(bias)

        def add(rows):
            array[rows] += values

        run_by_rows(add, array)
    return output.reshape([*x.shape[:-1], weight.shape[1]])


def linear_gradients(ctx, x, weight, grad):
    """Return the gradients of x, weight and bias that are wanted, None for the others.

    x: [rows, in]. grad: [rows, out]. The sum over rows is a product with ones.
    """
    wants_x, wants_weight, wants_bias = ctx.wanted
    grad_x = paddle.matmul(grad, weight, transpose_y=True) if wants_x else None
    grad_weight = paddle.matmul(x, grad, transpose_x=True) if wants_weight else None
    grad_bias = sum_rows(grad) if wants_bias else None
    return grad_x, grad_weight, grad_bias


def wants_gradient(tensor):
    return tensor is not None and not tensor.stop_gradient


class Linear(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias=None):
        ctx.save_for_backward(x, weight)
        ctx.wanted = [wants_gradient(tensor) for tensor in (x, weight, bias)]
        ctx.has_bias = bias is not None
        return multiply_and_add(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensor()
        grads = linear_gradients(ctx, x.reshape([-1, x.shape[-1]]), weight,
                                 grad.reshape([-1, grad.shape[-1]]))
        grad_x = None if grads[0] is None else grads[0].reshape(x.shape)
        return (grad_x, *grads[1:]) if ctx.has_bias else (grad_x, grads[1])


def forward_linear(layer, x):
    if not fits(x, layer.weight):
        return layer.plain_forward(x)
    arguments = (x, layer.weight) if layer.bias is None else (x, layer.weight, layer.bias)
    return apply(Linear, *arguments)


# GELU


class Gelu(PyLayer):
    @staticmethod
    def forward(ctx, x, approximate):
        ctx.save_for_backward(x)
        ctx.approximate = approximate
        return gelu(x, approximate)

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensor()
        output = paddle.assign(grad)
        multiply_by_gelu_slope(output, x, ctx.approximate)
        return output


def forward_gelu(layer, x):
    if not fits(x):
        return layer.plain_forward(x)
    return apply(Gelu, make_contiguous(x), layer._approximate)


class GeluLinear(PyLayer):
    """linear(gelu(x)); backward computes gelu(x) again, a fifth of a block's activations."""

    @staticmethod
    def forward(ctx, x, approximate, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.approximate = approximate
        ctx.wanted = [wants_gradient(tensor) for tensor in (x, weight, bias)]
        return multiply_and_add(gelu(x, approximate), weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensor()
        active = gelu(x, ctx.approximate).reshape([-1, x.shape[-1]])
        grad_x, grad_weight, grad_bias = linear_gradients(
            ctx, active, weight, grad.reshape([-1, grad.shape[-1]]))
        if grad_x is not None:
            multiply_by_gelu_slope(grad_x, x, ctx.approximate)
            grad_x = grad_x.reshape(x.shape)
        return grad_x, grad_weight, grad_bias


def forward_mlp(layer, tokens):
    hidden = layer.fc1(tokens)
    approximate = layer.act._approximate if 'act' in layer._sub_layers else layer.gelu == 'tanh'
    if not fits(hidden):
        return layer.plain_forward(tokens)
    fc2 = layer.fc2
    if layer.training and layer.dropout.p:
        hidden = layer.dropout(apply(Gelu, hidden, approximate))
        return layer.dropout(fc2(hidden))
    return apply(GeluLinear, hidden, approximate, fc2.weight, fc2.bias)


# LayerNorm


class LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        ctx.wanted = [wants_gradient(tensor) for tensor in (x, weight, bias)]
        return F.layer_norm(x, [x.shape[-1]], weight, bias, epsilon)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensor()
        grads = compute_layer_norm_gradients(make_contiguous(grad), x, weight, ctx.epsilon)
        return tuple(grad if wanted else None for grad, wanted in zip(grads, ctx.wanted))


def forward_layer_norm(layer, x):
    if not fits(x, layer.weight):
        return layer.plain_forward(x)
    return apply(LayerNorm, make_contiguous(x), layer.weight, layer.bias, layer._epsilon)


# Attention


def copy_heads(source, shape, order):
    """Return the tensor reshaped and transposed, in new memory."""
    array = share(source).reshape(shape).transpose(order)
    output = paddle.empty(array.shape, 'float32')
    copy_batch(share(output), array)
    return output


def copy_batch(target, source):
    """Copy an array, some of the first axis on each core."""
    def copy(rows):
        target[rows] = source[rows]

    run_by_rows(copy, target)


class SplitHeads(PyLayer):
    """[B, N, 3 * H * d] -> q * scale, k, v of [B, H, N, d] each."""

    @staticmethod
    def forward(ctx, qkv, num_heads, scale):
        batch, num_tokens, width = qkv.shape
        ctx.shape = (batch, num_tokens, 3, num_heads, width // num_heads // 3)
        ctx.scale = scale
        array = share(qkv).reshape(ctx.shape)
        outputs = []
        for part in range(3):
            outputs.append(paddle.empty([batch, num_heads, num_tokens, ctx.shape[-1]], 'float32'))
            copy_batch(share(outputs[-1]), array[:, :, part].transpose(0, 2, 1, 3))
        outputs[0].scale_(scale)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        batch, num_tokens = ctx.shape[:2]
        output = paddle.empty([batch, num_tokens, math.prod(ctx.shape[2:])], 'float32')
        array = share(output).reshape(ctx.shape)
        for part, grad in enumerate(grads):
            copy_batch(array[:, :, part], share(make_contiguous(grad)).transpose(0, 2, 1, 3))
        array[:, :, 0] *= np.float32(ctx.scale)
        return output


def merge_heads(heads):
    """[B, H, N, d] -> [B, N, H * d]."""
    batch, num_heads, num_tokens, head_size = heads.shape
    return copy_heads(heads, heads.shape, (0, 2, 1, 3)).reshape(
        [batch, num_tokens, num_heads * head_size])


class MergeHeads(PyLayer):
    @staticmethod
    def forward(ctx, heads):
        ctx.shape = heads.shape
        return merge_heads(heads)

    @staticmethod
    def backward(ctx, grad):
        return split_gradient(grad, ctx.shape)


def split_gradient(grad, shape):
    """[B, N, H * d] -> `shape`, [B, H, N, d]."""
    batch, num_heads, num_tokens, head_size = shape
    return copy_heads(make_contiguous(grad), (batch, num_tokens, num_heads, head_size),
                      (0, 2, 1, 3))


def compute_probabilities(q, k):
    return softmax_(paddle.matmul(q, k, transpose_y=True))


class Attend(PyLayer):
    """Merged softmax(q k^T) v; backward computes the probabilities again.

    They are the largest of a block's activations where tokens are many: [B, H, N, N].
    """

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return merge_heads(paddle.matmul(compute_probabilities(q, k), v))

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensor()
        grad = split_gradient(grad, q.shape)
        probabilities = compute_probabilities(q, k)
        grad_v = paddle.matmul(probabilities, grad, transpose_x=True)
        slope = paddle.matmul(grad, v, transpose_y=True)
        multiply_by_softmax_slope(slope, probabilities)
        return (paddle.matmul(slope, k), paddle.matmul(slope, q, transpose_x=True), grad_v)


def forward_attention(layer, tokens):
    qkv = layer.qkv(tokens)
    if not fits(qkv):
        return layer.plain_forward(tokens)
    q, k, v = apply(SplitHeads, qkv, layer.num_heads, get_scale(layer))
    if must_show_probabilities(layer.attn_dropout):
        scores = paddle.matmul(q, k, transpose_y=True)
        probabilities = layer.attn_dropout(F.softmax(scores, axis=-1))
        heads = apply(MergeHeads, paddle.matmul(probabilities, v))
    else:
        heads = apply(Attend, q, k, v)
    project = layer.out if 'out' in layer._sub_layers else layer.proj
    return layer.proj_dropout(project(heads))


def must_show_probabilities(dropout):
    """Whether somebody looks at a dropout's input, or it has something to drop."""
    return bool(dropout.training and dropout.p
                or dropout._forward_pre_hooks or dropout._forward_post_hooks)
