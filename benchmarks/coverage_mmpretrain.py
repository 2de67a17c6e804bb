"""The configs that MMPretrain has of plain ViTs, for benchmarks/coverage.py."""

import os
import warnings

import numpy as np

from benchmarks.coverage_sizes import (
    CLASSES,
    DEPTH,
    HEADS,
    IMAGE_SIZE,
    PATCH_SIZE,
    WIDTH,
    attempt,
    make_images,
    randomize,
)

# Backbones that are plain ViTs or are made of one.
BACKBONES = ('VisionTransformer', 'DistilledVisionTransformer', 'DeiT3', 'MAEViT', 'MoCoV3ViT',
             'MILANViT', 'MFFViT', 'MaskFeatViT', 'LoRAModel')
PLACES = ('backbone', 'vision_encoder', 'visual_encoder', 'vision_tower')
ARCH = {'embed_dims': WIDTH, 'num_layers': DEPTH, 'num_heads': HEADS,
        'feedforward_channels': 4 * WIDTH}


def write_all(folder):
    """Write every config's shrunk model as .pth; return {config: why it was not}."""
    from benchmarks.torch_setup import prepare_torchvision
    prepare_torchvision()
    warnings.simplefilter('ignore')
    import mmpretrain
    import mmpretrain.models
    mend_deit3()
    failed = {}
    configs = os.path.join(os.path.dirname(mmpretrain.__file__), '.mim', 'configs')
    for path in sorted(os.path.join(root, file) for root, _, files in os.walk(configs)
                       for file in files if file.endswith('.py') and '_base_' not in root):
        name = os.path.relpath(path, configs).removesuffix('.py').replace(os.sep, '.')
        try:
            place, options, head = find_backbone(path)
        except Exception:               # a config of another package
            continue
        if options and options['type'] in BACKBONES:
            failed[name] = attempt(write_case, place, options, head, folder / name)
    return {name: reason for name, reason in failed.items() if reason}


def mend_deit3():
    """Let DeiT3's blocks use their second norm: version 1.2.0 uses the first one twice.

    The weights are Meta's, which were trained with both.
    """
    from mmpretrain.models.backbones import deit3

    def forward(block, tokens):
        tokens = tokens + block.attn(block.ln1(tokens))
        return block.ffn(block.ln2(tokens), identity=tokens)
    deit3.DeiT3TransformerEncoderLayer.forward = forward


def find_backbone(path):
    """Return (name in the model, options, options of the classifier or None) of a config."""
    from mmengine.config import Config
    model = Config.fromfile(path).get('model') or {}
    for place in PLACES:
        if isinstance(model.get(place), dict):
            head = model.get('head') if model.get('type') == 'ImageClassifier' else None
            return place, model[place].to_dict(), head and head.to_dict()
    return '', None, None


def shrink(options):
    """Return a backbone's options at our size."""
    small = {key: value for key, value in options.items()
             if key not in ('init_cfg', 'frozen_stages', 'drop_path_rate', 'pretrained')}
    small |= {'arch': dict(ARCH), 'img_size': IMAGE_SIZE, 'patch_size': PATCH_SIZE}
    if 'out_indices' in small and small['out_indices'] != -1:
        small['out_indices'] = [0, DEPTH - 1]
    return small


def write_case(place, options, head, target):
    """Write one config's folder: model.pth, and expected.npz of what MMPretrain computes."""
    import torch
    from mmpretrain.registry import MODELS
    if options['type'] == 'LoRAModel':
        options = {**options, 'module': shrink(options['module'])}
    else:
        options = shrink(options)
    backbone = MODELS.build(options)
    classifier = None
    if head and head['type'] in ('VisionTransformerClsHead', 'DeiTClsHead', 'LinearClsHead'):
        head = {key: head[key] for key in ('type', 'hidden_dim') if key in head}
        classifier = MODELS.build({**head, 'num_classes': CLASSES, 'in_channels': WIDTH})
    parts = torch.nn.ModuleDict({place: backbone, **({'head': classifier} if classifier else {})})
    parts.eval()
    randomize(parts)
    target.mkdir(parents=True, exist_ok=True)
    torch.save({'meta': {'epoch': 1}, 'state_dict': parts.state_dict()}, target / 'model.pth')
    parts.double()
    with torch.no_grad():
        found = compute(backbone, classifier, torch.from_numpy(make_images()))
    np.savez(target / 'expected.npz', **found)


def compute(backbone, classifier, images):
    """Return {logits, features or tokens: ndarray}."""
    if type(backbone).__name__ in ('MAEViT', 'MaskFeatViT', 'MILANViT', 'MFFViT'):
        from mmpretrain.models.backbones import VisionTransformer
        found = VisionTransformer.forward(backbone, images)         # without a mask
    else:
        found = backbone(images)
    if classifier is not None:
        return {'logits': classifier(found).numpy()}
    last = found[-1]
    if isinstance(last, (list, tuple)):
        last = last[-1]
    if last.ndim == 3:
        return {'tokens': last.numpy()}
    return {'features': (last.mean(dim=(2, 3)) if last.ndim == 4 else last).numpy()}
