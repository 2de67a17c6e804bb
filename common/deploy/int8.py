"""int8 models of an exported folder: made, measured against the float model, or refused."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from common.data.preprocessing import Preprocessing
from common.deploy import engine as engines
from common.deploy.calibration import Pictures, iterate_batches
from common.deploy.formats import find_onnx, find_openvino
from common.deploy.quantize import choose_weights, group_of, quantize
from common.errors import UserError

FLOAT_ONNX = 'float32.onnx'   # what both libraries start from; not published
AUTO = 'auto'
MOST_KEPT = 0.5         # share of the model's parts that -keep_float=auto may keep in float32
NUM_RANKING = 64        # pictures that tell which part costs most
SHOWN = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How to make an int8 model.

    calibration, test: pictures to take ranges from and to measure with. keep_float: names of
    layers or parts that stay float32 beside the first and the last; "auto": as many as it takes.
    max_drop: percentage points of accuracy, or of agreement without labels, that may be lost;
    None: any. source: what the pictures are, for the record.
    """

    calibration: Pictures
    test: Pictures
    keep_float: tuple[str, ...] = ()
    max_drop: float | None = None
    source: str = ''


@dataclass(frozen=True)
class Cost:
    """What int8 changed. Shares of `count` pictures; accuracies None where labels are not known."""

    count: int
    agreement: float
    before: float | None
    after: float | None

    @property
    def drop(self) -> float:
        """Percentage points lost: of accuracy, or of agreement where labels are not known."""
        lost = 1 - self.agreement if self.before is None else self.before - self.after
        return 100 * lost

    def describe(self) -> str:
        """Return one line for the record and the log."""
        line = f'the same class as float32 on {100 * self.agreement:.2f} % of {self.count:,} ' \
               'pictures that were not used for calibration'
        if self.before is None:
            return line
        return f'{line}; accuracy {100 * self.after:.2f} %, float32 {100 * self.before:.2f} %'


@dataclass
class Int8:
    """The int8 models of a folder while it is made.

    folder: with the float32 ONNX model. weights: {name of a layer's weight in it: name in the
    model}, in the model's order. predict: the float model, images -> logits.
    """

    folder: str
    weights: dict[str, str]
    preprocessing: Preprocessing
    predict: Callable[[np.ndarray], np.ndarray]
    plan: Plan
    kept: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = [name for name in self.plan.keep_float if name != AUTO]
        keys = list(self.weights.values())
        self.kept = [keys[0], keys[-1], *parts]
        choose_weights(self.weights, self.kept)             # raises for a wrong name
        self._expected = self._run(self.predict, self.plan.test.crops)

    def make(self, form: str) -> tuple[Cost, np.ndarray]:
        """Write the int8 model of a form ("onnx", "openvino"); return its cost and check logits.

        Raises UserError if it loses more than the plan allows, naming what costs most.
        """
        cost = self._try(form)
        limit = self.plan.max_drop
        if limit is not None and cost.drop > limit:
            ranked = self._rank(form)
            if AUTO in self.plan.keep_float:
                cost = self._keep_more(form, ranked, limit)
            else:
                self._refuse(cost, limit, [part for part, _ in ranked[:SHOWN]])
        _, image_size = engines.read_check(self.folder)
        run = self._open(form)
        return cost, run(engines.make_check_images(image_size))

    def _try(self, form):
        """Quantise what is not kept; return the cost."""
        self._quantize(form, self.plan.calibration.crops, choose_weights(self.weights, self.kept))
        return self._measure(self._open(form))

    def _quantize(self, form, crops, keep_float):
        target = find_onnx(self.folder) if form == 'onnx' else find_openvino(self.folder)
        source = os.path.join(self.folder, FLOAT_ONNX)
        quantize(form, source, target, crops, self.preprocessing, self.weights, keep_float)

    def _open(self, form):
        name = 'onnxruntime' if form == 'onnx' else 'openvino'
        return engines.OPENERS[name](self.folder, 'int8')

    def _run(self, predict, crops):
        return np.concatenate([predict(images)
                               for images in iterate_batches(crops, self.preprocessing)])

    def _measure(self, run):
        test = self.plan.test
        found, expected = self._run(run, test.crops).argmax(1), self._expected.argmax(1)
        before = after = None
        if test.is_labelled:
            before = float((expected == test.labels).mean())
            after = float((found == test.labels).mean())
        return Cost(len(found), float((found == expected).mean()), before, after)

    def _rank(self, form):
        """Return [(part of the model, error of the logits if it alone is int8)], worst first."""
        crops = self.plan.calibration.crops[:NUM_RANKING]
        expected = self._run(self.predict, crops)
        parts = dict.fromkeys(group_of(key) for key in self.weights.values())
        fixed = set(choose_weights(self.weights, self.kept))
        errors = {}
        for part in parts:
            alone = set(choose_weights(self.weights, [part]))
            if alone <= fixed:
                continue
            logger.info('What does int8 in %s cost?', part)
            self._quantize(form, crops, [name for name in self.weights
                                         if name not in alone or name in fixed])
            errors[part] = float(np.square(self._run(self._open(form), crops) - expected).mean())
        return sorted(errors.items(), key=lambda item: -item[1])

    def _keep_more(self, form, ranked, limit):
        """Let parts go back to float32, the most costly first, until the limit holds."""
        most = max(1, int(MOST_KEPT * len(ranked)))
        for part, _ in ranked[:most]:
            self.kept.append(part)
            cost = self._try(form)
            logger.info('%s stays float32: %s', part, cost.describe())
            if cost.drop <= limit:
                return cost
        self._refuse(cost, limit, [part for part, _ in ranked[:most]])

    def _refuse(self, cost, limit, parts):
        raise UserError(
            f'int8 loses {cost.drop:.2f} percentage points, more than -max_drop={limit:g}: '
            f'{cost.describe()}. Nothing was written. The parts that cost most: '
            f'{", ".join(parts)}. Keep some in float32 with -keep_float={",".join(parts)}, as many '
            'as it takes with -keep_float=auto, or calibrate with more pictures (-calibrate).')
