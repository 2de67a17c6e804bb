"""Which T2T-ViT a file of weights is of: the options that its tensors and records tell."""

import re
from typing import Any

from common.errors import UserError
from common.weights.positions import split_rows
from common.weights.read import Weights
from T2T_ViT.t2t_vit import SOFT_SPLITS, TOKEN_STRIDE

HEAD_WIDTH = 64                 # of every published model's blocks


def read_options(weights: Weights) -> dict[str, Any]:
    """Return {config key: value} of the model that weights are of.

    Raises UserError for a file that does not tell enough.
    """
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    hidden = shapes.get('blocks.0.mlp.fc1.weight', [])
    stem = shapes.get('patch_embed.proj.weight', [])
    table = shapes.get('pos_embed', [])
    found = split_rows(table[1], 1, weights.grid_size) if len(table) == 3 else None
    if len(hidden) != 2 or len(stem) != 2 or found is None or found[1][0] != found[1][1]:
        raise UserError(f'{weights.path} does not say which model it is of; name its yaml file, '
                        'such as -cfg=configs/t2t_vit_14.yaml.')
    embed_dim = hidden[0]
    kernel = SOFT_SPLITS[-1][0]
    depth = len({match[1] for name in shapes if (match := re.match(r'blocks\.(\d+)\.', name))})
    is_performer = 'patch_embed.attn1.w' in shapes
    options = {
        'MODEL.NAME': f't2t_vit_{"" if is_performer else "t_"}{depth}',
        'MODEL.TOKEN_TYPE': 'performer' if is_performer else 'transformer',
        'MODEL.TOKEN_DIM': stem[0] // kernel ** 2,
        'MODEL.EMBED_DIM': embed_dim, 'MODEL.DEPTH': depth,
        'MODEL.NUM_HEADS': weights.num_heads or max(1, embed_dim // HEAD_WIDTH),
        'MODEL.MLP_RATIO': find_ratio(hidden[1], embed_dim),
        'MODEL.QKV_BIAS': 'blocks.0.attn.qkv.bias' in shapes,
        'DATA.IMAGE_SIZE': found[1][0] * TOKEN_STRIDE}
    if 'head.weight' in shapes:
        options['MODEL.NUM_CLASSES'] = shapes['head.weight'][-1]
    return options


def find_ratio(hidden: int, embed_dim: int) -> float:
    """Return a ratio that gives the hidden width when it is rounded down."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else (hidden + 0.5) / embed_dim
