"""Evaluation on a CPU by an inference engine, which is faster than the dynamic model."""

import logging
import tempfile

import paddle
from yacs.config import CfgNode

from common.deploy import engine as engines
from common.deploy.export import save_program
from common.deploy.predict import make_dynamic_predictor
from common.deploy.program import write_record
from common.errors import RunError, UserError

logger = logging.getLogger(__name__)

MIN_IMAGES = 5000       # with fewer, exporting and trying the engines costs more than it saves


class EngineModel:
    """An engine in a model's place: images [B, 3, S, S] -> logits, as tensors."""

    training = False

    def __init__(self, engine: engines.Engine) -> None:
        self.engine = engine

    def __call__(self, images: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(self.engine(images.numpy()))

    def eval(self) -> None:
        """An engine does nothing else."""


def choose_evaluator(model: paddle.nn.Layer, config: CfgNode,
                     num_images: int) -> paddle.nn.Layer | EngineModel:
    """Return what evaluates a model on the CPU: an EngineModel, or the model itself.

    EVAL_ENGINE "auto": the fastest engine that gives the model's logits, where there are
    images enough; "model": the model. An engine that fails is reported in the log, and the
    model takes its place.
    """
    name = config.EVAL_ENGINE
    if name == 'model' or name == 'auto' and num_images < MIN_IMAGES:
        return model
    try:
        engine = open_engine(model, config.DATA.IMAGE_SIZE, name)
    except (RunError, UserError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.info('Evaluating without an engine (EVAL_ENGINE %s): %s', name, reason)
        for layer in model.sublayers(include_self=True):
            vars(layer).pop('forward', None)            # the conversion's
        return model
    logger.info('%s', engine.describe())
    return EngineModel(engine)


def open_engine(model: paddle.nn.Layer, image_size: int, name: str) -> engines.Engine:
    """Return the Engine for a model, by way of files that are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        model.eval()
        images = engines.make_check_images(image_size)
        engines.write_check(folder, make_dynamic_predictor(model)(images), image_size)
        save_program(model, image_size, folder)
        write_record(folder)
        return engines.load_engine(folder, name)
