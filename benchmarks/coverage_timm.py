"""Every pretrained tag of timm's plain ViTs, for benchmarks/coverage.py."""

import json

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

MODULES = ('vision_transformer', 'deit', 'eva', 'beit')
SIZES = {'img_size': IMAGE_SIZE, 'patch_size': PATCH_SIZE, 'embed_dim': WIDTH, 'depth': DEPTH,
         'num_heads': HEADS}


def write_all(folder):
    """Write every tag's shrunk model, with what timm computes; return {tag: why it was not}."""
    from benchmarks.torch_setup import prepare_torchvision
    prepare_torchvision()
    import timm
    from timm.models._registry import _model_to_module

    failed = {tag: attempt(write_tag, timm, tag, folder / tag)
              for tag in timm.list_models(pretrained=True)
              if _model_to_module.get(tag.split('.')[0]) in MODULES}
    return {tag: reason for tag, reason in failed.items() if reason}


def write_tag(timm, tag, target):
    """Write one tag's folder as save_for_hf does, with expected.npz and stated.json."""
    import torch
    from timm.models._hub import save_for_hf
    heads = {'num_classes': CLASSES} if timm.get_pretrained_cfg(tag).num_classes else {}
    model = timm.create_model(tag, pretrained=False, **SIZES, **heads).eval()
    randomize(model)
    save_for_hf(model, target, model_args={**SIZES, **heads}, safe_serialization=True)
    with torch.no_grad():
        images = torch.from_numpy(make_images())
        double = model.double()
        tokens = double.forward_features(images)
        features = double.forward_head(tokens, pre_logits=True)
        expected = {'features': features.numpy()}
        if heads:
            expected['logits'] = double(images).numpy()
        np.savez(target / 'expected.npz', **expected)
    (target / 'stated.json').write_text(json.dumps(
        {key: model.pretrained_cfg[key] for key in ('mean', 'std', 'crop_pct', 'interpolation')}))
