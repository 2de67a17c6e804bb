"""A small data set in ImageNet's shape: JPEGs in folders named by WordNet, and list files."""

import os

from tests.support.data_folders import make_image, make_lists

CLASSES = ('n01440764', 'n01443537', 'n01484850')
TRAIN_IMAGES = 24
VAL_IMAGES = 13                 # a prime: no batch size and no two processes divide it


def make_imagenet(root, with_lists=True):
    """Write root/{train,val}/CLASS/*.JPEG of several sizes, and the lists; return str(root)."""
    lists = {}
    for part, count in (('train', TRAIN_IMAGES), ('val', VAL_IMAGES)):
        lines = []
        for number in range(count):
            label = number % len(CLASSES)
            path = f'{part}/{CLASSES[label]}/{CLASSES[label]}_{number}.JPEG'
            size = (90 + 7 * (number % 5), 80 + 9 * (number % 4))
            make_image(os.path.join(root, path), size, seed=[len(part), number])
            lines.append(f'{path} {label}\n')
        lists[part] = ''.join(lines)
    if with_lists:
        make_lists(root, **lists)
    return str(root)
