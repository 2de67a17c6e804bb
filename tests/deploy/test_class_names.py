"""Which names predict.py shows for classes, by what weights record and by how many there are."""

import json

import numpy as np
import paddle
import pytest

from common.data.classes import (
    ASSETS,
    KNOWN_NAMES,
    read_imagenet_ids,
    read_imagenet_names,
    translate_ids,
)
from common.deploy import predict
from tests.support.data_folders import make_image
from ViT.project import PROJECT

CAT = 285


@pytest.fixture(scope='module')
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures') / 'cat.jpg'
    make_image(path)
    return str(path)


def write_weights(path, num_classes, best=CAT, **record):
    """Write a small ViT that takes every picture for one class."""
    sizes = {'MODEL.EMBED_DIM': 192, 'MODEL.DEPTH': 1, 'MODEL.NUM_HEADS': 3, 'DATA.IMAGE_SIZE': 32,
             'MODEL.NUM_CLASSES': num_classes}
    model = PROJECT.build_model(PROJECT.get_config(flags=sizes))
    bias = np.zeros(num_classes, 'float32')
    bias[best] = 50
    model.classifier.bias.set_value(bias)
    weights = model.state_dict()
    paddle.save({'model': weights, **record} if record else weights, str(path))
    return str(path)


def name_best(picture, *arguments, capsys):
    """Return the best class's name as predict.py writes it."""
    capsys.readouterr()
    assert predict.main(PROJECT, [picture, '-device=cpu', '-topk=1', '-format=jsonl',
                                  *arguments]) == 0
    return json.loads(capsys.readouterr().out)['predictions'][0]['name']


def test_weights_that_name_no_classes_are_imagenets_by_their_number(picture, tmp_path, capsys):
    for num_classes, best, name in ((1000, CAT, 'Egyptian cat'), (21_843, 0, 'organism'),
                                    (999, CAT, '285')):
        weights = write_weights(tmp_path / f'{num_classes}.pdparams', num_classes, best)
        assert name_best(picture, f'-pretrained={weights}', capsys=capsys) == name
    labels = tmp_path / 'labels.txt'
    labels.write_text(''.join(f'my class {number}\n' for number in range(1000)))
    assert name_best(picture, f'-pretrained={tmp_path}/1000', f'-labels={labels}',
                     capsys=capsys) == 'my class 285'


def test_recorded_ids_are_shown_in_english_and_other_names_as_they_are(picture, tmp_path, capsys):
    ids = ['n02123045', 'n02124075', 'n02123394']
    weights = write_weights(tmp_path / 'ids.pdparams', 3, 1, class_names=ids)
    assert name_best(picture, f'-pretrained={weights}', capsys=capsys) == 'Egyptian cat'
    weights = write_weights(tmp_path / 'own.pdparams', 3, 1, class_names=['a', 'n02124075', 'b'])
    assert name_best(picture, f'-pretrained={weights}', capsys=capsys) == 'n02124075'


def test_names_of_hugging_faces_config(picture, tmp_path, capsys):
    from tests.support.foreign_weights import WEIGHTS
    folder = tmp_path / 'model'
    folder.mkdir()
    with open(f'{WEIGHTS}/vit/hf_vit/config.json') as file:
        config = json.load(file)
    (folder / 'model.safetensors').symlink_to(f'{WEIGHTS}/vit/hf_vit/model.safetensors')
    arguments = [f'-pretrained={folder}']
    (folder / 'config.json').write_text(json.dumps(config))
    number = int(name_best(picture, *arguments, capsys=capsys))
    names = [f'thing {label}' for label in range(len(config.get('id2label', [])) or 10)]
    config['id2label'] = {str(label): name for label, name in enumerate(names)}
    (folder / 'config.json').write_text(json.dumps(config))
    assert name_best(picture, *arguments, capsys=capsys) == f'thing {number}'
    config['id2label'] = {'0': 'cat', '1': 'dog'}           # of another head
    (folder / 'config.json').write_text(json.dumps(config))
    assert name_best(picture, *arguments, capsys=capsys) == str(number)


def test_the_names_that_come_with_the_code():
    for number in KNOWN_NAMES:
        names = read_imagenet_names(number)
        assert len(names) == len(set(names)) == number and all(
            name == name.strip() != '' for name in names)
    names = read_imagenet_names(1000)
    known = {'n01440764': 'tench', 'n02124075': 'Egyptian cat', 'n15075141': 'toilet tissue',
             'n02012849': 'crane (animal)', 'n03126707': 'crane (artifact)'}
    assert {key: names[read_imagenet_ids().index(key)] for key in known} == known
    assert translate_ids(['n02124075', 'n01440764']) == ['Egyptian cat', 'tench']
    assert translate_ids(['n02124075', 'cat']) == ['n02124075', 'cat']
    assert read_imagenet_names(10) is None
    with open(f'{ASSETS}/WORDNET_LICENCE.txt') as file:
        assert 'WordNet 3.0 Copyright 2006 by Princeton University' in file.read()


@pytest.mark.parametrize('ending, start', [('.csv', 'image,rank'), ('.jsonl', '{"image"'),
                                           ('.json', '{"image"'), ('.txt', 'rank'), ('', 'rank')])
def test_the_output_takes_its_format_from_its_ending(ending, start, picture, tmp_path):
    weights = write_weights(tmp_path / 'a.pdparams', 3, 1)
    output = tmp_path / f'classes{ending}'
    arguments = [picture, '-device=cpu', f'-pretrained={weights}', f'-output={output}']
    assert predict.main(PROJECT, arguments) == 0
    assert output.read_text().startswith(start)
    assert predict.main(PROJECT, [*arguments, '-format=csv']) == 0
    assert output.read_text().startswith('image,rank')
