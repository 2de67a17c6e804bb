"""ViT's options: the shared ones of common/config.py and the model's own."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) not in sys.path:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common import config as shared
from common.machine.environment import tune_cpu
from common.option import Option

tune_cpu()      # before anything else imports Paddle, which reads these settings only once

from ViT.vit import check_sizes, get_model_arguments


class Options(shared.Options):
    """ViT-B/16 at 224."""

    class MODEL:
        TYPE = shared.Options.MODEL.TYPE.with_default('ViT', choices=('ViT',))
        NAME = shared.Options.MODEL.NAME.with_default('vit_base_patch16_224')
        PATCH_SIZE = Option(16, above=0, at_most=65_535,
                            help='pixels between tokens (through the stem, if any)')
        EMBED_DIM = Option(768, above=0, help='width of the tokens')
        DEPTH = Option(12, above=0, help='blocks')
        NUM_HEADS = Option(12, above=0, help='attention heads')
        ATTN_HEAD_SIZE = Option(None, kind=int, above=0, help='none: EMBED_DIM / NUM_HEADS')
        MLP_RATIO = Option(4.0, above=0, at_most=1000,
                           help='hidden width of the MLP / EMBED_DIM')
        QKV_BIAS = Option(True, help='queries, keys and values have a bias')
        REPRESENTATION_SIZE = Option(None, kind=int, above=0,
                                     help='width of the pre-logits layer; none: no such layer')
        PRE_LOGITS_ACTIVATION = Option('tanh', choices=('tanh', 'relu'),
                                       needs=('MODEL.REPRESENTATION_SIZE',),
                                       help='of the pre-logits layer')
        GELU = shared.Options.MODEL.GELU.with_default(
            'erf', choices=('erf', 'tanh', 'quick'),
            help='erf, its approximation by tanh, or quick: x * sigmoid(1.702 x), as in CLIP')
        POOL = Option('token', choices=('token', 'avg', 'map'),
                      help='what is classified: the class token, the mean of the patch tokens, '
                           'or what attention pooling finds')
        CLASS_TOKEN = Option(True, help='a class token before the patch tokens')
        POSITION_EMBEDDING = Option('learned', choices=('learned', 'sincos2d', 'rope'),
                                    help='learned, a fixed table, or rotary (DINOv3)')
        ZERO_HEAD = Option(False, help='start the classifier at zero')
        HYBRID = Option([], each=int, at_least=1, at_most=1000,
                        help='units in each ResNet stage; [3, 4, 9] for R50+ViT')
        HYBRID_WIDTH = Option(64, above=0, needs=('MODEL.HYBRID',),
                              help="channels of the ResNet's root")
        LAYER_SCALE = Option(None, kind=float, above=0, at_most=10,
                             help='starting value of a factor for each channel of a branch')
        REGISTER_TOKENS = Option(0, at_least=0, at_most=1000,
                                 help='register tokens, which no head reads')
        DISTILLED = Option(False, help='a distillation token with a head of its own (DeiT)')
        PRE_NORM = Option(False, help='a LayerNorm before the first block (CLIP)')
        NORM_AFTER_POOLING = Option(False, help='the last norm after the pooling (MAE)')
        LAST_NORM = Option(True, needs=('!MODEL.NORM_AFTER_POOLING',),
                           help='a LayerNorm behind the last block (RADIO has none)')

    class TRAIN:
        TEACHER = Option(None, kind=str, needs=('MODEL.DISTILLED',),
                         help='checkpoint that teaches the distillation token')
        TEACHER_CFG = Option('', needs=('TRAIN.TEACHER',),
                             help='its yaml file, where it records no config')
        DISTILLATION = Option('hard', choices=('hard', 'soft'), needs=('TRAIN.TEACHER',),
                              help="learn the teacher's best class, or its probabilities")
        DISTILLATION_SHARE = Option(0.5, at_least=0, at_most=1, needs=('TRAIN.TEACHER',),
                                    help="weight of the teacher's part in the loss; the labels' "
                                    'has the rest')
        DISTILLATION_TEMPERATURE = Option(1.0, above=0, at_most=1000, needs=(
            'TRAIN.TEACHER', 'TRAIN.DISTILLATION=soft'), help='of soft distillation')


def check_model(config: CfgNode) -> None:
    """Raise UserError, naming the keys, if the model's options do not fit together."""
    shared.check_arguments(check_sizes, get_model_arguments(config), {
        'image_size': 'DATA.IMAGE_SIZE', 'resnet_layers': 'MODEL.HYBRID',
        'resnet_width': 'MODEL.HYBRID_WIDTH'})
    shared.check_memory(count_weights(config))


def count_weights(config: CfgNode) -> int:
    """Return about how many weights the model has, without a hybrid's ResNet and the classes."""
    model, width = config.MODEL, config.MODEL.EMBED_DIM
    attention = 4 * width * model.NUM_HEADS * (model.ATTN_HEAD_SIZE or width // model.NUM_HEADS)
    mlp = 2 * width * int(width * model.MLP_RATIO)
    pooling = 4 * width ** 2 + mlp if model.POOL == 'map' else 0
    tokens = 2 + model.REGISTER_TOKENS + (config.DATA.IMAGE_SIZE // model.PATCH_SIZE) ** 2
    features = model.REPRESENTATION_SIZE or width
    pixels = 0 if model.HYBRID else config.DATA.IMAGE_CHANNELS * model.PATCH_SIZE ** 2
    return (model.DEPTH * (attention + mlp) + pooling + (tokens + pixels) * width
            + features * width)


def get_config(path: str | None = None, flags: dict[str, Any] | None = None,
               opts: Iterable[str] | None = None) -> CfgNode:
    """Return the frozen config: defaults, then the yaml file, flags and options.

    path: yaml file. flags: {"DATA.BATCH_SIZE": 32}. opts: ["TRAIN.BASE_LR", "3e-4"].
    Raises UserError naming the source of a value that is unknown or wrong.
    """
    return shared.load_config(Options, path, flags, opts, check_model)
