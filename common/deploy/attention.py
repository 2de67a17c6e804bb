"""What a model attends to: its attention weights, and the maps made of them.

The weights are the model's own, read by forward hooks while it runs, so that neither
the model nor its output changes. Shapes: B images, L layers, H heads, T tokens (the
class token first, where there is one), N tokens of the image.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import paddle


class TokenModule(NamedTuple):
    """A module of a model's stem that attends over tokens of its own.

    layer: its output is what `weights` takes, to give probabilities [B, N, N].
    grid: (rows, columns) of its tokens.
    """

    name: str
    layer: paddle.nn.Layer
    weights: Callable[[paddle.Tensor], paddle.Tensor]
    grid: tuple[int, int]


@dataclass
class Attention:
    """The attention of one forward pass, as float32 arrays.

    logits: [B, classes]. layers: [L, B, H, T, T], rows sum to one: row i is how token
    i mixes the others. prefix: tokens before those of the image. grid: (rows,
    columns) of the image's tokens. reader: the tokens that the classifier reads, as
    indices. stem: {name: ([B, N, N], (rows, columns))} of the token modules. shares:
    [B, tokens of reader], what each counts where attention pools them, rows sum to one; None
    where it does not.
    """

    logits: np.ndarray
    layers: np.ndarray
    prefix: int
    grid: tuple[int, int]
    reader: list[int]
    stem: dict[str, tuple[np.ndarray, tuple[int, int]]] = field(default_factory=dict)
    shares: np.ndarray | None = None


@paddle.no_grad()
def record_attention(model: Any, images: np.ndarray,
                     token_modules: Sequence[TokenModule] = ()) -> Attention:
    """Run a model on images [B, 3, S, S] and return its Attention.

    model: has `blocks`, each with `attn.attn_dropout`, whose input are the probabilities, and
    may have `attention_pool` with the same, of one query; it is left in the mode (train or eval)
    it came in.
    token_modules: TokenModule of the model's stem, as its directory lists them.
    """
    layers, stem, shares = [], {}, []

    def keep_layer(layer, inputs):
        layers.append(_to_array(inputs[0]))

    def keep_shares(layer, inputs):
        shares.append(_to_array(inputs[0])[:, :, 0].mean(axis=1))

    def keep_stem(module):
        def hook(layer, inputs, output):
            stem[module.name] = _to_array(module.weights(output)), tuple(module.grid)
        return hook

    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        for block in model.blocks:
            handle = block.attn.attn_dropout.register_forward_pre_hook(keep_layer)
            stack.callback(handle.remove)
        pool = getattr(model, 'attention_pool', None)
        if pool is not None:
            stack.callback(pool.attn_dropout.register_forward_pre_hook(keep_shares).remove)
        for module in token_modules:
            stack.callback(module.layer.register_forward_post_hook(keep_stem(module)).remove)
        logits = _to_array(model(paddle.to_tensor(images)))
    if was_training:
        model.train()
    prefix = model.num_prefix_tokens
    tokens = layers[0].shape[-1]
    reader = range(prefix, tokens)
    if getattr(model, 'pool', 'token') == 'token':
        reader = range(getattr(model, 'num_class_tokens', 1))
    return Attention(logits=logits, layers=np.stack(layers), prefix=prefix,
                     grid=tuple(model.grid_size), reader=list(reader), stem=stem,
                     shares=shares[0] if shares else None)


def roll_out(layers: np.ndarray) -> np.ndarray:
    """Attention rollout (Abnar and Zuidema, 2020, Sec. 3): which inputs reach a token.

    layers: [L, B, H, T, T]. Heads are averaged, the identity is added for the residual
    connection, rows are normalised, and the layers multiplied from the first on.
    Returns [L, B, T, T]: entry i goes from the tokens behind layer i to the input's.
    """
    tokens = layers.shape[-1]
    mixing = layers.mean(axis=2, dtype='float64') + np.eye(tokens)
    mixing /= mixing.sum(axis=-1, keepdims=True)
    products = [mixing[0]]
    for matrix in mixing[1:]:
        products.append(matrix @ products[-1])
    return np.stack(products).astype('float32')


def make_map(weights: np.ndarray, tokens: Sequence[int] | np.ndarray, prefix: int,
             grid: Sequence[int], shares: np.ndarray | None = None) -> np.ndarray:
    """Return how much `tokens` attend to each place of the image: [..., rows, columns].

    weights: [..., T, T]. tokens: indices, whose rows are averaged; shares: by how much each
    counts, numbers that sum to one, None: all the same. The columns of the prefix (the class
    token) are left out, so that a map need not sum to one.
    """
    rows = weights[..., tokens, :]
    rows = rows.mean(axis=-2) if shares is None else np.einsum('t,...tj->...j', shares, rows)
    return rows[..., prefix:].reshape(*rows.shape[:-1], *grid)


def _to_array(tensor):
    return tensor.astype('float32').numpy()
