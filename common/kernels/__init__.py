"""A model's arithmetic by other means than its own operators: same numbers, other speed.

A layer takes part by listing names in its class attribute `kernels`. Each is a plain function,
kept as a static method, that the layer's `forward` calls as `self.NAME(...)`; `install` replaces
it by a kernel on the built model. So the `forward` that one reads is the one that runs. Names and
signatures, where B are images, N tokens, D channels, H heads and d a head's channels:

    linear(x, weight, bias)                             [..., in] -> [..., out]; bias may be None
    layer_norm(x, weight, bias, epsilon)                over the last axis
    gelu_linear(hidden, form, linear, dropout)          linear(dropout(gelu(hidden)))
    project_heads(tokens, projection, num_heads)        [B, N, D] -> q, k, v of [B, H, N, d]
    attention(q, k, v, scale, dropout)                  softmax(scale q k^T) v: [B, N, H * d]

`linear`, `projection` (the layer's `qkv`) and `dropout` are layers. form: of GELU, "erf" or
"tanh"; a kernel leaves other forms to the plain function.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Give `install` and `installed`; not before they are used, because they import Paddle."""
    if name not in ('install', 'installed'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from common.kernels import seam
    return getattr(seam, name)
