"""Kernels for exported programs: separate queries, keys and values, and GELU in simple operators.

One product for all three leaves a tensor to be split, which engines do by copies, and in
bfloat16 by a way through float32: 4 % of the time of ViT-B/16.

paddle2onnx writes the GELU of erf for every form, so for ONNX the one of tanh is spelled out.
"""

import math
from collections.abc import Callable
from typing import Any

import paddle
from paddle import nn

NAMES = ('q', 'k', 'v')


def project_heads(plain: Callable, tokens: paddle.Tensor, projection: Any,
                  num_heads: int) -> list[paddle.Tensor]:
    parts = projection.parts
    shape = [-1, tokens.shape[1], num_heads, parts['q'].weight.shape[1] // num_heads]
    return [parts[name](tokens).reshape(shape).transpose([0, 2, 1, 3]) for name in NAMES]


def gelu_linear(plain: Callable, hidden: paddle.Tensor, form: str, linear: Any,
                dropout: Any) -> paddle.Tensor:
    if form != 'tanh':
        return plain(hidden, form, linear, dropout)
    inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden * hidden * hidden)
    return linear(dropout(0.5 * hidden * (1 + paddle.tanh(inner))))


def prepare(layer: nn.Layer) -> Callable[[], None] | None:
    """Split the projection of a layer, its `qkv`; return what undoes it, None without one."""
    projection = layer._sub_layers.get('qkv')
    if not isinstance(projection, nn.Linear):
        return None
    projection.parts = nn.LayerDict(_split(projection))

    def undo() -> None:
        del projection.parts
    return undo


def _split(projection):
    weight, bias = projection.weight.numpy(), projection.bias
    width = weight.shape[1] // len(NAMES)
    parts = {}
    for number, name in enumerate(NAMES):
        columns = slice(number * width, (number + 1) * width)
        part = nn.Linear(weight.shape[0], width, bias_attr=None if bias is not None else False)
        part.weight.set_value(weight[:, columns])
        if bias is not None:
            part.bias.set_value(bias.numpy()[columns])
        parts[name] = part
    return parts


KERNELS = {'project_heads': project_heads}
ONNX_KERNELS = {**KERNELS, 'gelu_linear': gelu_linear}
