"""One run in one process: everything is built from the config here, then trained or evaluated."""

import logging
import zlib
from dataclasses import dataclass

import numpy as np
import paddle
from yacs.config import CfgNode

from common.config import dump_config
from common.data.datasets import Dataset
from common.data.normalize import Preprocess
from common.deploy.formats import is_exported
from common.errors import RunError, UserError
from common.kernels import install
from common.machine.device import allow_tf32, choose_device
from common.machine.distributed import agree_on, get_rank, get_world_size
from common.project import Project
from common.run.announce import describe_use, log_start
from common.run.folder import choose_folder
from common.run.log import RunLog, build_run_log, discard_run_folder, start_logging
from common.run.records import match_evaluated
from common.run.training import run_training
from common.run.validation import build_validator
from common.training.out_of_memory import advise, is_out_of_memory
from common.training.precision import Precision, build_precision
from common.training.stopping import SIGNALS, StopRequest, Watchdog
from common.weights import load_from_config

logger = logging.getLogger(__name__)


def run(project: Project, config: CfgNode, folder: str | None = None) -> None:
    """Train or evaluate in this process, which may be one of several.

    Distributed initialisation is done. folder: of the run; None: a new one, or that of the run
    that is continued, and what can be done next is said at the end.
    """
    says_use = folder is None and not config.EVAL
    device = choose_device(config.DEVICE)
    paddle.set_device(device)
    start_logging(quiet=get_rank() > 0)
    folder, resume_path, lock = choose_folder(config, folder)
    start_logging(folder if get_rank() == 0 else None, quiet=get_rank() > 0)
    log_start(project, config, device, folder)
    agree_on('the config', zlib.crc32(dump_config(config).encode()))
    try:
        # From here to the end of the last save a signal is remembered, and training stops
        # after an update; there is nothing to save of an evaluation.
        with StopRequest(() if config.EVAL else SIGNALS) as stop:
            job = build_job(project, config, device, folder, resume_path)
            if config.EVAL:
                run_evaluation(job)
            else:
                run_training(job, stop)
        if says_use:
            logger.info('%s', describe_use(folder))
    except UserError:
        if get_rank() == 0:
            discard_run_folder(folder)
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise RunError(advise(config, device)) from error
        raise
    finally:
        if lock is not None:
            lock.release()


@dataclass(frozen=True)
class Job:
    """What training and evaluation are both built from."""

    project: Project
    config: CfgNode
    device: str
    folder: str                     # of the run
    resume_path: str | None         # the checkpoint that it goes on from
    continues: bool                 # in the folder of the run that was interrupted
    dataset_val: Dataset
    dataset_train: Dataset | None   # None: evaluation only
    model: paddle.nn.Layer | None   # None: an exported one is evaluated
    precision: Precision
    preprocess: Preprocess
    watchdog: Watchdog


def build_job(project: Project, config: CfgNode, device: str, folder: str,
              resume_path: str | None) -> Job:
    """Build data sets, model and what it computes with from the config."""
    dataset_val = open_dataset(project, config, is_train=False)
    dataset_train = None if config.EVAL else open_dataset(project, config, is_train=True)
    tf32 = allow_tf32(config.TF32, device)
    if not config.TF32 or device.startswith('gpu'):
        logger.info('%s', tf32)
    paddle.seed(config.SEED)            # initial weights, the same on every rank
    is_model = not is_exported(config.MODEL.PRETRAINED)
    if not is_model and not (config.EVAL and device == 'cpu'):
        raise UserError(f'{config.MODEL.PRETRAINED} is an exported model: it can be evaluated on a '
                        'CPU (-eval -device=cpu), and predict.py -model takes it.')
    model = project.build_model(config) if is_model else None
    precision = build_precision(config, device)
    if device == 'cpu' and config.FAST and is_model:
        logger.info('CPU kernels: %d layers (FAST False: none)', install(model, 'cpu'))
    elif precision.enabled and config.FAST:
        logger.info('Fused attention: %d layers (FAST False: none)',
                    install(model, 'fused', precision.dtype))
    return Job(project, config, device, folder, resume_path,
               continues=resume_path is not None and config.MODEL.RESUME == 'auto',
               dataset_val=dataset_val, dataset_train=dataset_train, model=model,
               precision=precision,
               preprocess=Preprocess(config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD),
               watchdog=Watchdog(config.WATCHDOG_SECONDS))


def open_dataset(project: Project, config: CfgNode, is_train: bool) -> Dataset:
    """Return the training or validation data, the same on every rank, said in the log."""
    dataset = project.get_dataset(config, is_train)
    logger.info('Data: %s', dataset.describe())
    agree_on('the data set', dataset.checksum())
    return dataset


def evaluate_checkpoint(project: Project, config: CfgNode, path: str, folder: str
                        ) -> tuple[np.ndarray, Dataset]:
    """Evaluate a checkpoint of a run on its validation data, and write the reports to `folder`.

    Returns (samples, the data): see Predictions.gather.
    """
    config = config.clone()
    config.defrost()
    config.EVAL, config.MODEL.PRETRAINED = True, path
    config.freeze()
    job = build_job(project, config, choose_device(config.DEVICE), folder, None)
    match_evaluated(load_from_config(job.model, config), job.dataset_val, config.MODEL.NUM_CLASSES)
    validator = build_validator(job, job.model, RunLog(None), StopRequest(()))
    with job.watchdog:
        validator.validate()
        validator.report(config, folder, path)
    return validator.predictions.gather(), job.dataset_val


def run_evaluation(job: Job) -> None:
    """Evaluate MODEL.PRETRAINED on the validation data."""
    config = job.config
    if config.MODEL.RESUME:
        raise UserError('-resume continues a training run; for -eval give its checkpoint as '
                        '-pretrained.')
    if not config.MODEL.PRETRAINED:
        raise UserError('-eval needs weights: give -pretrained=FILE. A checkpoint of a run will '
                        'do, such as <run folder>/best.')
    if len(job.dataset_val) == 0:
        raise UserError(f'There is nothing to evaluate: {job.dataset_val.describe()}.')
    # Imported here: exporting stands on common.run.launch, and that on this module.
    from common.deploy.evaluation import choose_evaluator, open_exported
    model, report = (job.model, load_from_config(job.model, config)) if job.model is not None \
        else open_exported(config)
    match_evaluated(report, job.dataset_val, config.MODEL.NUM_CLASSES)
    if model is job.model and job.device == 'cpu' and config.FAST and get_world_size() == 1:
        model = choose_evaluator(model, config, len(job.dataset_val))
    run_log = build_run_log(config, job.folder)
    validator = build_validator(job, model, run_log, StopRequest(()))
    with job.watchdog:
        validator.validate()
        validator.report(config, job.folder, config.MODEL.PRETRAINED)
    run_log.close()
