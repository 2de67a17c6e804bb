"""What saving costs: training steps of ViT-B/16 with and without a checkpoint a minute.

python benchmarks/saving.py [--minutes 3] [--batch_size 8] [--image_size 224] [--config NAME]

Trains on random images with AdamW and an average of the weights (EMA), and prints

    stall       seconds that `save` keeps training waiting, for copying the state
    writing     seconds until the checkpoint is on the disk, verified and renamed
    slowdown    of the steps during the writing against the steps outside it
    cost        share of training time that one save a minute takes: (stall + slower steps) / 60 s
    processor   seconds of one core that a save takes: the copy, and the writer beside training
    memory      peak resident memory beyond what training itself needs, in copies of the state
"""

import argparse
import os
import sys
import tempfile
import time
from types import SimpleNamespace

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..'))

from common.machine.environment import tune_cpu

tune_cpu()

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from common.checkpoints.store import CheckpointStore  # noqa: E402
from common.kernels import install  # noqa: E402
from common.training.ema import ModelEma  # noqa: E402
from ViT.config import get_config  # noqa: E402
from ViT.vit import build_vit  # noqa: E402

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')


def read_memory(field):
    """Return VmRSS or VmHWM of this process in bytes (Linux)."""
    with open('/proc/self/status', encoding='ascii') as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


def reset_peak_memory():
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as file:
        file.write('5')


class TimedStore(CheckpointStore):
    """A CheckpointStore that adds up the processor time of its writer."""

    writer_seconds = 0.0

    def _write(self, *arguments):
        super()._write(*arguments)
        self.writer_seconds += time.thread_time()       # a thread for each save


class Steps:
    """Training steps, each timed."""

    def __init__(self, state, batch_size, image_size):
        self.state = state
        self.images = paddle.randn([batch_size, 3, image_size, image_size])
        self.labels = paddle.zeros([batch_size], dtype='int64')
        self.update = 0

    def run_one(self):
        """Make one update; return its seconds."""
        started = time.perf_counter()
        logits = self.state.model(self.images)
        loss = paddle.nn.functional.cross_entropy(logits, self.labels)
        loss.backward()
        self.state.optimizer.step()
        self.state.optimizer.clear_grad(set_to_zero=False)
        self.state.ema.update()
        loss.item()
        self.update += 1
        return time.perf_counter() - started


def measure(steps, store, minutes):
    """Train for `minutes` with a save at the start of each; return lists of seconds.

    A save before that takes the memory that later ones use again.
    """
    stalls, copies, writings, quiet, disturbed = [], [], [], [], []
    store.save(steps.state, {'epoch': 1, 'update': steps.update, 'loss': 1.0})
    store.wait()
    store.writer_seconds = 0.0
    end = time.perf_counter() + 60 * minutes
    next_save = time.perf_counter()
    while time.perf_counter() < end:
        if time.perf_counter() >= next_save:
            next_save += 60
            started, copying = time.perf_counter(), time.thread_time()
            store.save(steps.state, {'epoch': 1, 'update': steps.update, 'loss': 1.0})
            stalls.append(time.perf_counter() - started)
            copies.append(time.thread_time() - copying)
        is_writing = store.is_writing
        seconds = steps.run_one()
        (disturbed if is_writing else quiet).append(seconds)
        if is_writing and not store.is_writing:
            writings.append(time.perf_counter() - started)
    store.wait()
    return stalls, copies, writings, quiet, disturbed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--minutes', type=float, default=3)
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--config', default='vit_base_patch16_224')
    arguments = parser.parse_args()

    config = get_config(os.path.join(ROOT, 'ViT', 'configs', f'{arguments.config}.yaml'))
    config.defrost()
    config.DATA.IMAGE_SIZE = arguments.image_size
    config.MODEL.DROPOUT = config.MODEL.ATTENTION_DROPOUT = 0.0
    model = build_vit(config)
    install(model, 'cpu')
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=model.parameters())
    state = SimpleNamespace(model=model, optimizer=optimizer, ema=ModelEma(model, 0.9999),
                            scaler=None)
    steps = Steps(state, arguments.batch_size, arguments.image_size)
    for _ in range(3):
        steps.run_one()
    state_bytes = 4 * 4 * sum(int(np.prod(p.shape)) for p in model.parameters())

    reset_peak_memory()
    for _ in range(3):
        steps.run_one()
    peak_without = read_memory('VmHWM')
    with tempfile.TemporaryDirectory(dir='.') as folder:
        reset_peak_memory()
        store = TimedStore(folder, keep=0)
        stalls, copies, writings, quiet, disturbed = measure(steps, store, arguments.minutes)
        peak_with = read_memory('VmHWM')
    step = float(np.median(quiet))
    slower = sum(seconds - step for seconds in disturbed) / len(stalls)
    print(f'state    {state_bytes / 1e9:.2f} GB (weights, two moments, average)')
    print(f'step     {step:.2f} s, {len(quiet)} without and {len(disturbed)} during writing')
    print(f'stall    {np.mean(stalls):.2f} s a save (longest {max(stalls):.2f} s)')
    print(f'writing  {np.mean(writings):.1f} s a save, slowdown of its steps '
          f'{100 * (np.median(disturbed) / step - 1):.1f} %')
    print(f'cost     {100 * (np.mean(stalls) + slower) / 60:.2f} % at one save a minute')
    print(f'cpu      {np.mean(copies):.2f} s for the copy, '
          f'{store.writer_seconds / len(stalls):.2f} s for the writer')
    print(f'memory   {(peak_with - peak_without) / state_bytes:.2f} copies of the state')


if __name__ == '__main__':
    main()
