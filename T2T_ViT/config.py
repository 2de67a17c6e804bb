"""T2T-ViT's options: the shared ones of common/config.py and the model's own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.config import ModelRules, build_default_config, load_config
from common.errors import UserError
from common.machine.environment import tune_cpu

tune_cpu()      # nothing above imports Paddle, which reads these settings once

TOKEN_STRIDE = 16                           # pixels a side of one token, after three soft splits


def build_t2t_vit_config():
    """Return a new tree with every option at its default: T2T-ViT-14 at 224."""
    config = build_default_config()
    data, model = config.DATA, config.MODEL
    data.CROP_PCT = 0.9                     # of the official evaluation, as mean and std
    data.IMAGENET_MEAN = [0.485, 0.456, 0.406]
    data.IMAGENET_STD = [0.229, 0.224, 0.225]
    model.TYPE = 'T2T-ViT'
    model.NAME = 't2t_vit_14'
    model.TOKEN_TYPE = 'performer'          # token modules; or transformer (T2T-ViT_t)
    model.TOKEN_DIM = 64                    # width inside the token modules
    model.EMBED_DIM = 384
    model.DEPTH = 14                        # blocks
    model.NUM_HEADS = 6
    model.MLP_RATIO = 3.0                   # hidden width of the MLP / EMBED_DIM
    model.QKV_BIAS = False                  # as in every published model; PaddleViT's default: True
    model.QK_SCALE = None                   # factor of q k; None: head width ** -0.5
    model.LAYER_NORM_EPS = 1e-5             # official; PaddleViT: 1e-6
    model.ZERO_HEAD = False                 # start the classifier's weight at zero
    return config


def check_model(config):
    """Raise UserError if the model's options do not fit together, before Paddle is imported."""
    model, size = config.MODEL, config.DATA.IMAGE_SIZE
    if size % TOKEN_STRIDE:
        nearest = sorted({max(size // TOKEN_STRIDE, 1), size // TOKEN_STRIDE + 1})
        raise UserError(f'DATA.IMAGE_SIZE {size}: T2T-ViT needs a multiple of {TOKEN_STRIDE}. '
                        f'Use {" or ".join(str(n * TOKEN_STRIDE) for n in nearest)}.')
    if model.EMBED_DIM % model.NUM_HEADS:
        raise UserError(f'MODEL.EMBED_DIM {model.EMBED_DIM} does not divide by MODEL.NUM_HEADS '
                        f'{model.NUM_HEADS}. Change one of them.')
    if model.TOKEN_DIM < 2:
        raise UserError(f'MODEL.TOKEN_DIM must be 2 or more, not {model.TOKEN_DIM}.')


RULES = ModelRules(
    optional={'MODEL.QK_SCALE': float},
    choices={'MODEL.TOKEN_TYPE': ('performer', 'transformer')},
    positive=('MODEL.TOKEN_DIM', 'MODEL.EMBED_DIM', 'MODEL.DEPTH', 'MODEL.NUM_HEADS',
              'MODEL.MLP_RATIO', 'MODEL.QK_SCALE'),
    check=check_model,
)


def get_config(path=None, flags=None, opts=None):
    """Return the frozen config: see common.config.load_config."""
    return load_config(build_t2t_vit_config(), path, flags, opts, RULES)
