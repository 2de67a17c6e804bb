"""Evaluation: every sample exactly once, sums in float64."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import paddle

from common.errors import Interrupted
from common.machine.distributed import gather_over_ranks
from common.training.confusion import Predictions
from common.training.losses import per_sample_cross_entropy
from common.training.precision import Precision

Batch = tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]      # images, labels, indices


@dataclass(frozen=True)
class EvalResult:
    """Means over all samples of all processes. loss: cross entropy. acc1, acc5: percent."""

    loss: float
    acc1: float
    acc5: float
    images: int
    seconds: float

    def as_metrics(self) -> dict[str, float]:
        return {'loss': self.loss, 'acc1': self.acc1, 'acc5': self.acc5,
                'images': self.images, 'seconds': self.seconds}


@paddle.no_grad()
def evaluate(model: paddle.nn.Layer, batches: Iterable[Batch],
             preprocess: Callable[[paddle.Tensor], paddle.Tensor], precision: Precision,
             on_batch: Callable[[], None] | None = None, predictions: Predictions | None = None,
             get_signal: Callable[[], int] = lambda: 0) -> EvalResult:
    """Return the EvalResult of a model over the batches of all processes.

    batches: this process's share, uint8 images [B, H, W, 3] and int64 labels [B].
    acc5 counts the top min(5, classes). on_batch: called after every batch. predictions:
    confusion.Predictions that takes in every sample, or None. get_signal: returns the number of
    a signal that ends the evaluation after a batch, or 0. The model is left in the mode (train
    or eval) it came in. Raises Interrupted on every rank where a signal ended it on any.
    """
    was_training = model.training
    model.eval()
    started = time.perf_counter()
    losses, hits = [], []
    signal_number = 0
    for images, labels, indices in batches:
        with precision.autocast():
            logits = model(preprocess(images))
        logits = logits.astype('float32')
        losses.append(per_sample_cross_entropy(logits, labels))
        hits.append(find_hits(logits, labels))
        if predictions is not None:
            predictions.add(logits, labels, indices)
        if on_batch is not None:
            on_batch()
        signal_number = get_signal()
        if signal_number:
            break
    if was_training:
        model.train()
    # Device values are read once, at the end: no waiting for the device between batches.
    losses = np.concatenate([loss.numpy().astype('float64') for loss in losses] or [np.zeros(0)])
    hit_sums = sum((hit.numpy().astype('int64').sum(axis=0) for hit in hits), np.zeros(2, 'int64'))
    ranks = gather_over_ranks([*sum_exactly(losses), *hit_sums, len(losses), signal_number])
    if ranks[:, 5].any():
        raise Interrupted(int(ranks[:, 5].max()))
    hits1, hits5, images = ranks[:, 2:5].sum(axis=0)
    mean = sum_exactly(ranks[:, :2].ravel())[0] / images if images else math.nan
    return EvalResult(
        loss=float(mean), acc1=float(100 * hits1 / images) if images else math.nan,
        acc5=float(100 * hits5 / images) if images else math.nan, images=int(images),
        seconds=time.perf_counter() - started)


def sum_exactly(numbers: np.ndarray) -> tuple[float, float]:
    """Return the float64 sum of numbers, rounded once, and what the rounding took away.

    The order of the numbers, and how they are shared among ranks, then makes no difference.
    """
    if not np.isfinite(numbers).all():
        return float(numbers.sum()), 0.0
    total = math.fsum(numbers)
    return total, math.fsum([*numbers, -total])


def find_hits(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Return bool [B, 2]: is the label the top prediction, and among the top min(5, classes).

    Of equal logits the lower class comes first, on every device, so that the figure does
    not depend on the sorting.
    """
    own = paddle.take_along_axis(logits, labels.unsqueeze(1), axis=1)
    classes = paddle.arange(logits.shape[1], dtype=labels.dtype)
    before = (logits > own) | ((logits == own) & (classes < labels.unsqueeze(1)))
    has_nan = paddle.isnan(logits).any(axis=1)      # a broken model hits nothing
    rank = paddle.where(has_nan, paddle.full([], logits.shape[1], 'int32'),
                        before.astype('int32').sum(axis=1).astype('int32'))
    return paddle.stack([rank == 0, rank < min(5, logits.shape[1])], axis=1)
