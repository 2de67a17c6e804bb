"""RandAugment, AutoAugment, 3-Augment and colour jitter of one PIL image.

The pixel work is Pillow's. Operations, their ranges and the notation of
TRAIN.AUTO_AUGMENT are those of timm, whose recipes the T2T-ViT results stand on:

    rand-m9-mstd0.5-inc1     RandAugment (arXiv 1909.13719)
    original, v0             AutoAugment's ImageNet policies (arXiv 1805.09501)
    three-j0.3               3-Augment, then colour jitter (DeiT III, arXiv 2204.07118)

Everything random comes from the numpy Generator that is passed in.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from yacs.config import CfgNode

from common.data import pixels
from common.errors import UserError, suggest

Augment = Callable[[Image.Image, np.random.Generator], Image.Image]

MAX_LEVEL = 10                              # the magnitude at which an operation is strongest
RESAMPLING = {
    'bilinear': (Image.Resampling.BILINEAR,),
    'bicubic': (Image.Resampling.BICUBIC,),
    'random': (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


def build_augment(config: CfgNode) -> Augment | None:
    """Return a function (RGB image, numpy Generator) -> image, or None if nothing is asked.

    As in timm, COLOR_JITTER acts only where AUTO_AUGMENT is off. Raises UserError if
    AUTO_AUGMENT cannot be read.
    """
    spec = config.TRAIN.AUTO_AUGMENT
    if spec:
        fill = tuple(min(255, round(255 * mean)) for mean in config.DATA.IMAGENET_MEAN)
        return parse_spec(spec, fill, RESAMPLING[config.TRAIN.INTERPOLATION])
    if config.TRAIN.COLOR_JITTER > 0:
        return ColorJitter(config.TRAIN.COLOR_JITTER)
    return None


# Arguments of the operations: (level in [0, MAX_LEVEL], generator) -> argument.

def scale_signed(largest: float) -> Callable[[float, np.random.Generator], float]:
    """Return an argument function: up to +-`largest`, the sign by chance."""
    def argument(level: float, generator: np.random.Generator) -> float:
        value = level / MAX_LEVEL * largest
        return -value if generator.random() > 0.5 else value
    return argument


def scale_enhance(level: float, generator: np.random.Generator) -> float:
    """From 0.1 (grey, blurred, dark) over 1 (unchanged) to 1.9."""
    return level / MAX_LEVEL * 1.8 + 0.1


def scale_enhance_increasing(level: float, generator: np.random.Generator) -> float:
    """Away from 1 (unchanged), down to 0.1 or up to 1.9 by chance."""
    return max(0.1, 1 + scale_signed(0.9)(level, generator))


def scale_posterize(level: float, generator: np.random.Generator) -> int:
    """Bits kept: 0 to 4, so a higher level changes less (TPU EfficientNet)."""
    return int(level / MAX_LEVEL * 4)


def scale_posterize_increasing(level: float, generator: np.random.Generator) -> int:
    """Bits kept: 4 down to 0."""
    return 4 - int(level / MAX_LEVEL * 4)


def scale_posterize_original(level: float, generator: np.random.Generator) -> int:
    """Bits kept: 4 to 8, as in the AutoAugment paper."""
    return int(level / MAX_LEVEL * 4) + 4


def scale_solarize(level: float, generator: np.random.Generator) -> int:
    """Threshold: 0 to 256, so a higher level changes less."""
    return min(256, int(level / MAX_LEVEL * 256))


def scale_solarize_increasing(level: float, generator: np.random.Generator) -> int:
    """Threshold: 256 down to 0."""
    return 256 - scale_solarize(level, generator)


def scale_solarize_add(level: float, generator: np.random.Generator) -> int:
    """What is added to the dark pixels: 0 to 110."""
    return min(128, int(level / MAX_LEVEL * 110))


# Operations on pixel values: (image, argument) -> image.

def auto_contrast(image: Image.Image, _: Any) -> Image.Image:
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, _: Any) -> Image.Image:
    return ImageOps.equalize(image)


def invert(image: Image.Image, _: Any) -> Image.Image:
    return ImageOps.invert(image)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the `bits` highest bits of each value; none or fewer: black.

    Not ImageOps.posterize: Pillow 13 refuses the 0 bits of the highest level.
    """
    mask = (0xFF << (8 - max(bits, 0))) & 0xFF
    return look_up(image, [value & mask for value in range(256)])


def solarize_add(image: Image.Image, amount: int) -> Image.Image:
    """Add `amount` to the dark half of the values."""
    return look_up(image, [min(255, value + amount) if value < 128 else value
                           for value in range(256)])


def look_up(image: Image.Image, table: Any) -> Image.Image:
    return image.point(table * len(image.getbands()))


def change_color(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def change_contrast(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def change_brightness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def change_sharpness(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


# Operations that move pixels: (image, argument, resampling, fill colour) -> image.

def rotate(image: Image.Image, degrees: float, resample: Image.Resampling,
           fill: tuple[int, ...]) -> Image.Image:
    return pixels.rotate(image, degrees, resample, fill)


def apply_affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling,
                 fill: tuple[int, ...]) -> Image.Image:
    return pixels.transform(image, matrix, resample, fill)


def shear_x(image: Image.Image, factor: float, resample: Image.Resampling,
            fill: tuple[int, ...]) -> Image.Image:
    return apply_affine(image, (1, factor, 0, 0, 1, 0), resample, fill)


def shear_y(image: Image.Image, factor: float, resample: Image.Resampling,
            fill: tuple[int, ...]) -> Image.Image:
    return apply_affine(image, (1, 0, 0, factor, 1, 0), resample, fill)


def translate_x(image: Image.Image, share: float, resample: Image.Resampling,
                fill: tuple[int, ...]) -> Image.Image:
    return apply_affine(image, (1, 0, share * image.width, 0, 1, 0), resample, fill)


def translate_y(image: Image.Image, share: float, resample: Image.Resampling,
                fill: tuple[int, ...]) -> Image.Image:
    return apply_affine(image, (1, 0, 0, 0, 1, share * image.height), resample, fill)


POINT_OPERATIONS = {                        # name: (argument function or None, operation)
    'AutoContrast': (None, auto_contrast),
    'Equalize': (None, equalize),
    'Invert': (None, invert),
    'Posterize': (scale_posterize, posterize),
    'PosterizeIncreasing': (scale_posterize_increasing, posterize),
    'PosterizeOriginal': (scale_posterize_original, posterize),
    'Solarize': (scale_solarize, ImageOps.solarize),
    'SolarizeIncreasing': (scale_solarize_increasing, ImageOps.solarize),
    'SolarizeAdd': (scale_solarize_add, solarize_add),
    'Color': (scale_enhance, change_color),
    'ColorIncreasing': (scale_enhance_increasing, change_color),
    'Contrast': (scale_enhance, change_contrast),
    'ContrastIncreasing': (scale_enhance_increasing, change_contrast),
    'Brightness': (scale_enhance, change_brightness),
    'BrightnessIncreasing': (scale_enhance_increasing, change_brightness),
    'Sharpness': (scale_enhance, change_sharpness),
    'SharpnessIncreasing': (scale_enhance_increasing, change_sharpness),
}
MOVE_OPERATIONS = {
    'Rotate': (scale_signed(30), rotate),                   # degrees
    'ShearX': (scale_signed(0.3), shear_x),
    'ShearY': (scale_signed(0.3), shear_y),
    'TranslateXRel': (scale_signed(0.45), translate_x),     # share of the width
    'TranslateYRel': (scale_signed(0.45), translate_y),     # share of the height
}

RAND_OPERATIONS = (
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'SolarizeAdd',
    'Color', 'Contrast', 'Brightness', 'Sharpness',
    'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel',
)
HAVE_INCREASING = ('Posterize', 'Solarize', 'Color', 'Contrast', 'Brightness', 'Sharpness')

# AutoAugment: (operation, probability, magnitude) twice a sub-policy.
POLICIES = {
    # Table 9 of the paper.
    'original': (
        (('PosterizeOriginal', 0.4, 8), ('Rotate', 0.6, 9)),
        (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
        (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
        (('PosterizeOriginal', 0.6, 7), ('PosterizeOriginal', 0.6, 6)),
        (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
        (('Equalize', 0.4, 4), ('Rotate', 0.8, 8)),
        (('Solarize', 0.6, 3), ('Equalize', 0.6, 7)),
        (('PosterizeOriginal', 0.8, 5), ('Equalize', 1.0, 2)),
        (('Rotate', 0.2, 3), ('Solarize', 0.6, 8)),
        (('Equalize', 0.6, 8), ('PosterizeOriginal', 0.4, 6)),
        (('Rotate', 0.8, 8), ('Color', 0.4, 0)),
        (('Rotate', 0.4, 9), ('Equalize', 0.6, 2)),
        (('Equalize', 0.0, 7), ('Equalize', 0.8, 8)),
        (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
        (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
        (('Rotate', 0.8, 8), ('Color', 1.0, 2)),
        (('Color', 0.8, 8), ('Solarize', 0.8, 7)),
        (('Sharpness', 0.4, 7), ('Invert', 0.6, 8)),
        (('ShearX', 0.6, 5), ('Equalize', 1.0, 9)),
        (('Color', 0.4, 0), ('Equalize', 0.6, 3)),
        (('Equalize', 0.4, 7), ('Solarize', 0.2, 4)),
        (('Solarize', 0.6, 5), ('AutoContrast', 0.6, 5)),
        (('Invert', 0.6, 4), ('Equalize', 1.0, 8)),
        (('Color', 0.6, 4), ('Contrast', 1.0, 8)),
        (('Equalize', 0.8, 8), ('Equalize', 0.6, 3)),
    ),
    # The policy of Google's EfficientNet code.
    'v0': (
        (('Equalize', 0.8, 1), ('ShearY', 0.8, 4)),
        (('Color', 0.4, 9), ('Equalize', 0.6, 3)),
        (('Color', 0.4, 1), ('Rotate', 0.6, 8)),
        (('Solarize', 0.8, 3), ('Equalize', 0.4, 7)),
        (('Solarize', 0.4, 2), ('Solarize', 0.6, 2)),
        (('Color', 0.2, 0), ('Equalize', 0.8, 8)),
        (('Equalize', 0.4, 8), ('SolarizeAdd', 0.8, 3)),
        (('ShearX', 0.2, 9), ('Rotate', 0.6, 8)),
        (('Color', 0.6, 1), ('Equalize', 1.0, 2)),
        (('Invert', 0.4, 9), ('Rotate', 0.6, 0)),
        (('Equalize', 1.0, 9), ('ShearY', 0.6, 3)),
        (('Color', 0.4, 7), ('Equalize', 0.6, 0)),
        (('Posterize', 0.4, 6), ('AutoContrast', 0.4, 7)),
        (('Solarize', 0.6, 8), ('Color', 0.6, 9)),
        (('Solarize', 0.2, 4), ('Rotate', 0.8, 9)),
        (('Rotate', 1.0, 7), ('TranslateYRel', 0.8, 9)),
        (('ShearX', 0.0, 0), ('Solarize', 0.8, 4)),
        (('ShearY', 0.8, 0), ('Color', 0.6, 4)),
        (('Color', 1.0, 0), ('Rotate', 0.6, 2)),
        (('Equalize', 0.8, 4), ('Equalize', 0.0, 8)),
        (('Equalize', 1.0, 4), ('AutoContrast', 0.6, 2)),
        (('ShearY', 0.4, 7), ('SolarizeAdd', 0.6, 7)),
        (('Posterize', 0.8, 2), ('Solarize', 0.6, 10)),
        (('Solarize', 0.6, 8), ('Equalize', 0.6, 1)),
        (('Color', 0.8, 6), ('Rotate', 0.4, 5)),
    ),
}


class Operation:
    """One operation, applied with a probability at a magnitude that may vary.

    levels: (magnitude_std, max_level). magnitude_std is the standard deviation of the
    normal law around `magnitude`; inf: the magnitude is uniform over [0, magnitude].
    The level is cut to [0, max_level].
    look: (fill colour of what a move uncovers, filters to draw the resampling from).
    """

    def __init__(self, name: str, prob: float, magnitude: float | None, levels: Any, look: Any):
        self.name = name
        self.prob = prob
        self.magnitude = magnitude
        self.magnitude_std, self.max_level = levels
        self.fill, self.resampling = look

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        if generator.random() >= self.prob:
            return image
        moves = self.name in MOVE_OPERATIONS
        table: dict[str, Any] = MOVE_OPERATIONS if moves else POINT_OPERATIONS
        scale, apply = table[self.name]
        level = self.draw_level(generator)
        argument = None if scale is None else scale(level, generator)
        if moves:
            resample = self.resampling[generator.integers(len(self.resampling))]
            return apply(image, argument, resample, self.fill)
        return apply(image, argument)

    def draw_level(self, generator: np.random.Generator) -> float:
        """Return the level for one image, in [0, max_level]."""
        level = self.magnitude
        if self.magnitude_std == float('inf'):
            level = generator.uniform(0, self.magnitude)
        elif self.magnitude_std > 0:
            level = generator.normal(self.magnitude, self.magnitude_std)
        return max(0, min(level, self.max_level))


class RandAugment:
    """Apply `num_ops` operations drawn with replacement."""

    def __init__(self, operations: Sequence[Operation], num_ops: int):
        self.operations = operations
        self.num_ops = num_ops

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        for choice in generator.integers(len(self.operations), size=self.num_ops):
            image = self.operations[choice](image, generator)
        return image


class AutoAugment:
    """Apply the two operations of one sub-policy drawn at random."""

    def __init__(self, policy: Any):
        self.policy = policy

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        for operation in self.policy[generator.integers(len(self.policy))]:
            image = operation(image, generator)
        return image


class ThreeAugment:
    """Make the image grey, solarize it or blur it, each as often; then jitter its colours.

    jitter: strength of ColorJitter, 0: none. The blur's radius is uniform from 0.1 to 2 pixels.
    """

    def __init__(self, jitter: float):
        self.jitter = ColorJitter(jitter) if jitter else None

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        choice = generator.integers(3)
        if choice == 0:
            image = ImageOps.grayscale(image).convert(image.mode)
        elif choice == 1:
            image = ImageOps.solarize(image, 128)
        else:
            image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0.1, 2.0)))
        return image if self.jitter is None else self.jitter(image, generator)


class ColorJitter:
    """Change brightness, contrast and saturation in random order.

    Each factor is uniform over [max(0, 1 - strength), 1 + strength].
    """

    def __init__(self, strength: Any):
        self.low, self.high = max(0.0, 1 - strength), 1 + strength

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Image.Image:
        factors = generator.uniform(self.low, self.high, size=3)
        changes = (change_brightness, change_contrast, change_color)
        for choice in generator.permutation(3):
            image = changes[choice](image, float(factors[choice]))
        return image


VALID_PARTS = {'rand': ('m', 'n', 'p', 'mstd', 'mmax', 'inc'), 'three': ('j',),
               **dict.fromkeys(POLICIES, ('mstd',))}


def parse_spec(spec: str, fill: tuple[int, ...],
               resampling: tuple[Image.Resampling, ...]) -> Augment:
    """Return the augmentation that timm's notation names.

    RandAugment: "rand", then in any order -mM (magnitude, default 10), -nN
    (operations an image, 2), -pP (probability of each, 0.5), -mstdS (standard
    deviation of the magnitude, 0; above 100: uniform from 0 to M), -mmaxX (largest
    level, 10), -inc1 (higher levels always change more). AutoAugment: "original" or
    "v0", then -mstdS if wanted. 3-Augment: "three", then -jJ (strength of a colour jitter, 0).
    fill: colour of uncovered corners, 0 to 255.
    resampling: Pillow filters to draw from. Raises UserError for anything else.
    """
    name, *parts = spec.split('-')
    if name not in VALID_PARTS:
        raise UserError(
            f'TRAIN.AUTO_AUGMENT: unknown {name!r} in {spec!r}.'
            f'{suggest(name, VALID_PARTS)} Example: rand-m9-mstd0.5-inc1.')
    valid = VALID_PARTS[name]
    settings = {}
    for part in parts:
        key, value = _parse_part(part, spec, valid)
        if key in settings:
            raise UserError(f'TRAIN.AUTO_AUGMENT: {key!r} is given twice in {spec!r}.')
        settings[key] = value
    if name == 'three':
        return ThreeAugment(settings.get('j', 0.0))
    std = settings.get('mstd', 0.0)
    shared: dict[str, Any] = {
        'levels': (float('inf') if std > 100 else std, settings.get('mmax', MAX_LEVEL)),
        'look': (fill, resampling),
    }
    if name in POLICIES:
        return AutoAugment([
            [Operation(*operation, **shared) for operation in sub_policy]
            for sub_policy in POLICIES[name]])
    prob, magnitude = settings.get('p', 0.5), settings.get('m', MAX_LEVEL)
    increasing = HAVE_INCREASING if settings.get('inc') else ()
    names = [f'{name}Increasing' if name in increasing else name for name in RAND_OPERATIONS]
    return RandAugment([Operation(name, prob, magnitude, **shared) for name in names],
                       settings.get('n', 2))


def _parse_part(part, spec, valid):
    """Return (key, number) of one part of a specification, such as "mstd0.5"."""
    key, text = re.fullmatch(r'([a-z]*)(.*)', part).groups()
    if key not in valid:
        raise UserError(
            f'TRAIN.AUTO_AUGMENT: unknown part {part!r} in {spec!r}.{suggest(key, valid)}')
    is_integer = key not in ('p', 'mstd', 'j')
    if not re.fullmatch(r'\d+' if is_integer else r'\d+(\.\d*)?', text):
        kind = 'a whole number' if is_integer else 'a number'
        raise UserError(f'TRAIN.AUTO_AUGMENT: {key!r} in {spec!r} needs {kind}, such as {key}1.')
    value = int(text) if is_integer else float(text)
    if (key == 'p' and value > 1) or (key == 'inc' and value > 1):
        raise UserError(f'TRAIN.AUTO_AUGMENT: {key!r} in {spec!r} must be from 0 to 1.')
    if key in ('n', 'mmax') and value < 1:
        raise UserError(f'TRAIN.AUTO_AUGMENT: {key!r} in {spec!r} must be 1 or more.')
    return key, value
