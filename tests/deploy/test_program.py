"""Exported folders of strangers: nothing but what computes reaches an engine."""

import json
import os
import re
import shutil

import numpy as np
import paddle
import pytest
from PIL import Image

from common.deploy import engine as engines
from common.deploy import export, predict
from common.deploy import program as programs
from common.errors import UserError
from tests.support.exported import (
    encode,
    export_small_vit,
    list_fields,
    make_onnx,
)
from tests.support.trained_digits import fixture_path, load_fixture

IS_PADDLE_2 = paddle.__version__.startswith('2.')
needs_json = pytest.mark.skipif(IS_PADDLE_2, reason='Paddle 2 writes no .json')
needs_desc = pytest.mark.skipif(not IS_PADDLE_2, reason='Paddle 3 writes no .pdmodel')


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp('exported') / 'vit')
    assert export.main(load_fixture('vit')[0], [
        f'-pretrained={fixture_path("vit")}', f'-output={folder}']) == 0
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to be changed, without the record of hashes: a stranger writes that too."""
    copy = str(shutil.copytree(exported, tmp_path / 'copy'))
    os.remove(os.path.join(copy, programs.RECORD_FILE))
    return copy


def run_predict(folder, tmp_path, capsys, *arguments):
    """Return (exit code, stderr) of predict.py with an exported folder."""
    Image.new('RGB', (8, 8)).save(tmp_path / 'digit.png')
    code = predict.main(load_fixture('vit')[0], [
        str(tmp_path / 'digit.png'), f'-model={folder}', '-engine=plain', *arguments])
    return code, capsys.readouterr().err


def check_refused(folder, tmp_path, capsys, words):
    code, message = run_predict(folder, tmp_path, capsys)
    assert code == 2 and words in message, message
    assert 'Traceback' not in message and len(message) < 600, message


def edit_json(folder, edit):
    path = engines.find_program(folder)
    with open(path, encoding='utf-8') as file:
        tree = json.load(file)
    edit(tree)
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(tree, file)


def list_operators(tree):
    return tree['program']['regions'][0]['blocks'][0]['ops']


def last_parameter(tree):
    """Return the operator of the parameter that is the last in the file, which is by name."""
    return max((operator for operator in list_operators(tree) if operator['#'] == 'p'),
               key=lambda operator: operator['A'][-1])


@needs_json
@pytest.mark.parametrize('name', [
    '1.save', '1.assign_value', '1.save_combine', '1.load_combine', '1.print', '1.py_func',
    '1.assert', '2.if', '2.while', '3.anything', '1.pylayer', '1.run_program', '0.group',
    '1.c_allreduce_sum', 1, None])
def test_operators_that_do_more_than_compute(folder, tmp_path, capsys, name):
    target = str(tmp_path / 'written')
    text = {'AT': {'#': '0.a_str', 'D': target}, 'N': 'file_path'}
    edit_json(folder, lambda tree: list_operators(tree).append(
        {'#': name, 'A': [text], 'I': [{'%': 1}], 'O': [], 'OA': []}))
    check_refused(folder, tmp_path, capsys, 'is not one of those that compute')
    assert not os.path.exists(target)


@needs_json
def test_what_else_a_program_may_not_have(folder, tmp_path, capsys):
    def restore(content):
        with open(engines.find_program(folder), 'wb') as file:
            file.write(content)

    with open(engines.find_program(folder), 'rb') as file:
        intact = file.read()
    block = {'#': 'block_1', 'args': [], 'ops': []}
    huge = {'#': '0.t_dtensor', 'D': [{'#': '0.t_f32'}, [1 << 20, 1 << 20], 'NCHW', [], 0]}
    for edit, words in (
            (lambda tree: tree['program']['regions'][0]['blocks'].append(block), 'nested blocks'),
            (lambda tree: tree['program']['regions'].append(
                {'#': 'region_1', 'blocks': [block]}), 'nested blocks'),
            (lambda tree: list_operators(tree)[-1].update(regions=[block]), 'parts that no'),
            (lambda tree: list_operators(tree)[-1]['A'].append({'#': '1.a_pyobject'}), 'unknown'),
            (lambda tree: list_operators(tree)[0]['O'].update(TT=huge), 'shape'),
            (lambda tree: tree.update(more=1), 'parts that no'),
            (lambda tree: tree['base_code'].update(magic='x'), 'parts that no'),
            (lambda tree: list_operators(tree).pop(0), 'pdiparams cannot be used'),
            (lambda tree: list_operators(tree).remove(last_parameter(tree)), 'holds more than')):
        restore(intact)
        edit_json(folder, edit)
        check_refused(folder, tmp_path, capsys, words)
    for content in (b'[]', b'{}', b'', b'[' * 100_000, b'1' * 10_000, b'\xff', intact[:-50],
                    b'{"program": {"regions": [1]}}', bytes(programs.MAX_PROGRAM + 1)):
        restore(content)
        check_refused(folder, tmp_path, capsys, 'cannot be used')


@needs_desc
@pytest.mark.parametrize('name', [
    'save', 'save_combine', 'load', 'load_combine', 'print', 'py_func', 'while', 'assign_value',
    'conditional_block', 'run_program', 'c_allreduce_sum', 'assert', ''])
def test_operators_of_paddle_2_that_do_more_than_compute(folder, tmp_path, capsys, name):
    path, target = engines.find_program(folder), str(tmp_path / 'written')
    with open(path, 'rb') as file:
        content = file.read()
    attribute = encode([(1, 'file_path'), (2, 2), (5, target)])
    operator = encode([(3, name), (4, attribute)])
    fields = list_fields(content)
    block = next(value for number, value in fields if number == 1)
    changed = encode([(number, value + encode([(4, operator)]) if value is block else value)
                      for number, value in fields])
    for harmful, words in (
            (changed, 'is not one of those that compute'),
            (content + encode([(1, encode([(1, 1), (2, 0), (4, operator)]))]), 'compute'),
            (content + encode([(1, encode([(1, 1), (2, 0)]))]), 'nested blocks'),
            (content + encode([(77, b'')]), 'field 77')):
        with open(path, 'wb') as file:
            file.write(harmful)
        check_refused(folder, tmp_path, capsys, words)
    assert not os.path.exists(target)


@pytest.mark.parametrize('variable, attribute, words', [
    (7, [(2, 0)], 'no proper type'), (7, [(2, 8)], 'an attribute is a block'),
    (7, [(2, 10)], 'block'), (7, [(2, 13)], 'block'), (7, [(2, 14)], 'block'),
    (7, [(2, 0), (12, 1)], 'field 12'), (15, [(2, 0)], 'a variable is no tensor'),
    (11, [(2, 0)], 'no tensor'), (17, [(2, 0)], 'no tensor')])
def test_blocks_and_variables_of_paddle_2(tmp_path, variable, attribute, words):
    """Sub-blocks, readers (15), scopes (11) and raw memory (17), where the operator is allowed."""
    operator = encode([(3, 'scale'), (4, encode([(1, 'x'), *attribute]))])
    kind = encode([(1, variable)])
    block = encode([(1, 0), (2, 0), (3, encode([(1, 'v'), (2, kind), (3, 1)])), (4, operator)])
    (tmp_path / 'model.pdmodel').write_bytes(encode([(1, block)]))
    with pytest.raises(UserError, match=words):
        programs.check_paddle(str(tmp_path / 'model.pdmodel'), str(tmp_path / 'model.pdiparams'))


def test_a_program_of_paddle_2_is_one_block(tmp_path):
    path = tmp_path / 'model.pdmodel'
    (tmp_path / 'model.pdiparams').touch()
    for blocks, words in (([(0, 0)], ''), ([(0, 0), (0, 0)], 'nested'), ([(1, 0)], 'nested'),
                          ([], 'nested')):
        path.write_bytes(encode([(1, encode([(1, own), (2, parent)])) for own, parent in blocks]))
        if words:
            with pytest.raises(UserError, match=words):
                programs.check_paddle(str(path), str(tmp_path / 'model.pdiparams'))
        else:
            programs.check_paddle(str(path), str(tmp_path / 'model.pdiparams'))


@needs_json
@pytest.mark.parametrize('engine', ['plain', 'onednn', 'onnxruntime'])
def test_an_engine_checks_what_it_opens_by_itself(folder, engine):
    """The files may have been exchanged since the folder was checked."""
    if engine == 'onnxruntime':
        pytest.importorskip('onnxruntime')
        with open(engines.find_onnx(folder), 'wb') as file:
            file.write(make_onnx(nodes=[{**ADD, 'op_type': 'Scan'}]))
    edit_json(folder, lambda tree: list_operators(tree).append(
        {'#': '1.save', 'A': [], 'I': [], 'O': [], 'OA': []}))
    with pytest.raises(UserError, match='is not one of those that compute'):
        engines.OPENERS[engine](folder, 'float32')


ADD = {'op_type': 'Add', 'inputs': ['images', 'weight'], 'outputs': ['logits']}


def test_onnx_models(tmp_path):
    path = str(tmp_path / 'model.onnx')

    def check(**options):
        with open(path, 'wb') as file:
            file.write(make_onnx(**options))
        programs.check_onnx(path)

    check(nodes=[ADD])
    external = encode([(1, 4), (2, 1), (8, 'weight'), (14, 1),
                       (13, encode([(1, 'location'), (2, '/etc/passwd')]))])
    for options, words in (
            ({'nodes': [{**ADD, 'op_type': 'If'}]}, "'If' is not one of those"),
            ({'nodes': [{**ADD, 'op_type': 'Scan'}]}, 'Scan'),
            ({'nodes': [{**ADD, 'domain': 'com.microsoft'}]}, 'another domain'),
            ({'nodes': [ADD], 'domain': 'ai.onnx.ml'}, 'another domain'),
            ({'nodes': [ADD], 'initializer': external}, 'field 13'),
            ({'nodes': [ADD], 'initializer': encode([(1, 4), (2, 1), (14, 1)])}, 'another file'),
            ({'nodes': [ADD], 'initializer': encode([(1, 1 << 40), (2, 1)])}, 'shape'),
            ({'nodes': [ADD], 'model': [(25, encode([(1, 'f')]))]}, 'field 25'),
            ({'nodes': [{**ADD, 'attribute': encode([(1, 'body'), (6, b'')])}]}, 'field 6'),
            ({'nodes': [ADD], 'graph': [(15, b'')]}, 'field 15'),
            ({'nodes': [ADD], 'model': [(7, b'')]}, 'no graph, or several')):
        with pytest.raises(UserError, match=words):
            check(**options)
    for content in (b'', b'\x00', b'\xff' * 50, make_onnx(nodes=[ADD])[:-3], b'\x0b' * 9,
                    encode([(1, 5)] * (programs.MAX_FIELDS + 2))):
        with open(path, 'wb') as file:
            file.write(content)
        with pytest.raises(UserError, match='cannot be used'):
            programs.check_onnx(path)


def test_every_operator_of_an_export_is_allowed(tmp_path):
    """Of a ViT with everything: the check is also the last step of an export."""
    for number, options in enumerate((
            {}, {'pool': 'map', 'class_token': False}, {'position_embedding': 'rope'},
            {'gelu': 'quick', 'layer_scale': 0.1, 'register_tokens': 2},
            {'representation_size': 8}, {'distilled': True})):
        folder = str(tmp_path / str(number))
        export_small_vit(folder, **options)
        engines.check_folder(folder)


@pytest.mark.parametrize('name', ['check.npz', 'model.pdiparams', 'program'])
def test_files_that_are_not_those_that_were_exported(exported, tmp_path, capsys, name):
    folder = str(shutil.copytree(exported, tmp_path / 'copy'))
    path = engines.find_program(folder) if name == 'program' else os.path.join(folder, name)
    with open(path, 'r+b') as file:
        file.seek(-40, os.SEEK_END)
        byte = file.read(1)
        file.seek(-40, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    code, message = run_predict(folder, tmp_path, capsys)
    assert code == 2 and re.search('files.json records|is damaged|cannot be used', message), message


@pytest.mark.runs
def test_exports_of_older_versions_are_used_and_said_to_be_unrecorded(
        folder, tmp_path, capsys):
    code, message = run_predict(folder, tmp_path, capsys)
    assert code == 0 and 'has no files.json' in message


@pytest.mark.parametrize('record', ['', '[]', '{}', '{"sha256": 1}', '{"sha256": {}}', '[' * 9999])
def test_a_damaged_record(folder, tmp_path, capsys, record):
    with open(os.path.join(folder, programs.RECORD_FILE), 'w') as file:
        file.write(record)
    check_refused(folder, tmp_path, capsys, 'cannot be used')


@pytest.mark.runs
def test_other_weights_than_those_of_check_npz_are_refused_with_every_engine(
        folder, tmp_path, capsys):
    path = os.path.join(folder, 'model.pdiparams')
    with open(path, 'r+b') as file:
        file.seek(-400, os.SEEK_END)
        file.write(np.full(100, 0.5, np.float32).tobytes())
    code, message = run_predict(folder, tmp_path, capsys)
    assert code == 1 and 'engine plain cannot be used: its logits differ' in message
    name = f'{engines.describe_machine()}, float32'
    with open(os.path.join(folder, engines.CHOICES_FILE), 'w') as file:
        json.dump({name: 'plain'}, file)        # as if it had been tried
    code, message = run_predict(folder, tmp_path, capsys, '-engine=auto')
    assert code == 1 and 'engine plain cannot be used: its logits differ' in message


@pytest.mark.parametrize('change, words', [
    ({'class_names': ['a', 'b']}, '2 class names, the model 10 classes'),
    ({'class_names': []}, '0 class names'), ({'interpolation': []}, 'unknown interpolation'),
    ({'interpolation': None}, 'unknown interpolation'), ({'interpolation': {}}, 'unknown'),
    ({'image_size': 64}, 'pictures have 64 pixels a side'), ({'image_size': 10 ** 5}, 'image_size'),
    ({'image_size': '8'}, 'image_size'), ({'crop_pct': 1e-320}, 'crop_pct'),
    ({'crop_pct': float('nan')}, 'crop_pct'), ({'mean': [0.1, 0.2]}, 'mean'),
    ({'mean': [0.1, 0.2, float('nan')]}, 'mean'), ({'mean': [10 ** 400] * 3}, 'mean'),
    ({'std': [0, 1, 1]}, 'std'), ({'std': [float('inf')] * 3}, 'std'), ({'std': 'abc'}, 'std'),
    ({'class_names': [1] * 10}, 'class_names'), ({'class_names': {'a': 1}}, 'class_names'),
    ({'more': 1}, 'expected the keys')])
def test_preprocessing_that_does_not_fit(folder, tmp_path, capsys, change, words):
    path = os.path.join(folder, 'preprocessing.json')
    with open(path, encoding='utf-8') as file:
        values = json.load(file)
    with open(path, 'w', encoding='utf-8') as file:
        json.dump({**values, **change}, file)
    check_refused(folder, tmp_path, capsys, words)


@pytest.mark.parametrize('change', [
    {'logits': np.zeros((4, 10), np.float32)}, {'logits': np.ones((3, 10), np.float32)},
    {'logits': np.ones(4, np.float32)}, {'logits': np.full((4, 10), np.nan, np.float32)},
    {'logits': np.ones((4, 10))}, {'image_size': np.array([8])}, {'image_size': 8.5},
    {'image_size': 0}, {'image_size': 10 ** 6}, {'logits': np.array([None])}])
def test_a_check_that_does_not_fit(folder, tmp_path, capsys, change):
    path = os.path.join(folder, engines.CHECK_FILE)
    logits, image_size = engines.read_check(folder)
    np.savez(path, **{'logits': logits, 'image_size': image_size, **change})
    check_refused(folder, tmp_path, capsys, 'is damaged')
