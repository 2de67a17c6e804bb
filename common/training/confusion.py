"""What an evaluation got wrong: accuracy of each class, confusion matrix, worst mistakes."""

import csv
import io
import logging
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import paddle
from PIL import Image, ImageDraw

from common.data.images import show_path
from common.files import KEEP_NAMES, replace_file
from common.fonts import choose_font, fit, measure, write
from common.machine.distributed import gather_over_ranks
from common.run.side_matter import go_on
from common.training.losses import compute_log_softmax

if TYPE_CHECKING:
    from common.data.datasets import Dataset

logger = logging.getLogger(__name__)

MATRIX_CLASSES = 1000       # more classes make a confusion matrix of no use to anybody
PICTURE_CLASSES = 100
SPREAD = 1.96               # standard deviations that 95 % of a normal law are within
FEW_IMAGES = 1000           # below which an accuracy is given with its interval
MISTAKES = 100              # rows of mistakes.csv
MISTAKE_COLUMNS = ('index', 'label', 'predicted', 'probability_of_label',
                   'probability_of_predicted', 'image')
# Of the picture, in pixels.
SIDE = 720                  # of all cells together, within the bounds of one
SMALLEST_CELL, LARGEST_CELL = 26, 110
ROOMY_CELL = 56             # from here on counts stand below the per cents
LABEL_WIDTH = 170
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
    shown = [show_path(name) for name in names]
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
            with replace_file(path) as file:
                draw_confusion(confusion, shown).save(file, 'PNG')
    with go_on('mistakes.csv'):
        _write_csv(folder, 'mistakes.csv', MISTAKE_COLUMNS, _list_mistakes(samples, names, dataset))
    seen = np.flatnonzero(images)
    if len(seen) > 1 and np.count_nonzero(guesses) == 1:
        logger.warning('Every prediction is the class %s: nothing has been learnt but which class '
                       'is usual. More updates (TRAIN.NUM_STEPS), another rate (TRAIN.BASE_LR) or '
                       'TRAIN.CLASS_WEIGHTS balanced may help.', shown[int(guesses.argmax())])
    logger.info('Mean accuracy over the classes: %.2f (%d classes with images)',
                accuracy[seen].mean(), len(seen))
    worst = seen[np.argsort(accuracy[seen], kind='stable')][:3]
    logger.info('Lowest accuracy: %s. Each class in per_class.csv, the worst mistakes in '
                'mistakes.csv.',
                ', '.join(f'{shown[number]} {accuracy[number]:.1f} % of {images[number]:,}'
                          for number in worst))


def find_interval(correct: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy, in percent, after `correct` of `total` images.

    Wilson's score interval (J. Am. Stat. Assoc. 22, 1927).
    """
    square = SPREAD ** 2
    centre = correct + square / 2
    half = SPREAD * math.sqrt(correct * (total - correct) / total + square / 4)
    return 100 * (centre - half) / (total + square), 100 * (centre + half) / (total + square)


def describe_certainty(correct: int, total: int) -> str:
    """Return how far to trust an accuracy of few images, '' where they are many."""
    if not 0 < total < FEW_IMAGES:
        return ''
    low, high = find_interval(correct, total)
    return f'so few images say that {low:.0f} to {high:.0f} % of others like them would be right'


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Return a confusion matrix as an image: darker is a larger share of the true class.

    confusion: int [C, C]. names: C texts. Cells hold per cents of the true class, and the counts
    where there is room; errors are red. Behind each row stands how many of the class were right.
    """
    cell, letters, left, top, labels = lay_out(names)
    totals = confusion.sum(axis=1)
    right = [f'{confusion[row, row]} of {total}' for row, total in enumerate(totals)]
    side = cell * len(names)
    heading = _describe_matrix(confusion)
    width = left + side + 2 * MARGIN + max(measure(text, letters) for text in right)
    width = max(width, measure(heading, letters + 2) + 2 * MARGIN)
    image = Image.new('RGB', (width, top + side + MARGIN), 'white')
    draw = ImageDraw.Draw(image)
    write(draw, (MARGIN, MARGIN), heading, letters + 2)
    for row, label in enumerate(labels):
        middle = top + row * cell + cell // 2
        write(draw, (left - 4 - measure(label, letters), middle - letters // 2 - 1), label, letters)
        _draw_upright(image, label, (left + row * cell + cell // 2, top - 4), letters)
        write(draw, (left + side + MARGIN, middle - letters // 2 - 1), right[row], letters)
        for column, count in enumerate(confusion[row]):
            place = left + column * cell, top + row * cell, cell
            _draw_cell(draw, place, int(count), int(totals[row]), row == column, letters)
    write(draw, (left + side // 2, 5 * MARGIN), 'predicted', letters, anchor='mt')
    _draw_upright(image, 'true', (MARGIN + letters // 2, top + side // 2 + 12), letters)
    return image


class Layout(NamedTuple):
    """Where the cells are, in pixels: their size, the first one's corner, the size of letters."""

    cell: int
    letters: int
    left: int
    top: int
    labels: list[str]


def lay_out(names: Sequence[str]) -> Layout:
    """Return the Layout of a confusion matrix, with the names cut to the room there is."""
    cell = max(SMALLEST_CELL, min(LARGEST_CELL, SIDE // len(names)))
    letters = max(10, min(15, cell // 4))
    labels = [fit(name, letters, LABEL_WIDTH) for name in names]
    width = max(measure(label, letters) for label in labels)
    return Layout(cell, letters, width + 4 * MARGIN + letters, width + 7 * MARGIN + 2 * letters,
                  labels)


def describe_share(share: float, decimals: int = 0) -> str:
    """Return a share as per cents without the sign; "<1" for what is more than nothing."""
    text = f'{100 * share:.{decimals}f}'
    return '<1' if share > 0 and not decimals and text == '0' else text


def _describe_matrix(confusion):
    total, right = int(confusion.sum()), int(np.trace(confusion))
    return (f'Accuracy {100 * right / max(1, total):.2f} % of {total:,} images. Cells: per cent '
            'of the true class')


def _draw_cell(draw, place, count, total, is_right, letters):
    x, y, cell = place
    share = count / max(1, total)
    strength = round(215 * share ** 0.5)        # errors are few: make them visible
    fill = (255 - strength, 255 - strength // 2, 255) if is_right else \
        (255, 255 - strength, 255 - strength)
    draw.rectangle((x, y, x + cell, y + cell), fill=fill, outline=(220, 220, 220))
    if not count:
        return
    ink = (255, 255, 255) if strength > 170 and is_right else (0, 0, 0)
    middle = x + cell // 2, y + cell // 2
    if cell < ROOMY_CELL:
        write(draw, middle, describe_share(share), letters, ink, 'mm')
        return
    write(draw, (middle[0], middle[1] - letters // 2 - 1), f'{describe_share(share, 1)} %',
          letters, ink, 'mm')
    write(draw, (middle[0], middle[1] + letters), f'{count:,}', max(10, letters - 3), ink, 'mm')


def _draw_upright(image, text, bottom, letters):
    """Write text turned by 90 degrees; bottom: (middle in x, lower end in y)."""
    label = Image.new('L', (max(1, measure(text, letters)), letters + letters // 2), 0)
    font, text = choose_font(text, letters)
    ImageDraw.Draw(label).text((0, 0), text, fill=255, font=font)
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
    text = io.StringIO(newline='')
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    with replace_file(path) as file:
        file.write(text.getvalue().encode('utf-8', KEEP_NAMES))
