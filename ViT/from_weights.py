"""Which ViT a file of weights is of: the options that its tensors and records tell."""

import re
from typing import Any

from common.errors import UserError
from common.weights.positions import split_rows
from common.weights.read import Weights

# Heads of published models by embed_dim, where a file does not say.
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
# What patches of other than four dimensions are made of.
OTHER_PATCHES = {5: 'videos', 2: 'patches of images of any shape (NaFlex)'}
IMAGE_SIZE = 224                # of a model without a position table


def read_options(weights: Weights) -> dict[str, Any]:
    """Return {config key: value} of the model that weights are of.

    Raises UserError for a file that does not tell enough.
    """
    shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
    patches = shapes.get('patch_embedding.patch_embedding.weight', [])
    hidden = shapes.get('encoder.layers.0.mlp.fc1.weight', [])
    if len(patches) in OTHER_PATCHES:
        raise UserError(f'{weights.path} takes {OTHER_PATCHES[len(patches)]}, which no model here '
                        'does. Take a model of images of one size.')
    if len(patches) != 4 or len(hidden) != 2:
        raise UserError(_ask(weights))
    embed_dim, channels, _, patch_size = patches
    units = _count_units(shapes)
    root = shapes.get('resnet.conv_root.weight')
    if units and root:                      # the patches are of the ResNet's features
        channels, patch_size = root[1], patch_size * 4 * 2 ** (len(units) - 1)
    heads = weights.num_heads or HEADS.get(embed_dim)
    if heads is None:
        raise UserError(_ask(weights, f', nor how many attention heads its width {embed_dim} has'))
    depth = len({match[1] for name in shapes
                 if (match := re.match(r'encoder\.layers\.(\d+)\.', name))})
    has_class_token = 'cls_token' in shapes
    distilled = 'classifier_dist.weight' in shapes
    registers = shapes.get('register_tokens', [1, 0])[1]
    if 'dist_token' in shapes and not distilled:        # nothing reads it
        registers += 1
    options = {
        'MODEL.NAME': f'vit_{embed_dim}_{depth}_patch{patch_size}',
        'MODEL.PATCH_SIZE': patch_size, 'MODEL.EMBED_DIM': embed_dim, 'MODEL.DEPTH': depth,
        'MODEL.NUM_HEADS': heads, 'MODEL.MLP_RATIO': _find_ratio(hidden[1], embed_dim),
        'MODEL.QKV_BIAS': 'encoder.layers.0.attn.qkv.bias' in shapes,
        'MODEL.CLASS_TOKEN': has_class_token, 'MODEL.REGISTER_TOKENS': registers,
        'MODEL.DISTILLED': distilled, 'MODEL.PRE_NORM': 'pre_norm.weight' in shapes,
        'MODEL.NORM_AFTER_POOLING': 'fc_norm.weight' in shapes,
        'MODEL.LAST_NORM': bool({'encoder.encoder_norm.weight', 'fc_norm.weight'} & set(shapes)),
        'MODEL.POOL': _find_pool(weights, shapes),
        'DATA.IMAGE_CHANNELS': channels,
        'DATA.IMAGE_SIZE': _find_image_size(weights, shapes, has_class_token + distilled
                                            + registers, patch_size)}
    if weights.project_resize:
        options['MODEL.POSITION_RESIZE'] = weights.project_resize
    if units and root:
        options |= {'MODEL.HYBRID': units, 'MODEL.HYBRID_WIDTH': root[0]}
    if 'encoder.layers.0.gamma_1' in shapes:
        options['MODEL.LAYER_SCALE'] = 1e-5             # every factor comes from the file
    if 'position_embedding' not in shapes:
        options['MODEL.POSITION_EMBEDDING'] = 'rope'
    if 'pre_logits.0.weight' in shapes:
        options['MODEL.REPRESENTATION_SIZE'] = shapes['pre_logits.0.weight'][-1]
    if 'classifier.weight' in shapes:
        options['MODEL.NUM_CLASSES'] = shapes['classifier.weight'][-1]
    return options


def _count_units(shapes):
    """Return the number of units in each stage of a hybrid's ResNet; [] for none."""
    found = {(int(match[1]), int(match[2])) for name in shapes
             if (match := re.match(r'resnet\.block(\d+)\.unit(\d+)\.', name))}
    stages = max((stage for stage, _ in found), default=0)
    return [sum(stage == number for stage, _ in found) for number in range(1, stages + 1)]


def _find_ratio(hidden, embed_dim):
    """Return a ratio that gives the hidden width when it is rounded down."""
    ratio = hidden / embed_dim
    return ratio if int(embed_dim * ratio) == hidden else (hidden + 0.5) / embed_dim


def _find_pool(weights, shapes):
    """Return what the head reads: as the file says, or else as its layers tell."""
    if weights.pool:
        return weights.pool
    if 'attention_pool.latent' in shapes:
        return 'map'
    return 'token' if 'cls_token' in shapes and 'fc_norm.weight' not in shapes else 'avg'


def _find_image_size(weights, shapes, prefix_tokens, patch_size):
    """Return the pixels a side that the position table is for."""
    table = shapes.get('position_embedding')
    if table is None:
        return -(-IMAGE_SIZE // patch_size) * patch_size
    found = split_rows(table[1], prefix_tokens, weights.grid_size) if len(table) == 3 else None
    if found is None or found[1][0] != found[1][1]:
        raise UserError(_ask(weights, ', nor the image size: its patches are no square'))
    return found[1][0] * patch_size


def _ask(weights, more=''):
    return (f'{weights.path} does not say which model it is of{more}; name its yaml file, such as '
            '-cfg=configs/vit_base_patch16_224.yaml.')
