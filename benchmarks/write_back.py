"""Whether transformers and timm read what convert_weights.py writes for them, and compute the same.

    python benchmarks/write_back.py write FOLDER                here
    PEERS_PYTHON benchmarks/write_back.py read FOLDER           where timm and transformers are

`write` converts the tiny checkpoints of tests/fixtures/family, of 60 layouts, -to huggingface and
-to timm. `read` opens each as the package does, with from_pretrained or by timm's own loader, and
compares logits or features in float64 with those of the checkpoint's source. Exit code 1 if any
has other numbers.
"""

import functools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

FIXTURES = Path(ROOT) / 'tests' / 'fixtures' / 'family'
CASES = json.loads((FIXTURES / 'index.json').read_text())['cases']
TOLERANCE = 1e-5        # of the greatest number


def write(folder):
    """Convert every checkpoint for both packages; print what is refused; return the exit code."""
    from common.errors import UserError
    from common.tools import convert_weights
    from ViT.project import PROJECT
    read_weights = convert_weights.read_weights

    def read_with_heads(*arguments, **options):
        """The width 32 is nobody's, so it does not tell the heads as published ones do."""
        weights = read_weights(*arguments, **options)
        weights.num_heads = weights.num_heads or 4
        return weights

    convert_weights.read_weights = read_with_heads
    for name, case in CASES.items():
        for target in ('huggingface', 'timm') if case['expect'] == 'equal' else ():
            output = folder / target / name / 'model.safetensors'
            output.parent.mkdir(parents=True, exist_ok=True)
            try:
                convert_weights.convert(PROJECT, FIXTURES / name / case['path'], output, target,
                                        overwrite=True)
            except UserError as error:
                print(f'refused  {target} {name}: {str(error).replace(ROOT, "")[-120:]}')
    return 0


def read(folder):
    """Open every converted checkpoint as its package does; return the exit code."""
    from benchmarks.torch_setup import prepare_torchvision
    prepare_torchvision()
    counts = {}
    for path in sorted(folder.glob('*/*/model.safetensors')):
        target, name = path.parts[-3:-1]
        open_model = open_with_transformers if target == 'huggingface' else open_with_timm
        found, wanted = open_model(path, CASES[name], np.load(FIXTURES / name / 'expected.npz'))
        same = found.shape == wanted.shape and \
            np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()
        counts[target, same] = counts.get((target, same), 0) + 1
        if not same:
            print(f'differs  {target} {name}')
    print(', '.join(f'{target} {"equal" if same else "differs"} {count}'
                    for (target, same), count in sorted(counts.items())))
    return int(any(not same for _, same in counts))


def make_images(case):
    import torch
    size = case['image_sizes'][0]
    b, c, i, j = np.ogrid[:2, :3, :size, :size]
    images = np.sin(case['seed'] + 1.3 * b + 0.7 * c + 0.9 * i + 0.4 * j)
    images = images + 0.5 * np.cos(0.05 * (i + 1) * (j + 1) * (c + 1) + b)
    return torch.from_numpy(images.astype(np.float32)).double()


def open_with_transformers(path, case, expected):
    """Return (what transformers computes, what the source does)."""
    import torch
    import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = json.loads((path.parent / 'config.json').read_text())
    name = config['architectures'][0]
    model = getattr(transformers, name).from_pretrained(path.parent).eval().double()
    size = case['image_sizes'][0]
    with torch.no_grad():
        output = SimpleNamespace(**model(make_images(case)))
        if 'Classification' in name:
            return output.logits.numpy(), expected[f'logits_{size}']
        wanted = expected[f'features_{size}']
        if 'Projection' in name and f'logits_{size}' in expected:
            return output.image_embeds.numpy(), expected[f'logits_{size}']
        if 'Projection' in name:
            features = model.vision_model(make_images(case)).pooler_output
        elif name in ('SiglipVisionModel', 'CLIPVisionModel'):
            features = output.pooler_output
        elif name == 'IJepaModel':
            features = output.last_hidden_state.mean(dim=1)
        elif case['architecture']['pool'] == 'avg':
            features = output.last_hidden_state[:, 1 + config['num_register_tokens']:].mean(dim=1)
        else:
            features = output.last_hidden_state[:, 0]
    return features.numpy(), wanted


def open_with_timm(path, case, expected):
    """Return (what timm computes, what the source does)."""
    import timm
    import torch
    f, size = case['architecture'], case['image_sizes'][0]
    names = timm.models.load_state_dict(str(path))
    table = names['pos_embed'].shape[1]
    patches = (size // f['patch_size']) ** 2
    kind = timm.models.deit.VisionTransformerDistilled if 'head_dist.weight' in names else \
        timm.models.VisionTransformer
    registers = names['reg_token'].shape[1] if 'reg_token' in names else 0
    options = {} if 'head_dist.weight' in names else {
        'reg_tokens': registers, 'no_embed_class': table == patches,
        'class_token': 'cls_token' in names, 'fc_norm': 'fc_norm.weight' in names,
        'pre_norm': 'norm_pre.weight' in names, 'global_pool': f['pool']}
    act = {'quick': 'quick_gelu', 'tanh': 'gelu_tanh'}.get(f['gelu'], 'gelu')
    model = kind(
        img_size=size, patch_size=f['patch_size'], embed_dim=f['embed_dim'], depth=f['depth'],
        num_heads=f['num_heads'], mlp_ratio=(f['mlp_hidden'] + 0.5) / f['embed_dim'],
        qkv_bias='blocks.0.attn.qkv.bias' in names, act_layer=act,
        num_classes=names['head.weight'].shape[0] if 'head.weight' in names else 0,
        init_values=1e-5 if 'blocks.0.ls1.gamma' in names else None,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=f['layer_norm_eps']), **options)
    model.load_state_dict(names, strict=True)
    model = model.eval().double()
    with torch.no_grad():
        if 'head.weight' in names and f'logits_{size}' in expected:
            return model(make_images(case)).numpy(), expected[f'logits_{size}']
        tokens = model.forward_features(make_images(case))
        return (model.forward_head(tokens, pre_logits=True).numpy(),
                expected[f'features_{size}'])


if __name__ == '__main__':
    sys.exit({'write': write, 'read': read}[sys.argv[1]](Path(sys.argv[2])))
