"""timm's names (github.com/huggingface/pytorch-image-models), which most of the field shares.

DeiT, DINO, DINOv2, MAE, MoCo v3 and I-JEPA write them too, with what else they trained beside the
network: decoders, projection heads, momentum encoders. config.json, where timm has written one,
names the architecture, whose arithmetic may differ under the same names.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from common.errors import UserError
from common.weights.rules import LINEAR, PLAIN, TENSOR, AddZeros, Format, Rule
from ViT.formats.colours import IMAGENET
from ViT.formats.moco import read_heads
from ViT.formats.other_layers import refuse_other_layers

# Architectures with these names but other arithmetic: (pattern, what is different).
OTHER_ARITHMETIC = (
    (r'rope', 'rotary positions of another kind'),
    (r'vit_pe_', 'rotary positions and attention pooling of the Perception Encoder'),
    (r'eva02|sapiens|lingbot', 'rotary positions or gated MLPs'),
    (r'_rpn_', 'norms after attention and MLP'),
    (r'^beit', 'relative positions'),
    (r'aimv2', 'RMS norms and gated MLPs'),
    (r'_xp_|_d?pwee_|18x2', 'parallel blocks'),
    (r'^test_vit[34]$', 'pooling over registers, or another norm'),
)
QUICK_GELU = r'quickgelu'
TANH_GELU = (r'vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip|'
             r'vit_large_patch16_siglip_(gap_)?512')

# Tensors that DeiT, DINOv2 and MAE have in their own files, and ViTs of mean 0.5 have not.
IMAGENET_MARKS = ('dist_token', 'register_tokens', 'storage_tokens', 'mask_token',
                  'blocks.0.gamma_1', 'blocks.0.ls1.gamma', 'decoder_pos_embed')

# (embed_dim, depth) of the models that most files are of.
PUBLISHED_SIZES = {(192, 12), (384, 12), (512, 12), (768, 12), (1024, 24), (1152, 27), (1280, 32),
                   (1408, 40), (1664, 48)}

PATCHES = 'patch_embed.proj.weight'
POOL = 'attention_pool'
# Biases of queries and values; the keys have none.
Q_AND_V_BIAS = (Rule('blocks.{i}.attn.q_bias', 'encoder.layers.{i}.attn.qkv.bias', TENSOR, part=0),
                Rule('blocks.{i}.attn.v_bias', 'encoder.layers.{i}.attn.qkv.bias', TENSOR, part=2))


def read_record(config: dict, tensors: dict, names: Iterable[str]) -> dict:
    """Return what config.json, or else the tensors, say. Raises UserError for other arithmetic."""
    refuse_other_layers(tensors)
    architecture = config.get('architecture')
    record = read_architecture(architecture, config) if isinstance(architecture, str) \
        else read_tensors(tensors, names)
    if 'norm_pre.weight' in tensors or 'pos_embed' not in tensors:
        record['layer_norm_eps'] = 1e-5
    return record


def read_architecture(architecture: str, config: dict) -> dict[str, Any]:
    """Return what timm's config.json says. Raises UserError for other arithmetic."""
    for pattern, reason in OTHER_ARITHMETIC:
        if re.search(pattern, architecture):
            raise UserError(f'{architecture[:60]} has {reason}, which no model here has. '
                            'Take an architecture without them.')
    record: dict[str, Any] = {'gelu': 'erf'}
    if re.search(QUICK_GELU, architecture):
        record['gelu'] = 'quick'
    elif re.search(TANH_GELU, architecture):
        record['gelu'] = 'tanh'
    arguments = config.get('model_args')
    if isinstance(arguments, dict) and 'num_heads' in arguments:
        record['num_heads'] = arguments['num_heads']
    if config.get('global_pool') in ('token', 'avg', 'map'):
        record['pool'] = config['global_pool']
    return record


def read_tensors(tensors: dict, names: Iterable[str]) -> dict[str, Any]:
    """Return what a file tells beside which there is no config.json. Raises UserError."""
    refuse_the_ambiguous(tensors)
    record = read_heads(tensors, PATCHES, 'base_encoder.', names)
    assumed = record.pop('assumed', [])
    if 'cls_token' in tensors and 'norm_pre.weight' not in tensors:
        record['gelu'] = 'erf'          # of CLIP and SigLIP there are several, which look alike
    if any(name in tensors for name in IMAGENET_MARKS):
        record['preprocessing'] = IMAGENET
        assumed = []                    # not MoCo v3's
    if is_dinos(tensors, names):
        record['project_resize'] = 'bicubic_offset'
    if {'blocks.0.gamma_1', 'cls_token'} <= set(tensors) and has_table_of_patches(tensors):
        assumed.append(
            "The file does not say whether its positions are rotary besides: it is read as DeiT "
            "III's, which are not. timm's *_rope_ape_* has the same names; its config.json beside "
            'the file would tell.')
    size = get_length(tensors, PATCHES), count_blocks(tensors)
    if size not in PUBLISHED_SIZES:
        assumed.append(
            f'The file does not say its architecture, and no known model has width {size[0]} and '
            f'depth {size[1]}: it is read as a plain ViT with learned positions'
            f'{", GELU erf" if "gelu" in record else ""} and as many heads as the config says.')
    return record | ({'assumed': assumed} if assumed else {})


def is_dinos(tensors: dict, names: Iterable[str]) -> bool:
    """Tell whether a file is of DINO, with its head, or of DINOv2 without registers.

    DINOv2 resizes the positions of its models with registers as timm does.
    """
    return any(name.startswith(('head.mlp.', 'head.last_layer.')) for name in names) or (
        {'mask_token', 'blocks.0.ls1.gamma', 'pos_embed'} <= set(tensors)
        and 'register_tokens' not in tensors)


def refuse_the_ambiguous(tensors: dict) -> None:
    """Raise UserError for a file of another arithmetic, or of one that only config.json tells."""
    names = set(tensors)
    reason = ''
    if not names & {'pos_embed', 'storage_tokens'} or {
            'attn_pool.latent', 'norm_pre.weight'} <= names or (
            'norm_pre.weight' in names and 'norm.weight' not in names):
        reason = 'its positions are rotary, and the tensors do not say of which kind'
    elif {'attn_pool.latent', 'reg_token'} <= names:
        reason = 'its head may read its registers too'
    elif has_norms_behind(tensors):
        reason = 'its norms may lie behind attention and MLP instead of in front of them'
    if reason:
        raise UserError(f"{reason}. Keep timm's config.json beside the file.")
    if 'blocks.0.norm1.weight' in names and 'blocks.0.norm1.bias' not in names:
        raise UserError('its norms have no bias, so they are RMS norms or others that no model '
                        'here has.')


def has_norms_behind(tensors: dict) -> bool:
    """Tell whether blocks may be timm's *_rpn_* or eva02_enormous_*, which normalise afterwards.

    The first alone has no bias of queries and no token before the patches, the second alone so
    wide an MLP. A .pth also keeps the order in which a block's layers were made.
    """
    names = set(tensors)
    if 'fc_norm.weight' in names and not names & {
            'cls_token', 'reg_token', 'blocks.0.attn.qkv.bias', 'blocks.0.attn.q_bias'}:
        return True
    if 'blocks.0.attn.q_bias' in names and \
            get_length(tensors, 'blocks.0.mlp.fc1.weight') > 8 * get_length(tensors, PATCHES):
        return True
    order = [f'blocks.0.{layer}.weight' for layer in ('attn.qkv', 'norm1', 'mlp.fc1', 'norm2')]
    return [name for name in tensors if name in order] == order


def has_table_of_patches(tensors: dict) -> bool:
    """Tell whether the position table has the square's rows alone, none for the class token."""
    table = tensors.get('pos_embed')
    return table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == \
        table.shape[1]


def get_length(tensors: dict, name: str) -> int:
    """Return the length of a tensor's first axis, 0 without one."""
    return tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0


def count_blocks(tensors: dict) -> int:
    """Return the number of blocks."""
    return len({match[1] for name in tensors if (match := re.match(r'blocks\.(\d+)\.', name))})


def prepare(tensors: dict) -> dict:
    """Return the tensors with zeros for what is not used, or not there.

    CLIP's patches have no bias. In DINOv3's own files a mask says that the keys' bias is zero.
    """
    tensors = AddZeros(PATCHES, 'patch_embed.proj.bias',
                       where='norm_pre.weight')(tensors)
    for name in [name for name in tensors if name.endswith('.attn.qkv.bias_mask')]:
        bias = tensors.get(name.removesuffix('_mask'))
        if bias is not None and bias.ndim == 1:
            bias = bias.copy()
            bias[len(bias) // 3:2 * len(bias) // 3] = 0
            tensors[name.removesuffix('_mask')] = bias
    return tensors


FORMAT = Format(
    name='timm',
    kinds=('torch', 'safetensors'),
    signature=(PATCHES, 'blocks.{i}.norm1.weight'),
    rules=(
        Rule('cls_token', 'cls_token', TENSOR),
        Rule('dist_token', 'dist_token', TENSOR),
        Rule('reg_token', 'register_tokens', TENSOR),
        Rule('register_tokens', 'register_tokens', TENSOR),         # DINOv2's own name
        Rule('storage_tokens', 'register_tokens', TENSOR),          # DINOv3's own name
        Rule('pos_embed', 'position_embedding', TENSOR),
        Rule('patch_embed.proj.*', 'patch_embedding.patch_embedding.*', PLAIN),
        Rule('norm_pre.*', 'pre_norm.*', PLAIN),
        Rule('blocks.{i}.norm1.*', 'encoder.layers.{i}.attn_norm.*', PLAIN),
        Rule('blocks.{i}.attn.qkv.*', 'encoder.layers.{i}.attn.qkv.*', LINEAR),
        Rule('blocks.{i}.attn.proj.*', 'encoder.layers.{i}.attn.out.*', LINEAR),
        Rule('blocks.{i}.ls1.gamma', 'encoder.layers.{i}.gamma_1', TENSOR),
        Rule('blocks.{i}.gamma_1', 'encoder.layers.{i}.gamma_1', TENSOR),   # DeiT III's own name
        Rule('blocks.{i}.norm2.*', 'encoder.layers.{i}.mlp_norm.*', PLAIN),
        Rule('blocks.{i}.mlp.fc1.*', 'encoder.layers.{i}.mlp.fc1.*', LINEAR),
        Rule('blocks.{i}.mlp.fc2.*', 'encoder.layers.{i}.mlp.fc2.*', LINEAR),
        Rule('blocks.{i}.ls2.gamma', 'encoder.layers.{i}.gamma_2', TENSOR),
        Rule('blocks.{i}.gamma_2', 'encoder.layers.{i}.gamma_2', TENSOR),
        Rule('norm.*', 'encoder.encoder_norm.*', PLAIN),
        Rule('fc_norm.*', 'fc_norm.*', PLAIN),
        Rule('attn_pool.latent', f'{POOL}.latent', TENSOR),
        Rule('attn_pool.q.*', f'{POOL}.q.*', LINEAR),
        Rule('attn_pool.kv.*', f'{POOL}.kv.*', LINEAR),
        Rule('attn_pool.proj.*', f'{POOL}.proj.*', LINEAR),
        Rule('attn_pool.norm.*', f'{POOL}.norm.*', PLAIN),
        Rule('attn_pool.mlp.fc1.*', f'{POOL}.mlp.fc1.*', LINEAR),
        Rule('attn_pool.mlp.fc2.*', f'{POOL}.mlp.fc2.*', LINEAR),
        Rule('pre_logits.fc.*', 'pre_logits.0.*', LINEAR),
        Rule('head.*', 'classifier.*', LINEAR),
        Rule('head_dist.*', 'classifier_dist.*', LINEAR),
        *Q_AND_V_BIAS,
    ),
    numerics={'layer_norm_eps': 1e-6, 'pre_logits_activation': 'tanh'},
    position_resize='timm',
    read_record=read_record,
    prepare=prepare,
    # Of masked or contrastive training: mask token, decoder, projection head.
    ignored=('mask_token', 'decoder_**', 'head.{n}.**', 'head.mlp.**', 'head.last_layer.**',
             'rope_embed.periods', 'blocks.{i}.attn.qkv.bias_mask', 'local_cls_norm.*',
             'projectors.**'),
)
