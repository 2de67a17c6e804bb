"""Image transforms, from a decoded PIL image to the model's input size.

A transform is a callable (PIL image, numpy Generator) -> PIL image. All of its
randomness comes from the generator, so that a sample is the same in whatever
process it is made. Pixel values stay uint8: they are normalised on the device.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from common.data import pixels
from common.data.augment import build_augment
from common.data.images import check_size

FILTERS = {
    'nearest': Image.Resampling.NEAREST,
    'bilinear': Image.Resampling.BILINEAR,
    'bicubic': Image.Resampling.BICUBIC,
    'lanczos': Image.Resampling.LANCZOS,
}


def build_train_transform(config: CfgNode) -> 'Compose':
    """Return the training transform: crop, flip, affine, then the augmentation policy."""
    pixels.load_kernels()       # before the workers start: each would load its own
    size, train = config.DATA.IMAGE_SIZE, config.TRAIN
    steps: list[Callable]
    if train.CROP == 'random_resized':
        steps = [RandomResizedCrop(size, train.CROP_SCALE, train.CROP_RATIO, train.INTERPOLATION)]
    elif train.CROP == 'simple':
        steps = [SimpleCrop(size, train.INTERPOLATION)]
    else:
        steps = [Resize(size, train.INTERPOLATION)]
    if train.HFLIP > 0:
        steps.append(RandomFlip(train.HFLIP))
    affine = RandomAffine(
        train.AFFINE_DEGREES, train.AFFINE_TRANSLATE, train.AFFINE_SCALE, train.AFFINE_SHEAR)
    if not affine.is_identity:
        steps.append(affine)
    augment = build_augment(config)
    if augment is not None:
        steps.append(augment)
    return Compose(steps)


def build_eval_transform(config: CfgNode) -> 'ResizeCentreCrop':
    """Return the evaluation transform: resize the shorter side, crop the centre."""
    pixels.load_kernels()
    data = config.DATA
    return ResizeCentreCrop(data.IMAGE_SIZE, data.CROP_PCT, data.INTERPOLATION)


class Compose:
    """Apply transforms one after another."""

    def __init__(self, steps: Sequence[Callable]):
        self.steps = steps

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for step in self.steps:
            image = step(image, rng)
        return image


class ResizeCentreCrop:
    """Resize the shorter side to floor(size / crop_pct), then crop size x size at the centre.

    Gives the same bytes as timm's and torchvision's evaluation transforms on the
    same Pillow: the longer side is truncated, offsets are rounded half to even.
    """

    def __init__(self, size: int, crop_pct: float | None, interpolation: str):
        self.size = size
        self.shorter_side = math.floor(size / crop_pct)
        self.filter = FILTERS[interpolation]

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Image.Image:
        width, height = image.size
        if width <= height:
            new_size = self.shorter_side, int(self.shorter_side * height / width)
        else:
            new_size = int(self.shorter_side * width / height), self.shorter_side
        check_size(new_size)
        left, top = (round((side - self.size) / 2) for side in new_size)
        window = left, top, left + self.size, top + self.size
        return pixels.resize(image, new_size, self.filter, window=window)


class Resize:
    """Resize the whole image to size x size, whatever its shape."""

    def __init__(self, size: int, interpolation: str):
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        filter = _choose_filter(self.interpolation, rng)
        return pixels.resize(image, (self.size, self.size), filter)


class SimpleCrop:
    """Resize the shorter side to size, then crop size x size at random (DeiT III, Sec. 3.3).

    The image is first made larger by a mirrored border of up to 4 pixels.
    """

    BORDER = 4

    def __init__(self, size: int, interpolation: str):
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = image.size
        shorter = min(width, height)
        new_size = self.size * width // shorter, self.size * height // shorter
        check_size(new_size)
        image = pixels.resize(image, new_size, _choose_filter(self.interpolation, rng))
        border = min(self.BORDER, self.size - 1)
        padded = np.pad(np.asarray(image), [(border, border)] * 2 + [(0, 0)] * (
            len(image.getbands()) > 1), mode='reflect')
        top, left = (int(rng.integers(0, side - self.size + 1)) for side in padded.shape[:2])
        return Image.fromarray(padded[top:top + self.size, left:left + self.size])


class RandomResizedCrop:
    """Crop a random share of the area at a random shape, then resize to size x size.

    scale: (low, high) share of the area, uniform. ratio: (low, high) of width /
    height, log-uniform. After ten boxes that do not fit, the largest centred box
    within the ratio is taken (as in torchvision).
    """

    def __init__(self, size: int, scale: Sequence[float], ratio: Sequence[float],
                 interpolation: str):
        self.size = size
        self.scale = scale
        self.log_ratio = math.log(ratio[0]), math.log(ratio[1])
        self.ratio = ratio
        self.interpolation = interpolation

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        box = self.choose_box(image.size, rng)
        filter = _choose_filter(self.interpolation, rng)
        return pixels.resize(image, (self.size, self.size), filter, box)

    def choose_box(self, size: tuple[int, int],
                   rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Return (left, top, right, bottom) inside an image of `size` (width, height)."""
        width, height = size
        for _ in range(10):
            area = width * height * _draw(rng, *self.scale)
            ratio = math.exp(_draw(rng, *self.log_ratio))
            box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < box_width <= width and 0 < box_height <= height:
                left = int(rng.integers(0, width - box_width + 1))
                top = int(rng.integers(0, height - box_height + 1))
                return left, top, left + box_width, top + box_height
        return self._largest_centred_box(width, height)

    def _largest_centred_box(self, width, height):
        box_width, box_height = width, height
        if width / height < self.ratio[0]:
            box_height = max(1, round(width / self.ratio[0]))
        elif width / height > self.ratio[1]:
            box_width = max(1, round(height * self.ratio[1]))
        left, top = (width - box_width) // 2, (height - box_height) // 2
        return left, top, left + box_width, top + box_height


class RandomFlip:
    """Mirror left and right with a probability."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() < self.probability:
            return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


class RandomAffine:
    """Rotate, shift, scale and shear about the centre; what comes from outside is black.

    degrees, shear: +- degrees, uniform. translate: +- share of the width and of
    the height, uniform. scale: (low, high), uniform. Bilinear.
    """

    def __init__(self, degrees: float, translate: float, scale: tuple[float, float],
                 shear: float):
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear

    @property
    def is_identity(self) -> bool:
        return not (self.degrees or self.translate or self.shear or list(self.scale) != [1, 1])

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = image.size
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        shift_x = width * rng.uniform(-self.translate, self.translate)
        shift_y = height * rng.uniform(-self.translate, self.translate)
        scale = rng.uniform(*self.scale)
        shear = math.tan(math.radians(rng.uniform(-self.shear, self.shear)))
        matrix = _invert_affine(angle, scale, shear)
        return pixels.transform(
            image, _about_centre(matrix, image.size, (shift_x, shift_y)),
            Image.Resampling.BILINEAR)


def _invert_affine(angle, scale, shear):
    """Return (a, b, d, e), the inverse of scale * rotation(angle) @ [[1, shear], [0, 1]]."""
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    # inverse = [[1, -shear], [0, 1]] @ rotation(-angle) / scale
    return cos + shear * sin, sin - shear * cos, -sin, cos


def _about_centre(matrix, size, shift):
    """Return Pillow's six coefficients, which map output to input, about the image's centre."""
    a, b, d, e = matrix
    centre_x, centre_y = size[0] / 2, size[1] / 2
    from_x, from_y = centre_x + shift[0], centre_y + shift[1]
    return (a, b, centre_x - a * from_x - b * from_y,
            d, e, centre_y - d * from_x - e * from_y)


def _draw(rng, low, high):
    """Return rng.uniform(low, high), the same number, in a quarter of its time."""
    return low + (high - low) * rng.random()


def _choose_filter(interpolation, rng):
    if interpolation == 'random':
        interpolation = ('bilinear', 'bicubic')[rng.integers(2)]
    return FILTERS[interpolation]
