"""MoCo v3's ViTs, whose small one has 12 heads where everybody else's has 6.

Its files have timm's names, or MMPretrain's, and shapes do not tell the heads.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

SMALL = 384                     # the width at which the heads differ; its base has 12 as others'
HEADS = 12


def read_heads(tensors: dict, patches: str, prefix: str, names: Iterable[str]) -> dict[str, Any]:
    """Return {num_heads} for a small ViT that is MoCo v3's, {assumed} for one that may be.

    patches: name of the patch embedding's weight. prefix: of names in the file, of which MoCo v3
    alone has some. A position table that is MoCo v3's fixed one also tells.
    """
    kernel, table = tensors.get(patches), tensors.get('pos_embed')
    if kernel is None or not kernel.ndim or kernel.shape[0] != SMALL:
        return {}
    if any(name.startswith(prefix) for name in names) or table is not None and is_table(table):
        return {'num_heads': HEADS}
    return {'assumed': ["The file does not say its number of attention heads: ViTs of width 384 "
                        "have 6, but MoCo v3's have 12 (MODEL.NUM_HEADS)."]}


def is_table(table: np.ndarray) -> bool:
    """Tell whether a position table [1, 1 + N, D] is MoCo v3's, up to the rounding of halves.

    Sine and cosine of the row, then of the column, at frequencies 10000 ** -(4 i / D).
    """
    if table.ndim != 3 or table.shape[1] < 2 or table.shape[2] % 4:
        return False
    side = int(np.sqrt(table.shape[1] - 1))
    frequencies = 10000. ** -(np.arange(table.shape[2] // 4) / (table.shape[2] // 4))
    rows, cols = np.mgrid[:side, :side].reshape(2, -1, 1) * frequencies
    wanted = np.concatenate([np.sin(rows), np.cos(rows), np.sin(cols), np.cos(cols)], axis=1)
    return wanted.shape == (table.shape[1] - 1, table.shape[2]) and bool(
        np.abs(table[0, 1:] - wanted).max() < 1e-2)
