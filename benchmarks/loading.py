"""Full-size check of weight loading against the packages that wrote the files.

    python benchmarks/loading.py --peer-python PATH [--models base large] [--folder DIR]

`--peer-python` is a Python with torch, timm and transformers. It writes ViT-B/16
and ViT-L/16 with random weights in each torch-based format, runs one image and
times its own loading. Then this Python loads the same files. One line a file: the
largest difference of the logits over the largest logit, seconds here and there
(best of three), and peak memory, model included, over the size of the file. The
seconds go from a built model to weights that have each been read once, because
some loaders only map the file; but transformers builds its model anew. Exits with
1 if a limit is missed: 1e-4, twice the peer's seconds, three times the size. Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

SIZES = {'base': (768, 12, 12), 'large': (1024, 24, 16)}        # embed_dim, depth, heads
FORMATS = ('timm.safetensors', 'timm.pth', 'timm_legacy.pth', 'huggingface', 'huggingface.bin')
LIMITS = {'difference': 1e-4, 'time': 2.0, 'memory': 3.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--peer-python', required=True)
    parser.add_argument('--models', nargs='+', choices=SIZES, default=list(SIZES))
    parser.add_argument('--folder', help='for the files; default: a temporary one')
    parser.add_argument('--role', choices=('peer', 'ours'), help=argparse.SUPPRESS)
    parser.add_argument('--format', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        run = run_peer if options.role == 'peer' else run_ours
        print(json.dumps(run(options.models[0], options.format, options.folder)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        misses = [compare(options.peer_python, model, form, folder)
                  for model in options.models for form in FORMATS]
    return int(any(misses))


def compare(peer_python, model, form, folder):
    """Print the line of one file; return True if it misses a limit."""
    peer = start(peer_python, 'peer', model, form, folder)
    ours = start(sys.executable, 'ours', model, form, folder)
    ratios = {'difference': ours['difference'], 'time': ours['seconds'] / peer['seconds'],
              'memory': ours['peak'] / ours['size']}
    print(f'{model:6} {form:18} {ours["size"] / 1e6:7.1f} MB  '
          f'difference {ratios["difference"]:.1e}  '
          f'{ours["seconds"]:.2f} s (peer {peer["seconds"]:.2f})  '
          f'memory {ratios["memory"]:.2f} x', flush=True)
    return any(ratios[name] > limit for name, limit in LIMITS.items())


def start(python, role, model, form, folder):
    done = subprocess.run(
        [python, os.path.abspath(__file__), '--peer-python', python, '--role', role, '--models',
         model, '--format', form, '--folder', folder], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_peer(size, form, folder):
    """Write one file and its expected logits; return the seconds that the peer loads it in."""
    from benchmarks.torch_setup import prepare_torchvision
    prepare_torchvision()
    import torch
    torch.manual_seed(0)
    path = os.path.join(folder, form)
    if form.startswith('timm'):
        model, load = make_timm(size, form, path)
    else:
        model, load = make_hugging_face(size, form, path)
    images = torch.randn(1, 3, 224, 224)
    torch.set_grad_enabled(False)
    logits = model.eval()(images)
    logits = logits if torch.is_tensor(logits) else logits.logits
    np.savez(os.path.join(folder, f'{form}.npz'), images=images.numpy(), logits=logits.numpy())
    return {'seconds': min(measure(load) for _ in range(3))}


def make_timm(size, form, path):
    import timm
    import torch
    from safetensors.torch import save_file
    embed_dim, depth, heads = SIZES[size]

    def build():
        return timm.models.VisionTransformer(embed_dim=embed_dim, depth=depth, num_heads=heads)
    model = build()
    with torch.no_grad():
        model.head.weight.normal_(std=0.02)             # zero as timm initialises it
    if form.endswith('.safetensors'):
        save_file(model.state_dict(), path, {'format': 'pt'})
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization='legacy' not in form)
    target = build()

    def load():
        timm.models.load_checkpoint(target, path)
        return sum(parameter.sum().item() for parameter in target.parameters())
    return model, load


def make_hugging_face(size, form, path):
    import torch
    from transformers import ViTConfig, ViTForImageClassification
    embed_dim, depth, heads = SIZES[size]
    model = ViTForImageClassification(ViTConfig(
        hidden_size=embed_dim, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * embed_dim, num_labels=1000))
    os.makedirs(path, exist_ok=True)
    model.save_pretrained(path)
    if form.endswith('.bin'):       # as transformers 4 wrote it; version 5 writes safetensors only
        from safetensors.torch import load_file
        weights = os.path.join(path, 'model.safetensors')
        torch.save(load_file(weights), os.path.join(path, 'pytorch_model.bin'))
        os.remove(weights)

    def load():
        loaded = ViTForImageClassification.from_pretrained(path)
        return sum(parameter.sum().item() for parameter in loaded.parameters())
    return model, load


def run_ours(size, form, folder):
    """Load a file; return the difference, the seconds, the peak memory and the file's size."""
    from common.machine.environment import tune_cpu
    tune_cpu()
    import paddle

    from common.weights import load_pretrained
    from common.weights.containers import FOLDER_FILES
    from ViT.vit import VisionTransformer
    embed_dim, depth, heads = SIZES[size]
    path = os.path.join(folder, form)
    VisionTransformer(32, 16, embed_dim=32, depth=1, num_heads=1)   # what Paddle sets up once
    before = read_memory('VmRSS')
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')                                             # forget the peak so far
    model = VisionTransformer(embed_dim=embed_dim, depth=depth, num_heads=heads)
    paddle.set_grad_enabled(False)

    def load():
        load_pretrained(model, path)
        return sum(float(parameter.sum()) for parameter in model.parameters())
    seconds = measure(load)
    peak = read_memory('VmHWM') - before
    seconds = min(seconds, measure(load), measure(load))
    expected = np.load(f'{path}.npz')
    model.eval()
    logits = model(paddle.to_tensor(expected['images'])).numpy()
    files = [os.path.join(path, name) for name in FOLDER_FILES] if os.path.isdir(path) else [path]
    return {
        'difference': float(np.abs(logits - expected['logits']).max()
                            / np.abs(expected['logits']).max()),
        'seconds': seconds,
        'peak': peak,
        'size': sum(os.path.getsize(file) for file in files if os.path.exists(file)),
    }


def measure(function):
    start_time = time.perf_counter()
    function()
    return time.perf_counter() - start_time


def read_memory(field):
    """Return a figure of /proc/self/status in bytes."""
    with open('/proc/self/status', encoding='ascii') as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(field))


if __name__ == '__main__':
    sys.exit(main())
