"""Folders of real pictures as people have them: digits by class, odd files among them."""

import os
import shutil

from PIL import Image

from common.data.digits import load_digits_rgb

ODD = ('empty.jpg', 'notes.txt', 'cut.jpg', 'photo.heic', 'again.png')  # .hidden.png is not seen


def make_digit_folders(root, counts, skip=0, part=''):
    """Write root/PART/NAME/N.png of digits. counts: {digit: pictures}. skip: of each digit.

    Returns str(root).
    """
    images, labels = load_digits_rgb()
    names = {0: 'zero', 1: 'one', 2: 'two', 3: 'three', 4: 'four', 6: 'six', 7: 'seven'}
    for digit, count in counts.items():
        folder = os.path.join(root, part, names.get(digit, str(digit)))
        os.makedirs(folder, exist_ok=True)
        chosen = (labels == digit).nonzero()[0][skip:skip + count]
        assert len(chosen) == count
        for number, index in enumerate(chosen):
            Image.fromarray(images[index]).resize((32, 32), Image.Resampling.BICUBIC).save(
                os.path.join(folder, f'{number}.png'))
    return str(root)


def add_odd_files(folder):
    """Put into a class folder what lies there without being a picture, or not a good one."""
    first = os.path.join(folder, '0.png')
    open(os.path.join(folder, 'empty.jpg'), 'wb').close()
    with open(os.path.join(folder, 'notes.txt'), 'w') as file:
        file.write('taken in May\n')
    with open(os.path.join(folder, 'photo.heic'), 'wb') as file:
        file.write(b'\0\0\0\x18ftypheic' + bytes(80))
    Image.open(first).resize((64, 64)).save(os.path.join(folder, 'cut.jpg'))
    with open(os.path.join(folder, 'cut.jpg'), 'r+b') as file:
        file.truncate(400)
    shutil.copy(first, os.path.join(folder, 'again.png'))
    shutil.copy(first, os.path.join(folder, '.hidden.png'))
