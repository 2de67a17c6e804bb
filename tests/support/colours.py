"""Folders of plain colours and a model of a few thousand parameters that learns them at once."""

import os

import numpy as np
from PIL import Image

COLOURS = {'red': (230, 30, 30), 'yellow': (220, 220, 40), 'blue': (30, 40, 220),
           'green': (30, 200, 40)}
FRUIT = {'apple': 'red', 'banana': 'yellow', 'cherry': 'blue'}
MODEL = {'MODEL.PATCH_SIZE': 16, 'MODEL.EMBED_DIM': 32, 'MODEL.DEPTH': 1, 'MODEL.NUM_HEADS': 2,
         'MODEL.NUM_CLASSES': 3, 'MODEL.NAME': 'tiny'}
OPTIONS = {**MODEL, 'DATA.BATCH_SIZE': 4, 'DATA.IMAGE_SIZE': 32, 'DATA.NUM_WORKERS': 0,
           'DATA.CROP_PCT': 1.0, 'TRAIN.NUM_EPOCHS': 4, 'TRAIN.BASE_LR': 0.01,
           'TRAIN.CROP': 'resize', 'TRAIN.HFLIP': 0.0, 'DATA.DATASET': 'imagefolder'}


def make_colours(root, classes=None, parts=('train', 'val'), each=4, ending='.png'):
    """Write root/PART/CLASS/N.png. classes: {name, text or bytes: colour}. Returns str(root)."""
    rng = np.random.default_rng(0)
    for part in parts:
        for name, colour in (classes or FRUIT).items():
            folder = os.path.join(os.fsencode(root), part.encode(), os.fsencode(name))
            os.makedirs(folder, exist_ok=True)
            for number in range(each):
                noise = rng.integers(-20, 21, 3)
                pixel = tuple(int(np.clip(c + n, 0, 255)) for c, n in zip(COLOURS[colour], noise))
                path = os.path.join(folder, b'%d' % number + ending.encode())
                kind = 'JPEG' if ending.startswith('.j') else 'PNG'
                with open(path, 'wb') as file:
                    Image.new('RGB', (40, 36), pixel).save(file, kind)
    return str(root)


def list_arguments(**options):
    """Return -opts of the tiny model; options as DATA__BATCH_SIZE=2."""
    chosen = {**OPTIONS, **{key.replace('__', '.'): value for key, value in options.items()}}
    return ['-opts', *(str(item) for pair in chosen.items() for item in pair)]
