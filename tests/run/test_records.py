"""What checkpoints record is compared with what the next run finds: classes, options, data."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.checkpoints.content import read_checkpoint
from common.run.launch import run_single
from T2T_ViT.project import PROJECT as T2T
from tests.support.colours import COLOURS, FRUIT, MODEL, list_arguments, make_colours
from tests.support.paths import find_run
from tests.support.trained_digits import fixture_path
from ViT.project import PROJECT

SWAPPED = {'zebra': 'red', 'banana': 'yellow', 'cherry': 'blue'}        # apple, at the other end


def run(data, folder, *flags, project=PROJECT, **options):
    """Return (exit code, path of the newest run folder or None)."""
    before = set(Path(folder).glob('*-*'))
    code = run_single(project, ['-device=cpu', f'-data_path={data}', f'-output={folder}', *flags,
                                *list_arguments(**options)])
    made = sorted(set(Path(folder).glob('*-*')) - before)
    return code, made[0] if made else None


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return (data, run folder) of a run that is right on every picture."""
    root = tmp_path_factory.mktemp('trained')
    data = make_colours(root / 'data', each=8)
    code, folder = run(data, root / 'runs', TRAIN__NUM_EPOCHS=6)
    assert code == 0
    assert read_metrics(folder)[-1]['acc1'] == 100.0
    return data, folder


def read_metrics(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def evaluate(source, data, tmp_path, capsys, *flags, **options):
    """Return (exit code, acc1 or None, what was printed)."""
    capsys.readouterr()
    code, folder = run(data, tmp_path / 'evals', '-eval', f'-pretrained={source}', *flags,
                       **options)
    out, err = capsys.readouterr()
    acc1 = read_metrics(folder)[-1]['acc1'] if code == 0 else None
    return code, acc1, out + err


# Classes

def test_the_same_classes_in_another_order_are_matched(trained, tmp_path, capsys):
    _, folder = trained
    # The labels file gives the folders' names another order.
    data = make_colours(tmp_path / 'data', each=4)
    (tmp_path / 'labels.txt').write_text('cherry\napple\nbanana\n')
    code, acc1, text = evaluate(folder / 'best', data, tmp_path, capsys,
                                DATA__LABELS=tmp_path / 'labels.txt')
    assert (code, acc1) == (0, 100.0) and 'in another order: matched by name' in text


@pytest.mark.parametrize('names', [('apple', 'cherry'), ('banana', 'cherry'), ('cherry',)])
def test_a_subset_is_evaluated_as_that_subset(trained, tmp_path, capsys, names):
    _, folder = trained
    data = make_colours(tmp_path / 'data', {name: FRUIT[name] for name in names}, ('val',))
    code, acc1, text = evaluate(folder / 'best', data, tmp_path, capsys)
    assert (code, acc1) == (0, 100.0)
    assert f'has {len(names)} of the 3 classes of {folder}/best.pdparams, matched by name' in text
    rows = (find_run(tmp_path / 'evals') / 'per_class.csv').read_text().splitlines()
    assert [row.split(',')[1] for row in rows[1:]] == ['apple', 'banana', 'cherry']


@pytest.mark.parametrize(('classes', 'parts'), [
    (SWAPPED, ['only in the data: zebra', 'only in the checkpoint: apple']),
    ({'apple': 'red', 'mango': 'yellow'}, ['only in the data: mango',
                                           'only in the checkpoint: banana, cherry'])])
def test_other_classes_are_not_evaluated(trained, tmp_path, capsys, classes, parts):
    _, folder = trained
    data = make_colours(tmp_path / 'data', classes, ('val',))
    code, _, text = evaluate(folder / 'best', data, tmp_path, capsys)
    assert code == 2 and all(part in text for part in parts) and str(folder) in text
    assert data in text and 'Traceback' not in text


@pytest.mark.parametrize('resume', ['auto', 'folder'])
def test_a_run_is_not_continued_with_other_classes(trained, tmp_path, capsys, resume):
    runs = tmp_path / 'runs'
    shutil.copytree(trained[1], runs / trained[1].name)
    data = make_colours(tmp_path / 'data', SWAPPED, each=8)
    resume = resume if resume == 'auto' else runs / trained[1].name
    code, _ = run(data, runs, f'-resume={resume}', TRAIN__NUM_EPOCHS=7)
    text = capsys.readouterr().err
    assert code == 2 and 'only in the data: zebra; only in the checkpoint: apple' in text
    less = make_colours(tmp_path / 'less', {'apple': 'red', 'banana': 'yellow'}, each=8)
    code, _ = run(less, runs, f'-resume={resume}', TRAIN__NUM_EPOCHS=7)
    assert code == 2 and 'only in the checkpoint: cherry' in capsys.readouterr().err


def test_a_run_is_continued_with_the_classes_in_another_order(trained, tmp_path):
    runs = tmp_path / 'runs'
    shutil.copytree(trained[1], runs / trained[1].name)
    (tmp_path / 'labels.txt').write_text('cherry\napple\nbanana\n')
    code, _ = run(trained[0], runs, '-resume=auto', TRAIN__NUM_EPOCHS=7,
                  DATA__LABELS=tmp_path / 'labels.txt')
    assert code == 0
    folder = runs / trained[1].name
    assert read_metrics(folder)[-1]['acc1'] == 100.0
    assert read_checkpoint(str(folder / 'last.pdparams'))['class_names'] == [*FRUIT]


def test_training_from_weights_of_the_same_classes_keeps_the_head(trained, tmp_path, capsys):
    (tmp_path / 'labels.txt').write_text('cherry\napple\nbanana\n')
    code, folder = run(trained[0], tmp_path, f'-pretrained={trained[1]}/best', TRAIN__BASE_LR=0.0,
                       TRAIN__NUM_EPOCHS=1, DATA__LABELS=tmp_path / 'labels.txt')
    assert code == 0 and read_metrics(folder)[-1]['acc1'] == 100.0
    assert 'matched by name' in capsys.readouterr().out


def test_training_from_weights_of_other_classes_makes_the_head_anew(trained, tmp_path, capsys):
    data = make_colours(tmp_path / 'data', SWAPPED, each=8)
    code, folder = run(data, tmp_path / 'runs', f'-pretrained={trained[1]}/best',
                       TRAIN__BASE_LR=0.0, TRAIN__NUM_EPOCHS=1)
    assert code == 0
    text = capsys.readouterr().out
    assert ('Replaced classifier.weight: other classes (only in the data: zebra; only in the '
            'checkpoint: apple); initialised by zero.') in text
    head = read_checkpoint(str(folder / 'last.pdparams'))['model']['classifier.weight']
    assert not head.any()


def test_the_head_and_the_classes_of_the_data_are_compared(trained, tmp_path, capsys):
    code, folder = run(trained[0], tmp_path, MODEL__NUM_CLASSES=10)
    assert (code, folder) == (2, None)
    assert 'fewer than the model has, 10. Use -num_classes=3.' in capsys.readouterr().err


def test_an_imagenet_subset_is_evaluated_by_its_wordnet_ids(tmp_path, capsys):
    # A model of 1000 classes that records no names, right for these colours and labels.
    wanted = {'n01443537': ('red', 1), 'n15075141': ('blue', 999)}
    paddle.seed(0)
    options = {**MODEL, 'MODEL.NUM_CLASSES': 1000, 'DATA.IMAGE_SIZE': 32}
    model = PROJECT.build_model(PROJECT.get_config(flags=options))
    model.eval()
    bias = np.full(1000, -9, 'float32')
    bias[[1, 999]] = 0
    features = []
    for colour, _ in wanted.values():
        pixels = np.broadcast_to(np.array(COLOURS[colour]) / 127.5 - 1, (32, 32, 3))
        image = paddle.to_tensor(pixels.transpose(2, 0, 1)[None].astype('float32'))
        features.append(model.forward_features(image)[0, 0].numpy())
    weight = np.zeros((32, 1000), 'float32')
    difference = features[0] - features[1]
    middle = (features[0] + features[1]) / 2
    weight[:, 1], weight[:, 999] = difference, -difference
    bias[1] -= difference @ middle
    bias[999] += difference @ middle
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    state |= {'classifier.weight': weight, 'classifier.bias': bias}
    path = str(tmp_path / 'weights.pdparams')
    paddle.save(state, path)
    data = make_colours(tmp_path / 'data', {name: colour for name, (colour, _) in wanted.items()},
                        ('val',))
    code, acc1, text = evaluate(path, data, tmp_path, capsys, MODEL__NUM_CLASSES=1000)
    assert (code, acc1) == (0, 100.0), text
    assert 'has 2 of the 1000 classes' in text


def test_weights_without_names_and_another_number_of_classes(trained, tmp_path, capsys):
    paddle.save(read_checkpoint(str(trained[1] / 'best.pdparams'))['model'],
                str(tmp_path / 'bare.pdparams'))
    data = make_colours(tmp_path / 'data', {'apple': 'red', 'banana': 'yellow'}, ('val',))
    code, acc1, text = evaluate(tmp_path / 'bare', data, tmp_path, capsys)
    assert (code, acc1) == (0, 100.0)
    assert 'does not say the names of its 3 classes, and the data has 2' in text


# Options

@pytest.mark.parametrize(('key', 'value', 'said'), [
    ('MODEL.NUM_HEADS', 4, 'MODEL.NUM_HEADS 2'),
    ('MODEL.POOL', 'avg', "MODEL.POOL"),
    ('DATA.IMAGENET_MEAN', '[0.1,0.1,0.1]', 'DATA.IMAGENET_MEAN [0.5, 0.5, 0.5]')])
@pytest.mark.parametrize('way', ['-eval', '-pretrained', '-resume'])
def test_an_option_that_contradicts_the_record(trained, tmp_path, capsys, key, value, said, way):
    folder = trained[1]
    flags = {'-eval': ['-eval', f'-pretrained={folder}/best'],
             '-pretrained': [f'-pretrained={folder}/best'], '-resume': [f'-resume={folder}']}[way]
    code, _ = run(trained[0], tmp_path, *flags, TRAIN__NUM_EPOCHS=7, **{key: value})
    text = ''.join(capsys.readouterr())
    assert said in text and 'Traceback' not in text
    if key.startswith('DATA') and way != '-resume':
        assert code == 0                            # the user's own colours, which are said
        assert re.search(r'IMAGENET_MEAN \[0.5, 0.5, 0.5\]; it is \[0.1, 0.1, 0.1\], as set', text)
    else:
        assert code == 2


def test_an_old_checkpoint_says_its_heads_in_its_config(tmp_path, capsys):
    fixture = fixture_path('vit')
    options = {'DATA.IMAGE_SIZE': 16, 'MODEL.PATCH_SIZE': 2, 'MODEL.EMBED_DIM': 36,
               'MODEL.DEPTH': 3, 'MODEL.MLP_RATIO': 2.0, 'DATA.DATASET': 'digits'}
    for heads, code in ((3, 0), (6, 2)):
        values = {**options, 'MODEL.NUM_HEADS': heads}
        assert run_single(PROJECT, [
            '-device=cpu', f'-output={tmp_path}', '-eval', f'-pretrained={fixture}', '-opts',
            *(str(item) for pair in values.items() for item in pair),
            'MODEL.NUM_CLASSES', '10']) == code
    assert 'trained with 3 attention heads, and the model has 6' in capsys.readouterr().err


def test_the_scale_of_queries_and_keys_is_compared(tmp_path, capsys):
    data = make_colours(tmp_path / 'data')
    options = {'MODEL.EMBED_DIM': 16, 'MODEL.DEPTH': 1, 'MODEL.NUM_HEADS': 2,
               'MODEL.TOKEN_DIM': 8, 'MODEL.NUM_CLASSES': 3, 'DATA.DATASET': 'imagefolder',
               'DATA.IMAGE_SIZE': 32, 'DATA.BATCH_SIZE': 4, 'DATA.NUM_WORKERS': 0,
               'TRAIN.NUM_EPOCHS': 1}
    arguments = ['-device=cpu', f'-data_path={data}', f'-output={tmp_path}']
    opts = ['-opts', *(str(item) for pair in options.items() for item in pair)]
    assert run_single(T2T, [*arguments, *opts]) == 0
    best = next(tmp_path.glob('train-*')) / 'best'
    capsys.readouterr()
    for flags in (['-eval', f'-pretrained={best}'], [f'-pretrained={best}'],
                  [f'-resume={best.parent}']):
        assert run_single(T2T, [*arguments, *flags, *opts, 'MODEL.QK_SCALE', '0.9']) == 2
        assert 'MODEL.QK_SCALE None; ' in capsys.readouterr().err


# Data

@pytest.mark.parametrize('change', ['added', 'exchanged', 'changed', 'none'])
def test_other_data_is_noticed_by_a_run_that_goes_on(trained, tmp_path, capsys, change):
    runs = tmp_path / 'runs'
    shutil.copytree(trained[1], runs / trained[1].name)
    shutil.copytree(trained[0], tmp_path / 'data')
    picture = tmp_path / 'data/train/apple/0.png'
    if change == 'added':
        shutil.copy(picture, picture.with_name('more.png'))
    elif change == 'exchanged':
        os.rename(picture, picture.with_name('other.png'))
    elif change == 'changed':
        picture.write_bytes(picture.read_bytes() + b'0')
    code, _ = run(tmp_path / 'data', runs, '-resume=auto', TRAIN__NUM_EPOCHS=7)
    text = capsys.readouterr().out
    assert code == 0
    said = {'added': '24 images then, 25 now', 'exchanged': 'files or labels have been exchanged',
            'changed': 'files have been changed'}
    assert ('The training data is not that of the run' in text) == (change != 'none')
    assert change == 'none' or said[change] in text
    assert 'The validation data is not' not in text


# Labels files

def test_a_labels_file_may_be_gone_once_the_checkpoint_has_the_names(tmp_path, capsys, monkeypatch):
    from common.deploy import predict
    data = make_colours(tmp_path / 'data')
    labels = tmp_path / 'labels.txt'
    labels.write_text('a red one\na yellow one\na blue one\n')
    code, folder = run(data, tmp_path / 'runs', DATA__LABELS=labels)
    assert code == 0
    labels.unlink()
    capsys.readouterr()
    picture = f'{data}/val/cherry/0.png'
    for flags in ([], [f'-cfg={folder}/config.yaml']):
        assert predict.main(PROJECT, [picture, f'-pretrained={folder}/best', '-topk=1',
                                      '-device=cpu', *flags]) == 0
        assert 'a blue one' in capsys.readouterr().out
