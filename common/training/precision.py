"""Mixed precision: autocast, loss scaling, and weights in half precision (O2)."""

import logging

import paddle

from common.machine.distributed import get_world_size

logger = logging.getLogger(__name__)


class Precision:
    """Float32, or AMP as the config says. Float32 takes the same path with scaling off.

    Paddle's CPU kernels ignore autocast, so a CPU computes in float32 and says so.
    """

    def __init__(self, config, device):
        self.enabled = config.AMP and device != 'cpu'
        self.level = config.AMP_LEVEL
        self.dtype = config.AMP_DTYPE
        # Gradients kept in float32 would not fit the half-precision buffers in which
        # DataParallel gathers what several micro-batches have added up.
        self.master_grad = get_world_size() == 1 or config.TRAIN.ACCUM_ITER == 1
        self.scaler = paddle.amp.GradScaler(
            enable=self.enabled and self.dtype == 'float16', init_loss_scaling=2.0 ** 15)
        if config.AMP and not self.enabled:
            logger.info('AMP: off, since Paddle computes in float32 on a CPU')
        elif self.enabled:
            logger.info('AMP: %s, %s', self.level, self.dtype)

    @property
    def scales(self):
        """Whether an overflow of the gradients is expected now and then, and skipped."""
        return self.enabled and self.dtype == 'float16'

    def autocast(self):
        """Return the context manager of the forward pass."""
        return paddle.amp.auto_cast(enable=self.enabled, level=self.level, dtype=self.dtype)

    def decorate(self, model, optimizer):
        """Under O2 keep the model in half precision and float32 master weights beside it."""
        if not (self.enabled and self.level == 'O2'):
            return model, optimizer
        return paddle.amp.decorate(
            models=model, optimizers=optimizer, level='O2', dtype=self.dtype,
            master_weight=True, master_grad=self.master_grad)
