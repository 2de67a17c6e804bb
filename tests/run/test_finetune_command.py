"""finetune.py: from a folder of pictures to a model that predicts, in one command."""

import csv
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from common.deploy import export, predict
from common.run import finetune
from common.run.launch import run_single
from T2T_ViT.project import PROJECT as T2T_VIT
from tests.support.paths import find_run
from tests.support.picture_folders import ODD, add_odd_files, make_digit_folders
from tests.support.trained_digits import fixture_path
from ViT.project import PROJECT as VIT

SHORT = ['-device=cpu', '-num_workers=0']


def read(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = make_digit_folders(tmp_path_factory.mktemp('my pictures'), {0: 72, 1: 25, 6: 6})
    add_odd_files(os.path.join(root, 'zero'))
    return root


@pytest.fixture(scope='module')
def tuned(folder, tmp_path_factory):
    """Return (run folder, log) of a short run from weights that know digits."""
    output = tmp_path_factory.mktemp('runs')
    code = finetune.main(VIT, [folder, f'-pretrained={fixture_path("vit")}', f'-output={output}',
                               *SHORT, '-opts', 'TRAIN.NUM_STEPS', '60'])
    assert code == 0
    run = find_run(output)
    return run, (run / 'log.txt').read_text()


def test_it_says_what_it_found_what_it_plans_and_how_to_change_it(tuned, folder):
    run, log = tuned
    first_update = log.index('update ')
    for text in ('3 classes, 103 pictures: zero 72, one 25, six 6', 'Left out: 5 files',
                 'To learn from: 83 pictures. Held back to measure on: 20', '-val_fraction',
                 'Plan', '-pretrained=X', '-image_size=N', 'TRAIN.NUM_STEPS N', '-batch_size=N',
                 'TRAIN.BASE_LR', 'TRAIN.CROP_SCALE', 'TRAIN.AFFINE_DEGREES 0',
                 'TRAIN.CLASS_WEIGHTS None'):
        assert text in log[:log.index('Training vit')], text
    assert first_update
    assert {os.path.basename(row['path']) for row in read(run / 'left_out.csv')} == {*ODD}


def test_pictures_that_look_one_way_are_not_mirrored(tuned):
    run, log = tuned
    assert 'not mirrored, since all look one way (-opts TRAIN.HFLIP 0.5)' in log
    assert VIT.get_config(str(run / 'config.yaml')).TRAIN.HFLIP == 0


def test_every_class_is_on_the_sheet():
    labels = np.repeat([0, 1, 2], [58, 20, 5])
    shown = finetune.choose_shown(labels, seed=0)
    assert np.bincount(labels[shown]).tolist() == [10, 9, 5] and len(set(shown)) == 24
    many = np.arange(100)
    assert len(set(finetune.choose_shown(many, seed=0))) == 24
    assert not np.array_equal(finetune.choose_shown(many, 0), finetune.choose_shown(many, 1))


def test_training_and_validation_share_nothing(tuned, folder):
    rows = read(tuned[0] / 'pictures.csv')
    contents = {part: {Path(folder, row['path']).read_bytes() for row in rows
                       if row['split'] == part} for part in ('train', 'val')}
    assert len(contents['train']) == 83 and len(contents['val']) == 20
    assert not contents['train'] & contents['val']


def test_it_ends_with_figures_sheets_and_the_best_checkpoint(tuned):
    run, log = tuned
    assert 'Accuracy ' in log and 'mean over 3 classes' in log
    assert 'Few pictures to learn from: six 5.' in log and '% of others like them' in log
    assert 'best so far' not in log and 'The last checkpoint, on the pictures' in log
    assert 'acc5' not in log                # of three classes
    accuracies = [float(row['acc1']) for row in read(run / 'per_class.csv')]
    mean = sum(accuracies) / 3
    assert f'mean over 3 classes {mean:.1f} %' in log and mean > 90
    last = [json.loads(line)['acc1'] for line in (run / 'metrics.jsonl').read_text().splitlines()
               if '"eval"' in line][-1]      # few pictures: the latest counts
    total = sum(float(row['correct']) for row in read(run / 'per_class.csv'))
    assert 100 * total / 20 == pytest.approx(last)
    assert (run / 'augmented.png').stat().st_size > 5000
    assert (run / 'mistakes.png').exists() == (total < 20)


def test_the_commands_that_it_prints_work(tuned, tmp_path, capsys):
    run, log = tuned
    lines = [line.split('  ', 1)[1] for line in log.splitlines() if '  python ' in line]
    commands = {words[1]: words[2:] for words in map(shlex.split, lines)}
    assert set(commands) == {'predict.py', 'demo.py', 'export_model.py'}
    capsys.readouterr()
    assert predict.main(VIT, [*commands['predict.py'], '-device=cpu', '-topk=1']) == 0
    picture = commands['predict.py'][-1]
    assert Path(picture).parent.name in capsys.readouterr().out
    assert export.main(VIT, commands['export_model.py']) == 0
    assert (run / 'exported' / 'preprocessing.json').exists()
    assert commands['demo.py'][0] == f'-pretrained={run}/best'
    assert os.path.isdir(commands['demo.py'][1].removeprefix('-examples='))


def test_its_config_runs_again(tuned, tmp_path):
    run, _ = tuned
    assert run_single(VIT, [f'-cfg={run}/config.yaml', f'-output={tmp_path}']) == 0
    again = find_run(tmp_path)

    def losses(folder):
        return [json.loads(line)['loss'] for line in
                (folder / 'metrics.jsonl').read_text().splitlines() if 'train_epoch' in line]
    assert losses(again)[:2] == pytest.approx(losses(run)[:2], rel=1e-4)


def test_without_weights_a_small_model_is_trained(folder, tmp_path):
    for project, name in ((VIT, 'vit_hybrid_32'), (T2T_VIT, 't2t_vit_small_64')):
        output = tmp_path / project.name
        assert finetune.main(project, [folder, f'-output={output}', *SHORT, '-opts',
                                       'TRAIN.NUM_STEPS', '4']) == 0
        log = (find_run(output) / 'log.txt').read_text()
        assert f'{name}, a small one from scratch' in log and '4 updates of 16 pictures' in log


def test_the_same_command_goes_on(folder, tmp_path, capsys):
    """In the same folder, and to the same ending."""
    def tune(updates, target):
        assert finetune.main(VIT, [folder, f'-output={tmp_path}/runs', *SHORT, f'-resume={target}',
                                   '-opts', 'TRAIN.NUM_STEPS', updates, 'MODEL.DEPTH', '1']) == 0
        return capsys.readouterr().out

    other = tmp_path / 'runs' / 'damaged'
    other.mkdir(parents=True)
    for name in ('pictures.csv', 'best.pdparams', 'config.yaml'):
        (other / name).write_bytes(b'\xff')
    out = tune('2', 'auto')
    assert 'starting from the beginning' in out and 'Done: 2 updates' in out
    run, = (tmp_path / 'runs').glob('train-*')
    out = tune('4', 'auto')
    assert list((tmp_path / 'runs').glob('train-*')) == [run]
    for text in ('Resuming from', 'Done: 4 updates', 'Accuracy ', 'Next ('):
        assert text in out, text
    out = tune('4', run)
    assert 'Nothing to do: update 4 of 4' in out and 'Next (' in out


@pytest.mark.parametrize('target', ['empty', 'other pictures'])
def test_a_run_on_other_pictures_is_not_gone_on_with(target, folder, tuned, tmp_path, capsys):
    root = folder
    run = tmp_path / 'empty'
    run.mkdir()
    if target == 'other pictures':
        run, root = tuned[0], make_digit_folders(tmp_path / 'data', {0: 8, 1: 8})
    assert finetune.main(VIT, [root, f'-resume={run}', f'-output={tmp_path}/runs', *SHORT]) == 2
    assert 'is no folder of a run of finetune.py on' in capsys.readouterr().err


def test_what_the_user_sets_wins(folder, tmp_path):
    code = finetune.main(VIT, [folder, f'-output={tmp_path}', *SHORT, '-val_fraction=0.5',
                               '-batch_size=8', '-image_size=48', '-opts', 'TRAIN.NUM_STEPS', '3',
                               'MODEL.DEPTH', '1', 'MODEL.PATCH_SIZE', '12', 'TRAIN.BASE_LR',
                               '1e-5', 'TRAIN.CLASS_WEIGHTS', 'None'])
    assert code == 0
    config = VIT.get_config(str(find_run(tmp_path) / 'config.yaml'))
    assert (config.DATA.BATCH_SIZE, config.DATA.IMAGE_SIZE, config.MODEL.DEPTH,
            config.TRAIN.BASE_LR, config.TRAIN.CLASS_WEIGHTS) == (8, 48, 1, 1e-5, None)
    rows = read(find_run(tmp_path) / 'pictures.csv')
    assert sum(row['split'] == 'val' for row in rows) == 51


@pytest.mark.parametrize('more, said', [
    (['-val_fraction=1'], '-val_fraction'), (['-batch_size=1000'], 'there are 83 training'),
    (['-pretrained=/no/such'], '/no/such'), (['-opts', 'DATA.DATASET', 'digits'], 'DATA.DATASET'),
    (['-cfg=/no/such.yaml'], '/no/such.yaml'), (['-data_path=x'], '-data_path'),
    (['Pictures'], 'Unrecognized arguments: Pictures. Quote names that have spaces')])
def test_wrong_input_ends_before_a_run_folder_is_made(more, said, folder, tmp_path, capsys):
    assert finetune.main(VIT, [folder, f'-output={tmp_path}/runs', *SHORT, *more]) == 2
    output = capsys.readouterr()
    assert said in output.err and 'Plan' not in output.out
    assert not os.path.exists(tmp_path / 'runs') or os.listdir(tmp_path / 'runs') == []


def test_pictures_that_are_all_taken_for_one_class_are_warned_of(folder, tmp_path):
    assert finetune.main(VIT, [folder, f'-output={tmp_path}', *SHORT, '-opts', 'TRAIN.NUM_STEPS',
                               '1', 'TRAIN.BASE_LR', '0', 'TRAIN.WARMUP_START_LR', '0',
                               'MODEL.ZERO_HEAD', 'True', 'MODEL.DEPTH', '1']) == 0
    assert 'Every prediction is the class one' in (find_run(tmp_path) / 'log.txt').read_text()


def test_a_class_of_one_picture_is_said_to_be_unmeasured(tmp_path):
    root = make_digit_folders(tmp_path / 'data', {0: 8, 1: 8, 2: 1})
    assert finetune.main(VIT, [root, f'-output={tmp_path}/runs', *SHORT, '-opts',
                               'TRAIN.NUM_STEPS', '2', 'MODEL.DEPTH', '1']) == 0
    log = (find_run(tmp_path / 'runs') / 'log.txt').read_text()
    assert 'No picture is held back of 1 classes, which have too few: two' in log


@pytest.mark.slow
def test_from_scratch_three_classes_without_a_flag(folder, tmp_path):
    assert finetune.main(VIT, [folder, f'-output={tmp_path}']) == 0
    run = find_run(tmp_path)
    assert sum(float(row['acc1']) for row in read(run / 'per_class.csv')) / 3 >= 95
