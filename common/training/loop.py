"""The training loop: one flat function over optimizer updates."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np
import paddle
from paddle.distributed.parallel import sync_params_buffers
from yacs.config import CfgNode

from common.errors import Interrupted, RunError
from common.machine.distributed import get_rank, get_world_size
from common.machine.host_memory import release_freed_memory
from common.project import ComputeLoss
from common.run.log import format_duration
from common.training.ema import ModelEma
from common.training.gradient_mean import GradientMean
from common.training.meter import Meter
from common.training.optimizer import clip_gradients
from common.training.precision import Precision
from common.training.schedule import Plan
from common.training.stopping import StopRequest, Watchdog, count_updates_to_look

if TYPE_CHECKING:               # the saver stands on this module
    from common.checkpoints.saver import Saver
    from common.run.log import RunLog

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Everything that changes during training, and that a checkpoint must hold."""

    model: paddle.nn.Layer          # bare, without DataParallel
    optimizer: paddle.optimizer.Optimizer
    scaler: paddle.amp.GradScaler
    ema: ModelEma | None = None
    update: int = 0                 # optimizer updates done
    best: dict | None = None        # {'value': acc1 in percent, 'epoch': epoch}
    epoch_loss: float = math.nan    # training loss of the last whole epoch
    awaits_validation: bool = False     # the last epoch's has not ended yet
    has_ended: bool = False         # by its plan, or early
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True)
class LoopOptions:
    """The loop's own options; read_loop_options takes them from a config."""

    seed: int
    grad_clip: float | None = None          # largest global norm of the gradients
    report_every: int = 50                  # updates
    validate_every: int = 1                 # epochs
    save_every: int = 1                     # epochs
    patience: int | None = None             # validations without a new best before the end
    patience_updates: int | None = None     # or updates
    best_is_latest: bool = False            # and not the validation with the highest acc1
    save_bad_batch: bool = False            # keep the batch that made the loss not finite
    fast: bool = True                       # gradients averaged by GradientMean's fast way


def read_loop_options(config: CfgNode) -> LoopOptions:
    """Return the LoopOptions of a config tree."""
    return LoopOptions(
        config.SEED, config.TRAIN.GRAD_CLIP, config.REPORT_FREQ, config.VALIDATE_FREQ,
        config.SAVE_FREQ, config.TRAIN.EARLY_STOP_EPOCHS, config.TRAIN.EARLY_STOP_STEPS,
        config.BEST == 'latest', config.SAVE_BAD_BATCH, config.FAST)


class BatchSource(Protocol):
    """Where batches come from: common.data.loader.Loader, or a list with these methods."""

    def __iter__(self) -> Iterator: ...

    def describe_workers(self) -> str: ...

    def describe_waiting(self, share: float) -> str: ...


@dataclass(frozen=True)
class TrainSetup:
    """What training is made of, and what stays the same throughout."""

    options: LoopOptions
    plan: Plan
    schedule: Callable[[int], float]        # update -> learning rate
    precision: Precision
    compute_loss: ComputeLoss       # network, images, targets -> scalar
    prepare: Callable[[tuple], tuple]       # loader's batch -> images, targets
    batches: BatchSource            # from the state's position to the end of the run
    validate: Callable[[TrainState], float | None]  # -> acc1 in percent, logged; None: no images
    saver: 'Saver'                  # when and where checkpoints are written
    run_log: 'RunLog'
    check_every: int                # updates between two looks at losses and signals, at most
    folder: str | None = None       # run folder, for the batch that made a loss not finite
    stop: StopRequest = field(default_factory=StopRequest)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(limit=0))


def train(setup: TrainSetup, state: TrainState) -> None:
    """Train from `state.update` to the end of the plan, or to TRAIN.EARLY_STOP_EPOCHS or STEPS.

    Raises RunError when a loss or gradient is not finite, and Interrupted after a
    signal, when the state is saved.
    """
    options, plan, meter = setup.options, setup.plan, state.meter
    first_update = state.update
    figures = {}                        # on the bar: as the losses were last looked at
    next_look = state.update + 1

    with setup.watchdog as watchdog:
        network = wrap_data_parallel(state.model)
        parameters = [p for p in state.model.parameters() if not p.stop_gradient]
        average = GradientMean(parameters, options.fast) if network is state.model else None
        batches = iter(setup.batches)
        state.model.train()
        setup.run_log.start_bar(plan.total_updates, state.update)
        meter.start_clock()
        if state.awaits_validation:
            watchdog.feed('validating')
            validate_epoch(setup, state, is_saved=True)
        while state.update < plan.total_updates and not state.has_ended:
            update = state.update
            watchdog.feed(f'training update {update + 1}', setup.batches.describe_workers)
            seed_update(options.seed, update)
            learning_rate = setup.schedule(update)
            state.optimizer.set_lr(learning_rate)

            micro_batches = plan.count_micro_batches(update)
            losses, seen, images_seen = [], [], 0
            for number in range(micro_batches):
                batch = meter.take_batch(batches)
                images, targets = setup.prepare(batch)
                with sync_gradients(network, is_last=number + 1 == micro_batches):
                    losses.append(add_gradients(setup, network, images, targets, micro_batches))
                images_seen += images.shape[0]
                if options.save_bad_batch:
                    seen.append(batch)

            if average is not None:
                average()
            setup.precision.scaler.unscale_(state.optimizer)
            grad_norm = clip_gradients(parameters, options.grad_clip)
            setup.precision.scaler.step(state.optimizer)
            setup.precision.scaler.update()
            state.optimizer.clear_grad(set_to_zero=False)
            if update == first_update:          # its moments lie between what it has freed
                release_freed_memory()
            if state.ema is not None:
                state.ema.update()
            meter.add(update, paddle.add_n(losses), grad_norm, images_seen * get_world_size())
            state.update = done = update + 1

            ends_epoch = plan.ends_epoch(update)
            reports = done % options.report_every == 0
            save_due = setup.saver.steps_due(done)
            if done >= next_look or reports or ends_epoch or save_due:
                bad_update, signal_number, minutes_due = meter.read(
                    setup.precision.scales, setup.stop.number, setup.saver.minutes_due())
                if bad_update is not None:
                    stop_for_bad_loss(setup, bad_update, seen)
                next_look = done + count_updates_to_look(meter.update_seconds, setup.check_every)
                figures = {'loss': f'{meter.last_loss:.4f}',
                           'images/s': f'{meter.images_per_second:.1f}'}
                if reports:
                    report(setup, state, learning_rate)
                save_due = bool(save_due or minutes_due or signal_number)
                if ends_epoch:
                    watchdog.feed('ending an epoch')
                    finish_epoch(setup, state, learning_rate, save_due, signal_number)
                    # Validation had a bar of its own; this one is moved on by one below.
                    setup.run_log.start_bar(plan.total_updates, update)
                elif save_due:
                    setup.saver.save(state, loss=meter.mean('epoch'), is_best=False)
                if signal_number:
                    raise Interrupted(signal_number)
            setup.run_log.advance_bar(lr=f'{learning_rate:.1e}', **figures)
    setup.run_log.close_bar()


def add_gradients(setup: TrainSetup, network: paddle.nn.Layer, images: paddle.Tensor,
                  targets: paddle.Tensor, micro_batches: int) -> paddle.Tensor:
    """Forward and backward pass of one micro-batch; return its share of the loss, detached.

    The graph ends here: one that outlives the update takes a tenth more memory at the next
    forward pass.
    """
    with setup.precision.autocast():
        loss = setup.compute_loss(network, images, targets) / micro_batches
        setup.precision.scaler.scale(loss).backward()
    return loss.detach()


def finish_epoch(setup: TrainSetup, state: TrainState, learning_rate: float, save_due: bool,
                 signal_number: int) -> None:
    """After the last update of an epoch: its summary, checkpoint, and validation.

    The checkpoint comes first, so that nothing that happens while validating loses the epoch.
    After a signal there is no validation: the run that continues begins with it.
    """
    options, plan = setup.options, setup.plan
    epoch = plan.count_epochs(state.update)
    is_over = state.update == plan.total_updates
    state.epoch_loss = state.meter.take_mean('epoch')
    waiting = state.meter.take_waiting_share()
    setup.run_log.write_metrics('train_epoch', epoch=epoch, update=state.update,
                                loss=state.epoch_loss, lr=learning_rate)
    state.awaits_validation = is_over or epoch % options.validate_every == 0
    is_saved = bool(epoch % options.save_every == 0 or is_over or save_due)
    # A few pictures make hundreds of epochs, shorter than the reports are apart.
    if is_saved or state.awaits_validation or plan.updates_per_epoch >= options.report_every:
        logger.info('Epoch %d/%d: train loss %.4f, lr %.1e, update %d/%d', epoch,
                    plan.total_epochs, state.epoch_loss, learning_rate, state.update,
                    plan.total_updates)
        if paddle.get_device() != 'cpu':
            logger.info('%s', setup.batches.describe_waiting(waiting))
    if is_saved:
        setup.saver.save(state, loss=state.epoch_loss)
    if state.awaits_validation and not signal_number:
        validate_epoch(setup, state, is_saved)
    state.meter.start_clock()           # validation and saving are not training time


def validate_epoch(setup: TrainSetup, state: TrainState, is_saved: bool) -> None:
    """Validate the epoch that has ended, see whether it is the best and the last, and save.

    is_saved: whether there is a checkpoint of its weights, which then gets the outcome, too.
    Raises Interrupted where a signal has stopped the validation.
    """
    plan = setup.plan
    epoch = plan.count_epochs(state.update)
    metrics_size = setup.run_log.measure_metrics()      # without this validation's, made again
    try:
        acc1 = setup.validate(state)
    except Exception:                   # a signal, an image that cannot be read, a full memory
        if not is_saved:
            setup.saver.save(state, state.epoch_loss, metrics_size=metrics_size)
        raise
    is_best = acc1 is not None and math.isfinite(acc1) and (
        state.best is None or acc1 > state.best['value'] or setup.options.best_is_latest)
    if is_best:
        state.best = {'value': acc1, 'epoch': epoch}
    state.awaits_validation = False
    is_over = state.update == plan.total_updates
    stops_early = not is_over and is_without_progress(state, plan, setup.options)
    if stops_early:
        logger.info('Stopping early: no better than epoch %d (acc1 %.2f) in %d validations.',
                    state.best['epoch'], state.best['value'],
                    (epoch - state.best['epoch']) // setup.options.validate_every)
    state.has_ended = is_over or stops_early
    if is_saved or is_best or stops_early:
        setup.saver.save(state, loss=state.epoch_loss, is_best=is_best, is_again=is_saved)


def is_without_progress(state: TrainState, plan: Plan, options: LoopOptions) -> bool:
    """Whether EARLY_STOP_EPOCHS validations, or EARLY_STOP_STEPS updates, brought no new best."""
    if state.best is None:
        return False
    epochs = plan.count_epochs(state.update) - state.best['epoch']
    if options.patience is not None and epochs // options.validate_every >= options.patience:
        return True
    return options.patience_updates is not None \
        and epochs * plan.updates_per_epoch >= options.patience_updates


def report(setup: TrainSetup, state: TrainState, learning_rate: float) -> None:
    """Log the updates since the last report."""
    plan, meter = setup.plan, state.meter
    speed = meter.images_per_second
    left = (plan.total_updates - state.update) * meter.seconds / max(1, meter.updates)
    loss = meter.take_mean('report')
    epoch = plan.count_epochs(state.update)
    logger.info('Epoch %d/%d, update %d/%d: loss %.4f, lr %.1e, gradient norm %.3g, '
                '%.1f images/s, %s left', epoch, plan.total_epochs, state.update,
                plan.total_updates, loss, learning_rate, meter.grad_norm, speed,
                format_duration(left))
    setup.run_log.write_metrics(
        'train_step', update=state.update, epoch=epoch, loss=loss, lr=learning_rate,
        grad_norm=meter.grad_norm, images_per_second=round(speed, 2),
        overflows=meter.overflows)
    meter.start_clock()


def stop_for_bad_loss(setup: TrainSetup, update: int, batches: Sequence | None) -> NoReturn:
    """Raise RunError for a loss or gradient norm that is not finite."""
    saved = ''
    if batches and setup.folder:
        path = f'{setup.folder}/bad-batch-update-{update + 1}-rank-{get_rank()}.npz'
        images, labels, indices = (np.concatenate(part) for part in zip(
            *[[np.asarray(item) for item in batch[:3]] for batch in batches]))
        np.savez(path, images=images, labels=labels, indices=indices)
        saved = f' Its batch is in {path}.'
    raise RunError(
        f'The loss or gradient is not finite (NaN or infinite) at update {update + 1}, learning '
        f'rate {setup.schedule(update):.1e}. Last good checkpoint: {setup.saver.last_good()}.'
        f'{saved}\nA lower TRAIN.BASE_LR, a longer warmup or TRAIN.GRAD_CLIP 1.0 usually helps.')


def seed_update(seed: int, update: int) -> None:
    """Seed Paddle's generators for one update of this rank (dropout, stochastic depth).

    Derived from (seed, rank, update), so that a resumed run needs no stored generator.
    """
    words = np.random.SeedSequence([seed, get_rank(), update]).generate_state(1)
    paddle.seed(int(words[0]))


def wrap_data_parallel(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return the model, on several GPUs as one that averages gradients during backward.

    On CPUs GradientMean does it, after backward.
    """
    if get_world_size() == 1:
        return model
    if next(iter(model.parameters())).place.is_cpu_place():
        sync_params_buffers(model)          # as DataParallel does: all start from rank 0's
        return model
    return paddle.DataParallel(model)


def sync_gradients(network: paddle.nn.Layer, is_last: bool) -> contextlib.AbstractContextManager:
    """Average gradients over ranks on the last micro-batch of an update only."""
    if is_last or not isinstance(network, paddle.DataParallel):
        return contextlib.nullcontext()
    return network.no_sync()
