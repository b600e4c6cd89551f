"""Intervals of scores, how they differ between centres, and undefined numbers in JSON.

Which interval is whose default was chosen by how often it covers the truth (benchmarks/coverage.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 30
"""With fewer patients or slides a centre's score says little about it."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heterogeneity:
    """Whether scores of several centres differ by more than chance.

    Cochran's Q over the centres' values, each weighted by its interval: W. G. Cochran, Biometrics 10 (1954) 101-129.

    Attributes:
        statistic: Q.
        freedom: number of centres minus one.
        p_value: of a Q at least this large if all centres were alike.
    """

    statistic: float
    freedom: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {"q": self.statistic, "degrees_of_freedom": self.freedom, "p_value": self.p_value}


def heterogeneity(scores: Mapping[str, tuple[float, Interval]], *, level: float = 0.95) -> Heterogeneity | None:
    """Compare scores with intervals; None with fewer than two that have both."""
    from scipy.stats import chi2  # noqa: PLC0415  (slow import)

    known = [(value, high - low) for value, (low, high) in scores.values() if high > low and math.isfinite(value)]
    if len(known) < 2:
        return None
    values = np.array([value for value, _ in known])
    weights = (2 * normal_quantile(level) / np.array([width for _, width in known])) ** 2
    middle = (weights * values).sum() / weights.sum()
    statistic = float((weights * (values - middle) ** 2).sum())
    return Heterogeneity(
        statistic=statistic, freedom=len(known) - 1, p_value=float(chi2.sf(statistic, df=len(known) - 1))
    )


def normal_quantile(level: float) -> float:
    """Return how many standard errors an interval with this level reaches."""
    return NormalDist().inv_cdf((1 + level) / 2)


def wilson(share: float, count: float, *, level: float = 0.95) -> Interval:
    """Return the score interval of a share of a count: Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.

    Args:
        share: 0 to 1.
        count: above 0; an effective one need not be whole.
        level: of the interval.
    """
    z = normal_quantile(level)
    middle = share + z * z / (2 * count)
    reach = z * math.sqrt(max(0.0, share * (1 - share)) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    low = 0.0 if share <= 0 else max(0.0, (middle - reach) / scale)
    high = 1.0 if share >= 1 else min(1.0, (middle + reach) / scale)
    return low, high


def effective_interval(share: float, variance: float, *, count: float, fewest: float, level: float = 0.95) -> Interval:
    """Return the score interval with as many independent trials as the variance of a share amounts to.

    Args:
        share: 0 to 1.
        variance: of the share; nan if unknown.
        count: what was counted; there are at most as many trials.
        fewest: independent units, as many trials where the share is 0 or 1 or does not vary.
        level: of the interval.
    """
    shrunk = (share * count + 0.5) / (count + 1)
    is_known = variance > 0 and 0 < share < 1
    trials = min(count, shrunk * (1 - shrunk) / variance) if is_known else fewest
    return wilson(share, max(trials, 1e-9), level=level)


def clustered_interval(
    parts: NDArray[np.float64], wholes: NDArray[np.float64], *, level: float = 0.95
) -> tuple[float | None, Interval | tuple[None, None]]:
    """Return a share and its interval, from what each independent unit (a patient) adds; None for 0 of 0.

    The variance is that of a ratio of means over units (Cochran, Sampling Techniques, 3rd edition, 1977, section 2.11).
    With one trial per unit it is Wilson's interval.

    Args:
        parts: float64 (n,), successes of each unit.
        wholes: float64 (n,), trials of each unit.
        level: of the interval.
    """
    asked = wholes > 0
    parts, wholes = parts[asked], wholes[asked]
    count, units = float(wholes.sum()), len(wholes)
    if not units:
        return None, (None, None)
    share = float(parts.sum()) / count
    if units == count:
        return share, wilson(share, count, level=level)
    variance = units / max(1, units - 1) * float(((parts - share * wholes) ** 2).sum()) / count**2
    return share, effective_interval(share, variance, count=count, fewest=units, level=level)


def mean_of_shares(shares: Sequence[tuple[float, Interval]]) -> tuple[float, Interval]:
    """Return the mean of independent shares and its interval, from theirs.

    Zou and Donner, Statistics in Medicine 27 (2008) 1693-1702 (MOVER): the distances to the bounds add up like errors.
    """
    middle = sum(share for share, _ in shares) / len(shares)
    below, above = (
        math.sqrt(sum((share - interval[side]) ** 2 for share, interval in shares)) / len(shares) for side in (0, 1)
    )
    return middle, (middle - below, middle + above)


def jackknife_variance(left_out: NDArray[np.float64]) -> float:
    """Return the variance of a score from its values with each unit left out; undefined ones are passed over."""
    defined = left_out[~np.isnan(left_out)]
    if defined.size < 2:
        return math.nan
    return float((defined.size - 1) / defined.size * ((defined - defined.mean()) ** 2).sum())


def check_bootstrap(resamples: int, level: float) -> None:
    """Refuse impossible numbers.

    Raises:
        ValueError: resamples or level out of range.
    """
    if resamples < 0 or not 0 < level < 1:
        raise ValueError(f"a bootstrap needs resamples >= 0 and 0 < level < 1, got {resamples} and {level}")


def percentile_interval(drawn: NDArray[np.float64], level: float) -> Interval:
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


def interval_json(interval: Interval) -> list[float | None]:
    """Return the bounds for json.dumps."""
    return [or_none(bound) for bound in interval]
