"""Training, evaluation and resuming on an accelerator, a fake one whose memory is closed."""

import csv
import os
import re
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest

from tests.support.accelerator import (
    IS_PADDLE_3,
    TYPE,
    build,
    make_environment,
    read_metrics,
    run_jobs,
)
from tests.support.data_folders import make_image
from tests.support.paths import ROOT, find_run
from tests.support.trained_digits import fixture_path
from ViT.vit import build_sincos_table

SHORT = ['-num_workers=0', '-dataset=imagefolder', '-num_classes=3', '-opts',
         'TRAIN.NUM_STEPS', '6', 'TRAIN.WARMUP_EPOCHS', '0', 'REPORT_FREQ', '1']
# Each model's config, and its trained model among the fixtures.
MODELS = {'ViT': ('configs/vit_digits.yaml', 'vit'),
          'T2T_ViT': ('configs/t2t_vit_digits.yaml', 't2t')}

# What each run switches on beside the model's own recipe.
EVERYTHING = ['TRAIN.MIXUP_ALPHA', '0.8', 'TRAIN.CUTMIX_ALPHA', '1.0', 'TRAIN.MODEL_EMA', 'True',
              'TRAIN.RANDOM_ERASE_PROB', '0.5', 'MODEL.FREEZE', '1',
              # Paddle 2.6 adds a plug-in's gradients up on the host where the plug-in, as the fake
              # one, has no kernel for it, and cannot bring back its random state.
              'TRAIN.ACCUM_ITER', '2' if IS_PADDLE_3 else '1', 'MODEL.RECOMPUTE', str(IS_PADDLE_3),
              'TRAIN.LAYER_DECAY', '0.8', 'MODEL.DROPOUT', '0.0',
              'MODEL.ATTENTION_DROPOUT', '0.0', 'MODEL.DROPPATH', '0.0']

pytestmark = pytest.mark.runs


@pytest.fixture(scope='module')
def accelerator(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fake_device')
    build(folder)
    return folder


@pytest.fixture(scope='module', autouse=True)
def pictures(tmp_path_factory):
    """Few pictures, because half precision takes the fake device long."""
    folder = tmp_path_factory.mktemp('pictures')
    for part, count in (('train', 48), ('val', 12)):
        for number in range(count):
            make_image(folder / part / 'abc'[number % 3] / f'{number}.png', (36, 32),
                       seed=[len(part), number])
    return folder


@pytest.fixture
def make_job(pictures):
    """Return (model, output, device, *options) -> the arguments of a run, see run_jobs."""
    def make(model, output, device, *options):
        flags = [option for option in options if option.startswith('-')]
        keys = [option for option in options if not option.startswith('-')]
        return [model, f'-cfg={MODELS[model][0]}', '-batch_size=16', f'-device={device}',
                f'-output={output}', f'-data_path={pictures}', *flags, *SHORT, *keys]
    return make


def run_all(accelerator, jobs, **variables):
    ended = run_jobs(make_environment(accelerator, **variables), jobs)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


def read_losses(folder):
    return np.array([line['loss'] for line in read_metrics(folder, 'train_step')])


@pytest.mark.parametrize('model', MODELS)
def test_float32_trains_as_on_the_cpu(accelerator, make_job, tmp_path, model):
    """All kernels are the CPU's here, so the losses are equal but for the order of sums."""
    # The CPU's own kernels drop other numbers, and T2T-ViT's token modules always drop some.
    # What -device=auto takes: the plug-in's device.
    jobs = [make_job(model, tmp_path / f'{device}-{kind}', device, 'FAST', 'False', *options)
            for device in ('cpu', 'auto')
            for kind, options in (('plain', ()), ('everything', EVERYTHING))]
    text = run_all(accelerator, jobs)
    assert text.count(f'Device: {TYPE}:0') == 2 and 'The device waited for data' in text
    for kind in ('plain', 'everything'):
        losses = read_losses(tmp_path / f'cpu-{kind}')
        np.testing.assert_allclose(read_losses(tmp_path / f'auto-{kind}'), losses, rtol=2e-5)
        expected = read_metrics(tmp_path / f'cpu-{kind}', 'eval')
        found = read_metrics(tmp_path / f'auto-{kind}', 'eval')
        assert [line['acc1'] for line in found] == pytest.approx(
            [line['acc1'] for line in expected], abs=0.5)
        assert [line['loss'] for line in found] == pytest.approx(
            [line['loss'] for line in expected], rel=1e-4)


@pytest.mark.skipif(not IS_PADDLE_3, reason='the fake device has half precision on Paddle 3 alone')
@pytest.mark.parametrize('model', MODELS)
def test_half_precision_trains_as_float32(accelerator, make_job, tmp_path, model):
    kinds = {f'{level}-{dtype}': ['-amp', 'AMP_LEVEL', level, 'AMP_DTYPE', dtype, *EVERYTHING]
             for level in ('O1', 'O2') for dtype in ('float16', 'bfloat16')}
    jobs = [make_job(model, tmp_path / 'float32', 'cpu', 'FAST', 'False', *EVERYTHING)]
    jobs += [make_job(model, tmp_path / kind, TYPE, *options) for kind, options in kinds.items()]
    run_all(accelerator, jobs)
    losses = read_losses(tmp_path / 'float32')
    norms = [line['grad_norm'] for line in read_metrics(tmp_path / 'float32', 'train_step')]
    for kind in kinds:
        np.testing.assert_allclose(read_losses(tmp_path / kind), losses, rtol=2e-2, err_msg=kind)
        lines = read_metrics(tmp_path / kind, 'train_step')
        assert [line['overflows'] for line in lines] == [0] * len(lines)
        np.testing.assert_allclose([line['grad_norm'] for line in lines], norms, rtol=0.1,
                                   err_msg=kind)


def test_a_resumed_run_ends_where_the_whole_one_does(accelerator, make_job, tmp_path):
    run_all(accelerator, [make_job(model, tmp_path / model, TYPE, *EVERYTHING, 'SAVE_STEPS', '3')
                          for model in MODELS])
    jobs = []
    for model in MODELS:
        folder = find_run(tmp_path / model)
        name = next(path for path in folder.glob('Epoch-*.pdparams')
                    if path.stat().st_ino != (folder / 'last.pdparams').stat().st_ino)
        jobs.append(make_job(model, tmp_path / f'{model}-resumed', TYPE, f'-resume={name}',
                             *EVERYTHING))
    run_all(accelerator, jobs)
    for model in MODELS:
        whole, resumed = tmp_path / model, tmp_path / f'{model}-resumed'
        losses = read_losses(resumed).tolist()
        assert len(losses) == 3 and losses == read_losses(whole)[3:].tolist()
        assert read_metrics(resumed, 'eval')[-1]['loss'] == read_metrics(whole, 'eval')[-1]['loss']


@pytest.mark.parametrize('model', MODELS)
def test_evaluation_prediction_and_export(accelerator, pictures, tmp_path, model):
    """On the device and on the CPU they say the same."""
    weights = f'-pretrained={fixture_path(MODELS[model][1])}'
    picture = str(pictures / 'val' / 'a' / '0.png')
    jobs = [[model, 'export_model.py', weights, f'-output={tmp_path}/exported']]
    for device in (TYPE, 'cpu'):
        use = [weights, f'-device={device}']
        name = f'{tmp_path}/{device}'
        jobs += [[model, f'-output={name}-eval', '-eval', *use, '-num_workers=0', '-opts',
                  'EVAL_ENGINE', 'model'],
                 [model, 'predict.py', str(pictures / 'val'), *use, f'-output={name}.csv'],
                 [model, 'extract_features.py', str(pictures / 'val'), *use, f'-output={name}.npz'],
                 [model, 'visualize_attention.py', picture, *use, f'-output={name}-maps',
                  '-save_arrays']]
    devices = re.findall(r'^Computed on (\S+)', run_all(accelerator, jobs), re.MULTILINE)
    assert devices == ['cpu'] + 4 * [f'{TYPE}:0'] + 4 * ['cpu']
    evaluations = [read_metrics(tmp_path / f'{device}-eval', 'eval')[0] for device in (TYPE, 'cpu')]
    assert evaluations[0]['acc1'] == evaluations[1]['acc1']
    assert evaluations[0]['loss'] == pytest.approx(evaluations[1]['loss'], rel=1e-5)
    tables = [list(csv.DictReader((tmp_path / f'{device}.csv').open())) for device in (TYPE, 'cpu')]
    assert len(tables[0]) == len(tables[1]) >= 12
    for found, expected in zip(*tables):
        assert float(found.pop('probability')) == pytest.approx(
            float(expected.pop('probability')), abs=2e-4)
        assert found == expected
    for pattern in ('{}.npz', '{}-maps/*.npz'):
        paths = [next(tmp_path.glob(pattern.format(device))) for device in (TYPE, 'cpu')]
        found, expected = (dict(np.load(path)) for path in paths)
        assert set(found) == set(expected) and len(found) > 1
        for name, array in expected.items():
            if array.dtype.kind == 'f':
                np.testing.assert_allclose(found[name], array, atol=1e-4, err_msg=name)
    assert (tmp_path / 'exported' / 'model.pdiparams').exists()     # and compared, when written


def test_training_follows_the_reference_runs(accelerator):
    """Those of tests/training/test_training_parity.py, with PyTorch's losses."""
    runs = ('adamw', 'sgd_accum') if IS_PADDLE_3 else ('adamw',)    # see EVERYTHING
    code = (
        'from tests.support import reference_training as reference\n'
        'import paddle\n'
        f'paddle.set_device("{TYPE}:0")\n'
        f'for name in {runs}:\n'
        '    runs = reference.train_as_reference(name)\n'
        '    reference.check_losses(*runs)\n'
        '    reference.check_gradient_norms(*runs)\n'
        '    reference.check_final_weights_and_logits(*runs)\n'
        '    reference.check_averaged_weights(*runs)\n')
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                           env=make_environment(accelerator), timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.parametrize('model, start', [('ViT', 'spawn'), pytest.param(
    'T2T_ViT', 'launch', marks=pytest.mark.skipif(
        not IS_PADDLE_3, reason="Paddle 2.6's launcher does not know this plug-in's devices"))])
def test_two_processes_train_as_one(accelerator, make_job, tmp_path, model, start):
    # Without the performer, since each process drops other numbers.
    tokens = ['MODEL.TOKEN_TYPE', 'transformer', 'MODEL.DROPPATH', '0.0'] * (model != 'ViT')
    directory, *one = make_job(model, tmp_path / 'one', TYPE, 'TRAIN.MODEL_EMA', 'True', *tokens)
    run_all(accelerator, [[directory, *one]])
    two = [argument.replace('-batch_size=16', '-batch_size=8').replace('/one', '/two')
           for argument in one]
    launcher = ['-nprocs=2'] if start == 'spawn' else []
    program = [sys.executable, 'main_multi_gpu.py']
    if start == 'launch':
        program = [sys.executable, '-m', 'paddle.distributed.launch', '--devices', '0,1',
                   '--log_dir', str(tmp_path / 'log'), 'main_multi_gpu.py']
    ended = subprocess.run([*program, *launcher, *two], cwd=ROOT / directory, timeout=300,
                           env=make_environment(accelerator), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    np.testing.assert_allclose(read_losses(tmp_path / 'two'), read_losses(tmp_path / 'one'),
                               rtol=1e-5)


def test_state_stays_where_it_is(accelerator):
    """AdamW's powers of beta lie on the host of a GPU, whose kernel takes them from there."""
    code = (
        'import numpy as np, paddle\n'
        'from common.checkpoints.optimizer_state import assign_array\n'
        f'paddle.set_device("{TYPE}:0")\n'
        f'for place in (paddle.CPUPlace(), paddle.CustomPlace("{TYPE}", 0)):\n'
        '    tensor = paddle.to_tensor(np.ones(3, "float32"), place=place)\n'
        '    before = str(tensor.place)\n'
        '    assign_array(tensor, np.full(3, 2.5))\n'
        '    assert str(tensor.place) == before, (before, tensor.place)\n'
        '    assert tensor.numpy().tolist() == [2.5] * 3\n')
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                           env=make_environment(accelerator), timeout=120)
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.skipif(not IS_PADDLE_3, reason='the fake device has half precision on Paddle 3 alone')
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_fixed_table_is_saved_exactly(accelerator, make_job, tmp_path, dtype):
    """Also where the weights are in half precision."""
    run_all(accelerator, [make_job(
        'ViT', tmp_path, TYPE, '-amp', 'AMP_LEVEL', 'O2', 'AMP_DTYPE', dtype,
        'MODEL.POSITION_EMBEDDING', 'sincos2d', 'TRAIN.NUM_STEPS', '1')])
    folder = find_run(tmp_path)
    saved = paddle.load(str(folder / 'last.pdparams'))['model']
    weight = saved['encoder.layers.0.attn.qkv.weight'].astype('float32')
    assert (weight == weight.astype(dtype).astype('float32')).all()     # rounded, as O2 does
    expected = build_sincos_table((4, 4), saved['cls_token'].shape[-1], 1)
    assert np.array_equal(saved['position_embedding'].numpy(), expected)


def test_a_device_that_is_not_there(accelerator, make_job):
    for device, expected in ((f'{TYPE}:2', '2 METAX_GPUS'), ('npu', '0 NPUS'), ('gpu', '0 GPUS')):
        job = make_job('ViT', os.devnull, device)
        ended = run_jobs(make_environment(accelerator), [job])
        assert ended.returncode == 2
        assert expected in ended.stderr.upper()


@pytest.mark.skipif(not IS_PADDLE_3, reason='the fake device has half precision on Paddle 3 alone')
def test_half_precision_gradients_are_added_up_over_processes(accelerator, make_job, tmp_path):
    """O2 with accumulation: gradients in float16 stand beside those of what stays float32."""
    options = ['AMP_LEVEL', 'O2', 'TRAIN.ACCUM_ITER', '2']
    directory, *arguments = make_job('T2T_ViT', tmp_path / 'float32', 'cpu', *options)
    run_all(accelerator, [[directory, *arguments]])
    directory, *arguments = make_job('T2T_ViT', tmp_path / 'two', TYPE, '-amp', '-nprocs=2',
                                     *options)
    arguments[1] = '-batch_size=8'
    ended = subprocess.run([sys.executable, 'main_multi_gpu.py', *arguments], timeout=300,
                           cwd=ROOT / directory, env=make_environment(accelerator),
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    np.testing.assert_allclose(read_losses(tmp_path / 'two'), read_losses(tmp_path / 'float32'),
                               rtol=2e-2)


@pytest.mark.skipif(not IS_PADDLE_3, reason='the fake device has half precision on Paddle 3 alone')
def test_a_device_without_bfloat16(accelerator, make_job, tmp_path):
    job = make_job('ViT', tmp_path, TYPE, '-amp', 'AMP_DTYPE', 'bfloat16')
    ended = run_jobs(make_environment(accelerator, FAKE_NO_BFLOAT16='1'), [job])
    assert ended.returncode == 2
    assert f'{TYPE}:0 cannot compute in it' in ended.stderr
    assert 'AMP_DTYPE float16' in ended.stderr


def test_a_copy_that_never_returns_ends_the_run(accelerator, make_job, tmp_path):
    """As behind a collective operation that hangs: whether or not it keeps Python's lock."""
    job = make_job('ViT', tmp_path, TYPE, '-batch_size=10', 'WATCHDOG_SECONDS', '5')
    batch_bytes = str(10 * 32 * 32 * 3)         # no parameter is of this size
    started = time.monotonic()
    ended = run_jobs(make_environment(accelerator, FAKE_HANG_BYTES=batch_bytes,
                                      FAKE_HANG_COUNT='3'), [job], timeout=120)
    assert ended.returncode == 1, ended.stderr[-2000:]
    assert f'a copy of {batch_bytes} bytes hangs' in ended.stderr
    assert 'no progress' in ended.stderr or 'Timeout' in ended.stderr
    assert 'in train' in ended.stderr           # where it hangs
    assert time.monotonic() - started < 60


def test_a_device_without_memory(accelerator, make_job, tmp_path):
    job = make_job('ViT', tmp_path, TYPE, 'MODEL.EMBED_DIM', '384', 'MODEL.DEPTH', '4')
    ended = run_jobs(make_environment(accelerator, FAKE_MEGABYTES='24'), [job])
    assert ended.returncode == 1, ended.stderr[-2000:]
    assert f'Out of memory of {TYPE}:0' in ended.stderr and 'Try, in this order' in ended.stderr
