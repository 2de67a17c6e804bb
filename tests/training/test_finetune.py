"""Fine-tuning: the rate that each parameter really receives, freezing, heads, early stopping."""

import json
import math
from dataclasses import replace

import numpy as np
import paddle
import pytest

from common.checkpoints.content import capture, read_checkpoint, restore
from common.checkpoints.file import write_checkpoint
from common.checkpoints.optimizer_state import name_parameters, read_optimizer
from common.config import dump_config
from common.data.loader import LoaderError
from common.errors import UserError
from common.run.launch import run_single
from common.training import out_of_memory as memory
from common.training.finetune import freeze, number_layers
from common.training.loop import TrainState
from common.training.optimizer import build_optimizer
from T2T_ViT.config import get_config as get_t2t_config
from T2T_ViT.project import PROJECT as T2T_VIT
from T2T_ViT.t2t_vit import build_t2t_vit
from tests.support.data_folders import make_folders
from ViT.config import get_config as get_vit_config
from ViT.project import PROJECT as VIT
from ViT.vit import build_vit

TINY = ['MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2', 'MODEL.DEPTH', '3', 'DATA.IMAGE_SIZE',
        '32', 'MODEL.NUM_CLASSES', '4']
VARIANTS = {
    'vit': (get_vit_config, build_vit, ['MODEL.PATCH_SIZE', '8']),
    'vit with everything': (get_vit_config, build_vit, [
        'MODEL.HYBRID', '[1,1]', 'MODEL.REPRESENTATION_SIZE', '8', 'MODEL.PATCH_SIZE', '16']),
    'vit without class token': (get_vit_config, build_vit, [
        'MODEL.PATCH_SIZE', '8', 'MODEL.POOL', 'avg', 'MODEL.CLASS_TOKEN', 'False',
        'MODEL.POSITION_EMBEDDING', 'sincos2d']),
    't2t performer': (get_t2t_config, build_t2t_vit, ['MODEL.TOKEN_DIM', '8']),
    'vit distilled': (get_vit_config, build_vit, [
        'MODEL.PATCH_SIZE', '8', 'MODEL.DISTILLED', 'True', 'MODEL.REGISTER_TOKENS', '2',
        'MODEL.PRE_NORM', 'True', 'MODEL.LAYER_SCALE', '0.5']),
    'vit attention pooling': (get_vit_config, build_vit, [
        'MODEL.PATCH_SIZE', '8', 'MODEL.POOL', 'map', 'MODEL.NORM_AFTER_POOLING', 'True',
        'MODEL.POSITION_EMBEDDING', 'rope']),
    't2t transformer': (get_t2t_config, build_t2t_vit, [
        'MODEL.TOKEN_DIM', '8', 'MODEL.TOKEN_TYPE', 'transformer']),
}
DEPTH = 3


def build(variant, *opts):
    """Return (config, model) of a tiny model with options."""
    get_config, build_model, own = VARIANTS[variant]
    config = get_config(opts=[*TINY, *own, *opts])
    paddle.seed(1)
    return config, build_model(config)


def find_layer(name):
    """Return a parameter's layer by its name: 0 embedding, then blocks, then what follows."""
    parts = name.split('.')
    if name.startswith('encoder.layers.'):
        return int(parts[2]) + 1
    if name.startswith('blocks.'):
        return int(parts[1]) + 1
    after = ('encoder.encoder_norm', 'norm', 'fc_norm', 'attention_pool', 'pre_logits',
             'classifier', 'head')
    return DEPTH + 1 if name.startswith(after) else 0


def is_head(name):
    return name.startswith(('classifier.', 'classifier_dist.', 'head.'))


def read_update(config, model, learning_rate, gradient=1.0, updates=1):
    """Return {name: (before, after)} of updates whose gradients are all `gradient`."""
    optimizer = build_optimizer(config, model)
    before = {name: p.numpy().astype('float64') for name, p in model.named_parameters()}
    for _ in range(updates):
        optimizer.set_lr(learning_rate)         # as the loop does before every update
        for parameter in model.parameters():
            if not parameter.stop_gradient:
                parameter.grad = paddle.full_like(parameter, gradient)
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    return {name: (before[name], p.numpy().astype('float64'))
            for name, p in model.named_parameters()}


# The rate that each parameter receives


@pytest.mark.parametrize('variant', VARIANTS)
def test_layers_are_numbered_from_the_input(variant):
    _, model = build(variant)
    layers = number_layers(model)
    assert layers == {name: find_layer(name) for name, _ in model.named_parameters()}
    assert set(layers.values()) == set(range(DEPTH + 2))


@pytest.mark.parametrize('optimizer', ['SGD', 'AdamW', 'Adam'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_layer_decay_and_head_rate_reach_every_parameter(variant, optimizer):
    config, model = build(
        variant, 'TRAIN.LAYER_DECAY', '0.75', 'TRAIN.HEAD_LR_SCALE', '10.0', 'TRAIN.WEIGHT_DECAY',
        '0.0', 'TRAIN.OPTIMIZER.NAME', optimizer, 'TRAIN.OPTIMIZER.MOMENTUM', '0.0',
        'TRAIN.BASE_LR', '0.5')
    for name, (before, after) in read_update(config, model, learning_rate=0.01).items():
        rate = 0.01 * 0.75 ** (DEPTH + 1 - find_layer(name)) * (10 if is_head(name) else 1)
        if name == 'pos_embed' or name.endswith('.w'):
            rate = 0.0                          # fixed
        # Adam's first step is the sign of the gradient, so that the rate is the change.
        np.testing.assert_allclose(before - after, rate, rtol=1e-4, atol=3e-7, err_msg=name)


def test_without_options_every_rate_is_the_same():
    config, model = build('vit', 'TRAIN.WEIGHT_DECAY', '0.0', 'TRAIN.OPTIMIZER.NAME', 'SGD')
    for name, (before, after) in read_update(config, model, learning_rate=0.01).items():
        np.testing.assert_allclose(before - after, 0.01, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('optimizer', ['AdamW', 'SGD', 'Adam', 'Lamb'])
def test_weight_decay_follows_the_layers_rate(optimizer):
    """With zero gradients only matrices change, each by its own rate."""
    config, model = build(
        'vit', 'TRAIN.LAYER_DECAY', '0.5', 'TRAIN.WEIGHT_DECAY', '0.1',
        'TRAIN.OPTIMIZER.NAME', optimizer, 'TRAIN.OPTIMIZER.EPS', '1e-8')
    for name, (before, after) in read_update(config, model, 0.02, gradient=0.0).items():
        rate = 0.02 * 0.5 ** (DEPTH + 1 - find_layer(name))
        if before.ndim < 2 or name in ('cls_token', 'position_embedding'):
            np.testing.assert_array_equal(before, after, err_msg=name)
            continue
        expected = {
            'AdamW': before * (1 - rate * 0.1), 'SGD': before * (1 - rate * 0.1),
            # The L2 term is the whole gradient, whose sign is the first step.
            'Adam': before - rate * before / (np.abs(before) + 1e-7),
            # The decay is scaled to the norm of the weight.
            'Lamb': before * (1 - rate),
        }[optimizer]
        changed = np.abs(before) > 1e-4
        np.testing.assert_allclose(after[changed], expected[changed], rtol=2e-3, atol=1e-6,
                                   err_msg=name)
        assert np.abs(after - before)[changed].max() > 0


@pytest.mark.parametrize('nesterov', [False, True])
def test_momentum_is_sutskevers_or_nesterovs(nesterov):
    config, model = build(
        'vit', 'TRAIN.OPTIMIZER.NAME', 'Momentum', 'TRAIN.OPTIMIZER.NESTEROV', str(nesterov),
        'TRAIN.OPTIMIZER.MOMENTUM', '0.9', 'TRAIN.WEIGHT_DECAY', '0.0')
    velocity, change = 0.0, 0.0
    for _ in range(3):
        velocity = 0.9 * velocity + 1.0
        change += 0.01 * (1.0 + 0.9 * velocity if nesterov else velocity)
    for name, (before, after) in read_update(config, model, 0.01, updates=3).items():
        np.testing.assert_allclose(before - after, change, rtol=1e-4, err_msg=name)


def test_lars_is_refused_with_an_alternative():
    config, model = build('vit', 'TRAIN.OPTIMIZER.NAME', 'Lars')
    with pytest.raises(UserError, match='static graphs only. For large batches use Lamb'):
        build_optimizer(config, model)


@pytest.mark.parametrize('optimizer', ['AdamW', 'Adam', 'SGD', 'Momentum', 'Lamb'])
def test_every_optimizer_continues_from_a_checkpoint(tmp_path, optimizer):
    """Bit for bit, although the second model's parameters have other generated names."""
    opts = ('TRAIN.OPTIMIZER.NAME', optimizer, 'TRAIN.LAYER_DECAY', '0.8', 'MODEL.FREEZE', '1')

    def start():
        config, model = build('vit', *opts)
        freeze(model, config.MODEL.FREEZE)
        return TrainState(model, build_optimizer(config, model),
                          paddle.amp.GradScaler(enable=False))

    def advance(state, first, last):
        for update in range(first, last):
            images = np.random.default_rng(update).standard_normal((4, 3, 32, 32))
            state.optimizer.set_lr(0.01 / (1 + update))
            (state.model(paddle.to_tensor(images.astype('float32'))) ** 2).mean().backward()
            state.optimizer.step()
            state.optimizer.clear_grad(set_to_zero=False)

    def collect(state):
        names = name_parameters(state.model)
        return {name: p.numpy() for name, p in state.model.named_parameters()} | {
            f'{name} {key}': value.numpy()
            for name, values in read_optimizer(state.optimizer, names).items()
            for key, value in values.items()}

    run = start()
    advance(run, 0, 2)
    path = str(tmp_path / 'run.pdparams')
    write_checkpoint(path, capture(run, {'epoch': 1, 'update': 2}), {})
    advance(run, 2, 4)
    resumed = start()
    restore(resumed, read_checkpoint(path))
    advance(resumed, 2, 4)
    expected, found = collect(run), collect(resumed)
    assert set(found) == set(expected) and len(found) > len(list(run.model.parameters()))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# Freezing


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('what', ['backbone', '0', '2', '3'])
def test_frozen_parameters_have_no_gradient_and_stay(variant, what):
    config, model = build(variant, 'MODEL.FREEZE', what, 'TRAIN.WEIGHT_DECAY', '0.3')
    count = freeze(model, config.MODEL.FREEZE)
    last = DEPTH + 1 if what == 'backbone' else int(what)
    frozen = {name for name, _ in model.named_parameters()
              if find_layer(name) <= last and not is_head(name)}
    assert count == len(frozen)
    optimizer = build_optimizer(config, model)
    in_optimizer = {p.name for group in optimizer._param_groups for p in group['params']}
    before = {name: p.numpy() for name, p in model.named_parameters()}
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype('float32')
    for _ in range(2):                          # a zero scale lets a gradient through only then
        optimizer.set_lr(0.1)
        model.train()
        logits = model(paddle.to_tensor(images))        # of two heads, where they are distilled
        paddle.concat(logits if isinstance(logits, tuple) else [logits]).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    for name, parameter in model.named_parameters():
        is_fixed = name in frozen or name == 'pos_embed' or name.endswith('.w')
        assert parameter.stop_gradient == is_fixed, name
        assert (parameter.name in in_optimizer) == (not is_fixed), name
        assert np.array_equal(parameter.numpy(), before[name]) == is_fixed, name


@pytest.mark.parametrize('what', ['-1', '4', 'head', '1.5', 'Backbone'])
def test_what_cannot_be_frozen_is_refused(what):
    _, model = build('vit')
    with pytest.raises(UserError, match='"backbone" or a number of blocks from 0 to 3, not'):
        freeze(model, what)


def test_nothing_left_to_train_is_refused():
    config, model = build('vit')
    for parameter in model.parameters():
        parameter.stop_gradient = True
    with pytest.raises(UserError, match='nothing would be learnt'):
        build_optimizer(config, model)


@pytest.mark.parametrize('key, value', [
    ('TRAIN.LAYER_DECAY', '0'), ('TRAIN.LAYER_DECAY', '1.5'), ('TRAIN.HEAD_LR_SCALE', '0'),
    ('TRAIN.RECIPE_BATCH', '0'), ('TRAIN.EARLY_STOP_EPOCHS', '0')])
def test_options_out_of_range_are_refused(key, value):
    with pytest.raises(UserError, match=key):
        get_vit_config(opts=[key, value])


# Runs from the command line

FAST = ['-device=cpu', '-num_workers=0', '-batch_size=16', '-opts', 'MODEL.EMBED_DIM', '16',
        'MODEL.NUM_HEADS', '2', 'MODEL.DEPTH', '2', 'TRAIN.WARMUP_EPOCHS', '0', 'REPORT_FREQ', '1']


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('pictures'), classes=('cat', 'dog', 'emu'),
                        per_class=16)


def run(output, *arguments, project=VIT):
    """Run in this process; return (exit code, run folder, events)."""
    config = {'ViT': 'vit_digits', 'T2T-ViT': 't2t_vit_digits'}[project.name]
    arguments = list(arguments)
    split = arguments.index('-opts') if '-opts' in arguments else len(arguments)
    code = run_single(project, [f'-cfg=configs/{config}.yaml', f'-output={output}',
                                *arguments[:split], *FAST, *arguments[split + 1:]])
    folders = sorted(output.glob('*-*')) if output.exists() else []
    if code:
        return code, None, []
    lines = (folders[-1] / 'metrics.jsonl').read_text().splitlines()
    return code, folders[-1], [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """A checkpoint of a tiny ViT for the ten digits, whose head has left zero."""
    _, folder, _ = run(tmp_path_factory.mktemp('pretrained'), '-opts', 'TRAIN.NUM_STEPS', '3')
    return str(folder / 'last')


def select(events, name, key):
    return [event[key] for event in events if event['event'] == name]


def test_fine_tuning_starts_from_a_zero_head_of_the_new_size(tmp_path, pictures, pretrained):
    code, folder, events = run(
        tmp_path, f'-pretrained={pretrained}', '-dataset=imagefolder', f'-data_path={pictures}',
        '-num_classes=3', '-opts', 'TRAIN.NUM_STEPS', '2', 'MODEL.FREEZE', 'backbone',
        'TRAIN.BASE_LR', '0.1')
    assert code == 0
    assert select(events, 'train_step', 'loss')[0] == pytest.approx(math.log(3), abs=1e-6)
    before, after = read_checkpoint(f'{pretrained}.pdparams'), read_checkpoint(
        str(folder / 'last.pdparams'))
    for name, array in after['model'].items():
        if is_head(name):
            assert array.shape[-1] == 3 and np.abs(array).max() > 0
        else:
            np.testing.assert_array_equal(array, before['model'][name], err_msg=name)
    assert set(after['optimizer']) == {'classifier.weight', 'classifier.bias'}
    assert after['class_names'] == ['cat', 'dog', 'emu']
    log = (folder / 'log.txt').read_text()
    assert 'Replaced classifier.weight: 10 classes in the file, 3 in the model' in log
    total = len(after['model'])
    assert f'Frozen (MODEL.FREEZE backbone): {total - 2} of {total} parameter tensors.' in log


def test_t2t_is_fine_tuned_in_the_same_way(tmp_path, pictures):
    code, folder, events = run(
        tmp_path, '-dataset=imagefolder', f'-data_path={pictures}', '-num_classes=3', '-opts',
        'TRAIN.NUM_STEPS', '1', 'MODEL.FREEZE', '1', 'TRAIN.LAYER_DECAY', '0.7', project=T2T_VIT)
    assert code == 0 and len(select(events, 'train_step', 'loss')) == 1
    trained = read_checkpoint(str(folder / 'last.pdparams'))['optimizer']
    assert {name.split('.')[0] for name in trained} == {'blocks', 'norm', 'head'}
    assert not any(name.startswith('blocks.0.') for name in trained)


def test_dropout_above_frozen_features_is_warned_of(tmp_path, pictures):
    _, folder, _ = run(
        tmp_path, '-dataset=imagefolder', f'-data_path={pictures}', '-num_classes=3', '-opts',
        'TRAIN.NUM_STEPS', '1', 'MODEL.FREEZE', 'backbone', 'MODEL.DROPOUT', '0.1')
    assert 'Frozen blocks drop out as the others do: MODEL.DROPOUT 0.1.' in (
        folder / 'log.txt').read_text()


def test_recomputation_and_freezing_train_together(tmp_path, pictures):
    arguments = ['-dataset=imagefolder', f'-data_path={pictures}', '-num_classes=3', '-opts',
                 'TRAIN.NUM_STEPS', '2', 'MODEL.FREEZE', '1', 'MODEL.RECOMPUTE']
    losses = [select(run(tmp_path / value, *arguments, value)[2], 'train_step', 'loss')
              for value in ('True', 'False')]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_early_stopping_ends_the_run_with_a_checkpoint(tmp_path, pictures):
    code, folder, events = run(
        tmp_path, '-dataset=imagefolder', f'-data_path={pictures}', '-num_classes=3', '-opts',
        'TRAIN.NUM_EPOCHS', '30', 'TRAIN.BASE_LR', '0', 'VALIDATE_FREQ', '2', 'SAVE_FREQ', '100',
        'TRAIN.EARLY_STOP_EPOCHS', '3', 'TRAIN.LR_SCHEDULER.NAME', 'constant')
    assert code == 0
    # The first validation, after epoch 2, is the best; three more bring nothing.
    assert select(events, 'eval', 'epoch') == [2, 4, 6, 8]
    assert select(events, 'train_epoch', 'epoch') == list(range(1, 9))
    assert read_checkpoint(str(folder / 'last.pdparams'))['epoch'] == 8
    log = (folder / 'log.txt').read_text()
    assert 'Stopping early: no better than epoch 2' in log and 'Done: 24 updates' in log
    assert (folder / 'per_class.csv').exists()


def test_class_weights_reach_the_loss(tmp_path, pictures):
    def first_loss(name, *opts):
        _, _, events = run(
            tmp_path / name, '-dataset=imagefolder', f'-data_path={pictures}', '-num_classes=3',
            '-opts', 'TRAIN.NUM_STEPS', '1', *opts)
        return select(events, 'train_step', 'loss')[0]

    plain, balanced = first_loss('plain'), first_loss('even', 'TRAIN.CLASS_WEIGHTS', '["balanced"]')
    assert balanced == pytest.approx(plain, abs=1e-6)       # equally many images of each
    assert abs(first_loss('uneven', 'TRAIN.CLASS_WEIGHTS', '[1,0,0]') - plain) > 1e-4


def test_mixup_is_off_where_nobody_asked_for_it():
    for path in ('finetune/vit_base_patch16_224', 'vit_pytorch/vit_base_patch16_224_cifar10',
                 'google/vit_base_patch16_384_imagenet'):
        train = get_vit_config(f'ViT/configs/{path}.yaml').TRAIN
        assert (train.MIXUP_ALPHA, train.CUTMIX_ALPHA) == (0.0, 0.0)


@pytest.mark.parametrize('alpha, is_said', [('0.2', True), ('0', False)])
def test_mixup_is_mentioned_when_fine_tuning_with_it(tmp_path, pretrained, alpha, is_said):
    _, folder, _ = run(tmp_path, f'-pretrained={pretrained}', '-opts', 'TRAIN.NUM_STEPS', '1',
                       'TRAIN.MIXUP_ALPHA', alpha)
    assert ('Fine-tuning with mixup' in (folder / 'log.txt').read_text()) == is_said


@pytest.mark.parametrize('opts, words', [
    (['TRAIN.RECIPE_BATCH', '64'],
     ['The recipe has 64 images an update, this run 16', 'stays the same', 'epoch has 4 times',
      'Use -accum_iter=4 for 64.']),
    (['TRAIN.LINEAR_SCALED_LR', '40', 'TRAIN.BASE_LR', '1e-3'],
     ['The recipe has 40 images an update, this run 16', 'scaled from 1.0e-03 to 4.0e-04']),
    (['TRAIN.RECIPE_BATCH', '32', 'TRAIN.ACCUM_ITER', '2'], []),
    ([], []),
])
def test_another_batch_than_the_recipes_is_warned_of(tmp_path, pictures, opts, words):
    _, folder, _ = run(tmp_path, '-dataset=imagefolder', f'-data_path={pictures}',
                       '-num_classes=3', '-opts', 'TRAIN.NUM_STEPS', '1', *opts)
    log = (folder / 'log.txt').read_text()
    assert 'Effective batch' in log and 'peak learning rate' in log
    for word in words:
        assert word in log
    assert ('The recipe has' in log) == bool(words)


# Out of memory


GPU_MESSAGE = ('\n----------------------\nC++ Traceback\nResourceExhaustedError: \n\n'
               'Out of memory error on GPU 0. Cannot allocate 1.5GB memory on GPU 0')


@pytest.mark.parametrize('error', [
    MemoryError(GPU_MESSAGE), MemoryError(), RuntimeError('std::bad_alloc'),
    OSError('(External) CUDA error(2), out of memory.'), OSError(12, 'Cannot allocate memory'),
    SystemError(GPU_MESSAGE)])
def test_running_out_of_memory_says_what_to_try(tmp_path, capsys, error):
    def fail(config):
        raise error

    code, _, _ = run(tmp_path, project=replace(VIT, build_model=fail))
    message = capsys.readouterr().err
    assert code == 1 and 'Traceback' not in message
    for word in ('Out of memory', '-batch_size=8 -accum_iter=2', 'MODEL.RECOMPUTE', '-image_size'):
        assert word in message


def test_other_errors_keep_their_traceback(tmp_path, capsys):
    def fail(config):
        raise RuntimeError('something else')

    code, _, _ = run(tmp_path, project=replace(VIT, build_model=fail))
    assert code == 1 and 'Traceback' in capsys.readouterr().err


def test_a_dead_loader_worker_is_not_the_models_memory():
    assert not memory.is_out_of_memory(LoaderError('worker 0 died (signal 9, often out of memory)'))
    assert not memory.is_out_of_memory(UserError('DATA: out of memory'))


def test_advice_leaves_out_what_is_in_use():
    config = get_vit_config(opts=['DATA.BATCH_SIZE', '1', 'MODEL.RECOMPUTE', 'True'])
    text = memory.advise(config, 'gpu:0')
    assert 'memory of gpu:0' in text and '-amp' in text and '-image_size' in text
    assert 'RECOMPUTE' not in text and 'accum_iter' not in text
    assert '-amp' not in memory.advise(config, 'cpu')
    config = get_vit_config(flags={'EVAL': True, 'DATA.BATCH_SIZE_EVAL': 64})
    assert '-batch_size_eval=32' in memory.advise(config, 'gpu:0')


def test_the_resolved_config_keeps_the_options(tmp_path):
    config = get_vit_config(opts=['MODEL.FREEZE', '3', 'TRAIN.LAYER_DECAY', '0.65'])
    (tmp_path / 'config.yaml').write_text(dump_config(config))
    again = get_vit_config(str(tmp_path / 'config.yaml'))
    assert (again.MODEL.FREEZE, again.TRAIN.LAYER_DECAY) == ('3', 0.65)
