"""Who can read whose checkpoints, and what is refused."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common.checkpoints.content import read_checkpoint, restore
from common.errors import UserError
from tests.support.paths import FIXTURES
from tests.support.saving import list_files, save
from tests.support.tiny_run import TinyModel, build_run, collect, train


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
