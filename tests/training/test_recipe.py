"""The recipe for few pictures: lengths in updates, batches bounded by the data, rates."""

import numpy as np
import pytest

from common.config import Options, load_config
from common.training.losses import compute_class_weights
from common.training.recipe import choose_batch, choose_recipe, choose_updates
from common.training.schedule import build_plan, build_schedule


@pytest.mark.parametrize('pictures, updates', [
    (3, 500), (19_999, 500), (20_000, 10_000), (499_999, 10_000), (500_000, 20_000)])
def test_updates_are_bits(pictures, updates):
    assert choose_updates(pictures) == updates
    assert choose_recipe([pictures], True)['TRAIN.NUM_STEPS'] == updates


@pytest.mark.parametrize('pictures, batch', [(2, 1), (5, 1), (8, 2), (82, 16), (255, 32),
                                             (256, 64), (10 ** 6, 64)])
def test_the_batch_is_bounded_by_the_pictures(pictures, batch):
    assert choose_batch(pictures) == batch <= pictures


@pytest.mark.parametrize('counts', [[58, 20, 5], [1, 1], [200] * 10, [30_000, 30_000]])
@pytest.mark.parametrize('is_pretrained', [True, False])
def test_a_run_of_it_begins_above_rate_0_and_validates_some_20_times(counts, is_pretrained):
    config = load_config(Options, flags=choose_recipe(counts, is_pretrained))
    plan = build_plan(config, sum(counts) // config.DATA.BATCH_SIZE)
    schedule = build_schedule(config, plan, config.DATA.BATCH_SIZE)
    assert 0 < schedule(0) < schedule(plan.warmup_updates) == config.TRAIN.BASE_LR
    validations = plan.total_epochs / config.VALIDATE_FREQ
    assert 5 <= validations <= 30 or plan.updates_per_epoch > 500
    assert plan.total_updates > config.TRAIN.EARLY_STOP_STEPS


def test_unequal_classes_are_weighted_and_mixed():
    assert 'TRAIN.CLASS_WEIGHTS' not in choose_recipe([50, 60, 70], True)
    unequal = choose_recipe([58, 20, 5], True)
    assert unequal['TRAIN.CLASS_WEIGHTS'] == ['balanced'] and unequal['TRAIN.SMOOTHING'] == 0
    # Else the least loss of a picture of a usual class would be at the rarest.
    weights = compute_class_weights(['balanced'], 3, [40, 40, 1])
    smoothed = (1 - 0.1) * np.eye(3)[0] + 0.1 / 3
    assert (weights * smoothed).argmax() == 2 and (weights * np.eye(3)[0]).argmax() == 0
    for counts, mixup, cutmix in (([100] * 10, 0, 0), ([58, 20, 5], 0.2, 1), ([3000] * 10, 0.1, 0)):
        for is_pretrained in (True, False):
            recipe = choose_recipe(counts, is_pretrained)
            assert recipe['TRAIN.MIXUP_ALPHA'] == mixup
            assert recipe['TRAIN.CUTMIX_ALPHA'] == cutmix


@pytest.mark.parametrize('counts', [[58, 20, 5], [40] * 10])
def test_fine_tuning_shows_the_pictures_as_training_from_scratch_does(counts):
    """Weights that do not suit the pictures would else be worse than none."""
    tuned, scratch = (choose_recipe(counts, is_pretrained) for is_pretrained in (True, False))
    differing = {key for key in tuned | scratch if tuned.get(key) != scratch.get(key)}
    assert not {key for key in differing if 'LR' not in key} - {
        'TRAIN.LAYER_DECAY', 'TRAIN.NUM_STEPS', 'TRAIN.WARMUP_STEPS', 'TRAIN.EARLY_STOP_STEPS',
        'VALIDATE_FREQ', 'SAVE_FREQ'}
    assert tuned['TRAIN.AFFINE_DEGREES'] > 0 and tuned['TRAIN.AFFINE_TRANSLATE'] > 0
    assert tuned['TRAIN.CROP_SCALE'] == [0.5, 1.0]
    # What is mixed takes as long.
    assert tuned['TRAIN.NUM_STEPS'] == (1000 if tuned['TRAIN.MIXUP_ALPHA'] else 500)
    assert scratch['TRAIN.NUM_STEPS'] == 1000


def test_balanced_is_a_word():
    for opts in (['TRAIN.CLASS_WEIGHTS', 'balanced'], ['TRAIN.CLASS_WEIGHTS', '["balanced"]']):
        assert load_config(Options, opts=opts).TRAIN.CLASS_WEIGHTS == ['balanced']
    assert load_config(Options, opts=['TRAIN.CLASS_WEIGHTS', '[1, 2]']).TRAIN.CLASS_WEIGHTS \
        == [1, 2]
