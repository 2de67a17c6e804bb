"""ViT's options: the shared ones of common/config.py and the model's own."""

import os
import sys
from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

if os.path.dirname(os.path.dirname(os.path.abspath(__file__))) not in sys.path:
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common import config as shared
from common.errors import UserError
from common.machine.environment import tune_cpu
from common.option import Option

tune_cpu()      # before anything else imports Paddle, which reads these settings only once

MAX_STAGES = 8          # of a hybrid's ResNet, each of which halves the image


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
            'erf', choices=('erf', 'tanh', 'quick'))
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
        REGISTER_TOKENS = Option(0, at_least=0, at_most=1000, help='tokens that nobody reads')
        DISTILLED = Option(False, help='a distillation token with a head of its own (DeiT)')
        PRE_NORM = Option(False, help='a LayerNorm before the first block (CLIP)')
        NORM_AFTER_POOLING = Option(False, help='the last norm after the pooling (MAE)')

    class TRAIN:
        TEACHER = Option(None, kind=str, needs=('MODEL.DISTILLED',),
                         help='checkpoint that teaches the distillation token')
        TEACHER_CFG = Option('', needs=('TRAIN.TEACHER',),
                             help='its yaml file, where it records no config')
        DISTILLATION = Option('hard', choices=('hard', 'soft'), needs=('TRAIN.TEACHER',),
                              help="learn the teacher's best class, or its probabilities")
        DISTILLATION_SHARE = Option(0.5, at_least=0, at_most=1, needs=('TRAIN.TEACHER',),
                                    help="of the teacher's part in the loss")
        DISTILLATION_TEMPERATURE = Option(1.0, above=0, at_most=1000, needs=(
            'TRAIN.TEACHER', 'TRAIN.DISTILLATION=soft'), help='of soft distillation')


def check_model(config: CfgNode):
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
    head_size = model.ATTN_HEAD_SIZE or model.EMBED_DIM // model.NUM_HEADS
    if model.POSITION_EMBEDDING == 'rope' and head_size % 4:
        raise UserError('MODEL.POSITION_EMBEDDING rope needs heads whose width is a multiple of 4, '
                        f'not {head_size}. Change MODEL.NUM_HEADS.')
    if model.DISTILLED and (model.POOL != 'token' or model.REPRESENTATION_SIZE
                            or model.NORM_AFTER_POOLING):
        raise UserError('MODEL.DISTILLED True has a head on each of two tokens: it needs '
                        'MODEL.POOL token, and neither MODEL.REPRESENTATION_SIZE nor '
                        'MODEL.NORM_AFTER_POOLING.')
    if int(model.EMBED_DIM * model.MLP_RATIO) < 1:
        raise UserError(f'MODEL.MLP_RATIO {model.MLP_RATIO:g} leaves the MLP no width.')
    if len(model.HYBRID) > MAX_STAGES:
        raise UserError(f'MODEL.HYBRID has {len(model.HYBRID)} stages; more than {MAX_STAGES} '
                        'leave nothing of an image.')
    stem_stride = 4 * 2 ** (len(model.HYBRID) - 1)
    if model.HYBRID and model.PATCH_SIZE % stem_stride:
        raise UserError(f'MODEL.HYBRID {model.HYBRID} reduces images by {stem_stride}; '
                        f'MODEL.PATCH_SIZE {model.PATCH_SIZE} must be a multiple of that.')
    shared.check_memory(count_weights(config))


def count_weights(config: CfgNode):
    """Return about how many weights the model has, without a hybrid's ResNet and the classes."""
    model, width = config.MODEL, config.MODEL.EMBED_DIM
    attention = 4 * width * model.NUM_HEADS * (model.ATTN_HEAD_SIZE or width // model.NUM_HEADS)
    mlp = 2 * width * int(width * model.MLP_RATIO)
    tokens = 1 + (config.DATA.IMAGE_SIZE // model.PATCH_SIZE) ** 2
    features = model.REPRESENTATION_SIZE or width
    pixels = 0 if model.HYBRID else config.DATA.IMAGE_CHANNELS * model.PATCH_SIZE ** 2
    return (model.DEPTH * (attention + mlp) + (tokens + pixels) * width
            + features * width)


def get_config(path: str | None = None, flags: dict[str, Any] | None = None,
               opts: Iterable[str] | None = None) -> CfgNode:
    """Return the frozen config: defaults, then the yaml file, flags and options.

    path: yaml file. flags: {"DATA.BATCH_SIZE": 32}. opts: ["TRAIN.BASE_LR", "3e-4"].
    Raises UserError naming the source of a value that is unknown or wrong.
    """
    return shared.load_config(Options, path, flags, opts, check_model)
