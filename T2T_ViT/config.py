"""T2T-ViT's options: the shared ones of common/config.py and the model's own."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import config as shared
from common.machine.environment import tune_cpu
from common.option import Option

tune_cpu()      # before anything else imports Paddle, which reads these settings only once

from T2T_ViT.t2t_vit import TOKEN_STRIDE, check_sizes, get_model_arguments


class Options(shared.Options):
    """T2T-ViT-14 at 224."""

    class DATA:
        CROP_PCT = shared.Options.DATA.CROP_PCT.with_default(0.9)   # official; mean and std too
        IMAGENET_MEAN = shared.Options.DATA.IMAGENET_MEAN.with_default([0.485, 0.456, 0.406])
        IMAGENET_STD = shared.Options.DATA.IMAGENET_STD.with_default([0.229, 0.224, 0.225])

    class MODEL:
        TYPE = shared.Options.MODEL.TYPE.with_default('T2T-ViT', choices=('T2T-ViT',))
        NAME = shared.Options.MODEL.NAME.with_default('t2t_vit_14')
        LAYER_NORM_EPS = shared.Options.MODEL.LAYER_NORM_EPS.with_default(
            1e-5, help="LayerNorm's epsilon, the official one; PaddleViT: 1e-6")
        TOKEN_TYPE = Option('performer', choices=('performer', 'transformer'),
                            help='token modules; transformer is T2T-ViT_t')
        TOKEN_DIM = Option(64, at_least=2, help='width inside the token modules')
        EMBED_DIM = Option(384, above=0, help='width of the tokens')
        DEPTH = Option(14, above=0, help='blocks')
        NUM_HEADS = Option(6, above=0, help='attention heads')
        MLP_RATIO = Option(3.0, above=0, at_most=1000,
                           help='hidden width of the MLP / EMBED_DIM')
        QKV_BIAS = Option(False, help='of queries, keys and values; every published model has '
                          "none, PaddleViT's default is True")
        QK_SCALE = Option(None, kind=float, above=0,
                          help='factor of q k; none: head width ** -0.5')
        ZERO_HEAD = Option(False, help="start the classifier's weight at zero")


def check_model(config: CfgNode) -> None:
    """Raise UserError, naming the keys, if the model's options do not fit together."""
    model, width = config.MODEL, config.MODEL.EMBED_DIM
    shared.check_arguments(check_sizes, get_model_arguments(config),
                           {'image_size': 'DATA.IMAGE_SIZE'})
    tokens = 1 + (config.DATA.IMAGE_SIZE // TOKEN_STRIDE) ** 2
    shared.check_memory(model.DEPTH * width * (4 * width + 2 * int(width * model.MLP_RATIO))
                        + (tokens + 9 * model.TOKEN_DIM) * width)


def get_config(path: str | None = None, flags: dict[str, Any] | None = None,
               opts: Iterable[str] | None = None) -> CfgNode:
    """Return the frozen config: see common.config.load_config."""
    return shared.load_config(Options, path, flags, opts, check_model)
