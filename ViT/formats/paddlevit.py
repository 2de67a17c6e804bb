"""PaddleViT's .pdparams, whose names are this model's own, and our .safetensors."""

from common.weights.rules import Format, same_names

FORMAT = Format(
    name='PaddleViT',
    kinds=('paddle', 'safetensors'),
    signature=('patch_embedding.patch_embedding.weight', 'encoder.layers.{i}.attn_norm.weight'),
    rules=same_names(
        'cls_token',
        'dist_token',
        'register_tokens',
        'position_embedding',
        'patch_embedding.patch_embedding.*',
        'pre_norm.*',
        'encoder.layers.{i}.attn_norm.*',
        'encoder.layers.{i}.gamma_{n}',
        'encoder.layers.{i}.attn.qkv.*',
        'encoder.layers.{i}.attn.out.*',
        'encoder.layers.{i}.mlp_norm.*',
        'encoder.layers.{i}.mlp.fc1.*',
        'encoder.layers.{i}.mlp.fc2.*',
        'encoder.encoder_norm.*',
        'fc_norm.*',
        'attention_pool.latent',
        *(f'attention_pool.{layer}.*' for layer in ('q', 'kv', 'proj', 'norm', 'mlp.fc{n}')),
        'pre_logits.0.*',
        'classifier.*',
        'classifier_dist.*',
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
