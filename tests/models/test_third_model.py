"""A third model: a directory with the files that the README names, and common/ as it is.

A small ViT with registers, q/k norms, a ReLU MLP and a distillation token with a loss of its own,
whose files are in tests/fixtures/third_model. Scripts are ViT's, copied.
"""

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy import export, predict, visualize
from common.errors import UserError
from common.project import find_project
from common.run.launch import run_single
from common.tools import convert_weights
from common.weights import load_pretrained
from tests.support.paths import FIXTURES, ROOT, find_run

pytestmark = pytest.mark.runs

SCRIPTS = ('main_single_gpu.py', 'predict.py', 'weights.py', 'model_info.py')
CONFIG = '-cfg=configs/register_vit_digits.yaml'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A folder with the model directory, and with common/ as it is in the repository."""
    root = tmp_path_factory.mktemp('third')
    folder = root / 'RegisterViT'
    shutil.copytree(FIXTURES / 'third_model', folder)
    (folder / '__init__.py').touch()
    for script in SCRIPTS:
        shutil.copy(ROOT / 'ViT' / script, folder / script)
    os.symlink(ROOT / 'common', root / 'common')
    sys.path.insert(0, str(root))
    yield root
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.split('.')[0] == 'RegisterViT']:
        del sys.modules[name]


@pytest.fixture(scope='module')
def project(root):
    return importlib.import_module('RegisterViT.project').PROJECT


@pytest.fixture(scope='module')
def trained(root, project):
    """The run folder of two epochs."""
    return run(project, root / 'first')


def run(project, output, *arguments):
    code = run_single(project, [CONFIG, '-device=cpu', f'-output={output}', *arguments])
    assert code == 0
    return find_run(output)


def read_metrics(folder, event):
    lines = (folder / 'metrics.jsonl').read_text().splitlines()
    return [line for line in map(json.loads, lines) if line['event'] == event]


def build(project, **options):
    model = project.build_model(project.get_config(
        os.path.join(project.folder, 'configs', 'register_vit_digits.yaml'),
        flags={key.replace('__', '.'): value for key, value in options.items()}))
    model.eval()
    return model


def make_images(size=32):
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((3, 3, size, size)), 'float32')


def test_it_trains_with_its_own_loss(trained, project):
    epochs = read_metrics(trained, 'train_epoch')
    assert len(epochs) == 2 and epochs[1]['loss'] < epochs[0]['loss'] < 2.5
    state = paddle.load(str(trained / 'last.pdparams'))['model']
    fresh = build(project).state_dict()
    moved = [name for name in fresh if not np.array_equal(state[name].numpy(), fresh[name].numpy())]
    # The distillation head learns by the model's own loss alone.
    assert set(moved) == set(fresh) and 'head_dist.weight' in moved


def test_the_loss_is_the_projects(project):
    config = project.get_config(opts=['MODEL.DISTILLATION', '0.25'])
    seen = []

    def criterion(logits, targets):
        seen.append(logits)
        return paddle.to_tensor(float(10 ** len(seen)))
    loss = project.build_loss(config, criterion)(
        lambda images: (images, images + 1), paddle.zeros([1]), None)
    assert float(loss) == pytest.approx(0.75 * 10 + 0.25 * 100)


def test_it_resumes_bit_for_bit(root, trained, project):
    first_epoch = next(trained.glob('Epoch-1-*.pdparams'), None)
    if first_epoch is None:
        first_epoch = next(run(project, root / 'one', '-opts', 'SAVE_FREQ', '1').glob('Epoch-1-*'))
    resumed = run(project, root / 'resumed', f'-resume={first_epoch}')
    straight, again = (paddle.load(str(folder / 'last.pdparams'))['model']
                       for folder in (trained, resumed))
    for name, value in straight.items():
        np.testing.assert_array_equal(again[name].numpy(), value.numpy(), err_msg=name)


def test_it_evaluates_what_it_recorded(root, trained, project):
    evaluated = run(project, root / 'eval', '-eval', f'-pretrained={trained / "last"}')
    before, after = read_metrics(trained, 'eval')[-1], read_metrics(evaluated, 'eval')[-1]
    assert after['acc1'] == before['acc1'] and after['images'] == 450
    assert after['loss'] == pytest.approx(before['loss'], rel=1e-6)


def test_the_cpu_kernels_are_right_or_stay_away(root, trained, project):
    """The attention looks like ViT's by the names of its parts, and computes otherwise."""
    plain = run(project, root / 'plain', '-opts', 'FAST', 'False')
    for event in ('train_epoch', 'eval'):
        for ours, theirs in zip(read_metrics(trained, event), read_metrics(plain, event)):
            assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-4)


def test_its_own_checkpoint_loads(trained, project):
    model = build(project)
    assert find_project(model) is project
    report = load_pretrained(model, trained / 'last')
    assert report.format == 'RegisterViT' and report.complete and not report.unexpected
    larger = build(project, DATA__IMAGE_SIZE=48, MODEL__NUM_CLASSES=3)
    report = load_pretrained(larger, trained / 'last')
    assert report.resized['pos_embed'].startswith('from 4 x 4 to 6 x 6')
    assert set(report.replaced) == {'head.weight', 'head.bias', 'head_dist.weight',
                                    'head_dist.bias'}


def test_a_foreign_checkpoint_loads(root, trained, project):
    path = root / 'foreign.safetensors'
    assert convert_weights.main(project, [str(trained / 'last'), '-o', str(path), '-to',
                                          'foreign']) == 0
    own, foreign = build(project), build(project)
    load_pretrained(own, trained / 'last')
    report = load_pretrained(foreign, path)
    assert report.format == 'Foreign' and report.complete
    np.testing.assert_array_equal(own(make_images()).numpy(), foreign(make_images()).numpy())


def test_other_families_files_are_named(project):
    timm = FIXTURES / 'weights/vit/timm_safetensors/model.safetensors'
    with pytest.raises(UserError, match='this is a ViT .patch 16.*the config is a RegisterViT of'):
        load_pretrained(build(project), timm)


@pytest.mark.runs                                   # pictures are read by processes
def test_it_predicts_draws_and_exports(root, trained, project, capsys):
    picture = root / 'digit.png'
    Image.fromarray(load_digits_rgb()[0][3]).save(picture)
    weights = f'-pretrained={trained / "last"}'
    classes = {}
    for name, source in (('model', [weights]),
                         ('export', [f'-model={root / "exported"}', '-engine=plain'])):
        if name == 'export':
            assert export.main(project, [weights, f'-output={root / "exported"}']) == 0
        table = root / f'{name}.csv'
        assert predict.main(project, [str(picture), *source, '-format=csv',
                                      f'-output={table}']) == 0, capsys.readouterr().err
        with open(table, encoding='utf-8', newline='') as file:
            classes[name] = [(row['class'], pytest.approx(float(row['probability']), abs=1e-4))
                             for row in csv.DictReader(file)]
    assert len(classes['model']) == 5 and classes['model'] == classes['export']
    assert visualize.main(project, [str(picture), weights, f'-output={root}',
                                    '-save_arrays']) == 0
    with np.load(root / 'digit.attention.npz') as arrays:
        tokens = 2 + 2 + 16
        assert arrays['attention'].shape == (2, 2, tokens, tokens)
        assert arrays['head_maps'].shape == (2, 4, 4) and arrays['prefix_tokens'] == 4
        np.testing.assert_allclose(arrays['attention'].sum(-1), 1, atol=1e-5)


def test_its_scripts_run(root):
    """ViT's scripts, copied: each takes its PROJECT from the project.py beside it."""
    folder = root / 'RegisterViT'

    def start(script, *arguments):
        return subprocess.run([sys.executable, script, *arguments], cwd=folder,
                              capture_output=True, text=True)
    done = start('main_single_gpu.py', CONFIG, '-device=cpu', f'-output={root / "script"}',
                 '-opts', 'TRAIN.NUM_STEPS', '2')
    assert done.returncode == 0, done.stderr
    weights = find_run(root / 'script') / 'last'
    done = start('predict.py', str(root / 'digit.png'), f'-pretrained={weights}')
    assert done.returncode in (0, 2) and 'Traceback' not in done.stderr
    listed = start('weights.py', 'list')
    assert listed.returncode == 0 and not listed.stdout, listed.stderr
    table = start('model_info.py')
    assert 'register_vit_digits' in table.stdout, table.stderr
