"""MMPretrain's and MMClassification's .pth, with the names from before mmcls 0.17 too."""

from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule, keep, transpose_linear

# torch.nn.MultiheadAttention's own names: in_proj_weight, in_proj_bias.
IN_PROJ = {'in_proj_weight': ('weight', transpose_linear), 'in_proj_bias': ('bias', keep)}

BLOCK = 'backbone.layers.{i}'
OLD_BLOCK = 'backbone.encoder.layers.{i}'

FORMAT = Format(
    name='MMPretrain',
    kinds=('torch',),
    signature=('backbone.patch_embed.projection.weight',),
    rules=(
        Rule('backbone.cls_token', 'cls_token', TENSOR),
        Rule('backbone.pos_embed', 'position_embedding', TENSOR),
        Rule('backbone.patch_embed.projection.*', 'patch_embedding.patch_embedding.*', PLAIN),
        Rule(f'{BLOCK}.ln1.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{BLOCK}.attn.qkv.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR),
        Rule(f'{BLOCK}.attn.proj.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule(f'{BLOCK}.ln2.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{BLOCK}.ffn.layers.0.0.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{BLOCK}.ffn.layers.1.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('backbone.ln1.*', 'encoder.encoder_norm.*', PLAIN),
        Rule(f'{OLD_BLOCK}.norms.0.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{OLD_BLOCK}.attentions.0.attn.*', 'encoder.layers.{i}.attn.qkv.*', IN_PROJ),
        Rule(f'{OLD_BLOCK}.attentions.0.attn.out_proj.*', 'encoder.layers.{i}.attn.out.*',
             LINEAR),
        Rule(f'{OLD_BLOCK}.norms.1.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{OLD_BLOCK}.ffns.0.layers.0.0.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{OLD_BLOCK}.ffns.0.layers.1.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('backbone.encoder.coder_norm.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('head.layers.pre_logits.*', 'pre_logits.0.*', LINEAR),
        Rule('head.layers.head.*', 'classifier.*', LINEAR),
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6, 'pre_logits_activation': 'tanh'},
    position_resize='bicubic',
    ignored=('steps', 'data_preprocessor.*'),   # of the averaged weights; mean and std
)
