"""Configs of the families whose weights people start from: sizes, pixels, sources and licences."""

import math
import re

import paddle
import pytest
import yaml

from tests.support.paths import FIXTURES, ROOT
from ViT.config import get_config
from ViT.released import list_released
from ViT.vit import build_vit

CONFIGS = ROOT / 'ViT' / 'configs'
with open(FIXTURES / 'family_configs.yaml', encoding='utf-8') as fixture:
    FACTS = yaml.safe_load(fixture)
FAMILIES = sorted({facts['family'] for facts in FACTS.values()})
IMAGENET, CLIP, HALF = ([0.485, 0.456, 0.406], [0.48145466, 0.4578275, 0.40821073], [0.5] * 3)


def find_path(name):
    return CONFIGS / FACTS[name]['family'] / f'{name}.yaml'


def read_header(path):
    """Return a yaml file's comment as one line."""
    lines = path.read_text(encoding='utf-8').splitlines()
    return ' '.join(line.lstrip('# ').rstrip('\\ ') for line in lines if line.startswith('#'))


def test_every_file_is_known():
    files = {path.stem for family in FAMILIES for path in CONFIGS.glob(f'{family}/[!_]*.yaml')}
    assert files == set(FACTS) and len(files) >= 47


@pytest.fixture
def on_paper(monkeypatch):
    """Layers that are built have shapes and no numbers."""
    monkeypatch.setattr(paddle.nn.Layer, 'register_buffer', lambda *arguments, **options: None)
    paddle.enable_static()
    yield
    paddle.disable_static()


def test_sizes_are_the_sources(on_paper):
    for name, facts in FACTS.items():
        path = str(find_path(name))
        depth = get_config(path).MODEL.DEPTH
        with paddle.static.program_guard(paddle.static.Program(), paddle.static.Program()):
            shapes = {key: parameter.shape for key, parameter in build_vit(
                get_config(path, opts=['MODEL.DEPTH', '1'])).named_parameters()}
        # Self-supervised models have no classifier; ours waits for the user's classes.
        has_classes = facts['family'] in ('deit', 'deit3', 'clip', 'eva')
        count = sum(math.prod(shape) * (depth if key.startswith('encoder.layers.') else 1)
                    for key, shape in shapes.items()
                    if has_classes or not key.startswith('classifier.'))
        assert count == facts['parameters'] + facts.get('zeros', 0), name
        millions = re.search(r'([\d.,]+) M parameters', read_header(find_path(name)))[1]
        assert round(facts['parameters'] / 1e6, 1) == float(millions.replace(',', '')), name


@pytest.mark.parametrize('name', FACTS)
def test_pixels_are_the_sources(name):
    facts, config = FACTS[name], get_config(str(find_path(name)))
    data = config.DATA
    assert facts['image'] == data.IMAGE_SIZE
    assert (facts['crop'], facts['interpolation']) == (data.CROP_PCT, data.INTERPOLATION)
    assert [values for values in (IMAGENET, CLIP, HALF) if values[0] == facts['mean']] == [
        data.IMAGENET_MEAN]
    assert data.IMAGENET_STD[0] == facts['std']
    assert name == config.MODEL.NAME
    heads = 12 if 'mocov3' in name else None
    assert heads in (None, config.MODEL.NUM_HEADS)


@pytest.mark.parametrize('name', FACTS)
def test_weights_and_licence_are_in_the_file(name):
    released = list_released()
    path = find_path(name)
    header = read_header(path)
    weights = re.search(r'-pretrained=(\S+)', header)[1]
    assert weights in released
    assert f'-cfg=configs/{FACTS[name]["family"]}/{path.name}' in header
    assert 'Not trained here.' in header
    family = read_header(path.parent / f'_{path.parent.name}.yaml')
    assert re.search(r'arXiv \d{4}\.\d{5}', family) and 'Weights' in family
    licence = re.search(r'Licence: (.*?)[.:,] ', family + ' ')[1]
    # What restricts use in the file is said before a download, and the other way round.
    if 'clip' not in path.parent.name:
        assert bool(released[weights].licence) == ('Apache' not in licence and 'MIT' not in licence)


def test_what_restricts_use_is_said_of_every_source():
    for name, entry in list_released().items():
        restricted = re.search('mae|moco|ijepa|metaclip|dinov3|dfn', name)
        assert bool(entry.licence) == bool(restricted), name
