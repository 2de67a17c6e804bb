"""jeonsworld's ViT-pytorch: the .bin that its train.py writes."""

from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule

BLOCK = 'transformer.encoder.layer.{i}'

FORMAT = Format(
    name='ViT-pytorch',
    kinds=('torch',),
    signature=('transformer.embeddings.patch_embeddings.weight',),
    rules=(
        Rule('transformer.embeddings.cls_token', 'cls_token', TENSOR),
        Rule('transformer.embeddings.position_embeddings', 'position_embedding', TENSOR),
        Rule('transformer.embeddings.patch_embeddings.*', 'patch_embedding.patch_embedding.*',
             PLAIN),
        Rule(f'{BLOCK}.attention_norm.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{BLOCK}.attn.query.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR, part=0),
        Rule(f'{BLOCK}.attn.key.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR, part=1),
        Rule(f'{BLOCK}.attn.value.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR, part=2),
        Rule(f'{BLOCK}.attn.out.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule(f'{BLOCK}.ffn_norm.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{BLOCK}.ffn.fc1.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{BLOCK}.ffn.fc2.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('transformer.encoder.encoder_norm.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('head.*', 'classifier.*', LINEAR),
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6},
    position_resize='google',
)
