"""ViT as common/ sees it: PROJECT, see common/project.py.

Every script imports this first: it puts the repository on the import path, and config.py tunes
the CPU before anything else imports Paddle.
"""

import os
import re
import sys
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
if os.path.dirname(FOLDER) not in sys.path:
    sys.path.insert(0, os.path.dirname(FOLDER))

from common.machine.prerequisites import require

require(FOLDER)     # before anything is imported that may be missing

from ViT.config import Options, get_config

# isort: split
import numpy as np

from common.project import Project
from common.weights.rules import Tensor
from ViT.datasets import get_dataset
from ViT.distillation import build_loss
from ViT.formats import FORMATS, paddlevit, write_back
from ViT.from_weights import read_options
from ViT.released import list_released
from ViT.vit import build_vit

# Names of the published sizes by (embed_dim, depth).
SIZES = {(192, 12): 'vit_tiny', (384, 12): 'vit_small', (768, 12): 'vit_base',
         (1024, 24): 'vit_large', (1280, 32): 'vit_huge'}

# One of each kind, for gpu_check.py.
TINY: dict[str, Any] = {
    'MODEL.EMBED_DIM': 64, 'MODEL.DEPTH': 2, 'MODEL.NUM_HEADS': 2, 'MODEL.NUM_CLASSES': 10,
    'MODEL.PATCH_SIZE': 8, 'DATA.IMAGE_SIZE': 32}
TINY_MODELS = {'vit': TINY, 'hybrid': {**TINY, 'MODEL.HYBRID': [1], 'MODEL.HYBRID_WIDTH': 32}}


def describe_shape(shapes: dict[str, list]) -> str:
    """Return a model's likely name, such as vit_base_patch16, from the shapes of its tensors."""
    embed_dim = (shapes.get('cls_token') or [0])[-1]
    blocks = {match[1] for name in shapes
              if (match := re.match(r'encoder\.layers\.(\d+)\.', name))}
    patch = (shapes.get('patch_embedding.patch_embedding.weight') or [0])[-1]
    name = SIZES.get((embed_dim, len(blocks)))
    size = f'embed_dim {embed_dim}, depth {len(blocks)}'
    if 'resnet.conv_root.weight' in shapes:
        return f'a ResNet hybrid of {name or "a ViT"} ({size})'
    return f'{name}_patch{patch} ({size})' if name else f'a ViT (patch {patch}, {size})'


def fit_weights(tensors: dict[str, Tensor], shapes: dict[str, list]) -> dict[str, str]:
    """Change what a file has to what the model has; return {their name: why it was left out}."""
    use_distillation_token(tensors, shapes)
    add_head_bias(tensors, shapes)
    return renew_last_norm(tensors, shapes)


def renew_last_norm(tensors: dict[str, Tensor], shapes: dict[str, list]) -> dict[str, str]:
    """Begin the norm behind the pooling anew, for a head that is new, as MAE's fine-tuning does.

    The file's last norm is of the tokens, and the model pools them before it normalises.
    """
    ours, theirs = 'fc_norm.weight', 'encoder.encoder_norm.weight'
    head = tensors.get('classifier.weight')
    if ours not in shapes or ours in tensors or theirs not in tensors or (
            head is not None and head.shape == shapes['classifier.weight']):
        return {}
    left_out = {}
    for kind, start in (('weight', 1), ('bias', 0)):
        for origin in tensors.pop(theirs.replace('weight', kind)).origins:
            left_out[origin] = 'the norm behind the pooling begins anew with the head'
        name = ours.replace('weight', kind)
        tensors[name] = Tensor([(name, np.full(shapes[name], start, np.float32))])
    return left_out


def add_head_bias(tensors: dict[str, Tensor], shapes: dict[str, list]) -> None:
    """Give Hugging Face's projection of CLIP, a head without a bias, zeros for one.

    Any other file without that bias lacks it, one of our own too, and its logits would be wrong.
    """
    weight, bias = tensors.get('classifier.weight'), 'classifier.bias'
    if weight and bias not in tensors and weight.origins[0].endswith('visual_projection.weight') \
            and weight.shape == shapes.get('classifier.weight'):
        tensors[bias] = Tensor([(bias, np.zeros(shapes[bias], np.float32))])


def use_distillation_token(tensors: dict[str, Tensor], shapes: dict[str, list]) -> None:
    """Make a distillation token whose head is gone a register, if the model has one of those.

    It is what Hugging Face's DeiTForImageClassification computes: the token takes part in
    attention, and nothing reads it.
    """
    token = tensors.get('dist_token')
    if token is not None and 'dist_token' not in shapes and 'register_tokens' not in tensors \
            and shapes.get('register_tokens') == token.shape \
            and not any(name.startswith('classifier_dist.') for name in tensors):
        tensors['register_tokens'] = tensors.pop('dist_token')


def choose_small(side: int) -> dict[str, Any]:
    """Return {key: value} of a ViT that learns from few pictures without pretrained weights.

    side: the pictures' shorter side, in pixels. A hybrid: with a unit of a ResNet in front, 83
    pictures of three classes gave 96 % on others of them, and without one 75 %.
    """
    size = next((size for size in (32, 64) if side <= 1.25 * size), 96)
    return {'MODEL.NAME': f'vit_hybrid_{size}', 'MODEL.PATCH_SIZE': 8 if size < 96 else 16,
            'MODEL.EMBED_DIM': 64, 'MODEL.DEPTH': 2, 'MODEL.NUM_HEADS': 4,
            'MODEL.HYBRID': [1] if size < 64 else [1, 1], 'MODEL.HYBRID_WIDTH': 32,
            'DATA.IMAGE_SIZE': size, 'DATA.CROP_PCT': 1.0}


PROJECT = Project(
    name='ViT',
    folder=FOLDER,
    get_config=get_config,
    get_dataset=get_dataset,
    build_model=build_vit,
    example_configs=('vit_digits', 'vit_base_patch16_224'),
    options=Options,
    own_format=paddlevit.FORMAT,
    formats=FORMATS,
    targets={'timm': write_back.to_timm, 'huggingface': write_back.to_huggingface},
    list_released=list_released,
    heads=('classifier.', 'classifier_dist.'),
    before_head=('pre_logits.',),
    optional_layers=('attention_pool.',),
    positions=('position_embedding',),
    fit_weights=fit_weights,
    read_options=read_options,
    choose_small=choose_small,
    describe_shape=describe_shape,
    build_loss=build_loss,
    tiny_models=TINY_MODELS,
    timed_configs=('vit_base_patch16_224', 'vit_large_patch16_384'),
)
