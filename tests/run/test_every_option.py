"""No option is given and not used: each one changes the run, is refused, or is answered by a line.

EFFECTS says for every option another value than the default's and what then shows: in the
metrics, in the log, in the files that the run leaves, in how its parts are set up, in its exit
code, or in the message that refuses it. A new option needs a row.
"""

import contextlib
import io
import json
import re
import sys
from dataclasses import dataclass

import numpy as np
import paddle
import pytest
from PIL import Image

from common.cli import list_flags, parse_command_line
from common.config import get_value, list_unused
from common.data.loader import Loader
from common.option import list_options
from common.project import Project
from common.run.launch import run_single
from common.training.stopping import Watchdog
from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.data_folders import make_image, write_turned
from ViT.project import PROJECT as VIT

SHARED_BASE = {
    'DATA.DATASET': 'imagefolder', 'DATA.BATCH_SIZE': 4, 'DATA.NUM_WORKERS': 0,
    'MODEL.NUM_CLASSES': 3, 'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 2, 'MODEL.NUM_HEADS': 2,
    'TRAIN.NUM_EPOCHS': 2, 'TRAIN.BASE_LR': 0.01, 'REPORT_FREQ': 1, 'DEVICE': 'cpu',
}
BASE = {
    'ViT': {**SHARED_BASE, 'DATA.IMAGE_SIZE': 16, 'MODEL.PATCH_SIZE': 8},
    'T2T-ViT': {**SHARED_BASE, 'DATA.IMAGE_SIZE': 32, 'MODEL.TOKEN_DIM': 8},
}

SGD = {'TRAIN.OPTIMIZER.NAME': 'SGD'}
STEP = {'TRAIN.LR_SCHEDULER.NAME': 'step', 'TRAIN.LR_SCHEDULER.MILESTONES': [1]}
WARMUP = {'TRAIN.WARMUP_STEPS': 2}
EMA = {'TRAIN.MODEL_EMA': True}
ERASE = {'TRAIN.RANDOM_ERASE_PROB': 1.0}
MIXUP = {'TRAIN.MIXUP_ALPHA': 0.8}
BOTH = {'TRAIN.MIXUP_ALPHA': 0.8, 'TRAIN.CUTMIX_ALPHA': 1.0}
TABLE = {'DATA.DATASET': 'csv', 'DATA.DATA_PATH': '{table}'}
PRETRAINED = {'MODEL.PRETRAINED': '{weights}'}
TAUGHT = {'MODEL.DISTILLED': True, 'TRAIN.TEACHER': '{weights}'}
EVALUATION = {'EVAL': True, 'MODEL.PRETRAINED': '{weights}'}

# key: (value, what shows it, options that it needs). {weights}: a checkpoint; {lacking}: a file
# without one tensor; {four}: one for four classes; {corrupt}: data with a picture that cannot be
# read; {turned}: with EXIF orientations; {table}, {fewer}: csv files; {other}: a free folder.
SHARED = {
    'BASE': (['a.yaml'], 'refused: yaml files only'),
    'DATA.DATASET': ('digits', 'refused: -dataset=imagefolder'),
    'DATA.DATA_PATH': ('/no/such', 'refused: No such folder'),
    'DATA.VAL_PATH': ('{fewer}', 'metrics', TABLE),
    'DATA.TABLE': ('{fewer}', 'code', {'DATA.DATASET': 'csv'}),
    'DATA.IMAGE_COLUMN': ('other_path', 'metrics', TABLE),
    'DATA.LABEL_COLUMN': ('other_label', 'metrics', TABLE),
    'DATA.SPLIT_COLUMN': ('other_split', 'metrics', TABLE),
    'DATA.BATCH_SIZE': (3, 'metrics'),
    'DATA.BATCH_SIZE_EVAL': (2, 'settings'),
    'DATA.IMAGE_CHANNELS': (1, 'refused: one a channel'),
    'DATA.CROP_PCT': (0.5, 'metrics'),
    'DATA.INTERPOLATION': ('nearest', 'metrics'),
    'DATA.IMAGENET_MEAN': ([0.1, 0.2, 0.3], 'metrics'),
    'DATA.IMAGENET_STD': ([0.1, 0.2, 0.3], 'metrics'),
    'DATA.NUM_WORKERS': (1, 'settings'),
    'DATA.USE_SHARED_MEMORY': (False, 'settings', {'DATA.NUM_WORKERS': 1}),
    'DATA.SKIP_CORRUPT': (True, 'code', {'DATA.DATA_PATH': '{corrupt}'}),
    'DATA.EXIF_ORIENTATION': (True, 'metrics', {'DATA.DATA_PATH': '{turned}'}),
    'DATA.VAL_FRACTION': (0.5, 'log: Not used: DATA.VAL_FRACTION'),
    'DATA.LABELS': ('/no/such', 'refused: /no/such'),
    'MODEL.TYPE': ('vit', 'refused: MODEL.TYPE'),
    'MODEL.NAME': ('other', 'log: Training other'),
    'MODEL.PRETRAINED': ('/no/such', 'refused: /no/such'),
    'MODEL.RESUME': ('/no/such', 'refused: /no/such'),
    'MODEL.NUM_CLASSES': (4, 'refused: -num_classes=3'),
    'MODEL.DROPOUT': (0.3, 'metrics'),
    'MODEL.ATTENTION_DROPOUT': (0.3, 'metrics'),
    'MODEL.DROPPATH': (0.5, 'metrics'),
    'MODEL.GELU': ('tanh', 'metrics'),
    'MODEL.LAYER_NORM_EPS': (1e-3, 'metrics'),
    'MODEL.RECOMPUTE': (True, 'settings'),
    'MODEL.NUMERICS': ('model', 'metrics', {**PRETRAINED, 'MODEL.GELU': 'tanh'}),
    'MODEL.PRETRAINED_EMA': (False, 'metrics', PRETRAINED),
    'MODEL.POSITION_RESIZE': ('google', 'metrics', {**PRETRAINED, 'DATA.IMAGE_SIZE': 64}),
    'MODEL.HEAD_INIT': ('trunc_normal', 'metrics', {'MODEL.PRETRAINED': '{four}'}),
    'MODEL.ALLOW_MISSING': (True, 'code', {'EVAL': True, 'MODEL.PRETRAINED': '{lacking}'}),
    'MODEL.FREEZE': ('backbone', 'metrics'),
    'TRAIN.LAST_EPOCH': (1, 'metrics'),
    'TRAIN.NUM_EPOCHS': (3, 'metrics'),
    'TRAIN.NUM_STEPS': (4, 'metrics'),
    'TRAIN.WARMUP_EPOCHS': (1, 'metrics'),
    'TRAIN.WARMUP_STEPS': (3, 'metrics'),
    'TRAIN.COOLDOWN_EPOCHS': (1, 'metrics'),
    'TRAIN.BASE_LR': (0.002, 'metrics'),
    'TRAIN.WARMUP_START_LR': (1e-3, 'metrics', WARMUP),
    'TRAIN.END_LR': (1e-3, 'metrics'),
    'TRAIN.LINEAR_SCALED_LR': (2, 'metrics'),
    'TRAIN.RECIPE_BATCH': (64, 'log: The recipe has 64 images'),
    'TRAIN.WEIGHT_DECAY': (0.5, 'metrics'),
    'TRAIN.NO_WEIGHT_DECAY': (['{head}'], 'metrics', {'TRAIN.WEIGHT_DECAY': 0.5}),
    'TRAIN.LAYER_DECAY': (0.5, 'metrics'),
    'TRAIN.HEAD_LR_SCALE': (2.0, 'metrics'),
    'TRAIN.GRAD_CLIP': (0.01, 'metrics', SGD),
    'TRAIN.ACCUM_ITER': (2, 'metrics'),
    'TRAIN.MODEL_EMA': (True, 'metrics'),
    'TRAIN.MODEL_EMA_DECAY': (0.5, 'metrics', EMA),
    'TRAIN.MODEL_EMA_WARMUP': (True, 'metrics', EMA),
    'TRAIN.SMOOTHING': (0.1, 'metrics'),
    'TRAIN.CLASS_WEIGHTS': ([1, 2, 3], 'metrics'),
    'TRAIN.EARLY_STOP_STEPS': (1, 'log: Stopping early',
                               {'TRAIN.BASE_LR': 0.0, 'TRAIN.NUM_EPOCHS': 4}),
    'TRAIN.EARLY_STOP_EPOCHS': (1, 'log: Stopping early',
                                {'TRAIN.BASE_LR': 0.0, 'TRAIN.NUM_EPOCHS': 4}),
    'TRAIN.LR_SCHEDULER.NAME': ('linear', 'metrics'),
    'TRAIN.LR_SCHEDULER.MILESTONES': ([1], 'metrics', {'TRAIN.LR_SCHEDULER.NAME': 'step'}),
    'TRAIN.LR_SCHEDULER.DECAY_RATE': (0.5, 'metrics', STEP),
    'TRAIN.LR_SCHEDULER.POWER': (2.0, 'metrics', {'TRAIN.LR_SCHEDULER.NAME': 'polynomial'}),
    'TRAIN.LR_SCHEDULER.FROM_START': (True, 'metrics', WARMUP),
    'TRAIN.OPTIMIZER.NAME': ('SGD', 'metrics'),
    'TRAIN.OPTIMIZER.EPS': (1e-2, 'metrics'),
    'TRAIN.OPTIMIZER.BETAS': ([0.5, 0.6], 'metrics'),
    'TRAIN.OPTIMIZER.MOMENTUM': (0.5, 'metrics', SGD),
    'TRAIN.OPTIMIZER.NESTEROV': (True, 'metrics', SGD),
    'TRAIN.LOSS': ('binary', 'metrics'),
    'TRAIN.REPEATED_AUGMENTS': (3, 'metrics'),
    'TRAIN.CROP': ('resize', 'metrics'),
    'TRAIN.CROP_SCALE': ([0.5, 0.6], 'metrics'),
    'TRAIN.CROP_RATIO': ([0.5, 0.6], 'metrics'),
    'TRAIN.INTERPOLATION': ('bilinear', 'metrics'),
    'TRAIN.HFLIP': (1.0, 'metrics'),
    'TRAIN.AFFINE_DEGREES': (30.0, 'metrics'),
    'TRAIN.AFFINE_TRANSLATE': (0.3, 'metrics'),
    'TRAIN.AFFINE_SCALE': ([0.5, 0.6], 'metrics'),
    'TRAIN.AFFINE_SHEAR': (20.0, 'metrics'),
    'TRAIN.COLOR_JITTER': (0.5, 'metrics'),
    'TRAIN.AUTO_AUGMENT': ('rand-m9-mstd0.5-inc1', 'metrics'),
    'TRAIN.RANDOM_ERASE_PROB': (1.0, 'metrics'),
    'TRAIN.RANDOM_ERASE_MODE': ('const', 'metrics', ERASE),
    'TRAIN.RANDOM_ERASE_COUNT': (4, 'metrics', ERASE),
    'TRAIN.RANDOM_ERASE_SPLIT': (True, 'metrics', ERASE),
    'TRAIN.MIXUP_ALPHA': (0.8, 'metrics'),
    'TRAIN.CUTMIX_ALPHA': (1.0, 'metrics'),
    'TRAIN.CUTMIX_MINMAX': ([0.2, 0.8], 'metrics'),
    'TRAIN.MIXUP_PROB': (0.3, 'metrics', MIXUP),
    'TRAIN.MIXUP_SWITCH_PROB': (1.0, 'metrics', BOTH),
    'TRAIN.MIXUP_MODE': ('elem', 'metrics', MIXUP),
    'SAVE': ('{other}', 'files'),
    'SAVE_FREQ': (2, 'log: Saving', {'TRAIN.NUM_EPOCHS': 3, 'VALIDATE_FREQ': 3}),
    'SAVE_STEPS': (1, 'log: Saving'),
    'SAVE_MINUTES': (1e-9, 'log: Saving'),
    'KEEP': (1, 'files', {'SAVE_STEPS': 1}),
    'REPORT_FREQ': (2, 'metrics'),
    'VALIDATE_FREQ': (2, 'metrics'),
    'BEST': ('latest', 'log: (epoch 2). Run', {'TRAIN.BASE_LR': 0.0}),
    'SEED': (1, 'metrics'),
    'EVAL': (True, 'refused: -pretrained'),
    'AMP': (True, 'log: AMP: off'),
    'AMP_LEVEL': ('O2', 'log: AMP: off', {'AMP': True}),
    'AMP_DTYPE': ('bfloat16', 'log: AMP: off', {'AMP': True}),
    'TF32': (False, 'log: TF32: cpu has none'),
    'DEVICE': ('auto', 'log: Device'),
    'NPROCS': (2, 'refused: main_multi_gpu.py'),
    'WATCHDOG_SECONDS': (1000, 'settings'),
    'SAVE_BAD_BATCH': (True, 'files', {'TRAIN.BASE_LR': 1e30}),
    'VISUALDL': (True, 'refused: visualdl'),
    'FAST': (False, 'log: CPU'),
    'EVAL_ENGINE': ('plain', 'log: plain', EVALUATION),
}
OWN = {
    'ViT': {
        'MODEL.PATCH_SIZE': (4, 'metrics'),
        'MODEL.EMBED_DIM': (32, 'metrics'),
        'MODEL.DEPTH': (1, 'metrics'),
        'MODEL.NUM_HEADS': (4, 'metrics'),
        'MODEL.ATTN_HEAD_SIZE': (4, 'metrics'),
        'MODEL.MLP_RATIO': (2.0, 'metrics'),
        'MODEL.QKV_BIAS': (False, 'metrics'),
        'MODEL.REPRESENTATION_SIZE': (8, 'metrics'),
        'MODEL.PRE_LOGITS_ACTIVATION': ('relu', 'metrics', {'MODEL.REPRESENTATION_SIZE': 8}),
        'MODEL.POOL': ('avg', 'metrics'),
        'MODEL.CLASS_TOKEN': (False, 'metrics', {'MODEL.POOL': 'avg'}),
        'MODEL.POSITION_EMBEDDING': ('sincos2d', 'metrics'),
        'MODEL.ZERO_HEAD': (True, 'metrics'),
        'MODEL.HYBRID': ([1], 'metrics'),
        'MODEL.HYBRID_WIDTH': (32, 'metrics', {'MODEL.HYBRID': [1]}),
        'MODEL.LAYER_SCALE': (0.1, 'metrics'),
        'MODEL.REGISTER_TOKENS': (2, 'metrics'),
        'MODEL.DISTILLED': (True, 'metrics'),
        'MODEL.PRE_NORM': (True, 'metrics'),
        'MODEL.NORM_AFTER_POOLING': (True, 'metrics', {'MODEL.POOL': 'avg'}),
        'MODEL.LAST_NORM': (False, 'metrics'),
        'TRAIN.TEACHER': ('{weights}', 'metrics', {'MODEL.DISTILLED': True}),
        'TRAIN.TEACHER_CFG': ('no/such.yaml', 'refused: no/such.yaml', TAUGHT),
        'TRAIN.DISTILLATION': ('soft', 'metrics', TAUGHT),
        'TRAIN.DISTILLATION_SHARE': (0.9, 'metrics', TAUGHT),
        'TRAIN.DISTILLATION_TEMPERATURE': (3.0, 'metrics', {
            **TAUGHT, 'TRAIN.DISTILLATION': 'soft'}),
    },
    'T2T-ViT': {
        'MODEL.TOKEN_TYPE': ('transformer', 'metrics'),
        'MODEL.TOKEN_DIM': (16, 'metrics'),
        'MODEL.EMBED_DIM': (32, 'metrics'),
        'MODEL.DEPTH': (1, 'metrics'),
        'MODEL.NUM_HEADS': (4, 'metrics'),
        'MODEL.MLP_RATIO': (2.0, 'metrics'),
        'MODEL.QKV_BIAS': (True, 'metrics'),
        'MODEL.QK_SCALE': (2.0, 'metrics'),
        'MODEL.ZERO_HEAD': (True, 'metrics'),
        # What common/ reads, it reads for both models; here are the ways through the model.
        **{key: row for key, row in SHARED.items()
           if key.startswith('MODEL.') or key == 'DATA.IMAGE_SIZE'},
    },
}
EFFECTS = {'ViT': {**SHARED, 'DATA.IMAGE_SIZE': (24, 'metrics'), **OWN['ViT']},
           'T2T-ViT': {'DATA.IMAGE_SIZE': (48, 'metrics'), **OWN['T2T-ViT']}}
PROJECTS = {'ViT': VIT, 'T2T-ViT': T2T_VIT}
HEADS = {'ViT': 'classifier.weight', 'T2T-ViT': 'head.weight'}


@dataclass(frozen=True)
class Observed:
    """What a run shows of itself, without times and paths."""

    code: int
    error: str
    metrics: list
    log: set
    files: dict
    settings: list


@pytest.fixture(scope='module')
def places(tmp_path_factory):
    """Folders and files that the rows name, by the names in braces."""
    root = tmp_path_factory.mktemp('options')
    for data in ('data', 'corrupt'):
        for part, count in (('train', 12), ('val', 6)):
            for number in range(count):
                make_image(root / data / part / 'abc'[number % 3] / f'{number}.png', (40, 30),
                           seed=[len(part), number])
    for number in range(9):
        path = root / 'turned' / ('val' if number < 3 else 'train') / 'abc'[number % 3] / \
            f'{number}.jpg'
        make_image(path, (40, 30), seed=[number])
        write_turned(Image.open(path), path, 6)
    (root / 'corrupt' / 'train' / 'a' / '0.png').write_bytes(b'no picture')
    rows = ['path,label,split,other_path,other_label,other_split']
    for number in range(18):
        paths = [f'{"train" if place < 12 else "val"}/{"abc"[place % 12 % 3]}/{place % 12}.png'
                 for place in (number, 17 - number)]
        rows.append(f'{paths[0]},{"abc"[number % 3]},{"train" if number < 12 else "val"},'
                    f'{paths[1]},{"bca"[number % 3]},{"val" if number < 5 else "train"}')
    (root / 'data' / 'all.csv').write_text('\n'.join(rows))
    (root / 'data' / 'fewer.csv').write_text('\n'.join([rows[0], *rows[1:8], *rows[-3:]]))
    for name, project in PROJECTS.items():
        observed = observe(project, {**EMA, 'TRAIN.MODEL_EMA_DECAY': 0.3}, root, root / name)
        assert observed.code == 0, observed.error
        state = paddle.load(fill('{weights}', name, root))['model']
        bias = HEADS[name].replace('weight', 'bias')
        lacking = {key: value for key, value in state.items() if key != bias}
        paddle.save(lacking, str(root / f'{name}-lacking.pdparams'))
        four = {key: paddle.zeros([*state[key].shape[:-1], 4]) for key in (HEADS[name], bias)}
        paddle.save({**state, **four}, str(root / f'{name}-four.pdparams'))
    return root


def fill(value, name, places):
    """Put the places into a row's value."""
    if isinstance(value, list):
        return [fill(item, name, places) for item in value]
    if not isinstance(value, str) or '{' not in value:
        return value
    return value.format(
        weights=next((places / name).glob('*/best.pdparams')) if '{weights}' in value else '',
        lacking=places / f'{name}-lacking.pdparams', four=places / f'{name}-four.pdparams',
        corrupt=places / 'corrupt', turned=places / 'turned',
        table=places / 'data' / 'all.csv', fewer=places / 'data' / 'fewer.csv',
        other=places / 'other', head=HEADS[name])


def observe(project: Project, options, places, output, argv=()):
    """Run the command with options in this process; return the Observed."""
    options = {'DATA.DATA_PATH': places / 'data', **BASE[project.name], **options}
    settings, errors = [], io.StringIO()
    opts = [str(part) for key, value in options.items() for part in (key, value)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors), \
            contextlib.redirect_stdout(io.StringIO()):
        patch.setitem(sys.modules, 'visualdl', None)
        patch.setattr(Loader, '__init__', recording(
            Loader.__init__, lambda dataset, batches, *rest:
            settings.append((len(batches), *map(name_call, rest)))))
        patch.setattr(Watchdog, '__init__', recording(Watchdog.__init__, settings.append))
        build = project.build_model

        def build_and_look(config):
            model = build(config)
            settings.append([getattr(layer, 'recompute', None)
                             for layer in model.sublayers(include_self=True)])
            return model

        patch.setitem(vars(project), 'build_model', build_and_look)
        code = run_single(project, [f'-output={output}', *argv, '-opts', *opts])
    folders = sorted(path for parent in (output, places / 'other') if parent.is_dir()
                     for path in parent.iterdir() if path.is_dir())
    if not folders:
        return Observed(code, errors.getvalue(), [], set(), {}, settings)
    return Observed(code, errors.getvalue(), read_metrics(folders[-1]), read_log(folders[-1]),
                    read_files(folders[-1]), settings)


def name_call(value):
    """Return a function's name for it, so that those of two runs are equal; else the value."""
    return getattr(value, '__qualname__', value)


def recording(function, record):
    def call(self, *arguments):
        record(*arguments)
        function(self, *arguments)
    return call


def read_metrics(folder):
    path = folder / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items()
             if key not in ('seconds', 'images_per_second')} for line in lines]


def read_log(folder):
    text = (folder / 'log.txt').read_text().replace(str(folder), 'FOLDER')
    text = re.sub(r'[\d.]+ images/s|\d+:\d\d(:\d\d)?|\d\d-\d\d \d\d:\d\d:\d\d ', '', text)
    return set(text.splitlines())


def read_files(folder):
    return {'in': folder.parent.name, 'names': sorted(path.name for path in folder.iterdir())}


@pytest.fixture(scope='module')
def observed_of(places, tmp_path_factory):
    """observe, once for each set of options."""
    seen = {}

    def look(project, options):
        options = {key: fill(value, project.name, places) for key, value in options.items()}
        key = project.name, repr(sorted(options.items(), key=repr))
        if key not in seen:
            output = tmp_path_factory.mktemp('runs') / 'here'
            seen[key] = observe(project, options, places, output)
            if (places / 'other').exists():
                (places / 'other').rename(output.parent / 'other')
        return seen[key]
    return look


@pytest.mark.parametrize('name, key', [
    # An engine is tried in a process of its own first.
    pytest.param(name, key, marks=[pytest.mark.runs] if key == 'EVAL_ENGINE' else [])
    for name, rows in EFFECTS.items() for key in rows])
def test_another_value_shows(name, key, observed_of):
    project = PROJECTS[name]
    value, effect, context = (*EFFECTS[name][key], {})[:3]
    before = observed_of(project, context)
    after = observed_of(project, {**context, key: value})
    kind, _, text = effect.partition(': ')
    if kind == 'refused':
        assert before.code == 0, before.error
        assert after.code == 2 and text in after.error, after.error
        return
    if kind != 'code' and context.get('TRAIN.BASE_LR') != 1e30:
        assert before.code == after.code == 0, before.error + after.error
    if kind == 'log':
        assert any(text in line for line in before.log ^ after.log), (before.log, after.log)
    else:
        assert getattr(before, kind) != getattr(after, kind), getattr(after, kind)
    if kind != 'log':
        assert not any(line.startswith(f'Not used: {key} ') for line in after.log)


def test_what_a_checkpoint_supersedes_is_named(observed_of):
    resumed = observed_of(VIT, {'MODEL.RESUME': '{weights}', 'MODEL.PRETRAINED': '{weights}', **EMA,
                                'TRAIN.LAST_EPOCH': 1, 'TRAIN.NUM_EPOCHS': 4})
    for key in ('MODEL.PRETRAINED', 'TRAIN.LAST_EPOCH'):
        assert any(line.startswith(f'Not used: {key} ') for line in resumed.log), resumed.log


@pytest.mark.parametrize('name', PROJECTS)
def test_every_option_has_a_row(name):
    rows, options = EFFECTS['ViT'] | EFFECTS[name], list_options(PROJECTS[name].options)
    without = sorted(set(options) - set(rows))
    assert not without, f'give each a row in EFFECTS, its effect in a run: {without}'
    assert not set(EFFECTS[name]) - set(options), 'no such option'
    for key, option in options.items():
        assert option.default != rows[key][0] or key in BASE[name], f'{key}: not another value'


@pytest.mark.parametrize('name', PROJECTS)
def test_an_option_whose_condition_is_not_met_is_named(name):
    project = PROJECTS[name]
    for key, option in list_options(project.options).items():
        if not option.needs:
            continue
        for need in option.needs:
            flags = {**break_need(need, list_options(project.options)),
                     key: other_value(name, key)}
            config = project.get_config(flags=flags)
            lines = list_unused(config, project.options)
            assert any(line.startswith(f'{key} ') for line in lines), (key, need, lines)


def other_value(name, key):
    return (EFFECTS['ViT'] | EFFECTS[name])[key][0] if key != 'TRAIN.NO_WEIGHT_DECAY' else ['a']


def break_need(need, options):
    """Return options under which a condition does not hold."""
    keys, _, values = need.lstrip('!').partition('=')
    broken = {}
    for key in keys.split('|'):
        option = options[key]
        if need.startswith('!'):
            broken[key] = values.split(',')[0] or \
                {bool: True, int: 4, list: [0.2, 0.8], str: 'v0'}[option.type]
        elif values == 'None':
            broken[key] = 0
        elif values:
            broken[key] = next(choice for choice in (option.default, *option.choices)
                               if choice not in values.split(','))
        else:
            broken[key] = option.default if not option.default else option.type()
    return broken


@pytest.mark.parametrize('name', PROJECTS)
def test_every_flag_sets_its_option(name):
    project = PROJECTS[name]
    values = {int: 7, str: 'words'}
    for key, option in list_flags(project.options).items():
        for flag in option.flags:
            argv = [f'-{flag}'] if option.type is bool else [f'-{flag}', str(values[option.type])]
            if key == 'DATA.IMAGE_SIZE':
                argv = [f'-{flag}', '32']
            if key == 'MODEL.PRETRAINED':       # without a yaml file they tell the model
                argv.append(f'-cfg={project.folder}/configs/{project.example_configs[0]}.yaml')
            config = parse_command_line(project, argv, 'main_single_gpu.py')
            found = get_value(config, key)
            assert found != option.default and str(found) in ('True', *argv), (flag, found)


def test_numbers_are_the_same_without_a_change(places, tmp_path):
    """What the rows are compared with does not change by itself."""
    runs = [observe(VIT, {}, places, tmp_path / name) for name in 'ab']
    assert runs[0].metrics == runs[1].metrics and len(runs[0].metrics) == 10
    assert np.isfinite([line['loss'] for line in runs[0].metrics]).all()
    assert runs[0].log == runs[1].log and runs[0].settings == runs[1].settings
