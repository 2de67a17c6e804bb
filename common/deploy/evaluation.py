"""Evaluation on a CPU by what gives the model's logits faster than its own forward."""

import logging
import tempfile
import time
from collections.abc import Callable

import numpy as np
import paddle
from yacs.config import CfgNode

from common.deploy import engine as engines
from common.deploy.export import find_missing, save_program, write_onnx
from common.deploy.formats import find_onnx, find_openvino
from common.deploy.predict import Forward, get_forward, make_dynamic_predictor
from common.deploy.preprocessing import load_preprocessing
from common.deploy.program import write_record
from common.deploy.quantize import convert_to_openvino
from common.errors import RunError, UserError
from common.weights.load import LoadReport

logger = logging.getLogger(__name__)

# With less to do, exporting the model and trying the engines costs more than it saves.
MIN_IMAGES = 2000
MIN_SECONDS = 300       # with OpenVINO: 15 s to build, 4 % faster on a Zen 5, a tenth on a Zen 4
MIN_SECONDS_PADDLE = 480
BATCH = 8               # images that tell how fast the model is
GAIN = 1.03             # of an engine that is worth leaving the model for


class Evaluator:
    """In a model's place: images [B, 3, S, S] -> logits, as tensors.

    engine: that computes them; None: the model's own layers.
    """

    training = False

    def __init__(self, forward: Forward, engine: engines.Engine | None = None) -> None:
        self.forward = forward
        self.engine = engine

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.forward(images)

    def eval(self) -> None:
        """It does nothing else."""


def use_engine(engine: engines.Engine) -> Evaluator:
    """Return the Evaluator of an engine."""
    return Evaluator(lambda images: paddle.to_tensor(engine(images.numpy())), engine)


def choose_evaluator(model: paddle.nn.Layer, config: CfgNode, num_images: int
                     ) -> paddle.nn.Layer | Evaluator:
    """Return what evaluates a model on the CPU: an Evaluator, or the model itself.

    EVAL_ENGINE "auto": the fastest engine that gives the model's logits, where there is enough
    to do that building it is repaid, and otherwise the model without what no head reads;
    "model": the model, whole. An engine that fails is reported in the log.
    """
    name, why = config.EVAL_ENGINE, ''
    if name == 'model':
        return model
    model.eval()
    forward = get_forward(model)
    if name == 'auto':
        if num_images < MIN_IMAGES:
            return Evaluator(forward)
        speed = measure_speed(make_dynamic_predictor(forward), config.DATA.IMAGE_SIZE)
        seconds = num_images / speed
        if seconds < (MIN_SECONDS_PADDLE if find_missing(['openvino']) else MIN_SECONDS):
            return Evaluator(forward)
        why = f'; the model itself would take about {seconds / 60:.0f} minutes for ' \
              f'{num_images:,} images (EVAL_ENGINE auto)'
    started = time.perf_counter()
    try:
        engine = open_engine(model, config.DATA.IMAGE_SIZE, name)
    except (RunError, UserError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.info('Evaluating without an engine (EVAL_ENGINE %s): %s', name, reason)
        return Evaluator(forward)
    if name == 'auto':
        gain = measure_speed(engine, config.DATA.IMAGE_SIZE) / speed
        if gain < GAIN:
            logger.info('Evaluating without an engine: the fastest, %s, is %.2f times as fast as '
                        'the model', engine.name, gain)
            return Evaluator(forward)
        why = f', {gain:.2f} times as fast as the model{why}'
    logger.info('%s; it took %.0f s to build%s', engine.describe(),
                time.perf_counter() - started, why)
    return use_engine(engine)


def open_exported(config: CfgNode) -> tuple[Evaluator, LoadReport]:
    """Return what evaluates the exported folder MODEL.PRETRAINED, and what it says of itself.

    Raises UserError where the config asks for other images or classes than it was made for.
    """
    folder = config.MODEL.PRETRAINED
    preprocessing = load_preprocessing(folder)
    logits, image_size = engines.read_check(folder)
    for key, value, made_for in (
            ('DATA.IMAGE_SIZE', config.DATA.IMAGE_SIZE, image_size),
            ('MODEL.NUM_CLASSES', config.MODEL.NUM_CLASSES, logits.shape[1])):
        if value != made_for:
            raise UserError(f'{folder} was exported for {key} {made_for}, and the config says '
                            f'{value}.')
    name = config.EVAL_ENGINE
    engine = engines.load_engine(folder, 'auto' if name == 'model' else name)
    logger.info('Exported model %s\n%s', folder, engine.describe())
    return use_engine(engine), LoadReport('exported', folder,
                                          class_names=preprocessing.class_names)


def measure_speed(predict: Callable[[np.ndarray], np.ndarray], image_size: int) -> float:
    """Return images a second of a small batch, the second that runs."""
    images = np.resize(engines.make_check_images(image_size), (BATCH, 3, image_size, image_size))
    predict(images)
    started = time.perf_counter()
    predict(images)
    return BATCH / (time.perf_counter() - started)


def open_engine(model: paddle.nn.Layer, image_size: int, name: str) -> engines.Engine:
    """Return the Engine for a model, by way of files that are gone afterwards.

    name: of EVAL_ENGINE. "auto" is OpenVINO's own engine, the fastest in float32, where its
    packages are installed, and otherwise the fastest of those in Paddle.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.eval()
        images = engines.make_check_images(image_size)
        engines.write_check(folder, make_dynamic_predictor(model)(images), image_size)
        forward = get_forward(model)
        weights = save_program(model, image_size, folder, forward)
        if name in ('auto', 'openvino') and not find_missing(['openvino']):
            try:
                write_onnx(model, image_size, folder, weights, forward)
                convert_to_openvino(find_onnx(folder), find_openvino(folder))
                write_record(folder)
                return engines.load_engine(folder, 'openvino')
            except (RunError, UserError) as error:
                logger.info('OpenVINO does not run this model: %s', str(error).splitlines()[0])
        write_record(folder)
        return engines.load_engine(folder, name)
