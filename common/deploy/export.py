"""export_model.py: a model for paddle.inference and ONNX, verified, with its preprocessing.

The folder needs nothing of this project: model.json (model.pdmodel from Paddle 2) with
model.pdiparams, model.onnx, preprocessing.json, check.npz, the logits that a right engine
gives for known images, and files.json, the SHA-256 of them all. Any batch size, float32.
"""

import argparse
import contextlib
import importlib.metadata
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import paddle

from common.cli import FlagParser
from common.deploy import engine as engines
from common.deploy.predict import make_dynamic_predictor
from common.deploy.preprocessing import write_preprocessing
from common.deploy.program import write_record
from common.deploy.trained import Trained, add_model_flags, load_trained
from common.errors import RunError, UserError, report_errors, suggest
from common.kernels import installed
from common.project import Project
from common.run.log import start_logging

FORMATS = ('paddle', 'onnx')
BATCH_SIZES = (1, 3, engines.CHECK_IMAGES)
OPSET = 17                      # the first with LayerNormalization

EXAMPLES = """examples:
  python export_model.py -pretrained=./output/train-20260101-10-00-00/best -output=exported
  python export_model.py -cfg=configs/{model}.yaml -pretrained=./{model}.pdparams \\
      -labels=labels.txt -formats=paddle,onnx -output=exported
  python predict.py cat.jpg -model=exported
"""

logger = logging.getLogger(__name__)


def main(project: Project, argv: list[str] | None = None) -> int:
    """Export a trained model; return the exit code.

    project: common.project.Project. argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(project, argv)
    formats = parse_formats(arguments.formats)
    start_logging()
    arguments.device = 'cpu'                # a program does not depend on where it was made
    export_model(load_trained(project, arguments), arguments.output, formats)


def export_model(trained: Trained, folder: str,
                 formats: Sequence[str] = ('paddle',)) -> dict[str, float]:
    """Write a Trained model into a folder; return {format: error relative to max |logit|}.

    formats: of FORMATS; "onnx" needs paddle2onnx and, to be verified, ONNX Runtime.
    Files appear only once all are verified. trained.model cannot be trained afterwards.
    Raises UserError for a missing package, RunError for a file whose logits are not right.
    """
    check_packages(formats)
    predict = make_dynamic_predictor(trained.model)
    image_size = trained.preprocessing.image_size
    images = engines.make_check_images(image_size)
    expected = predict(images)
    parent = os.path.dirname(os.path.abspath(folder))
    try:
        os.makedirs(parent, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=parent, prefix='.exporting-')
    except OSError as error:
        raise UserError(f'Cannot write to {parent}: {error.strerror}.') from None
    with scratch as work:
        write_preprocessing(trained.preprocessing, work)
        engines.write_check(work, expected, image_size)
        save_program(trained.model, image_size, work)
        errors = {'paddle': verify('paddle', work, images, expected)}
        if 'onnx' in formats:
            convert_to_onnx(work)
            errors['onnx'] = verify('onnx', work, images, expected)
        write_record(work)
        _publish(work, folder, formats)
    for name, distance in errors.items():
        if name in formats:
            logger.info('%s: logits within %.1e of the model\'s (of max |logit|, batch sizes %s)',
                        name, distance, ', '.join(map(str, BATCH_SIZES)))
    logger.info('Exported to %s', folder)
    return {name: errors[name] for name in formats}


def save_program(model: paddle.nn.Layer, image_size: int, folder: str) -> None:
    """Write the Paddle program and its weights: images [any, 3, S, S] -> logits."""
    spec = [paddle.static.InputSpec([None, 3, image_size, image_size], 'float32', 'images')]
    with warnings.catch_warnings(), installed(model, 'separate'), legacy_linear():
        # Of Paddle 2.6: autocast, which is off here anyway, has no effect.
        warnings.filterwarnings('ignore', message='.*auto_cast is an experimental')
        program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
        paddle.jit.save(program, os.path.join(folder, engines.MODEL_NAME))


@contextlib.contextmanager
def legacy_linear() -> Iterator[None]:
    """Save linear layers as products and sums: a GPU build of Paddle 3.3 would fuse them.

    Nothing but that build has a reader for what it fuses them to.
    """
    flag = 'FLAGS_use_legacy_linear'
    try:
        before = paddle.get_flags(flag)
    except ValueError:                      # of Paddle 2
        yield
        return
    paddle.set_flags({flag: True})
    try:
        yield
    finally:
        paddle.set_flags(before)


def convert_to_onnx(folder: str) -> None:
    """Write model.onnx from the Paddle program."""
    target = engines.find_onnx(folder)
    # In a process of its own, because what goes wrong in there ends it. 2.x would fetch and
    # install an optimizer, and gain nothing: ONNX Runtime optimizes when it loads.
    code = ('import inspect, sys, paddle2onnx\n'
            'program, weights, target, opset = sys.argv[1:]\n'
            'names = inspect.signature(paddle2onnx.export).parameters\n'
            'options = {"optimize_tool": "None"} if "optimize_tool" in names else {}\n'
            'paddle2onnx.export(program, weights, target, opset_version=int(opset), '
            '**options)')
    weights = os.path.join(folder, f'{engines.MODEL_NAME}.pdiparams')
    ended = subprocess.run(
        [sys.executable, '-c', code, engines.find_program(folder), weights, target, str(OPSET)],
        capture_output=True, text=True, errors='replace')
    if ended.returncode or not os.path.isfile(target):
        lines = (ended.stderr.strip() or ended.stdout.strip()).splitlines()
        raise RunError(f'paddle2onnx {importlib.metadata.version("paddle2onnx")} could not convert '
                       f'the model (exit code {ended.returncode}): '
                       f'{lines[-1][:300] if lines else "no message"}')


def verify(name: str, folder: str, images: np.ndarray, expected: np.ndarray) -> float:
    """Return a format's greatest error relative to max |logit|. Raises RunError if too large."""
    run = engines.OPENERS['plain' if name == 'paddle' else 'onnxruntime'](folder, 'float32')
    largest = 0.0
    for batch_size in BATCH_SIZES:
        logits = run(images[:batch_size])
        problem = engines.compare_logits(
            logits, expected[:batch_size], engines.TOLERANCE['float32'])
        if problem:
            raise RunError(f'The exported {name} model is not the model at batch size '
                           f'{batch_size}: {problem} Nothing was written.')
        largest = max(largest, float(np.abs(logits - expected[:batch_size]).max()))
    return largest / float(np.abs(expected).max())


def parse_formats(text: str) -> list[str]:
    """Return the formats in "paddle,onnx". Raises UserError for an unknown one."""
    names = [name for name in text.split(',') if name]
    for name in names:
        if name not in FORMATS:
            raise UserError(f'-formats={text}: unknown format {name!r}.{suggest(name, FORMATS)}')
    if not names:
        raise UserError(f'-formats needs one or more of {", ".join(FORMATS)}.')
    return names


def check_packages(formats: Iterable[str]) -> None:
    """Raise UserError for an optional package that a format needs and that is missing."""
    if set(formats) <= {'paddle'}:
        return
    wanted = 'paddle2onnx<2' if paddle.__version__.startswith('2.') else 'paddle2onnx>=2'
    for module, package in (('paddle2onnx', wanted), ('onnxruntime', 'onnxruntime')):
        if not engines.is_installed(module):
            raise UserError(f'An ONNX export needs {module}: pip install "{package}"')


def _publish(work, folder, formats):
    """Move what was asked for into the folder; what an earlier export left is removed."""
    stale = [engines.CHOICES_FILE, *(f'{engines.MODEL_NAME}{ending}' for ending in (
        '.json', '.pdmodel', '.pdiparams', '.pdiparams.info', '.onnx'))]
    unwanted = set()
    if 'paddle' not in formats:
        unwanted = {name for name in os.listdir(work) if name.startswith(engines.MODEL_NAME)
                    and not name.endswith('.onnx')}
    try:
        os.makedirs(folder, exist_ok=True)
        for name in stale:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        for name in sorted(set(os.listdir(work)) - unwanted):
            shutil.move(os.path.join(work, name), os.path.join(folder, name))
    except OSError as error:
        raise UserError(f'Cannot write to {folder}: {error.strerror}.') from None


def _parse(project, argv):
    parser = FlagParser(
        prog='export_model.py', allow_abbrev=False,
        description=f'Export a trained {project.name} for paddle.inference and ONNX.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    add_model_flags(parser)
    parser.add_flag('formats', default='paddle', metavar='A,B',
                    help=f'of {", ".join(FORMATS)} (default: paddle)')
    parser.add_flag('output', default=os.path.join('.', 'exported'), metavar='DIR',
                    help='folder to write (default: ./exported)')
    parser.check_names(argv)
    return parser.parse_args(argv)
