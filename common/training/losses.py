"""Classification losses, always in float32.

Under mixed precision the logits arrive as float16 or bfloat16, where a
log-softmax over a thousand classes has no digits to spare. Paddle's own
log_softmax and cross_entropy stop at -64 on the CPU, with the wrong gradient
beyond; the definition is short enough to write out.
"""

import math
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from yacs.config import CfgNode

from common.errors import UserError

Counts = Sequence[int] | np.ndarray


def build_criterion(config: CfgNode, class_counts: Counts | None = None,
                    soft_targets: bool = False
                    ) -> 'CrossEntropy | SoftTargetCrossEntropy | BinaryCrossEntropy':
    """Return the training loss, a function (logits [B, C], targets) -> scalar.

    class_counts: training samples of each class, needed for CLASS_WEIGHTS
    balanced. soft_targets: targets are float32 distributions [B, C], as Mixup
    makes them (it has smoothed them already); otherwise int64 labels [B].
    Raises UserError if the class weights do not fit, or smoothed labels are to be yes or no.
    """
    weights = compute_class_weights(
        config.TRAIN.CLASS_WEIGHTS, config.MODEL.NUM_CLASSES, class_counts)
    if config.TRAIN.LOSS == 'binary':
        if config.TRAIN.SMOOTHING:
            raise UserError('TRAIN.LOSS binary takes every class that is in an image for 1, so '
                            'labels cannot be smoothed: set TRAIN.SMOOTHING 0.')
        return BinaryCrossEntropy(weights)
    if soft_targets:
        return SoftTargetCrossEntropy(weights)
    return CrossEntropy(config.TRAIN.SMOOTHING, weights)


def compute_class_weights(weights: Sequence | None, num_classes: int,
                          class_counts: Counts | None = None) -> list[float] | None:
    """Return one factor a class, or None where `weights` (TRAIN.CLASS_WEIGHTS) is None.

    "balanced" is samples / (classes * samples of the class), so that the mean
    over the samples is 1 (scikit-learn's compute_class_weight).
    """
    if weights is None:
        return None
    if list(weights) == ['balanced']:
        if class_counts is None:
            raise UserError(
                'TRAIN.CLASS_WEIGHTS balanced needs the number of samples of each class, '
                'which this data set does not give; list the weights instead.')
        counts = [int(count) for count in class_counts]
        if len(counts) != num_classes:
            raise UserError(
                f'TRAIN.CLASS_WEIGHTS: the training data has {len(counts)} classes, '
                f'MODEL.NUM_CLASSES is {num_classes}.')
        empty = [index for index, count in enumerate(counts) if count == 0]
        if empty:
            raise UserError(
                f'TRAIN.CLASS_WEIGHTS balanced: class {empty[0]} has no training sample '
                f'({len(empty)} such in all); remove them or list the weights.')
        return [sum(counts) / (num_classes * count) for count in counts]
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise UserError(
                f'TRAIN.CLASS_WEIGHTS: {weight!r} is not a number. '
                'Give one number a class, or balanced.')
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f'TRAIN.CLASS_WEIGHTS must be 0 or more and finite, not {weight}.')
    if len(weights) != num_classes:
        raise UserError(
            f'TRAIN.CLASS_WEIGHTS has {len(weights)} numbers, '
            f'MODEL.NUM_CLASSES is {num_classes}.')
    if not any(weights):
        raise UserError('TRAIN.CLASS_WEIGHTS are all 0: nothing would be learnt.')
    return [float(weight) for weight in weights]


class CrossEntropy:
    """Cross entropy of labels, with label smoothing and class weights.

    The target is (1 - smoothing) * one_hot + smoothing / C (Inception v3 paper,
    Sec. 7). With weights w the loss is the weighted mean over the batch,
    sum_b sum_c w_c * target_bc * -log p_bc / sum_b w_label(b), as in PyTorch.
    """

    def __init__(self, smoothing: float = 0.0, weights: Sequence[float] | None = None):
        self.smoothing = smoothing
        self.weights = None if weights is None else paddle.to_tensor(weights, dtype='float32')

    def __call__(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Return the mean loss. logits: [B, C]. labels: int64 [B], each below C."""
        with paddle.amp.auto_cast(enable=False):
            log_probs = compute_log_softmax(logits)
            one_hot = encode_labels(labels, log_probs.shape[-1])
            targets = one_hot * (1 - self.smoothing) + self.smoothing / log_probs.shape[-1]
            if self.weights is None:
                return -(targets * log_probs).sum(axis=-1).mean()
            # A batch of classes that all weigh 0 counts for nothing, not for 0 / 0.
            total_weight = (one_hot * self.weights).sum().clip(min=1e-12)
            return -(targets * self.weights * log_probs).sum() / total_weight


class SoftTargetCrossEntropy:
    """Cross entropy of target distributions: mean_b sum_c w_c * target_bc * -log p_bc.

    Weights, where given, scale the terms and the mean stays over the batch: a
    mixed sample has no one class to weigh the mean by (PyTorch does the same).
    """

    def __init__(self, weights: Sequence[float] | None = None):
        self.weights = None if weights is None else paddle.to_tensor(weights, dtype='float32')

    def __call__(self, logits: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        """Return the mean loss. logits, targets: [B, C]; each target row sums to 1."""
        with paddle.amp.auto_cast(enable=False):
            log_probs = compute_log_softmax(logits)
            if self.weights is not None:
                targets = targets * self.weights
            return -(targets * log_probs).sum(axis=-1).mean()


class BinaryCrossEntropy:
    """Mean over images and classes of the cross entropy of a class being there or not.

    Every class with a share in a mixed image is there (DeiT III, Sec. 3; Wightman et al., 2021).
    Weights, where given, scale the terms.
    """

    def __init__(self, weights: Sequence[float] | None = None):
        self.weights = None if weights is None else paddle.to_tensor(weights, dtype='float32')

    def __call__(self, logits: paddle.Tensor, targets: paddle.Tensor) -> paddle.Tensor:
        """Return the mean loss. logits: [B, C]. targets: int64 labels [B], or shares [B, C]."""
        with paddle.amp.auto_cast(enable=False):
            logits = logits.astype('float32')
            if targets.ndim == 1:
                targets = encode_labels(targets, logits.shape[-1])
            there = (targets > 0).astype('float32')
            terms = there * F.log_sigmoid(logits) + (1 - there) * F.log_sigmoid(-logits)
            if self.weights is not None:
                terms = terms * self.weights
            return -terms.mean()


def per_sample_cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Return -log p of each label, float32 [B]. logits: [B, C]. labels: int64 [B]."""
    with paddle.amp.auto_cast(enable=False):
        log_probs = compute_log_softmax(logits)
        return -(encode_labels(labels, log_probs.shape[-1]) * log_probs).sum(axis=-1)


def compute_log_softmax(logits: paddle.Tensor) -> paddle.Tensor:
    """Return log p over the last axis in float32, however far apart the logits are."""
    logits = logits.astype('float32')
    shifted = logits - logits.max(axis=-1, keepdim=True).detach()
    return shifted - paddle.logsumexp(shifted, axis=-1, keepdim=True)


def encode_labels(labels: paddle.Tensor, num_classes: int) -> paddle.Tensor:
    """Return labels [B] as float32 [B, C], 1 at the label.

    One-hot rather than take_along_axis, which on the CPU reads -1 as the last class
    and, in Paddle 2.6, whatever lies in memory beyond it; one_hot raises ValueError.
    """
    return F.one_hot(labels, num_classes)
