"""ViT's options: the shared ones of common/config.py and the model's own."""

import os
import sys

if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) not in sys.path:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.config import ModelRules, build_default_config, load_config
from common.errors import UserError
from common.machine.environment import tune_cpu

tune_cpu()      # before anything else imports Paddle, which reads these settings only once


def build_vit_config():
    """Return a new tree with every option at its default: ViT-B/16 at 224."""
    config = build_default_config()
    model = config.MODEL
    model.TYPE = 'ViT'
    model.NAME = 'vit_base_patch16_224'
    model.PATCH_SIZE = 16                   # pixels between tokens (through the stem, if any)
    model.EMBED_DIM = 768
    model.DEPTH = 12                        # blocks
    model.NUM_HEADS = 12
    model.ATTN_HEAD_SIZE = None             # None: EMBED_DIM / NUM_HEADS
    model.MLP_RATIO = 4.0                   # hidden width of the MLP / EMBED_DIM
    model.QKV_BIAS = True
    model.REPRESENTATION_SIZE = None        # width of the pre-logits layer; None: no such layer
    model.PRE_LOGITS_ACTIVATION = 'tanh'    # or relu
    model.POOL = 'token'                    # or avg: mean of the patch tokens
    model.CLASS_TOKEN = True
    model.POSITION_EMBEDDING = 'learned'    # or sincos2d: a fixed table
    model.ZERO_HEAD = False                 # start the classifier at zero
    model.HYBRID = []                       # units in each ResNet stage; [3, 4, 9] for R50+ViT
    model.HYBRID_WIDTH = 64                 # channels of the ResNet's root
    return config


def check_model(config):
    """Raise UserError, naming the keys, if the model's options do not fit together."""
    model, image_size = config.MODEL, config.DATA.IMAGE_SIZE
    if image_size % model.PATCH_SIZE:
        larger = (image_size // model.PATCH_SIZE + 1) * model.PATCH_SIZE
        smaller = max(larger - model.PATCH_SIZE, model.PATCH_SIZE)
        sizes = ' or '.join(str(size) for size in sorted({smaller, larger}))
        raise UserError(f'DATA.IMAGE_SIZE {image_size} is not a multiple of MODEL.PATCH_SIZE '
                        f'{model.PATCH_SIZE}. Use {sizes}.')
    if model.ATTN_HEAD_SIZE is None and model.EMBED_DIM % model.NUM_HEADS:
        raise UserError(f'MODEL.EMBED_DIM {model.EMBED_DIM} is not a multiple of MODEL.NUM_HEADS '
                        f'{model.NUM_HEADS}. Change one, or set MODEL.ATTN_HEAD_SIZE.')
    if model.POOL == 'token' and not model.CLASS_TOKEN:
        raise UserError('MODEL.POOL token needs MODEL.CLASS_TOKEN True. Use MODEL.POOL avg.')
    if model.POSITION_EMBEDDING == 'sincos2d' and model.EMBED_DIM % 4:
        raise UserError('MODEL.POSITION_EMBEDDING sincos2d needs a MODEL.EMBED_DIM that is a '
                        f'multiple of 4, not {model.EMBED_DIM}.')
    if any(not isinstance(units, int) or units < 1 for units in model.HYBRID):
        raise UserError(f'MODEL.HYBRID lists numbers of units, as [3, 4, 9], not {model.HYBRID}.')
    stem_stride = 4 * 2 ** (len(model.HYBRID) - 1)
    if model.HYBRID and model.PATCH_SIZE % stem_stride:
        raise UserError(f'MODEL.HYBRID {model.HYBRID} reduces images by {stem_stride}; '
                        f'MODEL.PATCH_SIZE {model.PATCH_SIZE} must be a multiple of that.')


RULES = ModelRules(
    optional={'MODEL.ATTN_HEAD_SIZE': int, 'MODEL.REPRESENTATION_SIZE': int},
    choices={
        'MODEL.PRE_LOGITS_ACTIVATION': ('tanh', 'relu'),
        'MODEL.POOL': ('token', 'avg'),
        'MODEL.POSITION_EMBEDDING': ('learned', 'sincos2d'),
    },
    positive=('MODEL.PATCH_SIZE', 'MODEL.EMBED_DIM', 'MODEL.DEPTH', 'MODEL.NUM_HEADS',
              'MODEL.ATTN_HEAD_SIZE', 'MODEL.MLP_RATIO', 'MODEL.REPRESENTATION_SIZE',
              'MODEL.HYBRID_WIDTH'),
    check=check_model,
)


def get_config(path=None, flags=None, opts=None):
    """Return the frozen config: defaults, then the yaml file, flags and options.

    path: yaml file. flags: {"DATA.BATCH_SIZE": 32}. opts: ["TRAIN.BASE_LR", "3e-4"].
    Raises UserError naming the source of a value that is unknown or wrong.
    """
    return load_config(build_vit_config(), path, flags, opts, RULES)
