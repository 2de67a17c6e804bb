"""Write the built-in handwritten digits as two picture folders, to pre-train on one half of them
and fine-tune on the other:

    python examples/digits_to_folders.py DIR

makes DIR/first_half and DIR/second_half, each with train/0 to train/9 and val/0 to val/9, PNG
files of 8 x 8 pixels. Every other image goes to the second half, every fourth of a half to val.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from PIL import Image

from common.data.digits import load_digits_rgb


def write_folders(root):
    """Write all 1,797 digits below `root`; return their number."""
    images, labels = load_digits_rgb()
    for index, (image, label) in enumerate(zip(images, labels)):
        half = ('first_half', 'second_half')[index % 2]
        part = 'val' if index // 2 % 4 == 3 else 'train'
        folder = os.path.join(root, half, part, str(label))
        os.makedirs(folder, exist_ok=True)
        Image.fromarray(image).save(os.path.join(folder, f'{index:04d}.png'))
    return len(images)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(':')[0] + '.')
    parser.add_argument('folder', metavar='DIR', help='new or empty folder')
    folder = parser.parse_args().folder
    try:
        count = write_folders(folder)
    except OSError as error:
        parser.error(f'cannot write to {folder}: {error.strerror}')
    print(f'Wrote {count:,} pictures to {folder}/first_half and {folder}/second_half.')


if __name__ == '__main__':
    main()
