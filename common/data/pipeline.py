"""From the config to transforms, data set and loader, under PaddleViT's function names.

The model directories' `datasets.py` are built on these. A run takes its data set from there
and makes its batches by TrainBatches and build_loader, because it may continue in the middle
of an epoch.
"""

from collections.abc import Callable

from yacs.config import CfgNode

from common.machine.environment import tune_cpu

tune_cpu()      # the loader imports Paddle

from common.data.datasets import Dataset, build_dataset
from common.data.loader import Draw, Loader, build_loader
from common.data.sampler import EvalBatches, TrainBatches
from common.data.transforms import (
    Compose,
    ResizeCentreCrop,
    build_eval_transform,
    build_train_transform,
)


def get_train_transforms(config: CfgNode) -> Compose:
    """Return the training transform: (PIL image, numpy Generator) -> PIL image."""
    return build_train_transform(config)


def get_val_transforms(config: CfgNode) -> ResizeCentreCrop:
    """Return the evaluation transform: (PIL image, numpy Generator) -> PIL image."""
    return build_eval_transform(config)


def get_dataset(config: CfgNode, is_train: bool = True,
                transform: Callable | None = None) -> Dataset:
    """Return the training or the validation part of config.DATA.DATASET.

    transform: (PIL image, numpy Generator) -> PIL image; None: the one of the config.
    """
    if transform is None:
        transform = get_train_transforms(config) if is_train else get_val_transforms(config)
    return build_dataset(config, is_train, transform)


def get_dataloader(config: CfgNode, dataset: Dataset, is_train: bool = True,
                   use_dist_sampler: bool = False, epoch: int = 0, draw: Draw | None = None
                   ) -> Loader:
    """Return a loader over one epoch: (uint8 [B, S, S, 3], labels [B], indices [B]) a batch.

    use_dist_sampler: load this process's share only. epoch: chooses the order and
    the random crops of a training epoch. draw: see Loader.
    """
    rank, world_size = 0, 1
    if use_dist_sampler:
        import paddle.distributed

        rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    if not is_train:
        batch_size = config.DATA.BATCH_SIZE_EVAL or config.DATA.BATCH_SIZE
        return build_loader(
            dataset, EvalBatches(len(dataset), batch_size, rank, world_size), config)
    batches = TrainBatches(len(dataset), config.DATA.BATCH_SIZE, config.SEED, rank, world_size,
                           config.TRAIN.REPEATED_AUGMENTS)
    first = epoch * batches.batches_per_epoch
    return build_loader(dataset, batches.slice(first, first + batches.batches_per_epoch), config,
                        draw=draw)
