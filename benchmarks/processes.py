"""Two training processes, one core each, against one: images a second in all.

python -m benchmarks.processes [--batch_size 8] [--repetitions 5]

Runs main_single_gpu.py and main_multi_gpu.py -nprocs=2 on the digits, and reads the
speed from metrics.jsonl; each process has the same batch size and one core.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import main

ROOT = Path(__file__).resolve().parents[1]
MODEL = ['-image_size=64', '-opts', 'MODEL.PATCH_SIZE', '8', 'MODEL.EMBED_DIM', '384',
         'MODEL.NUM_HEADS', '6', 'MODEL.DEPTH', '12', 'REPORT_FREQ', '4', 'SAVE_FREQ', '1000',
         'VALIDATE_FREQ', '1000', 'TRAIN.NUM_STEPS', '20', 'TRAIN.WARMUP_STEPS', '2']


def train(script, cores, *flags):
    """Run a script of ViT/ on so many cores; return its median images a second."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ['taskset', '-c', f'0-{cores - 1}', sys.executable, script,
             '-cfg=configs/vit_digits.yaml', '-device=cpu', '-num_workers=0', f'-output={folder}',
             *flags, *MODEL], cwd=ROOT / 'ViT', check=True, capture_output=True, text=True)
        path, = Path(folder).glob('*/metrics.jsonl')
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    speeds = [line['images_per_second'] for line in lines if line['event'] == 'train_step']
    return statistics.median(speeds[1:])


def measure(options):
    """Return the table's row."""
    title = 'two processes, one core each'
    if len(os.sched_getaffinity(0)) < 2:
        return [(title, 'one', '', 'needs two cores', '', '1.85')]
    flag = f'-batch_size={options.batch_size}'
    twos, ones = [], []
    for _ in range(options.repetitions):
        twos.append(train('main_multi_gpu.py', 2, '-nprocs=2', flag))
        ones.append(train('main_single_gpu.py', 1, flag))
    two, one = statistics.median(twos), statistics.median(ones)
    return [(title, 'one', f'{two:.1f}/s', f'{one:.1f}/s', f'{two / one:.2f}', '1.85')]


if __name__ == '__main__':
    main(__doc__, measure)
