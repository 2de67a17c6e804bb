"""ViT's released weights: their names, and where their files come from.

Google's bucket has refused anonymous readers since February 2026, so timm's
copies on Hugging Face come first and Google's addresses second. PaddleViT's own
files lie on Google Drive and Baidu, which need a browser: fetch them by hand.
"""

import re

from common.weights.registry import Released, hugging_face_url

GOOGLE = 'https://storage.googleapis.com/vit_models'
OPENMMLAB = 'https://download.openmmlab.com/mmclassification/v0/vit'
MINDCV = 'https://download.mindspore.cn/toolkits/mindcv/vit'
META = 'https://dl.fbaipublicfiles.com'
PADDLECLAS = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph'

# PaddleViT's table: config -> (variant of timm's repository, Google's file).
_FINE_TUNED = {
    'vit_tiny_patch16_224': (
        'augreg_in21k_ft_in1k',
        'augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_224'),
    'vit_tiny_patch16_384': (
        'augreg_in21k_ft_in1k',
        'augreg/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_384'),
    'vit_small_patch32_224': (
        'augreg_in21k_ft_in1k',
        'augreg/S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_224'),
    'vit_small_patch32_384': (
        'augreg_in21k_ft_in1k',
        'augreg/S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_384'),
    'vit_small_patch16_224': (
        'augreg_in21k_ft_in1k',
        'augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_224'),
    'vit_small_patch16_384': (
        'augreg_in21k_ft_in1k',
        'augreg/S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_384'),
    'vit_base_patch32_224': (
        'augreg_in21k_ft_in1k',
        'augreg/B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_224'),
    'vit_base_patch32_384': (
        'augreg_in21k_ft_in1k',
        'augreg/B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.03-res_384'),
    'vit_base_patch16_224': (
        'augreg_in21k_ft_in1k',
        'augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.01-res_224'),
    'vit_base_patch16_384': (
        'augreg_in21k_ft_in1k',
        'augreg/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'
        '--imagenet2012-steps_20k-lr_0.01-res_384'),
    'vit_large_patch16_224': (
        'augreg_in21k_ft_in1k',
        'augreg/L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1'
        '--imagenet2012-steps_20k-lr_0.01-res_224'),
    'vit_large_patch16_384': (
        'augreg_in21k_ft_in1k',
        'augreg/L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1'
        '--imagenet2012-steps_20k-lr_0.01-res_384'),
    'vit_large_patch32_384': ('orig_in21k_ft_in1k', 'imagenet21k+imagenet2012/ViT-L_32'),
}

# 21,843 classes, without pre-logits.
_AUGREG_IN21K = {
    'vit_tiny_patch16_224': 'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0',
    'vit_small_patch32_224': 'S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0',
    'vit_small_patch16_224': 'S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0',
    'vit_base_patch32_224': 'B_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.03-do_0.0-sd_0.0',
    'vit_base_patch16_224': 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0',
    'vit_large_patch16_224': 'L_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1',
}

# 21,843 classes, with pre-logits; fine-tuned on ImageNet-1k; trained with SAM.
_ORIGINAL_IN21K = ('ViT-B_16', 'ViT-B_32', 'ViT-L_16', 'ViT-L_32', 'ViT-H_14', 'R50+ViT-B_16')
_ORIGINAL_IN1K = ('ViT-B_16-224', 'ViT-B_16', 'ViT-B_32', 'ViT-L_16-224', 'ViT-L_16', 'ViT-L_32',
                  'R50+ViT-B_16')
_SAM = ('ViT-B_16', 'ViT-B_32')

_HUGGING_FACE_VIT = (
    'vit-base-patch16-224', 'vit-base-patch16-384', 'vit-base-patch32-384',
    'vit-large-patch16-224', 'vit-large-patch16-384', 'vit-large-patch32-384',
    'vit-base-patch16-224-in21k', 'vit-base-patch32-224-in21k', 'vit-large-patch16-224-in21k',
    'vit-large-patch32-224-in21k', 'vit-huge-patch14-224-in21k')

# OpenMMLab's file names end in the first digits of the file's SHA-256.
_MMPRETRAIN = (
    'pretrain/vit-base-p16_3rdparty_pt-64xb64_in1k-224_20210928-02284250',
    'pretrain/vit-base-p32_3rdparty_pt-64xb64_in1k-224_20210928-eee25dd4',
    'pretrain/vit-large-p16_3rdparty_pt-64xb64_in1k-224_20210928-0001f9a1',
    'finetune/vit-base-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-98e8652b',
    'finetune/vit-base-p32_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-9cea8599',
    'finetune/vit-large-p16_in21k-pre-3rdparty_ft-64xb64_in1k-384_20210928-b20ba619',
    'vit-base-p16_ft-4xb544-ipu_in1k_20220603-c215811a')

_MINDCV = {
    'vit_b_32_224': 'vit_b_32_224-4a1c9d8e', 'vit_l_16_224': 'vit_l_16_224-d2635f8b',
    'vit_l_32_224': 'vit_l_32_224-8c8ea164'}

_PADDLECLAS = (
    'small_patch16_224', 'base_patch16_224', 'base_patch16_384', 'base_patch32_384',
    'large_patch16_224', 'large_patch16_384', 'large_patch32_384')


# Tags of timm's repositories, whose config.json says what the tensors do not; the model is built
# from it, without a yaml file.
_TIMM = (
    *(f'deit_{size}_{kind}patch16_224.fb_in1k' for size in ('tiny', 'small', 'base')
      for kind in ('', 'distilled_')),
    'deit_base_patch16_384.fb_in1k', 'deit_base_distilled_patch16_384.fb_in1k',
    *(f'deit3_{size}_224.fb_in22k_ft_in1k' for size in (
        'small_patch16', 'base_patch16', 'large_patch16', 'huge_patch14')),
    *(f'vit_{size}_patch{patch}_224.dino' for size in ('small', 'base') for patch in (16, 8)),
    *(f'vit_{size}_patch14_{kind}dinov2.lvd142m' for size in ('small', 'base', 'large')
      for kind in ('', 'reg4_')),
    *(f'vit_{size}_224.mae' for size in ('base_patch16', 'large_patch16', 'huge_patch14')),
    *(f'vit_{size}_clip_224.laion2b' for size in (
        'base_patch32', 'base_patch16', 'large_patch14', 'huge_patch14')),
    'vit_base_patch16_clip_224.dfn2b',
    *(f'vit_{size}.webli' for size in (
        'base_patch16_siglip_224', 'base_patch16_siglip_384', 'large_patch16_siglip_256',
        'large_patch16_siglip_384', 'so400m_patch14_siglip_224', 'so400m_patch14_siglip_384')),
    *(f'vit_{size}.v2_webli' for size in (
        'base_patch16_siglip_224', 'base_patch16_siglip_384', 'large_patch16_siglip_256',
        'large_patch16_siglip_384', 'so400m_patch14_siglip_224', 'so400m_patch14_siglip_378',
        'so400m_patch16_siglip_256', 'so400m_patch16_siglip_384')),
    *(f'vit_{size}_patch16_dinov3.lvd1689m' for size in ('small', 'base', 'large')),
    'eva_giant_patch14_224.clip_ft_in1k', 'eva_large_patch14_196.in22k_ft_in22k_in1k')

# Repositories of Hugging Face with config.json and, but for a few, preprocessor_config.json.
_HUGGING_FACE = (
    *(f'facebook/deit-{size}-patch16-224' for size in (
        'tiny', 'small', 'base', 'tiny-distilled', 'small-distilled', 'base-distilled')),
    *(f'facebook/dino-vit{size}{patch}' for size in 'sb' for patch in (16, 8)),
    *(f'facebook/dinov2-{kind}{size}' for kind in ('', 'with-registers-')
      for size in ('small', 'base', 'large')),
    *(f'facebook/vit-mae-{size}' for size in ('base', 'large', 'huge')),
    *(f'openai/clip-vit-{size}' for size in (
        'base-patch32', 'base-patch16', 'large-patch14', 'large-patch14-336')),
    *(f'facebook/metaclip-{size}' for size in (
        'b32-fullcc2.5b', 'b16-fullcc2.5b', 'l14-fullcc2.5b')),
    *(f'google/siglip-{size}' for size in (
        'base-patch16-224', 'base-patch16-384', 'large-patch16-256', 'large-patch16-384',
        'so400m-patch14-384')),
    'facebook/ijepa_vith14_1k', 'facebook/ijepa_vith14_22k')

# The files of those who trained them: {name: path at Meta's address}.
_META = {
    **{f'deit/{name}': f'deit/{name}-{sha256}.pth' for name, sha256 in (
        ('deit_tiny_patch16_224', 'a1311bcf'), ('deit_small_patch16_224', 'cd65a155'),
        ('deit_base_patch16_224', 'b5f2ef4d'), ('deit_base_patch16_384', '8de9b5d1'),
        ('deit_tiny_distilled_patch16_224', 'b40b3cf7'),
        ('deit_small_distilled_patch16_224', '649709d9'),
        ('deit_base_distilled_patch16_224', 'df68dfff'),
        ('deit_base_distilled_patch16_384', 'd0272ac0'))},
    **{f'deit3/{size}_224_21k': f'deit/deit_3_{size}_224_21k{version}.pth' for size, version in (
        ('small', ''), ('base', ''), ('large', ''), ('huge', '_v1'))},
    **{f'dino/{name}': f'dino/dino_{name}_pretrain/dino_{name}_pretrain.pth' for name in (
        'deitsmall16', 'deitsmall8', 'vitbase16', 'vitbase8')},
    **{f'dinov2/{name}{kind}': f'dinov2/dinov2_{name}/dinov2_{name}{kind}_pretrain.pth'
       for name in ('vits14', 'vitb14', 'vitl14') for kind in ('', '_reg4')},
    **{f'mae/vit_{size}': f'mae/pretrain/mae_pretrain_vit_{size}.pth' for size in (
        'base', 'large', 'huge')},
    **{f'mae/vit_{size}_finetuned': f'mae/finetune/mae_finetuned_vit_{size}.pth' for size in (
        'base', 'large', 'huge')},
    **{f'moco_v3/vit_{size}_300_epochs': f'moco-v3/vit-{size[0]}-300ep/vit-{size[0]}-300ep.pth.tar'
       for size in ('small', 'base')},
    **{f'ijepa/vit_huge_patch14_{data.lower()}': f'ijepa/{data}-vit.h.14-{epochs}e.pth.tar'
       for data, epochs in (('IN1K', 300), ('IN22K', 900))},
}

# What restricts use, by a pattern of names.
_NON_COMMERCIAL = 'CC BY-NC 4.0, no commercial use'
_LICENCES = (
    (r'\.mae$|vit-mae-|meta/mae/|meta/moco_v3/|metaclip|ijepa', _NON_COMMERCIAL),
    (r'\.dfn2b$', "Apple's licence for research, see huggingface.co/apple/DFN2B-CLIP-ViT-B-16"),
    (r'dinov3', 'DINOv3 License, https://ai.meta.com/resources/models-and-libraries/'
                'dinov3-license/'))


def find_licence(name: str) -> str:
    """Return the licence that restricts the use of a name's weights, '' for none."""
    return next((text for pattern, text in _LICENCES if re.search(pattern, name)), '')


def list_released() -> dict[str, Released]:
    """Return {name: Released} of ViT's released weights."""
    released = {}
    for config, (variant, file) in _FINE_TUNED.items():
        urls = (hugging_face_url(f'timm/{config}.{variant}', 'model.safetensors'),
                f'{GOOGLE}/{file}.npz')
        released[f'google/augreg/{config}'] = Released(urls)
        released[f'timm/{config}'] = Released(urls)
    for tag in _TIMM:
        released[f'timm/{tag}'] = Released(
            (hugging_face_url(f'timm/{tag}', 'model.safetensors'),),
            extra_urls=(hugging_face_url(f'timm/{tag}', 'config.json'),),
            licence=find_licence(tag))
    for name, path in _META.items():
        known = re.search(r'-([0-9a-f]{8})\.pth', path)
        released[f'meta/{name}'] = Released((f'{META}/{path}',), sha256=known[1] if known else '',
                                            licence=find_licence(f'meta/{name}'))
    for config, file in _AUGREG_IN21K.items():
        released[f'google/augreg_in21k/{config}'] = Released((f'{GOOGLE}/augreg/{file}.npz',))
    for folder, names in (('imagenet21k', _ORIGINAL_IN21K),
                          ('imagenet21k+imagenet2012', _ORIGINAL_IN1K), ('sam', _SAM)):
        for name in names:
            released[f'google/{folder}/{name}'] = Released((f'{GOOGLE}/{folder}/{name}.npz',))
    for repository in (*(f'google/{name}' for name in _HUGGING_FACE_VIT), *_HUGGING_FACE):
        # Mean and std of 0.5 are what ViTs have that state nothing.
        beside = ('config.json',) if repository.startswith('google/vit') else (
            'config.json', 'preprocessor_config.json')
        released[f'hf/{repository}'] = Released(
            (hugging_face_url(repository, 'model.safetensors'),
             hugging_face_url(repository, 'pytorch_model.bin')),
            extra_urls=tuple(hugging_face_url(repository, file) for file in beside),
            licence=find_licence(repository))
    for path in _MMPRETRAIN:
        name, sha256 = re.fullmatch(r'(?:\w+/)?(.+)_\d+-([0-9a-f]{8})', path).groups()
        released[f'mmpretrain/{name}'] = Released((f'{OPENMMLAB}/{path}.pth',), sha256=sha256)
    for name, file in _MINDCV.items():
        released[f'mindcv/{name}'] = Released((f'{MINDCV}/{file}.ckpt',))
    for name in _PADDLECLAS:
        released[f'paddleclas/vit_{name}'] = Released(
            (f'{PADDLECLAS}/ViT_{name}_pretrained.pdparams',))
    return released
