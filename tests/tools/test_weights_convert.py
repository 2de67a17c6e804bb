"""convert_weights.py: what it writes is bit for bit what it read, here and in timm."""

import glob
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from common.tools.convert_weights import convert, main
from common.weights import safetensors_file
from common.weights.containers import open_container
from common.weights.read import read_weights
from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.paths import FIXTURES, ROOT
from ViT.formats.write_back import fit_rows
from ViT.project import PROJECT as VIT

WEIGHTS = os.path.join(FIXTURES, 'weights')
SOURCES = [path for path in sorted(glob.glob(os.path.join(WEIGHTS, '*', '*', '*')))
           if not path.endswith(('.json', '.md')) and 'expected' not in path]
PADDLEVIT = os.path.join(WEIGHTS, 'vit/paddlevit_pdparams/vit_tiny_fixture.pdparams')
TIMM = os.path.join(WEIGHTS, 'vit/timm_safetensors/model.safetensors')
T2T = os.path.join(WEIGHTS, 't2t/performer_ema_zip/tiny_t2t_performer.pth.tar')
GOOGLE = os.path.join(WEIGHTS, 'vit/google_npz/ViT-tiny_fixture.npz')
IN21K = os.path.join(WEIGHTS, 'vit/google_npz_in21k/ViT-tiny_fixture_in21k.npz')


def same_tensors(first, second):
    assert set(first.tensors) == set(second.tensors)
    for name, tensor in first.tensors.items():
        assert tensor.get().dtype == second.tensors[name].get().dtype == np.float32
        assert tensor.get().tobytes() == second.tensors[name].get().tobytes()


@pytest.mark.parametrize('ending', ['.pdparams', '.safetensors'])
@pytest.mark.parametrize('source', SOURCES, ids=lambda path: '/'.join(path.split(os.sep)[-2:]))
def test_bit_identical(source, ending, tmp_path):
    convert(T2T_VIT if os.sep + 't2t' + os.sep in source else VIT, source,
            tmp_path / f'a{ending}')
    before, after = read_weights(source), read_weights(tmp_path / f'a{ending}')
    same_tensors(before, after)
    assert after.numerics == before.numerics
    assert after.format in ('PaddleViT', 'PaddleViT T2T-ViT')
    assert os.listdir(tmp_path) == [f'a{ending}']


def test_paddle_reads_it_without_surplus_keys(tmp_path):
    paddle = pytest.importorskip('paddle')
    from ViT.vit import VisionTransformer
    path = str(tmp_path / 'a.pdparams')
    convert(VIT, GOOGLE, path)
    model = VisionTransformer(64, 16, num_classes=7, embed_dim=48, depth=3, num_heads=4)
    missing, unexpected = model.set_state_dict(paddle.load(path))
    assert not missing and not unexpected


def test_timm_names_are_those_that_timm_writes(tmp_path):
    """The fixtures hold the same weights; timm wrote and ran its own."""
    convert(VIT, PADDLEVIT, tmp_path / 'a.safetensors', 'timm')
    ours, theirs = open_container(tmp_path / 'a.safetensors').tree, open_container(TIMM).tree
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)


def test_timm_runs_it(tmp_path):
    torch, timm = pytest.importorskip('torch'), pytest.importorskip('timm')
    convert(VIT, PADDLEVIT, tmp_path / 'a.safetensors', 'timm')
    model = timm.models.VisionTransformer(img_size=64, patch_size=16, num_classes=7, embed_dim=48,
                                          depth=3, num_heads=4)
    timm.models.load_checkpoint(model, str(tmp_path / 'a.safetensors'), strict=True)
    expected = np.load(os.path.join(os.path.dirname(PADDLEVIT), 'expected.npz'))
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(expected['x'])).numpy()
    assert np.abs(logits - expected['logits']).max() <= 2e-6 * np.abs(expected['logits']).max()


def test_timm_names_and_back(tmp_path):
    convert(VIT, GOOGLE, tmp_path / 'a.safetensors', 'timm')
    back = read_weights(tmp_path / 'a.safetensors')
    same_tensors(read_weights(GOOGLE), back)
    assert back.format == 'timm' and back.numerics['gelu'] == 'tanh'        # recorded


def test_official_t2t_names_and_back(tmp_path):
    convert(T2T_VIT, T2T, tmp_path / 'a.safetensors', 't2t')
    theirs = open_container(T2T).tree['state_dict_ema']
    ours = open_container(tmp_path / 'a.safetensors').tree
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array)
    assert read_weights(tmp_path / 'a.safetensors').format == 'T2T-ViT'


def test_the_safetensors_package_reads_it(tmp_path):
    safetensors_numpy = pytest.importorskip('safetensors.numpy')
    written = convert(VIT, PADDLEVIT, tmp_path / 'a.safetensors')
    read = safetensors_numpy.load_file(tmp_path / 'a.safetensors')
    assert set(read) == set(written)
    for name, array in written.items():
        np.testing.assert_array_equal(read[name], array)


def test_ema_or_raw(tmp_path):
    source = os.path.join(WEIGHTS, 't2t/performer_train_ckpt/model_best.pth.tar')
    ema = convert(T2T_VIT, source, tmp_path / 'ema.safetensors')
    raw = convert(T2T_VIT, source, tmp_path / 'raw.safetensors', use_ema=False)
    assert (ema['cls_token'] != raw['cls_token']).any()


@pytest.mark.parametrize('source, output, target, expected', [
    (IN21K, 'a.safetensors', 'timm', 'has pre-logits'),
    (T2T, 'a.safetensors', 'timm', 'timm has no name for'),
    (TIMM, 'a.pdparams', 'timm', 'writes .safetensors'),
    (TIMM, 'a.pth', 'paddle', 'must end in .pdparams or .safetensors'),
    (TIMM, 'absent/a.pdparams', 'paddle', 'Cannot write .*No such file'),
])
def test_refusals(source, output, target, expected, tmp_path):
    with pytest.raises(UserError, match=expected):
        convert(VIT, source, tmp_path / output, target)
    assert os.listdir(tmp_path) == []


def test_tensors_without_a_place_are_not_lost_in_silence(tmp_path):
    tree = dict(open_container(PADDLEVIT).tree, extra=np.ones(3, 'f4'))
    (tmp_path / 'a.pdparams').write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError, match='no model here has: extra'):
        convert(VIT, tmp_path / 'a.pdparams', tmp_path / 'b.pdparams')


def test_a_bad_disk_is_noticed(tmp_path, monkeypatch):
    from common.weights import safetensors_file
    write = safetensors_file.write

    def write_badly(path, arrays, metadata):
        write(path, arrays, metadata)
        with open(path, 'r+b') as file:
            file.seek(-1, os.SEEK_END)
            file.write(b'\x01')
    monkeypatch.setattr(safetensors_file, 'write', write_badly)
    with pytest.raises(UserError, match='read back differs'):
        convert(VIT, TIMM, tmp_path / 'a.safetensors')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('change', ['rows', 'dimensions', 'type', 'scalar'])
@pytest.mark.parametrize('target', ['paddle', 'timm', 'huggingface'])
def test_tensors_that_do_not_fit_end_with_code_2(tmp_path, capsys, change, target):
    source = os.path.join(WEIGHTS, 'vit', 'hf_vit')
    tensors = dict(open_container(source).tree)
    for part in ('query.weight', 'key.bias'):
        name = next(name for name in tensors if name.endswith(part))
        array = tensors[name]
        wrong = {'rows': array[:-1].T[..., :-1], 'dimensions': array[None], 'scalar': array.max(),
                 'type': array.astype('int32')}[change]
        changed = {**tensors, name: np.ascontiguousarray(wrong).reshape(np.shape(wrong))}
        safetensors_file.write(tmp_path / 'model.safetensors', changed, {})
        shutil.copy(os.path.join(source, 'config.json'), tmp_path)
        code = main(VIT, [str(tmp_path), '-o', str(tmp_path / 'out.safetensors'), '-to', target])
        message = capsys.readouterr().err
        assert code == 2 and str(tmp_path) in message and 'Traceback' not in message, message


def test_command_line(tmp_path, capsys):
    output = str(tmp_path / 'a.pdparams')
    assert main(VIT, [TIMM, '--list']) == 0
    listed = capsys.readouterr().out
    assert 'encoder.layers.0.attn.qkv.weight  [48, 144]' in listed and '44 tensors' in listed
    assert main(VIT, [TIMM, '-to', 'timm', '-list']) == 0
    assert 'blocks.0.attn.qkv.weight  [144, 48]' in capsys.readouterr().out
    assert main(VIT, [TIMM, '-o', output, '--dry-run']) == 0
    assert f'Would write {output}.' in capsys.readouterr().out and not os.listdir(tmp_path)
    assert main(VIT, [TIMM, '-o', output]) == 0
    assert 'bit by bit' in capsys.readouterr().out and os.listdir(tmp_path) == ['a.pdparams']
    assert main(VIT, [TIMM, '-o', output]) == 2
    assert 'exists' in capsys.readouterr().err
    assert main(VIT, [TIMM, '-o', output, '-overwrite']) == 0
    assert main(VIT, [TIMM]) == 2
    assert main(VIT, ['absent', '-o', output]) == 2


@pytest.mark.parametrize('folder, source', [('ViT', TIMM), ('T2T_ViT', T2T)])
@pytest.mark.runs
def test_script(folder, source, tmp_path):
    done = subprocess.run(
        [sys.executable, 'convert_weights.py', source, '-o', str(tmp_path / 'a.pdparams')],
        cwd=os.path.join(ROOT, folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_weights(tmp_path / 'a.pdparams').tensors


# What transformers and timm compute from these files: benchmarks/write_back.py

FAMILY = FIXTURES / 'family'
with open(FAMILY / 'index.json', encoding='utf-8') as index:
    CASES = json.load(index)['cases']


@pytest.fixture
def with_heads(monkeypatch):
    """The width 32 is nobody's, so it does not tell the number of heads."""
    def read(*arguments, **options):
        weights = read_weights(*arguments, **options)
        weights.num_heads = weights.num_heads or 4
        return weights
    monkeypatch.setattr('common.tools.convert_weights.read_weights', read)


@pytest.mark.parametrize('name, architecture', [
    ('timm_plain_imagenet_norm', 'ViTForImageClassification'), ('hub_dino', 'ViTModel'),
    ('paddlevit_deit_distilled', 'DeiTForImageClassificationWithTeacher'),
    ('hf_deit', 'DeiTForImageClassification'), ('hub_dinov2', 'Dinov2Model'),
    ('timm_dinov2_reg4', 'Dinov2WithRegistersModel'), ('timm_dinov3_qkvb', 'DINOv3ViTModel'),
    ('hub_openclip', 'CLIPVisionModelWithProjection'),
    ('timm_siglip_map_tanh', 'SiglipVisionModel'),
    ('hf_ijepa', 'IJepaForImageClassification')])
def test_hugging_faces_folder_gives_the_sources_numbers(name, architecture, tmp_path, with_heads):
    paddle = pytest.importorskip('paddle')
    from common.weights import load_pretrained
    source = FAMILY / name / CASES[name]['path']
    convert(VIT, source, tmp_path / 'new' / 'model.safetensors', 'huggingface')
    config = json.loads((tmp_path / 'new' / 'config.json').read_text())
    assert config['architectures'] == [architecture]
    written = read_weights(tmp_path / 'new', project=VIT)
    assert written.num_heads == 4 and 'Hugging Face' in written.format
    models = []
    for path in (source, tmp_path / 'new'):
        weights = read_weights(path, project=VIT)
        weights.num_heads = 4
        options = {**VIT.read_options(weights), 'DATA.IMAGE_SIZE': CASES[name]['image_sizes'][0]}
        models.append(VIT.build_model(VIT.get_config(flags=options)))
        load_pretrained(models[-1], path)
        models[-1].eval()
    images = paddle.randn([2, *models[0].input_shape])
    ours, theirs = (model.forward_features(images).numpy() for model in models)
    np.testing.assert_allclose(theirs, ours, atol=2e-6 * np.abs(ours).max())
    if 'classifier.weight' in written.tensors:
        np.testing.assert_array_equal(models[0].classifier.weight.numpy(),
                                      models[1].classifier.weight.numpy())


def test_preprocessing_and_class_names_go_along(tmp_path):
    source = FAMILY / 'timm_plain_imagenet_norm' / 'model.safetensors'
    before = read_weights(source)
    convert(VIT, source, tmp_path / 'model.safetensors', 'huggingface')
    after = read_weights(tmp_path)
    assert after.preprocessing_source == 'preprocessor_config.json'
    assert after.preprocessing['mean'] == before.preprocessing['mean']
    assert after.preprocessing['interpolation'] == before.preprocessing['interpolation']
    assert after.preprocessing['crop_pct'] == pytest.approx(before.preprocessing['crop_pct'], 0.02)


def test_a_folder_is_not_written_over(tmp_path):
    source = FAMILY / 'timm_plain_imagenet_norm' / 'model.safetensors'
    with pytest.raises(UserError, match='-o FOLDER/model.safetensors'):
        convert(VIT, source, tmp_path / 'a.safetensors', 'huggingface')
    (tmp_path / 'config.json').write_text('{"mine": 1}')
    with pytest.raises(UserError, match='config.json exists'):
        convert(VIT, source, tmp_path / 'model.safetensors', 'huggingface')
    assert json.loads((tmp_path / 'config.json').read_text()) == {'mine': 1}
    convert(VIT, source, tmp_path / 'model.safetensors', 'huggingface', overwrite=True)
    assert 'architectures' in json.loads((tmp_path / 'config.json').read_text())


@pytest.mark.parametrize('name, target, reason', [
    ('timm_deit3', 'huggingface', 'has a classifier, and .* Dinov2Model has none'),
    ('timm_reg4_gap', 'huggingface', 'no class token and norm after pooling .*: no class of'),
    ('timm_clip', 'huggingface', 'classifier.bias is not zero'),
    ('timm_dinov3', 'timm', 'rotary positions.*Convert it -to huggingface'),
    ('hf_deit', 'timm', 'distillation token without a head')])
def test_networks_that_the_other_project_lacks(name, target, reason, tmp_path, with_heads):
    with pytest.raises(UserError, match=reason):
        convert(VIT, FAMILY / name / CASES[name]['path'], tmp_path / 'model.safetensors', target)
    assert os.listdir(tmp_path) == []


def test_positions_of_tokens_go_into_the_tokens(tmp_path):
    """Hugging Face's registers have no rows; the sum is what the blocks get either way."""
    arrays = {'cls_token': np.ones((1, 1, 4), 'f4'), 'register_tokens': np.ones((1, 2, 4), 'f4'),
              'position_embedding': np.arange(28, dtype='f4').reshape(1, 7, 4)}
    for rows in (0, 1, 3):
        found = fit_rows(arrays, rows, (2, 2))
        tokens = np.concatenate([found['cls_token'], found['register_tokens']], axis=1)
        assert found['position_embedding'].shape[1] == 4 + rows
        with_rows = np.pad(found['position_embedding'][:, :rows], [(0, 0), (0, 3 - rows), (0, 0)])
        np.testing.assert_array_equal(tokens + with_rows,
                                      1 + arrays['position_embedding'][:, :3])
    assert fit_rows(fit_rows(arrays, 0, (2, 2)), 1, (2, 2))['position_embedding'][0, 0].sum() == 0


def test_a_form_of_gelu_that_is_not_known_is_said(tmp_path, caplog, with_heads):
    convert(VIT, FAMILY / 'hub_ijepa' / CASES['hub_ijepa']['path'],
            tmp_path / 'model.safetensors', 'huggingface')
    assert 'does not say its form of GELU' in caplog.text
