"""Every recipe yaml: its figures are the reference project's, its rates too, and it trains.

tests/fixtures/recipes.yaml holds the figures. The rates are compared with formulas written
down here from those figures alone.
"""

import json
import math

import numpy as np
import pytest
import yaml

from common.run.launch import run_single
from common.training.schedule import build_plan, build_schedule
from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.cifar_files import make_contents, write_archive
from tests.support.data_folders import make_folders
from tests.support.paths import FIXTURES, ROOT, find_run
from ViT.project import PROJECT as VIT

VIT_CONFIGS, T2T_CONFIGS = ROOT / 'ViT' / 'configs', ROOT / 'T2T_ViT' / 'configs'
with open(FIXTURES / 'recipes.yaml', encoding='utf-8') as fixture:
    FACTS = yaml.safe_load(fixture)
# Folders of models with weights of others, which are no recipes (test_family_configs.py).
MODEL_FAMILIES = {'deit', 'deit3', 'dino', 'dinov2', 'dinov3', 'mae', 'moco_v3', 'clip', 'siglip',
                  'ijepa', 'eva'}
IMAGES = {'cifar10': 50_000, 'cifar100': 50_000, 'imagenet2012': 1_281_167}


def list_recipes():
    """Return {path: column of the table} of every recipe yaml; '' for our own recipes."""
    recipes = {}
    for path in sorted(VIT_CONFIGS.glob('*/[!_]*.yaml')):
        if path.parent.name in MODEL_FAMILIES:
            continue
        column = {'vit_pytorch': 'vit_pytorch', 'google': 'google', 'mindcv': 'mindcv',
                  'mmpretrain': 'mmpretrain_pretraining', 'plain_vit': 'plain_vit',
                  'deit_imagenet': 'deit', 'deit3_imagenet': 'deit3', 'mae_finetune': 'mae',
                  'beit_finetune': 'beit_base', 'finetune': ''}[path.parent.name]
        if path.parent.name == 'mindcv' and 'cifar' in path.name:
            column = 'mindcv_momentum'
        if path.parent.name == 'mmpretrain' and '384' in path.name:
            column = 'mmpretrain_finetuning'
        if column == 'deit3' and '_from_' in path.name:
            column = 'deit3_finetuning'
        if column == 'mae' and 'base' in path.name:
            column = 'mae_base'
        if column == 'beit_base' and 'large' in path.name:
            column = 'beit_large'
        recipes[path] = column
    for path in sorted(T2T_CONFIGS.glob('*/[!_]*.yaml')):
        column = 't2t_vit_cifar' if 'cifar' in path.name else 't2t_vit'
        recipes[path] = column if path.parent.name == 'official' else ''
    for name in FACTS['t2t_vit']['learning_rate_of']:
        if not name.endswith('4x128'):
            recipes[T2T_CONFIGS / f'{name}.yaml'] = 't2t_vit'
    return recipes


RECIPES = list_recipes()
REFERENCES = [path for path, column in RECIPES.items() if column]


def name_recipe(path):
    return str(path.relative_to(ROOT)).removesuffix('.yaml')


def find_project(path):
    return VIT if VIT_CONFIGS in path.parents else T2T_VIT


def read_config(path):
    return find_project(path).get_config(str(path))


def find_facts(path):
    """Return the recipe's column with the figures of this very model and length in it."""
    name, facts = path.stem, dict(FACTS[RECIPES[path]])
    for key in [key for key in facts if key.endswith('_of') and isinstance(facts[key], dict)]:
        if name in facts[key]:
            facts[key.removesuffix('_of')] = facts[key][name]
    for updates, warmup in facts.get('short', {}).items():
        if name.endswith(f'_{updates}_steps'):
            facts['updates'], facts['warmup_updates'] = updates, warmup
            facts['learning_rate'] = FACTS[RECIPES[path]]['learning_rate']
    if 'updates_of_imagenet' in facts and name.endswith('imagenet'):
        facts['updates'] = facts['updates_of_imagenet']
    if 'epochs_of' in facts:
        facts['epochs'] = next(epochs for epochs in facts['epochs_of'] if f'_{epochs}_' in name)
    return facts


def test_there_is_a_yaml_for_every_reported_result():
    names = {folder.name: {path.stem for path in folder.glob('[!_]*.yaml')}
             for folder in [*VIT_CONFIGS.iterdir(), *T2T_CONFIGS.iterdir()] if folder.is_dir()}
    for model in ['vit_base_patch16', 'vit_base_patch32', 'vit_large_patch16',
                  'vit_large_patch32', 'vit_base_r50_patch16']:
        for size in (224, 384):
            for classes in (10, 100):
                assert f'{model}_{size}_cifar{classes}' in names['vit_pytorch']
    for classes in (10, 100):
        assert f'vit_huge_patch14_224_cifar{classes}' in names['vit_pytorch']
        for steps in (500, 1000):
            assert f'vit_base_patch16_224_cifar{classes}_{steps}_steps' in names['vit_pytorch']
            assert f'vit_base_patch16_384_cifar{classes}_{steps}_steps' in names['google']
        for layers in (14, 19):
            assert f't2t_vit_{layers}_cifar{classes}' in names['official']
    assert set(FACTS['mindcv']['reported']) <= names['mindcv']
    assert set(FACTS['mmpretrain_finetuning']['reported']) <= names['mmpretrain']
    for column, folder in (('deit', 'deit_imagenet'), ('deit3', 'deit3_imagenet'),
                           ('deit3_finetuning', 'deit3_imagenet'), ('mae_base', 'mae_finetune'),
                           ('mae', 'mae_finetune')):
        assert set(FACTS[column]['reported']) <= names[folder]
    assert {f'vit_small_patch16_224_{epochs}_epochs' for epochs in (90, 150, 300)} == \
        names['plain_vit']


@pytest.mark.parametrize('path', RECIPES, ids=name_recipe)
def test_header_says_what_it_is(path):
    text = path.read_text(encoding='utf-8')
    header = ' '.join(line[2:] for line in text.splitlines() if line.startswith('# '))
    assert any(words in header for words in ('Not run here', 'Not trained here', 'Run here: '))
    assert not RECIPES[path] or 'Run here: ' not in header
    assert f'{path.stem}.yaml' in header and 'python main_' in header
    assert max(map(len, text.splitlines())) <= 100
    assert path.stem == read_config(path).MODEL.NAME
    for figure in list_reported(path):
        assert f'{figure}' in header, figure


def list_reported(path):
    """Return the results of a recipe as its project reported them."""
    if not RECIPES[path]:
        return []
    name, facts = path.stem, FACTS[RECIPES[path]]
    column = 1 if 'cifar100' in name else 0
    model = name.split('_cifar')[0]
    for updates in facts.get('short', ()):
        if name.endswith(f'_{updates}_steps'):
            return [facts['reported_short'][updates][column]]
    if RECIPES[path] == 'plain_vit':
        return [value for epochs, value in facts['reported'].items() if f'_{epochs}_' in name]
    found = [facts[key].get(model) for key in ('reported', 'reported_from_imagenet1k')
             if key in facts]
    if 'cifar' in name:
        found = [values and values[column] for values in found]
    return [] if name.endswith('imagenet') else [value for value in found if value is not None]


@pytest.mark.parametrize('path', REFERENCES, ids=name_recipe)
def test_figures_are_the_references(path):
    facts, config = find_facts(path), read_config(path)
    data, model, train = config.DATA, config.MODEL, config.TRAIN
    found = {
        'optimizer': train.OPTIMIZER.NAME, 'momentum': train.OPTIMIZER.MOMENTUM,
        'learning_rate': train.BASE_LR * train.HEAD_LR_SCALE, 'weight_decay': train.WEIGHT_DECAY,
        'batch': train.RECIPE_BATCH or train.LINEAR_SCALED_LR, 'accumulation': train.ACCUM_ITER,
        'updates': train.NUM_STEPS, 'epochs': train.NUM_EPOCHS,
        'warmup_updates': train.WARMUP_STEPS, 'warmup_epochs': train.WARMUP_EPOCHS,
        'warmup_factor': train.WARMUP_START_LR / train.BASE_LR,
        'warmup_rate': train.WARMUP_START_LR, 'cooldown_epochs': train.COOLDOWN_EPOCHS,
        'decay': train.LR_SCHEDULER.NAME, 'final_rate': train.END_LR * train.HEAD_LR_SCALE,
        'clip': train.GRAD_CLIP, 'crop_scale': train.CROP_SCALE, 'flip': train.HFLIP,
        'augment': train.AUTO_AUGMENT, 'colour_jitter': train.COLOR_JITTER,
        'mixup': train.MIXUP_ALPHA, 'cutmix': train.CUTMIX_ALPHA,
        'switch': train.MIXUP_SWITCH_PROB, 'erasing': train.RANDOM_ERASE_PROB,
        'layer_decay': train.LAYER_DECAY, 'repeats': train.REPEATED_AUGMENTS, 'loss': train.LOSS,
        'pool': model.get('POOL'), 'smoothing': train.SMOOTHING, 'dropout': model.DROPOUT,
        'droppath': model.DROPPATH,
        'hidden': model.get('REPRESENTATION_SIZE'), 'classes': model.NUM_CLASSES,
        'mean': data.IMAGENET_MEAN, 'std': data.IMAGENET_STD, 'image': data.IMAGE_SIZE,
        'backbone_share': 1 / train.HEAD_LR_SCALE,
        'decoupled_weight_decay': train.WEIGHT_DECAY * train.BASE_LR,
        'ema': train.MODEL_EMA_DECAY if isinstance(facts.get('ema'), float) else train.MODEL_EMA,
    }
    compared = [key for key in facts if key in found]
    assert len(compared) >= 10
    for key in compared:
        expected = facts[key]
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=1e-12)
        assert found[key] == expected, key
    if 'cifar' in path.stem:
        assert (100 if 'cifar100' in path.stem else 10) == model.NUM_CLASSES
    if 'updates' in facts:
        assert (384 if '384' in path.stem else 224) == data.IMAGE_SIZE
    assert not (model.ATTENTION_DROPOUT or train.RANDOM_ERASE_SPLIT)
    if RECIPES[path] == 'plain_vit':
        assert (model.POOL, model.POSITION_EMBEDDING) == ('avg', 'sincos2d')


def find_expected_rate(facts, update, updates_per_epoch):
    """Return the learning rate of an update, from the table alone."""
    total = facts['updates'] if 'updates' in facts else facts['epochs'] * updates_per_epoch
    warmup = facts.get('warmup_updates')
    if warmup is None:
        warmup = facts['warmup_epochs'] * updates_per_epoch
    peak, final = facts['learning_rate'], facts['final_rate']
    if update < warmup:
        start = facts.get('warmup_rate', peak * facts.get('warmup_factor', 0.0))
        return start * (1 - update / warmup) + peak * update / warmup
    first = 0 if 'cooldown_epochs' in facts else warmup      # timm counts from the beginning
    if update >= total:
        return final
    angle = math.pi * (update - first) / (total - first)
    return (peak + final) / 2 + (peak - final) / 2 * math.cos(angle)


@pytest.mark.parametrize('path', REFERENCES, ids=name_recipe)
def test_rates_are_the_references_at_fixed_updates(path):
    facts, config = find_facts(path), read_config(path)
    micro_batch = config.DATA.BATCH_SIZE * config.TRAIN.ACCUM_ITER
    processes = facts['batch'] // micro_batch
    assert processes * micro_batch == facts['batch']
    batches = IMAGES[config.DATA.DATASET] // (config.DATA.BATCH_SIZE * processes)
    plan = build_plan(config, batches)
    schedule = build_schedule(config, plan, effective_batch=facts['batch'])
    warmup, total = plan.warmup_updates, plan.total_updates
    fixed = {0, 1, warmup // 2, max(0, warmup - 1), warmup, warmup + 1, total // 3, total // 2,
             total - 2, total - 1}
    for update in sorted(fixed):
        expected = find_expected_rate(facts, update, plan.updates_per_epoch)
        found = schedule(update) * config.TRAIN.HEAD_LR_SCALE
        assert found == pytest.approx(expected, rel=0, abs=1e-9), update
    assert schedule(warmup) > 0


@pytest.fixture(scope='module')
def small_data(tmp_path_factory):
    """CIFAR archives and a picture folder of a few dozen images."""
    root = tmp_path_factory.mktemp('data')
    paths = {name: write_archive(name, root / f'{name}.tar.gz', make_contents(name, count)[0])
             for name, count in (('cifar10', 8), ('cifar100', 40))}
    pictures = make_folders(root / 'pictures', classes=('cat', 'dog'), per_class=24)
    return paths | {'imagenet2012': pictures, 'imagefolder': pictures}


ONE_OF_EACH = {
    'ViT/configs/vit_pytorch/vit_base_patch16_224_cifar10',
    'ViT/configs/vit_pytorch/vit_huge_patch14_224_cifar100',
    'ViT/configs/google/vit_base_r50_patch16_384_cifar10',
    'ViT/configs/mindcv/vit_large_patch16_224', 'ViT/configs/mindcv/vit_base_patch32_224_cifar10',
    'ViT/configs/mmpretrain/vit_base_patch16_224', 'ViT/configs/mmpretrain/vit_large_patch16_384',
    'ViT/configs/plain_vit/vit_small_patch16_224_90_epochs',
    'ViT/configs/deit_imagenet/deit_small_distilled_patch16_224',
    'ViT/configs/deit3_imagenet/deit3_base_patch16_192_800_epochs',
    'ViT/configs/mae_finetune/vit_base_patch16_224_mae',
    'ViT/configs/beit_finetune/vit_base_patch16_224_mae_as_beit',
    'ViT/configs/finetune/linear_probe_vit_base_patch16_dinov3',
    'ViT/configs/finetune/vit_base_patch16_siglip_224',
    'ViT/configs/finetune/vit_base_patch16_224',
    'ViT/configs/finetune/linear_probe_vit_base_patch16_224', 'T2T_ViT/configs/t2t_vit_7',
    'T2T_ViT/configs/official/t2t_vit_14_cifar10', 'T2T_ViT/configs/official/t2t_vit_t_14_4x128',
    'T2T_ViT/configs/finetune/t2t_vit_14',
}


@pytest.mark.parametrize('path', [
    pytest.param(path, id=name_recipe(path),
                 marks=() if name_recipe(path) in ONE_OF_EACH else pytest.mark.slow)
    for path in RECIPES])
def test_trains_three_updates_from_the_command_line(path, small_data, tmp_path):
    project = find_project(path)
    config = read_config(path)
    opts = ['MODEL.EMBED_DIM', 32, 'MODEL.DEPTH', 2, 'MODEL.NUM_HEADS', 2, 'MODEL.MLP_RATIO', 1.0,
            'TRAIN.NUM_STEPS', 3, 'TRAIN.COOLDOWN_EPOCHS', 0, 'REPORT_FREQ', 1]
    opts += ['TRAIN.WARMUP_STEPS', 1 if config.TRAIN.WARMUP_STEPS or config.TRAIN.WARMUP_EPOCHS
             else 0]
    if project is VIT:
        image_size = 2 * config.MODEL.PATCH_SIZE
        if config.MODEL.HYBRID:
            opts += ['MODEL.HYBRID', [1, 1, 1]]
        if config.MODEL.REPRESENTATION_SIZE:
            opts += ['MODEL.REPRESENTATION_SIZE', 24]
    else:
        image_size = 32
        opts += ['MODEL.TOKEN_DIM', 8]
    accumulation = min(2, config.TRAIN.ACCUM_ITER)
    classes = ['-num_classes=2'] if config.DATA.DATASET == 'imagefolder' else []
    code = run_single(project, [
        f'-cfg={path}', f'-data_path={small_data[config.DATA.DATASET]}', f'-output={tmp_path}',
        '-device=cpu', '-num_workers=0', '-batch_size=4', f'-accum_iter={accumulation}',
        f'-image_size={image_size}', *classes, '-opts', *map(str, opts)])
    assert code == 0
    run = find_run(tmp_path)
    events = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    steps = [event for event in events if event['event'] == 'train_step']
    assert [step['update'] for step in steps] == [1, 2, 3]
    assert all(np.isfinite(step['loss']) and np.isfinite(step['grad_norm']) for step in steps)
    effective_batch = 4 * accumulation
    ran = project.get_config(str(run / 'config.yaml'))
    factor = effective_batch / ran.TRAIN.LINEAR_SCALED_LR if ran.TRAIN.LINEAR_SCALED_LR else 1.0
    peak_update = 1 if ran.TRAIN.WARMUP_STEPS else 0
    assert steps[peak_update]['lr'] == pytest.approx(config.TRAIN.BASE_LR * factor, rel=0.3)
    evaluation = events[-1]
    assert evaluation['event'] == 'eval' and evaluation['images'] > 0
    assert {'per_class.csv', 'mistakes.csv', 'last.pdparams'} <= {p.name for p in run.iterdir()}
