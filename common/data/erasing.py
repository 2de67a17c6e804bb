"""Random erasing (arXiv 1708.04896) on the device, after normalisation.

Rectangles and noise come from a generator of the sample's own, so that they do
not depend on the batch, the number of workers or the number of processes.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from yacs.config import CfgNode

MIN_AREA, MAX_AREA = 0.02, 1 / 3            # of the image
MIN_ASPECT = 0.3                            # height / width, up to 1 / MIN_ASPECT
ATTEMPTS = 10                               # to draw a rectangle that fits

STREAM = 0x657261                           # keeps these numbers apart from other draws


def build_erasing(config: CfgNode) -> 'RandomErasing | None':
    """Return the RandomErasing of TRAIN.RANDOM_ERASE_*, or None where it is off."""
    train = config.TRAIN
    if train.RANDOM_ERASE_PROB == 0:
        return None
    return RandomErasing(train.RANDOM_ERASE_PROB, train.RANDOM_ERASE_MODE,
                         train.RANDOM_ERASE_COUNT, train.RANDOM_ERASE_SPLIT, config.SEED)


class RandomErasing:
    """Replace rectangles of the images by noise or zero, in place.

    mode: "pixel" writes N(0, 1) into every value, "rand" one N(0, 1) a channel, "const"
    zero, which is the mean after normalisation. Each image is chosen with the probability
    `prob` and gets 1 to `max_count` rectangles, which share the area. split: leave the
    first half of each batch alone.
    """

    def __init__(self, prob: float, mode: str = 'pixel', max_count: int = 1, split: bool = False,
                 seed: int = 0):
        self.prob = prob
        self.mode = mode
        self.max_count = max_count
        self.split = split
        self.seed = seed

    def __call__(self, images: paddle.Tensor, epoch: int,
                 indices: Sequence[int] | np.ndarray) -> paddle.Tensor:
        """Return `images`, erased in place.

        images: float32 [B, C, H, W]. indices: the B samples' places in the data set.
        """
        batch_size, channels, height, width = images.shape
        assert len(indices) == batch_size, (len(indices), batch_size)
        for position in range(batch_size // 2 if self.split else 0, batch_size):
            generator = build_generator(self.seed, epoch, indices[position])
            if generator.random() >= self.prob:
                continue
            for top, left, rows, columns in self.draw_rectangles(height, width, generator):
                values = self.draw_values(channels, rows, columns, generator)
                images[position, :, top:top + rows, left:left + columns] = (
                    paddle.to_tensor(values) if values is not None else 0.0)
        return images

    def draw_rectangles(self, height: int, width: int,
                        generator: np.random.Generator) -> Iterator[tuple[int, int, int, int]]:
        """Yield (top, left, rows, columns), all inside the image; none if none fits."""
        count = int(generator.integers(1, self.max_count, endpoint=True))
        log_aspect = math.log(MIN_ASPECT)
        for _ in range(count):
            for _ in range(ATTEMPTS):
                area = generator.uniform(MIN_AREA, MAX_AREA) * height * width / count
                aspect = math.exp(generator.uniform(log_aspect, -log_aspect))
                rows = round(math.sqrt(area * aspect))
                columns = round(math.sqrt(area / aspect))
                if 0 < rows < height and 0 < columns < width:
                    top = int(generator.integers(0, height - rows, endpoint=True))
                    left = int(generator.integers(0, width - columns, endpoint=True))
                    yield top, left, rows, columns
                    break

    def draw_values(self, channels: int, rows: int, columns: int,
                    generator: np.random.Generator) -> np.ndarray | None:
        """Return what is written: float32 [C, rows, columns], or None for zero."""
        if self.mode == 'const':
            return None
        shape = (channels, rows, columns) if self.mode == 'pixel' else (channels, 1, 1)
        noise = generator.standard_normal(shape, dtype='float32')
        return np.ascontiguousarray(np.broadcast_to(noise, (channels, rows, columns)))


def build_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one sample in one epoch."""
    sequence = np.random.SeedSequence([seed, epoch, int(index), STREAM])
    return np.random.Generator(np.random.PCG64(sequence))
