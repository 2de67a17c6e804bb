"""Which of timm's plain ViTs load, and with timm's numbers: every pretrained tag, shrunk, random.

    PEERS_PYTHON benchmarks/coverage.py write FOLDER      where timm is installed
    python benchmarks/coverage.py read FOLDER             here

`write` makes a model of each tag of vision_transformer.py, deit.py, eva.py and beit.py, of width
64 and depth 2 with random weights, as save_for_hf writes it, and timm's features and logits in
float64. `read` builds the model that each file is of, without a yaml file, and compares. What is
refused is listed by reason; anything that loads with other numbers ends with exit code 1.
"""

import collections
import json
import os
import sys
from pathlib import Path

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

MODULES = ('vision_transformer', 'deit', 'eva', 'beit')
SIZES = {'img_size': 32, 'patch_size': 8, 'embed_dim': 64, 'depth': 2, 'num_heads': 4}
CLASSES = 5
TOLERANCE = 1e-5        # of the greatest number


def make_images():
    generator = np.random.default_rng(0)
    return generator.standard_normal((2, 3, SIZES['img_size'], SIZES['img_size']))


def write(folder):
    """Write every tag's shrunk model, with what timm computes; return the exit code."""
    from benchmarks.torch_setup import prepare_torchvision
    prepare_torchvision()
    import timm
    import torch
    from timm.models._hub import save_for_hf
    from timm.models._registry import _model_to_module

    failed = {}
    for tag in timm.list_models(pretrained=True):
        if _model_to_module.get(tag.split('.')[0]) not in MODULES:
            continue
        torch.manual_seed(0)
        heads = {} if tag_has_no_classes(timm, tag) else {'num_classes': CLASSES}
        try:
            model = timm.create_model(tag, pretrained=False, **SIZES, **heads).eval()
        except Exception as error:      # an architecture that cannot be made so small
            failed[tag] = f'{type(error).__name__}: {error}'[:100]
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter == 1))
            target = folder / tag
            save_for_hf(model, target, model_args={**SIZES, **heads}, safe_serialization=True)
            images = torch.from_numpy(make_images())
            double = model.double()
            tokens = double.forward_features(images)
            np.savez(target / 'expected.npz', logits=double(images).numpy(),
                     features=double.forward_head(tokens, pre_logits=True).numpy())
        (target / 'stated.json').write_text(json.dumps(
            {key: model.pretrained_cfg[key] for key in ('mean', 'std', 'crop_pct',
                                                        'interpolation')}))
    print(f'{len(list(folder.iterdir()))} tags written; not so small: {len(failed)}')
    for tag, reason in failed.items():
        print(f'  {tag}: {reason}')
    return 0


def tag_has_no_classes(timm, tag):
    return not timm.get_pretrained_cfg(tag).num_classes


def read(folder):
    """Load every tag and compare; return the exit code: 1 if any has other numbers."""
    outcomes = collections.defaultdict(list)
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        outcome, detail = try_tag(path)
        outcomes[outcome].append((path.name, detail))
    for outcome in ('differs', 'crash', 'other preprocessing', 'refused'):
        for name, detail in outcomes[outcome]:
            print(f'{outcome:8s} {name}: {detail}')
    print(', '.join(f'{outcome} {len(names)}' for outcome, names in sorted(outcomes.items())))
    return int(any(outcomes[bad] for bad in ('differs', 'crash', 'other preprocessing')))


def try_tag(path):
    """Return (outcome, detail) of one folder."""
    import paddle

    from common.errors import UserError
    from common.weights import load_pretrained, open_weights
    from ViT.project import PROJECT

    source = str(path / 'model.safetensors')
    try:
        weights = open_weights(source, PROJECT)
        # Rotary positions do not tell the image size.
        options = {**PROJECT.read_options(weights), 'DATA.IMAGE_SIZE': SIZES['img_size']}
        model = PROJECT.build_model(PROJECT.get_config(flags=options))
        model.eval()
        report = load_pretrained(model, source)
    except UserError as error:
        return 'refused', str(error).replace(str(path), '').replace('\n', ' ')[:160]
    except Exception as error:
        return 'crash', f'{type(error).__name__}: {error}'[:160]
    expected = np.load(path / 'expected.npz')
    with paddle.no_grad():
        tokens = model.forward_features(paddle.to_tensor(make_images().astype('float32')))
        found = {'features': model.forward_head(tokens, pre_logits=True).numpy()}
        if 'classifier.weight' in report.loaded:
            found = {'logits': model.forward_head(tokens).numpy()}
    for name, values in found.items():
        wanted = expected[name]
        if values.shape != wanted.shape:
            return 'differs', f'{name} of shape {values.shape}, not {wanted.shape}'
        error = np.abs(values - wanted).max() / np.abs(wanted).max()
        if not error <= TOLERANCE:
            return 'differs', f'{name} by {error:.1e}'
    stated = json.loads((path / 'stated.json').read_text())
    ours = {key: report.preprocessing.get(key) for key in stated}
    if ours != stated:
        return 'other preprocessing', f'{ours}, not {stated}'
    return 'equal', ''


if __name__ == '__main__':
    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    sys.exit({'write': write, 'read': read}[sys.argv[1]](target))
