"""Pictures of every format that Pillow writes, under every name, damaged: read or refused."""

import collections
import io
import os
import random
import resource
import signal
import warnings

import numpy as np
import pytest
from PIL import Image

from common.data.images import ALL_EXTENSIONS, ImageError, list_formats, read_image
from tests.support.watch import Watch


def make_pictures():
    """Return {format: [bytes]} of what Pillow can write here, in several modes."""
    Image.init()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    pictures = collections.defaultdict(list)
    for name in sorted(Image.SAVE):
        for mode in ('RGB', 'L', 'P', 'RGBA', 'CMYK', '1', 'I;16'):
            buffer = io.BytesIO()
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                try:
                    picture.convert(mode).save(buffer, name)
                except (OSError, ValueError, KeyError, TypeError, AttributeError):
                    continue                    # not in this mode, or by an encoder that is missing
            pictures[name].append(buffer.getvalue())
    return pictures


def mutate(content, generator):
    content = bytearray(content)
    for _ in range(generator.choice([0, 1, 1, 3, 20])):
        place = generator.randrange(max(1, min(len(content), generator.choice([60, 10 ** 6]))))
        how = generator.randrange(4)
        if how == 0:
            content[place:place + 1] = bytes([generator.randrange(256)])
        elif how == 1:
            content[place:place + 4] = generator.choice(
                [b'\xff' * 4, b'\x7f\xff\xff\xff', bytes(4)])
        elif how == 2:
            del content[place:place + generator.choice([1, 8, 1000])]
        else:
            content[place:place] = generator.randbytes(generator.choice([1, 8, 300]))
    return bytes(content)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('count', [
    500, pytest.param(20_000, marks=pytest.mark.slow)], ids=['short', 'long'])
def test_damaged_pictures(tmp_path, count):
    pictures, generator = make_pictures(), random.Random(count)
    assert set(list_formats()) <= set(pictures) and len(pictures) > 15
    names, outcomes, watch = sorted(pictures), collections.Counter(), Watch()
    for number in range(count):
        name = names[number % len(names)]
        path = str(tmp_path / f'picture{ALL_EXTENSIONS[number % len(ALL_EXTENSIONS)]}')
        with open(path, 'wb') as file:
            file.write(mutate(generator.choice(pictures[name]), generator))
        signal.alarm(10)
        try:
            with watch:
                image = read_image(path)
        except ImageError as error:
            outcomes['refused'] += 1
            assert str(error).startswith(path) and len(str(error)) < 600
        else:
            outcomes['read'] += 1
            assert image.mode == 'RGB'
        finally:
            signal.alarm(0)
            os.remove(path)
    assert not watch.seen
    assert min(outcomes.values()) > count // 10, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20     # KiB
    print(count, outcomes)
