"""What a run says of itself before it starts, and of its data when it ends."""

import logging
import os
import platform
import sys

import numpy as np
import paddle
from yacs.config import CfgNode

from common.config import dump_config, get_value, list_unused, read_dump
from common.data.images import show_path
from common.machine.device import describe_device
from common.machine.distributed import get_world_size
from common.machine.environment import describe_cpu
from common.option import show
from common.project import Project
from common.terminal import quote_words
from common.training.schedule import Plan, Schedule
from common.weights.registry import RUN_FILES

logger = logging.getLogger(__name__)


def log_start(project: Project, config: CfgNode, device: str, folder: str) -> None:
    """Log what the run is and what it runs on."""
    logger.info('%s %s: %s', 'Evaluating' if config.EVAL else 'Training', config.MODEL.NAME, folder)
    logger.info('%s', describe_device(config.DEVICE, device))
    logger.info('%s', describe_cpu())
    logger.info('Python %s, Paddle %s, NumPy %s; %d process%s, seed %d',
                platform.python_version(), paddle.__version__, np.__version__, get_world_size(),
                'es' if get_world_size() > 1 else '', config.SEED)
    for line in list_unused(config, project.options):
        logger.info('Not used: %s', line)


def log_superseded(config: CfgNode) -> None:
    """Log the options that a run which goes on from a checkpoint does not read."""
    for key in ('MODEL.PRETRAINED', 'TRAIN.LAST_EPOCH'):
        if get_value(config, key):
            logger.info('Not used: %s %s (the run goes on from a checkpoint)', key,
                        show(get_value(config, key)))


def log_changes(saved_config: str | None, config: CfgNode) -> None:
    """Log every option that is not as in the run that is continued.

    saved_config: yaml text, or None (PaddleViT's checkpoints have none). Where the output
    goes and how often it is written may change freely.
    """
    if saved_config is None:
        return
    saved = read_dump(saved_config, 'The config recorded in the checkpoint')
    now = read_dump(dump_config(config), 'The config')
    free = {'MODEL.RESUME', 'SAVE', 'SAVE_FREQ', 'SAVE_STEPS', 'SAVE_MINUTES', 'KEEP',
            'REPORT_FREQ', 'NPROCS', 'DEVICE', 'WATCHDOG_SECONDS', 'DATA.NUM_WORKERS', 'VISUALDL'}
    for key in sorted((set(saved) | set(now)) - free):
        if saved.get(key) != now.get(key):
            logger.info('The run that is continued had %s %s; now it is %s.', key,
                        show(saved.get(key)), show(now.get(key)))


def describe_way_on(config: CfgNode) -> str:
    """Return how a run that was stopped goes on."""
    command = 'the same command' if config.MODEL.RESUME == 'auto' else \
        'the same command with -resume=auto'
    return f'To go on: {command}.'


def describe_use(folder: str) -> str:
    """Return how the model of a run that has ended is used."""
    weights = next((name for name in RUN_FILES if os.path.exists(os.path.join(folder, name))), None)
    weights = os.path.join(folder, (weights or RUN_FILES[-1]).removesuffix('.pdparams'))
    return (f'To use it: python {name_script("predict.py")} -pretrained={quote_words(weights)} '
            'PICTURE; demo.py instead of predict.py is a web page, export_model.py ships it.')


def name_script(name: str) -> str:
    """Return the path of another script beside the one that runs, as the user would write it."""
    path = os.path.join(os.path.dirname(sys.argv[0]), name)
    return quote_words(path) if os.path.isfile(path) else name


def log_skipped(skipped: dict[str, int]) -> None:
    """Log which unreadable images SKIP_CORRUPT replaced or left out. skipped: {path: times}."""
    if skipped:
        logger.warning('%d unreadable images were skipped, %d times in all: %s%s', len(skipped),
                       sum(skipped.values()), ', '.join(map(show_path, sorted(skipped)[:5])),
                       ', ...' if len(skipped) > 5 else '')


def log_plan(config: CfgNode, plan: Plan, schedule: Schedule, effective_batch: int) -> None:
    """Log the lengths and rates that the run will have."""
    logger.info('Effective batch %d = %d images x %d processes x %d accumulated; %d updates an '
                'epoch, %d in all; warmup %d updates; peak learning rate %.1e, weight decay %g',
                effective_batch, config.DATA.BATCH_SIZE, get_world_size(),
                config.TRAIN.ACCUM_ITER, plan.updates_per_epoch, plan.total_updates,
                plan.warmup_updates, schedule.peak, config.TRAIN.WEIGHT_DECAY)
    warn_of_other_batch(config, schedule, effective_batch)


def warn_of_other_batch(config: CfgNode, schedule: Schedule, effective_batch: int) -> None:
    """Warn where an update takes another number of images than in the recipe."""
    train = config.TRAIN
    recipe_batch = train.RECIPE_BATCH or train.LINEAR_SCALED_LR
    if recipe_batch in (None, effective_batch):
        return
    rate = 'stays the same (TRAIN.LINEAR_SCALED_LR would scale it)'
    if train.LINEAR_SCALED_LR:
        rate = f'is scaled from {train.BASE_LR:.1e} to {schedule.peak:.1e}'
    images = config.DATA.BATCH_SIZE * get_world_size()
    remedy = '' if recipe_batch % images else \
        f' Use -accum_iter={recipe_batch // images} for {recipe_batch}.'
    logger.warning('The recipe has %d images an update, this run %d: the learning rate %s, and '
                   'an epoch has %.3g times the updates.%s', recipe_batch, effective_batch, rate,
                   recipe_batch / effective_batch, remedy)
