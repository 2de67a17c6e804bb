"""Mixup and CutMix against timm, against the formula pixel by pixel, and their laws."""


import numpy as np
import paddle
import pytest

from common.config import build_default_config
from common.data import mixup
from common.errors import UserError
from tests.support.paths import FIXTURES

FIXTURE = FIXTURES / 'augment' / 'mixup.npz'
CLASSES = 5
MODES = ('batch', 'pair', 'elem')


def build_generator(seed):
    return np.random.Generator(np.random.PCG64(seed))


def build_mixup(**options):
    config = build_default_config()
    config.MODEL.NUM_CLASSES = CLASSES
    settings = {'MIXUP_ALPHA': 0.8, 'CUTMIX_ALPHA': 1.0, 'SMOOTHING': 0.1, **options}
    for key, value in settings.items():
        config.TRAIN[key] = value
    return mixup.build_mixup(config)


def make_batch(size, height=6, width=9):
    rng = np.random.default_rng(size)
    images = rng.normal(size=(size, 3, height, width)).astype('float32')
    return images, rng.integers(0, CLASSES, size)


def run(mixer, images, labels, seed):
    mixed, targets = mixer(paddle.to_tensor(images), paddle.to_tensor(labels),
                           build_generator(seed))
    assert (mixed.dtype, targets.dtype) == (paddle.float32, paddle.float32)
    return mixed.numpy(), targets.numpy()


def mix_by_formula(images, labels, lam, boxes, smoothing):
    """The definition, one sample and one pixel rule at a time, in float64."""
    count = len(images)
    off = smoothing / CLASSES
    hard = np.full((count, CLASSES), off)
    hard[np.arange(count), labels] = 1 - smoothing + off
    mixed, targets = images.astype(float), np.empty((count, CLASSES))
    for sample in range(count):
        partner = count - 1 - sample
        row = min(sample, len(lam) - 1)
        top, bottom, left, right = boxes[row]
        share = float(lam[row])
        if bottom > top and right > left:
            mixed[sample, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
            area = (bottom - top) * (right - left) / images[0, 0].size
            assert share == pytest.approx(1 - area, abs=1e-6)
        else:
            mixed[sample] = share * images[sample] + (1 - share) * images[partner].astype(float)
        targets[sample] = share * hard[sample] + (1 - share) * hard[partner]
    return mixed, targets


@pytest.mark.parametrize('size', [1, 2, 4, 5, 7])
@pytest.mark.parametrize('mode', MODES)
def test_images_and_targets_equal_the_formula(mode, size):
    images, labels = make_batch(size)
    mixer = build_mixup(MIXUP_MODE=mode, MIXUP_PROB=0.8)
    for seed in range(12):
        lam, boxes = mixer.draw(size, 6, 9, build_generator(seed))
        assert len(lam) == len(boxes) == (1 if mode == 'batch' else size)
        expected_images, expected_targets = mix_by_formula(images, labels, lam, boxes, 0.1)
        mixed, targets = run(mixer, images, labels, seed)
        np.testing.assert_allclose(mixed, expected_images, rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets, expected_targets, rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets.sum(-1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize('case', ['batch0', 'batch1', 'pair0', 'elem0'])
def test_equal_to_timm_for_the_same_draw(case, monkeypatch):
    with np.load(FIXTURE) as stored:
        stored = dict(stored)
    mode, first = case[:-1], int(case[-1])
    rows = {'batch': [first], 'pair': [0, 1, 1, 0], 'elem': [0, 1, 2, 3]}[mode]
    mixer = build_mixup(MIXUP_MODE=mode)
    monkeypatch.setattr(mixer, 'draw', lambda *_: (stored['lam'][rows], stored['boxes'][rows]))
    mixed, targets = run(mixer, stored['images'], stored['labels'], 0)
    np.testing.assert_allclose(mixed, stored[f'{case}.images'], rtol=0, atol=1e-6)
    np.testing.assert_allclose(targets, stored[f'{case}.targets'], rtol=0, atol=1e-6)


def test_cutmix_copies_pixels_exactly():
    images, labels = make_batch(4)
    mixed, _ = run(build_mixup(MIXUP_ALPHA=0.0, MIXUP_MODE='elem'), images, labels, 3)
    assert ((mixed == images) | (mixed == images[::-1])).all()
    assert (mixed != images).any()


def test_middle_of_an_odd_batch_stays_as_it_is():
    images, labels = make_batch(5)
    for mode in MODES:
        mixed, targets = run(build_mixup(MIXUP_MODE=mode, SMOOTHING=0.0), images, labels, 1)
        np.testing.assert_allclose(mixed[2], images[2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(targets[2], np.eye(CLASSES)[labels[2]], rtol=0, atol=1e-6)


def test_pairs_share_their_draw():
    for size in (6, 7):
        lam, boxes = build_mixup(MIXUP_MODE='pair').draw(size, 20, 30, build_generator(0))
        np.testing.assert_array_equal(lam, lam[::-1])
        np.testing.assert_array_equal(boxes, boxes[::-1])
        assert len(set(lam.tolist())) == (size + 1) // 2


def test_box_has_the_image_shape_and_is_clipped_at_the_borders():
    height, width, count = 40, 100, 4000
    lam = np.full(count, 0.75)                              # half of either side
    boxes = mixup.draw_boxes(lam, height, width, build_generator(0))
    rows, columns = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert boxes.min() == 0 and boxes[:, 1].max() == height and boxes[:, 3].max() == width
    assert rows.max() == 20 and columns.max() == 50
    # Half of the centres lie within half a box of a border; those lose a quarter in the mean.
    assert rows.mean() == pytest.approx(20 * 0.875, rel=0.02)
    assert columns.mean() == pytest.approx(50 * 0.875, rel=0.02)


def test_box_lies_around_its_centre():
    boxes = mixup.draw_boxes(np.full(50, 0.75), 38, 100, build_generator(0))    # 19 x 50
    generator = build_generator(0)
    row, column = generator.integers(38, size=50), generator.integers(100, size=50)
    np.testing.assert_array_equal(boxes[:, 0], np.maximum(row - 9, 0))
    np.testing.assert_array_equal(boxes[:, 1], np.minimum(row + 10, 38))
    np.testing.assert_array_equal(boxes[:, 2], np.maximum(column - 25, 0))
    np.testing.assert_array_equal(boxes[:, 3], np.minimum(column + 25, 100))


def test_minmax_box_stays_inside_with_sides_in_range():
    mixer = build_mixup(CUTMIX_ALPHA=0.0, MIXUP_ALPHA=0.0, CUTMIX_MINMAX=[0.2, 0.8],
                        MIXUP_MODE='elem')
    lam, boxes = mixer.draw(5000, 40, 100, build_generator(0))
    rows, columns = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    assert (rows.min(), rows.max()) == (8, 32)
    assert (columns.min(), columns.max()) == (20, 80)
    assert rows.mean() == pytest.approx(20, abs=0.4)
    assert boxes[:, 0].min() == 0 and boxes[:, 1].max() == 40 and boxes[:, 3].max() == 100
    np.testing.assert_allclose(lam, 1 - rows * columns / 4000, rtol=0, atol=1e-7)


def test_shares_follow_the_beta_law_and_the_probabilities():
    mixer = build_mixup(MIXUP_PROB=0.7, MIXUP_SWITCH_PROB=0.25, MIXUP_MODE='elem')
    lam, boxes = mixer.draw(40000, 224, 224, build_generator(0))
    has_box = boxes[:, 1] > boxes[:, 0]
    untouched = ~has_box & (lam == 1)
    assert untouched.mean() == pytest.approx(0.3, abs=0.01)
    assert has_box.mean() == pytest.approx(0.7 * 0.25, abs=0.01)
    blended = lam[~has_box & ~untouched]
    assert blended.mean() == pytest.approx(0.5, abs=0.01)
    assert blended.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.03)
    # Beta(0.8, 0.8): a quarter of the draws lies below this point.
    assert np.quantile(blended, 0.25) == pytest.approx(0.2194, abs=0.02)


def test_one_of_the_two_alone():
    images, labels = make_batch(4)
    lam, boxes = build_mixup(CUTMIX_ALPHA=0.0, MIXUP_MODE='elem').draw(
        50, 6, 9, build_generator(0))
    assert not boxes.any() and (lam < 1).all()
    lam, boxes = build_mixup(MIXUP_ALPHA=0.0, MIXUP_MODE='elem').draw(
        50, 224, 224, build_generator(0))
    assert (boxes[:, 1] > boxes[:, 0]).mean() > 0.9


def test_draws_depend_on_the_generator_alone():
    images, labels = make_batch(5)
    mixer = build_mixup(MIXUP_MODE='elem')
    np.random.seed(0)
    first = run(mixer, images, labels, 9)
    np.random.seed(1)
    paddle.seed(4)
    second = run(mixer, images, labels, 9)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (run(mixer, images, labels, 10)[0] != first[0]).any()


@pytest.mark.parametrize('options, expected', [
    ({}, False),
    ({'MIXUP_ALPHA': 0.8}, True),
    ({'CUTMIX_ALPHA': 1.0}, True),
    ({'CUTMIX_MINMAX': [0.2, 0.8]}, True),
    ({'MIXUP_ALPHA': 0.8, 'MIXUP_PROB': 0.0}, False),
])
def test_is_active(options, expected):
    config = build_default_config()
    for key, value in options.items():
        config.TRAIN[key] = value
    assert mixup.is_active(config) is expected


@pytest.mark.parametrize('minmax', [[0.8, 0.2], [0.2], [-0.1, 0.5], [0.2, 1.5], ['a', 0.5], []])
def test_wrong_minmax_is_refused(minmax):
    with pytest.raises(UserError, match='TRAIN.CUTMIX_MINMAX'):
        build_mixup(CUTMIX_MINMAX=minmax)
