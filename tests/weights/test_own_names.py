"""A model's own checkpoint loads whatever its parameters are called; projects by class."""

import os
import pickle
import subprocess
import sys
import types

import numpy as np
import paddle
import pytest
from paddle import nn

from common.checkpoints.content import read_checkpoint
from common.checkpoints.find import find_resume, list_checkpoints
from common.errors import UserError
from common.project import find_project, load_project
from common.weights import describe_numerics, load_pretrained, safe_pickle, safetensors_file
from common.weights.containers import open_container
from common.weights.read import has_same_names
from T2T_ViT.project import PROJECT as T2T_VIT
from T2T_ViT.t2t_vit import T2TViT
from tests.support.paths import FIXTURES, ROOT
from tests.support.recipe import fill_by_recipe
from ViT.project import PROJECT as VIT
from ViT.vit import VisionTransformer

TIMM = os.path.join(FIXTURES, 'weights', 'vit', 'timm_safetensors',
                    'model.safetensors')


class WithParameter(VisionTransformer):
    """A ViT with a parameter that no table of names has."""

    def __init__(self, **options):
        super().__init__(**{'image_size': 64, 'patch_size': 16, 'num_classes': 7, 'embed_dim': 48,
                            'depth': 2, 'num_heads': 4, **options})
        self.my_tokens = self.create_parameter([1, 2, 48])


class Plain(nn.Layer):
    """A model of no directory, with timm's names and another layout of its square weights."""

    num_prefix_tokens = num_prefix_positions = 0
    grid_size = (4, 4)

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Sequential()
        self.patch_embed.add_sublayer('proj', nn.Conv2D(3, 8, 4, 4))
        self.blocks = nn.LayerList([nn.Sequential() for _ in range(2)])
        for block in self.blocks:
            block.add_sublayer('norm1', nn.LayerNorm(8))
            block.add_sublayer('mix', nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def get_numerics(self):
        return {}

    def set_numerics(self, **numerics):
        assert not numerics


def save(model, path, whole_run=False):
    content = model.state_dict()
    if whole_run:
        content = {'model': content, 'epoch': 1, 'numerics': describe_numerics(model)}
    paddle.save(content, str(path))


def same_values(first, second):
    for name, value in first.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), second.state_dict()[name].numpy())


@pytest.mark.parametrize('whole_run', [False, True])
def test_a_parameter_more_is_loaded_from_the_models_own_file(tmp_path, whole_run):
    model = fill_by_recipe(WithParameter(gelu='tanh', layer_norm_eps=1e-4))
    save(model, tmp_path / 'a.pdparams', whole_run)
    again = WithParameter()
    report = load_pretrained(again, tmp_path / 'a')
    assert report.complete and set(report.loaded) == set(model.state_dict())
    assert 'my_tokens' in report.loaded and not report.unexpected
    same_values(model, again)
    # What the file records holds; a bare state dict is taken for PaddleViT's.
    assert describe_numerics(again)['gelu'] == ('tanh' if whole_run else 'erf')
    assert describe_numerics(again)['layer_norm_eps'] == (1e-4 if whole_run else 1e-6)


def test_heads_and_positions_are_fitted_in_ones_own_file_too(tmp_path):
    save(fill_by_recipe(WithParameter()), tmp_path / 'a.pdparams')
    other = WithParameter(image_size=96, num_classes=5)
    report = load_pretrained(other, tmp_path / 'a.pdparams')
    assert set(report.replaced) == {'classifier.weight', 'classifier.bias'}
    assert list(report.resized) == ['position_embedding'] and 'my_tokens' in report.loaded


def test_an_unknown_name_is_still_refused(tmp_path):
    save(WithParameter(), tmp_path / 'a.pdparams')
    bare = VisionTransformer(64, 16, num_classes=7, embed_dim=48, depth=2, num_heads=4)
    with pytest.raises(UserError, match='only in the file: my_tokens'):
        load_pretrained(bare, tmp_path / 'a.pdparams')
    save(bare, tmp_path / 'b.pdparams')
    with pytest.raises(UserError, match='only in the model: my_tokens'):
        load_pretrained(WithParameter(), tmp_path / 'b.pdparams')


@pytest.mark.parametrize('ending', ['.pdparams', '.safetensors'])
def test_own_names_win_over_a_format_with_the_same_names(tmp_path, ending):
    """The names are timm's, the layout is Paddle's: square weights would be turned in silence."""
    model, path = fill_by_recipe(Plain()), str(tmp_path / f'a{ending}')
    if ending == '.pdparams':
        save(model, path)
    else:
        safetensors_file.write(path, {name: value.numpy() for name, value in
                                      model.state_dict().items()}, {'format': 'pd'})
    again = Plain()
    assert load_pretrained(again, path).complete
    same_values(model, again)
    assert (model.blocks[0].mix.weight.numpy() != model.blocks[0].mix.weight.numpy().T).any()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('ending', ['.pdparams', '.safetensors'])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, ending, value):
    model, path = fill_by_recipe(Plain()), str(tmp_path / f'a{ending}')
    weight = model.blocks[1].mix.weight.numpy()
    weight[3, 4] = value
    model.blocks[1].mix.weight.set_value(weight)
    if ending == '.pdparams':
        save(model, path)
    else:
        safetensors_file.write(path, {name: value.numpy() for name, value in
                                      model.state_dict().items()}, {'format': 'pd'})
    other = Plain()
    before = other.head.weight.numpy()
    with pytest.raises(UserError, match=r'NaN or infinity in blocks\.1\.mix\.weight: the train'):
        load_pretrained(other, path)
    np.testing.assert_array_equal(other.head.weight.numpy(), before)


def test_large_weights_whose_sum_overflows_are_finite(tmp_path):
    model, other = fill_by_recipe(Plain()), Plain()
    model.head.weight.set_value(np.full([8, 3], 3e38, np.float32))
    save(model, tmp_path / 'a.pdparams')
    load_pretrained(other, tmp_path / 'a.pdparams')
    same_values(model, other)


@pytest.mark.parametrize('read', [open_container, safe_pickle.load, read_checkpoint])
def test_what_is_no_regular_file_is_refused(tmp_path, read):
    """A pipe without a writer would be waited for for ever."""
    path = str(tmp_path / 'last.pdparams')
    os.mkfifo(path)
    for special in (path, '/dev/zero'):
        with pytest.raises(UserError, match='not a regular file'):
            read(special)


def test_a_pipe_among_a_runs_checkpoints_is_passed_over(tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    os.mkfifo(run / 'Epoch-9-Loss-1.pdparams')
    assert 'not a regular file' in list_checkpoints(str(run))[0].problem
    assert find_resume('auto', str(tmp_path)) is None


def test_same_names():
    own = {'cls_token', *(f'blocks.{i}.{name}' for i in range(12) for name in 'abcdef'), 'head'}
    assert has_same_names(own, own)
    assert has_same_names({name.replace('blocks.1', 'blocks.2') for name in own} - {'head'}, own)
    assert has_same_names(own | {'one.more'}, own)
    assert not has_same_names({'cls_token', 'head', 'blocks.0.a'}, own)
    assert not has_same_names(own, set()) and not has_same_names(set(), own)


def test_projects_are_found_by_class():
    assert find_project(WithParameter()) is VIT and VIT.before_head == ('pre_logits.',)
    tiny = T2TViT(64, embed_dim=32, depth=1, num_heads=2, num_classes=3)
    assert find_project(tiny) is T2T_VIT
    nobodys = find_project(Plain())
    assert nobodys.name == 'Plain' and nobodys.heads == ('head.', 'classifier.')
    with pytest.raises(NotImplementedError, match='no project.py'):
        nobodys.build_model(None)


@pytest.mark.parametrize('project', [VIT, T2T_VIT], ids=lambda project: project.name)
def test_a_project_reaches_started_processes(project):
    again = pickle.loads(pickle.dumps(project))
    assert again.formats[0].name == project.formats[0].name
    assert again.build_model is project.build_model


def test_a_class_of_a_notebook_belongs_to_its_bases_directory():
    """__main__ has no file there."""
    notebook = types.ModuleType('notebook_main')
    sys.modules['notebook_main'] = notebook
    try:
        mine = type('Mine', (VisionTransformer,), {'__module__': 'notebook_main'})
        model = mine(64, 16, num_classes=7, embed_dim=48, depth=3, num_heads=4)
        assert find_project(model) is VIT and load_pretrained(model, TIMM).complete
    finally:
        del sys.modules['notebook_main']


def test_a_copied_model_file_knows_everybodys_formats(tmp_path, monkeypatch):
    with open(os.path.join(ROOT, 'ViT', 'vit.py'), encoding='utf-8') as file:
        (tmp_path / 'copied_vit.py').write_text(file.read())
    monkeypatch.syspath_prepend(tmp_path)
    import copied_vit
    model = copied_vit.VisionTransformer(64, 16, num_classes=7, embed_dim=48, depth=3, num_heads=4)
    report = load_pretrained(model, TIMM)
    assert report.format == 'timm' and report.complete


def test_a_project_is_loaded_once(tmp_path):
    (tmp_path / 'project.py').write_text('PROJECT = object()')
    path = str(tmp_path / 'project.py')
    assert load_project(path) is load_project(path)
    assert load_project(os.path.join(ROOT, 'ViT', 'project.py')) is VIT
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'project.py').write_text('PROJECT = 1 / 0')
    for _ in range(2):                              # a failed import is not kept
        with pytest.raises(ZeroDivisionError):
            load_project(str(tmp_path / 'b' / 'project.py'))


@pytest.mark.runs
def test_models_as_imported_inside_the_model_directory(tmp_path):
    """from vit import ..., as PaddleViT's users write it, finds the same formats."""
    code = ('from config import get_config\n'
            'from vit import VisionTransformer\n'
            'from common.weights import load_pretrained\n'
            'from common.project import find_project\n'
            'model = VisionTransformer(64, 16, num_classes=7, embed_dim=48, depth=3, num_heads=4)\n'
            f'print(load_pretrained(model, {TIMM!r}).format, find_project(model).name)')
    done = subprocess.run([sys.executable, '-c', code], cwd=os.path.join(ROOT, 'ViT'),
                          capture_output=True, text=True)
    assert done.stdout.split() == ['timm', 'ViT'], done.stderr
