"""A training run of milliseconds, for the tests of checkpoints; also a program.

python tests/support/tiny_run.py CHECKPOINT OPTIMIZER UPDATES RESULT.npz
resumes, makes so many updates, and writes the weights, averages and optimizer state.
"""

import sys
from types import SimpleNamespace

if __name__ == '__main__':
    from common.machine.environment import tune_cpu
    tune_cpu()

import numpy as np
import paddle
from paddle import nn

from common.checkpoints.content import read_checkpoint, restore
from common.checkpoints.optimizer_state import name_parameters, read_optimizer
from common.training.ema import ModelEma


class TinyModel(nn.Layer):
    """Two layers and a norm; `reverse` builds them in the other order, as the same names."""

    def __init__(self, width=8, reverse=False):
        super().__init__()
        parts = {'fc1': lambda: nn.Linear(6, width), 'norm': lambda: nn.BatchNorm1D(width),
                 'fc2': lambda: nn.Linear(width, 3)}
        for name in reversed(parts) if reverse else parts:
            setattr(self, name, parts[name]())
        self.token = self.create_parameter([1, 6])
        self.register_buffer('batches_seen', paddle.zeros([1]))

    def forward(self, images):
        self.batches_seen.add_(paddle.ones([1]))
        return self.fc2(nn.functional.gelu(self.norm(self.fc1(images + self.token))))


def build_run(optimizer='AdamW', frozen=(), **options):
    """Return the state of a run: model, optimizer with two groups, EMA, disabled scaler."""
    paddle.seed(7)
    model = TinyModel(**options)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = parameter.stop_gradient or name in frozen
    trainable = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    groups = [{'params': [p for p in trainable if p.ndim > 1], 'weight_decay': 0.05},
              {'params': [p for p in trainable if p.ndim == 1], 'weight_decay': 0.0}]
    groups = [group for group in groups if group['params']]
    settings = {'momentum': 0.9} if optimizer == 'Momentum' else {}
    return SimpleNamespace(
        model=model, ema=ModelEma(model, 0.9), scaler=paddle.amp.GradScaler(enable=False),
        optimizer=getattr(paddle.optimizer, optimizer)(0.01, parameters=groups, **settings))


def train(run, first, last):
    """Make updates `first`..`last` - 1; each has its own images and learning rate."""
    for update in range(first, last):
        images = np.random.default_rng(update).standard_normal((5, 6)).astype('float32')
        run.optimizer.set_lr(0.01 / (1 + update))
        (run.model(paddle.to_tensor(images)) ** 2).mean().backward()
        run.optimizer.step()
        run.optimizer.clear_grad(set_to_zero=False)
        run.ema.update()


def collect(run):
    """Return {name: ndarray} of all that a run has learned."""
    arrays = {f'model {name}': tensor.numpy() for name, tensor in run.model.state_dict().items()}
    arrays.update({f'ema {name}': tensor.numpy() for name, tensor in run.ema.averages.items()})
    state = read_optimizer(run.optimizer, name_parameters(run.model))
    for name, accumulators in state.items():
        arrays.update({f'{accumulator} {name}': tensor.numpy()
                       for accumulator, tensor in accumulators.items()})
    return arrays


def main():
    path, optimizer, updates, result = sys.argv[1:]
    run = build_run(optimizer)
    checkpoint = read_checkpoint(path)
    restore(run, checkpoint)
    train(run, checkpoint['update'], checkpoint['update'] + int(updates))
    np.savez(result, **collect(run))


if __name__ == '__main__':
    main()
