"""Bootstrap intervals, and undefined numbers in JSON."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def check_bootstrap(resamples: int, level: float) -> None:
    """Refuse impossible numbers.

    Raises:
        ValueError: resamples or level out of range.
    """
    if resamples < 0 or not 0 < level < 1:
        raise ValueError(f"a bootstrap needs resamples >= 0 and 0 < level < 1, got {resamples} and {level}")


def percentile_interval(drawn: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Return the (low, high) percentiles with ``level`` of the defined values between them; nan without any.

    Args:
        drawn: float64 (n,), one value per bootstrap sample, nan if undefined.
        level: share of the values between the percentiles.
    """
    defined = drawn[~np.isnan(drawn)]
    if not defined.size:
        return math.nan, math.nan
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def or_none(value: float) -> float | None:
    """Return None for nan, which JSON does not have."""
    return None if math.isnan(value) else value


def interval_json(interval: tuple[float, float]) -> list[float | None]:
    """Return the bounds for json.dumps."""
    return [or_none(bound) for bound in interval]
