"""MMPretrain's and MMClassification's .pth, with the names from before mmcls 0.17 too."""

from collections.abc import Iterable

from common.weights.rules import IN_PROJ, LINEAR, PLAIN, TENSOR, AddZeros, Format, Rule
from ViT.formats.moco import read_heads
from ViT.formats.other_layers import refuse_other_layers

BLOCK = 'layers.{i}'
OLD_BLOCK = 'encoder.layers.{i}'

def read_record(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return what the tensors say. Raises UserError for layers that no model here has."""
    refuse_other_layers(tensors)
    record = read_heads(tensors, 'patch_embed.projection.weight', 'momentum_encoder.', names)
    if 'pre_norm.weight' not in tensors:        # of CLIP there are two, which look alike
        record['gelu'] = 'erf'
    return record


FORMAT = Format(
    name='MMPretrain',
    kinds=('torch',),
    signature=('patch_embed.projection.weight',),
    rules=(
        Rule('cls_token', 'cls_token', TENSOR),
        Rule('pos_embed', 'position_embedding', TENSOR),
        Rule('dist_token', 'dist_token', TENSOR),
        Rule('patch_embed.projection.*', 'patch_embedding.patch_embedding.*', PLAIN),
        Rule('pre_norm.*', 'pre_norm.*', PLAIN),
        Rule(f'{BLOCK}.ln1.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{BLOCK}.attn.qkv.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR),
        Rule(f'{BLOCK}.attn.proj.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule(f'{BLOCK}.attn.gamma1.weight', 'encoder.layers.{i}.gamma_1', TENSOR),
        Rule(f'{BLOCK}.ln2.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{BLOCK}.ffn.layers.0.0.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{BLOCK}.ffn.layers.1.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule(f'{BLOCK}.ffn.gamma2.weight', 'encoder.layers.{i}.gamma_2', TENSOR),
        Rule('ln1.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('ln2.*', 'fc_norm.*', PLAIN),
        Rule(f'{OLD_BLOCK}.norms.0.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{OLD_BLOCK}.attentions.0.attn.*', 'encoder.layers.{i}.attn.qkv.*', IN_PROJ),
        Rule(f'{OLD_BLOCK}.attentions.0.attn.out_proj.*', 'encoder.layers.{i}.attn.out.*',
             LINEAR),
        Rule(f'{OLD_BLOCK}.norms.1.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{OLD_BLOCK}.ffns.0.layers.0.0.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{OLD_BLOCK}.ffns.0.layers.1.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('encoder.coder_norm.*', 'encoder.encoder_norm.*', PLAIN),
    ),
    outer=(
        Rule('head.layers.pre_logits.*', 'pre_logits.0.*', LINEAR),
        Rule('head.layers.head.*', 'classifier.*', LINEAR),
        Rule('head.layers.head_dist.*', 'classifier_dist.*', LINEAR),
        Rule('head.fc.*', 'classifier.*', LINEAR),
    ),
    # CLIP too is computed with MMPretrain's own epsilon, not with OpenAI's.
    numerics={'layer_norm_eps': 1e-6, 'pre_logits_activation': 'tanh'},
    position_resize='bicubic',
    # Image towers of models of images and texts.
    wrappers=('vision_encoder', 'visual_encoder'),
    ignored=('mask_token',),
    read_record=read_record,
    # CLIP's patches have no bias.
    prepare=AddZeros('patch_embed.projection.weight', 'patch_embed.projection.bias',
                      where='pre_norm.weight'),
)
