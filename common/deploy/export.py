"""export_model.py: a model for paddle.inference and ONNX, verified, with its preprocessing.

The folder needs nothing of this project: model.json (model.pdmodel from Paddle 2) with
model.pdiparams, model.onnx, model.xml with model.bin (OpenVINO), preprocessing.json, formats.json,
check.npz, the logits that a right engine gives for known images, what explains it
(common.deploy.card), and files.json, the SHA-256 of them all. Any batch size.
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
from collections.abc import Iterator, Sequence

import numpy as np
import paddle
from paddle import nn
from PIL import Image

from common.cli import FlagParser
from common.data.images import read_image, show_path
from common.deploy import card
from common.deploy import engine as engines
from common.deploy.calibration import (
    NUM_CALIBRATION,
    collect_from_dataset,
    collect_from_folder,
)
from common.deploy.formats import (
    FORMATS,
    FORMATS_FILE,
    MODEL_NAME,
    PRECISIONS,
    Formats,
    find_onnx,
    find_openvino,
    write_formats,
)
from common.deploy.int8 import FLOAT_ONNX, Int8, Plan
from common.deploy.predict import Forward, get_forward, make_dynamic_predictor
from common.deploy.preprocessing import write_preprocessing
from common.deploy.program import write_record
from common.deploy.quantize import PACKAGES, convert_to_openvino
from common.deploy.trained import Trained, add_model_flags, load_trained
from common.errors import RunError, UserError, report_errors, suggest
from common.kernels import installed
from common.machine.noise import drop_native_remarks
from common.project import Model, Project
from common.run.log import start_logging

ENDINGS = {'paddle': ('.json', '.pdmodel', '.pdiparams', '.pdiparams.info'), 'onnx': ('.onnx',),
           'openvino': ('.xml', '.bin')}
BATCH_SIZES = (1, 3, engines.CHECK_IMAGES)
VERIFIERS = {'paddle': 'plain', 'onnx': 'onnxruntime', 'openvino': 'openvino'}     # engines
OPSET = 17                      # the first with LayerNormalization

EXAMPLES = """examples:
  python export_model.py -pretrained=./output/train-20260101-10-00-00/best -output=exported
  python export_model.py -cfg=configs/{model}.yaml -pretrained=./{model}.pdparams \\
      -labels=labels.txt -formats=paddle,onnx -output=exported
  python export_model.py -pretrained=./output/train-20260101-10-00-00/best -precision=int8 \\
      -calibrate=/my/pictures -max_drop=0.5 -output=exported-int8
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
    precision = arguments.precision
    formats = parse_formats(arguments.formats or choose_formats(precision))
    check_packages(formats, precision)
    check_int8_flags(arguments, formats)
    start_logging()
    card.check_target(arguments.output)
    arguments.device = 'cpu'                # a program does not depend on where it was made
    trained = load_trained(project, arguments)
    plan = make_plan(project, trained, arguments) if precision == 'int8' else None
    sample = None
    if arguments.sample:
        sample = read_image(arguments.sample, trained.preprocessing.exif_orientation)
    export_model(trained, arguments.output, formats, precision, plan, sample)


def choose_formats(precision: str) -> str:
    """Return the formats of an export that names none."""
    if precision != 'int8':
        return 'paddle'
    return 'openvino' if engines.is_installed('openvino') or not engines.is_installed('onnx') \
        else 'onnx'


def check_int8_flags(arguments: argparse.Namespace, formats: list[str]) -> None:
    """Raise UserError for flags of int8 without int8, and for formats that do not go with it."""
    if arguments.precision == 'int8':
        if formats == ['paddle']:
            raise UserError('-precision=int8 is for -formats=openvino and onnx: Paddle\'s own int8 '
                            'is no faster than its float32. In -formats=paddle,openvino the Paddle '
                            'model stays float32, for machines without OpenVINO.')
        return
    if arguments.precision == 'bfloat16' and 'onnx' in formats:
        raise UserError('-precision=bfloat16 does not go with -formats=onnx: ONNX Runtime has no '
                        'bfloat16 on a CPU.')
    for name in ('calibrate', 'keep_float', 'max_drop'):
        if getattr(arguments, name) is not None:
            raise UserError(f'-{name} is for -precision=int8.')


def make_plan(project: Project, trained: Trained, arguments: argparse.Namespace) -> Plan:
    """Return how to make the int8 model that the flags ask for, its pictures read."""
    if arguments.calibration_images < 1:
        raise UserError(f'-calibration_images must be 1 or more, not '
                        f'{arguments.calibration_images}.')
    if arguments.calibrate is not None:
        source = arguments.calibrate
        calibration, test = collect_from_folder(
            source, trained.preprocessing, arguments.calibration_images)
    else:
        source = f'the training part of {trained.config.DATA.DATASET}'
        calibration, test = collect_from_dataset(
            project, trained.config, trained.preprocessing, arguments.calibration_images)
    kept = tuple(filter(None, (arguments.keep_float or '').split(',')))
    return Plan(calibration, test, kept, arguments.max_drop,
                f'{len(calibration.crops)} pictures of {show_path(source)}')


def export_model(trained: Trained, folder: str, formats: Sequence[str] = ('paddle',),
                 precision: str = 'float32', plan: Plan | None = None,
                 sample: Image.Image | None = None) -> dict[str, float]:
    """Write a Trained model into a folder; return {format: error relative to max |logit|}.

    formats: of FORMATS; "onnx" and "openvino" need packages, see check_packages. precision: of
    PRECISIONS, what the folder is for; int8 takes a plan, and leaves a Paddle model float32.
    sample: the picture that is put beside the model with its answer, RGB; None: a drawing.
    Files appear only once all are verified. trained.model cannot be trained afterwards.
    Raises UserError for a missing package and for an int8 model that loses more than the plan
    allows, RunError for a file whose logits are not right.
    """
    check_packages(formats, precision)
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
        card.write_explanation(trained, work, predict, sample)
        card.write_script(work, formats)
        engines.write_check(work, expected, image_size)
        # int8 takes its ranges from all tokens: with the last MLP's from the class token alone the
        # digits' ViT lost 0.4 points, and none so.
        forward = get_forward(trained.model) if plan is None else trained.model.forward
        weights = save_program(trained.model, image_size, work, forward)
        errors = {'paddle': verify('paddle', work, images, expected)}
        if set(formats) & {'onnx', 'openvino'}:
            weights = write_onnx(trained.model, image_size, work, weights, forward)
            errors['onnx'] = verify('onnx', work, images, expected)
        if plan is not None:
            int8 = Int8(work, weights, trained.preprocessing, predict, plan)
            write_int8(int8, formats, work, expected, image_size)
        elif 'openvino' in formats:
            convert_to_openvino(find_onnx(work), find_openvino(work))
            errors['openvino'] = verify('openvino', work, images, expected)
        if precision == 'bfloat16':
            write_formats(Formats(precision), work)
        _remove_others(work, formats)
        card.write_card(trained, work, {name: errors[name] for name in formats if name in errors},
                        precision)
        write_record(work)
        _publish(work, folder)
    for name, distance in errors.items():
        if name in formats and not (plan and name != 'paddle'):
            logger.info('%s: logits within %.1e of the model\'s (of max |logit|, batch sizes %s)',
                        name, distance, ', '.join(map(str, BATCH_SIZES)))
    logger.info('Exported to %s', folder)
    return {name: errors[name] for name in formats if name in errors}


def write_int8(int8: Int8, formats: Sequence[str], work: str, expected: np.ndarray,
               image_size: int) -> None:
    """Write the int8 models of a folder, which has the float32 ONNX model, and what they cost."""
    os.rename(find_onnx(work), os.path.join(work, FLOAT_ONNX))
    values, logits = {}, {}
    for form in ('openvino', 'onnx'):
        if form in formats:
            cost, logits[form] = int8.make(form)
            values |= {form: 'int8', f'{form}_cost': cost.describe()}
            logger.info('%s, int8: %s', form, cost.describe())
    os.unlink(os.path.join(work, FLOAT_ONNX))
    engines.write_check(work, expected, image_size, **logits)
    write_formats(Formats('int8', **values, calibrated=int8.plan.source,
                          kept_float=', '.join(int8.kept)), work)


def save_program(model: paddle.nn.Layer, image_size: int, folder: str,
                 forward: Forward | None = None, kernels: str = 'separate') -> dict[str, str]:
    """Write the Paddle program and its weights: images [any, 3, S, S] -> logits.

    forward: the method of the model that is written; None: forward. kernels: of common.kernels,
    for inference: 'separate', or 'onnx' for what becomes ONNX.
    Returns {name in the program: name in the model} of the weights of products and convolutions.
    """
    spec = [paddle.static.InputSpec([None, 3, image_size, image_size], 'float32', 'images')]
    with warnings.catch_warnings(), installed(model, kernels), legacy_linear(), \
            drop_native_remarks('not support input out tensor'):
        # Of Paddle 2.6: autocast, which is off here anyway, has no effect.
        warnings.filterwarnings('ignore', message='.*auto_cast is an experimental')
        try:
            model.forward = forward or model.forward
            program = paddle.jit.to_static(model, input_spec=spec, full_graph=True)
            paddle.jit.save(program, os.path.join(folder, MODEL_NAME))
        finally:
            leave_conversion(model)
        return {layer.weight.name: key for key, layer in model.named_sublayers()
                if isinstance(layer, nn.Linear | nn.Conv2D)}


def leave_conversion(model: paddle.nn.Layer) -> None:
    """Make a model that was converted to a program an ordinary one, which hooks can look into."""
    for layer in model.sublayers(include_self=True):
        vars(layer).pop('forward', None)


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


def write_onnx(model: Model, image_size: int, folder: str, weights: dict[str, str],
               forward: Forward | None = None) -> dict[str, str]:
    """Write model.onnx of a model whose Paddle program is in the folder.

    paddle2onnx writes the GELU of erf for that of tanh, which needs a program of its own.
    weights: what save_program returned for the program in the folder. Returns the same of the
    program that became ONNX. forward: that was saved, see save_program.
    """
    if model.get_numerics().get('gelu') != 'tanh':
        convert_to_onnx(folder)
        return weights
    with tempfile.TemporaryDirectory(dir=folder) as work:
        weights = save_program(model, image_size, work, forward, 'onnx')
        convert_to_onnx(work)
        os.replace(find_onnx(work), find_onnx(folder))
    return weights


def convert_to_onnx(folder: str) -> None:
    """Write model.onnx from the Paddle program."""
    target = find_onnx(folder)
    # In a process of its own, because what goes wrong in there ends it. 2.x would fetch and
    # install an optimizer, and gain nothing: ONNX Runtime optimizes when it loads.
    code = ('import inspect, sys, paddle2onnx\n'
            'program, weights, target, opset = sys.argv[1:]\n'
            'names = inspect.signature(paddle2onnx.export).parameters\n'
            'options = {"optimize_tool": "None"} if "optimize_tool" in names else {}\n'
            'paddle2onnx.export(program, weights, target, opset_version=int(opset), '
            '**options)')
    weights = os.path.join(folder, f'{MODEL_NAME}.pdiparams')
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
    run = engines.OPENERS[VERIFIERS[name]](folder, 'float32')
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


def check_packages(formats: Sequence[str], precision: str = 'float32') -> None:
    """Raise UserError for an optional package that a format or a precision needs and is missing."""
    missing = find_missing(formats, precision)
    if missing:
        names = ' '.join(f'"{package}"' for package in missing.values())
        raise UserError(f'An export as {",".join(formats)} in {precision} needs '
                        f'{", ".join(missing)}: pip install {names}')


def find_missing(formats: Sequence[str], precision: str = 'float32') -> dict[str, str]:
    """Return {module: package} of what formats and a precision need and is not installed."""
    wanted = []
    if set(formats) & {'onnx', 'openvino'}:
        version = '<2' if paddle.__version__.startswith('2.') else '>=2'
        wanted += [('paddle2onnx', f'paddle2onnx{version}'), ('onnxruntime', 'onnxruntime')]
    if 'openvino' in formats:
        wanted.append(('openvino', 'openvino'))
    if precision == 'int8':
        wanted += [package for form in formats for package in PACKAGES.get(form, [])]
    return {module: package for module, package in wanted if not engines.is_installed(module)}


def _remove_others(work, formats):
    """Remove the files of formats that were not asked for: others are made from Paddle's."""
    for form, endings in ENDINGS.items():
        for ending in endings if form not in formats else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(work, f'{MODEL_NAME}{ending}'))


def _publish(work, folder):
    """Move all files into the folder; what an earlier export left is removed."""
    stale = [engines.CHOICES_FILE, FORMATS_FILE, card.LABELS, *(
        f'{MODEL_NAME}{ending}' for endings in ENDINGS.values() for ending in endings)]
    try:
        os.makedirs(folder, exist_ok=True)
        for name in stale:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
        for name in sorted(os.listdir(work)):
            shutil.move(os.path.join(work, name), os.path.join(folder, name))
    except OSError as error:
        raise UserError(f'Cannot write to {folder}: {error.strerror}.') from None


def _parse(project, argv):
    parser = FlagParser(
        prog='export_model.py', allow_abbrev=False,
        description=f'Export a trained {project.name} for paddle.inference, ONNX and OpenVINO.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    add_model_flags(parser)
    parser.add_flag('formats', 'format', metavar='A,B',
                    help=f'of {", ".join(FORMATS)} (default: paddle; of int8: openvino)')
    parser.add_flag('precision', choices=PRECISIONS, default='float32',
                    help='of the arithmetic (default: float32); int8 needs pictures')
    parser.add_flag('calibrate', metavar='DIR', help='pictures for int8 to take ranges from and to '
                    'measure its cost with (default: the data set of the training)')
    parser.add_flag('calibration_images', type=int, default=NUM_CALIBRATION, metavar='N',
                    help=f'pictures to take ranges from (default: {NUM_CALIBRATION})')
    parser.add_flag('keep_float', metavar='A,B', help='parts that int8 leaves in float32, such as '
                    'blocks.3,blocks.4.mlp; auto: as many as -max_drop takes')
    parser.add_flag('max_drop', type=float, metavar='POINTS', help='refuse an int8 model that '
                    'loses more percentage points of accuracy (of agreement without labels)')
    parser.add_flag('output', default=os.path.join('.', 'exported'), metavar='DIR',
                    help='folder to write (default: ./exported)')
    parser.add_flag('sample', metavar='FILE', help='picture to put beside the model with its '
                    'answer (default: a drawing)')
    parser.check_names(argv)
    return parser.parse_args(argv)
