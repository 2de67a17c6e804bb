"""Start-up: seconds from the command to the first update, ViT-Ti/16, against timm.

python -m benchmarks.startup [--timm_train PATH/train.py] [--peer_python PATH] [--repetitions 5]

Both train from scratch on the same folder of JPEGs, batch 8, two workers, on the CPU, and are
stopped at the first line of progress. The peer is timm_start.py, the least that a script on
timm's library does; --timm_train names timm's own train.py in a checkout of its repository.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.contest import describe_machine, print_table
from benchmarks.rows import HEAD, add_options

ROOT = Path(__file__).resolve().parents[1]
TITLE = 'start-up to the first update, ViT-Ti/16'


def write_images(folder, count=64, validation=None):
    """Write JPEGs of 500 x 375 pixels, two classes: `count` as train/, and as many or
    `validation` as val/."""
    generator = np.random.default_rng(0)
    for part, images in (('train', count), ('val', validation or count)):
        for number in range(images):
            path = Path(folder, part, f'class{number % 2}', f'{number}.jpg')
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(generator.integers(0, 256, (30, 40, 3), 'uint8'))
            small.resize((500, 375)).save(path, quality=90)


def wait_for(command, sign, folder):
    """Return the seconds until a command prints a line with `sign`; then end it."""
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, start_new_session=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if sign in line:
                return time.perf_counter() - started
        raise RuntimeError(''.join(lines[-3:]) or 'no output')
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def measure(options):
    """Return the table's row; the ratio is our time over the peer's."""
    with tempfile.TemporaryDirectory() as data:
        write_images(data)
        mine = [sys.executable, 'main_single_gpu.py', '-cfg=configs/vit_tiny_patch16_224.yaml',
                '-dataset=imagefolder', f'-data_path={data}', '-num_classes=2', '-device=cpu',
                '-batch_size=8', '-num_workers=2', f'-output={data}/output',
                '-opts', 'REPORT_FREQ', '1']
        if options.timm_train:
            other = [options.peer_python, options.timm_train, data,
                     '--model', 'vit_tiny_patch16_224', '--num-classes', '2', '--device', 'cpu',
                     '-b', '8', '-j', '2', '--opt', 'adamw', '--log-interval', '1',
                     '--output', f'{data}/timm']
        else:
            other = [options.peer_python, str(ROOT / 'benchmarks/timm_start.py'), data]
        seconds = {'ours': [], 'timm': []}
        try:
            for _ in range(options.repetitions):
                seconds['ours'].append(wait_for(mine, ', update 1/', ROOT / 'ViT'))
                seconds['timm'].append(wait_for(
                    other, 'Train: 0' if options.timm_train else 'first update', data))
        except RuntimeError as error:
            return [(TITLE, 'timm', '', f'not measured: {str(error).strip()[-200:]}', '',
                     '0.8 at most')]
    ours, timm = statistics.median(seconds['ours']), statistics.median(seconds['timm'])
    return [(TITLE, 'timm train.py' if options.timm_train else 'timm_start.py',
             f'{ours:.1f} s', f'{timm:.1f} s', f'{ours / timm:.2f}', '0.8 at most')]


def add_startup_options(parser):
    parser.add_argument('--timm_train', help='train.py of timm\'s repository')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_options(parser)
    add_startup_options(parser)
    arguments = parser.parse_args()
    print(describe_machine())
    print_table(HEAD, measure(arguments))
