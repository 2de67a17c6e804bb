"""From a loader's batch to what the model and the loss take, on the device."""

from collections.abc import Sequence

import numpy as np
import paddle
from yacs.config import CfgNode

from common.data.erasing import RandomErasing, build_erasing
from common.data.mixup import Mixup, build_mixup
from common.data.normalize import Preprocess
from common.machine.distributed import get_rank

MIXUP_STREAM = 0x4D4958     # keeps mixup's random numbers apart from every other use of the seed


def build_train_batch(config: CfgNode, batches_per_epoch: int) -> 'TrainBatch':
    """Return the TrainBatch that the config describes. batches_per_epoch: of one process."""
    preprocess = Preprocess(config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD)
    return TrainBatch(preprocess, build_erasing(config), build_mixup(config), config.SEED,
                      batches_per_epoch)


class TrainBatch:
    """Normalise, erase and mix one training batch; erase and mix may be None.

    Erasing is seeded by (seed, epoch, sample), mixup by (seed, batch number, rank).
    """

    def __init__(self, preprocess: Preprocess, erase: RandomErasing | None, mix: Mixup | None,
                 seed: int, batches_per_epoch: int):
        self.preprocess = preprocess
        self.erase = erase
        self.mix = mix
        self.seed = seed
        self.batches_per_epoch = batches_per_epoch

    def __call__(self, batch: Sequence[paddle.Tensor],
                 number: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return (images float32 [B, 3, H, W], targets) of micro-batch `number` of the run.

        batch: uint8 images [B, H, W, 3], labels [B], sample indices [B]. targets: the
        labels, or distributions [B, C] under mixup.
        """
        images, labels, indices = batch
        images = self.preprocess(images)
        if self.erase is not None:
            epoch = number // self.batches_per_epoch
            images = self.erase(images, epoch, indices.numpy())
        if self.mix is None:
            return images, labels
        words = np.random.SeedSequence([self.seed, number, get_rank(), MIXUP_STREAM])
        return self.mix(images, labels, np.random.Generator(np.random.PCG64(words)))
