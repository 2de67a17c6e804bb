"""T2T-ViT's transforms, data sets and loader, as its yaml files choose them.

The official training crops with a random choice of bilinear and bicubic
(TRAIN.INTERPOLATION "random") and normalises by the ImageNet mean and std.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from yacs.config import CfgNode

from common.data import pipeline
from common.data.datasets import Dataset
from common.data.transforms import Compose, ResizeCentreCrop

get_dataloader = pipeline.get_dataloader


def get_train_transforms(config: CfgNode) -> Compose:
    """Return what is done to a training image: (PIL image, numpy Generator) -> PIL image.

    Runs use this function: change it to train with other transforms.
    """
    return pipeline.get_train_transforms(config)


def get_val_transforms(config: CfgNode) -> ResizeCentreCrop:
    """Return what is done to a validation image, in the same form."""
    return pipeline.get_val_transforms(config)


def get_dataset(config: CfgNode, is_train: bool = True) -> Dataset:
    """Return the training or the validation part of config.DATA.DATASET with its transform."""
    transform = get_train_transforms(config) if is_train else get_val_transforms(config)
    return pipeline.get_dataset(config, is_train, transform)
