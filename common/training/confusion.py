"""What an evaluation got wrong: accuracy of each class, confusion matrix, worst mistakes."""

import csv
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import paddle
from PIL import Image, ImageDraw

from common.machine.distributed import gather_over_ranks
from common.run.side_matter import go_on
from common.training.losses import compute_log_softmax

if TYPE_CHECKING:
    from common.data.datasets import Dataset

logger = logging.getLogger(__name__)

MATRIX_CLASSES = 1000       # more classes make a confusion matrix of no use to anybody
PICTURE_CLASSES = 100
MISTAKES = 100              # rows of mistakes.csv
MISTAKE_COLUMNS = ('index', 'label', 'predicted', 'probability_of_label',
                   'probability_of_predicted', 'image')
CELL = 22                   # pixels
MARGIN = 8


class Predictions:
    """Label, prediction and probabilities of every sample, this process's share.

    `add` keeps device tensors; `gather` reads them once and joins all ranks.
    """

    def __init__(self):
        self.columns = []                   # [B, 5] float64 tensors on the device

    def add(self, logits: paddle.Tensor, labels: paddle.Tensor, indices: paddle.Tensor) -> None:
        """Take in a batch. logits: float32 [B, C]. labels, indices: int64 [B]."""
        log_probs = compute_log_softmax(logits)
        predicted = logits.argmax(axis=1)
        both = paddle.stack([predicted, labels], axis=1)
        log_probs = paddle.take_along_axis(log_probs, both, axis=1)
        self.columns.append(paddle.concat([
            paddle.stack([indices, labels, predicted], axis=1).astype('float64'),
            paddle.exp(log_probs).astype('float64')], axis=1))

    def gather(self) -> np.ndarray:
        """Return all ranks' samples by index: float64 [N, 5].

        Columns: index, label, predicted class, its probability, the label's probability.
        """
        own = np.concatenate([part.numpy() for part in self.columns] or [np.zeros([0, 5])])
        sizes = gather_over_ranks([len(own)])[:, 0].astype(int)
        padded = np.zeros([sizes.max(), 5])
        padded[:len(own)] = own
        ranks = gather_over_ranks(padded.ravel()).reshape(len(sizes), -1, 5)
        samples = np.concatenate([rank[:size] for rank, size in zip(ranks, sizes)])
        return samples[np.argsort(samples[:, 0], kind='stable')]


def count_confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int64 [C, C]: rows are the true classes, columns the predicted ones."""
    cells = labels.astype('int64') * num_classes + predicted.astype('int64')
    return np.bincount(cells, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def write_report(folder: str, samples: np.ndarray, dataset: 'Dataset', num_classes: int) -> None:
    """Write per_class.csv, up to 1000 classes confusion.csv, up to 100 confusion.png, mistakes.csv.

    In this order: where the last is there, none is missing. folder: the run folder. samples: see
    Predictions.gather. dataset: gives class names and the samples' paths.
    """
    labels, predicted = samples[:, 1].astype(int), samples[:, 2].astype(int)
    names = list(dataset.class_names or [])
    names += [str(number) for number in range(len(names), num_classes)]
    images = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[labels == predicted], minlength=num_classes)
    guesses = np.bincount(predicted, minlength=num_classes)
    accuracy = 100 * correct / np.maximum(images, 1)
    columns = ('class', 'name', 'images', 'correct', 'acc1', 'predicted')
    with go_on('per_class.csv'):
        _write_csv(folder, 'per_class.csv', columns, [
            (number, names[number], images[number], correct[number],
             f'{accuracy[number]:.2f}' if images[number] else '', guesses[number])
            for number in range(num_classes)])
    if num_classes <= MATRIX_CLASSES:
        confusion = count_confusion(labels, predicted, num_classes)
        with go_on('confusion.csv'):
            _write_csv(folder, 'confusion.csv', ['true \\ predicted', *names],
                       [(name, *row) for name, row in zip(names, confusion.tolist())])
    if num_classes <= PICTURE_CLASSES:
        with go_on('confusion.png'):
            path = os.path.join(folder, 'confusion.png')
            draw_confusion(confusion, names).save(f'{path}.tmp', 'PNG')
            os.replace(f'{path}.tmp', path)
    with go_on('mistakes.csv'):
        _write_csv(folder, 'mistakes.csv', MISTAKE_COLUMNS, _list_mistakes(samples, names, dataset))
    seen = np.flatnonzero(images)
    worst = seen[np.argsort(accuracy[seen], kind='stable')][:3]
    logger.info('Lowest accuracy: %s. Each class in per_class.csv, the worst mistakes in '
                'mistakes.csv.',
                ', '.join(f'{names[number]} {accuracy[number]:.1f} %' for number in worst))


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return a confusion matrix as an image: darker is a larger share of the true class.

    confusion: int [C, C]. names: C texts. Counts stand in the cells; errors are red.
    """
    num_classes = len(names)
    labels = [' '.join(name.split()) for name in names]
    labels = [name if len(name) <= 20 else f'{name[:19]}.' for name in labels]
    draw = ImageDraw.Draw(Image.new('RGB', (1, 1)))
    labels = [find_drawable(draw, label) for label in labels]
    text_width = max(int(draw.textlength(label)) for label in labels)
    cell = max(CELL, int(draw.textlength(str(confusion.max()))) + 6)
    left = top = 2 * MARGIN + 14 + text_width
    side = cell * num_classes
    image = Image.new('RGB', (left + side + MARGIN, top + side + MARGIN), 'white')
    draw = ImageDraw.Draw(image)
    for row, label in enumerate(labels):
        middle = top + row * cell + cell // 2
        draw.text((left - 4, middle), label, fill='black', anchor='rm')
        _draw_upright(image, label, (left + row * cell + cell // 2, top - 4))
        share = confusion[row] / max(1, confusion[row].sum())
        for column, count in enumerate(confusion[row]):
            x, y = left + column * cell, top + row * cell
            strength = round(215 * share[column] ** 0.5)        # errors are few: make them visible
            fill = (255 - strength, 255 - strength // 2, 255) if row == column else \
                (255, 255 - strength, 255 - strength)
            draw.rectangle((x, y, x + cell, y + cell), fill=fill, outline=(220, 220, 220))
            if count:
                draw.text((x + cell // 2, middle), str(count), anchor='mm',
                          fill='white' if strength > 170 and row == column else 'black')
    draw.text((left + side // 2, MARGIN), 'predicted', fill='black', anchor='mt')
    _draw_upright(image, 'true', (MARGIN + 6, top + side // 2 + 12))
    return image


def find_drawable(draw: ImageDraw.ImageDraw, text: str) -> str:
    """Return the text, with a question mark for what the font cannot draw.

    The built-in font of Pillow before 10.1 knows Latin-1 only.
    """
    try:
        draw.textlength(text)
        return text
    except UnicodeError:
        return text.encode('latin-1', 'replace').decode('latin-1')


def _draw_upright(image, text, bottom):
    """Write text turned by 90 degrees; bottom: (middle in x, lower end in y)."""
    draw = ImageDraw.Draw(image)
    left, upper, right, lower = draw.textbbox((0, 0), text)
    label = Image.new('L', (max(1, int(right)), max(1, int(lower) + 2)), 0)
    ImageDraw.Draw(label).text((0, 0), text, fill=255)
    label = label.rotate(90, expand=True)
    place = (bottom[0] - label.width // 2, bottom[1] - label.height)
    image.paste('black', (*place, place[0] + label.width, place[1] + label.height), label)


def _list_mistakes(samples, names, dataset):
    """Yield rows of the wrong predictions, the least probable label first."""
    wrong = samples[samples[:, 1] != samples[:, 2]]
    for index, label, predicted, confidence, own in wrong[np.argsort(wrong[:, 4])][:MISTAKES]:
        yield (int(index), names[int(label)], names[int(predicted)], f'{own:.4g}',
               f'{confidence:.4g}', dataset.describe_sample(int(index)))


def _write_csv(folder, name, header, rows):
    path = os.path.join(folder, name)
    # Names that are not UTF-8 in the file system keep their own bytes.
    with open(f'{path}.tmp', 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(f'{path}.tmp', path)     # a run that is killed here writes it again
