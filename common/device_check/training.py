"""Short trainings on the device, in every precision, against the same on the CPU in float32."""

import contextlib
import functools
import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from common.checkpoints.saver import SaveOptions, Saver
from common.data.digits import load_digits_rgb
from common.data.normalize import Preprocess
from common.device_check.numerics import build_filled, require
from common.device_check.report import Check, CheckFailed, CheckSkipped, Context
from common.kernels import install
from common.machine.device import switch_tf32
from common.project import build_default_loss
from common.run.log import RunLog
from common.training.ema import ModelEma
from common.training.finetune import freeze
from common.training.loop import TrainSetup, TrainState, read_loop_options, train
from common.training.losses import build_criterion
from common.training.optimizer import build_optimizer
from common.training.precision import Precision
from common.training.schedule import build_plan, build_schedule

UPDATES = 8
BATCH = 32
LOSS_SCALE = 2.0 ** 8       # with which no gradient of a tiny model overflows float16
PRECISIONS = {'float32': ('O1', None), **{
    f'{level} {dtype}': (level, dtype) for level in ('O1', 'O2')
    for dtype in ('float16', 'bfloat16')}}
# Of the losses, which are means over a batch; of norms of gradients ten times as much.
TOLERANCES = {None: 1e-3, 'float16': 5e-3, 'bfloat16': 2e-2}
RECIPE = {'DATA.BATCH_SIZE': BATCH, 'TRAIN.BASE_LR': 1e-3, 'TRAIN.NUM_STEPS': UPDATES,
          'TRAIN.WARMUP_STEPS': 2, 'TRAIN.SMOOTHING': 0.1, 'TRAIN.MODEL_EMA': True,
          'TRAIN.MODEL_EMA_DECAY': 0.9, 'REPORT_FREQ': 1, 'VALIDATE_FREQ': 1000,
          'SAVE_FREQ': 1000}


ON_CPU: dict[tuple, list[dict]] = {}


class Records(RunLog):
    """A run log without a folder that keeps the metrics of each update."""

    def __init__(self):
        super().__init__(None)
        self.steps = []

    def write_metrics(self, event: str, **values: Any) -> None:
        if event == 'train_step':
            self.steps.append(values)


class Batches(list):
    """What a loader is to the loop."""

    def describe_workers(self) -> str:
        return ''

    def describe_waiting(self, share: float) -> str:
        return ''


def list_checks(context: Context) -> list[tuple[str, Check]]:
    """Return the checks: precision x accumulation x recompute x freezing, and overflows."""
    names = ['float32'] if context.kind == 'cpu' else list(PRECISIONS)
    checks: list[tuple[str, Check]] = []
    for precision in names:
        for accumulates, recomputes, freezes in itertools.product((False, True), repeat=3):
            what = [word for word, chosen in (('accumulation', accumulates),
                                              ('recompute', recomputes), ('freezing', freezes))
                    if chosen]
            options = {'TRAIN.ACCUM_ITER': 2 if accumulates else 1,
                       'MODEL.RECOMPUTE': recomputes, 'MODEL.FREEZE': '1' if freezes else ''}
            checks.append((', '.join([precision, *what]), functools.partial(
                check_trajectory, precision=precision, options=options)))
    checks.append(('recompute brings dropout back', check_recompute))
    checks.append(('recovery from an overflow', check_overflow))
    return checks


def check_trajectory(context: Context, precision: str, options: Mapping[str, Any]
                     ) -> tuple[str, dict[str, Any]]:
    """Compare losses and gradient norms of a few updates with the CPU's."""
    level, dtype = PRECISIONS[precision]
    if dtype is not None:
        require(context, dtype)
    expected = train_on_cpu(context, options)
    if context.kind == 'gpu':
        switch_tf32(False)
    kernels = 'cpu' if context.kind == 'cpu' else 'fused' if dtype else 'plain'
    steps, _ = train_briefly(context, context.device, options, level, dtype, kernels=kernels)
    reference = 'plain operators' if context.kind == 'cpu' else 'the CPU'
    return compare_steps(steps, expected, TOLERANCES[dtype], reference)


def train_on_cpu(context: Context, options: Mapping[str, Any]) -> list[dict]:
    """Return the metrics of the same training on the CPU; each is made once."""
    key = tuple(sorted(options.items()))
    if key not in ON_CPU:
        ON_CPU[key] = train_briefly(context, 'cpu', options)[0]
    return ON_CPU[key]


def compare_steps(found: list[dict], expected: list[dict], tolerance: float, reference: str
                  ) -> tuple[str, dict[str, Any]]:
    """Return what is said of two trainings that agree. Raises CheckFailed."""
    errors = {}
    for key in ('loss', 'grad_norm'):
        a, b = (np.array([step[key] for step in steps]) for steps in (found, expected))
        errors[key] = float(np.abs(a / b - 1).max())
    figures = {**errors, 'losses': [step['loss'] for step in found],
               'expected': [step['loss'] for step in expected]}
    text = (f'losses within {errors["loss"]:.1e}, gradient norms within '
            f'{errors["grad_norm"]:.1e} of {reference}')
    if not (errors['loss'] <= tolerance and errors['grad_norm'] <= 10 * tolerance):
        raise CheckFailed(f'{text}; at most {tolerance:.0e} and {10 * tolerance:.0e}', figures)
    return f'{len(found)} updates: {text}', figures


def check_recompute(context: Context) -> tuple[str, dict[str, Any]]:
    """Blocks that are computed twice must drop the same twice."""
    if draws_on_host(context):
        raise CheckSkipped('the CPU draws for this device, and Paddle does not bring that back')
    norms = []
    for recompute in (False, True):
        options = {'MODEL.RECOMPUTE': recompute, 'MODEL.DROPOUT': 0.3, 'MODEL.DROPPATH': 0.3}
        steps, _ = train_briefly(context, context.device, options, keeps_dropout=True)
        norms.append([step['grad_norm'] for step in steps])
    error = float(np.abs(np.array(norms[1]) / np.array(norms[0]) - 1).max())
    if not error < 1e-3:
        raise CheckFailed(f'gradient norms with dropout differ by {error:.1e} with recompute')
    return f'gradient norms with dropout are the same within {error:.1e}', {'error': error}


def draws_on_host(context: Context) -> bool:
    """Whether random numbers of an accelerator are taken from the CPU's generator."""
    if context.kind == 'cpu':
        return False
    seen = []
    for draws_first in (False, True):
        paddle.set_device(context.device)
        paddle.seed(1)
        if draws_first:
            paddle.rand([8])
        paddle.set_device('cpu')
        seen.append(paddle.rand([8]).numpy().tolist())
    return seen[0] != seen[1]


def check_overflow(context: Context) -> tuple[str, dict[str, Any]]:
    """A loss whose gradients overflow float16 is skipped; training goes on."""
    if context.kind == 'cpu':
        raise CheckSkipped('a CPU computes in float32')
    require(context, 'float16')
    bad = UPDATES // 2
    weights = []

    def spoil(number, loss):
        return loss * 1e10 if number == bad else loss

    def look(state):
        weights.append([parameter.astype('float32').numpy().copy()
                        for parameter in state.model.parameters()])

    with contextlib.redirect_stdout(io.StringIO()):     # Paddle prints how it scales
        steps, state = train_briefly(context, context.device, {'TRAIN.MODEL_EMA': False}, 'O1',
                                     'float16', change_loss=spoil, look=look)
    last = [parameter.astype('float32').numpy() for parameter in state.model.parameters()]
    kept = all(np.array_equal(a, b) for a, b in zip(weights[bad], weights[bad + 1]))
    moved = any(not np.array_equal(a, b) for a, b in zip(weights[bad + 1], last))
    figures = {'overflows': state.meter.overflows, 'losses': [step['loss'] for step in steps]}
    if not (state.meter.overflows and kept and moved):
        raise CheckFailed(f'{state.meter.overflows} overflows were seen; weights '
                          f'{"kept" if kept else "changed"} by it and '
                          f'{"changed" if moved else "kept"} by the updates after it', figures)
    return f'{state.meter.overflows} of {len(steps)} updates were skipped, others made', figures


def train_briefly(context: Context, device: str, options: Mapping[str, Any], level: str = 'O1',
                  dtype: str | None = None, keeps_dropout: bool = False,
                  change_loss: Callable[[int, paddle.Tensor], paddle.Tensor] | None = None,
                  look: Callable[[TrainState], None] | None = None, kernels: str = 'plain'
                  ) -> tuple[list[dict], TrainState]:
    """Train the first tiny model on the digits; return (metrics of each update, the end).

    change_loss: (micro-batch, loss) -> loss. look: called with the state before each micro-batch.
    kernels: of common.kernels.
    """
    first = next(iter(context.project.tiny_models.values()))
    flags = {**first, **RECIPE, **options}
    model, config = build_filled(context, flags, device)
    if not keeps_dropout:               # every device draws its own
        for layer in model.sublayers():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
    freeze(model, config.MODEL.FREEZE)
    precision = Precision(dtype is not None, level, dtype or 'float16', loss_scale=LOSS_SCALE)
    optimizer = build_optimizer(config, model)
    install(model, kernels, dtype or 'float32')
    model, optimizer = precision.decorate(model, optimizer)
    ema = ModelEma(model, config.TRAIN.MODEL_EMA_DECAY, False, optimizer) \
        if config.TRAIN.MODEL_EMA else None
    state = TrainState(model, optimizer, precision.scaler, ema)
    plan = build_plan(config, UPDATES * config.TRAIN.ACCUM_ITER)
    compute_loss = build_default_loss(config, build_criterion(config))
    number = itertools.count()

    def compute(network, images, targets):
        if look is not None:
            look(state)
        loss = compute_loss(network, images, targets)
        return loss if change_loss is None else change_loss(next(number), loss)

    log = Records()
    batches = Batches(list_batches(config, plan.batches_per_epoch))
    train(TrainSetup(
        options=read_loop_options(config), plan=plan,
        schedule=build_schedule(config, plan, BATCH), precision=precision, compute_loss=compute,
        prepare=lambda batch: batch, batches=batches, validate=lambda state: None,
        saver=Saver(None, SaveOptions(), plan, record={}), run_log=log, check_every=1), state)
    return log.steps, state


def list_batches(config: Any, count: int) -> Iterator[tuple[paddle.Tensor, paddle.Tensor]]:
    """Yield (images float32 [B, 3, S, S], labels) of the digits, enlarged to the config's size."""
    images, labels = load_digits_rgb()
    preprocess = Preprocess(config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD)
    factor = config.DATA.IMAGE_SIZE // images.shape[1]
    for number in range(count):
        part = slice(BATCH * number, BATCH * (number + 1))
        pixels = images[part].repeat(factor, axis=1).repeat(factor, axis=2)
        yield preprocess(pixels), paddle.to_tensor(labels[part])
