"""Google's .npz (github.com/google-research/vision_transformer), hybrids included.

Arrays are laid out as Flax has them: images are NHWC, kernels HWIO, attention
kernels have the heads as an axis of their own. The released files number the
modules of a block in one sequence (LayerNorm_0, MultiHeadDotProductAttention_1,
LayerNorm_2, MlpBlock_3); newer Flax counts each class by itself.
"""

from collections.abc import Iterable

import numpy as np

from common.weights.rules import TENSOR, Format, Rule, keep


def to_oihw(kernel: np.ndarray) -> np.ndarray:
    """[height, width, in, out] -> [out, in, height, width]."""
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel


def join_output(array: np.ndarray) -> np.ndarray:
    """[D, heads, head_dim] -> [D, heads * head_dim]; a bias without the first axis."""
    return array.reshape(*array.shape[:-2], -1) if array.ndim in (2, 3) else array


def join_input(kernel: np.ndarray) -> np.ndarray:
    """[heads, head_dim, D] -> [heads * head_dim, D]."""
    return kernel.reshape(-1, kernel.shape[-1]) if kernel.ndim == 3 else kernel


def flatten(array: np.ndarray) -> np.ndarray:
    """[1, 1, 1, C] (released files) or [C] (newer Flax) -> [C]."""
    return array.reshape(-1)


DENSE = {'kernel': ('weight', keep), 'bias': ('bias', keep)}
CONV = {'kernel': ('weight', to_oihw), 'bias': ('bias', keep)}
NORM = {'scale': ('weight', keep), 'bias': ('bias', keep)}
GROUP_NORM = {'scale': ('weight', flatten), 'bias': ('bias', flatten)}
HEADS_OUT = {'kernel': ('weight', join_output), 'bias': ('bias', join_output)}
HEADS_IN = {'kernel': ('weight', join_input), 'bias': ('bias', keep)}

BLOCK = 'Transformer/encoderblock_{i}'
ATTENTION = f'{BLOCK}/MultiHeadDotProductAttention_{{n}}'

def read_record(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return the number of heads, which Flax's kernels have as an axis of their own."""
    kernels = [array for name, array in tensors.items()
               if name.endswith('/query/kernel') and array.ndim == 3]
    return {'num_heads': kernels[0].shape[1]} if kernels else {}


FORMAT = Format(
    name='Google',
    kinds=('npz',),
    signature=('embedding/kernel', 'Transformer/encoderblock_{i}/LayerNorm_0/scale'),
    rules=(
        Rule('cls', 'cls_token', TENSOR),
        Rule('Transformer/posembed_input/pos_embedding', 'position_embedding', TENSOR),
        Rule('embedding/*', 'patch_embedding.patch_embedding.*', CONV),
        Rule(f'{BLOCK}/LayerNorm_0/*', 'encoder.layers.{i}.attn_norm.*', NORM),
        Rule(f'{ATTENTION}/query/*', 'encoder.layers.{i}.attn.qkv.*', HEADS_OUT, part=0),
        Rule(f'{ATTENTION}/key/*', 'encoder.layers.{i}.attn.qkv.*', HEADS_OUT, part=1),
        Rule(f'{ATTENTION}/value/*', 'encoder.layers.{i}.attn.qkv.*', HEADS_OUT, part=2),
        Rule(f'{ATTENTION}/out/*', 'encoder.layers.{i}.attn.out.*', HEADS_IN),
        Rule(f'{BLOCK}/LayerNorm_1/*', 'encoder.layers.{i}.mlp_norm.*', NORM),
        Rule(f'{BLOCK}/LayerNorm_2/*', 'encoder.layers.{i}.mlp_norm.*', NORM),
        Rule(f'{BLOCK}/MlpBlock_{{n}}/Dense_0/*', 'encoder.layers.{i}.mlp.fc1.*', DENSE),
        Rule(f'{BLOCK}/MlpBlock_{{n}}/Dense_1/*', 'encoder.layers.{i}.mlp.fc2.*', DENSE),
        Rule('Transformer/encoder_norm/*', 'encoder.encoder_norm.*', NORM),
        Rule('pre_logits/*', 'pre_logits.0.*', DENSE),
        Rule('head/*', 'classifier.*', DENSE),
        Rule('conv_root/*', 'resnet.conv_root.*', CONV),
        Rule('gn_root/*', 'resnet.gn_root.*', GROUP_NORM),
        Rule('block{b}/unit{u}/conv{c}/*', 'resnet.block{b}.unit{u}.conv{c}.*', CONV),
        Rule('block{b}/unit{u}/gn{c}/*', 'resnet.block{b}.unit{u}.gn{c}.*', GROUP_NORM),
        Rule('block{b}/unit{u}/conv_proj/*', 'resnet.block{b}.unit{u}.conv_proj.*', CONV),
        Rule('block{b}/unit{u}/gn_proj/*', 'resnet.block{b}.unit{u}.gn_proj.*', GROUP_NORM),
    ),
    numerics={'gelu': 'tanh', 'layer_norm_eps': 1e-6, 'pre_logits_activation': 'tanh'},
    position_resize='google',
    read_record=read_record,
)
