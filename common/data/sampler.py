"""Which samples make up which batch: a pure function of (seed, epoch, position).

Paddle's DistributedBatchSampler ignores every seed, starts a resumed run at
epoch 0's order and pads with repeated samples; these two do none of that.
"""

import copy
from collections.abc import Iterator

import numpy as np

from common.errors import UserError


class TrainBatches:
    """Batches for training: shuffled in every epoch, of equal size, without end.

    num_samples: size of the data set. batch_size: of one process. `slice` gives a
    part of them, which is how a run continues in the middle of an epoch.

    Yields lists of (epoch, index). Batch b of an epoch takes entries
    [(b * world_size + rank) * batch_size, + batch_size) of the epoch's order, so
    two processes with batch size B see what one process with 2B sees. What is
    left after the last full global batch is dropped.

    repeats: entries in a row that are the same sample (repeated augmentation, Hoffer et al.,
    2019), of which an epoch of the same length has fewer. Their first numbers differ, and so
    does what augmentation draws: (epoch * repeats + k, index).
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int = 0,
                 world_size: int = 1, repeats: int = 1):
        assert 0 <= rank < world_size
        self.repeats = repeats
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = 0
        self.stop: int | None = None
        self.batches_per_epoch = num_samples // (batch_size * world_size)
        if self.batches_per_epoch == 0:
            raise UserError(
                f'{num_samples} training images are fewer than one batch: DATA.BATCH_SIZE '
                f'{batch_size} x {world_size} process{"es" if world_size > 1 else ""}. '
                f'Use -batch_size={max(1, num_samples // world_size)} or less.')

    def slice(self, start: int, stop: int | None = None) -> 'TrainBatches':
        """Return batches start, start + 1, ..., stop - 1 of training; stop None: without end."""
        part = copy.copy(self)
        part.start, part.stop = start, stop
        return part

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, batch = divmod(self.start, self.batches_per_epoch)
        done = self.start
        while self.stop is None or done < self.stop:
            order = shuffle_epoch(self.num_samples, self.seed, epoch)
            end = self.batches_per_epoch
            if self.stop is not None:
                end = min(end, batch + self.stop - done)
            for b in range(batch, end):
                first = (b * self.world_size + self.rank) * self.batch_size
                yield self._make_batch(order, epoch, first)
            done += end - batch
            epoch, batch = epoch + 1, 0

    def _make_batch(self, order, epoch, first):
        if self.repeats == 1:
            return [(epoch, index) for index in order[first:first + self.batch_size].tolist()]
        places = np.arange(first, first + self.batch_size)
        draws = epoch * self.repeats + places % self.repeats
        return list(zip(draws.tolist(), order[places // self.repeats].tolist()))

    def __len__(self) -> int:
        """Return the number of batches left. Raises TypeError if there is no end."""
        if self.stop is None:
            raise TypeError('TrainBatches without `stop` has no length')
        return max(0, self.stop - self.start)


class EvalBatches:
    """Batches for evaluation: every sample once over all processes, in order, unpadded.

    Yields lists of (0, index); the last one may be shorter, and a process may
    have one batch fewer than another, or none.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1):
        assert 0 <= rank < world_size
        self.indices = range(rank, num_samples, world_size)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[first:first + self.batch_size]]

    def __len__(self) -> int:
        return (len(self.indices) + self.batch_size - 1) // self.batch_size


def shuffle_epoch(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of an epoch: int32 (int64 if needed) [num_samples]."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    dtype = np.int32 if num_samples < 2**31 else np.int64    # 50 million samples: 200 MB
    order = np.arange(num_samples, dtype=dtype)
    rng.shuffle(order)
    return order
