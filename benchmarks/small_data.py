"""finetune.py's defaults on small sets of pictures, against a linear probe and from scratch.

python -m benchmarks.small_data [--fashion_mnist DIR] [--output DIR] [--draws N] [--only 'NAME;...']

Each draw takes by lot five classes of Fashion-MNIST that the weights are to know: the small model
of the command without weights is trained on 1,000 pictures of each. The sets are of the other
five classes, and of digits; which class has how many pictures, and which pictures these are, is by
lot too. The accuracy is the mean over the classes, on pictures that no run has seen. "finetune" is
the command without a flag but the weights; the probe is a logistic regression on the weights'
features of the same training pictures; "scratch" the command without weights. What is measured
stands in DIR/results.jsonl and is not measured again. About 10 minutes of one core a draw.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from ViT.project import PROJECT

# isort: split
from common.data.digits import load_digits_rgb
from common.data.idx import load_idx
from common.data.survey import survey_folder
from common.deploy.features import build_extractor, classify_by_regression
from common.deploy.predict import make_dynamic_predictor
from common.deploy.trained import Trained, load_trained
from common.run import finetune
from common.run.side_matter import append_line, end_line
from common.weights.registry import find_in_run

SEED = 2027                     # of the lots: those of draw 0 made unequal classes be learnt longer
KNOWN = 5                       # classes that the weights are trained on
PRETRAINING = 1000, 600         # pictures a class, updates
TESTED = 200                    # pictures a class, at most
WAYS = ('finetune', 'probe', 'scratch')
# {name: (source, pictures of each class)}; a fifth of them is held back by finetune.py.
SETS = {
    'clothing, 5 classes, 10 each': ('fashion', [10] * 5),
    'clothing, 5 classes, 50 each': ('fashion', [50] * 5),
    'clothing, 100, 50, 20, 10 and 6': ('fashion', [100, 50, 20, 10, 6]),
    'clothing, 72, 25 and 6': ('fashion', [72, 25, 6]),
    'clothing, two classes, 30 each': ('fashion', [30, 30]),
    'clothing, 50, 50 and 1 picture': ('fashion', [50, 50, 1]),
    'digits, 10 classes, 20 each': ('digits', [20] * 10),
    'digits, 72, 25 and 6': ('digits', [72, 25, 6]),
    'clothing, 5 classes, 200 each': ('fashion', [200] * 5),
}


class Draw(NamedTuple):
    """What one draw takes by lot. rng: for the pictures. known, new: classes of Fashion-MNIST."""

    rng: np.random.Generator
    known: list[int]
    new: list[int]


def draw_lots(number: int, name: str = '') -> Draw:
    """Return draw `number` of a set, which does not depend on what was measured before."""
    classes = np.random.default_rng([SEED, number]).permutation(10).tolist()
    rng = np.random.default_rng([SEED, number, *name.encode()])
    return Draw(rng, classes[:KNOWN], classes[KNOWN:])


def load_sources(fashion_mnist: str) -> dict[str, tuple]:
    """Return {source: ((images, labels) to learn from, (images, labels) to test)}."""
    digits, labels = load_digits_rgb()
    order = np.random.default_rng(0).permutation(len(digits))
    half = len(order) // 2
    return {'digits': tuple((digits[part], labels[part]) for part in (order[:half], order[half:])),
            'fashion': tuple(load_idx('fashion_mnist', fashion_mnist, is_train)[:2]
                             for is_train in (True, False))}


def write_folders(folder: str, images: np.ndarray, labels: np.ndarray, counts: dict[int, int],
                  rng: np.random.Generator) -> str:
    """Write pictures of each class as folder/CLASS/N.png, by lot; return the folder."""
    for label, count in counts.items():
        os.makedirs(os.path.join(folder, f'class {label}'))
        chosen = rng.permutation(np.flatnonzero(labels == label))[:count]
        for number, index in enumerate(chosen):
            Image.fromarray(images[index]).convert('RGB').save(
                os.path.join(folder, f'class {label}', f'{number}.png'))
    return folder


def tune(folder: str, output: str, *arguments: str) -> Trained:
    """Run finetune.py; return its best model. Raises SystemExit with what it printed."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        code = finetune.main(PROJECT, [folder, f'-output={output}', '-num_workers=0',
                                       '-device=cpu', *arguments])
    if code:
        raise SystemExit(text.getvalue())
    return open_model(find_in_run(output))


def open_model(path: str) -> Trained:
    """Return the model of a checkpoint."""
    return load_trained(PROJECT, Namespace(
        pretrained=path, cfg=None, labels=None, opts=[], image_size=None, num_classes=None,
        device='cpu'))


def compute(trained: Trained, predict, pictures: list[Image.Image]) -> np.ndarray:
    """Return predict(images) of pictures, 64 at a time."""
    prepare = trained.preprocessing
    return np.concatenate([predict(prepare.normalize(
        [prepare.crop(picture) for picture in pictures[first:first + 64]]))
        for first in range(0, len(pictures), 64)])


def average_classes(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over the classes of the accuracy, in percent."""
    return 100 * float(np.mean([(found[truth == label] == label).mean()
                                for label in np.unique(truth)]))


def measure_set(weights: str, source: tuple, counts: dict[int, int], draw: Draw, scratch: str
                ) -> dict[str, float]:
    """Return {way: accuracy} of one set. weights: checkpoint. scratch: an empty folder."""
    (images, labels), (test_images, test_labels) = source
    folder = write_folders(os.path.join(scratch, 'pictures'), images, labels, counts, draw.rng)
    chosen = np.concatenate([np.flatnonzero(test_labels == label)[:TESTED] for label in counts])
    pictures = [Image.fromarray(test_images[index]).convert('RGB') for index in chosen]
    names = {f'class {label}': label for label in counts}
    truth = test_labels[chosen]

    def test(trained):
        logits = compute(trained, make_dynamic_predictor(trained.model), pictures)
        order = np.array([names[name] for name in trained.preprocessing.class_names])
        return average_classes(order[logits.argmax(axis=1)], truth)

    results = {'finetune': test(tune(folder, f'{scratch}/tuned', f'-pretrained={weights}'))}
    backbone = open_model(weights)
    extract = build_extractor(PROJECT, backbone.model)
    survey = survey_folder(folder, finetune.VAL_FRACTION)
    learnt = [picture for picture in survey.pictures if picture.is_train]
    features = compute(backbone, extract, [Image.open(os.path.join(folder, picture.path))
                                           for picture in learnt])
    found = classify_by_regression(features, np.array([picture.label for picture in learnt]),
                                   compute(backbone, extract, pictures))
    order = np.array([names[name] for name in survey.class_names])
    results['probe'] = average_classes(order[found], truth)
    results['scratch'] = test(tune(folder, f'{scratch}/scratch'))
    return results


def train_weights(number: int, source: tuple, output: str) -> str:
    """Return the checkpoint that knows a draw's classes, trained unless it is there."""
    folder = os.path.join(output, f'weights-{number}')
    weights = find_in_run(folder) if os.path.isdir(f'{folder}-done') else None
    if weights is None:
        count, updates = PRETRAINING
        draw = draw_lots(number)
        with tempfile.TemporaryDirectory() as scratch:
            pictures = write_folders(f'{scratch}/known', *source[0], dict.fromkeys(
                draw.known, count), draw.rng)
            tune(pictures, folder, '-opts', 'TRAIN.NUM_STEPS', str(updates))
        os.makedirs(f'{folder}-done')
        weights = find_in_run(folder)
    return weights


def measure(number: int, name: str, sources: dict[str, tuple], output: str) -> dict:
    """Return {'draw', 'set', 'classes', and each way's accuracy} of a set in a draw."""
    source, pictures = SETS[name]
    draw = draw_lots(number, name)
    classes = draw.new if source == 'fashion' else list(range(10))
    counts = dict(zip(draw.rng.permutation(classes).tolist(), pictures))
    weights = train_weights(number, sources['fashion'], output)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure_set(weights, sources[source], counts, draw, scratch)
    return {'draw': number, 'set': name, 'classes': list(counts), **found}


def read_results(path: str) -> list[dict]:
    """Return what has been measured, line by line; a line that was cut short is left out."""
    results = []
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    results.append(json.loads(line))
    return results


def format_table(results: Sequence[dict]) -> str:
    """Return the table of docs/accuracy.md: means over the draws, and the lowest of each."""
    lines = ['| set | draws | finetune | linear probe | from scratch | finetune - the better |',
             '|---|---|---|---|---|---|']
    for name in SETS:
        rows = np.array([[result[way] for way in WAYS] for result in results
                         if result['set'] == name])
        if len(rows):
            means = rows.mean(axis=0)
            cells = [f'{mean:.1f} ({low:.1f} to {high:.1f})' for mean, low, high in
                     zip(means, rows.min(axis=0), rows.max(axis=0))]
            lines.append(f'| {name} | {len(rows)} | {" | ".join(cells)} | '
                         f'{means[0] - means[1:].max():+.1f} |')
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--fashion_mnist', default='', metavar='DIR',
                        help='folder of its IDX files (default: downloaded)')
    parser.add_argument('--output', default='output/small_data', metavar='DIR',
                        help='folder of weights and results (default: output/small_data)')
    parser.add_argument('--draws', type=int, default=1, help='default: 1')
    parser.add_argument('--only', default='', help='parts of names of sets, with semicolons')
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    path = os.path.join(options.output, 'results.jsonl')
    sources = load_sources(options.fashion_mnist)
    for number in range(options.draws):
        for name in SETS:
            is_done = any((result['draw'], result['set']) == (number, name)
                          for result in read_results(path))
            if not is_done and any(part in name for part in options.only.split(';')):
                result = measure(number, name, sources, options.output)
                with open(path, 'ab+', buffering=0) as file:
                    end_line(file)
                    append_line(file, json.dumps(result).encode() + b'\n')
                print(result, flush=True)
    print(format_table(read_results(path)))


if __name__ == '__main__':
    main()
