"""One run in one process: everything is built from the config here, then trained or evaluated."""

import logging
import os
import time
import zlib

import numpy as np
import paddle

from common.checkpoints.content import read_checkpoint, restore
from common.checkpoints.saver import Saver
from common.checkpoints.store import find_resume
from common.config import dump_config
from common.data import mixup
from common.data.batch import build_train_batch
from common.data.loader import build_loader
from common.data.normalize import Preprocess
from common.data.sampler import EvalBatches, TrainBatches
from common.errors import RunError, UserError
from common.kernels import install
from common.machine.device import choose_device
from common.machine.distributed import agree_on, broadcast_texts, get_rank, get_world_size
from common.run.announce import log_changes, log_plan, log_skipped, log_start
from common.run.log import (
    RunLog,
    discard_run_folder,
    format_duration,
    make_run_folder,
    start_logging,
)
from common.training.confusion import Predictions, write_report
from common.training.ema import ModelEma
from common.training.evaluate import evaluate
from common.training.finetune import freeze, log_frozen
from common.training.loop import TrainSetup, TrainState, read_loop_options, train
from common.training.losses import build_criterion
from common.training.optimizer import build_optimizer
from common.training.out_of_memory import advise, is_out_of_memory
from common.training.precision import build_precision
from common.training.schedule import build_plan, build_schedule
from common.training.stopping import SIGNALS, StopRequest, Watchdog
from common.weights import load_from_config

logger = logging.getLogger(__name__)


def run(project, config):
    """Train or evaluate in this process, which may be one of several.

    project: common.project.Project. Distributed initialisation is done.
    """
    device = choose_device(config.DEVICE)
    paddle.set_device(device)
    start_logging(quiet=get_rank() > 0)
    folder, resume_path = choose_folder(config)
    start_logging(folder if get_rank() == 0 else None, quiet=get_rank() > 0)
    log_start(project, config, device, folder)
    agree_on('the config', zlib.crc32(dump_config(config).encode()))
    try:
        # From here to the end of the last save a signal is remembered, and training stops
        # after an update; there is nothing to save of an evaluation.
        with StopRequest(() if config.EVAL else SIGNALS) as stop:
            job = Job(project, config, device, folder, resume_path)
            if config.EVAL:
                run_evaluation(job)
            else:
                run_training(job, stop)
    except UserError:
        if get_rank() == 0:
            discard_run_folder(folder)
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(advise(config, device)) from error
        raise


class Job:
    """What training and evaluation are both built from."""

    def __init__(self, project, config, device, folder, resume_path):
        self.project = project
        self.config = config
        self.device = device
        self.folder = folder
        self.resume_path = resume_path
        # -resume=auto goes on in the folder of the run that was interrupted.
        self.continues = resume_path is not None and config.MODEL.RESUME == 'auto'
        self.dataset_val = self._open_dataset(project, is_train=False)
        self.dataset_train = None if config.EVAL else self._open_dataset(project, is_train=True)
        paddle.seed(config.SEED)            # initial weights, the same on every rank
        self.model = project.build_model(config)
        if device == 'cpu' and config.FAST:
            logger.info('CPU kernels: %d layers (FAST False: none)', install(self.model, 'cpu'))
        self.predictions = None             # of the last evaluation
        self.precision = build_precision(config, device)
        self.preprocess = Preprocess(config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD)
        self.watchdog = Watchdog(config.WATCHDOG_SECONDS)

    def _open_dataset(self, project, is_train):
        dataset = project.get_dataset(self.config, is_train)
        logger.info('Data: %s', dataset.describe())
        agree_on('the data set', dataset.checksum())
        return dataset

    def validate(self, run_log, epoch=0, update=0, weights='model'):
        """Evaluate the model as it is, log the figures and return the EvalResult."""
        batch_size = self.config.DATA.BATCH_SIZE_EVAL or self.config.DATA.BATCH_SIZE
        batches = EvalBatches(len(self.dataset_val), batch_size, get_rank(), get_world_size())
        loader = build_loader(self.dataset_val, batches, self.config)
        run_log.start_bar(len(batches), unit='batch', text='Evaluating')
        self.predictions = Predictions()

        def on_batch():
            run_log.advance_bar()
            self.watchdog.feed('evaluating', loader.describe_workers)

        result = evaluate(self.model, loader, self.preprocess, self.precision, on_batch,
                          self.predictions)
        run_log.close_bar()
        name = ' (averaged weights)' if weights == 'ema' else ''
        logger.info('Evaluation%s: loss %.4f, acc1 %.2f, acc5 %.2f, %d images in %s '
                    '(%.1f images/s)', name, result.loss, result.acc1, result.acc5, result.images,
                    format_duration(result.seconds), result.images / result.seconds)
        run_log.write_metrics('eval', epoch=epoch, update=update, weights=weights,
                              **result.as_metrics())
        return result

    def report_mistakes(self):
        """Write what the last evaluation got wrong to the run folder."""
        samples = self.predictions.gather()
        if get_rank() == 0:
            write_report(self.folder, samples, self.dataset_val, self.config.MODEL.NUM_CLASSES)


def run_evaluation(job):
    """Evaluate MODEL.PRETRAINED on the validation data."""
    config = job.config
    if config.MODEL.RESUME:
        raise UserError('-resume continues a training run; for -eval give its checkpoint as '
                        '-pretrained.')
    if not config.MODEL.PRETRAINED:
        raise UserError('-eval needs weights: give -pretrained=FILE. A checkpoint of a run will '
                        'do, such as <run folder>/best.')
    load_from_config(job.model, config)
    if job.device == 'cpu' and config.FAST and get_world_size() == 1:
        # Imported here: exporting stands on common.run.launch, and that on this module.
        from common.deploy.evaluation import choose_evaluator
        job.model = choose_evaluator(job.model, config, len(job.dataset_val))
    run_log = RunLog(job.folder if get_rank() == 0 else None, config)
    with job.watchdog:
        job.validate(run_log)
        job.report_mistakes()
    run_log.close()


def run_training(job, stop):
    """Train from the beginning, from pretrained weights, or from a checkpoint."""
    config = job.config
    world_size = get_world_size()
    state = build_state(job)
    num_samples = len(job.dataset_train)
    order = TrainBatches(num_samples, config.DATA.BATCH_SIZE, config.SEED, get_rank(), world_size)
    plan = build_plan(config, order.batches_per_epoch)
    state.update = config.TRAIN.LAST_EPOCH * plan.updates_per_epoch
    if job.resume_path is not None:
        resume(state, job.resume_path, plan, config)
    if state.update >= plan.total_updates:
        logger.info('Nothing to do: update %d of %d is done. To train anew, leave -resume and '
                    '-last_epoch out; to go on, raise TRAIN.NUM_EPOCHS.', state.update,
                    plan.total_updates)
        return
    order = order.slice(plan.count_batches_before(state.update),
                        plan.count_batches_before(plan.total_updates))
    effective_batch = config.DATA.BATCH_SIZE * world_size * config.TRAIN.ACCUM_ITER
    schedule = build_schedule(config, plan, effective_batch)
    log_plan(config, plan, schedule, effective_batch)

    run_log = RunLog(job.folder if get_rank() == 0 else None, config,
                     continue_from=state.update if job.continues else None)
    saver = Saver(job, plan)
    class_counts = np.bincount(job.dataset_train.labels, minlength=config.MODEL.NUM_CLASSES)
    setup = TrainSetup(
        options=read_loop_options(config), plan=plan, schedule=schedule, precision=job.precision,
        compute_loss=job.project.build_loss(config, build_criterion(
            config, class_counts, soft_targets=mixup.is_active(config))),
        prepare=build_train_batch(config, order.batches_per_epoch),
        batches=build_loader(job.dataset_train, order, config),
        validate=lambda state: validate_state(job, state, plan, run_log),
        saver=saver, run_log=run_log, stop=stop, watchdog=job.watchdog, folder=job.folder,
        # A GPU is not waited for between reports; on a CPU looking costs nothing.
        check_every=1 if job.device == 'cpu' or config.SAVE_BAD_BATCH else
        min(config.REPORT_FREQ, 10))
    started = time.perf_counter()
    try:
        train(setup, state)
    finally:
        run_log.close()
        log_skipped(setup.batches.skipped)
        saver.finish()
    job.report_mistakes()
    best = f', best acc1 {state.best["value"]:.2f} (epoch {state.best["epoch"]})' \
        if state.best else ''
    logger.info('Done: %d updates in %s%s. Run folder: %s', state.update,
                format_duration(time.perf_counter() - started), best, job.folder)


def build_state(job):
    """Return the TrainState at the beginning: pretrained weights, optimizer, average."""
    config = job.config
    if config.MODEL.PRETRAINED and job.resume_path is None:
        load_from_config(job.model, config)
        if mixup.is_active(config):
            logger.info('Fine-tuning with mixup or CutMix, as in training from scratch; the '
                        'recipes in configs/finetune have none (TRAIN.MIXUP_ALPHA, CUTMIX_ALPHA).')
    frozen = freeze(job.model, config.MODEL.FREEZE)
    log_frozen(config, frozen, total=len(job.model.parameters()))
    optimizer = build_optimizer(config, job.model)
    job.model, optimizer = job.precision.decorate(job.model, optimizer)
    ema = None
    if config.TRAIN.MODEL_EMA:
        ema = ModelEma(job.model, config.TRAIN.MODEL_EMA_DECAY, config.TRAIN.MODEL_EMA_WARMUP,
                       optimizer)
    return TrainState(job.model, optimizer, job.precision.scaler, ema)


def validate_state(job, state, plan, run_log):
    """Evaluate the trained weights and, if there is one, their average; return acc1 to judge by."""
    epoch = (state.update - 1) // plan.updates_per_epoch + 1
    acc1 = job.validate(run_log, epoch, state.update).acc1
    if state.ema is not None:
        with state.ema.averaged_weights():
            acc1 = job.validate(run_log, epoch, state.update, weights='ema').acc1
    return acc1


def resume(state, path, plan, config):
    """Continue from a checkpoint: weights, optimizer, EMA, scaler, position and best metric."""
    checkpoint = read_checkpoint(path)
    log_changes(checkpoint['config'], config)
    for line in restore(state, checkpoint, get_world_size()):
        logger.info('%s', line)
    saved_numerics = checkpoint['numerics'] or {}
    state.model.set_numerics(**{name: saved_numerics[name] for name in state.model.get_numerics()
                                if name in saved_numerics})
    state.best = checkpoint['best']
    if checkpoint['meter']:
        state.meter.set_state_dict(checkpoint['meter'])
    saved_updates_per_epoch = checkpoint['updates_per_epoch']
    if checkpoint['update'] is None:                        # PaddleViT's
        state.update = checkpoint['epoch'] * plan.updates_per_epoch
    elif saved_updates_per_epoch == plan.updates_per_epoch:
        state.update = checkpoint['update']
    else:
        epochs = checkpoint['update'] / saved_updates_per_epoch
        state.update = round(epochs * plan.updates_per_epoch)
        logger.info('An epoch had %d updates and has %d now: continuing at update %d, after '
                    '%.2f epochs.', saved_updates_per_epoch, plan.updates_per_epoch,
                    state.update, epochs)


def choose_folder(config):
    """Return (run folder, checkpoint to resume from or None), as rank 0 finds them.

    -resume=auto continues in the folder of the run that was interrupted; -resume=PATH
    begins a new one.
    """
    found = ['', '']
    if get_rank() == 0:
        resume_path = None
        if config.MODEL.RESUME and not config.EVAL:
            resume_path = find_resume(config.MODEL.RESUME, config.SAVE, config.MODEL.NAME)
        if resume_path is not None and config.MODEL.RESUME == 'auto':
            folder = os.path.dirname(os.path.abspath(resume_path))
        else:
            folder = make_run_folder(config)
        found = [folder, resume_path or '']
    folder, resume_path = broadcast_texts(found)
    return folder, resume_path or None
