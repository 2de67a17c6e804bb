"""The measurements of speed, which a fake accelerator leaves out, on a small model and a CPU."""

from dataclasses import replace

import pytest

from common.device_check import speed
from common.device_check.report import CheckSkipped, Context
from common.tools.model_info import measure_config
from T2T_ViT.project import PROJECT as T2T_VIT
from ViT.project import PROJECT as VIT

CONFIGS = {'ViT': (VIT, 'vit_digits'), 'T2T-ViT': (T2T_VIT, 't2t_vit_digits')}


@pytest.fixture(params=CONFIGS)
def context(request, tmp_path, monkeypatch):
    project, name = CONFIGS[request.param]
    monkeypatch.setattr(speed, 'BATCHES', (8,))
    monkeypatch.setattr(speed, 'PICTURES', 8 * 20)
    monkeypatch.setattr(speed, 'PICTURE_SIZE', (50, 38))
    return Context(replace(project, timed_configs=(name,)), 'cpu', 1, str(tmp_path))


@pytest.mark.runs
def test_speed_on_one_batch_and_through_the_loader(context):
    project, name = context.project, context.project.timed_configs[0]
    checks = dict(speed.list_checks(context))
    assert len(checks) == 3
    macs = measure_config(project.get_config, project.build_model,
                          f'{project.folder}/configs/{name}.yaml').macs_with_attention
    for title in (f'{name}, synthetic images', f'{name}, through the loader'):
        text, figures = checks[title](context)
        assert figures['batch_size'] == 8 and figures['images_per_second'] > 1
        assert figures['flops'] == pytest.approx(6 * macs * figures['images_per_second'])
        assert 'batch 8: ' in text and ' images/s, ' in text
    assert 0 <= figures['waiting'] <= 1 and 'waited for data' in text


def test_the_largest_batch_that_fits():
    tried = []

    def measure(batch_size):
        tried.append(batch_size)
        if batch_size > 16:
            raise RuntimeError('ResourceExhausted: out of memory')
        return 'measured'

    assert speed.find_batch_size(measure) == (16, 'measured')
    assert tried == [128, 64, 32, 16]
    with pytest.raises(CheckSkipped):
        speed.find_batch_size(lambda batch_size: measure(1000))
    with pytest.raises(ValueError):
        speed.find_batch_size(lambda batch_size: int('x'))
