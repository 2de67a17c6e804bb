"""The training loop's own share of a step: everything but forward, backward and update.

python -m benchmarks.overhead [--batch_size 32] [--updates 20] [--config vit_tiny_patch16_224]

Runs main_single_gpu.py's training on JPEGs of 500 x 375 pixels, with workers, log and progress
bar, and times the calls of the model, of backward, and of clipping and the optimizer. What
remains of the time from one update to the next is the loop's: waiting for data, preprocessing,
seeds, meters, the log.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path.insert(0, ROOT)

from common.machine.environment import tune_cpu  # noqa: E402

tune_cpu()

import paddle  # noqa: E402

from benchmarks.contest import describe_machine, print_table  # noqa: E402
from benchmarks.startup import write_images  # noqa: E402
from common.data.batch import TrainBatch  # noqa: E402
from common.run.launch import run_single  # noqa: E402
from common.training import loop  # noqa: E402
from ViT.project import PROJECT  # noqa: E402
from ViT.vit import VisionTransformer  # noqa: E402

LIMIT = 0.02                # of the step


class Clock:
    """Seconds by part, for each update."""

    def __init__(self):
        self.starts, self.parts, self.now = [], [], {}

    def time(self, part, function):
        def timed(*arguments, **options):
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.now[part] = self.now.get(part, 0.0) + time.perf_counter() - started
        return timed

    def start_update(self, function):
        def started(*arguments):
            self.starts.append(time.perf_counter())
            self.now = {}
            self.parts.append(self.now)
            return function(*arguments)
        return started


def watch(clock):
    """Time the parts of every update from here on."""
    VisionTransformer.forward = clock.time('forward', VisionTransformer.forward)
    paddle.Tensor.backward = clock.time('backward', paddle.Tensor.backward)
    loop.clip_gradients = clock.time('update', loop.clip_gradients)
    paddle.optimizer.AdamW.step = clock.time('update', paddle.optimizer.AdamW.step)
    TrainBatch.__call__ = clock.time('preprocessing', TrainBatch.__call__)
    loop.seed_update = clock.start_update(loop.seed_update)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--updates', type=int, default=20)
    parser.add_argument('--config', default='vit_tiny_patch16_224')
    options = parser.parse_args()
    clock = Clock()
    watch(clock)
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder, options.batch_size * options.updates, validation=32)
        code = run_single(PROJECT, [
            f'-cfg=configs/{options.config}.yaml', '-dataset=imagefolder', f'-data_path={folder}',
            '-num_classes=2', '-device=cpu', f'-batch_size={options.batch_size}',
            '-num_workers=2', f'-output={folder}/output', '-opts', 'TRAIN.NUM_EPOCHS', '1',
            'TRAIN.WARMUP_EPOCHS', '0', 'VALIDATE_FREQ', '2', 'REPORT_FREQ', '5'])
    assert code == 0
    totals = [end - start for start, end in zip(clock.starts, clock.starts[1:])][3:]
    parts = clock.parts[3:3 + len(totals)]
    rows = []
    for part in ('forward', 'backward', 'update', 'preprocessing'):
        seconds = statistics.median(item.get(part, 0.0) for item in parts)
        rows.append((part, f'{1000 * seconds:.1f} ms',
                     f'{seconds / statistics.median(totals):.1%}'))
    own = [1 - sum(item[part] for part in ('forward', 'backward', 'update')) / total
           for item, total in zip(parts, totals)]
    share = statistics.median(own)
    rows.append(('the loop\'s own, preprocessing included',
                 f'{1000 * share * statistics.median(totals):.1f} ms', f'{share:.1%}'))
    rows.append(('update to update', f'{1000 * statistics.median(totals):.1f} ms', '100 %'))
    print(describe_machine())
    print_table(('part', 'median', f'share (limit {LIMIT:.0%})'), rows)
    return int(share > LIMIT)


if __name__ == '__main__':
    sys.exit(main())
