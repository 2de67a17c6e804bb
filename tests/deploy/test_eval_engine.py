"""Evaluation by an inference engine counts what the model itself counts."""

import logging
import os

import numpy as np
import paddle
import pytest

from common.deploy import evaluation
from common.kernels import install
from common.training.evaluate import evaluate
from common.training.precision import Precision
from tests.support.recipe import fill_by_recipe
from ViT.config import get_config
from ViT.vit import build_vit


def build(**flags):
    config = get_config(flags={
        'DATA.IMAGE_SIZE': 32, 'MODEL.PATCH_SIZE': 8, 'MODEL.EMBED_DIM': 48, 'MODEL.DEPTH': 2,
        'MODEL.NUM_HEADS': 4, 'MODEL.NUM_CLASSES': 10, **flags})
    model = build_vit(config)
    fill_by_recipe(model, salt=7)
    install(model, 'cpu')
    return config, model


def run(model, config):
    generator = np.random.default_rng(0)
    batches = [(generator.standard_normal((size, 3, 32, 32)).astype('float32'),
                paddle.to_tensor(generator.integers(0, 10, size)), None) for size in (8, 8, 5)]
    return evaluate(model, batches, paddle.to_tensor, Precision())


@pytest.mark.parametrize('name', ['plain', 'onednn'])
@pytest.mark.runs
def test_engine_evaluates_as_the_model(name):
    config, model = build(EVAL_ENGINE=name)
    expected = run(model, config)
    evaluator = evaluation.choose_evaluator(model, config, num_images=21)
    assert evaluator is not model
    found = run(evaluator, config)
    assert (found.images, found.acc1, found.acc5) == (21, expected.acc1, expected.acc5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_few_images_are_not_worth_an_engine():
    config, model = build(EVAL_ENGINE='auto')
    few = evaluation.MIN_IMAGES - 1
    assert evaluation.choose_evaluator(model, config, few).engine is None


def test_without_an_engine_no_token_is_computed_that_no_head_reads():
    config, model = build(EVAL_ENGINE='auto')
    expected = run(model, config)
    computed = []
    model.blocks[-1].mlp.fc1.register_forward_post_hook(
        lambda layer, inputs, output: computed.append(output.shape[:2]))
    found = run(evaluation.choose_evaluator(model, config, 21), config)
    assert computed == [[8, 1], [8, 1], [5, 1]]
    assert (found.images, found.acc1, found.acc5) == (21, expected.acc1, expected.acc5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    computed.clear()
    config.defrost()
    config.EVAL_ENGINE = 'model'
    assert run(evaluation.choose_evaluator(model, config, 21), config).loss == expected.loss
    assert computed == [[8, 17], [8, 17], [5, 17]]


def no_minimum(monkeypatch):
    for name in ('MIN_SECONDS', 'MIN_SECONDS_PADDLE'):
        monkeypatch.setattr(evaluation, name, 0.0)


@pytest.mark.runs
def test_auto_takes_an_engine_where_it_is_repaid(monkeypatch, caplog):
    config, model = build(EVAL_ENGINE='auto')
    expected = run(model, config)
    assert evaluation.choose_evaluator(model, config, 10 ** 5).engine is None     # too little
    no_minimum(monkeypatch)
    monkeypatch.setattr(evaluation.logger, 'propagate', True)
    speeds = iter([10.0, 10.1, 10.0, 12.5])     # the model's, the engine's
    monkeypatch.setattr(evaluation, 'measure_speed', lambda predict, size: next(speeds))
    with caplog.at_level(logging.INFO):
        assert evaluation.choose_evaluator(model, config, 10 ** 5).engine is None
        assert 'is 1.01 times as fast' in caplog.text
        assert run(model, config).loss == expected.loss
        evaluator = evaluation.choose_evaluator(model, config, 10 ** 5)
    assert '1.25 times as fast as the model' in caplog.text and 'EVAL_ENGINE auto' in caplog.text
    assert run(evaluator, config).acc1 == expected.acc1


@pytest.mark.runs
def test_auto_is_openvino_where_it_can_be_had(monkeypatch, caplog):
    for package in ('openvino', 'onnxruntime', 'paddle2onnx'):
        pytest.importorskip(package)
    config, model = build(EVAL_ENGINE='auto')
    expected = run(model, config)
    no_minimum(monkeypatch)
    monkeypatch.setattr(evaluation.logger, 'propagate', True)
    monkeypatch.setattr(evaluation, 'GAIN', 0.0)
    opened = []
    load_engine = evaluation.engines.load_engine

    def watch(folder, name):
        opened.append((name, sorted(os.listdir(folder))))
        return load_engine(folder, name)

    monkeypatch.setattr(evaluation.engines, 'load_engine', watch)
    evaluator = evaluation.choose_evaluator(model, config, 10 ** 5)
    [(name, files)] = opened                # the others were not tried
    assert name == evaluator.engine.name == 'openvino' and {'model.xml', 'model.bin'} <= set(files)
    found = run(evaluator, config)
    assert (found.acc1, found.acc5) == (expected.acc1, expected.acc5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)

    def fail(*paths):
        raise evaluation.RunError('OpenVINO knows no such layer.')

    monkeypatch.setattr(evaluation, 'convert_to_openvino', fail)
    with caplog.at_level(logging.INFO):
        evaluator = evaluation.choose_evaluator(model, config, 10 ** 5)
    assert 'OpenVINO does not run this model: OpenVINO knows no such layer.' in caplog.text
    assert opened[-1][0] == 'auto' and 'model.xml' not in opened[-1][1]
    assert run(evaluator, config).acc1 == expected.acc1


@pytest.mark.runs
def test_without_openvino_the_engines_of_paddle_are_tried(monkeypatch):
    config, model = build(EVAL_ENGINE='auto')
    monkeypatch.setattr(evaluation, 'find_missing', lambda formats: {'openvino': 'openvino'})
    monkeypatch.setattr(evaluation, 'GAIN', 0.0)
    monkeypatch.setattr(evaluation, 'MIN_SECONDS', 0.0)
    assert evaluation.choose_evaluator(model, config, 10 ** 4).engine is None       # too little
    no_minimum(monkeypatch)
    evaluator = evaluation.choose_evaluator(model, config, 10 ** 4)
    assert evaluator.engine.name in ('plain', 'onednn', 'openvino')


def test_model_is_the_model():
    config, model = build(EVAL_ENGINE='model')
    assert evaluation.choose_evaluator(model, config, 10 ** 6) is model


def test_an_engine_is_built_of_what_the_head_reads(monkeypatch):
    config, model = build(EVAL_ENGINE='plain')
    written = []

    def save_program(model, image_size, folder, forward):
        written.append(forward.__name__)
        raise evaluation.RunError('enough')

    monkeypatch.setattr(evaluation, 'save_program', save_program)
    assert evaluation.choose_evaluator(model, config, 10).engine is None
    assert written == ['forward_logits']


def test_a_failing_engine_leaves_the_model(monkeypatch, caplog):
    config, model = build(EVAL_ENGINE='plain')
    expected = run(model, config)

    def fail(folder, name):
        raise evaluation.RunError('it crashed (signal 11).')

    monkeypatch.setattr(evaluation.engines, 'load_engine', fail)
    monkeypatch.setattr(evaluation.logger, 'propagate', True)
    with caplog.at_level(logging.INFO):
        evaluator = evaluation.choose_evaluator(model, config, 10)
    assert evaluator.engine is None and 'it crashed (signal 11).' in caplog.text
    assert run(evaluator, config).acc1 == expected.acc1
    assert run(model, config).loss == expected.loss
    assert 'attention' in vars(model.blocks[0].attn)      # the kernels are there again
