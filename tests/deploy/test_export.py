"""Exports against the dynamic model: every format, engine and batch size; what goes wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.data.preprocessing import Preprocessing
from common.deploy import engine as engines
from common.deploy import export, predict
from common.deploy.engine import load_engine, make_check_images
from common.deploy.export import export_model
from common.deploy.formats import Formats, read_formats, write_formats
from common.deploy.preprocessing import load_preprocessing
from common.deploy.program import write_record
from common.deploy.trained import Trained, load_trained
from common.errors import RunError, UserError
from common.machine.environment import read_cpu
from tests.support.data_folders import make_folders
from tests.support.paths import ROOT
from tests.support.recipe import fill_by_recipe, recipe_images
from tests.support.trained_digits import fixture_path, load_fixture
from ViT.vit import VisionTransformer

ODD_FOLDER = 'pic\x1b[2J\ntures\udce9'
IS_PADDLE_2 = paddle.__version__.startswith('2.')
HAS_ONNX = all(map(engines.is_installed, ('paddle2onnx', 'onnxruntime')))
needs_onnx = pytest.mark.skipif(
    not HAS_ONNX, reason='paddle2onnx or onnxruntime is not installed (requirements-extra.txt)')
needs_bfloat16 = pytest.mark.skipif(
    'avx512bw' not in read_cpu()[1], reason='this processor has no AVX-512')
needs_openvino = pytest.mark.skipif(IS_PADDLE_2, reason='Paddle 2 has no OpenVINO engine')
NAMES = ('vit', 't2t')
FORMATS = 'paddle,onnx' if HAS_ONNX else 'paddle'


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """{name: (folder, project, Trained)}; the exported folders of both models.

    The conversion to ONNX starts a program, so that every test that uses this is marked `runs`.
    """
    folders = {}
    for name in NAMES:
        folder = str(tmp_path_factory.mktemp('exported') / name)
        assert run_export(name, f'-output={folder}', f'-formats={FORMATS}') == 0
        folders[name] = (folder, *load_fixture(name))
    return folders


def run_export(name, *arguments):
    return export.main(load_fixture(name)[0], [f'-pretrained={fixture_path(name)}', *arguments])


def predict_dynamic(trained, images):
    return predict.make_dynamic_predictor(trained.model)(images)


def digit_images(trained, count):
    images = load_digits_rgb()[0][:count]
    crops = [trained.preprocessing.crop(Image.fromarray(image)) for image in images]
    return trained.preprocessing.normalize(crops)


def largest_difference(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('engine', [
    'plain', 'onednn', pytest.param('openvino', marks=needs_openvino),
    pytest.param('onnxruntime', marks=needs_onnx)])
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.runs
def test_engines_equal_the_dynamic_model_at_any_batch_size(exported, name, engine):
    folder, _, trained = exported[name]
    run = engines.OPENERS[engine](folder, 'float32')
    images = digit_images(trained, 20)
    expected = predict_dynamic(trained, images)
    for size in (1, 7, 20, 2):
        actual = run(images[:size])
        assert actual.shape == (size, 10) and actual.dtype == np.float32
        assert largest_difference(actual, expected[:size]) <= 1e-4


@pytest.mark.runs
@pytest.mark.parametrize('options', [
    {'register_tokens': 2, 'layer_scale': 0.5, 'position_embedding': 'rope', 'pool': 'avg'},
    {'distilled': True}, {'pre_norm': True, 'gelu': 'quick'},
    {'pool': 'map', 'class_token': False, 'norm_after_pooling': True},
], ids=['rope, registers', 'distilled', 'pre-norm, quick GELU', 'attention pooling'])
@pytest.mark.runs
def test_a_model_of_every_family_is_exported(options, tmp_path):
    model = fill_by_recipe(VisionTransformer(image_size=32, patch_size=8, embed_dim=32, depth=2,
                                             num_heads=4, num_classes=10, **options))
    model.eval()
    trained = Trained(model, None, Preprocessing(32, 1.0, 'bicubic', [0.5] * 3, [0.5] * 3))
    expected = predict_dynamic(trained, recipe_images(3, 32))
    folder = str(tmp_path / 'exported')
    errors = export_model(trained, folder, FORMATS.split(','))
    assert list(errors) == FORMATS.split(',') and max(errors.values()) <= 1e-4
    names = ['plain', 'onednn'] + ['onnxruntime'] * HAS_ONNX + ['openvino'] * (not IS_PADDLE_2)
    for name in names:
        found = engines.OPENERS[name](folder, 'float32')(recipe_images(3, 32))
        assert largest_difference(found, expected) <= 1e-4, name


@pytest.mark.runs
def test_load_engine_tries_it_and_gives_a_callable(exported):
    folder, _, trained = exported['t2t']
    run = load_engine(folder, 'onednn')
    images = digit_images(trained, 3)
    assert largest_difference(run(images), predict_dynamic(trained, images)) <= 1e-4
    assert largest_difference(run(images[:, :, ::-1].astype('float64')),
                              predict_dynamic(trained, images[:, :, ::-1].copy())) <= 1e-4
    assert (run.name, run.precision, run.num_classes) == ('onednn', 'float32', 10)


@needs_bfloat16
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.runs
def test_bfloat16_predicts_the_same_classes(exported, name):
    folder, _, trained = exported[name]
    if IS_PADDLE_2 and name == 't2t':
        with pytest.raises(RunError, match='The engine onednn cannot be used'):
            load_engine(folder, 'onednn', 'bfloat16')
        return
    images = digit_images(trained, 1000)
    expected = predict_dynamic(trained, images).argmax(axis=1)
    run = engines.OPENERS['onednn'](folder, 'bfloat16')
    actual = np.concatenate([run(images[i:i + 50]) for i in range(0, 1000, 50)]).argmax(axis=1)
    assert (actual == expected).mean() >= 0.99


@pytest.mark.runs
def test_auto_takes_the_fastest_that_is_right(exported, monkeypatch, tmp_path):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    speeds = {'plain': (50.0, ''), 'onednn': (90.0, ''), 'openvino': (99.0, 'wrong logits'),
              'onnxruntime': (10.0, '')}
    tried = []

    def try_engine(folder, name, precision):
        tried.append(name)
        return engines.Trial(*speeds[name])

    monkeypatch.setattr(engines, 'try_engine', try_engine)
    assert engines.choose_engine(folder, 'float32') == 'onednn'
    assert 'plain' in tried
    tried.clear()
    assert engines.choose_engine(folder, 'float32') == 'onednn' and not tried   # remembered
    monkeypatch.setattr(engines, 'describe_machine', lambda: 'another machine')
    speeds['plain'] = (100.0, '')
    assert engines.choose_engine(folder, 'float32') == 'plain' and tried
    speeds.update(dict.fromkeys(speeds, (None, 'crashed')))
    monkeypatch.setattr(engines, 'describe_machine', lambda: 'a third')
    with pytest.raises(RunError, match='plain: crashed'):
        engines.choose_engine(folder, 'float32')


@pytest.mark.runs
def test_auto_measures_here(exported, tmp_path):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    assert engines.try_engine(folder, 'plain', 'float32').images_per_second > 0
    assert engines.try_engine(folder, 'plain', 'float32', 0) == engines.Trial(None, '')
    run = load_engine(folder, 'auto')
    assert run.name in engines.ENGINES
    choices = json.loads((tmp_path / 'copy' / 'engines.json').read_text())
    assert list(choices.values()) == [run.name]


@pytest.mark.runs
def test_an_engine_with_other_logits_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    logits, size = engines.read_check(folder)
    engines.write_check(folder, logits * 1.01, size)
    write_record(folder)
    with pytest.raises(RunError, match='its logits differ by 9.9e-03'):
        load_engine(folder, 'onednn')


@pytest.mark.runs
def test_a_crash_of_an_engine_is_reported(exported, tmp_path):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    script = tmp_path / 'sitecustomize.py'
    script.write_text('import os, signal, sys\n'
                      'if "-m" in sys.orig_argv:\n'
                      '    os.kill(os.getpid(), signal.SIGSEGV)\n')
    code = ('import os, sys\nfrom common.deploy.engine import try_engine\n'
            f'print(try_engine({str(folder)!r}, "onednn", "float32").problem)')
    ended = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{tmp_path}'})
    assert 'it crashed (signal 11)' in ended.stdout, ended.stderr


@pytest.mark.runs
def test_damaged_program_is_reported(exported, tmp_path):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    weights = tmp_path / 'copy' / 'model.pdiparams'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match='it is not the file that files.json records'):
        load_engine(folder, 'onednn')
    os.remove(tmp_path / 'copy' / 'files.json')
    with pytest.raises(UserError, match='model.pdiparams cannot be used: cut short'):
        load_engine(folder, 'onednn')


@pytest.mark.runs
@pytest.mark.parametrize('what, message', [
    ('pdiparams', 'cannot be used'), ('program', 'cannot be used'), ('check', 'is damaged')])
def test_damaged_files_end_with_code_2(exported, tmp_path, capsys, what, message):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    path = {'pdiparams': folder / 'model.pdiparams', 'check': folder / engines.CHECK_FILE,
            'program': engines.find_program(str(folder))}[what]
    with open(path, 'r+b') as file:
        file.truncate(100)
    image = tmp_path / 'digit.png'
    Image.fromarray(load_digits_rgb()[0][0]).save(image)
    code = predict.main(load_fixture('vit')[0],
                        [f'-model={folder}', '-engine=plain', str(image)])
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and 'export' in errors
    assert 'Traceback' not in errors


@pytest.mark.runs
def test_preprocessing_beside_the_model_is_the_checkpoints(exported):
    for name in NAMES:
        folder, _, trained = exported[name]
        assert load_preprocessing(folder) == trained.preprocessing
        assert trained.preprocessing.class_names == [str(i) for i in range(10)]


@pytest.mark.runs
@pytest.mark.parametrize('name', NAMES)
def test_predict_runs_the_exported_model(exported, name, tmp_path, capsys):
    folder, project, _ = exported[name]
    for i in range(3):
        Image.fromarray(load_digits_rgb()[0][i]).save(tmp_path / f'{i}.png')
    outputs = []
    for arguments in ([f'-pretrained={fixture_path(name)}'],
                      [f'-model={folder}', '-engine=plain']):
        assert predict.main(project, [str(tmp_path), '-format=csv', *arguments]) == 0
        rows = [line.split(',') for line in capsys.readouterr().out.splitlines()[1:]]
        outputs.append(rows)
    for row, other in zip(*outputs):
        assert row[:4] == other[:4] and abs(float(row[4]) - float(other[4])) < 1e-5


@pytest.mark.runs
@pytest.mark.parametrize('arguments, message', [
    (['-engine=plain', '-precision=bfloat16'], 'bfloat16 is computed by -engine=onednn, or'),
    (['-engine=fast'], "invalid choice: 'fast'"), (['-labels={labels}'], '3 class names')])
def test_wrong_input_ends_with_code_2(exported, tmp_path, capsys, arguments, message):
    folder, project, _ = exported['vit']
    Image.fromarray(load_digits_rgb()[0][0]).save(tmp_path / '0.png')
    (tmp_path / 'labels.txt').write_text('a\nb\nc\n')
    arguments = [text.format(labels=tmp_path / 'labels.txt') for text in arguments]
    if '-engine' not in arguments[0]:
        arguments.append('-engine=plain')
    assert predict.main(project, [str(tmp_path / '0.png'), f'-model={folder}', *arguments]) == 2
    assert message in capsys.readouterr().err


def test_export_refuses_wrong_input(tmp_path, capsys):
    assert run_export('vit', '-formats=onx', f'-output={tmp_path}') == 2
    assert "unknown format 'onx'. Did you mean onnx?" in capsys.readouterr().err
    (tmp_path / 'file').write_text('')
    assert run_export('vit', f'-output={tmp_path / "file" / "exported"}') == 2
    assert 'Cannot write to' in capsys.readouterr().err


def test_missing_packages_are_asked_for_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(engines, 'is_installed', lambda module: module != 'paddle2onnx')
    assert run_export('vit', '-formats=onnx', f'-output={tmp_path}') == 2
    assert 'pip install "paddle2onnx' in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_program_that_is_not_the_model_is_not_written(tmp_path, monkeypatch):
    project = load_fixture('vit')[0]
    flags = type('Flags', (), {'cfg': None, 'pretrained': fixture_path('vit'), 'image_size': None,
                               'num_classes': None, 'device': 'cpu', 'labels': None, 'opts': []})
    trained = load_trained(project, flags)
    save_program = export.save_program

    def save_another(model, image_size, folder, forward):
        model.classifier.bias.set_value(model.classifier.bias + 0.01)
        save_program(model, image_size, folder, forward)

    monkeypatch.setattr(export, 'save_program', save_another)
    with pytest.raises(RunError, match='is not the model at batch size 1'):
        export_model(trained, tmp_path / 'exported')
    assert not os.listdir(tmp_path)


@pytest.mark.runs
def test_exporting_again_replaces_what_was_there(exported, tmp_path):
    folder = shutil.copytree(exported['vit'][0], tmp_path / 'copy')
    (tmp_path / 'copy' / 'engines.json').write_text('{}')
    (tmp_path / 'copy' / 'model.onnx').write_text('old')
    (tmp_path / 'copy' / 'notes.txt').write_text('mine')
    assert run_export('vit', f'-output={folder}') == 0
    program = 'model.pdmodel' if IS_PADDLE_2 else 'model.json'
    assert {'README.md', 'check.npz', 'files.json', 'infer.py', 'labels.txt', 'model.pdiparams',
            'notes.txt', 'preprocessing.json', 'sample.json', 'sample.png', program} == \
        set(os.listdir(folder)) - {'model.pdiparams.info'}


@needs_onnx
@pytest.mark.runs
def test_gelu_of_tanh_is_spelled_out_for_onnx(tmp_path):
    """paddle2onnx writes the GELU of erf for both forms; the logits then differ by 1e-3."""
    _, trained = load_fixture.__wrapped__('vit')        # its own: the shared one stays as it is
    trained.model.set_numerics(gelu='tanh')
    errors = export.export_model(trained, str(tmp_path / 'exported'), ('paddle', 'onnx'))
    assert max(errors.values()) <= 1e-5
    content = Path(engines.find_onnx(str(tmp_path / 'exported'))).read_bytes()
    assert b'Tanh' in content and b'Erf' not in content
    run = engines.OPENERS['onnxruntime'](str(tmp_path / 'exported'), 'float32')
    images = digit_images(trained, 5)
    assert largest_difference(run(images), predict_dynamic(trained, images)) <= 1e-5


@needs_onnx
@pytest.mark.runs
def test_a_wrong_conversion_is_refused(tmp_path, capsys, monkeypatch):
    convert = export.convert_to_onnx

    def convert_other_weights(folder):
        """Convert a model that is not the one to be exported."""
        for file in os.listdir(other):
            shutil.copy(os.path.join(other, file), folder)
        convert(folder)

    other = str(tmp_path / 'other')
    os.mkdir(other)
    _, trained = load_fixture('vit')
    weight = trained.model.classifier.weight
    weight.set_value(weight * 1.01)
    export.save_program(trained.model, trained.preprocessing.image_size, other)
    weight.set_value(weight / 1.01)
    monkeypatch.setattr(export, 'convert_to_onnx', convert_other_weights)
    assert run_export('vit', '-formats=onnx', f'-output={tmp_path / "exported"}') == 1
    assert 'onnx model is not the model' in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['other']


def test_int8_is_made_from_the_whole_model(tmp_path, monkeypatch):
    """The ranges of what the head reads alone cost accuracy; float32 is spared the rest."""
    trained = load_fixture('vit')[1]
    written = []

    def save_program(model, image_size, folder, forward):
        written.append(forward.__name__)
        raise RunError('enough')

    monkeypatch.setattr(export, 'save_program', save_program)
    for plan in (None, object()):
        with pytest.raises(RunError, match='enough'):
            export_model(trained, tmp_path / 'exported', plan=plan)
    assert written == ['forward_logits', 'forward']


def test_the_program_is_compared_with_the_whole_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(VisionTransformer, 'forward_logits', VisionTransformer.forward_features)
    assert run_export('vit', f'-output={tmp_path / "exported"}') == 1
    assert 'paddle model is not the model' in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.runs
def test_export_with_onednn_switched_on_in_the_environment(tmp_path):
    command = [sys.executable, 'export_model.py', f'-pretrained={fixture_path("t2t")}',
               f'-output={tmp_path / "exported"}']
    flag = 'FLAGS_use_mkldnn' if IS_PADDLE_2 else 'FLAGS_use_onednn'
    ended = subprocess.run(command, env={**os.environ, flag: '1'}, capture_output=True, text=True,
                           cwd=os.path.join(ROOT, 'T2T_ViT'))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / 'exported' / 'model.pdiparams').exists()


@pytest.mark.skipif(IS_PADDLE_2, reason='Paddle 2 has no such operator')
def test_a_gpu_build_saves_the_same_operators(tmp_path, monkeypatch):
    """Paddle 3.3 would save linear_v2 in a GPU build, which no engine reads."""
    _, trained = load_fixture('vit')
    monkeypatch.setattr(paddle, 'is_compiled_with_cuda', lambda: True)
    export.save_program(trained.model, trained.preprocessing.image_size, str(tmp_path))
    text = (tmp_path / 'model.json').read_text()
    assert 'linear_v2' not in text and 'matmul' in text
    assert not paddle.get_flags('FLAGS_use_legacy_linear')['FLAGS_use_legacy_linear']


def test_check_images_are_the_same_everywhere():
    images = make_check_images(8)
    assert images.shape == (4, 3, 8, 8)
    generator = np.random.Generator(np.random.PCG64(0))
    np.testing.assert_array_equal(
        images.reshape(-1)[:5], generator.standard_normal(5, dtype=np.float32))


def test_pictures_of_a_folder_of_any_name_give_the_ranges_of_int8(tmp_path):
    """What the folder's record says of them is read again."""
    project, trained = load_fixture('vit')
    make_folders(tmp_path / ODD_FOLDER, parts=('',), per_class=8)
    arguments = export._parse(project, ['-pretrained=x', f'-calibrate={tmp_path / ODD_FOLDER}',
                                        '-calibration_images=10'])
    plan = export.make_plan(project, trained, arguments)
    assert plan.source.startswith('10 pictures of ') and plan.source.isprintable()
    formats = Formats('int8', 'int8', calibrated=plan.source)
    write_formats(formats, str(tmp_path))
    assert read_formats(str(tmp_path)) == formats
