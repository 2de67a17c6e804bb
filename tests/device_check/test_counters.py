"""Which operators training takes, and that this build of Paddle has kernels for them."""

import numpy as np
import paddle
import pytest

from common.data.erasing import RandomErasing
from common.data.mixup import Mixup
from common.device_check.counters import CopyCounter, count_operators, list_missing_kernels
from common.device_check.report import Context
from common.device_check.training import train_briefly
from common.training.optimizer import scale_on_device
from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.paths import FIXTURES, ROOT
from ViT.project import PROJECT as VIT

# What training took, by name: for a GPU build on a machine without a GPU, whose profiler ends.
NAMES = FIXTURES / 'training' / 'operators.txt'
KINDS = ['cpu'] + ['gpu'] * paddle.device.is_compiled_with_cuda()


@pytest.fixture(scope='module')
def operators():
    """The names of all that trainings take, see count_all."""
    if paddle.device.is_compiled_with_cuda():
        return set(NAMES.read_text().split())
    return {name.rstrip('_') for name in count_all() if ' ' not in name}


def count_all():
    """Count both models' operators, each optimizer's, and those of erasing and mixing."""
    with count_operators() as counts:
        for project in (VIT, T2T_VIT):
            for number, options in enumerate(project.tiny_models.values()):
                context = Context(project, 'cpu', 1, '')
                name = ('AdamW', 'SGD', 'Lamb', 'Adam')[number + 2 * (project is T2T_VIT)]
                train_briefly(context, 'cpu', {
                    **options, 'TRAIN.OPTIMIZER.NAME': name, 'MODEL.DROPOUT': 0.1,
                    'MODEL.ATTENTION_DROPOUT': 0.1, 'MODEL.DROPPATH': 0.1}, keeps_dropout=True)
        images, labels = paddle.ones([4, 3, 8, 8]), paddle.to_tensor([0, 1, 2, 0])
        places, values = RandomErasing(1.0).draw(images.shape, 0, range(4))
        flat = paddle.scatter_(images.reshape([-1]), paddle.to_tensor(places),
                               paddle.to_tensor(values))
        mixer = Mixup(3, 0.8, 1.0)
        mixer.on_cpu = False
        mixer(flat.reshape(images.shape), labels, np.random.default_rng(0))
        scale_on_device([images], paddle.to_tensor([0.5]))
    return counts


@pytest.mark.parametrize('kind', KINDS)
def test_every_operator_of_training_has_a_kernel(operators, kind):
    listed = set(NAMES.read_text().split())
    assert operators <= listed, f'add them to {NAMES}'
    assert listed >= {'matmul', 'matmul_grad', 'layer_norm_grad', 'softmax_grad', 'adamw', 'lamb',
                     'momentum', 'adam', 'lerp', 'scatter', 'flip', 'dropout_grad', 'conv2d_grad'}
    of_loss_scaling = {'check_finite_and_unscale', 'update_loss_scaling', 'cast', 'bitwise_or'}
    assert list_missing_kernels(listed | of_loss_scaling, kind) == []


def test_a_device_without_kernels(operators):
    missing = list_missing_kernels(operators, 'no_such_device')
    assert {'matmul', 'adamw'} <= set(missing) <= operators


@pytest.mark.skipif(paddle.device.is_compiled_with_cuda(), reason='its profiler needs a GPU')
def test_operators_are_counted_with_the_backward_pass():
    x = paddle.ones([3, 2])
    weight = paddle.ones([2, 2])
    weight.stop_gradient = False
    with count_operators() as counts:
        for _ in range(3):
            paddle.matmul(x, weight).sum().backward()
    assert counts['matmul'] == counts['matmul_grad'] == counts['sum_grad'] == 3


def test_copies_are_counted_by_line(monkeypatch):
    """On a CPU nothing is copied; where a tensor says that it lies elsewhere, it would be."""
    tensor = paddle.ones([2])
    with CopyCounter() as counter:
        tensor.numpy(), paddle.to_tensor([1.0]), float(tensor[0])
    assert not counter.lines

    class Place:
        def is_cpu_place(self):
            return False

    monkeypatch.setattr(paddle.base.core.eager.Tensor, 'place', Place(), raising=False)
    with CopyCounter() as counter:
        tensor.numpy()
        for _ in range(2):
            paddle.to_tensor([1.0])
    assert sorted(counter.lines.values()) == [1, 2]
    own = str(ROOT / 'tests')
    assert all((ROOT / line.rpartition(':')[0]).is_relative_to(own) for line in counter.lines)
    before = sum(counter.lines.values())
    tensor.numpy()                              # no longer counted
    assert sum(counter.lines.values()) == before
