"""timm's .safetensors and .pth (github.com/huggingface/pytorch-image-models); DeiT's too."""

from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule

FORMAT = Format(
    name='timm',
    kinds=('torch', 'safetensors'),
    signature=('patch_embed.proj.weight', 'blocks.{i}.norm1.weight'),
    rules=(
        Rule('cls_token', 'cls_token', TENSOR),
        Rule('pos_embed', 'position_embedding', TENSOR),
        Rule('patch_embed.proj.*', 'patch_embedding.patch_embedding.*', PLAIN),
        Rule('blocks.{i}.norm1.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule('blocks.{i}.attn.qkv.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR),
        Rule('blocks.{i}.attn.proj.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule('blocks.{i}.norm2.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule('blocks.{i}.mlp.fc1.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule('blocks.{i}.mlp.fc2.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('norm.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('pre_logits.fc.*', 'pre_logits.0.*', LINEAR),
        Rule('head.*', 'classifier.*', LINEAR),
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6, 'pre_logits_activation': 'tanh'},
    position_resize='timm',
)
