"""What an evaluation got wrong: accuracy of each class, confusion matrix, worst mistakes."""

import csv
import json
import os
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from PIL import Image

from common.fonts import measure
from common.run.launch import run_single
from common.training import confusion
from common.training.confusion import (
    Predictions,
    count_confusion,
    draw_confusion,
    write_report,
)
from tests.support.data_folders import make_folders
from tests.support.paths import find_run
from ViT.project import PROJECT as VIT


def make_samples(num_samples, num_classes, seed=0):
    """Return random (logits float32 [N, C], labels [N]); about half of them are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_samples)
    logits = rng.standard_normal((num_samples, num_classes)).astype('float32')
    logits[np.arange(num_samples), labels] += 2.0
    return logits, labels


def collect(logits, labels, batch_size=7):
    """Return Predictions that took in the samples in the opposite order, batch by batch."""
    predictions = Predictions()
    order = np.arange(len(labels))[::-1]
    for first in range(0, len(labels), batch_size):
        chosen = order[first:first + batch_size]
        predictions.add(paddle.to_tensor(logits[chosen]), paddle.to_tensor(labels[chosen]),
                        paddle.to_tensor(chosen.astype('int64')))
    return predictions


def read_csv(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def make_dataset(class_names=None):
    return SimpleNamespace(class_names=class_names,
                           describe_sample=lambda index: f'picture {index}.jpg')


@pytest.mark.parametrize('correct, total, interval', [
    (21, 21, (84.5, 100.0)), (0, 5, (0.0, 43.4)), (81, 263, (25.5, 36.6))])
def test_interval_of_an_accuracy(correct, total, interval):
    """The last is of Newcombe, Statistics in Medicine 17 (1998), table I: 0.2553 to 0.3662."""
    assert confusion.find_interval(correct, total) == pytest.approx(interval, abs=0.05)


def test_predictions_come_back_in_order_with_their_probabilities():
    logits, labels = make_samples(40, 6)
    samples = collect(logits, labels).gather()
    exponentials = np.exp(logits.astype('float64'))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(samples[:, 0], np.arange(40))
    np.testing.assert_array_equal(samples[:, 1], labels)
    np.testing.assert_array_equal(samples[:, 2], logits.argmax(axis=1))
    np.testing.assert_allclose(samples[:, 3], probabilities.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(samples[:, 4], probabilities[np.arange(40), labels], rtol=1e-5)


def test_processes_with_unequal_shares_are_joined(monkeypatch):
    """Ranks 0, 1 and 2 have 5, 4 and 0 samples; each call of the collective gives all of theirs."""
    logits, labels = make_samples(9, 4)
    parts = [np.arange(0, 9, 2), np.arange(1, 9, 2), np.arange(0)]
    ranks = []
    for part in parts:
        predictions = Predictions()
        if len(part):
            predictions.add(paddle.to_tensor(logits[part]), paddle.to_tensor(labels[part]),
                            paddle.to_tensor(part))
        ranks.append(predictions)

    def gather(values):
        if len(values) == 1:
            return np.array([[len(part)] for part in parts], dtype='float64')
        assert len(values) == 25                # every rank gives the same number of values
        own = [rank.columns[0].numpy() if rank.columns else np.zeros([0, 5]) for rank in ranks]
        return np.stack([np.concatenate([rows, np.full([5 - len(rows), 5], -1)]).ravel()
                         for rows in own])

    monkeypatch.setattr(confusion, 'gather_over_ranks', gather)
    for rank in ranks:
        samples = rank.gather()
        np.testing.assert_array_equal(samples[:, 0], np.arange(9))
        np.testing.assert_array_equal(samples[:, 1], labels)


def test_tables_are_those_of_a_plain_count(tmp_path):
    logits, labels = make_samples(200, 5)
    labels[labels == 3] = 0                     # a class without images
    predicted = logits.argmax(axis=1)
    names = ['ant', 'bee', 'cat, black', 'dog', 'emu']
    write_report(str(tmp_path), collect(logits, labels).gather(), make_dataset(names), 5)

    expected = np.zeros((5, 5), int)
    for label, prediction in zip(labels, predicted):
        expected[label, prediction] += 1
    np.testing.assert_array_equal(count_confusion(labels, predicted, 5), expected)
    rows = read_csv(tmp_path / 'confusion.csv')
    assert [row['true \\ predicted'] for row in rows] == names
    np.testing.assert_array_equal(
        [[int(row[name]) for name in names] for row in rows], expected)

    rows = read_csv(tmp_path / 'per_class.csv')
    assert [row['name'] for row in rows] == names
    assert [int(row['images']) for row in rows] == expected.sum(axis=1).tolist()
    assert [int(row['correct']) for row in rows] == np.diag(expected).tolist()
    assert [int(row['predicted']) for row in rows] == expected.sum(axis=0).tolist()
    assert rows[3]['acc1'] == ''
    for number in (0, 1, 2, 4):
        share = 100 * expected[number, number] / expected[number].sum()
        assert float(rows[number]['acc1']) == pytest.approx(share, abs=0.005)

    mistakes = read_csv(tmp_path / 'mistakes.csv')
    assert len(mistakes) == min(100, int((labels != predicted).sum()))
    of_label = [float(row['probability_of_label']) for row in mistakes]
    assert of_label == sorted(of_label)
    for row in mistakes:
        index = int(row['index'])
        assert row['label'] == names[labels[index]]
        assert row['predicted'] == names[predicted[index]]
        assert row['image'] == f'picture {index}.jpg'


def test_the_mistakes_are_written_last_and_nothing_is_there_in_part(tmp_path, monkeypatch):
    """A run that is killed in between is told by them that the rest has to be written again."""
    order, replace = [], os.replace
    monkeypatch.setattr(confusion.os, 'replace', lambda source, target: (
        order.append(os.path.basename(target)), replace(source, target)))
    logits, labels = make_samples(30, 5)
    write_report(str(tmp_path), collect(logits, labels).gather(), make_dataset(), 5)
    assert order[-1] == 'mistakes.csv' and sorted(order) == sorted(os.listdir(tmp_path))


@pytest.mark.parametrize('num_classes, files', [
    (100, {'per_class.csv', 'mistakes.csv', 'confusion.csv', 'confusion.png'}),
    (101, {'per_class.csv', 'mistakes.csv', 'confusion.csv'}),
    (1001, {'per_class.csv', 'mistakes.csv'}),
])
def test_many_classes_get_no_matrix(tmp_path, num_classes, files):
    logits, labels = make_samples(30, num_classes)
    write_report(str(tmp_path), collect(logits, labels).gather(), make_dataset(), num_classes)
    assert {path.name for path in tmp_path.iterdir()} == files
    assert [row['name'] for row in read_csv(tmp_path / 'per_class.csv')] == \
        [str(number) for number in range(num_classes)]


def test_a_model_without_mistakes_is_reported_too(tmp_path):
    labels = np.arange(3)
    logits = 9 * np.eye(3, dtype='float32')
    write_report(str(tmp_path), collect(logits, labels).gather(), make_dataset(), 3)
    assert read_csv(tmp_path / 'mistakes.csv') == []


def test_picture_shows_hits_and_errors_where_they_are():
    """Blue on the diagonal, red beside it, the darker the larger the share; white where none."""
    matrix = np.array([[9, 1, 0], [0, 10, 0], [5, 0, 5]])
    names = ['a', '\u732b\n', 'a class with a name that is too long for the room there is']
    picture = draw_confusion(matrix, names)
    pixels = np.asarray(picture).astype(int)
    cell, _, left, top, labels = confusion.lay_out(names)
    assert pixels.shape[0] == top + 3 * cell + confusion.MARGIN and labels[2].endswith('...')

    def color(row, column):             # a corner of the cell, beside the number
        return pixels[top + row * cell + 3, left + column * cell + 3]

    for row, column in ((0, 2), (1, 0), (1, 2), (2, 1)):
        assert (color(row, column) == 255).all()
    for number in range(3):
        red, _, blue = color(number, number)
        assert blue == 255 and red < 130
    assert color(1, 1)[0] < color(0, 0)[0] < color(2, 2)[0]
    for place in ((0, 1), (2, 0)):
        red, green, blue = color(*place)
        assert red == 255 and green == blue < 220
    assert color(2, 0)[1] < color(0, 1)[1]


@pytest.mark.parametrize('classes, cell', [(1, 110), (3, 110), (10, 72), (26, 27), (100, 26)])
def test_cells_have_room_for_their_per_cents(classes, cell):
    layout = confusion.lay_out([f'class {number}' for number in range(classes)])
    assert layout.cell == cell
    assert measure('100', layout.letters) < cell - 4
    if cell >= confusion.ROOMY_CELL:
        assert measure('100.0 %', layout.letters) < cell - 4
    picture = draw_confusion(np.eye(classes, dtype=int), [str(n) for n in range(classes)])
    assert max(picture.size) < 3000


@pytest.mark.parametrize('share, decimals, text', [
    (0.5, 0, '50'), (0.001, 0, '<1'), (0.0, 0, '0'), (0.001, 1, '0.1'), (1.0, 1, '100.0')])
def test_shares_are_per_cents(share, decimals, text):
    assert confusion.describe_share(share, decimals) == text


def test_a_run_and_its_evaluation_write_the_same_report(tmp_path):
    """Through the command line; the tables add up to the accuracy in metrics.jsonl."""
    pictures = make_folders(tmp_path / 'pictures', classes=('cat', 'dog', 'emu'), per_class=12)
    common = ['-cfg=configs/vit_digits.yaml', '-dataset=imagefolder', f'-data_path={pictures}',
              '-num_classes=3', '-device=cpu', '-num_workers=0', '-batch_size=8']
    small = ['MODEL.EMBED_DIM', '16', 'MODEL.NUM_HEADS', '2', 'MODEL.DEPTH', '1']
    assert run_single(VIT, [*common, f'-output={tmp_path / "out"}', '-opts', *small,
                            'TRAIN.NUM_STEPS', '6', 'TRAIN.WARMUP_STEPS', '0']) == 0
    trained = find_run(tmp_path / 'out')
    assert run_single(VIT, [*common, f'-output={tmp_path / "eval"}', '-eval',
                            f'-pretrained={trained / "last"}', '-opts', *small]) == 0
    evaluated = find_run(tmp_path / 'eval')
    for folder in (trained, evaluated):
        events = [json.loads(line)
                  for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        accuracy = [event['acc1'] for event in events if event['event'] == 'eval'][-1]
        rows = read_csv(folder / 'per_class.csv')
        assert [row['name'] for row in rows] == ['cat', 'dog', 'emu']
        assert [int(row['images']) for row in rows] == [12, 12, 12]
        correct = sum(int(row['correct']) for row in rows)
        assert 100 * correct / 36 == pytest.approx(accuracy)
        mistakes = read_csv(folder / 'mistakes.csv')
        assert len(mistakes) == 36 - correct
        assert all(row['image'].startswith(f'{pictures}/val/{row["label"]}/') for row in mistakes)
        assert Image.open(folder / 'confusion.png').size[0] > 60
        assert 'Lowest accuracy: ' in (folder / 'log.txt').read_text()
    for name in ('per_class.csv', 'mistakes.csv', 'confusion.csv', 'confusion.png'):
        assert (trained / name).read_bytes() == (evaluated / name).read_bytes()
