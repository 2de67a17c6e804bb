"""What a checkpoint holds: a run goes on from it bit for bit."""

import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common.checkpoints import store as checkpoint_store
from common.checkpoints.content import capture, read_checkpoint, restore
from common.checkpoints.optimizer_state import MASTER_WEIGHT, group_by_parameter
from common.checkpoints.store import CheckpointStore
from common.errors import UserError
from tests.support.paths import ROOT
from tests.support.saving import assert_same, make_progress, save
from tests.support.tiny_run import TinyModel, build_run, collect, train


@pytest.mark.parametrize('optimizer', ['AdamW', 'Momentum'])
@pytest.mark.runs
def test_a_fresh_process_continues_bit_for_bit(tmp_path, optimizer):
    TinyModel()                                 # shifts the generated names of the saved run
    run = build_run(optimizer)
    train(run, 0, 3)
    path = save(tmp_path, run, 3)
    train(run, 3, 6)
    result = tmp_path / 'result.npz'
    subprocess.run([sys.executable, 'tests/support/tiny_run.py', path, optimizer, '3', result],
                   cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, check=True)
    assert_same(dict(np.load(result)), collect(run))


@pytest.mark.parametrize('optimizer', ['AdamW', 'Momentum', 'Adam', 'SGD'])
def test_the_same_process_and_another_build_order_continue_bit_for_bit(tmp_path, optimizer):
    run = build_run(optimizer)
    train(run, 0, 3)
    path = save(tmp_path, run, 3)
    train(run, 3, 6)
    TinyModel()
    resumed = build_run(optimizer, reverse=True)
    restore(resumed, read_checkpoint(path))
    train(resumed, 3, 6)
    assert_same(collect(resumed), collect(run))


def test_a_run_that_has_already_trained_takes_a_checkpoint_exactly(tmp_path):
    run = build_run()
    train(run, 0, 3)
    path = save(tmp_path, run, 3)
    expected = collect(run)
    train(run, 3, 9)
    restore(run, read_checkpoint(path))
    assert_same(collect(run), expected)


def test_restoring_before_the_first_update(tmp_path):
    path = save(tmp_path, build_run(), 0)
    checkpoint = read_checkpoint(path)
    assert checkpoint['optimizer'] == {}
    resumed, run = build_run(), build_run()
    restore(resumed, checkpoint)
    train(resumed, 0, 3)
    train(run, 0, 3)
    assert_same(collect(resumed), collect(run))


def test_frozen_parameters_have_no_state_and_can_be_freed_after_resuming(tmp_path):
    frozen = ('fc1.weight', 'fc1.bias')
    run = build_run(frozen=frozen)
    train(run, 0, 2)
    checkpoint = read_checkpoint(save(tmp_path, run, 2))
    assert 'fc1.weight' not in checkpoint['optimizer']
    resumed = build_run()                       # nothing frozen
    restore(resumed, checkpoint)
    np.testing.assert_array_equal(resumed.model.fc1.weight.numpy(), run.model.fc1.weight.numpy())
    train(resumed, 2, 4)                        # Paddle's own set_state_dict fails here
    assert np.isfinite(resumed.model.fc1.weight.numpy()).all()


def test_parameters_can_be_frozen_when_resuming(tmp_path):
    run = build_run()
    train(run, 0, 2)
    checkpoint = read_checkpoint(save(tmp_path, run, 2))
    resumed = build_run(frozen=('fc1.weight', 'fc1.bias'))
    assert 'state of 2 parameters, now frozen, is not used' in restore(resumed, checkpoint)[-1]
    train(resumed, 2, 4)
    np.testing.assert_array_equal(resumed.model.fc1.weight.numpy(),
                                  checkpoint['model']['fc1.weight'])


def test_a_save_does_not_see_later_updates(tmp_path, monkeypatch):
    run = build_run()
    train(run, 0, 2)
    expected = collect(run)
    go_on = threading.Event()
    write = checkpoint_store.write_checkpoint
    monkeypatch.setattr(checkpoint_store, 'write_checkpoint',
                        lambda *arguments: (go_on.wait(300), write(*arguments)))
    store = CheckpointStore(tmp_path)
    path = store.save(run, make_progress(2))
    train(run, 2, 5)                            # while nothing is written yet
    for tensor in run.model.state_dict().values():
        tensor.set_value(np.full(tensor.shape, 9, 'float32'))
    go_on.set()
    store.wait()
    resumed = build_run()
    restore(resumed, read_checkpoint(path))
    assert_same(collect(resumed), expected)


def test_progress_and_what_describes_the_model_come_back(tmp_path):
    progress = make_progress(
        17, epoch=2, loss=0.25, micro_batch=40, best={'value': np.float64(93.75), 'epoch': 2},
        seed=5, config='MODEL:\n  NAME: tiny\n', class_names=['katze', 'h\u00fcnd'],
        meter={'report': [0.0, 0], 'epoch': [np.float32(0.5), 3], 'overflows': 0},
        numerics={'gelu': 'tanh', 'layer_norm_eps': 1e-7},
        preprocessing={'image_size': 224, 'mean': (0.5, 0.5, 0.5)})
    store = CheckpointStore(tmp_path)
    path = store.save(build_run(), progress)
    store.wait()
    assert os.path.basename(path) == 'Epoch-2-Loss-0.25.pdparams'
    checkpoint = read_checkpoint(path)
    for key, value in progress.items():
        expected = [0.5, 0.5, 0.5] if key == 'preprocessing' else value
        found = checkpoint[key]['mean'] if key == 'preprocessing' else checkpoint[key]
        assert found == expected, key
    assert checkpoint['paddle_version'] == paddle.__version__


def test_loss_scale_survives(tmp_path):
    saved = {'scale': np.array([1024.0], 'float32'), 'incr_ratio': 2.0, 'decr_ratio': 0.5,
             'incr_count': 7, 'decr_count': 1, 'incr_every_n_steps': 1000,
             'decr_every_n_nan_or_inf': 2, 'use_dynamic_loss_scaling': True}
    run = build_run()
    run.scaler = SimpleNamespace(state_dict=lambda: saved)
    path = save(tmp_path, run, 1)
    loaded = []
    run.scaler = SimpleNamespace(state_dict=lambda: saved, load_state_dict=loaded.append)
    assert len(restore(run, read_checkpoint(path))) == 1
    assert loaded == [saved]
    run.scaler = paddle.amp.GradScaler(enable=False)
    assert 'loss scale in the checkpoint is not used' in restore(run, read_checkpoint(path))[-1]


def test_master_weights_are_named_by_their_parameter():
    state = {'linear_3.w_0_fp32_master_0_moment1_0': 1, 'linear_3.w_0_fp32_master_2_velocity_1': 2,
             'linear_3.b_0_beta1_pow_acc_0': 3, 'LR_Scheduler': {},
             'master_weights': {'linear_3.w_0': 4}}
    names = {'head.weight': 'linear_3.w_0', 'head.bias': 'linear_3.b_0'}
    assert group_by_parameter(state, names) == {
        'head.weight': {'moment1': 1, 'velocity': 2, MASTER_WEIGHT: 4},
        'head.bias': {'beta1_pow_acc': 3}}
    with pytest.raises(UserError, match='linear_3.w_0'):
        group_by_parameter(state, {'head.bias': 'linear_3.b_0'})


def test_half_precision_weights_and_master_weights_survive(tmp_path):
    # CPU kernels of the optimizers have no bfloat16, so the state is that of a stand-in.
    run = build_run()
    train(run, 0, 1)
    run.model.fc1.bfloat16()
    weight = run.model.fc1.weight
    master = paddle.randn(weight.shape)
    ordinary = run.optimizer.state_dict
    run.optimizer.state_dict = lambda: {
        **ordinary(), 'master_weights': {weight.name: master}}
    checkpoint = read_checkpoint(save(tmp_path, run, 1))
    np.testing.assert_array_equal(checkpoint['model']['fc1.weight'],
                                  weight.cast('float32').numpy())
    np.testing.assert_array_equal(checkpoint['optimizer']['fc1.weight'][MASTER_WEIGHT],
                                  master.numpy())
    resumed = build_run()                       # a float32 run takes it too
    restore(resumed, checkpoint)
    train(resumed, 1, 2)


def test_averages_missing_or_not_wanted_are_reported(tmp_path):
    run = build_run()
    train(run, 0, 2)
    with_averages = read_checkpoint(save(tmp_path, run, 2))
    resumed = build_run()
    resumed.ema = None
    assert 'MODEL_EMA is off' in restore(resumed, with_averages)[-1]
    without = read_checkpoint(save(tmp_path, resumed, 2))
    assert without['model_ema'] is None
    assert 'starts from the weights' in restore(run, without)[-1]
    np.testing.assert_array_equal(run.ema.averages['fc1.weight'].numpy(),
                                  run.model.fc1.weight.numpy())


def test_another_number_of_processes_is_said(tmp_path):
    run = build_run()
    checkpoint = read_checkpoint(save(tmp_path, run, 0, world_size=2))
    assert 'Saved by 2 processes, resumed by 1' in restore(run, checkpoint, world_size=1)[-1]
    assert len(restore(run, checkpoint, world_size=2)) == 1


def test_capture_refuses_what_it_does_not_know(trained_run):
    with pytest.raises(AssertionError, match='spleen'):
        capture(trained_run, {'spleen': 1})
    with pytest.raises(AssertionError):
        capture(trained_run, {'best': object()})
