"""Names of released weights, and where their files come from.

Google's bucket has refused anonymous readers since February 2026, so timm's
copies on Hugging Face come first and Google's addresses second. PaddleViT's own
files lie on Google Drive and Baidu, which need a browser: fetch them by hand.
"""

import os
import re
import sys
from dataclasses import dataclass

from common.errors import UserError, suggest
from common.weights.containers import open_container
from common.weights.download import download

HUGGING_FACE = 'https://huggingface.co'
GOOGLE = 'https://storage.googleapis.com/vit_models'
OPENMMLAB = 'https://download.openmmlab.com/mmclassification/v0/vit'
MINDCV = 'https://download.mindspore.cn/toolkits/mindcv/vit'
PADDLECLAS = 'https://paddle-imagenet-models-name.bj.bcebos.com/dygraph'
T2T = 'https://github.com/yitu-opensource/T2T-ViT/releases/download/main'


@dataclass(frozen=True)
class Entry:
    """urls: the same weights, the best source first. extra_urls: small files that belong beside
    them. sha256: hexadecimal, or its first digits; '' where it is not published."""

    urls: tuple
    extra_urls: tuple = ()
    sha256: str = ''


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

_T2T = {
    't2t_vit_7': '71.7_T2T_ViT_7.pth.tar', 't2t_vit_10': '75.2_T2T_ViT_10.pth.tar',
    't2t_vit_12': '76.5_T2T_ViT_12.pth.tar', 't2t_vit_14': '81.5_T2T_ViT_14.pth.tar',
    't2t_vit_19': '81.9_T2T_ViT_19.pth.tar', 't2t_vit_24': '82.3_T2T_ViT_24.pth.tar',
    't2t_vit_14_384': '83.3_T2T_ViT_14.pth.tar', 't2t_vit_t_14': '81.7_T2T_ViTt_14.pth.tar',
    't2t_vit_t_19': '82.4_T2T_ViTt_19.pth.tar', 't2t_vit_t_24': '82.6_T2T_ViTt_24.pth.tar',
    't2t_vit_14_cifar10': 'cifar10_t2t-vit_14_98.3.pth',
    't2t_vit_14_cifar100': 'cirfar100_t2t-vit-14_88.4.pth',     # spelt so
    't2t_vit_19_cifar10': 'cifar10_t2t-vit_19_98.4.pth',
    't2t_vit_19_cifar100': 'cifar100_t2t-vit-19_89.0.pth'}


def list_entries():
    """Return {name: Entry} of all released weights known here."""
    entries = {}
    for config, (variant, file) in _FINE_TUNED.items():
        urls = (_hugging_face(f'timm/{config}.{variant}', 'model.safetensors'),
                f'{GOOGLE}/{file}.npz')
        entries[f'google/augreg/{config}'] = Entry(urls)
        entries[f'timm/{config}'] = Entry(urls)
    for config, file in _AUGREG_IN21K.items():
        entries[f'google/augreg_in21k/{config}'] = Entry((f'{GOOGLE}/augreg/{file}.npz',))
    for folder, names in (('imagenet21k', _ORIGINAL_IN21K),
                          ('imagenet21k+imagenet2012', _ORIGINAL_IN1K), ('sam', _SAM)):
        for name in names:
            entries[f'google/{folder}/{name}'] = Entry((f'{GOOGLE}/{folder}/{name}.npz',))
    for name in _HUGGING_FACE_VIT:
        repository = f'google/{name}'
        entries[f'hf/{repository}'] = Entry(
            (_hugging_face(repository, 'model.safetensors'),
             _hugging_face(repository, 'pytorch_model.bin')),
            extra_urls=(_hugging_face(repository, 'config.json'),))
    for path in _MMPRETRAIN:
        name, sha256 = re.fullmatch(r'(?:\w+/)?(.+)_\d+-([0-9a-f]{8})', path).groups()
        entries[f'mmpretrain/{name}'] = Entry((f'{OPENMMLAB}/{path}.pth',), sha256=sha256)
    for name, file in _MINDCV.items():
        entries[f'mindcv/{name}'] = Entry((f'{MINDCV}/{file}.ckpt',))
    for name in _PADDLECLAS:
        entries[f'paddleclas/vit_{name}'] = Entry(
            (f'{PADDLECLAS}/ViT_{name}_pretrained.pdparams',))
    for name, file in _T2T.items():
        entries[f't2t/{name}'] = Entry((f'{T2T}/{file}',))
    return entries


def resolve(source):
    """Return the path of a file, a folder, or the weights of a registered name (downloaded).

    A file's ending .pdparams may be left off. Raises UserError if there is none.
    """
    source = os.fspath(source)
    if not source:
        raise UserError('No weights given: an empty path.')
    for path in (os.path.expanduser(source), os.path.expanduser(source) + '.pdparams'):
        if os.path.exists(path):
            return path
    entries = list_entries()
    if source in entries:
        return fetch(source, entries[source])
    near = suggest(source, entries)
    hint = near if near.startswith(' Did') else ' "python weights.py list" lists all names.'
    raise UserError(f'{source}: no such file or folder, with or without .pdparams, and no name '
                    f'of released weights.{hint}')


def cached_path(name, entry):
    """Return where the weights of a registered name lie, or None before they are fetched."""
    folder = os.path.join(cache_folder(), *name.split('/'))
    for url in entry.urls:
        path = os.path.join(folder, _file_name(url))
        if os.path.isfile(path):
            return path
    return None


def fetch(name, entry):
    """Return the path of a registered name's weights, downloading what is not in the cache.

    Raises UserError or RunError if no source delivers them whole.
    """
    path = cached_path(name, entry)
    if path is None:
        folder = os.path.join(cache_folder(), *name.split('/'))
        targets = [(url, os.path.join(folder, _file_name(url))) for url in entry.urls]
        for url in entry.extra_urls:
            download([(url, os.path.join(folder, _file_name(url)))])
        path = download(targets, entry.sha256, open_container)
    return path


def cache_folder():
    """Return the folder of downloads: VIT_CACHE, or vit-paddle in the platform's cache."""
    if os.environ.get('VIT_CACHE'):
        return os.path.abspath(os.path.expanduser(os.environ['VIT_CACHE']))
    home = os.path.expanduser('~')
    if sys.platform == 'win32':
        base = os.environ.get('LOCALAPPDATA') or os.path.join(home, 'AppData', 'Local')
    elif sys.platform == 'darwin':
        base = os.path.join(home, 'Library', 'Caches')
    else:
        base = os.environ.get('XDG_CACHE_HOME') or os.path.join(home, '.cache')
    return os.path.join(base, 'vit-paddle')


def _hugging_face(repository, file):
    """Return a file's address; HF_ENDPOINT names a mirror, as it does for Hugging Face's tools."""
    endpoint = os.environ.get('HF_ENDPOINT') or HUGGING_FACE
    return f'{endpoint.rstrip("/")}/{repository}/resolve/main/{file}'


def _file_name(url):
    return url.rsplit('/', 1)[-1]
