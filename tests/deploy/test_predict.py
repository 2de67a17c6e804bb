"""predict.py: the same input as evaluation, every kind of argument and output, bad pictures."""

import csv
import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.data.images import read_image
from common.data.normalize import Preprocess
from common.data.pixels import to_array
from common.data.preprocessing import Preprocessing, read_preprocessing
from common.deploy import predict
from common.deploy.drawing import draw_labels, write_line
from common.deploy.pictures import OutputNames, Picture, find_pictures
from common.deploy.preprocessing import load_preprocessing, write_preprocessing
from common.deploy.ranking import rank_classes
from common.errors import RunError, UserError
from tests.support.paths import FIXTURES, ROOT
from tests.support.sources import list_files, write_tar, write_zip
from tests.support.trained_digits import fixture_path, load_fixture
from ViT.config import get_config
from ViT.datasets import get_val_transforms

PREPROCESS_FIXTURES = os.path.join(FIXTURES, 'preprocess')


@pytest.fixture
def folder(tmp_path):
    """A folder of eight digits, one of them in a folder below; returns (folder, labels)."""
    images, labels = load_digits_rgb()
    os.makedirs(tmp_path / 'pictures' / 'more')
    for i in range(8):
        name = f'{i}.png' if i < 7 else os.path.join('more', '七.png')
        Image.fromarray(images[i]).save(tmp_path / 'pictures' / name)
    return tmp_path / 'pictures', labels[:8].tolist()


def run(*arguments, name='vit', weights=True):
    """Run predict.py's main; arguments as on the command line. Returns the exit code."""
    if weights:
        arguments = (*arguments, f'-pretrained={fixture_path(name)}')
    return predict.main(load_fixture(name)[0], [str(argument) for argument in arguments])


def test_input_is_evaluations_bit_for_bit():
    for opts in ([], ['DATA.CROP_PCT', '0.9', 'DATA.INTERPOLATION', 'bilinear'],
                 ['DATA.IMAGENET_MEAN', '[0.485, 0.456, 0.406]']):
        config = get_config(flags={'DATA.IMAGE_SIZE': 96}, opts=opts)
        names = sorted(name for name in os.listdir(PREPROCESS_FIXTURES)
                       if name.startswith(('landscape', 'portrait', 'rgba')))
        assert len(names) >= 2
        images = [read_image(os.path.join(PREPROCESS_FIXTURES, name)) for name in names]
        transform = get_val_transforms(config)
        arrays = np.stack([to_array(transform(image, None)) for image in images])
        expected = Preprocess(config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD)(arrays).numpy()
        preprocessing = read_preprocessing(config)
        actual = preprocessing.normalize([preprocessing.crop(image) for image in images])
        np.testing.assert_array_equal(actual, expected)


def test_preprocessing_file_keeps_every_value(tmp_path):
    config = get_config(opts=['DATA.IMAGENET_MEAN', '[0.485, 0.4560000001, 0.406]',
                              'DATA.CROP_PCT', '0.9'])
    names = ['猫', 'dog', 'caf\udce9', ' a\x1b[31m', 'line\nend', '\u2028', '"q"', '\ud800']
    preprocessing = read_preprocessing(config, names)
    write_preprocessing(preprocessing, tmp_path)
    assert load_preprocessing(tmp_path) == preprocessing
    assert preprocessing.name_class(0) == '猫'
    json.loads((tmp_path / 'preprocessing.json').read_bytes().decode('utf-8', 'strict'))
    assert '"猫"' in (tmp_path / 'preprocessing.json').read_text(encoding='utf-8')


@pytest.mark.parametrize('change, message', [
    ({'interpolation': 'cubic'}, 'unknown interpolation'), ({'std': [0, 1, 1]}, 'above 0'),
    ({'image_size': 0}, 'image_size'), ({'crop_pct': 'x'}, 'crop_pct'), ({'mean': [1]}, 'mean'),
    ({'class_names': 'abc'}, 'class_names'), ({'colour': 1}, 'expected the keys')])
def test_damaged_preprocessing_file_is_named(tmp_path, change, message):
    values = {'image_size': 32, 'crop_pct': 1.0, 'interpolation': 'bicubic', 'mean': [0.5] * 3,
              'std': [0.5] * 3, 'class_names': None, **change}
    (tmp_path / 'preprocessing.json').write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_preprocessing(tmp_path)


def test_ranking_against_a_softmax():
    logits = np.array([[1.0, 3.0, 2.0, 3.0]], np.float32)
    shares = np.exp(logits[0].astype(float)) / np.exp(logits[0].astype(float)).sum()
    ranked = rank_classes(logits, 3)[0]
    assert [index for index, _ in ranked] == [1, 3, 2]      # the lower of two equal ones first
    np.testing.assert_allclose([share for _, share in ranked], shares[[1, 3, 2]], rtol=1e-12)
    assert len(rank_classes(logits, 9)[0]) == 4
    assert rank_classes(np.array([[1000., 0.]]), 1)[0] == [(0, 1.0)]
    with pytest.raises(RunError, match='not finite'):
        rank_classes(np.array([[np.nan, 0.]]), 1)


@pytest.mark.parametrize('name', ['vit', 't2t'])
def test_predictions_are_right_and_in_order(folder, capsys, name):
    path, labels = folder
    assert run(path, '-format=jsonl', '-topk=3', '-batch_size=3', name=name) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [os.path.basename(row['image']) for row in rows] == \
        [f'{i}.png' for i in range(7)] + ['七.png']
    hits = [row['predictions'][0]['class'] == label for row, label in zip(rows, labels)]
    assert sum(hits) >= 6
    assert all(len(row['predictions']) == 3 for row in rows)
    trained = load_fixture(name)[1]
    crop = trained.preprocessing.crop(read_image(rows[4]['image']))
    logits = predict.make_dynamic_predictor(trained.model)(trained.preprocessing.normalize([crop]))
    expected = rank_classes(logits, 3)[0]
    for found, (index, share) in zip(rows[4]['predictions'], expected):
        assert found['class'] == index and abs(found['probability'] - share) < 2e-6


def test_as_many_pictures_at_once_as_are_fastest(monkeypatch):
    sizes = []
    costs = {1: 1.0, 4: 2.0, 16: 20.0}          # seconds a batch: 1, 2 and 0.8 pictures a second
    times = [0.0]

    def run(images):
        sizes.append(len(images))
        times[0] += costs[len(images)]
        return np.zeros((len(images), 3), 'float32')

    monkeypatch.setattr(predict.time, 'perf_counter', lambda: times[0])
    assert predict.choose_batch_size(run, 8, predict.MANY) == 4
    assert sizes == [1, 1, 4, 4, 16, 16]
    assert predict.choose_batch_size(run, 8, None) == 4         # from the standard input
    sizes.clear()
    assert [predict.choose_batch_size(run, 8, total) for total in (0, 1, 7, 99)] == [1, 1, 7, 16]
    assert sizes == []


def test_the_speed_is_told(folder, capsys):
    assert run(folder[0], '-format=csv') == 0
    assert '8 pictures in ' in capsys.readouterr().err
    assert run(folder[0] / '0.png') == 0
    assert 'a second' not in capsys.readouterr().err


def test_table_and_csv(folder, capsys, tmp_path):
    path, labels = folder
    (tmp_path / 'labels.txt').write_text('\n'.join(f'digit, {i}' for i in range(10)) + '\n')
    labels_flag = f'-labels={tmp_path / "labels.txt"}'
    assert run(path / '0.png', labels_flag) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ['rank', 'probability', 'class', 'picture'] and len(lines) == 6
    assert 'digit, 0' in lines[1] and lines[1].endswith('0.png')
    assert run(path / '0.png', labels_flag, '-format', 'csv', '--topk', 2,
               f'-output={tmp_path / "out.csv"}') == 0
    with open(tmp_path / 'out.csv', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [row['rank'] for row in rows] == ['1', '2']
    assert rows[0]['name'] == 'digit, 0' and rows[0]['class'] == '0'
    assert float(rows[0]['probability']) > float(rows[1]['probability']) > 0


def test_bad_pictures_are_named_and_the_rest_are_done(folder, capsys):
    path, _ = folder
    (path / '2.png').write_bytes(b'not a picture')
    (path / '4.png').write_bytes((path / '5.png').read_bytes()[:60])
    assert run(path, '-format=jsonl', '-batch_size=2') == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert len(rows) == 8 and [i for i, row in enumerate(rows) if 'error' in row] == [2, 4]
    assert '2.png: not an image' in captured.err and '4.png: ' in captured.err
    assert '2 of 8 pictures could not be read' in captured.err
    for kind in ('table', 'csv'):
        assert run(path, f'-format={kind}') == 1
    assert run(path / '2.png') == 1


def test_a_picture_too_thin_to_resize_is_named(tmp_path, capsys):
    Image.new('L', (1, 60000)).save(tmp_path / 'thin.png')
    preprocessing = Preprocessing(512, 0.5, 'bicubic', [0.5] * 3, [0.5] * 3)
    reading, = predict.read_ahead([Picture(str(tmp_path / 'thin.png'), 'thin.png')],
                                  preprocessing, 1)
    assert reading.error.startswith(f'{tmp_path / "thin.png"}: ') and 'too many' in reading.error


def test_save_dir_writes_each_picture_with_its_labels(folder, tmp_path):
    path, _ = folder
    Image.new('RGB', (300, 200), (10, 200, 10)).save(path / 'more' / 'wide.jpg')
    assert run(path, f'-save_dir={tmp_path / "out"}') == 0
    written = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*'))
    assert written == [*(f'{i}.png.jpg' for i in range(7)), 'more/wide.jpg', 'more/七.png.jpg']
    with Image.open(tmp_path / 'out' / 'more' / 'wide.jpg') as image:
        assert image.width == 300 and image.height > 200
        pixels = np.asarray(image).astype(int)
        assert abs(pixels[100, 150] - [10, 200, 10]).max() < 12
        assert pixels[200:].min() < 90          # ink


def test_labels_are_cut_to_the_picture():
    image = Image.new('RGB', (200, 50), 'white')
    labelled = np.asarray(draw_labels(image, ['a very long name of a class ' * 5]))
    assert labelled.shape[1] == 200 and (labelled[:, -3:] == 255).all()
    from PIL import ImageDraw
    write_line(ImageDraw.Draw(image), (0, 0), '猫é\n', 12, 100)     # no font may have it


def test_arguments_that_name_pictures(folder):
    path, _ = folder
    names = [picture.name for picture in find_pictures([str(path)], ())]
    assert names == [f'{i}.png' for i in range(7)] + [os.path.join('more', '七.png')]
    assert len(list(find_pictures([str(path / '**' / '*.png')], ()))) == 8
    assert [p.name for p in find_pictures([str(path / '[12].png'), '-'], [
        'a/b.jpg\n', '\n', ' c.png\r\n'])] == ['1.png', '2.png', 'b.jpg', ' c.png']
    with pytest.raises(UserError, match='no file matches'):
        list(find_pictures([str(path / '*.webp')], ()))
    os.makedirs(path / 'empty')
    with pytest.raises(UserError, match='no pictures'):
        list(find_pictures([str(path / 'empty')], ()))


@pytest.mark.parametrize('kind', ['zip', 'tar'])
def test_pictures_in_an_archive_are_those_of_the_folder(folder, tmp_path, capsys, kind):
    root, _ = folder
    path = (write_zip if kind == 'zip' else write_tar)(root, tmp_path / f'x.{kind}')
    assert run(root) == 0
    expected = capsys.readouterr().out
    assert run(path, f'-save_dir={tmp_path}/saved') == 0
    assert capsys.readouterr().out.replace(f'{path}: ', f'{root}/') == expected
    assert len(list_files(tmp_path / 'saved')) == 8
    empty = write_zip(root, tmp_path / 'empty.zip', names=[])
    assert run(empty) == 2 and 'no pictures in this archive' in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['folder', 'zip', 'tar'])
def test_what_is_left_out_for_its_ending_is_counted_and_said(folder, tmp_path, capsys, kind):
    root, _ = folder
    (root / 'more' / 'notes.txt').write_text('x')
    (root / 'film.mp4').write_bytes(b'x')
    path = {'folder': lambda: root, 'zip': lambda: write_zip(root, tmp_path / 'x.zip'),
            'tar': lambda: write_tar(root, tmp_path / 'x.tar')}[kind]()
    assert run(path) == 0
    printed = capsys.readouterr()
    assert printed.err.count('2 files have no ending of a picture and are left out (') == 1
    assert '.mp4 1' in printed.err and '.txt 1' in printed.err and 'notes' not in printed.out


def test_output_names_never_meet_or_leave_the_folder(tmp_path):
    names = OutputNames(str(tmp_path))
    assert [os.path.relpath(names.make(name, '.jpg'), tmp_path) for name in (
        'a', 'a', 'b/a', '../a', '/etc/a')] == ['a.jpg', 'a-2.jpg', 'b/a.jpg', 'a-3.jpg',
                                                'etc/a.jpg']


@pytest.mark.parametrize('arguments, message', [
    (['-topk=0'], '-topk must be 1 or more'), (['-format=xml'], 'xml'),
    (['-save_dirs=x'], 'Did you mean save_dir?'), (['-engine=plain'], 'exported model'),
    (['-num_classes=7'], '10 class names, the model 7'), (['-opts', 'DATA.CROP', '1'], 'DATA.CROP'),
    (['-labels=nowhere.txt'], 'nowhere.txt'), (['-cfg=nowhere.yaml'], 'nowhere.yaml')])
def test_wrong_input_ends_with_code_2(folder, capsys, arguments, message):
    assert run(folder[0] / '0.png', *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_weights_and_pictures_end_with_code_2(folder, capsys):
    assert run(folder[0] / '0.png', weights=False) == 2
    assert '-pretrained=FILE' in capsys.readouterr().err
    assert run(folder[0] / '*.gif') == 2
    assert run(folder[0] / '0.png', f'-model={folder[0]}', weights=False) == 2
    assert 'preprocessing.json' in capsys.readouterr().err
    assert run(folder[0] / '0.png', f'-model={folder[0]}') == 2
    assert '-pretrained does not go with -model' in capsys.readouterr().err


def test_checkpoints_preprocessing_comes_before_the_configs(tmp_path, folder, capsys):
    config = tmp_path / 'c.yaml'
    config.write_text(load_fixture('vit')[1].config.dump().replace('CROP_PCT: 1.0',
                                                                  'CROP_PCT: 0.5'))
    outputs = []
    for arguments in ([], [f'-cfg={config}'], [f'-cfg={config}', '-opts', 'DATA.CROP_PCT', '0.5']):
        assert run(folder[0] / '0.png', '-format=csv', *arguments) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_reading_ahead_is_bounded():
    asked, lock = [], threading.Lock()
    preprocessing = Preprocessing(8, 1.0, 'bicubic', [0.5] * 3, [0.5] * 3)

    def pictures():
        for i in range(1000):
            with lock:
                asked.append(i)
            yield Picture(f'{i}.png', f'{i}.png')

    readings = predict.read_ahead(pictures(), preprocessing, batch_size=4)
    for _ in range(10):
        next(readings)
    assert len(asked) <= 10 + 2 * 4 + 1
    assert len(list(readings)) == 990


@pytest.mark.runs
def test_script_from_its_folder_with_a_pipe_that_closes(folder):
    paths = ''.join(f'{folder[0]}/{i % 7}.png\n' for i in range(400))
    command = f'{sys.executable} predict.py - -format=jsonl -batch_size=8 ' \
              f'-pretrained={fixture_path("vit")} | head -n 1'
    ended = subprocess.run(['bash', '-c', command], input=paths, capture_output=True, text=True,
                           cwd=os.path.join(ROOT, 'ViT'))
    assert len(ended.stdout.splitlines()) == 1 and json.loads(ended.stdout)
    assert 'Traceback' not in ended.stderr and 'error' not in ended.stderr.lower(), ended.stderr


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        run('-h', weights=False)
    assert stop.value.code == 0
    assert 'examples:' in capsys.readouterr().out


def test_output_can_be_written_in_any_encoding(folder, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', stream)
    assert run(folder[0] / 'more' / '七.png', '-format=jsonl') == 0
    assert b'\\u4e03' in stream.buffer.getvalue()


@pytest.mark.slow
def test_memory_does_not_grow_with_10000_pictures(tmp_path):
    """Peak memory of 10,000 pictures is that of 500, and the broken one is named."""
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'one.jpg')
    peaks = []
    for count in (500, 10_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for i in range(count):
            os.link(tmp_path / 'one.jpg', folder / f'{i:05}.jpg')
        os.unlink(folder / '00123.jpg')
        (folder / '00123.jpg').write_bytes((tmp_path / 'one.jpg').read_bytes()[:2000])
        code = (f"import resource, sys; sys.path.insert(0, {str(ROOT)!r})\n"
                f"from ViT.project import PROJECT\n"
                f"from common.deploy.predict import main\n"
                f"code = main(PROJECT, ['{folder}', '-pretrained={fixture_path('vit')}', "
                f"'-format=csv', '-topk=1', '-output={tmp_path}/out.csv'])\n"
                f"print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
        ended = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        exit_code, peak = map(int, ended.stdout.split())
        assert exit_code == 1 and '00123.jpg: damaged image' in ended.stderr
        assert len((tmp_path / 'out.csv').read_text().splitlines()) == count
        peaks.append(peak)
    assert peaks[1] < 1.1 * peaks[0] + 10_000       # KiB
