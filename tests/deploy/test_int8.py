"""int8 exports: what they cost is measured and told, or they are refused."""

import hashlib
import logging
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from common import cli
from common.data.digits import load_digits_rgb
from common.deploy import demo, export, predict
from common.deploy import engine as engines
from common.deploy.calibration import collect_from_dataset, collect_from_folder
from common.deploy.export import export_model
from common.deploy.formats import Formats, find_openvino, read_formats, write_formats
from common.deploy.int8 import Plan
from common.deploy.openvino_ir import check_openvino
from common.deploy.program import RECORD_FILE
from common.errors import UserError
from common.run.launch import run_single
from tests.support.trained_digits import fixture_path, load_fixture

MODULES = ('paddle2onnx', 'onnxruntime', 'onnx', 'ml_dtypes', 'openvino', 'nncf')
MISSING = [module for module in MODULES if not engines.is_installed(module)]
pytestmark = [pytest.mark.runs, pytest.mark.skipif(
    bool(MISSING), reason=f'not installed: {", ".join(MISSING)} (requirements-extra.txt)')]
NAMES = ('vit', 't2t')
ENGINES = {'openvino': 'openvino', 'onnx': 'onnxruntime'}


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """{name: folder} with the model as Paddle's, in float32, and as OpenVINO's and ONNX's int8."""
    folders = {}
    for name in NAMES:
        folders[name] = str(tmp_path_factory.mktemp('int8') / name)
        assert run_export(name, '-formats=paddle,openvino,onnx', f'-output={folders[name]}') == 0
    return folders


def run_export(name, *arguments):
    return export.main(load_fixture(name)[0], [
        f'-pretrained={fixture_path(name)}', '-precision=int8', *arguments])


def read_digits(name):
    """Return (images, labels) of the digits that the fixtures were not trained on."""
    project, trained = load_fixture(name)
    dataset = project.get_dataset(trained.config, False)
    crops = [trained.preprocessing.crop(dataset.read(index)) for index in range(len(dataset))]
    return trained.preprocessing.normalize(crops), np.array(dataset.labels)


def run_all(run, images):
    return np.concatenate([run(images[start:start + 50]) for start in range(0, len(images), 50)])


@pytest.mark.parametrize('form', ENGINES)
@pytest.mark.parametrize('name', NAMES)
def test_the_cost_that_is_told_is_the_cost(exported, name, form):
    _, trained = load_fixture(name)
    images, labels = read_digits(name)
    run = engines.OPENERS[ENGINES[form]](exported[name], 'int8')
    found = run_all(run, images).argmax(1)
    expected = run_all(predict.make_dynamic_predictor(trained.model), images).argmax(1)
    before, after = 100 * (expected == labels).mean(), 100 * (found == labels).mean()
    text = getattr(read_formats(exported[name]), f'{form}_cost')
    assert text == (
        f'the same class as float32 on {100 * (found == expected).mean():.2f} % of 450 pictures '
        f'that were not used for calibration; accuracy {after:.2f} %, float32 {before:.2f} %')
    assert before - after <= 0.5


@pytest.mark.parametrize('name', NAMES)
def test_layers_are_in_int8_but_the_first_and_the_last(exported, name):
    with open(find_openvino(exported[name]), encoding='utf-8') as file:
        numbers = re.findall(r'<data element_type="i8" shape="(\d+), (\d+)"', file.read())
    model = load_fixture(name)[1].model
    linear = [layer.weight.shape for _, layer in model.blocks.named_sublayers()
              if type(layer).__name__ == 'Linear']
    # The blocks' products; queries, keys and values are three there. Others may be the stem's.
    assert len(numbers) >= len(linear) + 2 * len(model.blocks)
    assert not any('10' in shape for shape in numbers)      # the head, 10 classes
    kept = read_formats(exported[name]).kept_float
    assert kept.endswith('classifier') or kept.endswith('head')
    logits, _ = engines.read_check(exported[name])
    for engine in ENGINES.values():
        error = np.abs(engines.read_reference(exported[name], engine, 'int8') - logits).max()
        assert 1e-4 * np.abs(logits).max() < error, 'not int8'


def test_predict_says_what_int8_cost(exported, tmp_path, capsys):
    Image.fromarray(load_digits_rgb()[0][0]).save(tmp_path / '0.png')
    assert predict.main(load_fixture('vit')[0], [
        str(tmp_path / '0.png'), f'-model={exported["vit"]}', '-engine=openvino']) == 0
    shown = capsys.readouterr()
    assert 'Engine: openvino, int8' in shown.err
    assert read_formats(exported['vit']).openvino_cost in shown.err
    assert shown.out.splitlines()[1].split()[3] == '0'


@pytest.mark.parametrize('name', NAMES)
def test_eval_takes_the_folder(exported, name, tmp_path, capsys):
    """With the folder's own preprocessing and classes, no yaml file, and the accuracy it told."""
    project = load_fixture(name)[0]
    assert run_single(project, ['-eval', f'-pretrained={exported[name]}', '-device=cpu',
                                '-dataset=digits', f'-output={tmp_path}']) == 0
    shown = capsys.readouterr().out
    cost = read_formats(exported[name])
    told = {re.search(r'accuracy (\S+) %', text)[1] for text in (cost.openvino_cost,
                                                                 cost.onnx_cost)}
    assert re.search(r'acc1 (\d+\.\d+)', shown)[1] in told, shown
    assert f'Exported model {exported[name]}' in shown and 'int8' in shown


@pytest.mark.parametrize('arguments, words', [
    (['-eval', '-num_classes=12'], 'was exported for MODEL.NUM_CLASSES 10'),
    (['-eval', '-image_size=64'], 'was exported for DATA.IMAGE_SIZE'),
    ([], 'is an exported model: it can be evaluated')])
def test_what_an_exported_folder_is_not_for(exported, tmp_path, capsys, arguments, words):
    assert run_single(load_fixture('vit')[0], [
        f'-pretrained={exported["vit"]}', '-device=cpu', '-dataset=digits',
        f'-output={tmp_path}', *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_exported_model_that_is_not_of_the_default_sizes_needs_its_yaml_file(
        exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, '_read_exported', lambda folder: {'DATA.IMAGE_SIZE': 28})
    assert run_single(load_fixture('vit')[0], [
        '-eval', f'-pretrained={exported["vit"]}', '-device=cpu', '-dataset=digits',
        f'-output={tmp_path}']) == 2
    shown = capsys.readouterr().err
    assert 'DATA.IMAGE_SIZE 28 is not a multiple' in shown and 'by -cfg' in shown


def test_the_web_page_shows_an_exported_model(exported):
    flags = predict.argparse.Namespace(model=exported['vit'], engine='openvino', precision='',
                                       cfg=None, pretrained=None, image_size=None,
                                       num_classes=None, device=None, labels=None, opts=[])
    trained, engine = demo.load_shown(load_fixture('vit')[0], flags)
    image = load_digits_rgb()[0][0]
    crop = trained.preprocessing.crop(Image.fromarray(image))
    logits = engine(trained.preprocessing.normalize([crop]))
    shares = demo.name_shares(trained.preprocessing, logits)
    assert max(shares, key=shares.get) == '0'
    assert 'Engine: openvino, int8' in demo.describe(trained, engine)
    if engines.is_installed('gradio'):
        page = demo.build_page(trained, (), engine)
        types = [block['type'] for block in page.config['components']]
        assert types.count('image') == 1 and 'slider' not in types


@pytest.mark.parametrize('engine, precision', [
    ('plain', 'float32'), ('openvino', 'int8'), ('onnxruntime', 'int8')])
def test_a_named_engine_takes_the_precision_it_has(exported, engine, precision, caplog,
                                                   monkeypatch):
    monkeypatch.setattr(engines.logger, 'propagate', True)
    with caplog.at_level(logging.INFO):
        run = engines.load_engine(exported['vit'], engine)
    assert (run.name, run.precision) == (engine, precision)
    assert ('float32 takes its place' in caplog.text) == (precision == 'float32')


def test_without_openvino_the_paddle_model_takes_its_place(exported, caplog, monkeypatch):
    monkeypatch.setattr(engines.logger, 'propagate', True)
    monkeypatch.setattr(engines, 'is_installed',
                        lambda module: module not in ('openvino', 'onnxruntime'))
    with caplog.at_level(logging.INFO):
        run = engines.load_engine(exported['vit'])
    assert run.precision == 'float32' and 'pip install' in caplog.text
    with pytest.raises(UserError, match='OpenVINO is not installed: pip install openvino'):
        engines.load_engine(exported['vit'], 'openvino', 'int8')


def widen_a_range(trained, factor=100.0):
    """Make what enters the second layer of an MLP `factor` times as wide in a few channels.

    What leaves it is as before, but for GELU's curve, so the model predicts as well as before.
    """
    mlp = trained.model.blocks[0].mlp
    first, second = (layer for _, layer in mlp.named_sublayers() if hasattr(layer, 'weight'))
    scale = np.ones(first.weight.shape[1], 'float32')
    scale[::16] = factor
    first.weight.set_value(first.weight.numpy() * scale)
    first.bias.set_value(first.bias.numpy() * scale)
    second.weight.set_value(second.weight.numpy() / scale[:, None])


def load_fresh(name):
    project = load_fixture(name)[0]
    flags = type('Flags', (), {'cfg': None, 'pretrained': fixture_path(name), 'image_size': None,
                               'num_classes': None, 'device': 'cpu', 'labels': None, 'opts': []})
    return project, export.load_trained(project, flags)


def test_a_spoilt_model_is_refused_and_auto_mends_it(tmp_path):
    project, trained = load_fresh('vit')
    widen_a_range(trained)
    pictures = collect_from_dataset(project, trained.config, trained.preprocessing)
    with pytest.raises(UserError, match=r'int8 loses .* more than -max_drop=0.5') as refusal:
        export_model(trained, str(tmp_path / 'a'), ['onnx'], 'int8', Plan(*pictures, max_drop=0.5))
    assert 'cost most: encoder.layers.0,' in str(refusal.value)
    assert os.listdir(tmp_path) == []
    project, trained = load_fresh('vit')
    widen_a_range(trained)
    plan = Plan(*pictures, max_drop=0.5, keep_float=('auto',))
    export_model(trained, str(tmp_path / 'b'), ['onnx'], 'int8', plan)
    assert 'encoder.layers.0' in read_formats(str(tmp_path / 'b')).kept_float.split(', ')


def test_a_spoilt_model_is_refused_for_openvino(tmp_path):
    project, trained = load_fresh('vit')
    widen_a_range(trained)
    pictures = collect_from_dataset(project, trained.config, trained.preprocessing)
    with pytest.raises(UserError, match=r'int8 loses .* more than -max_drop=0.5'):
        export_model(trained, str(tmp_path / 'a'), ['openvino'], 'int8',
                     Plan(*pictures, max_drop=0.5))
    assert os.listdir(tmp_path) == []


def test_calibration_leaves_everything_as_it_was(tmp_path):
    folder = tmp_path / 'pictures'
    for index, (image, label) in enumerate(zip(*load_digits_rgb())):
        if index < 60:
            os.makedirs(folder / str(label), exist_ok=True)
            Image.fromarray(image).save(folder / str(label) / f'{index}.png')
    (folder / '3' / 'broken.png').write_bytes(b'\x89PNG')

    def read_hashes():
        return {path: hashlib.sha256(open(path, 'rb').read()).hexdigest() for path in [
            fixture_path('vit'), *(os.path.join(root, name) for root, _, names in os.walk(folder)
                                   for name in names)]}

    before = read_hashes()
    assert run_export('vit', f'-calibrate={folder}', '-calibration_images=20',
                      f'-output={tmp_path / "exported"}') == 0
    assert read_hashes() == before
    formats = read_formats(str(tmp_path / 'exported'))
    assert formats.calibrated == f'20 pictures of {folder}'
    assert re.search(r'on \d+\.\d\d % of 4[01] pictures .*; accuracy', formats.openvino_cost)


def test_pictures_of_other_classes_tell_agreement_only(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger('common.deploy.calibration'), 'propagate', True)
    preprocessing = load_fixture('vit')[1].preprocessing
    for index, image in enumerate(load_digits_rgb()[0][:20]):
        os.makedirs(tmp_path / 'cats', exist_ok=True)
        Image.fromarray(image).save(tmp_path / 'cats' / f'{index}.png')
    with caplog.at_level(logging.INFO):
        calibration, test = collect_from_folder(str(tmp_path), preprocessing)
    assert (len(calibration.crops), len(test.crops)) == (10, 10) and not test.is_labelled
    assert 'only agreement' in caplog.text
    used = {crop.tobytes() for crop in calibration.crops}
    assert not any(crop.tobytes() in used for crop in test.crops)


@pytest.mark.parametrize('make, words', [
    (lambda path: None, 'there is no folder'), (os.mkdir, 'no pictures'),
    (lambda path: [os.mkdir(path), Image.new('RGB', (8, 8)).save(f'{path}/a.png')], '1 pictures')])
def test_too_little_to_calibrate_with(tmp_path, capsys, make, words):
    make(str(tmp_path / 'pictures'))
    assert run_export('vit', f'-calibrate={tmp_path / "pictures"}',
                      f'-output={tmp_path / "exported"}') == 2
    assert words in capsys.readouterr().err.lower() and not (tmp_path / 'exported').exists()


@pytest.mark.parametrize('arguments, words', [
    (['-formats=paddle'], 'Paddle model stays float32'),
    (['-keep_float=block.1'], "no layer 'block.1'"),
    (['-calibration_images=0'], 'must be 1 or more'),
    (['-precision=float32', '-max_drop=1'], '-max_drop is for -precision=int8'),
    (['-precision=bfloat16', '-formats=onnx'], 'no bfloat16')])
def test_flags_that_do_not_go_together(tmp_path, capsys, arguments, words):
    assert run_export('vit', *arguments, f'-output={tmp_path / "exported"}') == 2
    assert words in capsys.readouterr().err and os.listdir(tmp_path) == []


@pytest.mark.parametrize('module', ['nncf', 'openvino'])
def test_missing_packages_are_asked_for(tmp_path, monkeypatch, capsys, module):
    monkeypatch.setattr(engines, 'is_installed', lambda name: name != module)
    assert run_export('vit', '-formats=openvino', f'-output={tmp_path / "exported"}') == 2
    assert f'pip install "{module}"' in capsys.readouterr().err and os.listdir(tmp_path) == []


def test_float32_and_bfloat16_for_openvino(tmp_path):
    folder = str(tmp_path / 'exported')
    assert export.main(load_fixture('t2t')[0], [
        f'-pretrained={fixture_path("t2t")}', '-format=openvino', '-precision=bfloat16',
        f'-output={folder}']) == 0
    images, _ = read_digits('t2t')
    expected = run_all(predict.make_dynamic_predictor(load_fixture('t2t')[1].model), images)
    run = engines.OPENERS['openvino'](folder, 'float32')
    assert np.abs(run_all(run, images) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert read_formats(folder).precision == 'bfloat16'
    assert not os.path.exists(os.path.join(folder, 'model.onnx'))


@pytest.mark.parametrize('edit, words', [
    (lambda text: text.replace('type="MatMul"', 'type="ReadValue"', 1), "'ReadValue'"),
    (lambda text: text.replace('version="opset1"', 'version="extension"', 1), "'extension'"),
    (lambda text: text.replace('offset="0"', 'offset="-4"', 1), 'outside'),
    (lambda text: re.sub(r'size="\d+"', 'size="99999999"', text, count=1), 'outside'),
    (lambda text: text.replace('<net ', '<!DOCTYPE net [<!ENTITY a "b">]><net ', 1), 'document'),
    (lambda text: text.replace('<input>', '<body/><input>', 1), 'nested'),
    (lambda text: text.replace('</layers>', '</layers><meta/>', 1), 'parts'),
    (lambda text: text[:1000], 'cannot be used'), (lambda text: '', 'cannot be used'),
    (lambda text: '<net/>', '0 layers')])
def test_models_of_strangers(exported, tmp_path, edit, words):
    copy = shutil.copytree(exported['vit'], tmp_path / 'copy')
    os.remove(copy / RECORD_FILE)
    path = find_openvino(str(copy))
    check_openvino(path)
    with open(path, encoding='utf-8') as file:
        text = file.read()
    changed = edit(text)
    assert changed != text
    with open(path, 'w', encoding='utf-8') as file:
        file.write(changed)
    with pytest.raises(UserError, match=re.escape(words)):
        engines.load_engine(str(copy), 'openvino')
    with pytest.raises(UserError, match=re.escape(words)):
        engines.OPENERS['openvino'](str(copy), 'int8')      # exchanged after the folder's check


@pytest.mark.parametrize('name', ['model.xml', 'model.bin', 'formats.json', 'model.onnx'])
def test_files_that_changed_are_noticed(exported, tmp_path, name):
    copy = shutil.copytree(exported['vit'], tmp_path / 'copy')
    with open(copy / name, 'r+b') as file:
        file.seek(20)
        file.write(b' ')
    with pytest.raises(UserError, match=f'{name} cannot be used: it is not the file|is damaged'):
        engines.load_engine(str(copy), 'openvino')


@pytest.mark.parametrize('text', ['', '[]', '{"precision": "int4"}', '{"other": 1}',
                                  '{"precision": ["int8"]}', '{"openvino_cost": "a\\nb"}'])
def test_damaged_formats(tmp_path, text):
    write_formats(Formats('int8'), str(tmp_path))
    assert read_formats(str(tmp_path)).precision == 'int8'
    (tmp_path / 'formats.json').write_text(text)
    with pytest.raises(UserError, match=r'formats\.json is damaged'):
        read_formats(str(tmp_path))
