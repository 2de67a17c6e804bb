"""The attention inside T2T-ViT's token modules, for visualize_attention.py and demo.py.

The token transformer has a softmax over its tokens. The performer has no such matrix:
its output is a product with phi(q) phi(k)^T / (phi(q) . sum phi(k)), the matrix that
its features imply, which is what is returned for it.
"""

from typing import Any

import paddle
from paddle.nn import functional as F

from common.deploy.attention import TokenModule


def list_token_modules(model: Any) -> list[TokenModule]:
    """Return the TokenModule of the soft splits' two token modules, first to last."""
    stem = model.patch_embed
    return [make_token_module(f'token module {number}', module, grid)
            for number, (module, grid) in enumerate(zip((stem.attn1, stem.attn2), stem.grids), 1)]


def make_token_module(name: str, module: Any, grid: tuple[int, int]) -> TokenModule:
    """Return the TokenModule of a TokenTransformer or TokenPerformer."""
    if hasattr(module, 'kqv'):
        return TokenModule(name, module.kqv, lambda kqv: performer_weights(module, kqv), grid)
    scale = module.attn.scale
    return TokenModule(name, module.attn.qkv, lambda qkv: softmax_weights(qkv, scale), grid)


def softmax_weights(qkv: paddle.Tensor, scale: float) -> paddle.Tensor:
    """Return softmax(q k^T * scale) [B, N, N] from the projection [B, N, 3 C]."""
    q, k, _ = qkv.chunk(3, axis=-1)
    return F.softmax(paddle.matmul(q * scale, k, transpose_y=True), axis=-1)


def performer_weights(module: Any, kqv: paddle.Tensor) -> paddle.Tensor:
    """Return the attention [B, N, N] that the features of q and k imply."""
    k, q, _ = kqv.astype('float32').chunk(3, axis=-1)
    weights = paddle.matmul(module.features(q), module.features(k), transpose_y=True)
    return weights / (weights.sum(axis=-1, keepdim=True) + 1e-8)
