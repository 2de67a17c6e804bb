"""Hugging Face transformers' ViT and what is built as it is: DeiT, ViTMAE, MSN, I-JEPA, DINOv2,
DINOv3. A folder of save_pretrained, or its weights file alone.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from common.errors import UserError
from common.weights.rules import LINEAR, PLAIN, TENSOR, Format, Rule
from ViT.formats.colours import IMAGENET
from ViT.formats.other_layers import refuse_other_layers

GELUS = {'gelu': 'erf', 'gelu_python': 'erf', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh',
         'gelu_fast': 'tanh', 'quick_gelu': 'quick'}


def read_record(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return what config.json says; {} where there is none. Raises UserError."""
    refuse_other_layers(tensors)
    record: dict[str, Any] = {}
    if isinstance(config.get('vision_config'), dict):           # of a model of two towers
        config = {**config, **config['vision_config']}
    if not {'hidden_act', 'num_attention_heads'} & set(config):
        record['assumed'] = [
            "There is no config.json of Hugging Face's beside the file: the form of GELU, the "
            'epsilon and the number of attention heads are taken as most such models have them. '
            'Keep it there.']
    if 'layer_norm_eps' in config:
        record['layer_norm_eps'] = config['layer_norm_eps']
    if 'hidden_act' in config:
        activation = str(config['hidden_act'])
        if activation not in GELUS:
            raise UserError(f'config.json asks for the activation {activation!r}, which the '
                            f'models here do not have (they have {", ".join(GELUS)}).')
        record['gelu'] = GELUS[activation]
    if 'num_attention_heads' in config:
        record['num_heads'] = config['num_attention_heads']
    return record


def qkv(block: str, attention: str, names: tuple[str, str, str]) -> tuple[Rule, ...]:
    """Return the rules of three projections that are one here."""
    return tuple(Rule(f'{block}.{attention}.{name}.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR,
                      part=part) for part, name in enumerate(names))


EMBEDDINGS = (
    Rule('embeddings.cls_token', 'cls_token', TENSOR),
    Rule('embeddings.distillation_token', 'dist_token', TENSOR),
    Rule('embeddings.register_tokens', 'register_tokens', TENSOR),
    Rule('embeddings.position_embeddings', 'position_embedding', TENSOR),
    Rule('embeddings.patch_embeddings.projection.*', 'patch_embedding.patch_embedding.*', PLAIN),
)
HEADS = (
    Rule('classifier.*', 'classifier.*', LINEAR),
    Rule('cls_classifier.*', 'classifier.*', LINEAR),
    Rule('distillation_classifier.*', 'classifier_dist.*', LINEAR),
)
LAYER_SCALE = (
    Rule('{block}.layer_scale1.lambda1', 'encoder.layers.{i}.gamma_1', TENSOR),
    Rule('{block}.layer_scale2.lambda1', 'encoder.layers.{i}.gamma_2', TENSOR),
)
NAMES = ('query', 'key', 'value')
NEW_NAMES = ('q_proj', 'k_proj', 'v_proj')
BLOCK = 'encoder.layer.{i}'
NEW_BLOCK = 'layers.{i}'                        # transformers 5


def block_rules(block: str, **names: str) -> tuple[Rule, ...]:
    """Return the rules of a block's norms and linear layers. names: {ours: theirs}."""
    kinds = {'attn_norm': PLAIN, 'mlp_norm': PLAIN}
    return tuple(Rule(f'{block}.{theirs}.*', f'encoder.layers.{{i}}.{ours}.*',
                      kinds.get(ours, LINEAR))
                 for ours, theirs in ((ours.replace('__', '.'), theirs)
                                      for ours, theirs in names.items()))


def scale_rules(block: str) -> tuple[Rule, ...]:
    """Return the rules of LayerScale."""
    return tuple(rule._replace(theirs=rule.theirs.replace('{block}', block))
                 for rule in LAYER_SCALE)


OLD_BLOCKS = (
    *qkv(BLOCK, 'attention.attention', NAMES),
    *block_rules(BLOCK, attn_norm='layernorm_before', attn__out='attention.output.dense',
                 mlp_norm='layernorm_after', mlp__fc1='intermediate.dense',
                 mlp__fc2='output.dense'),
)

FORMAT = Format(
    name='Hugging Face',
    kinds=('safetensors', 'torch'),
    signature=('embeddings.patch_embeddings.projection.weight',),
    rules=(
        *EMBEDDINGS,
        *OLD_BLOCKS,
        *qkv(NEW_BLOCK, 'attention', NEW_NAMES),
        *block_rules(NEW_BLOCK, attn_norm='layernorm_before', attn__out='attention.o_proj',
                     mlp_norm='layernorm_after', mlp__fc1='mlp.fc1', mlp__fc2='mlp.fc2'),
        Rule('layernorm.*', 'encoder.encoder_norm.*', PLAIN),
    ),
    # transformers 5 writes MSN's blocks outside its wrapper.
    outer=(*HEADS, *OLD_BLOCKS),
    # The library's default; config.json has the last word.
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-12},
    position_resize='bicubic',
    # A bare model has none. BEiT's layers are told by their names.
    wrappers=('vit', 'deit', 'ijepa', 'vit_mae', 'vit_msn', 'beit', 'data2vec_vision'),
    # The pooler is not used by the classifier; a decoder fills masked patches in.
    ignored=('pooler.dense.*', 'embeddings.mask_token', 'decoder.**'),
    read_record=read_record,
)

DINOV2 = dataclasses.replace(
    FORMAT,
    name='Hugging Face DINOv2',
    signature=('embeddings.patch_embeddings.projection.weight', 'encoder.layer.{i}.norm1.weight'),
    rules=(
        *EMBEDDINGS,
        *qkv(BLOCK, 'attention.attention', NAMES),
        *block_rules(BLOCK, attn_norm='norm1', attn__out='attention.output.dense',
                     mlp_norm='norm2', mlp__fc1='mlp.fc1', mlp__fc2='mlp.fc2'),
        *scale_rules(BLOCK),
        Rule('layernorm.*', 'encoder.encoder_norm.*', PLAIN),
    ),
    # The library's classifier reads the class token and the patches' mean side by side.
    outer=(),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-6},
    preprocessing={**IMAGENET, 'crop_pct': 0.875, 'interpolation': 'bicubic'},
    wrappers=('dinov2', 'dinov2_with_registers'),
)

# With registers positions are resized as timm does it.
DINOV2_REGISTERS = dataclasses.replace(
    DINOV2, signature=(*DINOV2.signature, 'embeddings.register_tokens'), position_resize='timm')

DINOV3 = dataclasses.replace(
    FORMAT,
    name='Hugging Face DINOv3',
    signature=('embeddings.patch_embeddings.weight', 'layer.{i}.layer_scale1.lambda1'),
    rules=(
        *EMBEDDINGS[:-1],
        Rule('embeddings.patch_embeddings.*', 'patch_embedding.patch_embedding.*', PLAIN),
        *qkv('layer.{i}', 'attention', NEW_NAMES),
        *block_rules('layer.{i}', attn_norm='norm1', attn__out='attention.o_proj',
                     mlp_norm='norm2', mlp__fc1='mlp.up_proj', mlp__fc2='mlp.down_proj'),
        *scale_rules('layer.{i}'),
        Rule('norm.*', 'encoder.encoder_norm.*', PLAIN),
    ),
    numerics={'gelu': 'erf', 'layer_norm_eps': 1e-5},
    preprocessing={**IMAGENET, 'crop_pct': 1.0, 'interpolation': 'bilinear'},
    wrappers=('dinov3_vit',),
)
