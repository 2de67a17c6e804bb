"""Mixup and CutMix of a batch on the device, with the soft targets that go with it.

mixup (arXiv 1710.09412) blends two images, CutMix (arXiv 1905.04899) pastes a
rectangle of one into the other; the targets are blended in the same proportion.
Sample b of a batch of B is mixed with sample B - 1 - b, as in timm, so the middle
sample of an odd batch meets itself and stays as it is.
"""

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from yacs.config import CfgNode

from common.errors import UserError
from common.machine.host_memory import make_contiguous, share


def is_active(config: CfgNode) -> bool:
    """Return whether the config asks for mixup or CutMix."""
    train = config.TRAIN
    asked = train.MIXUP_ALPHA > 0 or train.CUTMIX_ALPHA > 0 or train.CUTMIX_MINMAX is not None
    return asked and train.MIXUP_PROB > 0


def build_mixup(config: CfgNode) -> 'Mixup | None':
    """Return the Mixup of TRAIN.MIXUP_* and CUTMIX_*, or None where both are off."""
    train = config.TRAIN
    if not is_active(config):
        return None
    return Mixup(
        config.MODEL.NUM_CLASSES, train.MIXUP_ALPHA, train.CUTMIX_ALPHA, train.CUTMIX_MINMAX,
        prob=train.MIXUP_PROB, switch_prob=train.MIXUP_SWITCH_PROB, mode=train.MIXUP_MODE,
        smoothing=train.SMOOTHING)


class Mixup:
    """Mix images and labels: (images [B, C, H, W], labels [B]) -> (images, targets [B, K]).

    mode says what shares one draw of (lambda, box): "batch" every sample,
    "pair" the two samples that are mixed with each other, "elem" none.
    prob: of mixing at all; switch_prob: of CutMix where both are on. cutmix_minmax
    (smallest, largest side of the box as a share of the image's) replaces the box drawn
    from cutmix_alpha. Label smoothing is part of the targets: off = smoothing / K,
    on = 1 - smoothing + off. Raises UserError for a cutmix_minmax that is no range.
    """

    def __init__(self, num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0,
                 cutmix_minmax: Sequence[float] | None = None, prob: float = 1.0,
                 switch_prob: float = 0.5, mode: str = 'batch', smoothing: float = 0.0):
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.cutmix_minmax = cutmix_minmax
        if cutmix_minmax is not None:
            check_minmax(cutmix_minmax)
            self.cutmix_alpha = 1.0         # the box has a law of its own; this turns CutMix on
        self.prob = prob
        self.switch_prob = switch_prob
        self.mode = mode
        self.smoothing = smoothing
        # Paddle's CPU kernels take eight times as long for the same arithmetic.
        self.on_cpu = paddle.get_device() == 'cpu'
        assert self.mixup_alpha > 0 or self.cutmix_alpha > 0, 'neither mixup nor CutMix is on'

    def __call__(self, images: paddle.Tensor, labels: paddle.Tensor,
                 generator: np.random.Generator) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return (mixed images, soft targets float32 [B, K]); `images` may be overwritten.

        images: float32 [B, C, H, W]. labels: int64 [B]. generator: numpy Generator.
        """
        batch_size, _, height, width = images.shape
        drawn = self.draw(batch_size, height, width, generator)
        return self.mix(images, labels, *map(paddle.to_tensor, self.pack(*drawn, height, width)))

    def pack(self, lam: np.ndarray, boxes: np.ndarray, height: int, width: int
             ) -> list[np.ndarray]:
        """Return what draw has returned, as `mix` takes it: without work left for a device."""
        return [lam, boxes] if self.on_cpu else [lam, *build_weights(lam, boxes, height, width)]

    def mix(self, images: paddle.Tensor, labels: paddle.Tensor, lam: paddle.Tensor,
            *where: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Do what was drawn, see __call__ and `pack`."""
        if self.on_cpu:
            images = mix_on_cpu(make_contiguous(images), lam.numpy(), where[0].numpy())
        else:
            blend, in_rows, in_columns = where
            weights = blend * (1 - in_rows * in_columns)
            images = images * weights + images.flip(0) * (1 - weights)
        targets = F.one_hot(labels, self.num_classes)
        targets = targets * (1 - self.smoothing) + self.smoothing / self.num_classes
        lam = lam.unsqueeze(1)
        return images, targets * lam + targets.flip(0) * (1 - lam)

    def draw(self, batch_size: int, height: int, width: int,
             generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw the share each sample keeps and where it takes the partner's pixels.

        Returns lam float32 [n] and boxes int64 [n, 4] as (top, bottom, left, right),
        empty where the sample is blended or left alone; n is 1 in mode "batch", else
        B. With a box, lam is 1 - its true area / (H * W), after clipping.
        """
        count = {'batch': 1, 'pair': (batch_size + 1) // 2, 'elem': batch_size}[self.mode]
        applied = generator.random(count) < self.prob
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            use_cutmix = generator.random(count) < self.switch_prob
        else:
            use_cutmix = np.full(count, self.cutmix_alpha > 0)
        lam: np.ndarray = np.ones(count)
        if self.mixup_alpha > 0:
            blend = generator.beta(self.mixup_alpha, self.mixup_alpha, count)
            lam = np.where(applied & ~use_cutmix, blend, lam)
        boxes = np.zeros((count, 4), 'int64')
        if self.cutmix_alpha > 0:
            if self.cutmix_minmax is not None:
                drawn = draw_minmax_boxes(self.cutmix_minmax, height, width, generator, count)
            else:
                share = generator.beta(self.cutmix_alpha, self.cutmix_alpha, count)
                drawn = draw_boxes(share, height, width, generator)
            boxes[applied & use_cutmix] = drawn[applied & use_cutmix]
            area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
            lam = np.where(applied & use_cutmix, 1 - area / (height * width), lam)
        if self.mode == 'pair':
            order = np.arange(batch_size)
            pair = np.minimum(order, order[::-1])
            lam, boxes = lam[pair], boxes[pair]
        return lam.astype('float32'), boxes


def draw_boxes(lam: np.ndarray, height: int, width: int,
               generator: np.random.Generator) -> np.ndarray:
    """Return CutMix boxes [n, 4] of the image's shape and area (1 - lam) * H * W.

    The centre is uniform over the image and the box is clipped at its borders.
    """
    side = np.sqrt(1 - lam)
    box_height, box_width = (height * side).astype('int64'), (width * side).astype('int64')
    row = generator.integers(height, size=len(lam))
    column = generator.integers(width, size=len(lam))
    top = np.clip(row - box_height // 2, 0, height)
    bottom = np.clip(row + (box_height + 1) // 2, 0, height)
    left = np.clip(column - box_width // 2, 0, width)
    right = np.clip(column + (box_width + 1) // 2, 0, width)
    return np.stack([top, bottom, left, right], axis=1)


def draw_minmax_boxes(minmax: Sequence[float], height: int, width: int,
                      generator: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes [count, 4] inside the image, each side uniform over [min, max] of its own."""
    low, high = minmax
    box_height = generator.integers(int(height * low), int(height * high), count, endpoint=True)
    box_width = generator.integers(int(width * low), int(width * high), count, endpoint=True)
    top = generator.integers(0, height - box_height, endpoint=True)
    left = generator.integers(0, width - box_width, endpoint=True)
    return np.stack([top, top + box_height, left, left + box_width], axis=1)


def mix_on_cpu(images: paddle.Tensor, lam: np.ndarray, boxes: np.ndarray) -> paddle.Tensor:
    """Mix images [B, C, H, W] with their partners in place; arguments as `draw` returns them."""
    count = images.shape[0]
    lam, boxes = np.broadcast_to(lam, count), np.broadcast_to(boxes, (count, 4))
    pixels = share(images)
    for sample in range(count // 2):
        pair = sample, count - 1 - sample
        before = [pixels[place].copy() for place in pair]
        for place, partner in zip(pair, reversed(before)):
            top, bottom, left, right = boxes[place]
            if top < bottom and left < right:
                box = slice(None), slice(top, bottom), slice(left, right)
                pixels[place][box] = partner[box]
            elif lam[place] != 1:
                pixels[place] *= lam[place]
                pixels[place] += np.multiply(partner, 1 - lam[place], out=partner)
    return images


def build_weights(lam: np.ndarray, boxes: np.ndarray, height: int, width: int
                  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return float32 (blend [n, 1, 1, 1], in_rows [n, 1, H, 1], in_columns [n, 1, 1, W]).

    The share of each pixel's own image is blend * (1 - in_rows * in_columns): inside a box 0 and
    outside 1; without boxes it is lam everywhere.
    """
    has_box = (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])
    blend = np.where(has_box, 1, lam).astype('float32')
    top, bottom, left, right = (boxes[:, [side]] for side in range(4))
    rows, columns = np.arange(height), np.arange(width)
    in_rows = ((rows >= top) & (rows < bottom)).astype('float32')
    in_columns = ((columns >= left) & (columns < right)).astype('float32')
    return (blend.reshape([-1, 1, 1, 1]), in_rows.reshape([-1, 1, height, 1]),
            in_columns.reshape([-1, 1, 1, width]))


def check_minmax(minmax: Sequence[float]) -> None:
    """Raise UserError unless `minmax` is two shares, the smaller first."""
    numbers = [value for value in minmax
               if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(minmax) != 2 or len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] <= 1:
        raise UserError(
            f'TRAIN.CUTMIX_MINMAX must be [smallest, largest] side of the box from 0 to 1, '
            f'such as [0.2, 0.8], not {list(minmax)}.')
