"""How good a network's probabilities are: its area under the curve, its temperature, its threshold.

A margin is the logit of tumour minus the logit of normal; the probability of tumour is 1 / (1 + exp(-margin)).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_THRESHOLDS = np.round(np.arange(0.30, 0.801, 0.01), 2)
_WORTH_A_CHANGE = 0.005  # of Dice: smaller differences are noise of the validation patients
TEMPERATURES = _COLDEST, _WARMEST = 0.25, 10.0
"""The bounds of a temperature: the lowest and the highest."""


def area_under_curve(truth: NDArray[np.bool_], scores: NDArray[np.floating]) -> float | None:
    """Area under the ROC curve, ties counting half; None where truth is all true or all false."""
    positive = int(np.count_nonzero(truth))
    negative = truth.size - positive
    if not positive or not negative:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def balanced_loss(truth: NDArray[np.bool_], margins: NDArray[np.float64], class_weights: NDArray[np.float64]) -> float:
    """Mean cross entropy, each cell weighted by its class.

    Args:
        truth: bool (n,), tumour.
        margins: float64 (n,).
        class_weights: float64 (2,), of normal and tumour.
    """
    penalty = np.logaddexp(0, np.where(truth, -margins, margins))
    weight = np.where(truth, class_weights[1], class_weights[0])
    return float((penalty * weight).sum() / weight.sum())


def best_temperature(
    truth: NDArray[np.bool_], margins: NDArray[np.float64], class_weights: NDArray[np.float64]
) -> float:
    """The divisor of margins with the lowest balanced loss.

    C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Between 0.25 and 10, as a few cells that are
    all classified correctly would demand certainty; 1 unless there are cells of both classes.
    """
    if truth.all() or not truth.any():
        return 1.0
    signed = np.where(truth, margins, -margins)
    weight = np.where(truth, class_weights[1], class_weights[0])

    def slope(inverse: float) -> float:
        # of the loss, which is convex in 1 / temperature
        return -float((weight * signed * np.exp(-np.logaddexp(0, inverse * signed))).sum())

    low, high = 1 / _WARMEST, 1 / _COLDEST
    if slope(low) >= 0:
        return _WARMEST
    if slope(high) <= 0:
        return _COLDEST
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return round(2 / (low + high), 6)


def best_threshold(truth: NDArray[np.bool_], margins: NDArray[np.float64]) -> float:
    """The probability with the highest Dice; the middle one of equals; 0.5 unless another is clearly better."""
    if not truth.any():
        return 0.5
    dice = np.array([_dice(truth, margins > np.log(level / (1 - level))) for level in _THRESHOLDS])
    if dice.max() <= dice[np.searchsorted(_THRESHOLDS, 0.5)] + _WORTH_A_CHANGE:
        return 0.5
    best = np.flatnonzero(dice == dice.max())
    return float(_THRESHOLDS[best[len(best) // 2]])


def reliability(
    truth: NDArray[np.bool_], margins: NDArray[np.float64], class_weights: NDArray[np.float64], *, bins: int = 10
) -> NDArray[np.float64]:
    """The share of tumour among the cells with a given probability, each cell weighted by its class.

    Args:
        truth: bool (n,), tumour.
        margins: float64 (n,).
        class_weights: float64 (2,), of normal and tumour: probabilities are learnt with both classes in equal number.
        bins: of equal width between 0 and 1.

    Returns:
        float64 (m, 3): mean probability, share of tumour, number of cells of each bin that is not empty.
    """
    probability = np.exp(-np.logaddexp(0, -margins))
    weight = np.where(truth, class_weights[1], class_weights[0])
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
    counts, total = np.bincount(bin_of, minlength=bins), np.bincount(bin_of, weight, minlength=bins)
    held = counts > 0
    mean = np.bincount(bin_of, weight * probability, minlength=bins)[held] / total[held]
    share = np.bincount(bin_of, weight * truth, minlength=bins)[held] / total[held]
    return np.stack([mean, share, counts[held]], axis=1)


def _dice(truth: NDArray[np.bool_], found: NDArray[np.bool_]) -> float:
    return 2 * float(np.count_nonzero(found & truth)) / float(np.count_nonzero(found) + np.count_nonzero(truth))
