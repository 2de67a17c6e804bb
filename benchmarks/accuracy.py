"""Accuracy on Fashion-MNIST after the same recipe here and with the peers' own code.

python -m benchmarks.accuracy --fashion_mnist DIR --peer_python PEERS/bin/python [--quick]

Every recipe is trained here by its main script, and by accuracy_peer.py with timm (T2T-ViT: with
the official code, a checkout of which the variable T2T_VIT names), with several seeds: seed 0 of
everything, then seed 1. Each run is a line of OUTPUT/results.jsonl; a run whose line is there is
not made again, so that the benchmark goes on where it was stopped, and two of them, with
--side ours and --side peer, may work on one OUTPUT at once. Prints the table at the end; --report
prints it from what is there.
"""

import argparse
import glob
import importlib
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import yaml

from benchmarks.contest import describe_machine, print_table
from common.config import dump_config
from common.data.idx import load_idx

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = 'results.jsonl'
SIDES = ('ours', 'peer')
RECIPES = {             # name of the yaml file: directory
    'vit_fashion_mnist': 'ViT',
    't2t_vit_fashion_mnist': 'T2T_ViT',
    'vit_fashion_mnist_augmented': 'ViT',
    't2t_vit_fashion_mnist_augmented': 'T2T_ViT',
    'vit_fashion_mnist_long': 'ViT',
}
DEFAULT = ','.join(name for name in RECIPES if not name.endswith('_long'))
# 97.5 % quantiles of Student's t, by degrees of freedom; beyond 30 nearly the normal law's.
STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
           2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064,
           2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
HEAD = ('recipe', 'weights', 'seeds', 'ours', 'peer', 'difference', '95 % interval',
        'processor minutes a run, ours / peer')


def read_recipe(name: str) -> dict:
    """Return a recipe's whole config as a dict."""
    folder = RECIPES[name]
    module = importlib.import_module(f'{folder}.config')
    return yaml.safe_load(dump_config(module.get_config(
        os.path.join(ROOT, folder, 'configs', f'{name}.yaml'))))


def write_pictures(data_path: str, output: str) -> str:
    """Write Fashion-MNIST for the peer, OUTPUT/pictures.npz; return its path."""
    path = os.path.join(output, 'pictures.npz')
    if not os.path.exists(path):
        arrays = {}
        for part, is_train in (('train', True), ('val', False)):
            images, labels, _ = load_idx('fashion_mnist', data_path, is_train)
            arrays |= {f'{part}_images': images, f'{part}_labels': labels}
        np.savez(f'{path}.{os.getpid()}.npz', **arrays)
        os.replace(f'{path}.{os.getpid()}.npz', path)
    return path


def make_command(name: str, side: str, seed: int, folder: str, options: argparse.Namespace
                 ) -> list[str]:
    """Return the command of one run, which leaves metrics.jsonl in `folder` or below it."""
    if side == 'ours':
        command = [sys.executable, os.path.join(ROOT, RECIPES[name], 'main_single_gpu.py'),
                   f'-cfg={ROOT}/{RECIPES[name]}/configs/{name}.yaml', f'-seed={seed}',
                   f'-output={folder}', '-device=cpu', '-num_workers=0']
        path = options.fashion_mnist
        return [*command, f'-data_path={os.path.abspath(path)}'] if path else command
    recipe = os.path.join(folder, 'recipe.json')
    with open(recipe, 'w', encoding='utf-8') as file:
        json.dump(read_recipe(name), file)
    return [options.peer_python, os.path.join(ROOT, 'benchmarks', 'accuracy_peer.py'), recipe,
            write_pictures(options.fashion_mnist, options.output), str(seed),
            os.path.join(folder, 'metrics.jsonl')]


def run(name: str, side: str, seed: int, options: argparse.Namespace) -> dict:
    """Train once; return the line of the results. Raises SystemExit with the run's last words."""
    folder = os.path.join(options.output, f'{name}-{side}-{seed}-{os.getpid()}')
    os.makedirs(folder)
    command = make_command(name, side, seed, folder, options)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(os.path.join(folder, 'output.txt'), 'w+', encoding='utf-8') as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        log.seek(0)
        if code:
            sys.exit(f'{" ".join(command)}: exit code {code}\n{log.read()[-2000:]}')
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    metrics, = glob.glob(os.path.join(folder, '**', 'metrics.jsonl'), recursive=True)
    accuracy = read_final_accuracy(metrics)
    return {'recipe': name, 'side': side, 'seed': seed, **accuracy,
            'seconds': round(time.perf_counter() - started),
            'processor_seconds': round(after.ru_utime + after.ru_stime
                                       - before.ru_utime - before.ru_stime),
            'metrics': os.path.relpath(metrics, options.output), 'commit': describe_commit(),
            'machine': describe_machine(), 'python': platform.python_version()}


def read_final_accuracy(metrics: str) -> dict[str, float]:
    """Return {'model': acc1 in percent, and 'ema' where weights are averaged} after the run."""
    with open(metrics, encoding='utf-8') as file:
        events = [json.loads(line) for line in file]
    return {event['weights']: event['acc1'] for event in events if event['event'] == 'eval'}


def describe_commit() -> str:
    """Return the commit of this checkout, with a + where files differ from it."""
    git = ['git', '-C', ROOT]
    try:
        commit = subprocess.check_output([*git, 'rev-parse', '--short', 'HEAD'], text=True).strip()
        changed = subprocess.check_output([*git, 'status', '--porcelain'], text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return commit + '+' * bool(changed)


def read_results(output: str, name: str = RESULTS) -> list[dict]:
    """Return the lines of OUTPUT/NAME; none where there is no file."""
    path = os.path.join(output, name)
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8') as file:
        return [json.loads(line) for line in file]


def compare(ours: list[float], peer: list[float]) -> tuple[float, float]:
    """Return (difference of the means, half its 95 % interval) by Student's t, pooled variance.

    The half is NaN where a side has one value.
    """
    difference = statistics.mean(ours) - statistics.mean(peer)
    freedom = len(ours) + len(peer) - 2
    if min(len(ours), len(peer)) < 2:
        return difference, math.nan
    pooled = sum(statistics.variance(values) * (len(values) - 1)
                 for values in (ours, peer)) / freedom
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96
    return difference, quantile * math.sqrt(pooled * (1 / len(ours) + 1 / len(peer)))


def describe(values: list[float]) -> str:
    """Return "87.12 ± 0.20", mean and standard deviation, or the one value."""
    if len(values) < 2:
        return f'{values[0]:.2f}'
    return f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}'


def make_rows(results: list[dict]) -> list[tuple]:
    """Return the table's rows: of each recipe the last weights, and the averaged ones."""
    rows = []
    for name in RECIPES:
        runs = {side: [line for line in results if line['recipe'] == name and line['side'] == side]
                for side in SIDES}
        for weights in ('model', 'ema'):
            values = {side: [line[weights] for line in runs[side] if weights in line]
                      for side in SIDES}
            if not all(values.values()):
                continue
            difference, half = compare(values['ours'], values['peer'])
            minutes = [statistics.mean(line['processor_seconds'] for line in runs[side]) / 60
                       for side in SIDES]
            interval = '' if math.isnan(half) else \
                f'{difference - half:+.2f} to {difference + half:+.2f}'
            rows.append((name, {'model': 'last', 'ema': 'averaged'}[weights],
                         ' / '.join(str(len(values[side])) for side in SIDES),
                         *(describe(values[side]) for side in SIDES), f'{difference:+.2f}',
                         interval, ' / '.join(f'{value:.1f}' for value in minutes)))
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every comparison of trainings with a peer is asked."""
    parser.add_argument('--fashion_mnist', default='', metavar='DIR',
                        help='folder of its IDX files (default: downloaded)')
    parser.add_argument('--peer_python', default=sys.executable,
                        help='the Python that has benchmarks/requirements.txt')
    parser.add_argument('--output', default='output/accuracy', help='folder for runs and results')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--quick', action='store_true', help='one seed')
    parser.add_argument('--side', choices=SIDES, help='one side alone')
    parser.add_argument('--report', action='store_true', help='print the table and train nothing')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_options(parser)
    parser.add_argument('--recipes', default=DEFAULT, help='with commas, of ' + ', '.join(RECIPES))
    options = parser.parse_args()
    os.makedirs(options.output, exist_ok=True)
    sides = [options.side] if options.side else SIDES
    seeds = 0 if options.report else 1 if options.quick else options.seeds
    for seed in range(seeds):
        for name in options.recipes.split(','):
            for side in sides:
                if any((line['recipe'], line['side'], line['seed']) == (name, side, seed)
                       for line in read_results(options.output)):
                    continue
                line = run(name, side, seed, options)
                with open(os.path.join(options.output, RESULTS), 'a',
                          encoding='utf-8') as file:
                    file.write(json.dumps(line) + '\n')
                print(f'{name}, {side}, seed {seed}: {line["model"]:.2f} %, '
                      f'{line["seconds"]} s', flush=True)
    print_table(HEAD, make_rows(read_results(options.output)))


if __name__ == '__main__':
    main()
