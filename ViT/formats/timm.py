"""timm's names (github.com/huggingface/pytorch-image-models), which most of the field shares.

DeiT, DINO, DINOv2, MAE, MoCo v3 and I-JEPA write them too, with what else they trained beside the
network: decoders, projection heads, momentum encoders. config.json, where timm has written one,
names the architecture, whose arithmetic may differ under the same names.
"""

import re
from typing import Any

from common.errors import UserError
from common.weights.rules import LINEAR, PLAIN, TENSOR, AddZeros, Format, Rule
from ViT.formats.colours import IMAGENET
from ViT.formats.other_layers import refuse_other_layers

# Architectures with these names but other arithmetic: (pattern, what is different).
OTHER_ARITHMETIC = (
    (r'rope', 'rotary positions of another kind'),
    (r'vit_pe_', 'rotary positions and attention pooling of the Perception Encoder'),
    (r'eva02|sapiens|lingbot', 'rotary positions or gated MLPs'),
    (r'_rpn_', 'norms after attention and MLP'),
    (r'^beit', 'relative positions'),
    (r'aimv2', 'RMS norms and gated MLPs'),
    (r'_radio_|_intern', 'no norm behind the blocks'),
    (r'_xp_|_d?pwee_|18x2', 'parallel blocks'),
    (r'^test_vit[34]$', 'pooling over registers, or another norm'),
)
QUICK_GELU = r'quickgelu'
TANH_GELU = (r'vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip|'
             r'vit_large_patch16_siglip_(gap_)?512')

# Tensors that DeiT, DINOv2 and MAE have in their own files, and ViTs of mean 0.5 have not.
IMAGENET_MARKS = ('dist_token', 'register_tokens', 'storage_tokens', 'mask_token',
                  'blocks.0.gamma_1', 'blocks.0.ls1.gamma', 'decoder_pos_embed')

POOL = 'attention_pool'
# Biases of queries and values; the keys have none.
Q_AND_V_BIAS = (Rule('blocks.{i}.attn.q_bias', 'encoder.layers.{i}.attn.qkv.bias', TENSOR, part=0),
                Rule('blocks.{i}.attn.v_bias', 'encoder.layers.{i}.attn.qkv.bias', TENSOR, part=2))


def read_record(config: dict, tensors: dict) -> dict:
    """Return what config.json and the tensors say. Raises UserError for other arithmetic."""
    refuse_other_layers(tensors)
    record: dict[str, Any] = {}
    architecture = config.get('architecture')
    if isinstance(architecture, str):
        for pattern, reason in OTHER_ARITHMETIC:
            if re.search(pattern, architecture):
                raise UserError(f'{architecture[:60]} has {reason}, which no model here has. '
                                'Take an architecture without them.')
        record['gelu'] = 'erf'
        if re.search(QUICK_GELU, architecture):
            record['gelu'] = 'quick'
        elif re.search(TANH_GELU, architecture):
            record['gelu'] = 'tanh'
        arguments = config.get('model_args')
        if isinstance(arguments, dict) and 'num_heads' in arguments:
            record['num_heads'] = arguments['num_heads']
        if config.get('global_pool') in ('token', 'avg', 'map'):
            record['pool'] = config['global_pool']
    elif 'cls_token' in tensors and 'norm_pre.weight' not in tensors:
        record['gelu'] = 'erf'          # of CLIP and SigLIP there are several, which look alike
    if architecture is None:
        refuse_the_ambiguous(tensors)
        if any(name in tensors for name in IMAGENET_MARKS):
            record['preprocessing'] = IMAGENET
    if 'norm_pre.weight' in tensors or 'pos_embed' not in tensors:
        record['layer_norm_eps'] = 1e-5
    return record


def refuse_the_ambiguous(tensors: dict) -> None:
    """Raise UserError for a file whose positions are rotary, but of which kind only timm says."""
    has_table = 'pos_embed' in tensors or 'storage_tokens' in tensors
    if not has_table or {'attn_pool.latent', 'norm_pre.weight'} <= set(tensors):
        raise UserError('its positions are rotary, and the tensors do not say of which kind. Keep '
                        "timm's config.json beside the file.")


def prepare(tensors: dict) -> dict:
    """Return the tensors with zeros for what is not used, or not there.

    CLIP's patches have no bias. In DINOv3's own files a mask says that the keys' bias is zero.
    """
    tensors = AddZeros('patch_embed.proj.weight', 'patch_embed.proj.bias',
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
    signature=('patch_embed.proj.weight', 'blocks.{i}.norm1.weight'),
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
