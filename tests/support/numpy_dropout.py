"""Dropout of a plain model that chooses as the CPU's kernels do, computed by NumPy and Paddle."""

import contextlib
import functools

import numpy as np
import paddle
from paddle import nn

from common.kernels import cpu


@contextlib.contextmanager
def dropout_by_numpy(model):
    """Let the plain model drop what the kernels drop: by NumPy's Philox, of the same keys."""
    def drop(layer, x):
        chance = cpu.draw_chance(layer)
        if chance is None:
            return x
        words = np.random.Philox(key=chance.key).random_raw(-(-x.size // 4))
        kept = words.view(np.uint16)[:x.size].reshape(x.shape) >= round(65536 * chance.rate)
        return x * paddle.to_tensor(kept.astype('float32') / np.float32(1 - chance.rate))

    layers = [layer for layer in model.sublayers() if type(layer) is nn.Dropout]
    for layer in layers:
        layer.forward = functools.partial(drop, layer)
    yield
    for layer in layers:
        del layer.forward
