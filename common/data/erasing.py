"""Random erasing (arXiv 1708.04896) on the device, after normalisation.

Rectangles and noise come from a generator of the sample's own, so that they do
not depend on the batch, the number of workers or the number of processes. The
loader's workers draw them, and send what is written with the batch.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from yacs.config import CfgNode

from common.machine.host_memory import share

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

    def __call__(self, images: paddle.Tensor, epoch: int, indices: Sequence[int] | np.ndarray
                 ) -> paddle.Tensor:
        """Return `images`, erased in place.

        images: float32 [B, C, H, W]. indices: the B samples' places in the data set.
        """
        return erase(images, *map(paddle.to_tensor, self.draw(images.shape, epoch, indices)))

    def draw(self, shape: Sequence[int], epoch: int, indices: Sequence[int] | np.ndarray
             ) -> list[np.ndarray]:
        """Return what is written to a batch: places in it as if it were flat, and values.

        shape: [B, C, H, W]. Returns [int32 [n] (int64 if needed), float32 [n]], no place twice.
        """
        batch_size, channels, height, width = shape
        assert len(indices) == batch_size, (len(indices), batch_size)
        places: list[np.ndarray] = [np.zeros(0, np.int64)]
        values: list[np.ndarray] = [np.zeros(0, np.float32)]
        for position in range(batch_size // 2 if self.split else 0, batch_size):
            generator = build_generator(self.seed, epoch, indices[position])
            if generator.random() >= self.prob:
                continue
            image, noise = None, None
            for top, left, rows, columns in self.draw_rectangles(height, width, generator):
                if image is None:
                    image = np.zeros([channels, height, width], bool)
                    noise = np.empty([channels, height, width], np.float32)
                part = slice(None), slice(top, top + rows), slice(left, left + columns)
                image[part] = True
                noise[part] = self.draw_values(channels, rows, columns, generator)
            if image is not None:
                places.append(np.flatnonzero(image) + position * image.size)
                values.append(noise[image])
        dtype = np.int32 if math.prod(shape) < 2 ** 31 else np.int64
        return [np.concatenate(places).astype(dtype), np.concatenate(values)]

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
                    generator: np.random.Generator) -> np.ndarray | float:
        """Return what is written: float32 [C, rows, columns] or [C, 1, 1], or zero."""
        if self.mode == 'const':
            return 0.0
        shape = (channels, rows, columns) if self.mode == 'pixel' else (channels, 1, 1)
        return generator.standard_normal(shape, dtype='float32')


def erase(images: paddle.Tensor, places: paddle.Tensor, values: paddle.Tensor) -> paddle.Tensor:
    """Return `images`, contiguous float32 [B, C, H, W], with the values of RandomErasing.draw."""
    if places.shape[0] == 0:
        return images
    if images.place.is_cpu_place():
        share(images).reshape(-1)[places.numpy()] = values.numpy()
        return images
    flat = paddle.scatter_(images.reshape([-1]), places, values)
    return flat.reshape(images.shape)


def build_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the generator of one sample in one epoch."""
    sequence = np.random.SeedSequence([seed, epoch, int(index), STREAM])
    return np.random.Generator(np.random.PCG64(sequence))
