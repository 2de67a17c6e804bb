"""T2T-ViT's transforms, data sets and loader, as its yaml files choose them.

The official training crops with a random choice of bilinear and bicubic
(TRAIN.INTERPOLATION "random") and normalises by the ImageNet mean and std.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import pipeline

get_train_transforms = pipeline.get_train_transforms
get_val_transforms = pipeline.get_val_transforms
get_dataset = pipeline.get_dataset
get_dataloader = pipeline.get_dataloader
