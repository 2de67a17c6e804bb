"""An exported folder explains itself: infer.py, the answer of its sample, the model card."""

import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from common.data.classes import read_class_names
from common.deploy import card, export, predict
from common.deploy import engine as engines
from common.deploy.predict import make_dynamic_predictor
from common.deploy.preprocessing import write_preprocessing
from common.deploy.trained import Trained
from common.errors import UserError
from tests.support.data_folders import make_image, write_turned
from tests.support.trained_digits import fixture_path, load_fixture

HAS_ONNX = all(map(engines.is_installed, ('paddle2onnx', 'onnxruntime')))
PRESENT = ['paddle', *(['onnx'] if HAS_ONNX else []),
           *(['openvino'] if HAS_ONNX and engines.is_installed('openvino') else [])]
FORMATS = [pytest.param(form, marks=pytest.mark.skipif(
    form not in PRESENT, reason='its packages are not installed (requirements-extra.txt)'))
    for form in ('paddle', 'onnx', 'openvino')]
ENGINES = {'paddle': 'plain', 'onnx': 'onnxruntime', 'openvino': 'openvino'}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """{format: an exported folder with that format alone}, whose pictures are turned upright."""
    root = tmp_path_factory.mktemp('exported')
    for form in PRESENT:
        assert export.main(load_fixture('vit')[0], [
            f'-pretrained={fixture_path("vit")}', f'-formats={form}', f'-output={root / form}',
            '-opts', 'DATA.EXIF_ORIENTATION', 'True', 'DATA.CROP_PCT', '0.8']) == 0
    return root


def infer(folder, *pictures):
    """Run infer.py as a stranger would; return {picture: [(name, per cent)]}."""
    ended = subprocess.run([sys.executable, '-I', 'infer.py', *map(str, pictures)], cwd=folder,
                           capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    answers, path = {}, None
    for line in ended.stdout.splitlines():
        if line.startswith(' '):
            share, name = line.split()
            answers[path].append((name, float(share.rstrip('%'))))
        else:
            path = line
            answers[path] = []
    return answers


@pytest.mark.runs
@pytest.mark.parametrize('form', FORMATS)
def test_infer_needs_the_engine_alone_and_agrees_with_predict(folders, form, tmp_path, capsys):
    folder = shutil.copytree(folders / form, tmp_path / 'moved')
    pictures = {'portrait.jpg': (30, 47), 'landscape.png': (61, 33)}
    for name, size in pictures.items():
        make_image(str(tmp_path / name), size, seed=5)
    write_turned(Image.open(tmp_path / 'portrait.jpg'), tmp_path / 'portrait.jpg', 6)
    paths = [str(tmp_path / name) for name in pictures]
    found = infer(folder, *paths)
    found['sample.png'], = infer(folder).values()       # where no picture is named
    assert predict.main(load_fixture('vit')[0], [
        *paths, f'-model={folder}', '-format=jsonl',
        f'-engine={ENGINES[form]}']) == 0
    expected = {row['image']: row['predictions']
                for row in map(json.loads, capsys.readouterr().out.splitlines())}
    with open(folder / 'sample.json', encoding='utf-8') as file:
        answer = json.load(file)
    assert answer['predictions'][0]['probability'] > 0.9
    for path, rows in [*expected.items(), (answer['picture'], answer['predictions'])]:
        assert len(found[path]) == len(rows) == 5
        for (name, share), row in zip(found[path], rows):
            assert name == row['name'] and share == pytest.approx(
                100 * row['probability'], abs=0.051), path


def give_falling(images):
    """Return logits [1, 10], the first class the most likely."""
    return np.array([[9., 8, 7, 6, 5, 0, 0, 0, 0, 0]])


def test_infer_reads_folders_and_goes_on_after_what_it_cannot_read(tmp_path, capsys):
    card.write_script(str(tmp_path), ['paddle'])
    write_preprocessing(make_trained().preprocessing, str(tmp_path))
    main = runpy.run_path(str(tmp_path / 'infer.py'))['main']
    folder = tmp_path / 'pictures'
    for name in ('b.jpg', 'inner/a.PNG', '.hidden.png'):
        make_image(str(folder / name))
    (folder / 'notes.txt').write_text('no picture')
    (folder / 'cut.png').write_bytes((folder / 'inner' / 'a.PNG').read_bytes()[:60])
    os.mkdir(tmp_path / 'empty')

    def run(*names):
        code = main([str(folder / name) for name in names], lambda: give_falling)
        out, err = capsys.readouterr()
        return code, [line for line in out.splitlines() if line[:1] != ' '], err.splitlines()

    good = [str(folder / 'b.jpg'), str(folder / 'inner/a.PNG')]
    assert run('b.jpg', 'inner') == (0, good, [])
    code, answered, errors = run('none.jpg', 'notes.txt', '../empty', '')
    assert code == 1 and answered == good and len(errors) == 4
    for line, said in zip(errors, ('none.jpg: No such file', 'notes.txt: cannot identify',
                                   'empty: Is a directory', 'cut.png: ')):
        assert line.startswith('error: ') and said in line
    for flag, code in (('-h', 0), ('--help', 0), ('-k', 2)):
        assert main([flag, *good], None) == code
        streams = capsys.readouterr()
        assert 'python infer.py PICTURE_OR_FOLDER' in streams[code == 2] and not streams[code != 2]


def test_infer_without_its_engine_says_so(tmp_path):
    card.write_script(str(tmp_path), ['paddle'])
    write_preprocessing(make_trained().preprocessing, str(tmp_path))
    main = runpy.run_path(str(tmp_path / 'infer.py'))['main']

    def open_engine():
        import no_such_engine  # noqa: F401
    with pytest.raises(SystemExit, match='error: no_such_engine is not installed; README.md'):
        main(['a.jpg'], open_engine)


def test_infer_prints_names_of_strangers_as_text(tmp_path, capsys):
    names = ['red\x1b[31m', 'caf\udce9', 'line\nend', '猫', 'x\x9b2J', *'56789']
    trained = make_trained()
    trained = replace(trained, preprocessing=trained.preprocessing.replace_names(names))
    card.write_script(str(tmp_path), ['paddle'])
    write_preprocessing(trained.preprocessing, str(tmp_path))
    picture = tmp_path / 'p\x1b[2J\udce9.png'
    make_image(os.fspath(picture))
    space = runpy.run_path(str(tmp_path / 'infer.py'))
    assert space['main']([os.fspath(picture)], lambda: give_falling) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith('p\\x1b[2J\\udce9.png') and all(map(str.isprintable, lines))
    assert [line.split()[1] for line in lines[1:]] == [
        'red\\x1b[31m', 'caf\\udce9', 'line\\nend', '猫', 'x\\x9b2J']
    card.write_explanation(trained, str(tmp_path), make_dynamic_predictor(trained.model))
    assert read_class_names(tmp_path / 'labels.txt') == names
    json.loads((tmp_path / 'sample.json').read_bytes().decode('utf-8', 'strict'))


@pytest.mark.parametrize('formats, engine', [
    (['paddle'], 'paddle'), (['paddle', 'onnx'], 'onnxruntime'),
    (['onnx', 'openvino', 'paddle'], 'openvino')])
def test_infer_imports_its_engine_and_nothing_of_the_project(tmp_path, formats, engine):
    card.write_script(str(tmp_path), formats)
    source = (tmp_path / 'infer.py').read_text(encoding='utf-8')
    tree = ast.parse(source)
    # What Black and ruff would say of it, and that it is short enough to be read.
    assert '\n\n\n\n' not in source and source.count('\n\n\ndef ') == 5
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) < 75
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {name.split('.')[0] for name in names} - set(sys.stdlib_module_names)
    assert others == {'numpy', 'PIL', engine}


@pytest.mark.runs
def test_the_folder_holds_what_its_card_lists(folders):
    text = (folders / 'paddle' / 'README.md').read_text(encoding='utf-8')
    assert text.startswith('# vit\\_digits\n')
    for line in ('`python infer.py sample.png` needs paddlepaddle, NumPy and Pillow alone',
                 'data set: digits', '10: 0 0, 1 1,', 'They are turned as EXIF says.'):
        assert line in text, line
    with open(folders / 'paddle' / 'files.json', encoding='utf-8') as file:
        recorded = set(json.load(file)['sha256'])
    present = set(os.listdir(folders / 'paddle'))
    assert present == recorded | {'files.json'}
    assert {'README.md', 'infer.py', 'labels.txt', 'sample.png', 'sample.json'} <= present
    for name in present - {'README.md'}:
        assert f'| `{name}` |' in text, name
    assert (folders / 'paddle' / 'labels.txt').read_text().split() == list('0123456789')


def make_trained(**record):
    project, trained = load_fixture('vit')
    return Trained(trained.model, trained.config, trained.preprocessing,
                   {'config': 'x', **record}, 'best')


def test_the_card_says_what_the_checkpoint_records():
    record = {'data': {'training': {'images': 1347}, 'validation': {'images': 450}},
              'update': 2520, 'epoch': 120, 'best': {'value': 98.888, 'epoch': 90}}
    lines = card.list_origins(make_trained(**record))
    assert lines == [
        'data set: digits', 'training: 1,347 images', 'validation: 450 images',
        'trained for 2,520 updates, 120 epochs',
        'top-1 accuracy on the validation images: 98.89 % (the best of its run, epoch 90; these '
        'weights are of epoch 120)']
    record['best']['epoch'] = 120
    assert card.list_origins(make_trained(**record))[-1].endswith('98.89 % (epoch 120)')
    trained = make_trained()
    for text, expected in (('DATA: {DATA_PATH: /home/me/my_flowers/}', ', from a folder called '
                            'my\\_flowers'), ('DATA: {DATA_PATH: ""}', ''), (': :', '')):
        record = {'config': text}
        assert card.list_origins(replace(trained, record=record)) == [f'data set: digits{expected}']
    assert card.list_origins(replace(make_trained(), record={})) == [
        'not recorded: the weights are not a checkpoint of a run']


def test_names_of_strangers_are_text_in_the_card():
    names = ['<script>', 'a|b', '`x`', 'two\nlines', '猫', *(f'c{i}' for i in range(200))]
    text = card.describe_classes(names)
    assert text.startswith('205: 0 \\<script\\>, 1 a\\|b, 2 \\`x\\`, 3 two lines, 4 猫, 5 c0')
    assert text.endswith('and 105 more in `labels.txt`.')
    command = ['/x/export_model.py', '-pretrained=a b', '-opts', '`x`\n# y']
    page = card.format_card(make_trained(), {'onnx': 1e-6}, ['infer.py', 'model.onnx'], command)
    line = next(line for line in page.splitlines() if line.startswith('- by '))
    assert line == "- by `export_model.py '-pretrained=a b' -opts ''x' # y'`"
    assert '1.0e-06' in page and 'needs onnxruntime' in page


def test_a_drawing_is_the_sample_of_other_models(tmp_path):
    trained = make_trained()
    config = trained.config.clone()
    config.defrost()
    config.DATA.DATASET = 'imagefolder'
    image = card.make_sample(replace(trained, config=config))
    assert image.size == (96, 64) and len(image.getcolors(10 ** 6)) > 500
    given = Image.fromarray(np.full((20, 20, 3), 7, np.uint8))
    card.write_explanation(trained, str(tmp_path),
                           predict.make_dynamic_predictor(trained.model), given)
    assert np.asarray(Image.open(tmp_path / 'sample.png')).tolist() == np.asarray(given).tolist()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / 'README.md').write_text('mine')
    assert export.main(load_fixture('vit')[0], [
        f'-pretrained={fixture_path("vit")}', f'-output={tmp_path}']) == 2
    assert 'holds README.md and is no exported model' in capsys.readouterr().err
    (tmp_path / 'check.npz').touch()
    card.check_target(str(tmp_path))
    card.check_target(str(tmp_path / 'none'))
    with pytest.raises(UserError):
        os.remove(tmp_path / 'check.npz')
        card.check_target(str(tmp_path))
