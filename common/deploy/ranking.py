"""From logits to the best classes and their probabilities."""

import numpy as np

from common.errors import RunError

Ranking = list[tuple[int, float]]       # (class, probability), the best first


def rank_classes(logits: np.ndarray, count: int) -> list[Ranking]:
    """Return, for each row of logits [B, C], the `count` best [(class, probability)].

    Of equal logits the lower class comes first. Raises RunError where one is not a number.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        raise RunError('The model\'s output is not finite: its weights are damaged, or the '
                       'precision does not suffice.')
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = exponents / exponents.sum(axis=1, keepdims=True)
    best = np.argsort(-logits, axis=1, kind='stable')[:, :count]
    return [[(int(index), float(share[index])) for index in row]
            for row, share in zip(best, shares)]


def format_share(share: float) -> str:
    """Return a probability as "93.1 %"."""
    return f'{100 * share:.1f} %'
