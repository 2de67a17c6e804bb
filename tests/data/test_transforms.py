"""Crops and resizes: evaluation against the reference's bytes, training against definitions."""

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from common.data.images import ImageError, read_image
from common.data.pixels import to_array
from common.data.transforms import (
    RandomAffine,
    RandomFlip,
    RandomResizedCrop,
    ResizeCentreCrop,
    SimpleCrop,
    build_eval_transform,
    build_train_transform,
)
from tests.support.data_folders import make_config
from tests.support.paths import FIXTURES

PREPROCESS = FIXTURES / 'preprocess'
with open(os.path.join(PREPROCESS, 'index.json'), encoding='utf-8') as file:
    INDEX = json.load(file)['images']


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def gradient(width, height):
    """Red grows with x, green with y: an image whose pixels tell where they come from."""
    array = np.zeros((height, width, 3), np.uint8)
    array[..., 0] = np.linspace(0, 255, width).round()
    array[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(array)


@pytest.mark.parametrize('name', INDEX)
def test_evaluation_equals_the_reference(name):
    image = read_image(os.path.join(PREPROCESS, name))
    assert len(INDEX[name]['out']) == 6
    for key, expected in INDEX[name]['out'].items():
        size, crop_pct = key.split('_')
        config = make_config(DATA__IMAGE_SIZE=int(size), DATA__CROP_PCT=float(crop_pct))
        array = to_array(build_eval_transform(config)(image, None))
        assert array.shape == (int(size), int(size), 3) and array.dtype == np.uint8
        assert hashlib.sha256(array.tobytes()).hexdigest() == expected['uint8_sha256'], key
        if 'png' in expected:
            with Image.open(os.path.join(PREPROCESS, expected['png'])) as png:
                assert np.array_equal(array, np.asarray(png))


def test_evaluation_refuses_to_make_a_giant():
    with pytest.raises(ImageError, match='too many'):
        ResizeCentreCrop(224, 0.875, 'bicubic')(Image.new('RGB', (1, 10_000)))


def test_random_crop_boxes_have_the_asked_area_and_ratio():
    crop = RandomResizedCrop(32, (0.08, 1.0), (3 / 4, 4 / 3), 'bicubic')
    rng, width, height = generator(), 400, 400
    boxes = np.array([crop.choose_box((width, height), rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (right <= width).all() and (bottom <= height).all()
    area = (right - left) * (bottom - top) / (width * height)
    ratio = (right - left) / (bottom - top)
    assert area.min() > 0.075 and area.max() <= 1
    assert 0.72 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.37
    # Uniform in area, but boxes above 3/4 of it rarely fit: the mean lies a little below 0.54.
    assert 0.45 < area.mean() < 0.54
    assert abs(np.log(ratio).mean()) < 0.01
    assert left.max() > 150 and len(np.unique(left)) > 200


def test_random_crop_falls_back_to_the_centre():
    crop = RandomResizedCrop(8, (1.0, 1.0), (3 / 4, 4 / 3), 'bicubic')
    assert crop.choose_box((400, 30), generator()) == (180, 0, 220, 30)
    assert crop.choose_box((30, 400), generator()) == (0, 180, 30, 220)
    assert RandomResizedCrop(8, (0.08, 1), (0.75, 1.33), 'bicubic')(
        Image.new('RGB', (1, 300)), generator()).size == (8, 8)


def test_random_crop_resizes_the_box_alone():
    image = Image.fromarray(generator().integers(0, 256, (80, 100, 3), dtype=np.uint8))
    crop = RandomResizedCrop(24, (0.1, 0.5), (3 / 4, 4 / 3), 'bicubic')
    box = crop.choose_box(image.size, generator(3))
    expected = image.crop(box).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(to_array(crop(image, generator(3))), to_array(expected))


def test_random_interpolation_draws_both():
    image = Image.fromarray(generator().integers(0, 256, (40, 40, 3), dtype=np.uint8))
    crop = RandomResizedCrop(16, (1.0, 1.0), (1.0, 1.0), 'random')
    results = {to_array(crop(image, generator(seed))).tobytes() for seed in range(20)}
    expected = {to_array(image.resize((16, 16), kind)).tobytes()
                for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)}
    assert results == expected


def test_flip_happens_as_often_as_asked():
    image, rng = gradient(4, 4), generator()
    flip = RandomFlip(0.3)
    flipped = [to_array(flip(image, rng))[0, 0, 0] == 255 for _ in range(3000)]
    assert 0.27 < np.mean(flipped) < 0.33
    assert np.array_equal(
        to_array(RandomFlip(1.0)(image, rng)), to_array(image)[:, ::-1])


class Fixed:
    """A generator whose uniform draws are the given numbers."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, low, high):
        return self.values.pop(0)


def test_affine_without_movement_changes_nothing():
    image = Image.fromarray(generator().integers(0, 256, (32, 32, 3), dtype=np.uint8))
    affine = RandomAffine(10, 0.1, (0.9, 1.1), 5)
    assert np.array_equal(to_array(affine(image, Fixed(0, 0, 0, 1, 0))), to_array(image))
    assert RandomAffine(0.0, 0.0, [1.0, 1.0], 0.0).is_identity


def test_affine_shifts_rotates_and_scales():
    array = generator().integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image, affine = Image.fromarray(array), RandomAffine(180, 1, (0.5, 2), 45)
    moved = to_array(affine(image, Fixed(0, 3 / 32, -2 / 32, 1, 0)))    # 3 right, 2 up
    assert np.array_equal(moved[:30, 3:], array[2:, :29])
    assert not moved[30:].any() and not moved[:, :3].any()
    turned = to_array(affine(image, Fixed(90, 0, 0, 1, 0))).astype(int)
    clockwise = np.rot90(array, -1).astype(int)
    assert np.abs(turned - clockwise).max() <= 1
    wide = to_array(affine(gradient(64, 64), Fixed(0, 0, 0, 2, 0))).astype(int)
    assert abs(wide[32, 63, 0] - wide[32, 0, 0] - 127) < 6      # half of the width is seen


def test_affine_shears_rows_in_proportion_to_their_height():
    array = np.zeros((65, 65, 3), np.uint8)
    array[:, 32] = 255
    shear = RandomAffine(0, 0, (1, 1), 45)
    sheared = to_array(shear(Image.fromarray(array), Fixed(0, 0, 0, 1, 45)))
    columns = sheared[..., 0].argmax(axis=1)
    assert np.array_equal(columns, np.arange(65))


def test_training_transform_follows_the_config():
    image = gradient(50, 40)
    whole = build_train_transform(make_config(TRAIN__CROP='resize', TRAIN__HFLIP=0.0))
    assert np.array_equal(
        to_array(whole(image, generator())),
        to_array(image.resize((32, 32), Image.Resampling.BICUBIC)))
    flipped = build_train_transform(make_config(TRAIN__CROP='resize', TRAIN__HFLIP=1.0))
    assert np.array_equal(
        to_array(flipped(image, generator())), to_array(whole(image, generator()))[:, ::-1])
    names = [type(step).__name__ for step in build_train_transform(make_config(
        TRAIN__AFFINE_DEGREES=10.0, TRAIN__AUTO_AUGMENT='rand-m9-mstd0.5-inc1')).steps]
    assert names == ['RandomResizedCrop', 'RandomFlip', 'RandomAffine', 'RandAugment']
    crop = build_train_transform(make_config(TRAIN__CROP_SCALE=[0.05, 0.06]))
    results = [to_array(crop(image, generator(seed))) for seed in (1, 1, 2)]
    assert np.array_equal(results[0], results[1]) and not np.array_equal(results[0], results[2])


@pytest.mark.parametrize('width, height', [(40, 24), (24, 40), (16, 16), (9, 33)])
def test_simple_crop_takes_a_square_of_the_whole_shorter_side(width, height):
    """Pixels tell their place: red the column, green the row; a border is mirrored."""
    rows, cols = np.mgrid[:height, :width]
    pixels = np.stack([cols * 6, rows * 6, 0 * rows], axis=-1).astype(np.uint8)
    size = min(width, height)               # so that nothing is resampled
    crop = SimpleCrop(size, 'bicubic')
    border = min(4, size - 1)
    corners = set()
    for seed in range(60):
        found = to_array(crop(Image.fromarray(pixels), np.random.default_rng(seed))).astype(int)
        assert found.shape == (size, size, 3)
        padded = np.pad(pixels, [(border, border)] * 2 + [(0, 0)], mode='reflect')
        places = [(top, left) for top in range(height + 2 * border - size + 1)
                  for left in range(width + 2 * border - size + 1)
                  if np.array_equal(found, padded[top:top + size, left:left + size])]
        assert places
        corners.add(places[0])
    assert len(corners) > 20
