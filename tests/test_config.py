"""Options and their values: what is taken, what is refused, and in which words."""

import math
import os
import re
import time

import pytest

from common import config as shared
from common.errors import UserError
from common.option import Option, list_options, parse, show
from T2T_ViT.config import Options as T2TOptions
from T2T_ViT.config import get_config as get_t2t_config
from tests.support.paths import ROOT
from ViT.config import Options as ViTOptions
from ViT.config import get_config

BOTH = pytest.mark.parametrize('options, load', [
    (ViTOptions, get_config), (T2TOptions, get_t2t_config)], ids=['ViT', 'T2T-ViT'])


def refuse(load, *expected, **arguments):
    """The input must be refused in one short line that holds every expected text."""
    with pytest.raises(UserError) as error:
        load(**arguments)
    message = str(error.value)
    assert len(message) < 600 and '\n' not in message, message
    for text in expected:
        assert text in message, message


def write(folder, text):
    path = folder / 'a.yaml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@BOTH
def test_every_default_satisfies_its_own_rules_and_has_a_help(options, load):
    for key, option in list_options(options).items():
        assert option.find_fault(option.default) == '', key
        assert option.convert(option.default) == option.default, key
        assert option.help and option.help[0] != ' ' and '  ' not in option.help, key
        for need in option.needs:
            others, _, values = need.lstrip('!').partition('=')
            for other in others.split('|'):
                known = list_options(options)[other]
                assert not values or set(values.split(',')) <= {*known.choices, 'None'} or \
                    other == 'DATA.DATASET', (key, need)
    config = load()
    assert shared.list_unused(config, options) == []
    assert config.is_frozen()


@BOTH
def test_every_bound_of_every_option_holds(options, load):
    """A value just inside is taken by the option's own rules, one just outside refused by name."""
    for key, option in list_options(options).items():
        if option.type is bool or option.type is str:
            continue
        step = 1 if option.type is int or option.each is int else 1e-9
        length = option.count or 3
        for bound, inside, outside in (
                (option.at_least, 0, -step), (option.above, step, 0),
                (option.at_most, 0, step), (option.below, -step, 0)):
            if bound is None:
                continue
            for value in (bound + inside, bound + outside):
                value = int(value) if step == 1 else float(value)
                given = [value] * length if option.type is list else value
                fault = option.find_fault(given)
                assert bool(fault) == (value == bound + outside), (key, value, fault)
            refuse(load, key, flags={key: given})


def test_a_model_adds_to_the_groups_and_changes_defaults():
    class Own(shared.Options):
        class DATA:
            CROP_PCT = shared.Options.DATA.CROP_PCT.with_default(0.9)

        class MODEL:
            WIDTH = Option(3, above=0, help='of it')

    found = list_options(Own)
    assert found['DATA.CROP_PCT'].default == 0.9 and found['DATA.CROP_PCT'].at_most == 1
    assert found['MODEL.WIDTH'].default == 3 and 'MODEL.NUM_CLASSES' in found
    assert list_options(shared.Options)['DATA.CROP_PCT'].default == 0.875
    config = shared.load_config(Own, opts=['MODEL.WIDTH', '5'])
    assert config.MODEL.WIDTH == 5 and config.DATA.CROP_PCT == 0.9
    other = shared.load_config(Own)
    other.defrost()
    other.TRAIN.OPTIMIZER.BETAS.append(7)           # a default is nobody's but its config's
    assert shared.load_config(Own).TRAIN.OPTIMIZER.BETAS == [0.9, 0.999]


REFUSED = {
    'a beta above 1': ('TRAIN.OPTIMIZER.BETAS', [0.9, 1.5]),
    'a beta of 1': ('TRAIN.OPTIMIZER.BETAS', [0.9, 1.0]),
    'text for a milestone': ('TRAIN.LR_SCHEDULER.MILESTONES', ['a']),
    'momentum below 0': ('TRAIN.OPTIMIZER.MOMENTUM', -3),
    'decay below 0': ('TRAIN.LR_SCHEDULER.DECAY_RATE', -1),
    'a shift of seven sizes': ('TRAIN.AFFINE_TRANSLATE', -7),
    'turned below 0': ('TRAIN.AFFINE_DEGREES', -1),
    'scaled below 0': ('TRAIN.AFFINE_SCALE', [-1, 1]),
    'sheared below 0': ('TRAIN.AFFINE_SHEAR', -1),
    'an epsilon Paddle refuses': ('MODEL.LAYER_NORM_EPS', 0.01),
    'a crop of a hundred sizes': ('DATA.CROP_PCT', 100.0),
    'a crop of nothing': ('DATA.CROP_PCT', 1e-320),
    'a number for a name': ('TRAIN.NO_WEIGHT_DECAY', [1, 'a']),
    'a digit that is none': ('MODEL.FREEZE', '²'),
    'blocks below 0': ('MODEL.FREEZE', '-1'),
    'frozen by a word': ('MODEL.FREEZE', 'head'),
    'a huge seed': ('SEED', 10 ** 4000),
    'a long number': ('DATA.BATCH_SIZE', 10 ** 4000),
    'a long number for a float': ('TRAIN.BASE_LR', 10 ** 4000),
    'no number': ('TRAIN.BASE_LR', math.nan),
    'an infinite item': ('DATA.IMAGENET_MEAN', [0.5, math.inf, 0.5]),
    'true for a number': ('DATA.BATCH_SIZE', True),
    'NUL in a path': ('DATA.DATA_PATH', '/a\0b'),
    'NUL in a list': ('TRAIN.NO_WEIGHT_DECAY', ['a\0b']),
    'too few means': ('DATA.IMAGENET_MEAN', [0.5]),
    'weights below 0': ('TRAIN.CLASS_WEIGHTS', [-1.0, 1.0]),
    'a word for weights': ('TRAIN.CLASS_WEIGHTS', ['equal']),
    'a box out of order': ('TRAIN.CUTMIX_MINMAX', [0.8, 0.2]),
    'another family': ('MODEL.TYPE', 'vit'),
    'a group': ('MODEL', 3),
    'BASE beside yaml': ('BASE', ['a.yaml']),
}


@BOTH
@pytest.mark.parametrize('name', REFUSED)
def test_values_that_make_no_sense_are_refused(name, options, load, tmp_path):
    key, value = REFUSED[name]
    refuse(load, key, flags={key: value})


@pytest.mark.parametrize('key, value', [
    ('MODEL.EMBED_DIM', 10 ** 9), ('MODEL.DEPTH', 10 ** 9), ('MODEL.MLP_RATIO', 1e-9),
    ('MODEL.REPRESENTATION_SIZE', 2 ** 31 - 1)])
def test_a_model_larger_than_the_memory_or_without_width_is_refused(key, value):
    refuse(get_config, key.split('.')[0], flags={key: value})
    if key != 'MODEL.REPRESENTATION_SIZE':
        refuse(get_t2t_config, 'MODEL', flags={key: value})


def test_opts_are_read_as_python_and_lists_may_be_cut_by_the_shell():
    config = get_config(opts=[
        'TRAIN.OPTIMIZER.BETAS', '[0.8,', '0.9]', 'DATA.DATA_PATH', '2024', 'MODEL.FREEZE', '3',
        'TRAIN.GRAD_CLIP', 'None', 'TRAIN.AUTO_AUGMENT', '"v0"', 'TRAIN.MODEL_EMA', 'true',
        'TRAIN.CLASS_WEIGHTS', '["balanced"]', 'DATA.IMAGENET_MEAN', '["1e-3", 0, 1]'])
    assert config.TRAIN.OPTIMIZER.BETAS == [0.8, 0.9] and config.DATA.DATA_PATH == '2024'
    assert config.MODEL.FREEZE == '3' and config.TRAIN.GRAD_CLIP is None
    assert config.TRAIN.AUTO_AUGMENT == 'v0' and config.TRAIN.MODEL_EMA is True
    assert config.TRAIN.CLASS_WEIGHTS == ['balanced']
    assert config.DATA.IMAGENET_MEAN == [1e-3, 0, 1]


@pytest.mark.parametrize('text', [
    '{[1]: 2}', '(' * 5000, '-' * 5000 + '1', '9' * 5000, '[' * 200, 'a' * 200_000, '\0', "'",
    '1' + '0' * 400, '{1, [2]}', 'x' * 99_999, '0x', '1_000j', '...', '-', '='])
def test_no_text_of_opts_is_more_than_a_value(text):
    started = time.process_time()
    for key in ('DATA.BATCH_SIZE', 'TRAIN.BASE_LR', 'TRAIN.OPTIMIZER.BETAS'):
        refuse(get_config, key, opts=[key, text])
    assert time.process_time() - started < 5


def test_what_is_shown_is_short():
    nested = [1]
    for _ in range(60):
        nested = [nested, nested]
    for value in (nested, 'a' * 10 ** 6, list(range(10 ** 5)), {i: i for i in range(10 ** 5)},
                  10 ** 10000, [10 ** 5000]):
        assert len(show(value)) < 200
    assert show([1, 'a', 0.5]) == "[1, 'a', 0.5]"
    assert show(10 ** 5000) == 'an integer of 5001 digits'
    assert parse('None') is None and parse('1e-3') == 1e-3 and parse('abc') == 'abc'


# yaml


BOMB = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{name}: &{name} [{", ".join([f"*{before}"] * 9)}]\n'
    for before, name in zip('abcdefgh', 'bcdefghi'))

BAD_YAML = {
    'a group twice': ('TRAIN:\n  BASE_LR: 1e-5\nMODEL: {NAME: a}\nTRAIN:\n  NUM_STEPS: 2\n',
                      ['line 4', 'TRAIN is given twice', 'line 1']),
    'a key twice': ('TRAIN:\n  BASE_LR: 1e-5\n  BASE_LR: 1e-4\n',
                    ['line 3', 'BASE_LR is given twice', 'line 2']),
    'a bomb of aliases': (BOMB, ['unfolds']),
    'an alias of itself': ('TRAIN: &a [*a]\n', ['unfolds']),
    'deep lists': ('TRAIN: ' + '[' * 50_000, ['deeper']),
    'deep groups': ('\n'.join(' ' * depth + 'a:' for depth in range(600)), ['deeper']),
    'groups of depth 25': ('\n'.join(' ' * depth + 'a:' for depth in range(25)), ['deeper']),
    'a large file': ('# ' + 'x' * 600_000, ['larger']),
    'a long number': ('SEED: ' + '9' * 5000, ['digits']),
    'BASE of a number': ('BASE: 1\n', ['BASE', 'not 1']),
    'BASE of a list in a list': ('BASE: [[a]]\n', ['BASE']),
    'NUL in BASE': ('BASE: "a\\0b.yaml"\n', ['No such']),
    'NUL in a path': ('DATA: {DATA_PATH: "a\\0b"}\n', ['DATA.DATA_PATH', 'NUL']),
    'a number for a key': ('1: 2\n', ['unknown key 1']),
    'a list for a key': ('[1]: 2\n', ['line 1']),
    'a long key': ('? ' + 'a' * 10_000 + '\n: 1\n', ['unknown key aaa']),
    'a folder': (None, ['not a file']),
    'a date': ('SAVE: 2024-01-01\n', ['SAVE', 'text']),
    'no date': ('SAVE: 2024-99-99\n', ['month']),
    'code': ('SAVE: !!python/object/apply:os.system [x]\n', ['line 1', 'tag']),
    'another family': ('MODEL: {TYPE: vit}\n', ['MODEL.TYPE', 'Did you mean ViT?']),
    'a group that is a number': ('TRAIN: 3\n', ['TRAIN is a group']),
    'an option that is a group': ('SEED: {A: 1}\n', ['SEED', 'an integer']),
}


@pytest.mark.parametrize('name', BAD_YAML)
def test_a_bad_yaml_file_is_refused_quickly_in_one_short_line(name, tmp_path):
    text, expected = BAD_YAML[name]
    path = str(tmp_path) if text is None else write(tmp_path, text)
    started = time.process_time()
    with pytest.raises(UserError) as error:
        get_config(path)
    assert time.process_time() - started < 5
    message = str(error.value)
    assert str(tmp_path) in message or name == 'NUL in BASE' or expected[0] in message
    assert '\n' not in message and len(message) < 500 + len(str(tmp_path)), message
    for text in expected:
        assert text in message, message


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'a.yaml')
    refuse(get_config, 'not a file', path=str(tmp_path / 'a.yaml'))


def test_bases_that_multiply_are_refused(tmp_path):
    for number in range(12):
        (tmp_path / f'{number}.yaml').write_text(
            f'BASE: [{number + 1}.yaml, {number + 1}.yaml]\n')
    (tmp_path / '12.yaml').write_text('SEED: 1\n')
    refuse(get_config, 'more than 100 files', path=str(tmp_path / '0.yaml'))
    refuse(get_config, 'circle', path=write(tmp_path, 'BASE: a.yaml'))


def test_anchors_and_merges_are_yaml_as_ever(tmp_path):
    config = get_config(write(tmp_path, """
TRAIN: &train {OPTIMIZER: {BETAS: &b [0.8, 0.9]}, CROP_SCALE: *b}
"""))
    assert config.TRAIN.OPTIMIZER.BETAS == config.TRAIN.CROP_SCALE == [0.8, 0.9]


def test_options_that_a_yaml_file_leaves_alone(tmp_path):
    """Those of no group too: finetune.py -cfg asks for BEST."""
    (tmp_path / 'a.yaml').write_text('SEED: 3\nTRAIN: {BASE_LR: 0.1}\n')
    keys = ['BEST', 'SEED', 'TRAIN.BASE_LR', 'TRAIN.HFLIP']
    assert shared.list_unset(ViTOptions, str(tmp_path / 'a.yaml'), keys) == ['BEST', 'TRAIN.HFLIP']


@BOTH
def test_a_dump_loads_again_and_a_record_reads_no_file(options, load, tmp_path):
    config = load(flags={'TRAIN.CROP_SCALE': [0.5, 1.0], 'TRAIN.CROP_RATIO': [0.5, 1.0]})
    text = shared.dump_config(config)
    assert load(write(tmp_path, text)) == config
    record = shared.read_dump(text, 'x')
    assert record == {key: shared.get_value(config, key) for key in list_options(options)
                      if key != 'BASE'}
    for text in ('BASE: [/etc/passwd]', BOMB, '[1]'):
        with pytest.raises(UserError):
            shared.read_dump(text, 'x.pdparams')


def test_options_that_the_run_does_not_read_are_listed():
    lines = shared.list_unused(get_config(opts=[
        'TRAIN.OPTIMIZER.MOMENTUM', '0.8', 'TRAIN.RANDOM_ERASE_COUNT', '2', 'TRAIN.END_LR', '1e-5',
        'TRAIN.COLOR_JITTER', '0.4', 'TRAIN.AUTO_AUGMENT', 'v0', 'TRAIN.WARMUP_STEPS', '0',
        'TRAIN.WARMUP_EPOCHS', '3', 'TRAIN.MIXUP_ALPHA', '0.8', 'TRAIN.MIXUP_MODE', 'elem',
        'TRAIN.MIXUP_SWITCH_PROB', '0.1']), ViTOptions)
    assert lines == [
        'TRAIN.WARMUP_EPOCHS 3 (TRAIN.WARMUP_STEPS is 0)',
        "TRAIN.OPTIMIZER.MOMENTUM 0.8 (TRAIN.OPTIMIZER.NAME is 'AdamW')",
        "TRAIN.COLOR_JITTER 0.4 (TRAIN.AUTO_AUGMENT is 'v0')",
        'TRAIN.RANDOM_ERASE_COUNT 2 (TRAIN.RANDOM_ERASE_PROB is 0.0)',
        'TRAIN.MIXUP_SWITCH_PROB 0.1 (TRAIN.CUTMIX_ALPHA is 0.0 and TRAIN.CUTMIX_MINMAX is None)']


def test_an_evaluation_says_once_that_it_trains_nothing():
    flags = {'EVAL': True, 'TRAIN.BASE_LR': 0.5, 'TRAIN.END_LR': 0.1, 'AMP_LEVEL': 'O2'}
    assert shared.list_unused(get_config(flags=flags), ViTOptions) == [
        'TRAIN, all of it (EVAL is True)', "AMP_LEVEL 'O2' (AMP is False)"]
    assert shared.list_unused(get_config(flags={'EVAL': True}), ViTOptions) == []


def test_readme_and_options_agree_on_the_names():
    """Every option that README and the guides name exists."""
    keys = set(list_options(ViTOptions)) | set(list_options(T2TOptions))
    names = {key.split('.', 1)[1] for key in keys if '.' in key} | keys
    for page in ('README.md', 'README_cn.md', 'ViT/README.md', 'T2T_ViT/README.md',
                 'docs/guarantees.md'):
        with open(os.path.join(ROOT, page), encoding='utf-8') as file:
            for found in re.findall(r'\b(?:DATA|MODEL|TRAIN)\.[A-Z_.]*[A-Z]', file.read()):
                assert found in keys | {key.rsplit('.', 1)[0] for key in keys} | names, (
                    page, found)
