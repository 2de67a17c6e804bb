"""Exponential moving average of the weights (Polyak averaging)."""

import contextlib
from collections.abc import Iterator

import numpy as np
import paddle

from common.checkpoints.optimizer_state import assign_array
from common.errors import UserError


class ModelEma:
    """Float32 averages of a model's trainable parameters.

    optimizer: under AMP O2 it holds the float32 weights of which the model has rounded copies;
    they are averaged then.

    After update n (from 1): average += (1 - d) * (weight - average), where d is `decay`,
    or min(decay, (1 + n) / (10 + n)) with warmup, so that the random start is forgotten
    quickly. Frozen parameters and buffers are not averaged: they are the model's own.
    Make it after pretrained weights are loaded, and call `update` after every optimizer
    update (not every micro-batch: accumulation would shorten the horizon).
    """

    def __init__(self, model: paddle.nn.Layer, decay: float, warmup: bool = False,
                 optimizer: paddle.optimizer.Optimizer | None = None):
        self.model = getattr(model, '_layers', model)       # inside paddle.DataParallel
        self.decay = decay
        self.warmup = warmup
        self.optimizer = optimizer
        self.updates = 0
        self.parameters = {name: parameter for name, parameter in self.model.named_parameters()
                           if not parameter.stop_gradient}
        self.averages = {name: _cast(parameter.detach().clone(), paddle.float32)
                         for name, parameter in self.parameters.items()}

    @paddle.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        weight = paddle.full([1], 1.0 - decay, 'float32')   # unlike to_tensor, without a copy
        masters = getattr(self.optimizer, '_master_weights', {})
        for name, parameter in self.parameters.items():
            exact = masters.get(parameter.name, parameter)
            self.averages[name].lerp_(_cast(exact, paddle.float32), weight)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """Return {name: tensor} with every key of the model's state dict; live tensors."""
        return {**self.model.state_dict(), **self.averages}

    @paddle.no_grad()
    def set_state_dict(self, state: dict[str, np.ndarray], updates: int) -> None:
        """Set the averages from {name: ndarray}, and the number of updates made.

        Entries that are not averaged are ignored. Raises UserError if one is missing or has
        another shape.
        """
        for name, average in self.averages.items():
            if name not in state:
                raise UserError(f'The averaged weights (EMA) lack {name}.')
            if list(state[name].shape) != list(average.shape):
                raise UserError(
                    f'The averaged weights (EMA) are of another model: {name} has shape '
                    f'{list(state[name].shape)}, expected {list(average.shape)}.')
        for name, average in self.averages.items():
            assign_array(average, state[name])
        self.updates = updates

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[paddle.nn.Layer]:
        """Within the block the model has the averaged weights; after it, its own again, exactly."""
        with paddle.no_grad():
            trained = {name: parameter.clone() for name, parameter in self.parameters.items()}
            self._assign(self.averages)
        try:
            yield self.model
        finally:
            with paddle.no_grad():
                self._assign(trained)

    def _assign(self, values):
        for name, parameter in self.parameters.items():
            paddle.assign(_cast(values[name], parameter.dtype), output=parameter)


def _cast(tensor, dtype):
    # Paddle copies even where the type is the same already, which costs more than the average.
    return tensor if tensor.dtype == dtype else tensor.cast(dtype)
