"""From a picture to the model's input, as evaluation does it: one record for all who need it.

Training evaluates with it, a checkpoint and an exported model record it, and prediction reads
it back from either.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image
from yacs.config import CfgNode

from common.data.images import show_path
from common.data.normalize import Preprocess
from common.data.pixels import to_array
from common.data.transforms import ResizeCentreCrop
from common.errors import UserError
from common.weights.preprocessing import CONFIG_KEYS


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side to floor(image_size / crop_pct), crop, then (x / 255 - mean) / std.

    image_size: pixels, height = width. interpolation: bicubic, bilinear, lanczos or nearest.
    mean, std: of R, G, B in [0, 1]. class_names: list of str, or None. exif_orientation: whether
    pictures are turned as EXIF says before anything else.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: list[float]
    std: list[float]
    class_names: list[str] | None = None
    exif_orientation: bool = False

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return len(self.mean)

    def crop(self, image: Image.Image) -> Image.Image:
        """Return the part of a PIL RGB image that the model sees, image_size a side."""
        return ResizeCentreCrop(self.image_size, self.crop_pct, self.interpolation)(image)

    def normalize(self, crops: list[Image.Image]) -> np.ndarray:
        """Return the model's input, float32 [B, 3, S, S], of cropped PIL images."""
        pixels = np.stack([to_array(crop) for crop in crops])
        return Preprocess(self.mean, self.std)(pixels).numpy()

    def name_class(self, index: int) -> str:
        """Return the name of a class, or its number as text where names are not known."""
        return str(index) if self.class_names is None else self.class_names[index]

    def show_class(self, index: int) -> str:
        """Return the name of a class as one line that can be printed."""
        return show_path(self.name_class(index))

    def replace_names(self, class_names: list[str] | None) -> 'Preprocessing':
        """Return the same with other class names."""
        return replace(self, class_names=class_names)

    def as_record(self) -> dict[str, Any]:
        """Return what a checkpoint records; it has its class names in a place of their own."""
        record = asdict(self)
        del record['class_names']
        return record | {'channels': self.channels}


def read_preprocessing(config: CfgNode, class_names: list[str] | None = None) -> Preprocessing:
    """Return the Preprocessing that a config tree describes."""
    data = config.DATA
    return Preprocessing(data.IMAGE_SIZE, data.CROP_PCT, data.INTERPOLATION,
                         list(data.IMAGENET_MEAN), list(data.IMAGENET_STD), class_names,
                         data.EXIF_ORIENTATION)


def check_channels(preprocessing: Preprocessing) -> None:
    """Raise UserError unless pictures, which are read as RGB, fit the model."""
    if preprocessing.channels != 3:
        raise UserError(f'DATA.IMAGE_CHANNELS {preprocessing.channels}: pictures are read as RGB, '
                        'so only models of 3 channels can be used here.')


def list_recorded_options(record: dict[str, Any]) -> dict[str, Any]:
    """Return {config key: value} of what a checkpoint records; its fields may be missing."""
    return {key: record[name] for name, key in CONFIG_KEYS.items() if name in record}
