"""Random erasing against timm on the same random numbers, and its laws."""


import numpy as np
import paddle
import pytest

from common.config import Options, build_default_config, load_config
from common.data import erasing
from common.errors import UserError
from tests.support.paths import FIXTURES

FIXTURE = FIXTURES / 'augment' / 'erasing.npz'


def build_erasing(**options):
    config = build_default_config()
    for key, value in {'PROB': 1.0, **options}.items():
        config.TRAIN[f'RANDOM_ERASE_{key}'] = value
    config.SEED = 11
    return erasing.build_erasing(config)


def erase(eraser, count=8, height=14, width=22, epoch=2, indices=None, value=7.0):
    images = paddle.full([count, 3, height, width], value)
    return eraser(images, epoch, np.arange(count) if indices is None else indices).numpy()


@pytest.mark.parametrize('mode', ['pixel', 'const', 'rand'])
def test_equal_to_timm_on_the_same_random_numbers(mode, monkeypatch):
    monkeypatch.setattr(erasing, 'build_generator', lambda seed, epoch, index:
                        np.random.Generator(np.random.PCG64(int(index))))
    with np.load(FIXTURE) as stored:
        expected = stored[mode]
    result = erase(build_erasing(MODE=mode, PROB=0.6, COUNT=3), count=len(expected))
    np.testing.assert_array_equal(result, expected)
    touched = (expected != 7).any((1, 2, 3))
    assert touched.any() and not touched.all()


def test_area_and_aspect_follow_their_laws():
    eraser = build_erasing()
    height = width = 1000
    rectangles = [next(eraser.draw_rectangles(height, width, np.random.default_rng(seed)))
                  for seed in range(4000)]
    top, left, rows, columns = np.array(rectangles).T
    assert (top >= 0).all() and (top + rows <= height).all()
    assert (left >= 0).all() and (left + columns <= width).all()
    area, log_aspect = rows * columns / 1e6, np.log(rows / columns)
    assert 0.0199 < area.min() < 0.022 and 0.325 < area.max() < 0.3335
    assert abs(log_aspect).max() < -np.log(0.3) + 0.01
    # Hardly any rectangle is too long for the image, so both laws are uniform.
    assert area.mean() == pytest.approx((0.02 + 1 / 3) / 2, rel=0.03)
    assert log_aspect.std() == pytest.approx(-2 * np.log(0.3) / 12 ** 0.5, rel=0.04)
    assert log_aspect.mean() == pytest.approx(0, abs=0.04)


def test_no_rectangle_spans_a_side():
    eraser = build_erasing()
    drawn = [rectangle for seed in range(2000)
             for rectangle in eraser.draw_rectangles(10, 40, np.random.default_rng(seed))]
    _, _, rows, columns = np.array(drawn).T
    assert rows.max() == 9 and columns.max() < 40
    assert len(drawn) > 1990                                # ten attempts hardly ever all fail


def test_probability_and_count():
    touched = (erase(build_erasing(PROB=0.25, MODE='const'), count=1500) == 0).any((1, 2, 3))
    assert touched.mean() == pytest.approx(0.25, abs=0.04)
    eraser = build_erasing(COUNT=3)
    drawn = [list(eraser.draw_rectangles(400, 400, np.random.default_rng(seed)))
             for seed in range(600)]
    counts = np.bincount([len(rectangles) for rectangles in drawn], minlength=4)
    assert counts[0] == 0 and (counts[1:] > 160).all()
    largest = max(rows * columns for rectangles in drawn if len(rectangles) == 3
                  for _, _, rows, columns in rectangles)
    assert largest <= 1.02 * 400 * 400 / 9                  # a third of the area, shared by three


def test_values_by_mode():
    result = erase(build_erasing(MODE='const'))
    assert set(np.unique(result)) == {0.0, 7.0}
    result = erase(build_erasing(MODE='rand'))
    for image in result:
        per_channel = [set(channel[channel != 7].tolist()) for channel in image]
        assert [len(values) for values in per_channel] == [1, 1, 1]
        assert len(set.union(*per_channel)) == 3
    noise = erase(build_erasing(MODE='pixel'), count=40, height=60, width=60, value=100.0)
    noise = noise[noise != 100]
    assert len(np.unique(noise)) > 0.99 * len(noise)
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_split_leaves_the_first_half_alone():
    result = erase(build_erasing(SPLIT=True, MODE='const'), count=7)
    touched = (result == 0).any((1, 2, 3))
    assert touched.tolist() == [False] * 3 + [True] * 4


def test_depends_on_seed_epoch_and_index_not_on_the_batch():
    eraser = build_erasing(PROB=0.5)
    whole = erase(eraser, count=12, indices=np.arange(100, 112))
    np.random.seed(3)
    parts = [erase(eraser, count=size, indices=np.arange(100 + start, 100 + start + size))
             for start, size in ((0, 5), (5, 1), (6, 6))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    backwards = erase(eraser, count=12, indices=np.arange(111, 99, -1))
    np.testing.assert_array_equal(whole, backwards[::-1])
    assert (whole != erase(eraser, count=12, indices=np.arange(100, 112), epoch=3)).any()
    eraser.seed = 12
    assert (whole != erase(eraser, count=12, indices=np.arange(100, 112))).any()


def test_written_in_place_and_small_images_survive():
    eraser = build_erasing(MODE='const')
    images = paddle.ones([2, 3, 10, 10])
    assert eraser(images, 0, [0, 1]) is images and (images.numpy() == 0).any()
    for size in (1, 2, 3):
        erase(eraser, height=size, width=size)


def test_wrong_count_is_refused():
    with pytest.raises(UserError, match='RANDOM_ERASE_COUNT must be'):
        load_config(Options, flags={'TRAIN.RANDOM_ERASE_COUNT': 0})
