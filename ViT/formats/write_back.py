"""Our weights under timm's and Hugging Face's names, as their own packages load them.

Tokens of which the other project gives no row to the position table keep their position: it is
added to the token itself, which computes the same.
"""

from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.weights.positions import split_rows
from common.weights.read import Weights
from common.weights.rules import Format, Written
from ViT.formats import clip, huggingface, timm
from ViT.from_weights import read_options

Arrays = dict[str, np.ndarray]

ACTIVATIONS = {'erf': 'gelu', 'tanh': 'gelu_pytorch_tanh', 'quick': 'quick_gelu'}
RESAMPLING = {'nearest': 0, 'lanczos': 1, 'bilinear': 2, 'bicubic': 3}       # Pillow's numbers
PREFIX_TOKENS = ('cls_token', 'dist_token', 'register_tokens')


class Kind(NamedTuple):
    """A family of transformers' classes.

    model: the class without a classifier; classifier: the one with, '' for none. head: name of
    the classifier's layer. pool: what it reads. wrapper: before the names where the class has a
    classifier; bare: where it has none. rows: tokens before the patches that have positions.
    """

    form: Format
    model_type: str
    model: str
    classifier: str = ''
    head: str = 'classifier'
    pool: str = 'token'
    wrapper: str = ''
    bare: str = ''
    rows: int = 1


# By what a network has beyond the paper's.
KINDS = {
    frozenset(): Kind(huggingface.FORMAT, 'vit', 'ViTModel', 'ViTForImageClassification',
                      wrapper='vit.'),
    frozenset({'distillation token'}): Kind(
        huggingface.FORMAT, 'deit', 'DeiTModel', 'DeiTForImageClassificationWithTeacher',
        head='cls_classifier', wrapper='deit.', rows=2),
    frozenset({'no class token'}): Kind(
        huggingface.FORMAT, 'ijepa', 'IJepaModel', 'IJepaForImageClassification', pool='avg',
        wrapper='ijepa.', rows=0),
    frozenset({'layer scale'}): Kind(huggingface.DINOV2, 'dinov2', 'Dinov2Model'),
    frozenset({'layer scale', 'registers'}): Kind(
        huggingface.DINOV2_REGISTERS, 'dinov2_with_registers', 'Dinov2WithRegistersModel'),
    frozenset({'rotary positions', 'layer scale', 'registers'}): Kind(
        huggingface.DINOV3, 'dinov3_vit', 'DINOv3ViTModel'),
    frozenset({'norm before the blocks'}): Kind(
        clip.HUGGING_FACE_CLIP, 'clip_vision_model', 'CLIPVisionModel',
        'CLIPVisionModelWithProjection', head='visual_projection', wrapper='vision_model.',
        bare='vision_model.'),
    frozenset({'no class token', 'attention pooling'}): Kind(
        clip.HUGGING_FACE_SIGLIP, 'siglip_vision_model', 'SiglipVisionModel',
        bare='vision_model.', rows=0),
}


def to_timm(weights: Weights, arrays: Arrays) -> Written:
    """Return weights under timm's names. Raises UserError for rotary positions."""
    timm.FORMAT.convert_back(arrays)            # what has no name there is said first
    if 'position_embedding' not in arrays:
        raise UserError(f"{weights.path} has rotary positions, of whose kind timm's names say "
                        'nothing. Convert it -to huggingface.')
    if 'dist_token' in arrays and 'classifier.weight' in arrays and \
            'classifier_dist.weight' not in arrays:
        raise UserError(f'{weights.path} has a distillation token without a head, which no model '
                        'of timm has.')
    arrays = dict(arrays)
    if weights.pool in ('token', 'avg'):        # nothing reads the attention pooling
        arrays = {name: array for name, array in arrays.items()
                  if not name.startswith('attention_pool.')}
    if 'register_tokens' in arrays:             # before which timm's models give no positions
        arrays = fit_rows(arrays, 0, weights.grid_size)
    if 'classifier.weight' in arrays:           # timm's projection of CLIP has a bias
        arrays.setdefault('classifier.bias',
                          np.zeros(arrays['classifier.weight'].shape[1], np.float32))
    if 'pre_norm.weight' in arrays:             # timm's CLIP has no such bias
        drop_zeros(weights, arrays, 'patch_embedding.patch_embedding.bias', 'timm')
    return Written(timm.FORMAT.convert_back(arrays), arrays)


def to_huggingface(weights: Weights, arrays: Arrays) -> Written:
    """Return weights under transformers' names, with config.json and preprocessor_config.json.

    Raises UserError for a network that no class of transformers is.
    """
    options, has_head = read_options(weights), 'classifier.weight' in arrays
    kind = choose_kind(weights, arrays, options, has_head)
    arrays = fit_rows(arrays, kind.rows, weights.grid_size)
    inner = {name: array for name, array in arrays.items() if not name.startswith('classifier')}
    if kind.form is clip.HUGGING_FACE_CLIP:
        drop_zeros(weights, inner, 'patch_embedding.patch_embedding.bias', 'transformers')
        if has_head:
            arrays = dict(arrays)
            drop_zeros(weights, arrays, 'classifier.bias', 'transformers')
    prefix = kind.wrapper if has_head else kind.bare
    tensors = {prefix + name: array for name, array in arrange(
        kind.form.convert_back(inner), kind.model_type).items()}
    for ours, theirs in (('classifier', kind.head),
                         ('classifier_dist', 'distillation_classifier')):
        if f'{ours}.weight' in arrays:
            tensors[f'{theirs}.weight'] = arrays[f'{ours}.weight'].T
        if f'{ours}.bias' in arrays:
            tensors[f'{theirs}.bias'] = arrays[f'{ours}.bias']
    files = {'config.json': make_config(weights, options, arrays, kind, has_head)}
    if set(weights.preprocessing) == {'mean', 'std', 'crop_pct', 'interpolation'}:
        files['preprocessor_config.json'] = make_processor(weights.preprocessing,
                                                           options['DATA.IMAGE_SIZE'])
    notes = []
    if 'gelu' not in weights.numerics:
        notes.append(f"{weights.path} does not say its form of GELU: config.json says 'gelu', the "
                     'exact one. Where it was trained with another, correct it there.')
    return Written(tensors, arrays, files, notes)


def choose_kind(weights: Weights, arrays: Arrays, options: dict[str, Any], has_head: bool) -> Kind:
    """Return the Kind of a network. Raises UserError if there is none."""
    signs = {'distillation token': 'dist_token', 'registers': 'register_tokens',
             'layer scale': 'encoder.layers.0.gamma_1', 'norm before the blocks': 'pre_norm.weight',
             'attention pooling': 'attention_pool.latent', 'norm after pooling': 'fc_norm.weight'}
    features = {feature for feature, name in signs.items() if name in arrays}
    if 'cls_token' not in arrays:
        features.add('no class token')
    if 'position_embedding' not in arrays:
        features.add('rotary positions')
    kind = KINDS.get(frozenset(features))
    if kind is None:
        raise UserError(f'{weights.path} has {" and ".join(sorted(features))}: no class of '
                        'transformers is such a network.')
    if kind.model_type == 'deit' and 'classifier_dist.weight' not in arrays:
        kind = kind._replace(classifier='DeiTForImageClassification', head='classifier')
    if has_head and not kind.classifier:
        raise UserError(f"{weights.path} has a classifier, and transformers' {kind.model} has none "
                        'that reads what this one does.')
    if has_head and options['MODEL.POOL'] != kind.pool:
        raise UserError(f'{weights.path} classifies features of pooling {options["MODEL.POOL"]!r}, '
                        f"and transformers' {kind.classifier} of pooling {kind.pool!r}.")
    return kind


def fit_rows(arrays: Arrays, rows: int, grid: tuple[int, int] | None) -> Arrays:
    """Return arrays whose position table has rows for the first `rows` tokens before the patches.

    Rows that are too many are added to their tokens, rows that are missing are zeros.
    """
    table = arrays.get('position_embedding')
    if table is None:
        return arrays
    tokens = [(name, i) for name in PREFIX_TOKENS if name in arrays
              for i in range(arrays[name].shape[1])]
    found = split_rows(table.shape[1], len(tokens), grid)
    if found is None or found[0] == rows:
        return arrays
    arrays = {name: array.copy() if name in PREFIX_TOKENS else array
              for name, array in arrays.items()}
    for place in range(rows, found[0]):
        name, i = tokens[place]
        arrays[name][0, i] += table[0, place]
    zeros = np.zeros([1, max(rows - found[0], 0), table.shape[2]], table.dtype)
    arrays['position_embedding'] = np.concatenate(
        [table[:, :min(rows, found[0])], zeros, table[:, found[0]:]], axis=1)
    return arrays


def drop_zeros(weights: Weights, arrays: Arrays, name: str, whose: str) -> None:
    """Leave out a bias that another project does without. Raises UserError if it is not zero."""
    bias = arrays.pop(name, None)
    if bias is not None and bias.any():
        raise UserError(f'{weights.path}: {name} is not zero, and no model of {whose} has it.')


def arrange(tensors: Arrays, model_type: str) -> Arrays:
    """Return tensors in the shapes of transformers' classes, without what they do without."""
    tensors = dict(tensors)
    for name, axes in (('embeddings.class_embedding', 2),
                       ('embeddings.position_embedding.weight', 1)):
        if name in tensors:
            tensors[name] = tensors[name].reshape(tensors[name].shape[axes:])
    for kind in ('weight', 'bias'):             # SigLIP's pooling has one projection
        parts = [tensors.pop(f'head.attention.{part}.{kind}') for part in ('q', 'kv')
                 if f'head.attention.{part}.{kind}' in tensors]
        if parts:
            tensors[f'head.attention.in_proj_{kind}'] = np.concatenate(parts)
    if model_type == 'dinov3_vit':              # its keys have no bias
        for name in [name for name in tensors if name.endswith('k_proj.bias')]:
            if not tensors[name].any():
                del tensors[name]
    return tensors


def make_config(weights: Weights, options: dict[str, Any], arrays: Arrays, kind: Kind,
                has_head: bool) -> dict[str, Any]:
    """Return the content of config.json."""
    width, hidden = (arrays['encoder.layers.0.mlp.fc1.weight'].shape[axis] for axis in (0, 1))
    bias = arrays.get('encoder.layers.0.attn.qkv.bias')
    config = {
        'architectures': [kind.classifier if has_head else kind.model],
        'model_type': kind.model_type, 'hidden_size': width, 'intermediate_size': hidden,
        'num_hidden_layers': options['MODEL.DEPTH'],
        'num_attention_heads': options['MODEL.NUM_HEADS'],
        'hidden_act': ACTIVATIONS[weights.numerics.get('gelu', 'erf')],
        'layer_norm_eps': weights.numerics['layer_norm_eps'],
        'image_size': options['DATA.IMAGE_SIZE'], 'patch_size': options['MODEL.PATCH_SIZE'],
        'num_channels': options['DATA.IMAGE_CHANNELS'], 'qkv_bias': bias is not None,
        'mlp_ratio': hidden // width if hidden % width == 0 else hidden / width}
    if 'register_tokens' in arrays:
        config['num_register_tokens'] = arrays['register_tokens'].shape[1]
    if kind.model_type == 'dinov3_vit':
        has_key_bias = bias is not None and bool(bias[width:2 * width].any())
        config |= {'rope_theta': 100.0, 'query_bias': bias is not None,
                   'value_bias': bias is not None, 'key_bias': has_key_bias}
    if has_head:
        classes = arrays['classifier.weight'].shape[1]
        names = weights.class_names or [f'LABEL_{i}' for i in range(classes)]
        config |= {'projection_dim': classes} if kind.head == 'visual_projection' else {
            'id2label': {str(i): name for i, name in enumerate(names)},
            'label2id': {name: i for i, name in enumerate(names)}}
    return config


def make_processor(preprocessing: dict[str, Any], image_size: int) -> dict[str, Any]:
    """Return the content of preprocessor_config.json."""
    return {
        'image_processor_type': 'BitImageProcessor', 'do_resize': True,
        'size': {'shortest_edge': int(image_size / preprocessing['crop_pct'])},
        'resample': RESAMPLING[preprocessing['interpolation']], 'do_center_crop': True,
        'crop_size': {'height': image_size, 'width': image_size}, 'do_rescale': True,
        'rescale_factor': 1 / 255, 'do_normalize': True, 'image_mean': preprocessing['mean'],
        'image_std': preprocessing['std'], 'do_convert_rgb': True}
