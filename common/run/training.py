"""A training run: built from the config, continued from a checkpoint, and ended in good order."""

import logging
import os
import time
from typing import TYPE_CHECKING

import numpy as np
from yacs.config import CfgNode

from common.checkpoints.content import read_checkpoint, restore
from common.checkpoints.saver import Saver, read_save_options
from common.checkpoints.store import CheckpointStore
from common.config import dump_config
from common.data import mixup
from common.data.batch import build_train_batch
from common.data.loader import build_loader
from common.data.preprocessing import read_preprocessing
from common.data.sampler import TrainBatches
from common.data.shared_files import remove_left_files
from common.errors import Interrupted, UserError
from common.machine.distributed import gather_over_ranks, get_rank, get_world_size
from common.run.announce import (
    describe_way_on,
    log_changes,
    log_plan,
    log_skipped,
    log_superseded,
)
from common.run.log import RunLog, build_run_log, format_duration
from common.run.records import check_head, describe_data, match_continued, match_fine_tuned
from common.run.validation import Validator, build_validator
from common.training.ema import ModelEma
from common.training.finetune import freeze, log_frozen
from common.training.loop import (
    TrainSetup,
    TrainState,
    is_without_progress,
    read_loop_options,
    train,
)
from common.training.losses import build_criterion
from common.training.optimizer import build_optimizer
from common.training.schedule import Plan, build_plan, build_schedule
from common.training.stopping import StopRequest
from common.weights import load_from_config
from common.weights.read import check_numerics

if TYPE_CHECKING:               # the job stands on this module
    from common.run.job import Job

logger = logging.getLogger(__name__)

REPORTS = ('per_class.csv', 'mistakes.csv')


def run_training(job: 'Job', stop: StopRequest) -> None:
    """Train from the beginning, from pretrained weights, or from a checkpoint."""
    config = job.config
    # First of all what a kill has left is put in order. Only rank 0 saves.
    store = CheckpointStore(job.folder, config.KEEP) if get_rank() == 0 else None
    state = build_state(job)
    order = TrainBatches(len(job.dataset_train), config.DATA.BATCH_SIZE, config.SEED, get_rank(),
                         get_world_size(), config.TRAIN.REPEATED_AUGMENTS)
    plan = build_plan(config, order.batches_per_epoch)
    state.update = config.TRAIN.LAST_EPOCH * plan.updates_per_epoch
    metrics_size = None
    if job.resume_path is not None:
        checkpoint = read_checkpoint(job.resume_path)
        resume(state, checkpoint, plan, config)
        match_continued(checkpoint, [job.dataset_train, job.dataset_val], config, job.project)
        metrics_size = checkpoint['metrics_size']
        del checkpoint                  # gigabytes
    if settle_end(state, plan, config):
        remove_left_files()             # as a loader does when it starts
        complete_report(job, state, plan, stop)
        return

    effective_batch = config.DATA.BATCH_SIZE * get_world_size() * config.TRAIN.ACCUM_ITER
    schedule = build_schedule(config, plan, effective_batch)
    log_plan(config, plan, schedule, effective_batch)
    run_log = build_run_log(config, job.folder)
    if job.continues:
        run_log.cut_metrics(metrics_size, state.update)
    elif store is not None and job.resume_path is not None:
        store.adopt_best(os.path.dirname(os.path.abspath(job.resume_path)))
    validator = build_validator(job, state.model, run_log, stop)
    saver = Saver(store, read_save_options(config), plan, describe_run(job),
                  run_log.measure_metrics)
    class_counts = np.bincount(job.dataset_train.labels, minlength=config.MODEL.NUM_CLASSES)
    prepare = build_train_batch(config, order.batches_per_epoch)
    batches = build_loader(
        job.dataset_train, order.slice(plan.count_batches_before(state.update),
                                       plan.count_batches_before(plan.total_updates)), config,
        draw=prepare.draw)
    setup = TrainSetup(
        options=read_loop_options(config), plan=plan, schedule=schedule, precision=job.precision,
        compute_loss=job.project.build_loss(config, build_criterion(
            config, class_counts, soft_targets=mixup.is_active(config))),
        prepare=prepare,
        batches=batches,
        validate=lambda state: validator.validate_state(state, plan.count_epochs(state.update)),
        saver=saver, run_log=run_log, stop=stop, watchdog=job.watchdog, folder=job.folder,
        # A GPU is not waited for between reports; on a CPU looking costs nothing.
        check_every=1 if job.device == 'cpu' or config.SAVE_BAD_BATCH else
        min(config.REPORT_FREQ, 10))
    started = time.perf_counter()
    try:
        train(setup, state)
    except Interrupted:
        saver.finish()                  # a failure to save matters more than the signal
        logger.info('Saved at update %d of %d. %s', state.update, plan.total_updates,
                    describe_way_on(config))
        raise
    finally:
        batches.close()
        run_log.close()
        log_skipped(batches.skipped)
        saver.join()                    # of another error it must not take the place
    saver.finish()
    report_last(job, validator)
    which = 'last' if config.BEST == 'latest' else 'best'
    best = f', {which} acc1 {state.best["value"]:.2f} (epoch {state.best["epoch"]})' \
        if state.best else ''
    logger.info('Done: %d updates in %s%s. Run folder: %s', state.update,
                format_duration(time.perf_counter() - started), best, job.folder,
                extra={'colour': 'green'})


def build_state(job: 'Job') -> TrainState:
    """Return the TrainState at the beginning: pretrained weights, optimizer, average."""
    config = job.config
    if config.MODEL.PRETRAINED and job.resume_path is None:
        report = load_from_config(job.model, config, job.dataset_train.class_names)
        match_fine_tuned(report, [job.dataset_train, job.dataset_val], config.MODEL.NUM_CLASSES,
                         job.project.heads)
        if mixup.is_active(config) and not config.TRAIN.CLASS_WEIGHTS:
            logger.info('Fine-tuning with mixup or CutMix, as in training from scratch; the '
                        'recipes in configs/finetune have none (TRAIN.MIXUP_ALPHA, CUTMIX_ALPHA).')
    if job.resume_path is None:
        check_head(job.dataset_train, config.MODEL.NUM_CLASSES)
    frozen = freeze(job.model, config.MODEL.FREEZE)
    log_frozen(config, frozen, total=len(job.model.parameters()))
    optimizer = build_optimizer(config, job.model)
    model, optimizer = job.precision.decorate(job.model, optimizer)
    ema = None
    if config.TRAIN.MODEL_EMA:
        ema = ModelEma(model, config.TRAIN.MODEL_EMA_DECAY, config.TRAIN.MODEL_EMA_WARMUP,
                       optimizer)
    return TrainState(model, optimizer, job.precision.scaler, ema)


def describe_run(job: 'Job') -> dict:
    """Return what every checkpoint says of its run (keys of content.PROGRESS)."""
    config = job.config
    return {'model_name': config.MODEL.NAME, 'seed': config.SEED, 'world_size': get_world_size(),
            'config': dump_config(config), 'class_names': job.dataset_train.class_names,
            'data': describe_data([job.dataset_train, job.dataset_val]),
            'preprocessing': read_preprocessing(config).as_record()}


def resume(state: TrainState, checkpoint: dict, plan: Plan, config: CfgNode) -> None:
    """Continue from a checkpoint: weights, optimizer, EMA, scaler, position and best metric.

    checkpoint: see content.read_checkpoint.
    """
    log_superseded(config)
    log_changes(checkpoint['config'], config)
    for line in restore(state, checkpoint, get_world_size()):
        logger.info('%s', line)
    saved_numerics = checkpoint['numerics'] or {}
    numerics = {name: saved_numerics[name] for name in state.model.get_numerics()
                if saved_numerics.get(name) is not None}
    check_numerics(numerics, checkpoint['path'])
    try:
        state.model.set_numerics(**numerics)
    except (ValueError, TypeError) as error:
        raise UserError(f'{checkpoint["path"]} cannot be resumed from: {error}.') from None
    if checkpoint['learning_rate'] is not None:         # which is saved again, if only validated
        state.optimizer.set_lr(float(checkpoint['learning_rate']))
    state.best = checkpoint['best']
    state.epoch_loss = checkpoint['loss']
    state.awaits_validation = checkpoint['awaits_validation']
    state.has_ended = checkpoint['has_ended']
    if checkpoint['meter']:
        state.meter.set_state_dict(checkpoint['meter'])
    saved_updates_per_epoch = checkpoint['updates_per_epoch']
    if checkpoint['update'] is None:                        # PaddleViT's
        state.update = checkpoint['epoch'] * plan.updates_per_epoch
    elif saved_updates_per_epoch == plan.updates_per_epoch:
        state.update = checkpoint['update']
    elif saved_updates_per_epoch is None:
        raise UserError(f'{checkpoint["path"]} cannot be resumed from: it does not say how many '
                        'updates an epoch had.')
    else:
        epochs = checkpoint['update'] / saved_updates_per_epoch
        state.update = round(epochs * plan.updates_per_epoch)
        logger.info('An epoch had %d updates and has %d now: continuing at update %d, after '
                    '%.2f epochs.', saved_updates_per_epoch, plan.updates_per_epoch,
                    state.update, epochs)


def settle_end(state: TrainState, plan: Plan, config: CfgNode) -> bool:
    """Return whether nothing is left to train, by the plan or because the run was stopped early.

    Of a run that may go on, because its options are other ones, the state no longer says that it
    has ended.
    """
    if state.awaits_validation:
        return False
    if state.update >= plan.total_updates:
        length = 'TRAIN.NUM_STEPS' if config.TRAIN.NUM_STEPS else 'TRAIN.NUM_EPOCHS'
        logger.info('Nothing to do: update %d of %d is done. To train anew, leave -resume and '
                    '-last_epoch out; to go on, raise %s.', state.update, plan.total_updates,
                    length)
        return True
    if state.has_ended and is_without_progress(state, plan, read_loop_options(config)):
        logger.info('Nothing to do: the run was stopped early at update %d, no better than epoch '
                    '%d. To go on, raise %s.', state.update, state.best['epoch'],
                    'TRAIN.EARLY_STOP_STEPS' if config.TRAIN.EARLY_STOP_STEPS else
                    'TRAIN.EARLY_STOP_EPOCHS')
        return True
    state.has_ended = False
    return False


def complete_report(job: 'Job', state: TrainState, plan: Plan, stop: StopRequest) -> None:
    """Write the reports of a run that was killed after its last save and before them."""
    is_there = all(os.path.exists(os.path.join(job.folder, name)) for name in REPORTS)
    if not job.continues or gather_over_ranks([is_there])[0, 0]:     # as rank 0 sees it
        return
    validator = build_validator(job, state.model, RunLog(None), stop)
    with job.watchdog:
        validator.validate_state(state, plan.count_epochs(state.update))
    report_last(job, validator)


def report_last(job: 'Job', validator: Validator) -> None:
    """Write the reports of the last validation, which is of the last checkpoint."""
    validator.report(job.config, job.folder, os.path.join(job.folder, 'last'))
