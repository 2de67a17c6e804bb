"""Layers that betray a network which shares a format's names and is no plain ViT."""

import re
from collections.abc import Iterable

from common.errors import UserError

# (pattern of a tensor's name, what it is, what to take instead).
OTHER_LAYERS = (
    (r'\.(mlp|ffn)\.(w12|w[123]|fc1_[gx]|weights_in|gate_proj)\.',
     'gated MLPs (SwiGLU: DINOv2 giant, DINOv3 plus, EVA-02)', 'a small, base or large model'),
    (r'relative_position|rel_pos_bias|\.lambda_[12]$', 'relative positions (BEiT)',
     'MAE or DINOv2'),
    (r'\.(attn|attention|self_attn)\.(q_norm|k_norm|qk_norm|q_layernorm|k_layernorm|query_norm)\.',
     'norms of queries and keys', 'a model without them'),
    (r'\.(attn|mlp)\.norm\.|inner_attn_ln|ffn_layernorm',
     'norms inside attention or MLP (EVA-02, BEiT-3)', 'EVA-g, CLIP or DINOv2'),
    (r'\.attn\.lambda_[qk]', 'differential attention', 'an architecture without it'),
    (r'(^|\.)rope\.freqs', 'rotary positions that were learned', 'DINOv3'),
    (r'detection_tokens', 'tokens that detect objects (YOLOS)', 'DeiT'),
    (r'\.lora_(up|down|[AB])\.', 'low-rank updates (LoRA)',
     'the weights that they were merged into'),
    (r'patch_embed\.backbone\.', 'a ResNet in front as timm has it', "Google's .npz of the hybrid"),
    (r'pos_embed_spatial|pos_embed_temporal|patch_embed\.proj_pixel', 'inputs that are no images',
     'a model of images'),
)


def refuse_other_layers(names: Iterable[str]) -> None:
    """Raise UserError if a name is of a layer that no model here has."""
    for name in names:
        for pattern, what, instead in OTHER_LAYERS:
            if re.search(pattern, name):
                raise UserError(f'{name[:80]} is of {what}, which no model here has. '
                                f'Take {instead} instead.')
