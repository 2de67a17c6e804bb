"""T2T-ViT as common/ sees it: PROJECT, see common/project.py.

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

from T2T_ViT.config import Options, get_config

# isort: split
from common.project import Project
from T2T_ViT.datasets import get_dataset
from T2T_ViT.formats import OFFICIAL, PADDLEVIT
from T2T_ViT.from_weights import read_options
from T2T_ViT.released import list_released
from T2T_ViT.t2t_vit import build_t2t_vit
from T2T_ViT.token_attention import list_token_modules

# Names of the published sizes by (embed_dim, depth).
SIZES = {(256, 7): 't2t_vit_7', (256, 10): 't2t_vit_10', (256, 12): 't2t_vit_12',
         (384, 14): 't2t_vit_14', (448, 19): 't2t_vit_19', (512, 24): 't2t_vit_24'}

# One of each kind, for gpu_check.py.
TINY: dict[str, Any] = {
    'MODEL.EMBED_DIM': 64, 'MODEL.DEPTH': 2, 'MODEL.NUM_HEADS': 2, 'MODEL.NUM_CLASSES': 10,
    'MODEL.TOKEN_DIM': 16, 'DATA.IMAGE_SIZE': 64}
TINY_MODELS = {kind: {**TINY, 'MODEL.TOKEN_TYPE': kind} for kind in ('performer', 'transformer')}


def describe_shape(shapes: dict[str, list]) -> str:
    """Return a model's likely name, such as t2t_vit_14, from the shapes of its tensors."""
    embed_dim = (shapes.get('cls_token') or [0])[-1]
    depth = len({match[1] for name in shapes if (match := re.match(r'blocks\.(\d+)\.', name))})
    transformer = any('.attn.qkv' in name and 'patch_embed' in name for name in shapes)
    name = SIZES.get((embed_dim, depth), 'a T2T-ViT')
    return (f'{name}{" with transformer tokens" if transformer else ""} '
            f'(embed_dim {embed_dim}, depth {depth})')


def choose_small(side: int) -> dict[str, Any]:
    """Return {key: value} of a T2T-ViT that learns from few pictures without pretrained weights.

    side: the pictures' shorter side, in pixels, of which a token has 16.
    """
    size = 64 if side <= 80 else 96
    return {'MODEL.NAME': f't2t_vit_small_{size}', 'MODEL.TOKEN_DIM': 32, 'MODEL.EMBED_DIM': 96,
            'MODEL.DEPTH': 4, 'MODEL.NUM_HEADS': 4, 'MODEL.MLP_RATIO': 2.0,
            'DATA.IMAGE_SIZE': size, 'DATA.CROP_PCT': 1.0}


PROJECT = Project(
    name='T2T-ViT',
    folder=FOLDER,
    get_config=get_config,
    get_dataset=get_dataset,
    build_model=build_t2t_vit,
    example_configs=('t2t_vit_digits', 't2t_vit_14'),
    options=Options,
    fixed_options=('MODEL.QK_SCALE',),
    own_format=PADDLEVIT,
    formats=(OFFICIAL,),
    targets={'t2t': OFFICIAL},
    list_released=list_released,
    heads=('head.',),
    positions=('pos_embed',),
    read_options=read_options,
    choose_small=choose_small,
    describe_shape=describe_shape,
    list_token_modules=list_token_modules,
    tiny_models=TINY_MODELS,
    timed_configs=('t2t_vit_14',),
)
