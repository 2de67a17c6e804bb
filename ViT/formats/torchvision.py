"""torchvision's vit_b_16 and its like."""

from common.weights.rules import IN_PROJ, LINEAR, PLAIN, TENSOR, Format, Rule
from ViT.formats.colours import IMAGENET

BLOCK = 'encoder.layers.encoder_layer_{i}'

FORMAT = Format(
    name='torchvision',
    kinds=('torch', 'safetensors'),
    signature=('conv_proj.weight', f'{BLOCK}.ln_1.weight'),
    rules=(
        Rule('class_token', 'cls_token', TENSOR),
        Rule('encoder.pos_embedding', 'position_embedding', TENSOR),
        Rule('conv_proj.*', 'patch_embedding.patch_embedding.*', PLAIN),
        Rule(f'{BLOCK}.ln_1.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{BLOCK}.self_attention.*', 'encoder.layers.{i}.attn.qkv.*', IN_PROJ),
        Rule(f'{BLOCK}.self_attention.out_proj.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule(f'{BLOCK}.ln_2.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{BLOCK}.mlp.0.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{BLOCK}.mlp.3.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule(f'{BLOCK}.mlp.linear_1.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),     # before 0.13
        Rule(f'{BLOCK}.mlp.linear_2.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('encoder.ln.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('heads.head.*', 'classifier.*', LINEAR),
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6},
    position_resize='bicubic_corners',
    preprocessing={**IMAGENET, 'crop_pct': 0.875, 'interpolation': 'bilinear'},
)
