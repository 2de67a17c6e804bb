"""MindCV's .ckpt: timm's names, except that norms have gamma and beta."""

from common.weights.rules import Format, keep
from ViT.formats import timm

NORM = {'gamma': ('weight', keep), 'beta': ('bias', keep)}

FORMAT = Format(
    name='MindCV',
    kinds=('mindspore',),
    signature=('patch_embed.proj.weight', 'blocks.{i}.norm1.gamma'),
    rules=tuple(rule._replace(kind=NORM) if 'norm' in rule.theirs else rule
                for rule in timm.FORMAT.rules),
    # MindSpore's defaults.
    numerics={'gelu': 'tanh', 'layer_norm_eps': 1e-7},
    position_resize='timm',
)
