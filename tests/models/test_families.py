"""Every family of plain ViTs as a user has it: trains, resumes, evaluates, exports, draws maps."""

import json
import os

import numpy as np
import paddle
import pytest

from common.deploy import export, visualize
from common.kernels import install
from common.run.launch import run_single
from common.training.losses import build_criterion
from common.weights import load_pretrained
from tests.support.data_folders import make_image
from tests.support.paths import find_run
from tests.support.recipe import recipe_images
from ViT.config import get_config
from ViT.distillation import build_loss
from ViT.project import PROJECT
from ViT.vit import build_vit

FAMILIES = {
    'DeiT': {'DISTILLED': True},
    'DeiT III': {'LAYER_SCALE': 0.1},
    'DINOv2 with registers': {'LAYER_SCALE': 0.1, 'REGISTER_TOKENS': 4},
    'MAE, fine-tuned': {'POOL': 'avg', 'NORM_AFTER_POOLING': True},
    'CLIP': {'PRE_NORM': True, 'GELU': 'quick', 'LAYER_NORM_EPS': 1e-5},
    'SigLIP': {'POOL': 'map', 'CLASS_TOKEN': False, 'GELU': 'tanh'},
    'DINOv3': {'POSITION_EMBEDDING': 'rope', 'REGISTER_TOKENS': 4, 'LAYER_SCALE': 0.1,
               'QKV_BIAS': False, 'POOL': 'avg', 'LAYER_NORM_EPS': 1e-5},
    'I-JEPA': {'POOL': 'avg', 'CLASS_TOKEN': False},
    'RADIO': {'REGISTER_TOKENS': 3, 'LAYER_SCALE': 0.1, 'LAST_NORM': False},
}
TINY = {'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 2, 'MODEL.NUM_HEADS': 2, 'MODEL.NUM_CLASSES': 10,
        'MODEL.PATCH_SIZE': 4, 'DATA.IMAGE_SIZE': 16, 'DATA.DATASET': 'digits',
        'DATA.BATCH_SIZE': 64, 'DATA.NUM_WORKERS': 1, 'DEVICE': 'cpu'}
STEPS = {'TRAIN.NUM_STEPS': 4, 'SAVE_STEPS': 2, 'TRAIN.WARMUP_EPOCHS': 0, 'MODEL.DROPPATH': 0.1}


def list_options(family):
    return TINY | {f'MODEL.{name}': value for name, value in FAMILIES[family].items()}


def run(output, family, *arguments):
    """Train in this process, through the command; return the run folder."""
    values = [str(part) for item in (list_options(family) | STEPS).items() for part in item]
    assert run_single(PROJECT, [f'-output={output}', *arguments, '-opts', *values]) == 0
    return find_run(output)


def read_metrics(folder, event):
    lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [line for line in lines if line['event'] == event]


@pytest.mark.parametrize('kernels', ['plain', 'cpu'])
@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_learns_by_the_second_update(family, kernels):
    config = get_config(flags=list_options(family))
    paddle.seed(1)
    model = build_vit(config)
    install(model, kernels)
    compute_loss = build_loss(config, build_criterion(config))
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    images = paddle.to_tensor(recipe_images(4, 16))
    model.train()
    for _ in range(2):              # a parameter behind a zero has a gradient only then
        optimizer.clear_grad()
        compute_loss(model, images, paddle.to_tensor([3, 1, 4, 1])).backward()
        optimizer.step()
    idle = [name for name, parameter in model.named_parameters()
            if not parameter.stop_gradient and (
                parameter.grad is None or not parameter.grad.numpy().any())]
    assert idle == []


@pytest.mark.runs
@pytest.mark.parametrize('family', FAMILIES)
def test_the_whole_way(family, tmp_path, capsys):
    straight = run(tmp_path / 'straight', family)
    middle = min(straight.glob('Epoch-*'), key=os.path.getmtime)
    assert paddle.load(str(middle))['update'] == 2
    resumed = run(tmp_path / 'resumed', family, f'-resume={middle}')
    weights, again = (paddle.load(str(folder / 'last.pdparams'))['model']
                      for folder in (straight, resumed))
    for name, value in weights.items():
        np.testing.assert_array_equal(again[name].numpy(), value.numpy(), err_msg=name)

    last = straight / 'last.pdparams'
    evaluated = run(tmp_path / 'eval', family, '-eval', f'-pretrained={last}')
    before, after = (read_metrics(folder, 'eval')[-1] for folder in (straight, evaluated))
    assert (after['acc1'], after['images']) == (before['acc1'], before['images'])
    assert after['loss'] == pytest.approx(before['loss'], rel=1e-6)

    larger = build_vit(get_config(flags=list_options(family) | {'DATA.IMAGE_SIZE': 24}))
    assert load_pretrained(larger, last).complete
    # export compares the program's logits with the model's.
    assert export.main(PROJECT, [f'-pretrained={last}', f'-output={tmp_path / "out"}']) == 0
    picture = tmp_path / 'picture.png'
    make_image(picture, (20, 20))
    maps = tmp_path / 'maps'
    assert visualize.main(PROJECT, [f'-pretrained={last}', str(picture), f'-output={maps}',
                                    '-save_arrays']) == 0
    arrays = np.load(next(maps.glob('*.npz')))
    assert arrays['rollout_maps'].shape == (2, 4, 4) and (arrays['rollout_maps'] > 0).all()
    capsys.readouterr()
