"""PaddleClas's .pdparams: timm's names, but Paddle's layout ([in, out])."""

from collections.abc import Iterable

from common.errors import UserError
from common.weights.rules import LINEAR, PLAIN, Format
from ViT.formats import timm


def read_record(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Refuse ViT_small, the one released file without a bias in qkv."""
    if not any(name.endswith('.attn.qkv.bias') for name in tensors):
        raise UserError(
            "PaddleClas's ViT_small_patch16_224 is another network (depth 8, attention scaled by "
            'embed_dim ** -0.5), which no config here describes. Use '
            'timm/vit_small_patch16_224 instead.')
    return {}


FORMAT = Format(
    name='PaddleClas',
    kinds=('paddle',),
    signature=timm.FORMAT.signature,
    rules=tuple(rule._replace(kind=PLAIN if rule.kind is LINEAR else rule.kind)
                for rule in timm.FORMAT.rules),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6},
    position_resize='timm',
    read_record=read_record,
)
