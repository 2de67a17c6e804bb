"""Checkpoints: exact resume, files that survive anything, retention, who can read whose."""

import errno
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common.checkpoints import file as checkpoint_file
from common.checkpoints import store as checkpoint_store
from common.checkpoints.content import capture, read_checkpoint, restore
from common.checkpoints.file import (
    CheckpointError,
    NamedArray,
    read_summary,
    verify_checkpoint,
    write_checkpoint,
)
from common.checkpoints.optimizer_state import MASTER_WEIGHT, group_by_parameter
from common.checkpoints.store import BEST, LAST, CheckpointStore, find_resume
from common.errors import RunError, UserError
from tests.support.faulty_os import FaultyOs
from tests.support.tiny_run import TinyModel, build_run, collect, train

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = Path(__file__).resolve().parents[1] / 'fixtures'


def make_progress(update, epoch=None, loss=None, **others):
    return {'epoch': update if epoch is None else epoch, 'update': update,
            'loss': 1 / (1 + update) if loss is None else loss, 'model_name': 'tiny',
            'learning_rate': 0.01, 'world_size': 1, **others}


def save(folder, run, update, keep=2, is_best=False, **others):
    """Save once and wait; returns the path."""
    store = CheckpointStore(folder, keep)
    path = store.save(run, make_progress(update, **others), is_best)
    store.wait()
    return path


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def list_files(folder):
    return sorted(os.listdir(folder))


class Log:
    """A logger whose lines a test can read."""

    def __init__(self):
        self.lines = []
        for level in ('info', 'warning', 'error'):
            setattr(self, level, self._add)

    def _add(self, text, *values):
        self.lines.append(text % values)

    @property
    def text(self):
        return '\n'.join(self.lines)


# Exact resume


@pytest.mark.parametrize('optimizer', ['AdamW', 'Momentum'])
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
                        lambda *arguments: (go_on.wait(20), write(*arguments)))
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
        meter={'epoch': [np.float32(0.5), 3]}, numerics={'gelu': 'tanh', 'layer_norm_eps': 1e-7},
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


# Who can read whose


def test_paddlevits_scripts_read_it(tmp_path):
    with paddle.utils.unique_name.guard():          # names as in a fresh process
        run = build_run()
        train(run, 0, 3)
    state = paddle.load(save(tmp_path, run, 3, epoch=4))
    assert {'model', 'optimizer', 'epoch', 'lr_scheduler', 'amp_grad_scaler',
            'model_ema'} <= set(state)
    assert state['epoch'] == 4
    for entries in (state['model'], state['model_ema']):
        assert isinstance(entries['fc1.weight'], paddle.Tensor)
    with paddle.utils.unique_name.guard():
        model = TinyModel()
        schedule = paddle.optimizer.lr.CosineAnnealingDecay(0.1, 300)
        optimizer = paddle.optimizer.AdamW(schedule, parameters=model.parameters())
    assert not any(model.set_state_dict(state['model']) or [])
    optimizer.set_state_dict(state['optimizer'])
    schedule.set_state_dict(state['lr_scheduler'])
    assert schedule.last_epoch == 4
    expected = collect(run)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[f'model {name}'])
    model(paddle.ones([2, 6])).sum().backward()
    with paddle.utils.unique_name.guard():
        optimizer.step()                        # takes the accumulators by name, or fails
    found = optimizer.state_dict()[f'{model.fc1.weight.name}_beta1_pow_acc_0'].item()
    assert found == pytest.approx(0.9 ** 5)     # 0.9, then four updates


@pytest.mark.parametrize('version', ['3.3.1', '2.6.2'])
def test_a_checkpoint_of_another_paddle_resumes(version):
    run = build_run()
    lines = restore(run, read_checkpoint(FIXTURES / 'checkpoint' / f'paddle-{version}.pdparams'))
    assert (len(lines) == 1) == (version == paddle.__version__)
    train(run, 3, 6)
    expected = np.load(FIXTURES / 'checkpoint' / 'expected.npz')
    found = collect(run)
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def build_paddlevit_run(case):
    if case == 'vit':
        from ViT.vit import VisionTransformer
        model = VisionTransformer(image_size=64, num_classes=7, embed_dim=48, depth=3, num_heads=4)
        path = FIXTURES / 'weights/vit/paddlevit_pdparams/Epoch-3-Loss-6.9.pdparams'
    else:
        from T2T_ViT.t2t_vit import T2TViT
        model = T2TViT(image_size=64, num_classes=7, token_type='transformer', embed_dim=64,
                       depth=2, num_heads=2, mlp_ratio=2.0, qkv_bias=False)
        path = FIXTURES / 'weights/t2t/pdparams_transformer_full/Epoch-3-Loss-6.9.pdparams'
    optimizer = paddle.optimizer.AdamW(
        1e-3, parameters=[p for p in model.parameters() if not p.stop_gradient])
    return SimpleNamespace(model=model, optimizer=optimizer, ema=None, scaler=None), path


@pytest.mark.parametrize('case,first,last', [
    ('vit', 'position_embedding', 'classifier.bias'), ('t2t', 'norm.weight', 'head.bias')])
def test_paddlevits_training_checkpoint_resumes(case, first, last):
    run, path = build_paddlevit_run(case)
    checkpoint = read_checkpoint(path)
    assert (checkpoint['epoch'], checkpoint['update'], checkpoint['best']) == (3, None, None)
    lines = restore(run, checkpoint)
    assert 'a checkpoint of PaddleViT: epoch 3' in lines[0]
    raw = pickle.loads(path.read_bytes())
    state = run.optimizer.state_dict()
    for name in (first, last):                  # the accumulators went to the right parameters
        parameter = dict(run.model.named_parameters())[name]
        old_name, weight = raw['model'][name]
        np.testing.assert_array_equal(parameter.numpy(), weight)
        for accumulator in ('moment1_0', 'moment2_0', 'beta2_pow_acc_0'):
            np.testing.assert_array_equal(
                state[f'{parameter.name}_{accumulator}'].numpy(),
                raw['optimizer'][f'{old_name}_{accumulator}'][1])
    moments = [key for key in raw['optimizer'] if key.endswith('moment1_0')]
    assert sum(key.endswith('moment1_0') for key in state) == len(moments)


def test_an_optimizer_state_without_names_is_said_to_be_lost(tmp_path):
    run, path = build_paddlevit_run('vit')
    content = pickle.loads(path.read_bytes())
    content['model'] = {name: pair[1] for name, pair in content['model'].items()}
    path = tmp_path / 'old.pdparams'
    path.write_bytes(pickle.dumps(content, protocol=4))
    lines = restore(run, read_checkpoint(path))
    assert 'Optimizer state NOT restored: the file does not say which entry' in lines[1]


def test_another_model_or_optimizer_is_refused(tmp_path):
    run = build_run()
    train(run, 0, 1)
    checkpoint = read_checkpoint(save(tmp_path, run, 1))
    with pytest.raises(UserError, match=r'another model \(tiny\): .* has shape \[6, 8\], exp.*16'):
        restore(build_run(width=16), checkpoint)
    other, path = build_paddlevit_run('vit')
    with pytest.raises(UserError, match=r'44 tensors missing, \d+ unexpected(.|\n)*-pretrained'):
        restore(other, checkpoint)
    with pytest.raises(UserError, match='of another optimizer: .* has beta1.*keeps velocity'):
        restore(build_run('Momentum'), checkpoint)


class Payload:
    def __reduce__(self):
        return os.system, ('touch ran',)


@pytest.mark.parametrize('content,message', [
    (b'', 'damaged|cut short|not a checkpoint'),
    (b'\x89PNG\r\n\x1a\n' + bytes(200), 'not a checkpoint'),
    (pickle.dumps({'head.weight': np.zeros(3)}, 4), 'not a training checkpoint.*-pretrained'),
    (pickle.dumps({'model': {}, 'epoch': 1, 'x': Payload()}, 4), 'nothing was run'),
])
def test_what_is_no_checkpoint_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'a.pdparams'
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_checkpoint(path)
    assert list_files(tmp_path) == ['a.pdparams']


# Files that survive


def test_no_mutation_is_accepted(tmp_path):
    run = build_run()
    train(run, 0, 1)
    path = Path(save(tmp_path, run, 1))
    good = path.read_bytes()
    bits = random.Random(0)
    cuts = {0, 1, 7, 8, 9, len(good) - 1, len(good) - 24}
    cuts |= {bits.randrange(len(good)) for _ in range(150)}
    mutations = [good[:cut] for cut in cuts]
    mutations += [good + b'\0', good + good[-24:], good[:-24] + bytes(24)]
    positions = list(range(len(good) - 60, len(good)))      # every byte of the trailer's end
    positions += [bits.randrange(len(good)) for _ in range(500 - len(positions))]
    for position in positions:
        flipped = bytearray(good)
        flipped[position] ^= 1 << bits.randrange(8)
        mutations.append(bytes(flipped))
    assert len(mutations) >= 500
    path = tmp_path / 'mutated.pdparams'
    for mutated in mutations:
        path.write_bytes(mutated)
        with pytest.raises(CheckpointError):
            verify_checkpoint(path)
        with pytest.raises(UserError):
            read_checkpoint(path)
    path.write_bytes(good)
    read_checkpoint(path)


@pytest.fixture(scope='module')
def trained_run():
    run = build_run(width=6000)
    train(run, 0, 3)
    return run


def save_with_fault(monkeypatch, folder, run, function, at, error):
    """Save update 1, then update 2 with a fault. Returns (store, log, fault, first path)."""
    folder.mkdir()
    log = Log()
    store = CheckpointStore(folder, 2, log)
    first = store.save(run, make_progress(1))
    store.wait()
    fault = FaultyOs(function, at, error)
    monkeypatch.setattr(checkpoint_file, 'os', fault)
    monkeypatch.setattr(checkpoint_file, 'CHUNK', 1 << 15)         # many writes
    store.save(run, make_progress(2))
    store.join()
    monkeypatch.setattr(checkpoint_file, 'os', os)
    return store, log, fault, first


@pytest.mark.parametrize('function', ['open', 'write', 'fsync', 'replace'])
@pytest.mark.parametrize('error', [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT])
def test_a_fault_at_any_call_leaves_the_old_one_good(
        tmp_path, monkeypatch, trained_run, function, error):
    failures = 0
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        store, log, fault, first = save_with_fault(
            monkeypatch, folder, trained_run, function, at, error)
        if fault.calls < at:
            break                                   # every call has had its turn
        path = find_resume(str(folder), None, logger=log)
        if store.error:
            failures += 1
            assert f'Could not save {folder}' in log.text
            assert f'{os.strerror(error)}. The last good one is {first}.' in log.text
            with pytest.raises(RunError, match='Could not save'):
                store.wait()
        else:                                       # only the links failed: the save is good
            assert 'could not be put in order' in log.text
        assert not [name for name in list_files(folder) if name.endswith('.writing')]
        for name in list_files(folder):
            verify_checkpoint(folder / name)
        assert read_checkpoint(path)['update'] in (1, 2)
        store.save(trained_run, make_progress(3))   # the disk works again
        store.wait()
        assert read_checkpoint(find_resume(str(folder), None))['update'] == 3
    assert failures >= 1
    if function == 'write':
        assert failures > 15                        # the writes of one save, each once


@pytest.mark.parametrize('error, is_last, expected', [
    ('nothing', False, 'takes no more bytes'),
    ('lost', False, 'the disk returned other bytes than were written'),
    ('lost', True, 'the disk returned other bytes than were written'),
    ('cut', True, 'the disk returned fewer bytes than were written')])
def test_a_disk_that_loses_bytes_is_noticed(
        tmp_path, monkeypatch, trained_run, error, is_last, expected):
    at = 5
    if is_last:
        _, _, fault, _ = save_with_fault(
            monkeypatch, tmp_path / 'counted', trained_run, 'write', 10 ** 6, error)
        at = fault.calls
    store, log, _, first = save_with_fault(
        monkeypatch, tmp_path / 'run', trained_run, 'write', at, error)
    assert expected in log.text
    assert find_resume(str(tmp_path / 'run'), None).endswith(os.path.basename(first))


def test_short_writes_are_continued(tmp_path, monkeypatch, trained_run):
    for at in (1, 2, 5, 20):
        store, _, _, _ = save_with_fault(
            monkeypatch, tmp_path / str(at), trained_run, 'write', at, 'short')
        store.wait()
        assert read_checkpoint(find_resume(str(tmp_path / str(at)), None))['update'] == 2


def test_a_folder_that_disappears_does_not_stop_training(tmp_path, trained_run):
    folder = tmp_path / 'run'
    folder.mkdir()
    log = Log()
    store = CheckpointStore(folder, 2, log)
    folder.rmdir()
    store.save(trained_run, make_progress(1))
    store.join()
    assert 'No such file or directory. There is no earlier one.' in log.text
    folder.mkdir()
    store.save(trained_run, make_progress(2))
    store.wait()


def kill_saving_loop(folder, rounds, monkeypatch):
    """Kill a process that saves without pause, `rounds` times; it continues where it was."""
    weights = np.random.default_rng(0).standard_normal(200_000).astype('float32')
    random_times = random.Random(0)
    monkeypatch.setattr(checkpoint_store, 'capture', lambda state, progress, buffers: {
        **{'world_size': 1, 'format_version': 1}, **progress,
        'model': {'w': NamedArray('w', weights + progress['update'])}})
    for _ in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                store = CheckpointStore(folder, 2, Log())
                newest = find_resume(folder, None, logger=Log()) if list_files(folder) else None
                first = read_summary(newest)['update'] + 1 if newest else 1
                for update in range(first, first + 10_000):
                    store.save(None, make_progress(update), is_best=update % 7 == 0)
                    store.wait()
                    os.write(writer, b'%d\n' % update)
            finally:
                os._exit(3)
        os.close(writer)
        acknowledged = b''
        while b'\n' not in acknowledged:
            acknowledged += os.read(reader, 1000)
        time.sleep(random_times.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        while more := os.read(reader, 1000):
            acknowledged += more
        os.close(reader)
        last = max(int(line) for line in acknowledged.split())
        for name in list_files(folder):
            if name.endswith('.pdparams'):
                verify_checkpoint(os.path.join(folder, name))
        log = Log()
        assert read_summary(find_resume(folder, None, logger=log))['update'] >= last
        assert 'Passed over' not in log.text


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_ten_kills_while_saving_lose_nothing(tmp_path, monkeypatch):
    kill_saving_loop(str(tmp_path), 10, monkeypatch)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_300_kills_while_saving_lose_nothing(tmp_path, monkeypatch):
    kill_saving_loop(str(tmp_path), 300, monkeypatch)


def test_what_a_kill_left_behind_is_put_in_order(tmp_path, trained_run):
    save(tmp_path, trained_run, 1, is_best=True)
    path = save(tmp_path, trained_run, 2, is_best=True)
    old = [name for name in list_files(tmp_path) if name.startswith('Epoch-1-')][0]
    for name in (BEST, LAST):                       # killed after the rename, before the links
        (tmp_path / name).unlink()
        os.link(tmp_path / old, tmp_path / name)
    (tmp_path / f'.x.pdparams{checkpoint_file.TEMPORARY}').write_bytes(b'half')
    log = Log()
    store = CheckpointStore(tmp_path, 2, log)
    assert 'Removed 1 unfinished' in log.text
    assert store.last_good == path
    for name in (BEST, LAST):
        assert read_summary(tmp_path / name)['update'] == 2
    assert sorted(list_files(tmp_path)) == sorted([old, os.path.basename(path), BEST, LAST])


def test_without_hard_links_best_and_last_are_copies(tmp_path, monkeypatch, trained_run):
    def refuse(source, target):
        raise OSError(errno.EPERM, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', refuse)
    path = save(tmp_path, trained_run, 1, is_best=True)
    for name in (BEST, LAST):
        assert (tmp_path / name).read_bytes() == Path(path).read_bytes()
        assert not os.path.samefile(tmp_path / name, path)


# Retention and choice


@pytest.mark.parametrize('keep', [0, 1, 3])
def test_retention_keeps_the_newest_and_never_loses_the_best(tmp_path, trained_run, keep):
    store = CheckpointStore(tmp_path, keep)
    for update in range(1, 9):
        store.save(trained_run, make_progress(update), is_best=update in (1, 2))
        store.wait()
        updates = sorted(read_summary(tmp_path / name)['update'] for name in list_files(tmp_path)
                         if name.startswith('Epoch-'))
        best = min(update, 2)
        others = [u for u in range(1, update) if u != best]
        assert updates == sorted({update, best, *others[max(0, len(others) - keep):]})
        assert read_summary(tmp_path / LAST)['update'] == update
        assert read_summary(tmp_path / BEST)['update'] == best
    # A damaged file is neither counted nor deleted.
    damaged = tmp_path / 'Epoch-9-Loss-0.1.pdparams'
    damaged.write_bytes(b'x')
    store.save(trained_run, make_progress(10))
    store.wait()
    assert damaged.exists()
    verify_checkpoint(tmp_path / BEST)


def test_a_clock_set_back_does_not_make_a_new_checkpoint_old(tmp_path, monkeypatch, trained_run):
    save(tmp_path, trained_run, 1, keep=0)
    monkeypatch.setattr(time, 'time', lambda: 1e9)
    path = save(tmp_path, trained_run, 2, keep=0)
    assert find_resume(str(tmp_path), None) == path


def test_one_save_at_a_time_and_training_goes_on_meanwhile(tmp_path, monkeypatch, trained_run):
    write = checkpoint_store.write_checkpoint
    running, most = [], []

    def slow_write(path, *arguments):
        running.append(path)
        most.append(len(running))
        time.sleep(0.3)
        write(path, *arguments)
        running.remove(path)
    monkeypatch.setattr(checkpoint_store, 'write_checkpoint', slow_write)
    store = CheckpointStore(tmp_path)
    started = time.monotonic()
    store.save(trained_run, make_progress(1))
    assert time.monotonic() - started < 0.2
    store.save(trained_run, make_progress(2))       # waits for the first
    store.wait()
    assert most == [1, 1]
    assert read_checkpoint(find_resume(str(tmp_path), None))['update'] == 2


def test_auto_takes_the_newest_that_is_good_of_this_model(tmp_path, trained_run):
    log = Log()
    assert find_resume('auto', tmp_path / 'nowhere', 'tiny', log) is None
    assert find_resume('auto', tmp_path, 'tiny', log) is None
    assert 'starting from the beginning' in log.text
    for name in ('train-1', 'train-2', 'train-3', 'train-4'):
        (tmp_path / name).mkdir()
    save(tmp_path / 'train-1', trained_run, 50)
    older = save(tmp_path / 'train-2', trained_run, 5)
    newest = save(tmp_path / 'train-2', trained_run, 6)
    save(tmp_path / 'train-3', trained_run, 7, model_name='another')
    log = Log()
    assert find_resume('auto', tmp_path, 'tiny', log) == newest     # by time, not by update
    assert f'Resuming from {newest} (epoch 6, update 6)' in log.text

    with open(newest, 'r+b') as file:               # last.pdparams is the same file
        file.seek(1000)
        file.write(b'\xff\x00\xff')
    log = Log()
    assert find_resume('auto', tmp_path, 'tiny', log) == older
    assert f'Passed over {newest}: its checksum does not match' in log.text
    os.truncate(newest, 500)
    log = Log()
    assert find_resume('auto', tmp_path, 'tiny', log) == older
    assert f'Passed over {newest}: has no checksum at its end: cut short' in log.text


def test_a_path_may_be_a_file_a_stem_or_a_run_directory(tmp_path, trained_run):
    path = save(tmp_path, trained_run, 3)
    assert find_resume(path, None) == path
    assert find_resume(path[:-len('.pdparams')], None) == path
    assert find_resume(str(tmp_path), None) == path
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='has no good checkpoint'):
        find_resume(str(tmp_path / 'empty'), None)
    with pytest.raises(UserError, match='no file or folder .*nothing, nor .*nothing.pdparams'):
        find_resume(str(tmp_path / 'nothing'), None)


def test_the_best_of_a_run_is_taken_over_by_the_folder_that_continues_it(tmp_path, trained_run):
    (tmp_path / 'old').mkdir()
    (tmp_path / 'new').mkdir()
    save(tmp_path / 'old', trained_run, 3, is_best=True)
    store = CheckpointStore(tmp_path / 'new')
    store.adopt_best(tmp_path / 'old')
    store.save(trained_run, make_progress(4))
    store.wait()
    assert read_summary(tmp_path / 'new' / BEST)['update'] == 3
    store.save(trained_run, make_progress(5), is_best=True)
    store.wait()
    assert read_summary(tmp_path / 'new' / BEST)['update'] == 5


def test_the_log_goes_to_the_runs_logger_by_default(tmp_path, trained_run):
    assert isinstance(CheckpointStore(tmp_path).logger, logging.Logger)


def test_capture_refuses_what_it_does_not_know(trained_run):
    with pytest.raises(AssertionError, match='spleen'):
        capture(trained_run, {'spleen': 1})
    with pytest.raises(AssertionError):
        capture(trained_run, {'best': object()})


def test_writing_over_an_existing_name_replaces_it_in_one_step(tmp_path):
    path = tmp_path / 'a.pdparams'
    write_checkpoint(path, {'x': 1}, {'time': 1})
    write_checkpoint(path, {'x': 2}, {'time': 2})
    assert verify_checkpoint(path) == {'time': 2}
    assert list_files(tmp_path) == ['a.pdparams']
