"""Image towers of CLIP and SigLIP: Hugging Face's files, and OpenCLIP's.

The projection into the space shared with texts is CLIP's head. Text towers and temperatures are
left out.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from common.errors import UserError
from common.weights.rules import IN_PROJ, LINEAR, PLAIN, TENSOR, AddZeros, Format, Rule
from ViT.formats import huggingface
from ViT.formats.colours import CLIP, HALF
from ViT.formats.timm import POOL


def add_axis(array: np.ndarray) -> np.ndarray:
    """[rows, D] -> [1, rows, D]."""
    return array[None] if array.ndim == 2 else array


def add_axes(array: np.ndarray) -> np.ndarray:
    """[D] -> [1, 1, D]."""
    return array[None, None] if array.ndim == 1 else array


TOKEN = {'': ('', add_axes)}
TABLE = {'': ('', add_axis)}


BLOCK = 'encoder.layers.{i}'
VISION_RULES = (
    Rule('embeddings.class_embedding', 'cls_token', TOKEN),
    Rule('embeddings.position_embedding.weight', 'position_embedding', TABLE),
    Rule('embeddings.patch_embedding.*', 'patch_embedding.patch_embedding.*', PLAIN),
    Rule('pre_layrnorm.*', 'pre_norm.*', PLAIN),                    # spelt so
    *huggingface.qkv(BLOCK, 'self_attn', huggingface.NEW_NAMES),
    *huggingface.block_rules(BLOCK, attn_norm='layer_norm1', attn__out='self_attn.out_proj',
                             mlp_norm='layer_norm2', mlp__fc1='mlp.fc1', mlp__fc2='mlp.fc2'),
    Rule('post_layernorm.*', 'encoder.encoder_norm.*', PLAIN),
)


def read_clip(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return what config.json says. Raises UserError for a classifier of other features."""
    if 'CLIPForImageClassification' in (config.get('architectures') or ()):
        raise UserError("Hugging Face's CLIPForImageClassification classifies the mean of tokens "
                        'before the last norm, which no model here does. Take the CLIPModel that '
                        'it was made from.')
    return huggingface.read_record(config, tensors, names)


HUGGING_FACE_CLIP = Format(
    name='Hugging Face CLIP',
    kinds=('safetensors', 'torch'),
    signature=('embeddings.patch_embedding.weight', 'pre_layrnorm.weight'),
    rules=VISION_RULES,
    outer=(Rule('visual_projection.*', 'classifier.*', LINEAR),),
    numerics={'gelu': 'quick', 'layer_norm_eps': 1e-5},
    position_resize='bicubic',
    wrappers=('clip',),
    ignored=('embeddings.position_ids',),
    read_record=read_clip,
    preprocessing={**CLIP, 'crop_pct': 1.0, 'interpolation': 'bicubic'},
    prepare=AddZeros('embeddings.patch_embedding.weight', 'embeddings.patch_embedding.bias'),
)


def read_siglip(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return what config.json says; what has a classifier classifies the mean of the tokens."""
    record = huggingface.read_record(config, tensors, names)
    if 'classifier.weight' in names:
        record['pool'] = 'avg'
    return record


def split_pooling(tensors: dict) -> dict:
    """Return the tensors with the pooling's one projection as those of query, and key and value."""
    for name in ('weight', 'bias'):
        joined = tensors.pop(f'head.attention.in_proj_{name}', None)
        if joined is not None and joined.ndim:
            width = joined.shape[0] // 3
            tensors[f'head.attention.q.{name}'] = joined[:width]
            tensors[f'head.attention.kv.{name}'] = joined[width:]
    return tensors


HUGGING_FACE_SIGLIP = Format(
    name='Hugging Face SigLIP',
    kinds=('safetensors', 'torch'),
    signature=('embeddings.patch_embedding.weight', 'encoder.layers.{i}.layer_norm1.weight'),
    rules=(
        *VISION_RULES,
        Rule('head.probe', f'{POOL}.latent', TENSOR),
        Rule('head.attention.q.*', f'{POOL}.q.*', LINEAR),
        Rule('head.attention.kv.*', f'{POOL}.kv.*', LINEAR),
        Rule('head.attention.out_proj.*', f'{POOL}.proj.*', LINEAR),
        Rule('head.layernorm.*', f'{POOL}.norm.*', PLAIN),
        Rule('head.mlp.fc1.*', f'{POOL}.mlp.fc1.*', LINEAR),
        Rule('head.mlp.fc2.*', f'{POOL}.mlp.fc2.*', LINEAR),
    ),
    outer=(Rule('classifier.*', 'classifier.*', LINEAR),),
    numerics={'gelu': 'tanh', 'layer_norm_eps': 1e-6},
    position_resize='bicubic',
    wrappers=('siglip',),
    ignored=('embeddings.position_ids',),
    read_record=read_siglip,
    preprocessing={**HALF, 'crop_pct': 1.0, 'interpolation': 'bicubic'},
    prepare=split_pooling,
)


def read_openclip(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return the form of GELU where a config says it: OpenAI's is quick, most others' is not."""
    model = config.get('model_cfg')                             # of open_clip_config.json
    if isinstance(model, dict):
        record: dict[str, Any] = {'gelu': 'quick' if model.get('quick_gelu') else 'erf'}
        vision = model.get('vision_cfg')
        if isinstance(vision, dict) and isinstance(vision.get('width'), int):
            size = vision.get('head_width', 64)
            record['num_heads'] = vision['width'] // size if type(size) is int and size else None
        return record
    record = huggingface.read_record(config, tensors, names)
    return {'gelu': record['gelu']} if 'gelu' in record else {}


def add_clip_zeros(tensors: dict) -> dict:
    """Return the tensors with zeros for the biases that OpenAI's layout does without."""
    tensors = AddZeros('conv1.weight', 'conv1.bias')(tensors)
    return AddZeros('proj', 'proj_bias', axis=1)(tensors)


RESBLOCK = 'transformer.resblocks.{i}'

OPENCLIP = Format(
    name='OpenCLIP',
    kinds=('torch', 'safetensors'),
    signature=('conv1.weight', 'ln_pre.weight', 'transformer.resblocks.{i}.ln_1.weight'),
    rules=(
        Rule('class_embedding', 'cls_token', TOKEN),
        Rule('positional_embedding', 'position_embedding', TABLE),
        Rule('conv1.*', 'patch_embedding.patch_embedding.*', PLAIN),
        Rule('ln_pre.*', 'pre_norm.*', PLAIN),
        Rule(f'{RESBLOCK}.ln_1.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule(f'{RESBLOCK}.attn.*', 'encoder.layers.{i}.attn.qkv.*', IN_PROJ),
        Rule(f'{RESBLOCK}.attn.out_proj.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule(f'{RESBLOCK}.ls_1.gamma', 'encoder.layers.{i}.gamma_1', TENSOR),
        Rule(f'{RESBLOCK}.ln_2.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule(f'{RESBLOCK}.mlp.c_fc.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule(f'{RESBLOCK}.mlp.c_proj.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule(f'{RESBLOCK}.ls_2.gamma', 'encoder.layers.{i}.gamma_2', TENSOR),
        Rule('ln_post.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('proj', 'classifier.weight', TENSOR),              # [D, classes], as ours
        Rule('proj_bias', 'classifier.bias', TENSOR),
    ),
    numerics={'layer_norm_eps': 1e-5},
    position_resize='timm',
    read_record=read_openclip,
    preprocessing={**CLIP, 'crop_pct': 1.0, 'interpolation': 'bicubic'},
    prepare=add_clip_zeros,
)

FORMATS = (HUGGING_FACE_CLIP, HUGGING_FACE_SIGLIP, OPENCLIP)
