"""What a save takes in memory, in copies of the state.

python tests/support/saving_memory.py FOLDER
"""

import sys
from types import SimpleNamespace

from common.machine.environment import tune_cpu

tune_cpu()

import paddle  # noqa: E402

from benchmarks.saving import read_memory, reset_peak_memory  # noqa: E402
from common.checkpoints.store import CheckpointStore  # noqa: E402
from common.training.ema import ModelEma  # noqa: E402

WIDTH, LAYERS = 1024, 24            # 100 MB of weights


def main():
    model = paddle.nn.Sequential(*[paddle.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
    run = SimpleNamespace(
        model=model, optimizer=paddle.optimizer.AdamW(parameters=model.parameters()),
        ema=ModelEma(model, 0.9), scaler=None)
    for parameter in model.parameters():
        parameter.grad = paddle.zeros_like(parameter)
    run.optimizer.step()
    run.optimizer.clear_grad(set_to_zero=False)
    store = CheckpointStore(sys.argv[1], keep=0)
    size = 4 * 4 * LAYERS * WIDTH * (WIDTH + 1)     # bytes: weights, two moments, average
    reset_peak_memory()
    before = read_memory('VmRSS')
    for update in range(3):
        store.save(run, {'epoch': 1, 'update': update, 'loss': 1.0})
    store.wait()
    print(f'{(read_memory("VmHWM") - before) / size:.3f}')


if __name__ == '__main__':
    main()
