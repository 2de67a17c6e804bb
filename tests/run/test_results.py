"""results.csv: a line for each evaluation, of all runs that write to an output folder."""

import csv
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.run.launch import run_single
from common.run.results import COLUMNS, NAME, append_row
from tests.support.colours import list_arguments, make_colours
from ViT.project import PROJECT


def read_rows(folder):
    with open(folder / NAME, encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


@pytest.mark.runs
def test_a_training_and_evaluations_leave_a_line_each(tmp_path, capsys):
    data = make_colours(tmp_path / 'data, here', each=4)
    flags = ['-device=cpu', f'-data_path={data}', f'-output={tmp_path}/runs']
    assert run_single(PROJECT, [*flags, *list_arguments(TRAIN__NUM_EPOCHS=2)]) == 0
    run, = (tmp_path / 'runs').glob('train-*')
    trained, = read_rows(tmp_path / 'runs')
    last = f'{run}/last'
    for _ in range(2):
        assert run_single(PROJECT, [*flags, '-eval', f'-pretrained={last}', *list_arguments()]) == 0
    rows = read_rows(tmp_path / 'runs')
    assert rows[0] == trained and len(rows) == 3
    figures = ('model', 'weights', 'data', 'count', 'acc1', 'acc5', 'loss', 'engine')
    assert trained['weights'] == last and trained['engine'] == 'model'
    assert os.path.isfile(trained['config']) and str(data) in trained['data']
    line = [line for line in (run / 'log.txt').read_text().splitlines() if 'Evaluation: ' in line]
    assert f'loss {trained["loss"]}, acc1 {trained["acc1"]}, {trained["count"]} images' in line[-1]
    assert trained['acc5'] == '100.00'      # of three classes, which no line of the log tells
    assert [rows[1][key] for key in figures] == [trained[key] for key in figures]
    assert rows[1]['config'] != rows[2]['config']


def test_lines_that_are_appended_at_once_are_whole(tmp_path):
    """By threads with files of their own, between which the lock is as between processes."""
    path = tmp_path / NAME

    def append(name):
        for number in range(100):
            append_row(str(path), [name, 'x' * 5000, str(number)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(append, 'abcd'))
    header, *rows = [line.split(',') for line in path.read_text().splitlines()]
    assert tuple(header) == COLUMNS and len(rows) == 400
    for name in 'abcd':
        assert [row for row in rows if row[0] == name] == \
            [[name, 'x' * 5000, str(number)] for number in range(100)]


def test_names_are_quoted_and_half_a_line_is_ended(tmp_path):
    row = [str(number) for number in range(len(COLUMNS))]
    append_row(str(tmp_path / NAME), row)
    with open(tmp_path / NAME, 'ab') as file:
        file.write(b'half of')
    append_row(str(tmp_path / NAME), ['"a, b"', *row[1:]])
    assert [list(found.values())[0] for found in read_rows(tmp_path)] == ['0', 'half of', '"a, b"']


@pytest.mark.parametrize('kind', ['another table', 'folder', 'pipe', 'no folder'])
def test_what_cannot_be_appended_to_is_left_and_said(kind, tmp_path):
    path = tmp_path / NAME
    if kind == 'another table':
        path.write_text('name,score\nmine,1\n')
    elif kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    else:
        path = tmp_path / 'missing' / NAME
    with pytest.raises(OSError, match='with other columns|not a regular|directory'):
        append_row(str(path), ['a'])
    if kind == 'another table':
        assert path.read_text() == 'name,score\nmine,1\n'
