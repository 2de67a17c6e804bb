"""Plain ViTs of many sources: their numbers, what their files say of themselves, their wrappings.

tests/fixtures/family has a tiny checkpoint of each layout, as the peer's own code writes it, with
what the peer computes from it in float64.
"""

import json
import os
import shutil

import numpy as np
import paddle
import pytest

from common.cli import build_config
from common.errors import UserError
from common.kernels import install
from common.weights import describe_numerics, load_pretrained, safetensors_file
from common.weights.containers import open_container
from common.weights.load import compare_preprocessing
from common.weights.positions import split_rows
from common.weights.preprocessing import read_stated
from common.weights.read import read_weights
from tests.support.paths import FIXTURES
from ViT.project import PROJECT
from ViT.vit import VisionTransformer

FOLDER = FIXTURES / 'family'
with open(FOLDER / 'index.json', encoding='utf-8') as file:
    CASES = json.load(file)['cases']


def make_options(case, size, **changes):
    """Return the arguments of VisionTransformer for a case."""
    f = {**case['architecture'], **changes}
    distilled, registers = f['distilled'], f['register_tokens']
    if str(f.get('heads', '')).startswith('one'):       # a distillation token that nothing reads
        distilled, registers = False, 1
    options = {
        'image_size': size, 'patch_size': f['patch_size'], 'num_classes': f['num_classes'] or 3,
        'embed_dim': f['embed_dim'], 'depth': f['depth'], 'num_heads': f['num_heads'],
        'mlp_ratio': (f['mlp_hidden'] + 0.5) / f['embed_dim'],
        'qkv_bias': bool(f['qkv_bias'] or f.get('q_and_v_bias_only')), 'gelu': f['gelu'],
        'layer_norm_eps': f['layer_norm_eps'], 'class_token': f['class_token'], 'pool': f['pool']}
    special = {
        'layer_scale': 1e-5 if f['layer_scale'] else None, 'register_tokens': registers,
        'distilled': distilled, 'pre_norm': f['pre_norm'],
        'norm_after_pooling': f['norm_after_pooling']}
    if f['rope']:
        options['position_embedding'] = 'rope'
    return {**options, **{name: value for name, value in special.items() if value}}


EQUAL = [name for name, case in CASES.items() if case['expect'] == 'equal']


def make_images(seed, size):
    b, c, i, j = np.ogrid[:2, :3, :size, :size]
    images = np.sin(seed + 1.3 * b + 0.7 * c + 0.9 * i + 0.4 * j)
    images = images + 0.5 * np.cos(0.05 * (i + 1) * (j + 1) * (c + 1) + b)
    return paddle.to_tensor(images.astype(np.float32))


def build(name, size=None, **changes):
    case = CASES[name]
    model = VisionTransformer(**make_options(case, size or case['image_sizes'][0], **changes))
    model.eval()
    return model


def path_of(name):
    return str(FOLDER / name / CASES[name]['path'])


def find_error(model, report, expected, seed, size):
    """Return the greatest error relative to the greatest number, of logits if a head was loaded."""
    has_head = f'logits_{size}' in expected and 'classifier.weight' in report.loaded
    wanted = expected[f'logits_{size}' if has_head else f'features_{size}']
    with paddle.no_grad():
        tokens = model.forward_features(make_images(seed, size))
        found = model.forward_head(tokens, pre_logits=not has_head).numpy()
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize('name', EQUAL)
def test_numbers_are_the_sources(name):
    """Logits, or what a head would read, at two image sizes, plain and with the CPU's kernels."""
    case = CASES[name]
    expected = np.load(FOLDER / name / 'expected.npz')
    for size in case['image_sizes']:
        model = build(name, size)
        report = load_pretrained(model, path_of(name))
        for kernels in ('plain', 'cpu'):
            install(model, kernels)
            assert find_error(model, report, expected, case['seed'], size) <= 5e-6


def test_the_number_of_heads_is_compared(tmp_path):
    case = CASES['hf_vit_wrong_heads']
    with pytest.raises(UserError, match='trained with 4 attention heads, and the model has 2'):
        load_pretrained(build('hf_vit_wrong_heads',
                              num_heads=case['architecture']['num_heads_to_try']),
                        path_of('hf_vit_wrong_heads'))
    with pytest.raises(UserError, match='trained with 4 .*MODEL.NUM_HEADS 4'):
        load_pretrained(build('timm_flexivit', num_heads=8), path_of('timm_flexivit'))
    google = FOLDER.parent / 'weights/vit/google_npz/ViT-tiny_fixture.npz'
    with pytest.raises(UserError, match='trained with 4 attention heads'):
        load_pretrained(VisionTransformer(64, 16, num_classes=7, embed_dim=48, depth=3,
                                          num_heads=2), google)
    ours = build('hub_mae')
    paddle.save({'model': ours.state_dict(), 'numerics': describe_numerics(ours)},
                str(tmp_path / 'a.pdparams'))
    with pytest.raises(UserError, match='trained with 4 attention heads'):
        load_pretrained(build('hub_mae', num_heads=2), tmp_path / 'a.pdparams')
    # Nothing says how many: another number is the user's to answer for.
    assert load_pretrained(build('hub_mae', num_heads=2), path_of('hub_mae')).loaded


def test_what_the_head_reads_is_compared(tmp_path):
    """A class token that is there and not read leaves no trace in the shapes."""
    folder = copy_timm(tmp_path, global_pool='avg')
    with pytest.raises(UserError, match="reads features of pooling 'avg'.*MODEL.POOL avg"):
        load_pretrained(build('timm_plain_imagenet_norm'), folder / 'model.safetensors')
    # Another head reads what it likes.
    assert load_pretrained(build('timm_plain_imagenet_norm', num_classes=9),
                           folder / 'model.safetensors').replaced


def copy_timm(folder, **changes):
    """Copy timm's plain checkpoint, with a config.json that is changed; return the folder."""
    shutil.copytree(FOLDER / 'timm_plain_imagenet_norm', folder / 'timm', dirs_exist_ok=True)
    path = folder / 'timm' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder / 'timm'


@pytest.mark.parametrize('architecture, gelu', [
    ('vit_base_patch16_224', 'erf'), ('vit_so400m_patch16_siglip_gap_256', 'tanh'),
    ('vit_so400m_patch14_siglip_gap_224', 'erf'), ('vit_large_patch16_siglip_gap_512', 'tanh'),
    ('vit_large_patch16_siglip_gap_384', 'erf'), ('vit_base_patch32_siglip_gap_256', 'tanh')])
def test_gelu_is_the_architectures(tmp_path, architecture, gelu):
    folder = copy_timm(tmp_path, architecture=architecture)
    other = 'tanh' if gelu == 'erf' else 'erf'
    model = build('timm_plain_imagenet_norm', gelu=other)
    report = load_pretrained(model, folder / 'model.safetensors')
    assert report.numerics_changed['gelu'] == (other, gelu)


@pytest.mark.parametrize('architecture', [
    'vit_small_patch16_rope_ape_224', 'vit_base_patch16_rope_mixed_ape_224',
    'vit_pe_core_base_patch16_224', 'eva02_enormous_patch14_clip_224', 'vit_base_patch16_rpn_224',
    'test_vit3', 'test_vit4', 'beit_base_patch16_224', 'aimv2_large_patch14_224',
    'vit_base_patch16_xp_224', 'vit_dpwee_patch16_reg1_gap_256', 'vit_small_patch16_18x2_224',
    'vit_base_patch16_sapiens2'])
def test_equal_names_with_other_arithmetic_are_refused(tmp_path, architecture):
    folder = copy_timm(tmp_path, architecture=architecture)
    with pytest.raises(UserError, match=f'{architecture} has .*, which no model here has'):
        load_pretrained(build('timm_plain_imagenet_norm'), folder / 'model.safetensors')


@pytest.mark.parametrize('name, expected', [
    ('blocks.0.mlp.w12.weight', 'SwiGLU'), ('blocks.0.mlp.fc1_g.weight', 'SwiGLU'),
    ('blocks.0.attn.relative_position_bias_table', 'relative positions'),
    ('blocks.0.attn.q_norm.weight', 'norms of queries and keys'),
    ('blocks.0.attn.norm.weight', 'norms inside attention'),
    ('patch_embed.backbone.stem.conv.weight', "a ResNet in front")])
def test_layers_of_other_networks_are_named(tmp_path, plain, name, expected):
    safetensors_file.write(tmp_path / 'a.safetensors', {**plain[0], name: np.ones(8, 'f4')}, {})
    with pytest.raises(UserError, match=f'a.safetensors: {name} is of .*{expected}.*Take .* inst'):
        load_pretrained(build('lightning'), tmp_path / 'a.safetensors')


def test_the_architecture_that_a_file_states_is_in_the_message(tmp_path):
    safetensors_file.write(tmp_path / 'model.safetensors', {'trunk.a': np.ones(3, 'f4')}, {})
    (tmp_path / 'config.json').write_text('{"model_type": "aimv2"}')
    with pytest.raises(UserError, match="no known format of ViT weights. config.json calls it 'ai"):
        load_pretrained(build('lightning'), tmp_path)


def test_positions_of_tokens(tmp_path):
    """The class token has a row of zeros where the source gives it no position."""
    model = build('timm_flexivit')
    report = load_pretrained(model, path_of('timm_flexivit'))
    assert not model.position_embedding.numpy()[0, 0].any()
    assert model.position_embedding.numpy()[0, 1:].any(axis=-1).all()
    assert 'rows of zeros' in report.resized['position_embedding']


# Wrappings

@pytest.fixture(scope='module')
def plain():
    """{name: ndarray} of a plain checkpoint under timm's names, and the logits that it gives."""
    tree = open_container(path_of('lightning')).tree['state_dict']
    tensors = {name.removeprefix('model.'): array for name, array in tree.items()}
    model = build('lightning')
    load_pretrained(model, path_of('lightning'))
    return tensors, model(make_images(0, 32)).numpy()


@pytest.mark.parametrize('prefix', [
    '', 'module.', '_orig_mod.', 'module._orig_mod.', 'model.', 'net.', 'backbone.', 'encoder.',
    'timm_model.', 'model.backbone.', 'module.base_encoder.', 'visual.trunk.',
    '_orig_mod.module.model.encoder.'])
def test_wrappers_are_taken_off(tmp_path, plain, prefix):
    tensors, logits = plain
    safetensors_file.write(tmp_path / 'a.safetensors', {
        prefix + name: array for name, array in tensors.items()}, {'format': 'pt'})
    model = build('lightning')
    assert load_pretrained(model, tmp_path / 'a.safetensors').complete
    np.testing.assert_array_equal(model(make_images(0, 32)).numpy(), logits)


def test_an_unknown_wrapper_is_refused(tmp_path, plain):
    safetensors_file.write(tmp_path / 'a.safetensors', {
        f'momentum_encoder.{name}': array for name, array in plain[0].items()}, {'format': 'pt'})
    with pytest.raises(UserError, match='no known format of ViT weights'):
        load_pretrained(build('lightning'), tmp_path / 'a.safetensors')


def test_what_is_beside_the_network_is_left_out_and_listed(tmp_path, plain):
    beside = {'text.token_embedding.weight': np.ones((3, 4), 'f4'),
              'logit_scale': np.ones((), 'f4'), 'predictor.0.weight': np.ones((2, 2), 'f4')}
    safetensors_file.write(tmp_path / 'a.safetensors', {
        **{f'visual.trunk.{name}': array for name, array in plain[0].items()}, **beside},
        {'format': 'pt'})
    report = load_pretrained(build('lightning'), tmp_path / 'a.safetensors')
    assert report.complete and set(report.unexpected) == set(beside)
    # Inside the network nothing is left out.
    safetensors_file.write(tmp_path / 'b.safetensors', {
        **{f'visual.trunk.{name}': array for name, array in plain[0].items()},
        'visual.trunk.blocks.0.attn.my_norm.weight': np.ones(8, 'f4')}, {'format': 'pt'})
    with pytest.raises(UserError, match='only in the file: visual.trunk.blocks.0.attn.my_norm'):
        load_pretrained(build('lightning'), tmp_path / 'b.safetensors')


@pytest.mark.parametrize('entry', ['model_state_dict', 'net', 'module', 'encoder', 'teacher'])
def test_entries(tmp_path, plain, entry):
    tensors = {name: paddle.to_tensor(array) for name, array in plain[0].items()}
    other = {name: value * 2 for name, value in tensors.items()}
    # Paddle writes it, but the names and the layout are PyTorch's: read as a torch checkpoint.
    tree = open_container(path_of('lightning'))
    tree.tree.clear()
    tree.tree.update({'epoch': 3, entry: {name: value.numpy() for name, value in tensors.items()},
                      'student': {name: value.numpy() for name, value in other.items()}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('common.weights.read.open_container', lambda path: tree)
        weights = read_weights('any', project=PROJECT)
    assert weights.entry == entry and not weights.leftover
    np.testing.assert_array_equal(weights.tensors['cls_token'].get(), plain[0]['cls_token'])


def test_shards(tmp_path):
    for name in ('hf_vit_sharded', 'hf_vit_sharded_bin'):
        folder = tmp_path / name
        shutil.copytree(FOLDER / name / 'ckpt', folder)
        index = next(folder.glob('*.index.json'))
        assert load_pretrained(build(name), index).complete
        shards = json.loads(index.read_text())
        victim = sorted(set(shards['weight_map'].values()))[1]
        os.rename(folder / victim, folder / 'elsewhere')
        with pytest.raises(UserError, match=f'{victim}, which it names, is not there'):
            load_pretrained(build(name), folder)
        os.rename(folder / 'elsewhere', folder / victim)
        shards['weight_map']['one.more'] = victim
        index.write_text(json.dumps(shards))
        with pytest.raises(UserError, match='one.more, which it lists, is in none'):
            load_pretrained(build(name), folder)
        for wrong in ({'a': '../outside.bin'}, {'a': f'{index.name}'}, {}, [], {'a': 3}, None):
            index.write_text(json.dumps({'weight_map': wrong}))
            with pytest.raises(UserError, match='no index of weights|is not there'):
                load_pretrained(build(name), folder)


# Preprocessing

@pytest.mark.parametrize('name', [name for name in CASES if name.startswith(('timm_', 'hf_vit'))])
def test_preprocessing_is_what_the_files_state(name):
    weights = read_weights(path_of(name), project=PROJECT)
    stated = CASES[name]['preprocessing']
    assert {key: weights.preprocessing[key] for key in stated} == stated
    assert weights.preprocessing_source in ('config.json', 'preprocessor_config.json')


@pytest.mark.parametrize('processor, expected', [
    ({'size': {'shortest_edge': 256}, 'crop_size': {'height': 224, 'width': 224},
      'do_center_crop': True, 'resample': 3}, {'crop_pct': 0.875, 'interpolation': 'bicubic'}),
    ({'size': 224, 'crop_size': 224, 'do_center_crop': False, 'resample': 2},
     {'crop_pct': 1.0, 'interpolation': 'bilinear'}),
    ({'image_mean': [0.5, 0.5, 0.5], 'image_std': [0.5, 0.5, 0]}, {'mean': [0.5] * 3}),
    ({'do_normalize': False, 'image_mean': [9, 9, 9]}, {'mean': [0.0] * 3, 'std': [1.0] * 3}),
    ({'image_mean': 'red', 'image_std': [1, 2], 'resample': True, 'size': {'height': -1}}, {}),
    ({'image_mean': [float('nan')] * 3, 'size': 1e9, 'resample': 17}, {}),
])
def test_image_processors(processor, expected):
    assert read_stated({}, processor) == expected


def test_a_checkpoint_of_ones_own_states_its_preprocessing(tmp_path):
    stated = {'image_size': 32, 'crop_pct': 0.9, 'interpolation': 'lanczos',
              'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]}
    paddle.save({'model': build('hub_mae').state_dict(), 'preprocessing': stated},
                str(tmp_path / 'a.pdparams'))
    weights = read_weights(tmp_path / 'a.pdparams', project=PROJECT)
    del stated['image_size']
    assert weights.preprocessing == stated and weights.preprocessing_source == 'the checkpoint'


def get_config(folder, *opts, cfg=None, **flags):
    """Return the config of a command with -pretrained=<timm's DeiT, whose files state all>."""
    flags = {'MODEL.PRETRAINED': str(folder), **flags}
    return build_config(PROJECT, cfg, flags, [str(opt) for opt in opts])


def test_stated_preprocessing_is_used_and_the_users_own_keys_win(tmp_path):
    weights = FOLDER / 'timm_plain_imagenet_norm' / 'model.safetensors'
    stated = CASES['timm_plain_imagenet_norm']['preprocessing']
    data = get_config(weights).DATA
    assert (stated['mean'], stated['crop_pct']) == (data.IMAGENET_MEAN, data.CROP_PCT)
    (tmp_path / 'base.yaml').write_text('DATA:\n  CROP_PCT: 0.875\n')         # the default too
    (tmp_path / 'a.yaml').write_text('BASE: [base.yaml]\nDATA:\n  INTERPOLATION: nearest\n')
    data = get_config(weights, 'DATA.IMAGENET_STD', [0.1, 0.2, 0.3], cfg=str(tmp_path / 'a.yaml'),
                      **{'DATA.IMAGENET_MEAN': [0.4, 0.5, 0.6]}).DATA
    assert (data.CROP_PCT, data.INTERPOLATION) == (0.875, 'nearest')
    assert (data.IMAGENET_MEAN, data.IMAGENET_STD) == ([0.4, 0.5, 0.6], [0.1, 0.2, 0.3])
    data = get_config(weights, 'DATA.IMAGE_CHANNELS', 1, 'DATA.IMAGENET_MEAN', [0.5],
                      'DATA.IMAGENET_STD', [0.5]).DATA
    assert data.IMAGENET_MEAN == [0.5] and stated['crop_pct'] == data.CROP_PCT


def test_weights_that_cannot_be_read_are_left_to_whoever_loads_them(tmp_path):
    assert get_config(tmp_path / 'gone.pdparams', 'MODEL.DEPTH', 2).DATA.CROP_PCT == 0.875
    with pytest.raises(UserError, match='gone'):        # nothing else tells the model
        get_config(tmp_path / 'gone.pdparams')


def test_the_log_says_whose_preprocessing_it_is():
    config = get_config(FOLDER / 'timm_plain_imagenet_norm' / 'model.safetensors',
                        'DATA.CROP_PCT', 0.5)
    report = load_pretrained(build('timm_plain_imagenet_norm'),
                             FOLDER / 'timm_plain_imagenet_norm' / 'model.safetensors')
    lines = compare_preprocessing(report, config.DATA)
    assert lines[0].startswith('Preprocessing of config.json: ') and '0.485' in lines[0]
    assert lines[1:] == ['Config.json says DATA.CROP_PCT 0.9; it is 0.5, as set.']


@pytest.mark.parametrize('name, mean', [
    ('hub_deit_distilled', 0.485), ('hub_dinov2_reg4', 0.485), ('hub_mae_decoder', 0.485),
    ('torchvision_vit', 0.485), ('hub_openclip', 0.48145466), ('hub_dino', None),
    ('lightning', None)])
def test_the_familys_preprocessing_where_no_file_states_it(name, mean):
    weights = read_weights(path_of(name), project=PROJECT)
    assert weights.preprocessing.get('mean', [None])[0] == mean


# The model that weights are of

@pytest.mark.parametrize('name', EQUAL)
def test_weights_tell_their_model(name):
    """Without a yaml file the right model is built, and the weights give its source's numbers."""
    case = CASES[name]
    size = case['image_sizes'][0]
    # Width 32 is nobody's: where no file tells the number of heads, it cannot be known.
    weights = read_weights(path_of(name), project=PROJECT)
    if weights.num_heads is None:
        weights.num_heads = 4
    options = PROJECT.read_options(weights)
    assert options['DATA.IMAGE_SIZE'] == (224 if case['architecture']['rope'] else size)
    model = PROJECT.build_model(PROJECT.get_config(flags={**options, 'DATA.IMAGE_SIZE': size}))
    model.eval()
    report = load_pretrained(model, path_of(name))
    assert not set(report.missing) - {'classifier.weight', 'classifier.bias'}
    expected = np.load(FOLDER / name / 'expected.npz')
    assert find_error(model, report, expected, case['seed'], size) <= 5e-6


def test_a_command_without_a_yaml_file_builds_the_model_of_the_weights(tmp_path):
    config = get_config(path_of('timm_flexivit'), EVAL=True)
    assert (config.MODEL.EMBED_DIM, config.MODEL.DEPTH, config.MODEL.NUM_HEADS) == (32, 2, 4)
    assert (config.DATA.IMAGE_SIZE, config.MODEL.NUM_CLASSES) == (32, 5)
    config = get_config(path_of('timm_flexivit'), **{'DATA.IMAGE_SIZE': 48, 'MODEL.NUM_CLASSES': 9})
    assert (config.DATA.IMAGE_SIZE, config.MODEL.NUM_CLASSES) == (48, 9)
    # Who describes a model gets that one.
    assert get_config(path_of('timm_flexivit'), 'MODEL.DEPTH', 3).MODEL.EMBED_DIM == 768
    (tmp_path / 'a.yaml').write_text('MODEL:\n  DEPTH: 3\n')
    assert get_config(path_of('timm_flexivit'), cfg=str(tmp_path / 'a.yaml')).MODEL.DEPTH == 3
    with pytest.raises(UserError, match='does not say which model it is of, nor how many '
                                        'attention heads its width 32 has'):
        get_config(path_of('hub_mae'))


# What timm's tensors alone do not tell

def strip(name, folder):
    """Copy a checkpoint without its config.json; return its path."""
    shutil.copy(path_of(name), folder / 'model.safetensors')
    return folder / 'model.safetensors'


def test_a_form_of_gelu_that_no_file_states_is_said(tmp_path):
    for name in ('timm_clip', 'timm_siglip_map', 'mm_clip'):
        source = path_of(name) if name == 'mm_clip' else strip(name, tmp_path)
        report = load_pretrained(build(name), source)
        assert report.numerics_unstated == {'gelu': 'erf'}
        assert any('does not say the gelu' in line for line in report.summary())
    report = load_pretrained(build('timm_dinov2'), strip('timm_dinov2', tmp_path))
    assert not report.numerics_unstated


def test_rotary_positions_of_an_unknown_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match="rotary.*Keep timm's config.json beside"):
        load_pretrained(build('timm_dinov3'), strip('timm_dinov3', tmp_path))


def test_dinov3s_own_file(tmp_path):
    """Its registers are storage tokens; a mask says that the keys' bias is not used."""
    theirs = {}
    for name, array in open_container(path_of('timm_dinov3_qkvb')).tree.items():
        name = name.replace('reg_token', 'storage_tokens').replace('gamma_1', 'ls1.gamma')
        name = name.replace('gamma_2', 'ls2.gamma')
        if name.endswith('v_bias'):
            continue
        if name.endswith('q_bias'):
            other = open_container(path_of('timm_dinov3_qkvb')).tree[name.replace('q_', 'v_')]
            name = name.replace('q_bias', 'qkv.bias')
            array = np.concatenate([array, np.full_like(array, 7), other])
            theirs[f'{name}_mask'] = np.ones_like(array)
        theirs[name] = array
    theirs |= {'rope_embed.periods': np.ones(4, 'f4'), 'mask_token': np.ones((1, 32), 'f4')}
    safetensors_file.write(tmp_path / 'a.safetensors', theirs, {})
    model = build('timm_dinov3_qkvb')
    report = load_pretrained(model, tmp_path / 'a.safetensors')
    expected = np.load(FOLDER / 'timm_dinov3_qkvb' / 'expected.npz')
    assert find_error(model, report, expected, 0, 32) <= 5e-6
    assert 'rope_embed.periods' in report.unexpected and report.preprocessing['mean'][0] == 0.485


def write_bare(folder, shapes, name='a.safetensors', table=None):
    """Write a file of timm's names without a config.json, of these shapes; return its path."""
    tensors = {key: np.zeros(shape, 'f4') for key, shape in shapes.items()}
    if table is not None:
        tensors['pos_embed'] = table
    safetensors_file.write(folder / name, tensors, {'format': 'pt'})
    return folder / name


def list_shapes(width=64, depth=1, ratio=4, prefix='', **changes):
    """Return {name: shape} of a plain ViT under timm's names; None leaves a tensor out."""
    shapes = {'cls_token': (1, 1, width), 'pos_embed': (1, 5, width),
              'patch_embed.proj.weight': (width, 3, 2, 2), 'patch_embed.proj.bias': (width,),
              'norm.weight': (width,), 'norm.bias': (width,)}
    for i in range(depth):
        for layer, shape in (('norm1', (width,)), ('attn.qkv', (3 * width, width)),
                             ('attn.proj', (width, width)), ('norm2', (width,)),
                             ('mlp.fc1', (int(ratio * width), width)),
                             ('mlp.fc2', (width, int(ratio * width)))):
            shapes[f'blocks.{i}.{layer}.weight'] = shape
            shapes[f'blocks.{i}.{layer}.bias'] = shape[:1]
    shapes |= {name.replace('__', '.'): shape for name, shape in changes.items()}
    return {prefix + name: shape for name, shape in shapes.items() if shape is not None}


@pytest.mark.parametrize('changes, reason', [
    ({'reg_token': (1, 1, 64), 'attn_pool.latent': (1, 1, 64), 'cls_token': None},     # test_vit3
     'its head may read its registers too'),
    ({'cls_token': None, 'pos_embed': (1, 4, 64), 'blocks.0.attn.qkv.bias': None,      # *_rpn_*
      'fc_norm.weight': (64,), 'fc_norm.bias': (64,), 'norm.weight': None, 'norm.bias': None},
     'its norms may lie behind attention'),
    ({'blocks.0.attn.q_bias': (64,), 'blocks.0.attn.v_bias': (64,),                   # enormous
      'blocks.0.attn.qkv.bias': None, 'blocks.0.mlp.fc1.weight': (548, 64)},
     'its norms may lie behind attention'),
    ({'blocks.0.norm1.bias': None}, 'its norms have no bias'),                         # test_vit4
    ({'pos_embed': None}, 'its positions are rotary'),
    ({'norm_pre.weight': (64,), 'norm_pre.bias': (64,), 'norm.weight': None, 'norm.bias': None},
     'its positions are rotary'),                                                     # vit_pe_*
    ({'rope.freqs': (2, 1, 4, 8)}, 'rotary positions that were learned')])
def test_tensors_that_betray_another_arithmetic(tmp_path, changes, reason):
    path = write_bare(tmp_path, {key: shape for key, shape in
                                 {**list_shapes(), **changes}.items() if shape is not None})
    with pytest.raises(UserError, match=f'a.safetensors: .*{reason}'):
        read_weights(path, project=PROJECT)


def test_the_order_of_a_blocks_layers_betrays_norms_behind_them(tmp_path):
    """As timm makes eva02_enormous; sorted names, as many programs write them, betray nothing."""
    shapes = list_shapes()
    behind = sorted(shapes, key=lambda name: (
        ['attn', 'norm1', 'mlp', 'norm2'].index(name.split('.')[2]) if 'blocks' in name else -1))
    with pytest.raises(UserError, match='its norms may lie behind attention'):
        read_weights(write_bare(tmp_path, {name: shapes[name] for name in behind}),
                     project=PROJECT)
    for order in (shapes, sorted(shapes)):
        path = write_bare(tmp_path, {name: shapes[name] for name in order})
        assert read_weights(path, project=PROJECT).numerics['gelu'] == 'erf'


def test_what_nothing_tells_is_said(tmp_path):
    """In one line each, with the option that states it."""
    def list_assumed(**changes):
        return read_weights(write_bare(tmp_path, list_shapes(**changes)), project=PROJECT).assumed

    assert 'no known model has width 64 and depth 1' in list_assumed()[0]
    assert list_assumed(width=192, depth=12) == []
    [line] = list_assumed(width=384, depth=12)
    assert 'width 384 have 6' in line and 'MODEL.NUM_HEADS' in line
    assert list_assumed(width=384, depth=12, dist_token=(1, 1, 384)) == []
    [line] = list_assumed(width=192, depth=12, blocks__0__gamma_1=(192,), pos_embed=(1, 4, 192))
    assert "read as DeiT III's" in line and 'rope_ape' in line
    report = load_pretrained(build('hub_mae'), path_of('hub_mae'))
    assert any('no known model has width 32' in text for text in report.summary())
    report = load_pretrained(build('timm_flexivit'), path_of('timm_flexivit'))
    assert report.assumed == []


def make_moco_table(side, width):
    """MoCo v3's fixed position table [1, 1 + side ** 2, width], entry by entry."""
    table = np.zeros((1, 1 + side * side, width), 'f4')
    for row in range(side):
        for col in range(side):
            for i in range(width // 4):
                step = 10000 ** (i / (width // 4))
                table[0, 1 + row * side + col, i::width // 4] = (
                    np.sin(row / step), np.cos(row / step), np.sin(col / step), np.cos(col / step))
    return table


@pytest.mark.parametrize('prefix, table', [('base_encoder.', False), ('', True)])
def test_moco_v3s_small_vit_has_twelve_heads(tmp_path, prefix, table):
    """Its container tells it, or in a linear probe's file the fixed position table."""
    shapes = list_shapes(width=384, depth=2, prefix=prefix)
    path = write_bare(tmp_path, shapes, table=make_moco_table(2, 384) if table else None)
    weights = read_weights(path, project=PROJECT)
    assert (weights.num_heads, PROJECT.read_options(weights)['MODEL.NUM_HEADS']) == (12, 12)
    model = VisionTransformer(4, 2, num_classes=3, embed_dim=384, depth=2, num_heads=6)
    with pytest.raises(UserError, match='trained with 12 attention heads, and the model has 6'):
        load_pretrained(model, path)


def test_another_table_is_not_moco_v3s(tmp_path):
    table = make_moco_table(2, 384)
    path = write_bare(tmp_path, list_shapes(width=384), table=table[:, :, ::-1])
    assert read_weights(path, project=PROJECT).num_heads is None


@pytest.mark.parametrize('name', ['hub_dino', 'hub_dino_full', 'hub_dinov2'])
def test_dinos_own_resize(name):
    """DINO's and DINOv2's code resizes to a grid that is larger by 0.1 than the images have."""
    expected = np.load(FOLDER / name / 'expected_own.npz')
    size = CASES[name]['image_sizes'][1]
    model = build(name, size)
    report = load_pretrained(model, path_of(name), position_resize='bicubic_offset')
    assert find_error(model, report, expected, CASES[name]['seed'], size) <= 5e-6
    known = name != 'hub_dino'          # the backbone alone has nothing of DINO's about it
    weights = read_weights(path_of(name), project=PROJECT)
    assert weights.project_resize == ('bicubic_offset' if known else '')
    weights.num_heads = 4
    options = PROJECT.read_options(weights)
    assert options.get('MODEL.POSITION_RESIZE') == ('bicubic_offset' if known else None)
    report = load_pretrained(model, path_of(name))
    how = report.resized['position_embedding']
    assert ('MODEL.POSITION_RESIZE bicubic_offset' in how) == known


def test_a_norm_behind_the_pooling_begins_anew_with_the_head():
    """As in MAE's fine-tuning; under a head that is kept it would give other numbers."""
    changes = {'pool': 'avg', 'norm_after_pooling': True}
    model = build('hub_mae', **changes)
    report = load_pretrained(model, path_of('hub_mae'))
    assert model.fc_norm.weight.numpy().tolist() == [1] * 32
    assert 'begins anew with the head' in report.unexpected['norm.weight']
    assert not {'fc_norm.weight', 'fc_norm.bias'} & set(report.missing)
    with pytest.raises(UserError, match='does not fit the model'):
        load_pretrained(build('hub_mocov3_linear', **changes), path_of('hub_mocov3_linear'))
    load_pretrained(build('hub_mocov3_linear', num_classes=9, **changes),
                    path_of('hub_mocov3_linear'))


@pytest.mark.parametrize('name', ['hf_clip', 'hf_clip_projection'])
def test_a_projection_without_a_bias_is_the_head(name):
    model = build(name, num_classes=open_weights_of(name).tensors['classifier.weight'].shape[1])
    report = load_pretrained(model, path_of(name))
    assert report.complete and not model.classifier.bias.numpy().any()


@pytest.mark.parametrize('pre_norm', [True, False])
def test_a_classifier_of_ours_that_lost_its_bias_is_not_whole(tmp_path, pre_norm):
    """Only CLIP's projection does without one."""
    model = VisionTransformer(image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2,
                              num_classes=3, pre_norm=pre_norm)
    state, path = model.state_dict(), str(tmp_path / 'lacking.pdparams')
    del state['classifier.bias']
    paddle.save(dict(state), path)
    report = load_pretrained(model, path)
    assert report.missing == ['classifier.bias'] and not report.complete


@pytest.mark.parametrize('name, bias', [
    ('hf_vit', 'classifier.bias'), ('timm_clip', 'head.bias'), ('timm_deit3', 'head.bias')])
def test_a_foreign_classifier_that_lost_its_bias_is_not_whole(tmp_path, name, bias):
    tensors = dict(open_container(path_of(name)).tree)
    config = os.path.join(path_of(name), 'config.json')
    if os.path.isfile(config):
        shutil.copy(config, tmp_path)
    del tensors[bias]
    safetensors_file.write(str(tmp_path / 'model.safetensors'), tensors, {'format': 'pt'})
    report = load_pretrained(build(name), str(tmp_path / 'model.safetensors'))
    assert report.missing == ['classifier.bias'] and not report.complete


def open_weights_of(name):
    return read_weights(path_of(name), project=PROJECT)


@pytest.mark.parametrize('count, most, expected', [
    (17, 9, (1, (4, 4))),       # eight registers without rows, not eight rows and a 3 x 3 grid
    (16, 9, (0, (4, 4))), (25, 9, (9, (4, 4))), (18, 3, (2, (4, 4))), (20, 9, None)])
def test_rows_before_the_patches(count, most, expected):
    assert split_rows(count, most) == expected


def test_blocks_outside_the_wrapper_and_tensors_of_nothing(tmp_path):
    """As transformers 5 writes a classifier of MSN, and registers that there are none of."""
    tree = open_container(path_of('hf_msn')).tree
    prefix = 'vit.' if any(name.startswith('vit.') for name in tree) else ''
    tensors = {name.removeprefix(prefix): array for name, array in tree.items()}
    moved = {name if name.startswith(('encoder.', 'classifier.')) else f'vit.{name}': array
             for name, array in tensors.items()}
    moved['vit.embeddings.register_tokens'] = np.zeros((1, 0, 32), 'f4')
    safetensors_file.write(tmp_path / 'model.safetensors', moved, {'format': 'pt'})
    shutil.copy(os.path.join(os.path.dirname(path_of('hf_msn')), 'ckpt', 'config.json')
                if os.path.isfile(path_of('hf_msn')) else
                os.path.join(path_of('hf_msn'), 'config.json'), tmp_path)
    model, other = build('hf_msn'), build('hf_msn')
    load_pretrained(other, path_of('hf_msn'))
    assert load_pretrained(model, tmp_path).missing == load_pretrained(
        other, path_of('hf_msn')).missing
    features = [net.forward_head(net.forward_features(make_images(0, 32)), pre_logits=True).numpy()
                for net in (model, other)]
    np.testing.assert_array_equal(*features)


@pytest.mark.parametrize('shape, reason', [((8, 3, 2, 4, 4), 'videos'), ((8, 48), 'any shape')])
def test_what_is_no_image_of_one_size_is_named(tmp_path, shape, reason):
    path = write_bare(tmp_path, {**list_shapes(width=192), 'patch_embed.proj.weight': shape})
    with pytest.raises(UserError, match=f'a.safetensors takes .*{reason}'):
        PROJECT.read_options(read_weights(path, project=PROJECT))


@pytest.mark.parametrize('name', ['hf_vit', 'hf_clip_projection', 'hf_siglip_vision', 'hf_dinov2'])
def test_a_hugging_face_file_beside_no_config_says_what_was_taken(tmp_path, name):
    path = path_of(name) if path_of(name).endswith('.safetensors') else os.path.join(
        path_of(name), 'model.safetensors')
    shutil.copy(path, tmp_path / 'model.safetensors')
    weights = read_weights(tmp_path / 'model.safetensors', project=PROJECT)
    assert 'no config.json' in weights.assumed[0]
    assert read_weights(path, project=PROJECT).assumed == []


def test_a_classifier_of_siglip_reads_the_mean_also_beside_no_config(tmp_path):
    shutil.copy(os.path.join(path_of('hf_siglip_cls'), 'model.safetensors'), tmp_path)
    assert read_weights(tmp_path / 'model.safetensors', project=PROJECT).pool == 'avg'
