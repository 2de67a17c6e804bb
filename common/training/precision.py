"""Mixed precision: autocast, loss scaling, and weights in half precision (O2)."""

import contextlib
import logging

import paddle
from yacs.config import CfgNode

from common.errors import UserError
from common.machine.distributed import get_world_size

logger = logging.getLogger(__name__)


def build_precision(config: CfgNode, device: str) -> 'Precision':
    """Return the Precision of AMP, AMP_LEVEL and AMP_DTYPE on a device.

    Paddle's CPU kernels ignore autocast, so a CPU computes in float32 and the log says so.
    """
    enabled = config.AMP and device != 'cpu'
    if enabled:
        check_half_precision(config.AMP_DTYPE, device)
    if config.AMP and not enabled:
        logger.info('AMP: off (%s and %s are not used), since Paddle computes in float32 on a CPU',
                    config.AMP_LEVEL, config.AMP_DTYPE)
    elif enabled:
        logger.info('AMP: %s, %s', config.AMP_LEVEL, config.AMP_DTYPE)
    # Gradients kept in float32 would not fit the half-precision buffers in which
    # DataParallel gathers what several micro-batches have added up.
    return Precision(enabled, config.AMP_LEVEL, config.AMP_DTYPE,
                     master_grad=get_world_size() == 1 or config.TRAIN.ACCUM_ITER == 1)


def is_supported(dtype: str) -> bool:
    """Whether the current device can compute in "float16" or "bfloat16"."""
    ask = {'float16': paddle.amp.is_float16_supported,
           'bfloat16': paddle.amp.is_bfloat16_supported}[dtype]
    try:
        return ask()
    except TypeError:           # Paddle 2.6 cannot be asked about a plug-in's device
        return False


def check_half_precision(dtype: str, device: str) -> None:
    """Raise UserError if the device cannot compute in it: Paddle would, silently, in float32."""
    if not is_supported(dtype):
        remedy = 'Use AMP_DTYPE float16, or leave -amp out.' if dtype == 'bfloat16' else \
            'Leave -amp out.'
        raise UserError(f'-amp with AMP_DTYPE {dtype}: {device} cannot compute in it (GPUs can '
                        'in bfloat16 from compute capability 8.0 on, in float16 from 5.3 on). '
                        f'{remedy}')


class Precision:
    """Float32, or AMP. Float32 takes the same path with scaling off.

    level: "O1" or "O2". dtype: "float16" or "bfloat16". master_grad: keep float32 gradients
    under O2. loss_scale: the first, which overflows halve; float16 alone has one.
    """

    def __init__(self, enabled: bool = False, level: str = 'O1', dtype: str = 'float16',
                 master_grad: bool = True, loss_scale: float = 2.0 ** 15):
        self.enabled = enabled
        self.level = level
        self.dtype = dtype
        self.master_grad = master_grad
        self.scaler = paddle.amp.GradScaler(
            enable=enabled and dtype == 'float16', init_loss_scaling=loss_scale)

    @property
    def scales(self) -> bool:
        """Whether an overflow of the gradients is expected now and then, and skipped."""
        return self.enabled and self.dtype == 'float16'

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context manager of the forward pass."""
        return paddle.amp.auto_cast(enable=self.enabled, level=self.level, dtype=self.dtype)

    def decorate(self, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer
                 ) -> tuple[paddle.nn.Layer, paddle.optimizer.Optimizer]:
        """Under O2 keep the model in half precision and float32 master weights beside it.

        Buffers, which are fixed tables, stay as they are, and so are saved exactly.
        """
        if not (self.enabled and self.level == 'O2'):
            return model, optimizer
        exact = [(layer, name, buffer.clone()) for layer in model.sublayers(include_self=True)
                 for name, buffer in layer._buffers.items() if buffer is not None]
        decorated = paddle.amp.decorate(
            models=model, optimizers=optimizer, level='O2', dtype=self.dtype,
            master_weight=True, master_grad=self.master_grad)
        for layer, name, buffer in exact:
            layer._buffers[name] = buffer
        return decorated
