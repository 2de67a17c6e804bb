"""The kernels for resize, transform and rotation against Pillow, byte by byte, and without them."""

import logging
import platform
import shutil

import numpy as np
import pytest
from PIL import Image

from common.data import pixels
from common.kernels import compiled
from common.machine.environment import read_cpu

FILTERS = pixels.FILTERS
needs_kernels = pytest.mark.skipif(
    not (shutil.which('cc') and hasattr(Image.Image, '__arrow_c_array__')),
    reason='needs a C compiler and Pillow 11.2')


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_noise(rng, width, height):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def draw_box(rng, width, height):
    left, top = int(rng.integers(width)), int(rng.integers(height))
    return left, top, int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1


def assert_same(result, expected):
    assert result.mode == expected.mode
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


@needs_kernels
def test_kernels_are_there():
    assert pixels.load_kernels() is not None


@pytest.mark.parametrize('resample', FILTERS)
def test_resize_equals_pillow(rng, resample):
    for _ in range(150):
        width, height, *size = (int(side) for side in rng.integers(1, 300, 4))
        image, box = make_noise(rng, width, height), draw_box(rng, width, height)
        window = draw_box(rng, *size)
        expected = image.crop(box).resize(size, resample)
        assert_same(pixels.resize(image, tuple(size), resample, box), expected)
        assert_same(pixels.resize(image, tuple(size), resample, box, window),
                    expected.crop(window))


def test_a_result_in_several_pieces_is_pillows(rng):
    """Above 16 MB Pillow keeps an image in pieces, and shows none of them."""
    image = make_noise(rng, 40, 30)
    size = (2100, 2050)
    assert_same(pixels.resize(image, size, FILTERS[1]), image.resize(size, FILTERS[1]))


def test_resize_takes_the_passes_in_pillows_order(rng):
    for width, new_width in ((100, 50), (100, 99), (100, 100), (100, 130)):
        turn = 60 + max(0, 2 * (width - new_width))
        for height in (turn - 1, turn, turn + 1, turn + 2):
            image = make_noise(rng, width, height)
            assert_same(pixels.resize(image, (new_width, 60), FILTERS[1]),
                        image.resize((new_width, 60), FILTERS[1]))


@pytest.mark.parametrize('resample', FILTERS)
def test_transform_and_rotation_equal_pillow(rng, resample):
    for number in range(60):
        width, height = (int(side) for side in rng.integers(1, 120, 2))
        image, fill = make_noise(rng, width, height), (124, 116, 104)
        turn, shift = rng.normal(0, 0.3, 4) + [1, 0, 0, 1], rng.normal(0, 15, 2)
        if number % 3 == 0:
            turn, shift = (1, 0, 0, 1), np.round(shift)
        matrix = (*turn[:2], shift[0], *turn[2:], shift[1])
        assert_same(
            pixels.transform(image, matrix, resample, fill),
            image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill))
        degrees = (0, 90, -180, 270, 1e-9)[number // 3] if number < 15 else rng.uniform(-400, 400)
        assert_same(pixels.rotate(image, degrees, resample, fill),
                    image.rotate(degrees, resample, fillcolor=fill))


@pytest.mark.parametrize('width', [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 64, 501])
@pytest.mark.parametrize('height', [1, 2, 5])
def test_array_equals_pillows(rng, width, height):
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    array = pixels.to_array(Image.fromarray(noise))
    np.testing.assert_array_equal(array, noise)
    assert array.dtype == np.uint8


# Of processors without any vector instructions, with 256-bit and with 512-bit ones.
@pytest.mark.skipif(platform.machine() != 'x86_64', reason='names x86-64 processors')
@needs_kernels
@pytest.mark.parametrize('processor, feature', [
    ('x86-64', 'sse2'), ('x86-64-v2', 'sse4_2'), ('x86-64-v3', 'avx2'), ('x86-64-v4', 'avx512vl')])
def test_kernels_of_other_processors(processor, feature, empty_library_cache, monkeypatch, rng):
    if feature not in read_cpu()[1]:
        pytest.skip(f'this processor lacks {feature}')
    monkeypatch.setattr(compiled, 'COMPILE', (*compiled.COMPILE, f'-march={processor}'))
    monkeypatch.setattr(compiled, 'read_cpu', lambda: ('', set()))        # no -march=native
    assert pixels.load_kernels() is not None
    test_resize_equals_pillow(rng, FILTERS[1])
    test_transform_and_rotation_equal_pillow(rng, FILTERS[1])


@pytest.mark.parametrize('mode', ['L', 'RGBA'])
def test_other_modes_and_filters_are_pillows(rng, mode):
    image = make_noise(rng, 30, 20)
    other = image.convert(mode)
    assert_same(pixels.resize(other, (9, 8), FILTERS[1]), other.resize((9, 8), FILTERS[1]))
    assert_same(pixels.rotate(other, 30, FILTERS[0]), other.rotate(30, FILTERS[0]))
    lanczos = Image.Resampling.LANCZOS
    assert_same(pixels.resize(image, (9, 8), lanczos), image.resize((9, 8), lanczos))


def test_a_window_beyond_the_image_is_black(rng):
    image = make_noise(rng, 30, 20)
    expected = image.resize((15, 10), FILTERS[1]).crop((-2, -3, 20, 12))
    assert_same(pixels.resize(image, (15, 10), FILTERS[1], window=(-2, -3, 20, 12)), expected)


def test_an_image_in_several_pieces(rng):
    image = Image.effect_noise((2300, 2000), 90).convert('RGB')         # 18 MB
    assert_same(pixels.resize(image, (40, 30), FILTERS[1], (500, 400, 900, 700)),
                image.crop((500, 400, 900, 700)).resize((40, 30), FILTERS[1]))


@pytest.mark.parametrize('what', ['off', 'other pixels'])
def test_pillow_does_it_without_the_kernels(what, empty_library_cache, monkeypatch, caplog, rng):
    if what == 'off':
        monkeypatch.setenv(compiled.SWITCH, '0')
    else:
        monkeypatch.setattr(pixels, 'PILLOW', 12 if pixels.PILLOW >= 13 else 13)
    with caplog.at_level(logging.INFO):
        assert pixels.load_kernels() is None
    assert [record.message.startswith('Image kernels: ') for record in caplog.records] == [True]
    image = make_noise(rng, 40, 90)
    assert_same(pixels.resize(image, (20, 21), FILTERS[1], (3, 4, 30, 80), (2, 2, 9, 9)),
                image.crop((3, 4, 30, 80)).resize((20, 21), FILTERS[1]).crop((2, 2, 9, 9)))
    assert_same(pixels.rotate(image, 20, FILTERS[0], 7), image.rotate(20, FILTERS[0], fillcolor=7))
