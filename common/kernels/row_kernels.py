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
    'draw_mask': (None, (POINTER, NUMBER, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32)),
    'apply_mask': (None, (POINTER, POINTER, NUMBER, POINTER, NUMBER, ctypes.c_float)),
}
BITS = 16               # of Philox decide on a number
BLOCK = 16              # numbers that one counter of Philox decides on, and so a word of a mask


class Mask:
    """Which numbers of a tensor dropout keeps, a bit each, and what these are multiplied by.

    The choice is drawn once and serves forward and backward. It depends on the number's place and
    on the key, and is the same for any number of threads, with the kernels and without: that of
    NumPy's counter-based generator Philox.
    """

    def __init__(self, size: int, rate: float, key: int) -> None:
        """size: of the tensor. Each number is dropped with probability `rate`, to 1 / 2^16."""
        self.scale = 0.0 if rate == 1 else 1 / (1 - rate)
        blocks = BlocksOf(size)
        self.words = np.zeros(len(blocks) + 1, np.uint16)   # one more: readers take two at once
        threshold = round(rate * (1 << BITS))
        kernels = load_kernels()

        def draw(rows):
            words = self.words[rows]
            if kernels is None:
                _draw_mask_in_numpy(words, key, rows.start, threshold)
            else:
                kernels.draw_mask(get_address(words), words.size, key, rows.start + 1, threshold)

        if threshold < 1 << BITS:               # else nothing is kept
            run_by_rows(draw, blocks)

    def drop(self, values: np.ndarray, output: np.ndarray, start: int) -> None:
        """Write values after dropout to output; both in one piece, which is where number `start`
        of the tensor and those after it belong."""
        kernels = load_kernels()
        if kernels is None:
            _drop_in_numpy(values.reshape(-1), output.reshape(-1), self.words, start, self.scale)
        else:
            kernels.apply_mask(get_address(values), get_address(output), values.size,
                               get_address(self.words), start, self.scale)


def dropout(x: paddle.Tensor, mask: Mask, output: paddle.Tensor | None = None) -> paddle.Tensor:
    """Return x after dropout, or the gradient before it; in `output`, which may be x."""
    output = paddle.empty_like(x) if output is None else output
    array, values = share(output).reshape(-1), share(x).reshape(-1)

    def compute(part):
        mask.drop(values[part], array[part], part.start)

    run_by_rows(compute, array)
    return output


def gelu(x: paddle.Tensor, approximate: bool, mask: Mask | None = None) -> paddle.Tensor:
    """Return gelu(x), after dropout where there is a mask; approximate: by tanh."""
    kernels = load_kernels()
    if kernels is None:
        output = F.gelu(x, approximate)
        return output if mask is None else dropout(output, mask, output)
    output = paddle.empty_like(x)
    array, values = share_rows(output), share_rows(x)

    def compute(rows):
        kernels.gelu(
            get_address(values[rows]), get_address(array[rows]), values[rows].size, approximate)
        _drop(mask, array, rows, array)

    run_by_rows(compute, array)
    return output


def gelu_backward_(grad: paddle.Tensor, x: paddle.Tensor, approximate: bool,
                   mask: Mask | None = None) -> None:
    """Turn the gradient of gelu's output, after dropout where there is a mask, into that of x,
    in place. grad: of x's size."""
    array, values = share(grad).reshape(-1, x.shape[-1]), share_rows(x)
    kernels = load_kernels()
    if kernels is None:
        if mask is not None:
            dropout(grad, mask, grad)
        cdf = share_rows(_compute_cdf(x, approximate))
        _gelu_backward_in_numpy(array, values, cdf, approximate)
        return

    def multiply(rows):
        _drop(mask, array, rows, array)
        kernels.gelu_slope(
            get_address(array[rows]), get_address(values[rows]), values[rows].size, approximate)

    run_by_rows(multiply, array)


def softmax_(scores: paddle.Tensor, mask: Mask | None = None,
             dropped: paddle.Tensor | None = None) -> paddle.Tensor:
    """Turn scores into their softmax over the last axis, in place; return them.

    mask: of dropout, whose result goes to `dropped`, which may be the scores.
    """
    kernels = load_kernels()
    if kernels is None:
        F.softmax_(scores, axis=-1)
        if mask is not None:
            dropout(scores, mask, dropped)
        return scores
    array, kept = share_rows(scores), None if dropped is None else share_rows(dropped)

    def compute(rows):
        kernels.softmax(get_address(array[rows]), *array[rows].shape)
        _drop(mask, array, rows, kept)

    run_by_rows(compute, array)
    return scores


def softmax_backward_(grad: paddle.Tensor, probabilities: paddle.Tensor,
                      mask: Mask | None = None) -> None:
    """Turn the gradient of softmax's outputs, after dropout where there is a mask, into that of
    its inputs, in place."""
    array, values = share_rows(grad), share_rows(probabilities)
    kernels = load_kernels()
    if kernels is None:
        if mask is not None:
            dropout(grad, mask, grad)
        _softmax_backward_in_numpy(array, values)
        return

    def multiply(rows):
        _drop(mask, array, rows, array)
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


def _drop(mask, array, rows, output):
    """Apply dropout, where there is any, to some rows of a matrix, while they are in the cache."""
    if mask is not None:
        mask.drop(array[rows], output[rows], rows.start * array.shape[1])


class BlocksOf:
    """A tensor's numbers as run_by_rows takes them, in rows of a generator's block."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return (self.size + BLOCK - 1) // BLOCK


def sum_rows(matrix: paddle.Tensor) -> paddle.Tensor:
    """Return the sum of the rows of a matrix, as a product with ones."""
    ones = paddle.ones([1, matrix.shape[0]])
    return paddle.matmul(ones, matrix).reshape([-1])


@functools.lru_cache(maxsize=1)
def load_kernels() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None with the reason in the log."""
    return compiled.load_kernels(SOURCE, 'training', SIGNATURES)


# The same without the kernels.


def _draw_mask_in_numpy(mask, key, block, threshold):
    parts = np.random.Philox(key=key, counter=block).random_raw(4 * mask.size).view(np.uint16)
    mask[:] = np.packbits(parts >= threshold, bitorder='little').view(np.uint16)


def _drop_in_numpy(values, output, words, start, scale):
    first, end = start // BLOCK, (start + values.size) // BLOCK + 1
    bits = np.unpackbits(words[first:end].view(np.uint8), bitorder='little').view(bool)
    kept = bits[start % BLOCK:][:values.size]
    np.multiply(values, scale, out=output, where=kept)
    np.copyto(output, 0, where=~kept)


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
