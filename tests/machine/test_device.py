"""What is asked of a device and what is set for it; the devices themselves are stand-ins."""

import paddle
import pytest

from common.machine.device import allow_tf32


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
