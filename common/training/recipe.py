"""The recipe for pictures of one's own, by their number: lengths are in updates, not in epochs.

BiT's rule (arXiv 1912.11370, Sec. 3.3) gives the lengths: 500 updates below 20,000 pictures,
10,000 below 500,000, else 20,000; and mixup of 0.1 from 20,000 on. benchmarks/small_data.py
measures it against a linear probe and training from scratch.
"""

from collections.abc import Sequence
from typing import Any

SMALL, MEDIUM = 20_000, 500_000         # training pictures
UPDATES = {SMALL: 500, MEDIUM: 10_000}
MOST_UPDATES = 20_000
# At least, without pretrained weights or of mixed pictures: with weights of clothing, digits of 72,
# 25 and 6 pictures had 89.3 % after 500, 97.0 % after 1,000 and, from scratch, 91.7 %.
LONG_UPDATES = 1_000
LARGEST_BATCH = 64
VALIDATIONS = 20                        # of a run, about
MANY_HELD_BACK = 1_000                  # from which the best validation is worth choosing by
UNEQUAL = 2.0                           # largest / smallest class from which classes are weighted
WIDE = 768                              # tokens' width that FINE_TUNING_LR is for
FINE_TUNING_LR, SCRATCH_LR = 3e-4, 1e-3
# Where classes are weighted. A model that knows every picture by heart takes no notice of weights
# (arXiv 1812.03372), and of mixed pictures it knows none: four sets of 72, 25 and 6 pictures went
# from 94.5 to 96.4 % from scratch, and their classes of 6 from 85 to 91 %.
WEIGHTED_MIXUP, WEIGHTED_CUTMIX = 0.2, 1.0

# Both kinds: weights that do not suit the pictures are a start no better than none, and what is
# learnt from few pictures then depends on their variety as it does from scratch.
SHARED: dict[str, Any] = {
    'TRAIN.OPTIMIZER.NAME': 'AdamW', 'TRAIN.OPTIMIZER.BETAS': [0.9, 0.999],
    'TRAIN.LR_SCHEDULER.NAME': 'cosine', 'TRAIN.LR_SCHEDULER.FROM_START': False,
    'TRAIN.WEIGHT_DECAY': 0.05, 'TRAIN.GRAD_CLIP': 1.0, 'TRAIN.SMOOTHING': 0.1,
    'TRAIN.LINEAR_SCALED_LR': None, 'TRAIN.COOLDOWN_EPOCHS': 0, 'TRAIN.MODEL_EMA': False,
    'TRAIN.AUTO_AUGMENT': '', 'TRAIN.RANDOM_ERASE_PROB': 0.0,
    'DATA.EXIF_ORIENTATION': True, 'TRAIN.HFLIP': 0.5, 'TRAIN.CROP_SCALE': [0.5, 1.0],
    'TRAIN.AFFINE_DEGREES': 10.0, 'TRAIN.AFFINE_TRANSLATE': 0.1,
    'MODEL.DROPOUT': 0.0, 'MODEL.ATTENTION_DROPOUT': 0.0, 'MODEL.DROPPATH': 0.0, 'KEEP': 0,
}
FINE_TUNING = {'TRAIN.LAYER_DECAY': 0.75, 'TRAIN.HEAD_LR_SCALE': 10.0}
FROM_SCRATCH = {'TRAIN.LAYER_DECAY': 1.0, 'TRAIN.HEAD_LR_SCALE': 1.0}


def choose_recipe(class_counts: Sequence[int], is_pretrained: bool, embed_dim: int = WIDE,
                  held_back: int = 0) -> dict[str, Any]:
    """Return {config key: value} for so many training pictures of each class.

    embed_dim: width of the model's tokens, which the rate of fine-tuning is inverse to (as Adam's
    in arXiv 2203.03466, Table 3). held_back: pictures to measure on; of few the highest accuracy is
    chance, and the end of the training is the better model (on three classes of 83 pictures 96 %
    against 83 %).
    """
    counts = [int(count) for count in class_counts]
    number = sum(counts)
    is_unequal = max(counts) >= UNEQUAL * min(counts)
    updates = choose_updates(number)
    if is_unequal or not is_pretrained:
        updates = max(updates, LONG_UPDATES)
    recipe = SHARED | (FINE_TUNING if is_pretrained else FROM_SCRATCH) | {
        'TRAIN.MIXUP_ALPHA': 0.0 if number < SMALL else 0.1, 'TRAIN.CUTMIX_ALPHA': 0.0}
    if held_back < MANY_HELD_BACK:
        recipe['BEST'] = 'latest'
    if is_unequal:
        # Smoothing gives every class a share of each picture, which the weight of a rare class
        # multiplies: with 40, 40 and 1 pictures everything was taken for the one.
        recipe |= {'TRAIN.CLASS_WEIGHTS': ['balanced'], 'TRAIN.SMOOTHING': 0.0,
                   'TRAIN.MIXUP_ALPHA': WEIGHTED_MIXUP, 'TRAIN.CUTMIX_ALPHA': WEIGHTED_CUTMIX}
    peak = FINE_TUNING_LR * WIDE / embed_dim if is_pretrained else SCRATCH_LR
    peak = float(f'{peak:.1e}')
    return recipe | {
        'TRAIN.BASE_LR': peak, 'TRAIN.WARMUP_START_LR': peak / 100, 'TRAIN.END_LR': 0.0} | \
        schedule_updates(number, choose_batch(number), updates)


def choose_updates(number: int) -> int:
    """Return the optimizer updates for so many training pictures, by BiT's rule."""
    return next((updates for limit, updates in UPDATES.items() if number < limit), MOST_UPDATES)


def choose_batch(number: int) -> int:
    """Return the pictures an update: a power of two, at most a quarter of them or LARGEST_BATCH."""
    wanted = max(1, min(LARGEST_BATCH, number // 4))
    return 1 << wanted.bit_length() - 1


def schedule_updates(number: int, batch_size: int, updates: int) -> dict[str, Any]:
    """Return {config key: value} of a length in updates, with what is counted in epochs.

    The loop validates and saves where epochs end: about VALIDATIONS times in the run.
    """
    updates_per_epoch = max(1, number // batch_size)
    every = max(1, round(updates / VALIDATIONS / updates_per_epoch))
    return {'DATA.BATCH_SIZE': batch_size, 'TRAIN.NUM_STEPS': updates,
            'TRAIN.WARMUP_STEPS': updates // 10, 'TRAIN.EARLY_STOP_STEPS': max(1, updates // 2),
            'VALIDATE_FREQ': every, 'SAVE_FREQ': every}
