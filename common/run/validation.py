"""Validation of one process's model: figures for the log, what was wrong for the reports."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import paddle
from yacs.config import CfgNode

from common.data.datasets import Dataset
from common.data.loader import Loader, build_loader
from common.data.normalize import Preprocess
from common.data.sampler import EvalBatches
from common.machine.distributed import get_rank, get_world_size
from common.run.announce import log_skipped
from common.run.log import RunLog, format_duration
from common.run.results import write_result
from common.training.confusion import Predictions, write_report
from common.training.evaluate import EvalResult, evaluate
from common.training.precision import Precision
from common.training.stopping import StopRequest, Watchdog

if TYPE_CHECKING:
    from common.run.job import Job
    from common.training.loop import TrainState

logger = logging.getLogger(__name__)


def build_validator(job: 'Job', model: paddle.nn.Layer, run_log: RunLog, stop: StopRequest
                    ) -> 'Validator':
    """Return the Validator of a job's validation data."""
    config = job.config
    return Validator(
        model, job.dataset_val, lambda dataset, batches: build_loader(dataset, batches, config),
        config.DATA.BATCH_SIZE_EVAL or config.DATA.BATCH_SIZE, job.preprocess, job.precision,
        job.watchdog, run_log, stop)


@dataclass
class Validator:
    """Evaluates a model on the validation data; every rank must do it at the same time."""

    model: paddle.nn.Layer
    dataset: Dataset
    load: Callable[[Dataset, EvalBatches], Loader]
    batch_size: int                 # of one process
    preprocess: Preprocess
    precision: Precision
    watchdog: Watchdog
    run_log: RunLog
    stop: StopRequest
    predictions: Predictions | None = None      # of the last evaluation
    result: EvalResult | None = None            # of the same, None where there was no image

    def validate(self, epoch: int = 0, update: int = 0, weights: str = 'model'
                 ) -> EvalResult | None:
        """Evaluate the model as it is, log the figures and return them; None: no images.

        Raises Interrupted where a signal has come.
        """
        self.result = None
        if len(self.dataset) == 0:
            logger.warning('There are no validation images: nothing is evaluated.')
            return None
        batches = EvalBatches(len(self.dataset), self.batch_size, get_rank(), get_world_size())
        loader = self.load(self.dataset, batches)
        self.run_log.start_bar(len(batches), unit='batch', text='Evaluating')
        self.predictions = Predictions()

        def on_batch():
            self.run_log.advance_bar()
            self.watchdog.feed('evaluating', loader.describe_workers)

        result = evaluate(self.model, loader, self.preprocess, self.precision, on_batch,
                          self.predictions, lambda: self.stop.number)
        self.run_log.close_bar()
        log_skipped(loader.skipped)
        if result.images == 0:
            logger.warning('No validation image could be read: nothing is evaluated.')
            return None
        name = ' (averaged weights)' if weights == 'ema' else ''
        acc5 = f', acc5 {result.acc5:.2f}' if self.dataset.num_classes > 5 else ''
        logger.info('Evaluation%s: loss %.4f, acc1 %.2f%s, %d images in %s (%.1f images/s)', name,
                    result.loss, result.acc1, acc5, result.images,
                    format_duration(result.seconds), result.images / result.seconds)
        self.run_log.write_metrics('eval', epoch=epoch, update=update, weights=weights,
                                   **result.as_metrics())
        self.result = result
        return result

    def validate_state(self, state: 'TrainState', epoch: int) -> float | None:
        """Evaluate the trained weights and, if there is one, their average.

        Returns the acc1 to judge the epoch by, in percent; None: there are no images.
        """
        result = self.validate(epoch, state.update)
        if state.ema is not None and result is not None:
            with state.ema.averaged_weights():
                result = self.validate(epoch, state.update, weights='ema')
        return None if result is None else result.acc1

    def report(self, config: CfgNode, folder: str, weights: str) -> None:
        """Write what the last evaluation got wrong to the run folder, its figures to results.csv.

        weights: what was evaluated, a name or a path.
        """
        if self.predictions is None:
            return
        if get_rank() == 0 and self.result is not None:
            engine = getattr(self.model, 'engine', None)
            write_result(config, folder, weights, self.dataset.describe(),
                         'model' if engine is None else engine.name, self.result)
        samples = self.predictions.gather()
        if get_rank() == 0 and len(samples):
            write_report(folder, samples, self.dataset, config.MODEL.NUM_CLASSES)
