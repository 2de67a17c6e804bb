"""extract_features.py: what a backbone makes of pictures, as arrays, and how well that separates.

The .npz holds `names` (text [N], paths below the folder), `features` (float32 [N, D]: what the
classifier reads; with -tokens [N, T, D], the tokens after the last norm), and, where the pictures
lie in class folders, `labels` (int64 [N]) and `class_names` (text [C]).

With labels, two lines say at once whether the backbone suits the pictures: the accuracy of the
nearest neighbours and of a logistic regression on the features, each on pictures held back.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from common.cli import FlagParser
from common.data.images import ImageError, read_image, show_path
from common.data.survey import survey_folder
from common.deploy.pictures import find_pictures
from common.deploy.trained import Trained, add_model_flags, load_trained
from common.errors import RunError, UserError, report_errors
from common.files import note_reads, refuse_overwriting, replace_file
from common.project import Project
from common.run.log import start_logging
from common.terminal import is_terminal

VAL_FRACTION = 0.2
NEIGHBOURS = 5
STEPS = 300                     # of gradient descent, full batch
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)       # of the probe; the best on a fifth of what it learns from

EXAMPLES = """examples:
  python extract_features.py /my/pictures -pretrained=timm/{model} -output=features.npz
  python extract_features.py cat.jpg holidays/*.jpg -pretrained=best -tokens -output=tokens.npz
"""

logger = logging.getLogger(__name__)


def main(project: Project, argv: list[str] | None = None) -> int:
    """Write the features of pictures; return the exit code, 1 if some could not be read.

    argv: arguments without the script's name; None: sys.argv's.
    """
    return report_errors(_run, project, sys.argv[1:] if argv is None else argv)


def _run(project, argv):
    arguments = _parse(project, argv)
    start_logging()
    if not os.path.isdir(os.path.dirname(os.path.abspath(arguments.output))):
        raise UserError(f'-output={arguments.output}: there is no such folder.')
    pictures, is_train, class_names = _list_pictures(arguments.images)
    with note_reads() as read:
        trained = load_trained(project, arguments)
    refuse_overwriting(arguments.output, read)
    compute = build_extractor(project, trained.model, arguments.tokens)
    kept, features = [], []
    for indices, batch in _iterate_features(trained, compute, [path for path, _, _ in pictures],
                                            arguments.batch_size):
        kept += indices
        features.append(batch)
    if not kept:
        raise RunError('None of the pictures could be read.')
    features = np.concatenate(features)
    arrays = {'names': np.array([pictures[index][1] for index in kept]), 'features': features}
    labels = np.array([pictures[index][2] for index in kept], np.int64)
    if class_names:
        arrays |= {'labels': labels, 'class_names': np.array(class_names)}
    _save(arguments.output, arrays)
    logger.info('%s: features %s of %s pictures', arguments.output, list(features.shape),
                f'{len(kept):,}')
    if class_names:
        pooled = features.mean(axis=1) if arguments.tokens else features
        report_probes(pooled, labels, np.array([is_train[index] for index in kept]))
    if len(kept) < len(pictures):
        raise RunError(f'{len(pictures) - len(kept):,} of {len(pictures):,} pictures could not be '
                       'read; they are named above.')


def build_extractor(project: Project, model: Any, tokens: bool = False
                    ) -> Callable[[np.ndarray], np.ndarray]:
    """Return a callable: images float32 [B, 3, S, S] -> features [B, D], or tokens [B, T, D].

    Features are the input of the classifier, whatever the model's pooling.
    """
    if tokens:
        @paddle.no_grad()
        def compute_tokens(images: np.ndarray) -> np.ndarray:
            return model.forward_features(paddle.to_tensor(images)).astype('float32').numpy()
        return compute_tokens
    head = getattr(model, project.heads[0].rstrip('.'))
    found: list[np.ndarray] = []

    def remember(layer, inputs):
        found[:] = [inputs[0].astype('float32').numpy()]

    @paddle.no_grad()
    def compute(images: np.ndarray) -> np.ndarray:
        hook = head.register_forward_pre_hook(remember)
        try:
            model(paddle.to_tensor(images))
        finally:
            hook.remove()
        return found.pop()
    return compute


def report_probes(features: np.ndarray, labels: np.ndarray, is_train: np.ndarray) -> None:
    """Log the accuracy of neighbours and of a logistic probe on the pictures held back."""
    if is_train.all() or not is_train.any() or len(np.unique(labels[is_train])) < 2:
        logger.info('Too few pictures to hold some back: nothing is measured.')
        return
    train, val = features[is_train], features[~is_train]
    known = labels[is_train], labels[~is_train]
    neighbours = min(NEIGHBOURS, len(train))
    near = classify_by_neighbours(train, known[0], val, neighbours)
    logger.info('%d nearest neighbours (cosine): %.1f %% of %d pictures held back, %d to learn '
                'from', neighbours, 100 * (near == known[1]).mean(), len(val), len(train))
    probe = classify_by_regression(train, known[0], val)
    logger.info('Logistic regression: %.1f %%', 100 * (probe == known[1]).mean())


def classify_by_neighbours(train: np.ndarray, labels: np.ndarray, val: np.ndarray,
                           neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Return the label that most of the nearest features have, int64 [M].

    train: [N, D] with labels int [N]. val: [M, D]. Nearest by cosine; each neighbour's vote is
    its similarity.
    """
    train, val = (part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
                  for part in (train, val))
    votes = np.zeros([len(val), int(labels.max()) + 1])
    for first in range(0, len(val), 1024):
        likeness = val[first:first + 1024] @ train.T
        nearest = np.argpartition(-likeness, neighbours - 1, axis=1)[:, :neighbours]
        rows = np.arange(len(nearest))[:, None]
        np.add.at(votes, (first + rows, labels[nearest]), 1 + likeness[rows, nearest])
    return votes.argmax(axis=1)


def classify_by_regression(train: np.ndarray, labels: np.ndarray, val: np.ndarray) -> np.ndarray:
    """Return what a logistic regression on standardised features says, int64 [M].

    Its weight decay, of DECAYS, is the one that does best on a fifth of the training features.
    """
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, val = (train - mean) / std, (val - mean) / std
    order = np.random.default_rng(0).permutation(len(train))
    inside, outside = order[len(order) // 5:], order[:len(order) // 5]
    num_classes = int(labels.max()) + 1

    def score(decay):
        weights = fit_regression(train[inside], labels[inside], num_classes, decay)
        return (predict(weights, train[outside]) == labels[outside]).sum()

    best = max(DECAYS, key=score) if len(outside) else DECAYS[-1]
    return predict(fit_regression(train, labels, num_classes, best), val)


def fit_regression(features: np.ndarray, labels: np.ndarray, num_classes: int, decay: float
                   ) -> np.ndarray:
    """Return the weights [D + 1, C] of a softmax regression, by Nesterov's accelerated descent."""
    inputs = np.concatenate([features, np.ones([len(features), 1])], axis=1)
    targets = np.eye(num_classes)[labels]
    weights = np.zeros([inputs.shape[1], num_classes])
    ahead = weights
    # Half the largest eigenvalue of the inputs' second moment bounds the curvature.
    rate = 1 / (0.5 * np.linalg.norm(inputs, 2) ** 2 / len(inputs) + decay)
    for step in range(STEPS):
        logits = inputs @ ahead
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        after = ahead - rate * (inputs.T @ (shares - targets) / len(inputs) + decay * ahead)
        ahead = after + step / (step + 3) * (after - weights)
        weights = after
    return weights


def predict(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the best class of each feature, by weights as fit_regression returns them."""
    return (features @ weights[:-1] + weights[-1]).argmax(axis=1)


def _list_pictures(arguments):
    """Return ([(path, name, label)], which are to learn from, class names; [] without classes)."""
    if len(arguments) == 1 and os.path.isdir(arguments[0]):
        try:
            survey = survey_folder(arguments[0], VAL_FRACTION)
        except UserError:                   # no folders of classes: pictures alone
            survey = None
        if survey is not None:
            if survey.left_out:
                path, reason = survey.left_out[0]
                logger.warning('Left out: %s files, such as %s: %s', f'{len(survey.left_out):,}',
                               show_path(path), reason)
            return ([(os.path.join(survey.root, picture.path), picture.path, picture.label)
                     for picture in survey.pictures],
                    [picture.is_train for picture in survey.pictures], survey.class_names)
    found = [(picture.path, picture.name, -1) for picture in find_pictures(arguments, sys.stdin)]
    return found, [True] * len(found), []


def _iterate_features(trained: Trained, compute: Callable, paths: list[str], batch_size: int
                      ) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield (indices of the pictures, their features) of each batch; unreadable ones are named."""
    indices, crops = [], []
    bar = tqdm(paths, unit='picture', disable=not is_terminal(sys.stderr), leave=False)
    for index, path in enumerate(bar):
        try:
            crops.append(trained.preprocessing.crop(
                read_image(path, trained.preprocessing.exif_orientation)))
            indices.append(index)
        except ImageError as error:
            logger.error('error: %s', error)
        if crops and (len(crops) == batch_size or index == len(paths) - 1):
            yield indices, compute(trained.preprocessing.normalize(crops))
            indices, crops = [], []
    if crops:
        yield indices, compute(trained.preprocessing.normalize(crops))


def _save(path, arrays):
    try:
        with replace_file(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f'Cannot write {show_path(path)}: {error.strerror or error}.') from None


def _parse(project, argv):
    parser = FlagParser(
        prog='extract_features.py', allow_abbrev=False,
        description=f'Write what {project.name} makes of pictures, and see how well it separates '
                    'their classes.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(model=project.example_configs[1]))
    parser.add_argument('images', nargs='+', metavar='IMAGE',
                        help='folder of class folders; or pictures, a folder, globs')
    add_model_flags(parser)
    parser.add_flag('output', metavar='FILE', default='features.npz',
                    help='default: features.npz')
    parser.add_flag('tokens', action='store_true',
                    help='every token after the last norm, not what the classifier reads')
    parser.add_flag('batch_size', type=int, default=16, metavar='N',
                    help='pictures computed at once (default: 16)')
    parser.check_names(argv)
    arguments = parser.parse_args(argv)
    if arguments.batch_size < 1:
        raise UserError(f'-batch_size must be 1 or more, not {arguments.batch_size}.')
    if not arguments.output.endswith('.npz'):
        raise UserError(f'-output={arguments.output} must end in .npz.')
    return arguments
