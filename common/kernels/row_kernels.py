"""Arithmetic row by row, on all cores: GELU, softmax, LayerNorm's gradients, dropout.

`row_kernels.c` does each in one pass over memory. Where it cannot be compiled (see
common/kernels/compiled.py) NumPy and Paddle do the same in several. Tensors are float32, in one
piece, and in the processor's memory.
"""

import ctypes
import functools
import math
import os

import numpy as np
import paddle
from paddle.nn import functional as F

from common.kernels import compiled
from common.kernels.compiled import get_address
from common.machine.host_memory import run_by_rows, share, share_rows

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'row_kernels.c')

POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64
SIGNATURES = {
    'gelu': (None, (POINTER, POINTER, NUMBER, ctypes.c_int)),
    'gelu_slope': (None, (POINTER, POINTER, NUMBER, ctypes.c_int)),
    'softmax': (None, (POINTER, NUMBER, NUMBER)),
    'softmax_slope': (None, (POINTER, POINTER, NUMBER, NUMBER)),
    'layer_norm_gradients': (None, (POINTER, POINTER, POINTER, ctypes.c_float, POINTER, POINTER,
                                    POINTER, NUMBER, NUMBER)),
    'dropout': (None, (POINTER, POINTER, NUMBER, ctypes.c_uint64, ctypes.c_uint64,
                       ctypes.c_uint32, ctypes.c_float)),
}
BITS = 16               # that decide on a number: a rate is kept to 1 / 2^16
NUMBERS_A_BLOCK = 16    # that one counter of Philox gives the bits of


def gelu(x: paddle.Tensor, approximate: bool) -> paddle.Tensor:
    """Return gelu(x); approximate: by tanh."""
    kernels = load_kernels()
    if kernels is None:
        return F.gelu(x, approximate)
    output = paddle.empty_like(x)
    array, values = share_rows(output), share_rows(x)

    def compute(rows):
        kernels.gelu(
            get_address(values[rows]), get_address(array[rows]), values[rows].size, approximate)

    run_by_rows(compute, array)
    return output


def gelu_backward_(grad: paddle.Tensor, x: paddle.Tensor, approximate: bool) -> None:
    """Multiply grad, of x's size, by gelu's derivative at x, in place."""
    array, values = share(grad).reshape(-1, x.shape[-1]), share_rows(x)
    kernels = load_kernels()
    if kernels is None:
        cdf = share_rows(_compute_cdf(x, approximate))
        _gelu_backward_in_numpy(array, values, cdf, approximate)
        return

    def multiply(rows):
        kernels.gelu_slope(
            get_address(array[rows]), get_address(values[rows]), values[rows].size, approximate)

    run_by_rows(multiply, array)


def softmax_(scores: paddle.Tensor) -> paddle.Tensor:
    """Turn scores into their softmax over the last axis, in place; return them."""
    kernels = load_kernels()
    if kernels is None:
        return F.softmax_(scores, axis=-1)
    array = share_rows(scores)

    def compute(rows):
        kernels.softmax(get_address(array[rows]), *array[rows].shape)

    run_by_rows(compute, array)
    return scores


def softmax_backward_(grad: paddle.Tensor, probabilities: paddle.Tensor) -> None:
    """Turn the gradient of softmax's outputs into that of its inputs, in place."""
    array, values = share_rows(grad), share_rows(probabilities)
    kernels = load_kernels()
    if kernels is None:
        _softmax_backward_in_numpy(array, values)
        return

    def multiply(rows):
        kernels.softmax_slope(
            get_address(array[rows]), get_address(values[rows]), *array[rows].shape)

    run_by_rows(multiply, array)


def layer_norm_backward(grad: paddle.Tensor, x: paddle.Tensor, weight: paddle.Tensor,
                        epsilon: float) -> tuple[paddle.Tensor, ...]:
    """Return the gradients of LayerNorm's input, weight and bias."""
    grad_x = paddle.empty_like(x)
    arrays = [share_rows(tensor) for tensor in (grad, x, grad_x)]
    above, values, slopes = arrays
    kernels = load_kernels()
    if kernels is None:
        products = paddle.empty_like(x)                 # of gradient and normalised input
        _layer_norm_backward_in_numpy(above, values, share(weight), epsilon, slopes,
                                      share_rows(products))
        return grad_x, *(sum_rows(tensor.reshape([-1, x.shape[-1]]))
                         for tensor in (products, grad))
    factors, sums = share(weight), {}

    def compute(rows):
        above, values, slopes = (array[rows] for array in arrays)
        sums[rows.start] = np.zeros((2, len(factors)), np.float32)
        kernels.layer_norm_gradients(
            *map(get_address, (above, values, factors)), epsilon,
            *map(get_address, (slopes, *sums[rows.start])), *values.shape)

    run_by_rows(compute, arrays[0])
    # In the order of the rows, whichever core was first: two runs give the same bits.
    totals = np.stack([sums[start] for start in sorted(sums)]).sum(axis=0, dtype=np.float64)
    return grad_x, *(paddle.to_tensor(total) for total in totals.astype(np.float32))


def dropout(x: paddle.Tensor, rate: float, key: int,
            output: paddle.Tensor | None = None) -> paddle.Tensor:
    """Return x with each number made 0 with probability `rate`, else divided by 1 - rate.

    key: what the choice depends on beside the number's place: the same for any number of
    threads, with the kernels and without. It is that of NumPy's counter-based generator Philox.
    output: a tensor to write to, which may be x.
    """
    output = paddle.empty_like(x) if output is None else output
    array, values = share(output).reshape(-1), share(x).reshape(-1)
    threshold = round(rate * (1 << BITS))
    scale = 0.0 if rate == 1 else 1 / (1 - rate)
    kernels = load_kernels()

    def compute(blocks):
        start, end = blocks.start * NUMBERS_A_BLOCK, blocks.stop * NUMBERS_A_BLOCK
        part, source = array[start:end], values[start:end]
        if kernels is None:
            _dropout_in_numpy(source, part, key, blocks.start, threshold, scale)
        else:
            kernels.dropout(get_address(source), get_address(part), part.size, key,
                            blocks.start + 1, threshold, scale)

    run_by_rows(compute, BlocksOf(array))
    return output


class BlocksOf:
    """An array as run_by_rows takes it, in rows of a generator's block, the last cut short."""

    def __init__(self, array: np.ndarray) -> None:
        self.size = array.size

    def __len__(self) -> int:
        return (self.size + NUMBERS_A_BLOCK - 1) // NUMBERS_A_BLOCK


def sum_rows(matrix: paddle.Tensor) -> paddle.Tensor:
    """Return the sum of the rows of a matrix, as a product with ones."""
    ones = paddle.ones([1, matrix.shape[0]])
    return paddle.matmul(ones, matrix).reshape([-1])


@functools.lru_cache(maxsize=1)
def load_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None with the reason in the log."""
    return compiled.load_kernels(SOURCE, 'training', SIGNATURES)


# The same without the kernels.


def _dropout_in_numpy(values, output, key, block, threshold, scale):
    generator = np.random.Philox(key=key, counter=block)
    words = generator.random_raw(-(-values.size // 4))
    np.multiply(values, scale, out=output)
    np.copyto(output, 0, where=words.view(np.uint16)[:values.size] < threshold)


def _compute_cdf(x, approximate):
    """Return the factor c of gelu(x) = x * c, shaped as x: the normal distribution's, or its
    approximation by tanh."""
    if not approximate:
        output = paddle.erf(x * math.sqrt(0.5))
        array = share_rows(output)

        def shift(rows):
            array[rows] *= 0.5
            array[rows] += 0.5

        run_by_rows(shift, array)
        return output
    output = paddle.empty_like(x)
    array, values = share_rows(output), share_rows(x)

    def compute(rows):
        part, value = array[rows], values[rows]
        np.multiply(value, value, out=part)
        part *= 0.044715
        part += 1
        part *= value
        part *= math.sqrt(2 / math.pi)
        np.tanh(part, out=part)
        part *= 0.5
        part += 0.5

    run_by_rows(compute, array)
    return output


def _gelu_backward_in_numpy(grad, x, cdf, approximate):
    def multiply(rows):
        value, part = x[rows], cdf[rows]
        slope = value * value
        if approximate:
            # c' = 2 c (1 - c) s', where c = (1 + tanh s) / 2
            slope *= 3 * 0.044715
            slope += 1
            slope *= 2 * math.sqrt(2 / math.pi)
            slope *= part
            slope *= 1 - part
        else:
            slope *= -0.5
            np.exp(slope, out=slope)
            slope *= 1 / math.sqrt(2 * math.pi)
        slope *= value
        slope += part
        grad[rows] *= slope

    run_by_rows(multiply, grad)


def _softmax_backward_in_numpy(grad, probabilities):
    def multiply(rows):
        part, share_of = grad[rows], probabilities[rows]
        part -= np.einsum('ij,ij->i', part, share_of)[:, None]
        part *= share_of

    run_by_rows(multiply, grad)


def _layer_norm_backward_in_numpy(grad, x, weight, epsilon, grad_x, products):
    """Fill grad_x, and products = grad * (x - mean) / deviation. All matrices, by rows."""
    width = x.shape[1]

    def write(rows):
        product, output = products[rows], grad_x[rows]
        np.subtract(x[rows], x[rows].mean(axis=1, keepdims=True), out=product)
        variance = np.einsum('ij,ij->i', product, product) / width
        scale = (1 / np.sqrt(variance + epsilon))[:, None]
        product *= scale                                                # normalised input
        np.multiply(grad[rows], weight, out=output)
        shift = output.mean(axis=1, keepdims=True)
        slope = (np.einsum('ij,ij->i', output, product) / width)[:, None]
        output -= shift
        output -= product * slope
        output *= scale
        product *= grad[rows]

    run_by_rows(write, x)
