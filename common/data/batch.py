"""From a loader's batch to what the model and the loss take, on the device."""

from collections.abc import Sequence

import numpy as np
import paddle
from yacs.config import CfgNode

from common.data.erasing import RandomErasing, build_erasing, erase
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

    Erasing is seeded by (seed, epoch, sample), mixup by (seed, batch number, rank). What is
    drawn at random comes with the batch: `draw` runs in the loader's workers, so that nothing is
    sent to the device while it computes.
    """

    def __init__(self, preprocess: Preprocess, erase: RandomErasing | None, mix: Mixup | None,
                 seed: int, batches_per_epoch: int):
        self.preprocess = preprocess
        self.erase = erase
        self.mix = mix
        self.seed = seed
        self.batches_per_epoch = batches_per_epoch
        self.rank = get_rank()

    def draw(self, number: int, shape: Sequence[int], indices: np.ndarray) -> list[np.ndarray]:
        """Return the arrays that __call__ takes after images, labels and indices.

        number: of the micro-batch in the run. shape: [B, H, W, C] of its images. indices: its
        samples' places in the data set.
        """
        batch_size, height, width, channels = shape
        drawn = []
        if self.erase is not None:
            drawn += self.erase.draw([batch_size, channels, height, width],
                                     number // self.batches_per_epoch, indices)
        if self.mix is not None:
            words = np.random.SeedSequence([self.seed, number, self.rank, MIXUP_STREAM])
            lam, boxes = self.mix.draw(batch_size, height, width,
                                       np.random.Generator(np.random.PCG64(words)))
            drawn += self.mix.pack(lam, boxes, height, width)
        return drawn

    def __call__(self, batch: Sequence[paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return (images float32 [B, 3, H, W], targets).

        batch: uint8 images [B, H, W, 3], labels [B], sample indices [B], then what `draw`
        returns. targets: the labels, or distributions [B, C] under mixup.
        """
        images, labels, _, *drawn = batch
        images = self.preprocess(images)
        if self.erase is not None:
            images, drawn = erase(images, *drawn[:2]), drawn[2:]
        if self.mix is None:
            return images, labels
        return self.mix.mix(images, labels, *drawn)
