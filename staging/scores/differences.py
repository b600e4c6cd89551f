"""Differences between two submissions on the same slides: paired, over patients.

The interval is that of Zou and Donner (Statistics in Medicine 27 (2008) 1693-1702, MOVER) from the intervals of the two
scores and the correlation of what each patient adds to them; so it is as careful near 1 as they are. The p-value is the
smallest share left out by an interval that reaches 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from staging.scores.intervals import Interval

METHOD = "MOVER from the intervals of both scores and their correlation over patients; p by its inversion"
_HALVINGS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A score of one submission, as a difference needs it.

    Attributes:
        value: the score, 0 to 1.
        added: float64 (units,), what each independent unit (a patient) adds to its deviation from the truth; nan where
            that is not known.
        interval: of the score at any level.
    """

    value: float
    added: NDArray[np.float64]
    interval: Callable[[float], Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The score of one submission minus that of another.

    Attributes:
        values: of the one and the other.
        interval: (low, high) of the difference.
        level: of the interval.
        p_value: two-sided; 1 where the scores are equal.
        correlation: of the two scores.
    """

    values: tuple[float, float]
    interval: Interval
    level: float
    p_value: float
    correlation: float

    @property
    def difference(self) -> float:
        """The first minus the second."""
        return self.values[0] - self.values[1]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {
            "values": list(self.values),
            "difference": self.difference,
            "interval": list(self.interval),
            "interval_method": METHOD,
            "level": self.level,
            "p_value": self.p_value,
            "correlation": self.correlation,
        }


def paired_difference(one: Judged, other: Judged, *, is_same: bool = False, level: float = 0.95) -> Difference:
    """Compare two scores of the same slides.

    Args:
        one: the first.
        other: the second, of the same units in the same order.
        is_same: both submissions say the same: their difference is 0 for certain.
        level: of the interval.
    """
    if is_same:
        return Difference(
            values=(one.value, other.value), interval=(0.0, 0.0), level=level, p_value=1.0, correlation=1.0
        )
    correlation = _correlation(one.added, other.added)
    difference = one.value - other.value

    def interval(asked: float) -> Interval:
        return _mover(one.value, other.value, one.interval(asked), other.interval(asked), correlation)

    return Difference(
        values=(one.value, other.value),
        interval=interval(level),
        level=level,
        p_value=_p_value(difference, interval),
        correlation=correlation,
    )


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Of what units add to both scores; 0 where one of them does not vary."""
    known = ~(np.isnan(one) | np.isnan(other))
    one, other = one[known] - one[known].mean(), other[known] - other[known].mean()
    size = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float(np.clip((one * other).sum() / size, -1, 1)) if size > 0 else 0.0


def _mover(one: float, other: float, of_one: Interval, of_other: Interval, correlation: float) -> Interval:
    below, above = one - of_one[0], of_one[1] - one
    other_below, other_above = other - of_other[0], of_other[1] - other
    down = below**2 + other_above**2 - 2 * correlation * below * other_above
    up = above**2 + other_below**2 - 2 * correlation * above * other_below
    difference = one - other
    return (
        max(-1.0, difference - math.sqrt(max(0.0, down))),
        min(1.0, difference + math.sqrt(max(0.0, up))),
    )


def _p_value(difference: float, interval: Callable[[float], Interval]) -> float:
    """Return what is left out by the narrowest interval that reaches 0."""
    if difference == 0:
        return 1.0
    side = 0 if difference > 0 else 1
    without, within = 0.0, 1.0
    for _ in range(_HALVINGS):
        level = (without + within) / 2
        bound = interval(level)[side]
        if (bound > 0) if side == 0 else (bound < 0):
            without = level
        else:
            within = level
    return 1 - without
