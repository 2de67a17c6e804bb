"""How fast the device trains: images/s, model FLOP/s, memory, and what an update costs beside."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from PIL import Image

from common.checkpoints.saver import SaveOptions, Saver
from common.data import mixup
from common.data.batch import TrainBatch, build_train_batch
from common.data.loader import build_loader
from common.data.sampler import TrainBatches
from common.device_check.counters import CopyCounter, count_operators, list_missing_kernels
from common.device_check.report import Check, CheckFailed, CheckSkipped, Context
from common.device_check.training import Records
from common.kernels import install
from common.project import build_default_loss
from common.tools.model_info import measure_config
from common.training.ema import ModelEma
from common.training.loop import TrainSetup, TrainState, read_loop_options, train
from common.training.losses import build_criterion
from common.training.optimizer import build_optimizer
from common.training.out_of_memory import is_out_of_memory
from common.training.precision import Precision, is_supported
from common.training.schedule import build_plan, build_schedule
from common.training.stopping import LOOK_SECONDS

BATCHES = (128, 64, 32, 16, 8)      # tried in this order, until one fits the memory
WARM_UP, TIMED = 4, 12              # updates
MOST_COPIES = 1                     # blocking ones an update: loss scaling asks for an overflow
PICTURES = 256                      # JPEG files of the check through the loader
PICTURE_SIZE = (500, 375)           # pixels, as most of ImageNet's
FLOPS = 6                           # of training, a multiply-accumulate of the forward pass
COUNTED = {                         # everything that may be on in an update
    'DATA.BATCH_SIZE': 16, 'TRAIN.NUM_STEPS': 5, 'TRAIN.WARMUP_EPOCHS': 0, 'DATA.NUM_WORKERS': 1,
    'TRAIN.MIXUP_ALPHA': 0.8, 'TRAIN.CUTMIX_ALPHA': 1.0, 'TRAIN.RANDOM_ERASE_PROB': 0.5,
    'TRAIN.MODEL_EMA': True, 'TRAIN.GRAD_CLIP': 1.0, 'REPORT_FREQ': 1000, 'VALIDATE_FREQ': 1000}


class Stream:
    """Batches for the loop, which calls a function before the first that is not warm-up."""

    def __init__(self, batches: Iterator, warm_up: int, begin: Callable[[], None]):
        self.batches, self.warm_up, self.begin = batches, warm_up, begin
        self.waited = 0.0               # seconds, after the warm-up

    def __iter__(self) -> Iterator:
        for number in itertools.count():
            if number == self.warm_up:
                self.begin()
                self.waited = 0.0
            before = time.perf_counter()
            batch = next(self.batches, None)
            self.waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def describe_workers(self) -> str:
        return ''

    def describe_waiting(self, share: float) -> str:
        return ''


@dataclass(frozen=True)
class Measured:
    """What a training has taken after its warm-up. peak: bytes of the device; None: unknown."""

    updates: int
    seconds: float
    waited: float
    peak: int | None


def list_checks(context: Context) -> list[tuple[str, Check]]:
    """Return the checks: what an update costs, then the speed of the directory's usual sizes."""
    checks: list[tuple[str, Check]] = [('operators and blocking copies', check_counts)]
    if not context.has_speed:
        return checks
    timed = context.project.timed_configs
    checks += [(f'{name}, synthetic images', functools.partial(check_synthetic, name=name))
               for name in timed]
    checks += [(f'{name}, through the loader', functools.partial(check_loader, name=name))
               for name in timed[:1]]
    return checks


def check_counts(context: Context) -> tuple[str, dict[str, Any]]:
    """Count what an update with everything on starts on the device, and waits for."""
    precision = Precision(context.kind != 'cpu' and is_supported('float16'), 'O1', 'float16')
    config = read_config(context, context.project.example_configs[0], COUNTED)
    dataset = context.project.get_dataset(config, True)
    copies, operators = CopyCounter(), contextlib.ExitStack()
    order = TrainBatches(len(dataset), config.DATA.BATCH_SIZE, config.SEED)
    prepare = build_train_batch(config, config.TRAIN.NUM_STEPS)
    loader = build_loader(dataset, order.slice(0, config.TRAIN.NUM_STEPS), config,
                          draw=prepare.draw)
    counts = {}

    def begin():
        counts['operators'] = operators.enter_context(count_operators())
        operators.enter_context(copies)

    with contextlib.closing(loader), operators:
        measured = train_timed(config, context, precision, iter(loader), prepare, warm_up=2,
                               begin=begin)
    lines = {line: count // measured.updates for line, count in copies.lines.items()
             if count >= measured.updates}
    started = sum(counts['operators'].values()) / measured.updates
    missing = list_missing_kernels(counts['operators'], context.kind)
    figures = {'operators': round(started), 'copies': lines, 'without_kernel': missing,
               'by_operator': {name: round(count / measured.updates, 1)
                               for name, count in counts['operators'].most_common(40)}}
    waits = sum(lines.values())
    text = (f'{started:.0f} operators and {waits} blocking cop{"y" if waits == 1 else "ies"} an '
            f'update; {len(missing)} kinds of operators have no kernel for {context.kind}')
    if missing:
        text += f', so that the CPU computes them: {", ".join(missing)}'
    # Where an update takes seconds, the loop reads the loss and looks at signals after each.
    most = MOST_COPIES + (measured.seconds / measured.updates > LOOK_SECONDS / 4)
    if waits > most:
        raise CheckFailed(f'{text}, more than {most}: {lines}', figures)
    return text, figures


def check_synthetic(context: Context, name: str) -> tuple[str, dict[str, Any]]:
    """Train with one batch that lies on the device, over and over."""
    def measure(batch_size):
        config = read_config(context, name, {
            **LENGTH, 'DATA.BATCH_SIZE': batch_size, 'TRAIN.MIXUP_ALPHA': 0.0,
            'TRAIN.CUTMIX_ALPHA': 0.0, 'TRAIN.CUTMIX_MINMAX': None,
            'TRAIN.RANDOM_ERASE_PROB': 0.0})
        size = config.DATA.IMAGE_SIZE
        generator = np.random.default_rng(0)
        batch = (generator.integers(0, 256, [batch_size, size, size, 3], np.uint8),
                 generator.integers(0, config.MODEL.NUM_CLASSES, batch_size),
                 np.arange(batch_size))
        batch = tuple(paddle.to_tensor(array) for array in batch)
        return train_timed(config, context, get_precision(), itertools.repeat(batch),
                           build_train_batch(config, 1))

    batch_size, measured = find_batch_size(measure)
    return describe_speed(context, name, batch_size, measured)


def check_loader(context: Context, name: str) -> tuple[str, dict[str, Any]]:
    """Train with the whole recipe on JPEG files."""
    root = os.path.join(context.folder, 'pictures')
    make_pictures(root)

    def measure(batch_size):
        config = read_config(context, name, {
            **LENGTH, 'DATA.BATCH_SIZE': batch_size, 'DATA.DATASET': 'imagefolder',
            'DATA.DATA_PATH': root, 'MODEL.NUM_CLASSES': 2})
        dataset = context.project.get_dataset(config, True)
        order = TrainBatches(len(dataset), batch_size, config.SEED)
        prepare = build_train_batch(config, config.TRAIN.NUM_STEPS)
        loader = build_loader(dataset, order.slice(0, config.TRAIN.NUM_STEPS), config,
                              draw=prepare.draw)
        with contextlib.closing(loader):
            return train_timed(config, context, get_precision(), iter(loader), prepare)

    batch_size, measured = find_batch_size(measure)
    text, figures = describe_speed(context, name, batch_size, measured)
    share = measured.waited / measured.seconds
    return f'{text}; waited for data {100 * share:.0f} % of the time', {
        **figures, 'waiting': share}


LENGTH = {'TRAIN.NUM_STEPS': WARM_UP + TIMED, 'TRAIN.WARMUP_EPOCHS': 0,
          'TRAIN.WARMUP_STEPS': None, 'REPORT_FREQ': 1000, 'VALIDATE_FREQ': 1000}


def read_config(context: Context, name: str, flags: dict[str, Any]) -> Any:
    """Return the config of a yaml file of the directory."""
    path = os.path.join(context.project.folder, 'configs', f'{name}.yaml')
    return context.project.get_config(path, flags=flags)


def get_precision() -> Precision:
    """Return the precision of -amp, where the device has it."""
    return Precision(is_supported('float16'), 'O1', 'float16')


def find_batch_size(measure: Callable[[int], Measured]) -> tuple[int, Measured]:
    """Return the largest batch of BATCHES that fits the memory, and what it has taken."""
    for batch_size in BATCHES:
        with contextlib.suppress(MemoryError):
            return batch_size, try_in_memory(measure, batch_size)
    raise CheckSkipped(f'not even {BATCHES[-1]} images fit the memory')


def try_in_memory(measure: Callable[[int], Measured], batch_size: int) -> Measured:
    """Call measure(batch_size). Raises MemoryError for whatever says that memory ran out."""
    try:
        return measure(batch_size)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if paddle.device.is_compiled_with_cuda():
        paddle.device.cuda.empty_cache()        # of what the attempt has left
    raise MemoryError


def describe_speed(context: Context, name: str, batch_size: int, measured: Measured
                   ) -> tuple[str, dict[str, Any]]:
    """Return the text and the figures of a timed training."""
    device = paddle.get_device()
    paddle.set_device('cpu')
    macs = measure_config(context.project.get_config, context.project.build_model, os.path.join(
        context.project.folder, 'configs', f'{name}.yaml')).macs_with_attention
    paddle.set_device(device)
    speed = batch_size * measured.updates / measured.seconds
    figures = {'batch_size': batch_size, 'images_per_second': speed,
               'flops': FLOPS * macs * speed, 'peak': measured.peak}
    memory = f', {measured.peak / 2 ** 30:.1f} GiB' if measured.peak else ''
    return (f'batch {batch_size}: {speed:.1f} images/s, '
            f'{figures["flops"] / 1e12:.1f} model TFLOP/s{memory}', figures)


def train_timed(config: Any, context: Context, precision: Precision, batches: Iterator,
                prepare: TrainBatch, warm_up: int = WARM_UP,
                begin: Callable[[], None] = lambda: None) -> Measured:
    """Train TRAIN.NUM_STEPS updates as a run does; measure those after the warm-up.

    begin: called after the warm-up.
    """
    paddle.seed(config.SEED)
    model = context.project.build_model(config)
    if precision.enabled:
        install(model, 'fused', precision.dtype)
    model, optimizer = precision.decorate(model, build_optimizer(config, model))
    ema = ModelEma(model, config.TRAIN.MODEL_EMA_DECAY, False, optimizer) \
        if config.TRAIN.MODEL_EMA else None
    updates = config.TRAIN.NUM_STEPS
    plan = build_plan(config, updates)
    started = []

    def start():
        synchronize(context)
        if context.kind == 'gpu' and hasattr(paddle.device.cuda, 'reset_max_memory_allocated'):
            paddle.device.cuda.reset_max_memory_allocated()         # Paddle 3
        begin()
        started.append(time.perf_counter())

    stream = Stream(batches, warm_up, start)
    train(TrainSetup(
        options=read_loop_options(config), plan=plan,
        schedule=build_schedule(config, plan, config.DATA.BATCH_SIZE), precision=precision,
        compute_loss=build_default_loss(config, build_criterion(
            config, soft_targets=mixup.is_active(config))),
        prepare=prepare, batches=stream, validate=lambda state: None,
        saver=Saver(None, SaveOptions(), plan, record={}), run_log=Records(), check_every=10),
        TrainState(model, optimizer, precision.scaler, ema))
    synchronize(context)
    return Measured(updates - warm_up, time.perf_counter() - started[0], stream.waited,
                    measure_peak(context))


def synchronize(context: Context) -> None:
    """Wait until the device has done all that it was given."""
    if context.kind != 'cpu':
        paddle.device.synchronize()


def measure_peak(context: Context) -> int | None:
    """Return the most bytes of the device that were in use, where Paddle knows it."""
    if context.kind != 'gpu':
        return None
    return int(paddle.device.cuda.max_memory_allocated())


def make_pictures(root: str) -> None:
    """Write JPEG files of noise with large and small structure, in two classes."""
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        folder = os.path.join(root, 'train', 'ab'[number % 2])
        os.makedirs(folder, exist_ok=True)
        small = generator.integers(0, 256, [15, 20, 3], np.uint8)
        picture = Image.fromarray(small).resize(PICTURE_SIZE, Image.Resampling.BICUBIC)
        noise = generator.normal(0, 10, [PICTURE_SIZE[1], PICTURE_SIZE[0], 3])
        pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, f'{number}.jpg'), quality=90)
