"""From a loader's batch to what the model and the loss take, on the device."""

import numpy as np

from common.data import erasing, mixup
from common.data.normalize import Preprocess
from common.machine.distributed import get_rank

MIXUP_STREAM = 0x4D4958     # keeps mixup's random numbers apart from every other use of the seed


class TrainBatch:
    """Normalise, erase and mix one training batch.

    Erasing is seeded by (SEED, epoch, sample), mixup by (SEED, batch number, rank).
    """

    def __init__(self, config, batches_per_epoch):
        self.seed = config.SEED
        self.batches_per_epoch = batches_per_epoch
        self.preprocess = Preprocess(config)
        self.erase = self.mix = None
        if erasing.is_active(config):
            self.erase = erasing.RandomErasing(config)
        if mixup.is_active(config):
            self.mix = mixup.Mixup(config, config.MODEL.NUM_CLASSES)

    def __call__(self, batch, number):
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
