"""What is asked of a device and what is set for it; the devices themselves are stand-ins."""

import paddle
import pytest

from common.machine.device import allow_tf32, count_gpus
from common.run.launch import run_single
from ViT.project import PROJECT


@pytest.mark.parametrize('allowed, expected', [(True, []), (False, ['cublas', 'cudnn'])])
def test_tf32_is_switched_off_on_gpus_alone(allowed, expected, monkeypatch):
    switched = []
    for name in ('cublas', 'cudnn'):
        def switch(value, name=name):
            assert value is False
            switched.append(name)
        monkeypatch.setattr(paddle.base.core, f'set_{name}_switch', switch, raising=False)
    assert 'cpu has none' in allow_tf32(allowed, 'cpu')
    assert switched == []
    assert ('off' in allow_tf32(allowed, 'gpu:1')) is not allowed
    assert switched == expected


@pytest.mark.skipif(not paddle.device.is_compiled_with_cuda() or count_gpus() > 0,
                    reason='needs a GPU build of Paddle on a machine without a GPU')
@pytest.mark.runs
def test_a_gpu_build_without_a_gpu(tmp_path, capsys):
    arguments = ['-cfg=configs/vit_digits.yaml', '-num_workers=0', f'-output={tmp_path}', '-opts',
                 'TRAIN.NUM_STEPS', '2', 'TRAIN.WARMUP_EPOCHS', '0', 'VALIDATE_FREQ', '1000']
    assert run_single(PROJECT, ['-device=gpu', *arguments]) == 2
    assert 'Paddle sees 0 GPUs' in capsys.readouterr().err
    assert run_single(PROJECT, arguments) == 0
    assert 'no GPU found; this is the GPU build' in capsys.readouterr().out
