"""plot.py draws what metrics.jsonl holds; VisualDL reads back what a run has written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.run.launch import run_single
from common.run.log import RunLog
from common.tools import plot
from tests.support.paths import ROOT
from ViT.project import PROJECT as VIT


def write_run(folder, epochs=3, scale=1.0, ema=False):
    """Write the metrics.jsonl of a made-up run of ten updates an epoch."""
    folder.mkdir(parents=True)
    lines = []
    for update in range(1, 10 * epochs + 1):
        lines.append({'event': 'train_step', 'update': update, 'epoch': (update + 9) // 10,
                      'loss': scale * 2 / update, 'lr': 1e-3 * update, 'images_per_second': 50.0})
        if update % 10 == 0:
            lines.append({'event': 'train_epoch', 'update': update, 'epoch': update // 10,
                          'loss': scale, 'lr': 1e-3})
            lines += [{'event': 'eval', 'update': update, 'epoch': update // 10,
                       'weights': weights, 'loss': scale, 'acc1': 10.0 * update / 10}
                      for weights in (('model', 'ema') if ema else ('model',))]
    (folder / 'metrics.jsonl').write_text('\n'.join(json.dumps(line) for line in lines) + '\n')
    return str(folder)


class TestPicture:
    @pytest.fixture(autouse=True)
    def need_matplotlib(self):
        pytest.importorskip('matplotlib')

    def test_several_runs_are_drawn_over_each_other(self, tmp_path, monkeypatch, capsys):
        from matplotlib.figure import Figure

        figures = []
        save = Figure.savefig
        monkeypatch.setattr(Figure, 'savefig', lambda figure, *given, **options: (
            figures.append(figure), save(figure, *given, **options)))
        runs = [write_run(tmp_path / 'first'), write_run(tmp_path / 'second', 5, 0.5, ema=True)]
        target = tmp_path / 'curves.png'
        assert plot.main([*runs, '-o', str(target)]) == 0
        assert f'Wrote {target}' in capsys.readouterr().out
        assert Image.open(target).size >= (1000, 700)

        panels = {axes.get_title(): axes for axes in figures[0].axes}
        curves = {title: [(line.get_color(), line.get_linestyle(), line.get_ydata())
                          for line in axes.lines] for title, axes in panels.items()}
        assert [len(curve) for _, _, curve in curves['Learning rate']] == [30, 50]
        assert {color for color, _, _ in curves['Learning rate']} == {'C0', 'C1'}
        assert [(style, len(curve)) for _, style, curve in curves['Loss']] == [
            ('-', 30), ('--', 3), ('-', 50), ('--', 5), (':', 5)]
        np.testing.assert_allclose(curves['Loss'][0][2], 2 / np.arange(1, 31))
        assert [list(curve) for _, _, curve in curves['Validation accuracy']] == [
            [10, 20, 30], [10, 20, 30, 40, 50], [10, 20, 30, 40, 50]]
        assert [curve[0] for _, _, curve in curves['Training throughput']] == [50.0, 50.0]
        legend, = figures[0].legends
        assert [text.get_text() for text in legend.get_texts()] == ['first', 'second']

    def test_a_run_is_laid_over_committed_curves(self, tmp_path, monkeypatch, capsys):
        from matplotlib.figure import Figure

        figures = []
        save = Figure.savefig
        monkeypatch.setattr(Figure, 'savefig', lambda figure, *given, **options: (
            figures.append(figure), save(figure, *given, **options)))
        run = write_run(tmp_path / 'mine')
        reference = tmp_path / 'recipe.jsonl'
        reference.write_text(Path(write_run(tmp_path / 'other', 2, 0.5), 'metrics.jsonl')
                             .read_text().replace('"acc1": 20.0', '"acc1": 20.5'))
        target = tmp_path / 'curves.png'
        assert plot.main([run, '--against', str(reference), '-o', str(target)]) == 0
        assert capsys.readouterr().out.splitlines()[1:] == [
            'mine: acc1 20.00 at update 20, recipe 20.50 (-0.50)']
        rates = next(axes for axes in figures[0].axes if axes.get_title() == 'Learning rate')
        assert [(line.get_color(), len(line.get_ydata())) for line in rates.lines] == [
            (plot.REFERENCE_COLOUR, 20), ('C0', 30)]
        legend, = figures[0].legends
        assert [text.get_text() for text in legend.get_texts()] == ['recipe', 'mine']

    def test_an_evaluation_alone_leaves_panels_empty(self, tmp_path):
        folder = tmp_path / 'eval'
        folder.mkdir()
        (folder / 'metrics.jsonl').write_text(
            '{"event": "eval", "update": 0, "weights": "model", "loss": 1.0, "acc1": 50.0}\n')
        assert plot.main([str(folder), '-o', str(tmp_path / 'curves.png')]) == 0

    def test_a_picture_that_cannot_be_written_is_said(self, tmp_path, capsys):
        run = write_run(tmp_path / 'run')
        for target in (tmp_path / 'no' / 'curves.png', tmp_path / 'curves.xyz'):
            assert plot.main([run, '-o', str(target)]) == 2
            assert f'Cannot write {target}' in capsys.readouterr().err

    @pytest.mark.runs
    @pytest.mark.parametrize('folder', ['ViT', 'T2T_ViT'])
    def test_the_scripts_work_from_their_folder(self, tmp_path, folder):
        run = write_run(tmp_path / 'run')
        done = subprocess.run(
            [sys.executable, 'plot.py', run, '--output', str(tmp_path / 'curves.png')],
            cwd=ROOT / folder, capture_output=True, text=True)
        assert done.returncode == 0 and (tmp_path / 'curves.png').exists(), done.stderr


def test_matplotlib_is_asked_for_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert plot.main([write_run(tmp_path / 'run')]) == 2
    assert 'plot.py needs the package matplotlib: pip install matplotlib' in \
        capsys.readouterr().err


@pytest.mark.parametrize('content, words', [
    (None, 'Give a run folder, with metrics.jsonl in it'),
    (b'', 'has neither reported nor validated'),
    (b'{"event": "train_step"\n{}\n', 'line 1: not JSON'),
    (b'\xff\xfe\x00', 'is not a metrics.jsonl'),
])
def test_what_is_no_run_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / 'metrics.jsonl').write_bytes(content)
    with pytest.raises(UserError, match=words):
        plot.read_metrics(str(tmp_path))


def test_a_line_being_written_is_left_out(tmp_path):
    run = write_run(tmp_path / 'run')
    with open(f'{run}/metrics.jsonl', 'a', encoding='utf-8') as file:
        file.write('{"event": "train_st')
    assert plot.read_metrics(run) == plot.read_metrics(f'{run}/metrics.jsonl')
    assert len(plot.read_metrics(run)) == 36


def test_runs_are_told_apart(tmp_path):
    paths = [str(tmp_path / part / 'run') for part in ('a', 'b')]
    assert plot.name_runs(paths) == ['a/run', 'b/run']
    assert plot.name_runs([paths[0], str(tmp_path / 'other')]) == ['run', 'other']
    assert plot.name_runs([paths[0], paths[0]]) == [paths[0], paths[0]]


@pytest.mark.parametrize('path, name', [
    ('docs/curves/recipe.jsonl', 'recipe'), ('output/train-1/metrics.jsonl', 'train-1'),
    ('output/train-1', 'train-1'), ('output/train-1/', 'train-1')])
def test_a_run_has_the_name_of_its_file_or_folder(tmp_path, monkeypatch, path, name):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.touch() if file.suffix else file.mkdir()
    assert plot.name_runs([path]) == [name]


def test_runs_without_a_common_validation_are_said():
    line = {'event': 'eval', 'update': 10, 'weights': 'model', 'acc1': 1.0}
    assert plot.compare_accuracy('mine', [line], 'recipe', [line | {'update': 20}]) == \
        'mine and recipe were validated at no update in common.'


# VisualDL


def test_visualdl_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'visualdl', None)
    with pytest.raises(UserError, match='needs the package visualdl .*pip install visualdl'):
        RunLog(str(tmp_path), visualdl=True)


def test_visualdl_reads_back_what_a_run_wrote(tmp_path):
    reader = pytest.importorskip('visualdl').LogReader
    assert run_single(VIT, [
        '-cfg=configs/vit_digits.yaml', f'-output={tmp_path}', '-device=cpu', '-num_workers=0',
        '-visualdl', '-opts', 'MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2', 'MODEL.DEPTH', '1',
        'TRAIN.NUM_STEPS', '4', 'TRAIN.WARMUP_EPOCHS', '0', 'REPORT_FREQ', '2',
        'TRAIN.MODEL_EMA', 'True']) == 0
    folder, = tmp_path.iterdir()
    events = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    log, = (folder / 'visualdl').iterdir()
    scalars = reader(file_path=str(log))
    for event in ('train_step', 'train_epoch', 'eval', 'eval_ema'):
        lines = [line for line in events if line['event'] == event.removesuffix('_ema')
                 and (line.get('weights') == 'ema') == event.endswith('_ema')]
        assert lines
        for key in ('loss', 'acc1' if event.startswith('eval') else 'lr'):
            found = scalars.get_data('scalar', f'{event}/{key}')
            assert [item.id for item in found] == [line['update'] for line in lines]
            np.testing.assert_allclose([item.value for item in found],
                                       [line[key] for line in lines], rtol=1e-6)


@pytest.mark.parametrize('texts, expected', [
    (['TRAIN: {SMOOTHING: 0.1}'], 'training, with label smoothing'),
    (['TRAIN: {SMOOTHING: 0.0}', 'TRAIN: {CUTMIX_ALPHA: 1.0, SMOOTHING: 0.1}'],
     'training, with label smoothing and mixup'),
    (['TRAIN: {SMOOTHING: 0.0, MIXUP_ALPHA: 0.0}'], 'training'),
    (['[]', 'TRAIN: [1]', 'TRAIN:', ': :', None], 'training')])
def test_the_legend_says_what_the_training_loss_is_of(tmp_path, texts, expected):
    folders = []
    for number, text in enumerate(texts):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        if text is not None:
            (folders[-1] / 'config.yaml').write_text(text)
    assert plot.describe_training([str(folder) for folder in folders]) == expected
    files = [str(folder / 'metrics.jsonl') for folder in folders]
    assert plot.describe_training(files) == expected


def test_metrics_without_line_ends_are_refused(tmp_path, capsys):
    (tmp_path / 'metrics.jsonl').write_text('{"event": "train_step", "update": 1}\n')
    os.truncate(tmp_path / 'metrics.jsonl', 40 << 30)
    assert plot.main([str(tmp_path)]) == 2
    assert 'line 2: more than 1,048,576 letters' in capsys.readouterr().err
