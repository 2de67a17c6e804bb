"""Transfer of a small ViT to other classes of Fashion-MNIST, here and with timm.

python -m benchmarks.transfer --fashion_mnist DIR --peer_python PEERS/bin/python [--quick]

The model of vit_fashion_mnist.yaml learns five classes (2,000 pictures each) and is fine-tuned on
the five others with 10, 50 and 200 pictures a class, in four ways: all of it, all of it with layer
decay, its classifier alone (linear probe), and from scratch. Accuracy is of 300 other pictures a
class, after the last update. Both sides have the same pictures and recipes. Each (side, seed) is
one line of OUTPUT/transfer.jsonl and is not made again where it is there.
"""

import argparse
import contextlib
import glob
import io
import json
import os
import subprocess
import tempfile
import time

import numpy as np
import yaml
from PIL import Image

from benchmarks.accuracy import (
    ROOT,
    SIDES,
    add_options,
    compare,
    describe,
    describe_commit,
    read_final_accuracy,
    read_results,
)
from benchmarks.contest import describe_machine, print_table
from common.config import dump_config
from common.data.idx import load_idx
from common.run.launch import run_single
from common.weights.registry import find_in_run
from ViT.project import PROJECT

RESULTS = 'transfer.jsonl'
KNOWN, NEW = (0, 2, 4, 5, 7), (1, 3, 6, 8, 9)   # of either: tops and shoes
TESTED = 300                                    # pictures a class
PRETRAINING = 'pretraining'
COUNTS = (10, 50, 200)                          # training pictures a class
SETS = {PRETRAINING: (KNOWN, 2000), **{str(count): (NEW, count) for count in COUNTS}}
CFG = f'{ROOT}/ViT/configs/vit_fashion_mnist.yaml'
SHARED = {'DATA.DATASET': 'imagefolder', 'MODEL.NUM_CLASSES': 5, 'VALIDATE_FREQ': 1000,
          'SAVE_FREQ': 1000, 'KEEP': 0}
LONG = {'TRAIN.NUM_STEPS': 600, 'TRAIN.WARMUP_STEPS': 60}
SHORT = {'DATA.BATCH_SIZE': 50, 'TRAIN.NUM_STEPS': 200, 'TRAIN.WARMUP_STEPS': 20,
         'TRAIN.BASE_LR': 5e-4}
TUNING = SHORT | {'MODEL.PRETRAINED': PRETRAINING, 'MODEL.HEAD_INIT': 'trunc_normal'}
WAYS = {
    'full': TUNING,
    'layer decay': TUNING | {'TRAIN.LAYER_DECAY': 0.65},
    'linear probe': TUNING | {'MODEL.FREEZE': 'backbone', 'TRAIN.BASE_LR': 1e-2,
                              'TRAIN.WEIGHT_DECAY': 0.0},
    'from scratch': SHORT,
}


def list_recipes() -> dict[str, tuple[str, dict]]:
    """Return {name: (set, {key: value})}, the pretraining first."""
    return {PRETRAINING: (PRETRAINING, SHARED | LONG)} | {
        f'{count} {way}': (str(count), SHARED | options)
        for count in COUNTS for way, options in WAYS.items()}


def choose_pictures(data_path: str) -> dict[str, np.ndarray]:
    """Return {SET_PART_images, SET_PART_labels}, labels from 0 to 4; parts are train and val."""
    arrays = {}
    for is_train, part in ((True, 'train'), (False, 'val')):
        images, labels, _ = load_idx('fashion_mnist', data_path, is_train)
        for name, (classes, count) in SETS.items():
            chosen = [np.flatnonzero(labels == label)[:count if is_train else TESTED]
                      for label in classes]
            arrays[f'{name}_{part}_images'] = images[np.concatenate(chosen)]
            arrays[f'{name}_{part}_labels'] = np.repeat(np.arange(5), [len(c) for c in chosen])
    return arrays


def write_folders(arrays: dict[str, np.ndarray], folder: str) -> None:
    """Write the sets as FOLDER/SET/PART/CLASS/N.png, classes by their numbers in Fashion-MNIST."""
    for name, (classes, _) in SETS.items():
        for part in ('train', 'val'):
            images, labels = arrays[f'{name}_{part}_images'], arrays[f'{name}_{part}_labels']
            for label in classes:
                os.makedirs(f'{folder}/{name}/{part}/{label}')
            for number, (image, label) in enumerate(zip(images, labels)):
                Image.fromarray(image).save(
                    f'{folder}/{name}/{part}/{classes[label]}/{number}.png')


def run_ours(seed: int, scratch: str) -> dict[str, float]:
    """Return {recipe: accuracy in percent}. scratch: the folder of write_folders' sets."""
    found = {}
    for name, (pictures, options) in list_recipes().items():
        options = dict(options)
        if 'MODEL.PRETRAINED' in options:
            options['MODEL.PRETRAINED'] = find_in_run(f'{scratch}/{seed}/{PRETRAINING}')
        output = f'{scratch}/{seed}/{name}'
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            code = run_single(PROJECT, [
                f'-cfg={CFG}', f'-data_path={scratch}/{pictures}', f'-output={output}',
                f'-seed={seed}', '-device=cpu', '-num_workers=0', '-opts',
                *(str(item) for pair in options.items() for item in pair)])
        if code:
            raise SystemExit(text.getvalue())
        metrics, = glob.glob(f'{output}/train-*/metrics.jsonl')
        found[name] = read_final_accuracy(metrics)['model']
        print(f'ours, seed {seed}, {name}: {found[name]:.2f}', flush=True)
    return found


def run_peer(seed: int, arrays: dict[str, np.ndarray], scratch: str, python: str
             ) -> dict[str, float]:
    """Return the same of the peer."""
    recipes = {}
    for name, (pictures, options) in list_recipes().items():
        config = PROJECT.get_config(CFG, options | {'DATA.DATA_PATH': pictures})
        recipes[name] = yaml.safe_load(dump_config(config))
    with open(f'{scratch}/recipes.json', 'w', encoding='utf-8') as file:
        json.dump(recipes, file)
    np.savez(f'{scratch}/pictures.npz', **arrays)
    output = subprocess.run(
        [python, os.path.join(ROOT, 'benchmarks', 'transfer_peer.py'), f'{scratch}/recipes.json',
         f'{scratch}/pictures.npz', str(seed)], stdout=subprocess.PIPE, text=True, check=True)
    lines = [json.loads(line) for line in output.stdout.splitlines() if line.startswith('{')]
    return {line['way']: line['acc1'] for line in lines}


def make_rows(results: list[dict]) -> list[tuple]:
    """Return the table's rows, from the lines of the results."""
    rows = []
    for name in list_recipes():
        values = {side: [line['acc1'][name] for line in results if line['side'] == side]
                  for side in SIDES}
        if all(values.values()):
            difference, half = compare(values['ours'], values['peer'])
            rows.append((name, *(describe(values[side]) for side in SIDES), f'{difference:+.2f}',
                         f'{difference - half:+.2f} to {difference + half:+.2f}'
                         if half == half else ''))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_options(parser)
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    seeds = 0 if options.report else 1 if options.quick else options.seeds
    with tempfile.TemporaryDirectory() as scratch:
        if seeds:
            arrays = choose_pictures(options.fashion_mnist)
            write_folders(arrays, scratch)
        for seed in range(seeds):
            for side in [options.side] if options.side else SIDES:
                if any((line['side'], line['seed']) == (side, seed)
                       for line in read_results(options.output, RESULTS)):
                    continue
                started = time.perf_counter()
                found = run_ours(seed, scratch) if side == 'ours' else \
                    run_peer(seed, arrays, scratch, options.peer_python)
                line = {'side': side, 'seed': seed, 'acc1': found,
                        'seconds': round(time.perf_counter() - started),
                        'commit': describe_commit(), 'machine': describe_machine()}
                with open(os.path.join(options.output, RESULTS), 'a', encoding='utf-8') as file:
                    file.write(json.dumps(line) + '\n')
    print_table(('pictures a class, way', *SIDES, 'difference', '95 % interval'),
                make_rows(read_results(options.output, RESULTS)))


if __name__ == '__main__':
    main()
