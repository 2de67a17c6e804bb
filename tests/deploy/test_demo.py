"""demo.py: what its page answers, and that Gradio is asked for by name."""

import json
import urllib.request

import numpy as np
import pytest
from PIL import Image

from common.data.digits import load_digits_rgb
from common.deploy import demo
from common.deploy import engine as engines
from tests.support.trained_digits import fixture_path, load_fixture

needs_gradio = pytest.mark.skipif(
    not engines.is_installed('gradio'), reason='gradio is not installed (requirements-extra.txt)')


def digit(index):
    return Image.fromarray(load_digits_rgb()[0][index])


@pytest.mark.parametrize('name', ['vit', 't2t'])
def test_answer_has_the_classes_and_an_overlay(name):
    trained = load_fixture(name)[1]
    layers = len(trained.model.blocks)
    shares, heat = demo.analyse(trained, digit(0), 'rollout', layers)
    assert max(shares, key=shares.get) == '0' and len(shares) == 5
    assert 0.5 < sum(shares.values()) <= 1
    assert heat.size == (480, 480) and heat.mode == 'RGB'
    other = demo.analyse(trained, digit(0), 'mean of heads', layers)[1]
    first = demo.analyse(trained, digit(0), 'rollout', 1)[1]
    assert (np.asarray(heat) != np.asarray(other)).any()
    assert (np.asarray(heat) != np.asarray(first)).any()
    assert demo.analyse(trained, None, 'rollout', 1) == (None, None)


def test_gradio_is_asked_for_by_name(monkeypatch, capsys):
    monkeypatch.setattr(engines, 'is_installed', lambda module: False)
    assert demo.main(load_fixture('vit')[0], [f'-pretrained={fixture_path("vit")}']) == 2
    assert 'pip install gradio' in capsys.readouterr().err


@needs_gradio
def test_page_is_served():
    page = demo.build_page(load_fixture('vit')[1])
    _, url, _ = page.launch(server_name='127.0.0.1', prevent_thread_lock=True, quiet=True)
    try:
        with urllib.request.urlopen(f'{url}config', timeout=30) as answer:
            config = json.load(answer)
        labels = {part['props'].get('label') for part in config['components']}
        assert {'Picture', 'Classes', 'What the model attends to', 'Layer'} <= labels
    finally:
        page.close()
