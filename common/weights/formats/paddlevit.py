"""PaddleViT's .pdparams, whose names are this project's own, and our .safetensors."""

from common.weights.rules import Format, same_names

FORMAT = Format(
    name='PaddleViT',
    kinds=('paddle', 'safetensors'),
    signature=('patch_embedding.patch_embedding.weight', 'encoder.layers.{i}.attn_norm.weight'),
    rules=same_names(
        'cls_token',
        'position_embedding',
        'patch_embedding.patch_embedding.*',
        'encoder.layers.{i}.attn_norm.*',
        'encoder.layers.{i}.attn.qkv.*',
        'encoder.layers.{i}.attn.out.*',
        'encoder.layers.{i}.mlp_norm.*',
        'encoder.layers.{i}.mlp.fc1.*',
        'encoder.layers.{i}.mlp.fc2.*',
        'encoder.encoder_norm.*',
        'pre_logits.0.*',
        'classifier.*',
        'resnet.conv_root.*',
        'resnet.gn_root.*',
        'resnet.block{b}.unit{u}.conv{c}.*',
        'resnet.block{b}.unit{u}.gn{c}.*',
        'resnet.block{b}.unit{u}.conv_proj.*',
        'resnet.block{b}.unit{u}.gn_proj.*',
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6, 'pre_logits_activation': 'relu'},
    position_resize='timm',
)

# PaddleViT ran these with an epsilon of 1e-6, but the weights were trained with 1e-5.
T2T_FORMAT = Format(
    name='PaddleViT T2T-ViT',
    kinds=('paddle', 'safetensors'),
    signature=('patch_embed.attn{a}.norm{n}.weight', 'blocks.{i}.norm{n}.weight'),
    rules=same_names(
        'cls_token',
        'pos_embed',
        'patch_embed.attn{a}.w',
        'patch_embed.attn{a}.kqv.*',
        'patch_embed.attn{a}.proj.*',
        'patch_embed.attn{a}.attn.qkv.*',
        'patch_embed.attn{a}.attn.proj.*',
        'patch_embed.attn{a}.norm{n}.*',
        'patch_embed.attn{a}.mlp.{m}.*',
        'patch_embed.attn{a}.mlp.fc{m}.*',
        'patch_embed.proj.*',
        'blocks.{i}.norm{n}.*',
        'blocks.{i}.attn.qkv.*',
        'blocks.{i}.attn.proj.*',
        'blocks.{i}.mlp.fc{m}.*',
        'norm.*',
        'head.*',
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-5},
    position_resize='bicubic',
)
