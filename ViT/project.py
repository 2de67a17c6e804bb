"""ViT as common/ sees it: PROJECT, see common/project.py.

Every script imports this first: it puts the repository on the import path, and config.py tunes
the CPU before anything else imports Paddle.
"""

import os
import re
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
if os.path.dirname(FOLDER) not in sys.path:
    sys.path.insert(0, os.path.dirname(FOLDER))

from ViT.config import Options, get_config

# isort: split
from common.project import Project
from ViT.datasets import get_dataset
from ViT.formats import FORMATS, paddlevit, timm
from ViT.released import list_released
from ViT.vit import build_vit

# Names of the published sizes by (embed_dim, depth).
SIZES = {(192, 12): 'vit_tiny', (384, 12): 'vit_small', (768, 12): 'vit_base',
         (1024, 24): 'vit_large', (1280, 32): 'vit_huge'}


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
    targets={'timm': timm.FORMAT},
    list_released=list_released,
    heads=('classifier.',),
    before_head=('pre_logits.',),
    positions=('position_embedding',),
    describe_shape=describe_shape,
)
