"""ViT's transforms, data sets and loader: chosen by the config (DATA.*, TRAIN.*)."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.data.pipeline import (  # noqa: F401
    get_dataloader,
    get_dataset,
    get_train_transforms,
    get_val_transforms,
)
