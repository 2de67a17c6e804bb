"""Attention in half precision on an accelerator, without the N x N scores in its memory.

Paddle's scaled_dot_product_attention takes FlashAttention's kernels on GPUs of compute
capability 8.0 and newer. Float32 stays plain: there its backward is slower than the plain one.
"""

from collections.abc import Callable
from typing import Any

import paddle
from paddle.nn import functional as F

from common.kernels.cpu import has_hooks, is_dropping


def attention(plain: Callable, q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor,
              scale: float, dropout: Any) -> paddle.Tensor:
    if q.dtype == paddle.float32 or has_hooks(dropout):
        return plain(q, k, v, scale, dropout)
    return attend(q, k, v, scale, dropout.p if is_dropping(dropout) else 0.0)


def attend(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, scale: float,
           rate: float) -> paddle.Tensor:
    """Return softmax(scale q k^T) v, merged: [B, H, N, d] each -> [B, N, H * d].

    rate: of dropout on the probabilities. Paddle 2.6 drops whatever `training` says, so the
    caller gives 0 in evaluation.
    """
    batch, num_heads, num_tokens, head_size = q.shape
    q = q * (scale * head_size ** 0.5)              # the function's own scale is d ** -0.5
    q, k, v = (heads.transpose([0, 2, 1, 3]) for heads in (q, k, v))        # [B, N, H, d]
    heads = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, training=rate > 0)
    return heads.reshape([-1, num_tokens, num_heads * head_size])


KERNELS = {'attention': attention}
