"""finetune.py's defaults on small sets of pictures, against a linear probe and from scratch.

python -m benchmarks.small_data [--fashion_mnist DIR] [--only NAME,...] [-opts KEY VALUE ...]

The small model of the command without weights is trained on the classes 0 to 4 of Fashion-MNIST;
each set is of other pictures. The
accuracy is the mean over the classes, on pictures that no run has seen. "finetune" is the command
without a flag but the weights; the probe is a logistic regression on the weights' features of the
same training pictures; "scratch" the command without weights.
About 12 minutes of one core (estimated from its parts).
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from argparse import Namespace

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
from common.weights.registry import find_in_run

KNOWN, NEW = range(5), range(5, 10)
PRETRAINING = 1000, 1500        # pictures a class, updates
TESTED = 300                    # pictures a class, at most
# {name: (source, {class: training pictures})}; a fifth of them is held back by finetune.py.
SETS = {
    'fashion, 5 new classes, 10 each': ('fashion', dict.fromkeys(NEW, 10)),
    'fashion, 5 new classes, 50 each': ('fashion', dict.fromkeys(NEW, 50)),
    'fashion, 5 new classes, 200 each': ('fashion', dict.fromkeys(NEW, 200)),
    'fashion, 200, 100, 40, 15 and 6': ('fashion', dict(zip(NEW, (200, 100, 40, 15, 6)))),
    'fashion, two classes, 30 each': ('fashion', {7: 30, 9: 30}),
    'fashion, 50, 50 and 1 picture': ('fashion', {5: 50, 8: 50, 9: 1}),
    'digits, 10 classes, 40 each': ('digits', dict.fromkeys(range(10), 40)),
}


def load_sources(fashion_mnist: str) -> dict[str, tuple]:
    """Return {source: ((images, labels) to learn from, (images, labels) to test)}."""
    digits, labels = load_digits_rgb()
    order = np.random.default_rng(0).permutation(len(digits))
    half = len(order) // 2
    return {'digits': tuple((digits[part], labels[part]) for part in (order[:half], order[half:])),
            'fashion': tuple(load_idx('fashion_mnist', fashion_mnist, is_train)[:2]
                             for is_train in (True, False))}


def write_folders(folder: str, images: np.ndarray, labels: np.ndarray, counts: dict[int, int]
                  ) -> str:
    """Write the first pictures of each class as folder/CLASS/N.png; return the folder."""
    for label, count in counts.items():
        os.makedirs(os.path.join(folder, f'class {label}'))
        for number, index in enumerate(np.flatnonzero(labels == label)[:count]):
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


def measure_set(weights: str, source: tuple, counts: dict[int, int], scratch: str,
                opts: list[str]) -> dict[str, float]:
    """Return {way: accuracy} of one set. weights: checkpoint. scratch: an empty folder."""
    (images, labels), (test_images, test_labels) = source
    folder = write_folders(os.path.join(scratch, 'pictures'), images, labels, counts)
    chosen = np.concatenate([np.flatnonzero(test_labels == label)[:TESTED] for label in counts])
    pictures = [Image.fromarray(test_images[index]).convert('RGB') for index in chosen]
    names = {f'class {label}': label for label in counts}
    truth = test_labels[chosen]

    def test(trained):
        logits = compute(trained, make_dynamic_predictor(trained.model), pictures)
        order = np.array([names[name] for name in trained.preprocessing.class_names])
        return average_classes(order[logits.argmax(axis=1)], truth)

    results = {'finetune': test(tune(folder, f'{scratch}/tuned', f'-pretrained={weights}',
                                     '-opts', *opts))}
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
    results['scratch'] = test(tune(folder, f'{scratch}/scratch', '-opts', *opts))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--fashion_mnist', default='', metavar='DIR',
                        help='folder of its IDX files (default: downloaded)')
    parser.add_argument('--weights', help='checkpoint to begin from, in place of training one')
    parser.add_argument('--keep', help='folder for the trained weights')
    parser.add_argument('--only', default='', help='parts of names of sets, with commas')
    parser.add_argument('-opts', nargs='*', default=[], help='options for every run')
    options = parser.parse_args()
    sources = load_sources(options.fashion_mnist)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        weights = options.weights
        if weights is None:
            count, updates = PRETRAINING
            folder = write_folders(f'{scratch}/known', *sources['fashion'][0],
                                   dict.fromkeys(KNOWN, count))
            keep = options.keep or f'{scratch}/weights'
            tune(folder, keep, '-opts', 'TRAIN.NUM_STEPS', str(updates))
            weights = find_in_run(keep)
        print('| set | finetune | linear probe | from scratch | finetune - the better |')
        print('|---|---|---|---|---|')
        for number, (name, (source, counts)) in enumerate(SETS.items()):
            if any(part in name for part in options.only.split(',')):
                found = measure_set(weights, sources[source], counts, f'{scratch}/{number}',
                                    options.opts)
                margin = found['finetune'] - max(found['probe'], found['scratch'])
                print(f'| {name} | {found["finetune"]:.1f} | {found["probe"]:.1f} | '
                      f'{found["scratch"]:.1f} | {margin:+.1f} |', flush=True)
    print(f'\n{time.perf_counter() - started:.0f} s, {time.process_time():.0f} s of the processor')


if __name__ == '__main__':
    main()
