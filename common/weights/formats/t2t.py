"""The official T2T-ViT's .pth.tar (github.com/yitu-opensource/T2T-ViT)."""

from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule

FORMAT = Format(
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
