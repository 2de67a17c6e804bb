"""Small image folders and configs for the data tests."""

import os

import numpy as np
from PIL import Image

from common.config import Options, load_config


def make_config(**options):
    """Return a config at 32 pixels; options as DATA__DATA_PATH='...'."""
    values = {
        'DATA.DATASET': 'imagefolder', 'DATA.IMAGE_SIZE': 32, 'MODEL.NUM_CLASSES': 1000,
        **{key.replace('__', '.'): value for key, value in options.items()}}
    return load_config(Options, flags=values)


def make_image(path, size=(40, 30), seed=0):
    """Write a smooth random picture; the format follows the name."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)


def write_turned(image, path, orientation):
    """Write a picture as it is, with an EXIF orientation; the format follows the name."""
    exif = Image.Exif()
    exif[274] = orientation
    image.save(path, exif=exif)


def make_folders(root, classes=('cat', 'dog', 'emu'), per_class=4, parts=('train', 'val')):
    """Write root/PART/CLASS/N.jpg; with parts=('',) root/CLASS/N.jpg. Returns str(root)."""
    for part in parts:
        for label, name in enumerate(classes):
            for number in range(per_class):
                make_image(os.path.join(root, part, name, f'{number}.jpg'),
                           seed=[len(part), label, number])
    return str(root)


def make_lists(root, **lists):
    """Write train_list.txt and val_list.txt. lists: train=text or bytes, val=..."""
    for part, text in lists.items():
        with open(os.path.join(root, f'{part}_list.txt'), 'wb') as file:
            file.write(text if isinstance(text, bytes) else text.encode())
    return str(root)
