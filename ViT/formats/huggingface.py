"""Hugging Face transformers' ViT: a folder of save_pretrained, or its weights file alone."""

from common.errors import UserError
from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule

GELUS = {'gelu': 'erf', 'gelu_python': 'erf', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh',
         'gelu_fast': 'tanh'}


def read_numerics(config, names):
    """Return what config.json says of the numerics; {} where there is no config.json."""
    numerics = {}
    if 'layer_norm_eps' in config:
        numerics['layer_norm_eps'] = config['layer_norm_eps']
    if 'hidden_act' in config:
        activation = str(config['hidden_act'])
        if activation not in GELUS:
            raise UserError(f'config.json asks for the activation {activation!r}, which the '
                            f'models here do not have (they have {", ".join(GELUS)}).')
        numerics['gelu'] = GELUS[activation]
    return numerics


BLOCK = 'encoder.layer.{i}'

FORMAT = Format(
    name='Hugging Face',
    kinds=('safetensors', 'torch'),
    signature=('embeddings.patch_embeddings.projection.weight',),
    rules=(
        Rule('embeddings.cls_token', 'cls_token', TENSOR),
        Rule('embeddings.position_embeddings', 'position_embedding', TENSOR),
        Rule('embeddings.patch_embeddings.projection.*', 'patch_embedding.patch_embedding.*',
             PLAIN),
        Rule(f'{BLOCK}.layernorm_before.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{BLOCK}.attention.attention.query.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR,
             part=0),
        Rule(f'{BLOCK}.attention.attention.key.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR,
             part=1),
        Rule(f'{BLOCK}.attention.attention.value.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR,
             part=2),
        Rule(f'{BLOCK}.attention.output.dense.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule(f'{BLOCK}.layernorm_after.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{BLOCK}.intermediate.dense.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{BLOCK}.output.dense.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('layernorm.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('classifier.*', 'classifier.*', LINEAR),
    ),
    # The library's default; config.json has the last word.
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-12},
    position_resize='bicubic',
    prefix='vit.',                              # a bare ViTModel has none
    ignored=('pooler.dense.*',),                # the classifier does not use it
    read_numerics=read_numerics,
)
