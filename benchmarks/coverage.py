"""Which plain ViTs of other projects load, and with their numbers: every one, shrunk, random.

    PEERS_PYTHON benchmarks/coverage.py write timm FOLDER           where timm is installed
    PEERS_PYTHON benchmarks/coverage.py write huggingface FOLDER    transformers
    PEERS_PYTHON benchmarks/coverage.py write mmpretrain FOLDER     mmpretrain, mmcv-lite
    python benchmarks/coverage.py read FOLDER                       here
    python benchmarks/coverage.py read FOLDER bare                  without any config.json

`write` makes models of width 64 and depth 2 with random weights, saves them as the peer does, and
beside each what the peer computes from it in float64. `read` builds the model that each file is of,
without a yaml file, and compares. What is refused is listed by reason; anything that loads with
other numbers, and does not say that it had to assume something, ends with exit code 1.
"""

import collections
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.coverage_sizes import HEADS, IMAGE_SIZE, make_images  # noqa: E402

TOLERANCE = 1e-5        # of the greatest number
FILES = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin', 'model.pth')
BAD = ('differs', 'crash', 'other preprocessing')
EVERY = (*BAD, 'differs, and says what it assumed', 'refused')


def write(peer, folder):
    """Write every case of a peer; return the exit code."""
    if peer == 'timm':
        from benchmarks.coverage_timm import write_all
    elif peer == 'huggingface':
        from benchmarks.coverage_huggingface import write_all
    else:
        from benchmarks.coverage_mmpretrain import write_all
    failed = write_all(folder)
    written = len(list(folder.glob('*/expected.npz')))
    print(f'{written} cases written; not to be made: {len(failed)}')
    for name, reason in failed.items():
        print(f'  {name}: {reason}')
    return 0


def read(folder, bare=''):
    """Load every case and compare; return the exit code: 1 if any has other numbers."""
    outcomes = collections.defaultdict(list)
    for path in sorted(path.parent for path in folder.glob('*/expected.npz')):
        outcome, detail = try_case(path, bool(bare))
        outcomes[outcome].append((path.name, detail))
    for outcome in EVERY:
        for name, detail in outcomes[outcome]:
            print(f'{outcome:8s} {name}: {detail}')
    print(', '.join(f'{outcome} {len(names)}' for outcome, names in sorted(outcomes.items())
                    if names))
    return int(any(outcomes[bad] for bad in BAD))


def try_case(path, bare):
    """Return (outcome, detail) of one folder."""
    if bare:
        with tempfile.TemporaryDirectory() as folder:
            for file in path.iterdir():
                if file.name.endswith(('.safetensors', '.bin', '.pth', '.index.json')):
                    os.symlink(file, Path(folder) / file.name)
            return compare(path, Path(folder), bare)
    return compare(path, path, bare)


def compare(path, folder, bare):
    """Load the weights in a folder, and compare with what lies in `path`: (outcome, detail)."""
    from common.errors import UserError
    from common.weights import load_pretrained, open_weights
    from ViT.project import PROJECT

    source = str(next(folder / name for name in FILES if (folder / name).exists()))
    try:
        weights = open_weights(source, PROJECT)
        # The width 64 is nobody's, so it does not tell the heads as published ones do.
        weights.num_heads = weights.num_heads or HEADS
        # Rotary positions do not tell the image size.
        options = {**PROJECT.read_options(weights), 'DATA.IMAGE_SIZE': IMAGE_SIZE}
        channels = options['DATA.IMAGE_CHANNELS']
        if channels != 3:               # no file states the mean of another number of colours
            options |= {key: [0.5] * channels for key in ('DATA.IMAGENET_MEAN',
                                                          'DATA.IMAGENET_STD')}
        model = PROJECT.build_model(PROJECT.get_config(flags=options))
        model.eval()
        report = load_pretrained(model, source)
    except UserError as error:
        return 'refused', str(error).replace(str(folder), '').replace('\n', ' ')[:160]
    except Exception as error:
        return 'crash', f'{type(error).__name__}: {error}'[:160]
    difference = find_difference(model, report, np.load(path / 'expected.npz'))
    # That the size is no known model's is true of all of these, and says nothing of any.
    assumed = [line for line in report.assumed if 'no known model has' not in line]
    if difference and (assumed or report.numerics_unstated):
        return 'differs, and says what it assumed', difference
    if difference:
        return 'differs', difference
    if (path / 'stated.json').exists() and not bare:
        stated = json.loads((path / 'stated.json').read_text())
        ours = {key: report.preprocessing.get(key) for key in stated}
        if ours != stated:
            return 'other preprocessing', f'{ours}, not {stated}'
    return 'equal', ''


def find_difference(model, report, expected):
    """Return in words how a model's numbers differ from the peer's, '' where they do not.

    expected: of logits where the file has a head, else what a head would read, else all tokens.
    """
    import paddle
    images = make_images()[:, :model.input_shape[0]]
    with paddle.no_grad():
        tokens = model.forward_features(paddle.to_tensor(images.astype('float32')))
        found = {'tokens': tokens.numpy(),
                 'features': model.forward_head(tokens, pre_logits=True).numpy(),
                 'logits': model.forward_head(tokens).numpy()}
    names = [name for name in ('logits', 'features', 'tokens') if name in expected and (
        name != 'logits' or 'classifier.weight' in report.loaded)]
    if not names:
        return 'the classifier was not loaded'
    wanted, values = expected[names[0]], found[names[0]]
    if values.shape != wanted.shape:
        return f'{names[0]} of shape {values.shape}, not {wanted.shape}'
    error = np.abs(values - wanted).max() / np.abs(wanted).max()
    return '' if error <= TOLERANCE else f'{names[0]} by {error:.1e}'


if __name__ == '__main__':
    command, *arguments = sys.argv[1:]
    if command == 'write':
        target = Path(arguments[1])
        target.mkdir(parents=True, exist_ok=True)
        sys.exit(write(arguments[0], target))
    sys.exit(read(Path(arguments[0]), *arguments[1:]))
