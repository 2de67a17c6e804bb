"""Which model, without -cfg: from a run's record, a file's shapes; and where nothing says it."""

import os
import shutil

import paddle
import pytest

from common.checkpoints.content import read_checkpoint
from common.cli import build_config, parse_command_line
from common.config import get_value
from common.errors import UserError
from common.run.launch import run_multi, run_single
from common.tools import model_info
from common.weights.registry import resolve
from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.colours import list_arguments, make_colours
from tests.support.data_folders import make_folders
from tests.support.paths import find_run
from tests.support.trained_digits import fixture_path
from ViT.project import PROJECT as VIT

PROJECTS = {'vit': VIT, 't2t': T2T_VIT}


def parse(project, *argv):
    return parse_command_line(project, list(argv), 'main_single_gpu.py', needs_model=True)


@pytest.mark.parametrize('name', PROJECTS)
def test_a_checkpoint_records_its_model(name):
    """For training as for evaluation; the recipe is not taken over."""
    project = PROJECTS[name]
    saved = project.get_config(flags={
        key: value for key, value in _read_record(fixture_path(name)).items() if key != 'BASE'})
    for more in (['-eval'], ['-dataset=cifar10']):
        config = parse(project, f'-pretrained={fixture_path(name)}', *more)
        for key in ('MODEL.EMBED_DIM', 'MODEL.DEPTH', 'MODEL.NUM_HEADS', 'MODEL.MLP_RATIO',
                    'MODEL.NAME', 'DATA.IMAGE_SIZE', 'DATA.CROP_PCT'):
            assert get_value(config, key) == get_value(saved, key), key
        assert config.MODEL.NUM_CLASSES == 10
        assert config.TRAIN.NUM_EPOCHS == project.get_config().TRAIN.NUM_EPOCHS


def _read_record(path):
    from common.weights.load import open_weights
    return open_weights(path, None).options


@pytest.mark.parametrize('options, pixels', [
    ({}, 64), ({'MODEL.TOKEN_TYPE': 'transformer', 'MODEL.TOKEN_DIM': 64}, 96),
    ({'MODEL.TOKEN_DIM': 32, 'MODEL.QKV_BIAS': True, 'MODEL.MLP_RATIO': 2.7}, 64)])
def test_a_file_of_t2t_weights_alone_tells_its_model(options, pixels, tmp_path):
    sizes = {'MODEL.EMBED_DIM': 128, 'MODEL.DEPTH': 3, 'MODEL.NUM_HEADS': 2, 'DATA.IMAGE_SIZE':
             pixels, 'MODEL.NUM_CLASSES': 7, **options}
    model = T2T_VIT.build_model(T2T_VIT.get_config(flags=sizes))
    paddle.save(model.state_dict(), str(tmp_path / 'weights.pdparams'))
    config = build_config(T2T_VIT, None, {'EVAL': True, 'MODEL.PRETRAINED':
                                          str(tmp_path / 'weights.pdparams')}, [])
    for key, value in sizes.items():
        found = get_value(config, key)
        assert int(128 * found) == int(128 * value) if key == 'MODEL.MLP_RATIO' else \
            found == value, key
    again = T2T_VIT.build_model(config).state_dict()
    assert {name: value.shape for name, value in again.items()} == \
        {name: value.shape for name, value in model.state_dict().items()}


def test_a_hybrid_tells_its_model(tmp_path):
    sizes = {'MODEL.EMBED_DIM': 192, 'MODEL.DEPTH': 1, 'MODEL.NUM_HEADS': 3, 'MODEL.PATCH_SIZE': 8,
             'MODEL.HYBRID': [2, 1], 'MODEL.HYBRID_WIDTH': 32, 'DATA.IMAGE_SIZE': 64}
    model = VIT.build_model(VIT.get_config(flags=sizes))
    paddle.save(model.state_dict(), str(tmp_path / 'hybrid.pdparams'))
    config = build_config(VIT, None, {'EVAL': True, 'MODEL.PRETRAINED':
                                      str(tmp_path / 'hybrid.pdparams')}, [])
    assert {key: get_value(config, key) for key in sizes} == sizes


def test_without_a_model_the_scripts_ask_for_one(tmp_path, capsys):
    for run in (run_single, run_multi):
        for more in ([], ['-dataset=cifar10'], ['-eval'], ['-opts', 'TRAIN.NUM_EPOCHS', '1']):
            assert run(VIT, [f'-output={tmp_path}/runs', *more]) == 2
            error = capsys.readouterr().err
            assert '-cfg=configs/vit_digits.yaml' in error and '-pretrained=FILE' in error
            assert 'finetune.py' in error
    assert not os.path.exists(tmp_path / 'runs')


def test_what_nobody_set_is_adopted_with_a_line_and_a_contradiction_is_refused(tmp_path, capsys):
    data = make_colours(tmp_path / 'data', each=4)
    assert run_single(VIT, ['-device=cpu', f'-data_path={data}', f'-output={tmp_path}/first',
                            *list_arguments(TRAIN__NUM_EPOCHS=1), 'MODEL.POOL', 'avg']) == 0
    run = find_run(tmp_path / 'first')
    evaluate = ['-device=cpu', f'-data_path={data}', f'-output={tmp_path}/runs', '-eval',
                f'-pretrained={run}', *list_arguments()]
    capsys.readouterr()
    assert run_single(VIT, evaluate) == 0
    assert 'As recorded in' in (said := capsys.readouterr().out) and "MODEL.POOL 'avg'" in said
    log, = (tmp_path / 'runs').glob('*/log.txt')
    assert log.read_text().count('As recorded in') == 1
    assert run_single(VIT, [*evaluate, 'MODEL.POOL', 'token']) == 2
    error = capsys.readouterr().err
    assert "'avg'" in error and "'token'" in error


def test_classes_are_counted_in_the_data(tmp_path, capsys):
    folder = make_folders(tmp_path / 'data', per_class=2)
    tiny = ['-cfg=configs/vit_tiny_patch16_224.yaml', '-dataset=imagefolder',
            f'-data_path={folder}']
    assert parse(VIT, *tiny).MODEL.NUM_CLASSES == 3
    assert parse(VIT, *tiny, '-num_classes=3').MODEL.NUM_CLASSES == 3
    assert parse(VIT, '-cfg=configs/vit_tiny_patch16_224.yaml').MODEL.NUM_CLASSES == 1000
    assert parse(VIT, *tiny[:1], '-dataset=cifar100').MODEL.NUM_CLASSES == 100
    assert parse(VIT, *tiny[:2], '-data_path=/no/such').MODEL.NUM_CLASSES == 1000   # said later
    config = parse(T2T_VIT, '-cfg=configs/finetune/t2t_vit_14.yaml', f'-data_path={folder}')
    assert config.MODEL.NUM_CLASSES == 3
    for number in (2, 4):
        run = [*tiny, f'-num_classes={number}', f'-output={tmp_path}/runs', '-batch_size=2',
               '-device=cpu', '-num_workers=0', '-opts', 'MODEL.DEPTH', '1']
        assert run_single(VIT, run) == 2
        assert '-num_classes=3' in capsys.readouterr().err


def test_lists_with_names_beside_them(tmp_path):
    """As check_data.py -write_lists leaves them."""
    from common.tools import check_data
    folder = make_folders(tmp_path / 'data', per_class=2)
    assert check_data.main(VIT, ['-dataset=imagefolder', f'-data_path={folder}',
                                 '-write_lists']) == 0
    config = parse(VIT, '-cfg=configs/vit_tiny_patch16_224.yaml', '-dataset=imagefolder',
                   f'-data_path={folder}')
    assert config.MODEL.NUM_CLASSES == 3
    dataset = VIT.get_dataset(config, True)
    assert 'train_list.txt' in dataset.reader.origin
    assert dataset.class_names == ['cat', 'dog', 'emu']
    with open(os.path.join(folder, 'labels.txt'), 'w') as file:
        file.write('cat\n')                                 # not theirs: too few
    assert VIT.get_dataset(config, True).class_names is None


def test_words_for_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='no checkpoint of a run in output'):
        resolve('best', VIT)
    for number, name in enumerate(('train-1', 'train-2')):
        os.makedirs(f'output/{name}')
        for word in ('best', 'last'):
            path = f'output/{name}/{word}.pdparams'
            shutil.copy(fixture_path('vit'), path)
            os.utime(path, (1000 + number, 1000 + number))
    os.remove('output/train-2/best.pdparams')
    assert resolve('best', VIT) == 'output/train-1/best.pdparams'
    assert resolve('last', VIT) == resolve('latest', VIT) == 'output/train-2/last.pdparams'
    assert resolve('output', VIT) == resolve('output/', VIT) == 'output/train-2/last.pdparams'
    assert resolve('output/train-1', VIT) == 'output/train-1/best.pdparams'
    assert resolve('output/train-1/latest', VIT) == 'output/train-1/last.pdparams'
    shutil.copy(fixture_path('vit'), 'best')                # a file of that name comes first
    assert resolve('best', VIT) == 'best'


def test_a_run_goes_on_without_its_yaml_file(tmp_path, capsys):
    data = make_colours(tmp_path / 'data', each=4)
    assert run_single(VIT, ['-device=cpu', f'-data_path={data}', f'-output={tmp_path}/runs',
                            *list_arguments(TRAIN__NUM_EPOCHS=1)]) == 0
    run = find_run(tmp_path / 'runs')
    for target in (run, run / 'last', 'auto', 'latest'):
        assert run_single(VIT, [f'-resume={target}', f'-output={tmp_path}/runs', '-opts',
                                'TRAIN.NUM_EPOCHS', '2']) == 0, target
        if target != 'auto':
            shutil.rmtree(max((tmp_path / 'runs').glob('train-*'), key=lambda path: path.name))
    assert read_checkpoint(str(run / 'last.pdparams'))['epoch'] == 2


def test_model_info_of_weights(capsys):
    assert model_info.main(VIT, [f'-pretrained={fixture_path("vit")}']) == 0
    out = capsys.readouterr().out
    saved = sum(int(tensor.size) for tensor in VIT.build_model(build_config(
        VIT, None, {'MODEL.PRETRAINED': fixture_path('vit'), 'EVAL': True}, [])).state_dict()
        .values())
    assert 'vit_digits' in out and f'{saved:,}' in out
