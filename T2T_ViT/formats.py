"""The files that T2T-ViT's weights come in: the official .pth.tar, and PaddleViT's .pdparams."""

from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule, same_names

# github.com/yitu-opensource/T2T-ViT
OFFICIAL = Format(
    name='T2T-ViT',
    kinds=('torch', 'safetensors'),
    signature=('tokens_to_token.project.weight', 'blocks.{i}.norm{n}.weight'),
    rules=(
        Rule('cls_token', 'cls_token', TENSOR),
        Rule('pos_embed', 'pos_embed', TENSOR),
        Rule('tokens_to_token.attention{a}.w', 'patch_embed.attn{a}.w', TENSOR),
        Rule('tokens_to_token.attention{a}.kqv.*', 'patch_embed.attn{a}.kqv.*', LINEAR),
        Rule('tokens_to_token.attention{a}.proj.*', 'patch_embed.attn{a}.proj.*', LINEAR),
        Rule('tokens_to_token.attention{a}.attn.qkv.*', 'patch_embed.attn{a}.attn.qkv.*', LINEAR),
        Rule('tokens_to_token.attention{a}.attn.proj.*', 'patch_embed.attn{a}.attn.proj.*',
             LINEAR),
        Rule('tokens_to_token.attention{a}.norm{n}.*', 'patch_embed.attn{a}.norm{n}.*', PLAIN),
        Rule('tokens_to_token.attention{a}.mlp.{m}.*', 'patch_embed.attn{a}.mlp.{m}.*', LINEAR),
        Rule('tokens_to_token.attention{a}.mlp.fc{m}.*', 'patch_embed.attn{a}.mlp.fc{m}.*',
             LINEAR),
        Rule('tokens_to_token.project.*', 'patch_embed.proj.*', LINEAR),
        Rule('blocks.{i}.norm{n}.*', 'blocks.{i}.norm{n}.*', PLAIN),
        Rule('blocks.{i}.attn.qkv.*', 'blocks.{i}.attn.qkv.*', LINEAR),
        Rule('blocks.{i}.attn.proj.*', 'blocks.{i}.attn.proj.*', LINEAR),
        Rule('blocks.{i}.mlp.fc{m}.*', 'blocks.{i}.mlp.fc{m}.*', LINEAR),
        Rule('norm.*', 'norm.*', PLAIN),
        Rule('head.*', 'head.*', LINEAR),
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-5},
    position_resize='bicubic',
)

# Names as the model has them. PaddleViT ran these with an epsilon of 1e-6, but the weights were
# trained with 1e-5.
PADDLEVIT = Format(
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
