"""Two training processes, one core each, against one: images a second in all.

python -m benchmarks.processes [--batch_size 8] [--repetitions 5]

Runs main_single_gpu.py and main_multi_gpu.py -nprocs=2 with ViT-B/16 at 224 pixels on JPEGs, three
times each, in turns. The speed is the median of all updates but each run's first, from
metrics.jsonl; each process has the same batch size and one core.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.rows import main
from benchmarks.startup import write_images

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ['-opts', 'MODEL.DROPOUT', '0.0', 'MODEL.ATTENTION_DROPOUT', '0.0', 'REPORT_FREQ', '1',
           'TRAIN.NUM_STEPS', '4', 'TRAIN.WARMUP_STEPS', '1']


def train(script, cores, data, *flags):
    """Run a script of ViT/ on so many cores; return the images a second of its updates."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ['taskset', '-c', f'0-{cores - 1}', sys.executable, script,
             '-cfg=configs/vit_base_patch16_224.yaml', '-dataset=imagefolder',
             f'-data_path={data}', '-num_classes=2', '-device=cpu', '-num_workers=0',
             f'-output={folder}', *flags, *OPTIONS],
            cwd=ROOT / 'ViT', check=True, capture_output=True, text=True)
        path, = Path(folder).glob('*/metrics.jsonl')
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line['images_per_second'] for line in lines if line['event'] == 'train_step'][1:]


def measure(options):
    """Return the table's row."""
    title = 'two processes, one core each'
    if len(os.sched_getaffinity(0)) < 2:
        return [(title, 'one', '', 'needs two cores', '', '1.85')]
    flag = f'-batch_size={options.batch_size}'
    twos, ones = [], []
    with tempfile.TemporaryDirectory() as data:
        write_images(data, count=64, validation=8)
        for _ in range(min(3, options.repetitions)):
            twos += train('main_multi_gpu.py', 2, data, '-nprocs=2', flag)
            ones += train('main_single_gpu.py', 1, data, flag)
    two, one = statistics.median(twos), statistics.median(ones)
    return [(title, 'one', f'{two:.2f}/s', f'{one:.2f}/s', f'{two / one:.2f}', '1.85')]


if __name__ == '__main__':
    main(__doc__, measure)
