"""What lets an exported folder explain itself: README.md, labels.txt, infer.py, a sample.

The card says what the checkpoint records and what was measured while exporting, nothing else.
"""

import ast
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle
from PIL import Image, ImageDraw

from common.config import read_dump
from common.data.classes import write_class_names
from common.data.digits import load_digits_rgb
from common.data.images import show_path
from common.deploy.formats import read_formats
from common.deploy.ranking import rank_classes
from common.deploy.trained import Trained
from common.errors import UserError
from common.files import write_json
from common.training.confusion import describe_certainty

CARD, LABELS, SCRIPT = 'README.md', 'labels.txt', 'infer.py'
SAMPLE, ANSWER = 'sample.png', 'sample.json'
SHOWN_CLASSES = 100
SAMPLE_CLASSES = 5
# What infer.py runs, the first of the formats that a folder has.
ENGINES = {'openvino': 'openvino', 'onnx': 'onnxruntime', 'paddle': 'paddle'}
# The other files of a folder, and what they are.
ABOUT = {
    'model.json': "Paddle's program", 'model.pdmodel': "Paddle's program",
    'model.pdiparams': 'its parameters', 'model.pdiparams.info': 'their names',
    'model.onnx': 'the model for ONNX, opset 17',
    'model.xml': 'the model for OpenVINO', 'model.bin': 'its parameters',
    'formats.json': 'precision, and what int8 cost',
    'preprocessing.json': 'size, crop, mean, std and class names',
    'check.npz': 'logits for known images, by which an engine is checked',
    'files.json': 'SHA-256 of the files', LABELS: 'class names, one a line',
    SCRIPT: 'classifies pictures', SAMPLE: 'a picture to try', ANSWER: 'its expected answer'}

Predict = Callable[[np.ndarray], np.ndarray]


def write_script(folder: str, formats: Iterable[str]) -> None:
    """Write infer.py for the quickest engine of the formats: infer.py here without the others."""
    engine = next(engine for form, engine in ENGINES.items() if form in formats)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), SCRIPT),
              encoding='utf-8') as file:
        source = file.read()
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if isinstance(node, ast.FunctionDef) and node.name.startswith('open_') \
                and node.name != f'open_{engine}':
            del lines[node.lineno - 1:node.end_lineno + 2]      # with the empty lines below
    text = ''.join(lines).replace('open_paddle))', f'open_{engine}))')
    with open(os.path.join(folder, SCRIPT), 'w', encoding='utf-8') as file:
        file.write(text)


def write_explanation(trained: Trained, folder: str, predict: Predict,
                      sample: Image.Image | None = None) -> None:
    """Write labels.txt, and a sample picture with its expected answer, into a folder.

    predict: images float32 [B, 3, S, S] -> logits, of the model that is exported. sample: RGB,
    a picture of its kind; None: a digit for a model of the digits, for others a drawing.
    """
    names = trained.preprocessing.class_names
    if names:
        write_class_names(os.path.join(folder, LABELS), names)
    image = sample or make_sample(trained)
    image.save(os.path.join(folder, SAMPLE))
    crop = trained.preprocessing.crop(image)
    ranked = rank_classes(predict(trained.preprocessing.normalize([crop])), SAMPLE_CLASSES)[0]
    answer = {'picture': SAMPLE, 'predictions': [
        {'class': index, 'name': trained.preprocessing.name_class(index),
         'probability': round(share, 6)} for index, share in ranked]}
    write_json(os.path.join(folder, ANSWER), answer)


def make_sample(trained: Trained) -> Image.Image:
    """Return a picture for the sample: a digit for a model of the digits, else a drawing.

    The drawing is wider than high, so that resizing and cropping are tried too.
    """
    if trained.config is not None and trained.config.DATA.DATASET == 'digits':
        return Image.fromarray(load_digits_rgb()[0][-1])
    height = max(64, trained.preprocessing.image_size)
    width = height * 3 // 2
    rows, columns = np.mgrid[0:height, 0:width]
    sky = np.stack([80 + 100 * rows / height, 140 + 60 * rows / height,
                    230 - 90 * columns / width], axis=-1)
    image = Image.fromarray(sky.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse([width * 0.35, height * 0.2, width * 0.65, height * 0.65], fill=(240, 180, 40))
    draw.rectangle([0, height * 0.75, width, height], fill=(50, 110, 40))
    return image


def write_card(trained: Trained, folder: str, errors: Mapping[str, float],
               precision: str = 'float32') -> None:
    """Write README.md into a folder that has everything else but the hashes.

    errors: {format: relative error of the logits}, of the float32 formats. precision: what the
    folder is for.
    """
    text = format_card(trained, errors, sorted(os.listdir(folder)), sys.argv)
    if precision == 'int8':
        formats = read_formats(folder)
        costs = [f'{form}: {plain(cost)}' for form, cost in (
            ('OpenVINO', formats.openvino_cost), ('ONNX', formats.onnx_cost)) if cost]
        text += '\n## int8\n\n' + '\n'.join(f'- {line}' for line in (
            *costs, f'ranges taken from {plain(formats.calibrated)}',
            f'`{ANSWER}` is the answer in float32')) + '\n'
    with open(os.path.join(folder, CARD), 'w', encoding='utf-8', errors='replace') as file:
        file.write(text)


def format_card(trained: Trained, errors: Mapping[str, float], files: list[str],
                command: list[str]) -> str:
    """Return the model card as Markdown. files: names in the folder. command: as in sys.argv."""
    name = trained.config.MODEL.NAME if trained.config is not None else ''
    parts = [f'# {plain(name or "Exported model")}', describe_model(trained)]
    parts += ['## Use', _describe_use(files)]
    parts += ['## Data and accuracy', '\n'.join(f'- {line}' for line in list_origins(trained))]
    parts += ['## Classes', describe_classes(trained.preprocessing.class_names)]
    checked = '; '.join(f'{form}: logits within {error:.1e} of the largest'
                        for form, error in errors.items())
    checks = [f'compared with the model at several batch sizes: {checked}'] if checked else []
    exported = [f'on {time.strftime("%Y-%m-%d")} with Paddle {paddle.__version__}, NumPy '
                f'{np.__version__}', *checks,
                f'by `{plain_code(shlex.join([os.path.basename(command[0]), *command[1:]]))}`']
    parts += ['## Exported', '\n'.join(f'- {line}' for line in exported)]
    parts += ['## Files', _describe_files(files)]
    return '\n\n'.join(parts) + '\n'


def describe_model(trained: Trained) -> str:
    """Return what goes in and what comes out."""
    p = trained.preprocessing
    count = sum(int(tensor.size) for tensor in trained.model.state_dict().values())
    turned = ' They are turned as EXIF says.' if p.exif_orientation else \
        " EXIF's orientation is ignored."
    return (f'An image classifier of {count:,} numbers. Input `images`: float32 '
            f'[any, 3, {p.image_size}, {p.image_size}], RGB: the shorter side of a picture is '
            f'resized to {int(p.image_size / p.crop_pct)} ({p.interpolation}), the centre of '
            f'{p.image_size} x {p.image_size} is taken, and its values from 0 to 1 are normalised '
            f'by mean {_round(p.mean)} and std {_round(p.std)}.{turned} Output: logits '
            '[any, classes].')


def list_origins(trained: Trained) -> list[str]:
    """Return lines on what the checkpoint records: data, training, accuracy."""
    record, config = trained.record, trained.config
    lines = []
    if config is not None and 'config' in record:
        folder = _find_data_folder(record['config'])
        source = f', from a folder called {plain(folder)}' if folder else ''
        lines.append(f'data set: {plain(config.DATA.DATASET)}{source}')
    for part, numbers in record.get('data', {}).items():
        if type(numbers.get('images')) is int:
            lines.append(f'{plain(part)}: {numbers["images"]:,} images')
    if 'update' in record:
        lines.append(f'trained for {record["update"]:,} updates, {record.get("epoch", 0):,} epochs')
    best = record.get('best')
    if best is not None:
        where = f'epoch {best["epoch"]}' if best['epoch'] == record.get('epoch') else \
            f'the best of its run, epoch {best["epoch"]}; these weights are of epoch ' \
            f'{record.get("epoch", "?")}'
        images = record.get('data', {}).get('val', {}).get('images')
        lines.append(f'top-1 accuracy on the validation images: {best["value"]:.2f} % ({where})'
                     + _describe_certainty(best['value'], images))
    return lines or ['not recorded: the weights are not a checkpoint of a run']


def _describe_certainty(accuracy, images):
    if type(images) is not int:
        return ''
    text = describe_certainty(round(accuracy * images / 100), images)
    return f': {text}' if text else ''


def _find_data_folder(text):
    """Return the name of the folder or file that a recorded config took its data from, or ''."""
    path = None
    with contextlib.suppress(UserError):
        path = read_dump(text, 'The recorded config').get('DATA.DATA_PATH')
    return os.path.basename(path.rstrip('/\\')) if isinstance(path, str) else ''


def describe_classes(names: list[str] | None) -> str:
    """Return the classes as text; of many the first ones."""
    if names is None:
        return 'Their names are not known; they are numbers from 0.'
    shown = ', '.join(f'{index} {plain(name)}' for index, name in enumerate(names[:SHOWN_CLASSES]))
    more = f', and {len(names) - SHOWN_CLASSES:,} more in `{LABELS}`' \
        if len(names) > SHOWN_CLASSES else ''
    return f'{len(names):,}: {shown}{more}.'


def plain(text: Any) -> str:
    """Return text of any origin so that Markdown and HTML take it as text, on one line."""
    return re.sub(r'([\\`*_{}\[\]<>#|&!~])', r'\\\1', show_path(' '.join(str(text).split())))


def plain_code(text: str) -> str:
    """Return text for between backquotes."""
    return show_path(' '.join(text.split())).replace('`', "'")


def check_target(folder: str) -> None:
    """Raise UserError for a folder with files of our names that are not of an earlier export."""
    present = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    if present & {CARD, *ABOUT} and not present & {'check.npz', 'files.json'}:
        found = ', '.join(sorted(present & {CARD, *ABOUT}))
        raise UserError(f'-output={show_path(folder)} holds {found} and is no exported model: '
                        'choose another folder, so that nothing is written over.')


def _describe_use(files):
    engine = next(engine for file, engine in (
        ('model.xml', 'openvino'), ('model.onnx', 'onnxruntime'),
        ('model.pdiparams', 'paddlepaddle')) if file in files)
    return (f'`python {SCRIPT} {SAMPLE}` needs {engine}, NumPy and Pillow alone, and prints what '
            f'`{ANSWER}` says. In the project that exported it: `python predict.py -model=FOLDER '
            'PICTURE`, with the fastest engine of the machine.')


def _describe_files(files):
    rows = [f'| `{name}` | {ABOUT[name]} |' for name in (*files, 'files.json') if name in ABOUT]
    return '\n'.join(['| file | what |', '|---|---|', *rows])


def _round(values):
    return '[' + ', '.join(f'{value:.4g}' for value in values) + ']'
