"""Each augmentation against timm on the same random numbers, and against NumPy by hand."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from common.config import build_default_config
from common.data import augment
from common.data.augment import ColorJitter, build_augment, parse_spec
from common.errors import UserError
from tests.support.paths import FIXTURES

FIXTURE = FIXTURES / 'augment' / 'policies.npz'
FILL = (124, 116, 104)
SPECS = ['rand-m9-mstd0.5-inc1', 'rand-m10-n2', 'rand-m5-n3-p0.9-mstd101-mmax15-inc1',
         'original', 'v0', 'original-mstd0.5']
BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def build_generator(seed):
    return np.random.Generator(np.random.PCG64(seed))


class Fixed:
    """Stands in for a Generator: `random` always gives the same number."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.fixture(scope='module')
def stored():
    with np.load(FIXTURE) as archive:
        return dict(archive)


@pytest.fixture
def pixels():
    return np.random.default_rng(5).integers(0, 256, (9, 12, 3), dtype='uint8')


@pytest.fixture
def config():
    return build_default_config()


@pytest.mark.parametrize('spec', SPECS)
def test_policies_equal_timm_on_the_same_random_numbers(spec, stored):
    transform = parse_spec(spec, FILL, augment.RESAMPLING['random'])
    image = Image.fromarray(stored['image'])
    changed = 0
    for seed, expected in enumerate(stored[spec]):
        result = np.asarray(transform(image, build_generator(seed)))
        np.testing.assert_array_equal(result, expected, err_msg=f'{spec}, seed {seed}')
        changed += not np.array_equal(expected, stored['image'])
    assert changed >= len(stored[spec]) // 2


@pytest.mark.parametrize('name', ['original', 'v0'])
def test_tables_equal_timm(name):
    expected = json.loads(FIXTURE.with_name('tables.json').read_text())[name]
    policy = parse_spec(name, FILL, (BICUBIC,)).policy
    assert [[[op.name, op.prob, op.magnitude] for op in pair] for pair in policy] == expected


def test_the_seeds_of_the_comparison_reach_every_operation():
    seen = set()
    transform = parse_spec(SPECS[0], FILL, augment.RESAMPLING['random'])
    for seed in range(30):
        for choice in build_generator(seed).integers(len(transform.operations), size=2):
            seen.add(transform.operations[choice].name)
    assert len(seen) == len(augment.RAND_OPERATIONS)


# Point operations: value by value.

def apply_point(name, pixels, argument):
    return np.asarray(augment.POINT_OPERATIONS[name][1](Image.fromarray(pixels), argument))


def test_invert(pixels):
    np.testing.assert_array_equal(apply_point('Invert', pixels, None), 255 - pixels)


@pytest.mark.parametrize('bits', [-1, 0, 1, 4, 7, 8])
def test_posterize_keeps_the_high_bits(pixels, bits):
    step = 2 ** (8 - max(bits, 0))
    expected = pixels.astype(int) // step * step
    np.testing.assert_array_equal(apply_point('Posterize', pixels, bits), expected)


@pytest.mark.parametrize('threshold', [0, 26, 128, 256])
def test_solarize_inverts_from_the_threshold_up(pixels, threshold):
    expected = np.where(pixels < threshold, pixels, 255 - pixels)
    np.testing.assert_array_equal(apply_point('Solarize', pixels, threshold), expected)


@pytest.mark.parametrize('amount', [0, 33, 110, 128])
def test_solarize_add_lightens_the_dark_half(pixels, amount):
    expected = np.where(pixels < 128, np.minimum(255, pixels.astype(int) + amount), pixels)
    np.testing.assert_array_equal(apply_point('SolarizeAdd', pixels, amount), expected)


def test_auto_contrast_stretches_each_channel(pixels):
    narrow = (pixels // 3 + 40).astype('uint8')
    low = narrow.min((0, 1)).astype(float)
    high = narrow.max((0, 1)).astype(float)
    expected = (narrow - low) * 255 / (high - low)
    result = apply_point('AutoContrast', narrow, None)
    assert np.abs(result - expected).max() <= 1
    assert (result.min((0, 1)) == 0).all() and (result.max((0, 1)) >= 254).all()


def test_equalize_follows_the_cumulative_histogram():
    pixels = np.random.default_rng(0).normal(90, 15, (32, 32, 3)).clip(0, 255).astype('uint8')
    expected = np.empty_like(pixels)
    for channel in range(3):
        histogram = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[np.flatnonzero(histogram)[-1]]) // 255
        before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        table = np.minimum((step // 2 + before) // step, 255)
        expected[..., channel] = table[pixels[..., channel]]
    np.testing.assert_array_equal(apply_point('Equalize', pixels, None), expected)


def blend(neutral, pixels, factor):
    return np.clip(neutral + factor * (pixels.astype(float) - neutral), 0, 255)


def to_gray(pixels):
    """ITU-R 601-2 luma, in Pillow's fixed point."""
    return (pixels.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16


@pytest.mark.parametrize('factor', [0.1, 0.7, 1.0, 1.45, 1.9])
@pytest.mark.parametrize('name', ['Color', 'Contrast', 'Brightness', 'Sharpness'])
def test_enhance_blends_with_the_neutral_image(pixels, name, factor):
    gray = to_gray(pixels)
    neutral = {
        'Color': gray[..., None],
        'Contrast': int(gray.mean() + 0.5),
        'Brightness': 0,
    }
    if name == 'Sharpness':
        smooth = pixels.astype(float)
        kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
        rows, columns = pixels.shape[:2]
        smooth[1:-1, 1:-1] = sum(
            kernel[y, x] * pixels[y:rows - 2 + y, x:columns - 2 + x].astype(float)
            for y in range(3) for x in range(3))
        neutral['Sharpness'] = np.floor(smooth + 0.5)
    expected = blend(neutral[name], pixels, factor)
    assert np.abs(apply_point(name, pixels, factor) - expected).max() <= 1


# Moving operations: whole pixels exactly, parts of pixels by bilinear interpolation by hand.

def apply_move(name, pixels, argument, resample=BILINEAR):
    image = Image.fromarray(pixels)
    return np.asarray(augment.MOVE_OPERATIONS[name][1](image, argument, resample, FILL))


@pytest.mark.parametrize('resample', [BILINEAR, BICUBIC])
def test_translate_is_relative_to_its_own_side(pixels, resample):
    shifted = apply_move('TranslateXRel', pixels, 0.25, resample)      # 3 of 12 columns
    np.testing.assert_array_equal(shifted[:, :9], pixels[:, 3:])
    assert (shifted[:, 9:] == FILL).all()
    shifted = apply_move('TranslateYRel', pixels, -1 / 3, resample)    # 3 of 9 rows, downwards
    np.testing.assert_array_equal(shifted[3:], pixels[:6])
    assert (shifted[:3] == FILL).all()


@pytest.mark.parametrize('name, matrix', [
    ('ShearX', lambda f, w, h: (1, f, 0, 0, 1, 0)),
    ('ShearY', lambda f, w, h: (1, 0, 0, f, 1, 0)),
    ('TranslateXRel', lambda f, w, h: (1, 0, f * w, 0, 1, 0)),
    ('TranslateYRel', lambda f, w, h: (1, 0, 0, 0, 1, f * h)),
])
@pytest.mark.parametrize('factor', [-0.27, 0.13])
def test_affine_samples_bilinearly_and_fills(pixels, name, matrix, factor):
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = matrix(factor, width, height)
    expected = np.empty(pixels.shape)
    for row in range(height):
        for column in range(width):
            x = a * (column + 0.5) + b * (row + 0.5) + c
            y = d * (column + 0.5) + e * (row + 0.5) + f
            if not (0 <= x < width and 0 <= y < height):
                expected[row, column] = FILL
                continue
            left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
            right_share, low_share = x - 0.5 - left, y - 0.5 - top

            def read(dy, dx, top=top, left=left):
                return pixels[np.clip(top + dy, 0, height - 1),
                              np.clip(left + dx, 0, width - 1)].astype(float)

            upper = read(0, 0) * (1 - right_share) + read(0, 1) * right_share
            lower = read(1, 0) * (1 - right_share) + read(1, 1) * right_share
            expected[row, column] = upper * (1 - low_share) + lower * low_share
    assert np.abs(apply_move(name, pixels, factor) - expected).max() <= 1


def test_rotate_turns_counter_clockwise_and_fills():
    pixels = np.full((21, 21, 3), 200, 'uint8')
    pixels[:10, 10] = 0                                     # a hand pointing up
    turned = apply_move('Rotate', pixels, 30.0)
    assert (turned[0, 0] == FILL).all()
    rows, columns = np.nonzero(turned[..., 0] < 60)
    direction = np.degrees(np.arctan2(10 - columns.mean(), 10 - rows.mean()))
    assert direction == pytest.approx(30, abs=2)


# Magnitudes.

@pytest.mark.parametrize('name, level, expected', [
    ('Rotate', 9, 27), ('ShearX', 10, 0.3), ('ShearY', 5, 0.15),
    ('TranslateXRel', 10, 0.45), ('TranslateYRel', 9, 0.405),
])
def test_moves_grow_with_the_level_and_take_either_sign(name, level, expected):
    scale = augment.MOVE_OPERATIONS[name][0]
    assert scale(level, Fixed(0.3)) == pytest.approx(expected)
    assert scale(level, Fixed(0.7)) == pytest.approx(-expected)


@pytest.mark.parametrize('name, by_level', [
    ('Posterize', {0: 0, 5: 2, 9: 3, 10: 4}),
    ('PosterizeIncreasing', {0: 4, 5: 2, 9: 1, 10: 0}),
    ('PosterizeOriginal', {0: 4, 5: 6, 10: 8}),
    ('Solarize', {0: 0, 5: 128, 10: 256}),
    ('SolarizeIncreasing', {0: 256, 9: 26, 10: 0}),
    ('SolarizeAdd', {0: 0, 9: 99, 10: 110}),
    ('Color', {0: 0.1, 5: 1.0, 10: 1.9}),
    ('ColorIncreasing', {0: 1.0, 5: 1.45, 10: 1.9}),
])
def test_point_magnitudes(name, by_level):
    scale = augment.POINT_OPERATIONS[name][0]
    for level, expected in by_level.items():
        assert scale(level, Fixed(0.3)) == pytest.approx(expected)
    if name == 'ColorIncreasing':
        assert scale(10, Fixed(0.7)) == pytest.approx(0.1)


def test_levels_are_normal_and_cut_at_ten():
    operation = parse_spec('rand-m9-mstd0.5-inc1', FILL, (BICUBIC,)).operations[0]
    generator = build_generator(0)
    levels = np.array([operation.draw_level(generator) for _ in range(20000)])
    assert levels.max() == 10 and np.mean(levels == 10) == pytest.approx(0.0228, abs=0.004)
    assert np.median(levels) == pytest.approx(9, abs=0.02)
    assert np.quantile(levels, 0.1587) == pytest.approx(8.5, abs=0.03)
    uniform = parse_spec('rand-m6-mstd101', FILL, (BICUBIC,)).operations[0]
    levels = np.array([uniform.draw_level(generator) for _ in range(20000)])
    assert levels.min() >= 0 and levels.max() <= 6
    assert levels.std() == pytest.approx(6 / 12 ** 0.5, rel=0.02)


def test_each_operation_runs_half_the_time_and_resampling_is_random(config):
    config.TRAIN.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'
    config.TRAIN.INTERPOLATION = 'random'
    transform = build_augment(config)
    assert (transform.num_ops, len(transform.operations)) == (2, 15)
    rotate = next(op for op in transform.operations if op.name == 'Rotate')
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype='uint8'))
    generator = build_generator(1)
    runs = np.mean([rotate(image, generator) is not image for _ in range(4000)])
    assert runs == pytest.approx(0.5, abs=0.03)
    assert rotate.resampling == (BILINEAR, BICUBIC)
    config.TRAIN.INTERPOLATION = 'bicubic'
    assert build_augment(config).operations[0].resampling == (BICUBIC,)


def test_fill_is_the_mean_colour(config):
    config.DATA.IMAGENET_MEAN = [0.485, 0.456, 0.406]
    config.TRAIN.AUTO_AUGMENT = 'v0'
    assert build_augment(config).policy[0][0].fill == (124, 116, 104)


def test_colour_jitter_equals_pillow_in_the_drawn_order(pixels):
    image = Image.fromarray(pixels)
    orders = set()
    for seed in range(40):
        generator = build_generator(seed)
        brightness, contrast, saturation = generator.uniform(0.6, 1.4, size=3)
        order = tuple(generator.permutation(3))
        orders.add(order)
        expected = pixels.astype(float)
        for step in order:
            whole = np.floor(expected).astype('uint8')      # Pillow cuts after each step
            gray = to_gray(whole)
            neutral = (0, int(gray.mean() + 0.5), gray[..., None])[step]
            expected = blend(neutral, whole, (brightness, contrast, saturation)[step])
        result = np.asarray(ColorJitter(0.4)(image, build_generator(seed)))
        assert np.abs(result - expected).max() <= 3
        assert np.abs(result - expected).mean() <= 0.7
    assert len(orders) == 6
    assert ColorJitter(1.5).low == 0


def test_colour_jitter_is_off_under_auto_augment(config):
    assert build_augment(config) is None
    config.TRAIN.COLOR_JITTER = 0.4
    assert isinstance(build_augment(config), ColorJitter)
    config.TRAIN.AUTO_AUGMENT = 'rand-m9-mstd0.5-inc1'
    assert not isinstance(build_augment(config), ColorJitter)


@pytest.mark.parametrize('spec', SPECS)
def test_same_generator_same_image_also_after_pickling(spec, stored):
    image = Image.fromarray(stored['image'])
    transform = parse_spec(spec, FILL, augment.RESAMPLING['random'])
    again = pickle.loads(pickle.dumps(transform))
    np.random.seed(0)
    first = [np.asarray(transform(image, build_generator(seed))) for seed in range(5)]
    np.random.seed(1)
    second = [np.asarray(again(image, build_generator(seed))) for seed in range(5)]
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('spec, message', [
    ('randm9', "unknown 'randm9' in 'randm9'. Did you mean rand?"),
    ('orginal', "unknown 'orginal' in 'orginal'. Did you mean original?"),
    ('rand-m9-msdt0.5', "unknown part 'msdt0.5' in 'rand-m9-msdt0.5'. Did you mean mstd?"),
    ('rand-m9-w0', "unknown part 'w0'"),
    ('rand-m9-tweights', "unknown part 'tweights'"),
    ('rand-m9.5', "'m' in 'rand-m9.5' needs a whole number, such as m1"),
    ('rand-m', "'m' in 'rand-m' needs a whole number"),
    ('rand-m9-m8', "'m' is given twice"),
    ('rand-m9-n0', "'n' in 'rand-m9-n0' must be 1 or more"),
    ('rand-p1.5', "'p' in 'rand-p1.5' must be from 0 to 1"),
    ('rand-inc2', "'inc' in 'rand-inc2' must be from 0 to 1"),
    ('rand--m9', "unknown part ''"),
    ('v0-m9', "unknown part 'm9' in 'v0-m9'"),
])
def test_wrong_specifications_are_refused(config, spec, message):
    config.TRAIN.AUTO_AUGMENT = spec
    with pytest.raises(UserError) as caught:
        build_augment(config)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('spec', ['rand-m0-p1', 'rand-m10-p1', 'rand-m0-p1-inc1',
                                  'rand-m10-p1-inc1', 'rand-m20-mmax20-p1-inc1'])
def test_every_operation_runs_at_the_ends_of_its_range(spec):
    sizes = [(20, 13), (2, 3), (1, 1)]
    for operation in parse_spec(spec, FILL, (BICUBIC,)).operations:
        for size in sizes:
            result = operation(Image.new('RGB', size, (10, 200, 90)), build_generator(0))
            assert (result.size, result.mode) == (size, 'RGB')


def test_three_augment_makes_grey_solarized_or_blurred_images():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    augment = parse_spec('three', FILL, (BICUBIC,))
    grey = np.asarray(ImageOps.grayscale(image).convert('RGB'))
    solarized = np.where(pixels < 128, pixels, 255 - pixels)
    counts = {'grey': 0, 'solarized': 0, 'blurred': 0}
    generator = np.random.default_rng(1)
    for _ in range(300):
        found = np.asarray(augment(image, generator))
        kind = 'grey' if np.array_equal(found, grey) else \
            'solarized' if np.array_equal(found, solarized) else 'blurred'
        counts[kind] += 1
        assert kind != 'blurred' or found.std() < pixels.std()
    assert min(counts.values()) > 70
    jittered = parse_spec('three-j0.3', FILL, (BICUBIC,))
    assert not np.array_equal(np.asarray(jittered(image, np.random.default_rng(2))),
                              np.asarray(augment(image, np.random.default_rng(2))))
    with pytest.raises(UserError, match="unknown part 'm9'"):
        parse_spec('three-m9', FILL, (BICUBIC,))
