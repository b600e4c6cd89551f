"""Area under the ROC curve of a score per slide, with three intervals. Uses numbers and bools, never texts.

The default is Wilson's score interval with as many trials as the variance of the area amounts to: DeLong's, over
patients where slides belong to patients (Obuchowski, Biometrics 53 (1997) 567-578), or that of Hanley and McNeil
(Radiology 143 (1982) 29-36) where it is larger, as it is near 1, where DeLong's tends to 0. DeLong's own interval
follows DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845, by midranks as in Sun and Xu, IEEE Signal
Processing Letters 21 (2014) 1389-1393; the third is the percentile bootstrap over patients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from staging.scores.differences import Judged
from staging.scores.intervals import Interval, check_bootstrap, or_none, percentile_interval, wilson

METHOD = "score interval, the larger of DeLong's and Hanley and McNeil's variance; patients are independent"
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RocScore:
    """How well a score separates positive from negative slides.

    Attributes:
        auc: the share of pairs (positive, negative) in which the positive scores higher, ties counting 1/2.
        standard_error: of auc, by DeLong; nan with only one positive or only one negative slide.
        interval: (low, high), the default, see the top of this module.
        delong: (low, high), auc -/+ the normal quantile times standard_error, clipped to 0..1; nan if that is.
        bootstrap: (low, high), percentiles over resamples of patients; nan if no resample had both kinds.
        level: the share of the distribution between low and high.
        positives: number of positive slides.
        negatives: number of negative slides.
        resamples: number of bootstrap samples.
        undefined: number of samples with slides of one kind only, which are left out.
        seed: of the bootstrap's random numbers.
        curve: float64 (n, 2), false and true positive rate from (0, 0) to (1, 1), one row per distinct score.
    """

    auc: float
    standard_error: float
    interval: Interval
    delong: tuple[float, float]
    bootstrap: tuple[float, float]
    level: float
    positives: int
    negatives: int
    resamples: int
    undefined: int
    seed: int
    curve: NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps; undefined numbers are None, since JSON has no nan."""
        return {
            "auc": self.auc,
            "standard_error": or_none(self.standard_error),
            "interval": list(self.interval),
            "interval_method": METHOD,
            "delong": [or_none(bound) for bound in self.delong],
            "bootstrap": [or_none(bound) for bound in self.bootstrap],
            "level": self.level,
            "positives": self.positives,
            "negatives": self.negatives,
            "resamples": self.resamples,
            "undefined": self.undefined,
            "seed": self.seed,
        }


def area_under_curve(truth: ArrayLike, scores: ArrayLike) -> float:
    """Compute the share of pairs (positive, negative) in which the positive scores higher, ties counting 1/2.

    Pairs are counted as integers, so that equal orders of the slides give the same bits.

    Args:
        truth: bool, one per slide.
        scores: one per slide, the higher the more likely positive.

    Raises:
        ValueError: different lengths, scores that are not finite, or slides of one kind only.
    """
    truth, scores = _checked(truth, scores)
    hits, alarms = _counts(truth, scores)
    before = np.cumsum(alarms) - alarms
    below = alarms.sum() - before - alarms
    return int((hits * (2 * below + alarms)).sum()) / (2 * int(hits.sum()) * int(alarms.sum()))


def roc_curve(truth: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Return the curve as float64 (n, 2): false and true positive rate, from (0, 0) on, one row per distinct score.

    Raises:
        ValueError: as for area_under_curve.
    """
    hits, alarms = _counts(*_checked(truth, scores))
    rates = np.stack([np.cumsum(alarms) / alarms.sum(), np.cumsum(hits) / hits.sum()], axis=1)
    return np.concatenate([np.zeros((1, 2)), rates])


def score(
    truth: ArrayLike,
    scores: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> RocScore:
    """Compute the area under the curve with its intervals.

    Args:
        truth: bool, one per slide.
        scores: one per slide, the higher the more likely positive.
        groups: the patient of each slide; None if each is its own.
        resamples: bootstrap samples; 0 for no bootstrap interval.
        level: share of the distribution within the intervals.
        seed: of the random numbers; equal seeds give equal intervals.

    Raises:
        ValueError: as for area_under_curve, or resamples or level out of range.
    """
    check_bootstrap(resamples, level)
    truth, scores = _checked(truth, scores)
    auc = area_under_curve(truth, scores)
    _, owners = np.unique(np.arange(truth.size) if groups is None else np.asarray(groups), return_inverse=True)
    error = delong_error(truth, scores, owners=owners)
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    is_alone = owners.max() + 1 == truth.size
    drawn = (
        _resampled(truth, scores, resamples, seed)
        if is_alone
        else _resampled_groups(truth, scores, owners, resamples, seed)
    )
    undefined = math.isnan(error)
    return RocScore(
        auc=auc,
        standard_error=error,
        interval=score_interval(auc, error, positives=int(truth.sum()), negatives=int((~truth).sum()), level=level),
        delong=(math.nan, math.nan) if undefined else (max(0.0, auc - reach), min(1.0, auc + reach)),
        bootstrap=percentile_interval(drawn, level),
        level=level,
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        resamples=resamples,
        undefined=int(np.isnan(drawn).sum()),
        seed=seed,
        curve=roc_curve(truth, scores),
    )


def score_interval(auc: float, error: float, *, positives: int, negatives: int, level: float = 0.95) -> Interval:
    """Compute the default interval of an area, see the top of this module.

    Args:
        auc: the area.
        error: its standard error by DeLong; nan if unknown.
        positives: number of slides with tumour.
        negatives: number of those without.
        level: of the interval.
    """
    pairs = positives * negatives
    shrunk = (auc * pairs + 0.5) / (pairs + 1)
    squares = [share / (2 - share) - share * share for share in (shrunk, 1 - shrunk)]
    theirs = (shrunk * (1 - shrunk) + (positives - 1) * squares[0] + (negatives - 1) * squares[1]) / pairs
    variance = theirs if math.isnan(error) else max(theirs, error * error)
    return wilson(auc, shrunk * (1 - shrunk) / variance, level=level)


def delong_error(truth: ArrayLike, scores: ArrayLike, *, owners: NDArray[np.int64] | None = None) -> float:
    """Compute DeLong's standard error of the area; nan with only one positive or only one negative slide.

    Args:
        truth: bool, one per slide.
        scores: one per slide.
        owners: number of each slide's patient; None if each slide is its own. Slides of one patient are summed first
            (Obuchowski 1997).

    Raises:
        ValueError: as for area_under_curve.
    """
    truth, scores = _checked(truth, scores)
    of_positive, of_negative = _placements(truth, scores)
    if of_positive.size < 2 or of_negative.size < 2:
        return math.nan
    if owners is not None and owners.max() + 1 < truth.size:
        return _clustered_error(truth, of_positive, of_negative, owners)
    variance = of_positive.var(ddof=1) / of_positive.size + of_negative.var(ddof=1) / of_negative.size
    return float(np.sqrt(variance))


def judged(truth: ArrayLike, scores: ArrayLike, *, groups: Sequence[str]) -> Judged:
    """Compute the area as paired_difference needs it: what each patient's slides add to it is their placement values.

    Args:
        truth: bool, one per slide.
        scores: one per slide.
        groups: the patient of each slide.

    Raises:
        ValueError: as for area_under_curve.
    """
    truth, scores = _checked(truth, scores)
    auc = area_under_curve(truth, scores)
    _, owners = np.unique(np.asarray(groups), return_inverse=True)
    added = np.zeros(int(owners.max()) + 1)
    for which, values in zip((truth, ~truth), _placements(truth, scores), strict=True):
        added += np.bincount(owners[which], weights=(values - auc) / values.size, minlength=added.size)
    error = delong_error(truth, scores, owners=owners)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return Judged(
        value=auc,
        added=added,
        interval=lambda level: score_interval(auc, error, positives=positives, negatives=negatives, level=level),
    )


def _placements(
    truth: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return DeLong's placement value of each positive and of each negative slide: the share of its pairs won by the
    positive.

    Its rank among all minus its rank within its kind counts the slides of the other kind below it, ties 1/2.
    """  # noqa: D205  (one sentence)
    positive, negative = scores[truth], scores[~truth]
    whole = _midranks(scores)
    of_positive = (whole[truth] - _midranks(positive)) / negative.size
    of_negative = 1 - (whole[~truth] - _midranks(negative)) / positive.size
    return of_positive, of_negative


def _clustered_error(
    truth: NDArray[np.bool_],
    of_positive: NDArray[np.float64],
    of_negative: NDArray[np.float64],
    owners: NDArray[np.int64],
) -> float:
    count = int(owners.max()) + 1
    area = of_positive.mean()
    above, below = (
        np.bincount(owners[which], weights=values - area, minlength=count)
        for which, values in ((truth, of_positive), (~truth, of_negative))
    )
    with_positive, with_negative = len(np.unique(owners[truth])), len(np.unique(owners[~truth]))
    if min(with_positive, with_negative) < 2:
        return math.nan
    variance = (
        with_positive / (with_positive - 1) * (above**2).sum() / of_positive.size**2
        + with_negative / (with_negative - 1) * (below**2).sum() / of_negative.size**2
        + 2 * count / (count - 1) * (above * below).sum() / (of_positive.size * of_negative.size)
    )
    return math.sqrt(max(0.0, variance))


def _checked(truth: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, scores = np.asarray(truth, dtype=np.bool_), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != scores.shape:
        raise ValueError(f"one score per slide is needed, got {truth.shape} truths and {scores.shape} scores")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if truth.all() or not truth.any():
        raise ValueError("the area under the curve needs positive and negative slides")
    return truth, scores


def _counts(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count positives and negatives at each distinct score, highest score first."""
    values, inverse = np.unique(-scores, return_inverse=True)
    hits = np.bincount(inverse[truth], minlength=values.size)
    return hits, np.bincount(inverse[~truth], minlength=values.size)


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1; equal values share their mean rank."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    middle: NDArray[np.float64] = last - (count - 1) / 2
    return middle[inverse]


def _resampled(truth: NDArray[np.bool_], scores: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return (resamples,) areas of bootstrap samples; nan if a sample has slides of one kind only.

    Slides of one kind with one score are interchangeable, so a sample is a multinomial draw over those groups.
    """
    hits, alarms = _counts(truth, scores)
    groups = hits.size
    share = np.concatenate([hits, alarms]) / truth.size
    random = np.random.default_rng(seed)
    areas = [np.empty(0)]
    at_once = max(1, _CELLS_AT_ONCE // groups)
    for start in range(0, resamples, at_once):
        drawn = random.multinomial(truth.size, share, size=min(at_once, resamples - start))
        hit, alarm = drawn[:, :groups], drawn[:, groups:]
        below = alarm.sum(axis=1, keepdims=True) - np.cumsum(alarm, axis=1)
        won = (hit * (2 * below + alarm)).sum(axis=1)
        pairs = 2 * hit.sum(axis=1) * alarm.sum(axis=1)
        areas.append(np.divide(won, pairs, out=np.full(won.size, np.nan), where=pairs > 0))
    return np.concatenate(areas)


def _resampled_groups(
    truth: NDArray[np.bool_], scores: NDArray[np.float64], owners: NDArray[np.int64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Return (resamples,) areas of bootstrap samples of patients; nan if a sample has slides of one kind only."""
    values, rank = np.unique(-scores, return_inverse=True)
    count = int(owners.max()) + 1
    # slides of each patient by kind and rank: a sample's are a sum over its patients
    tables = np.zeros((count, 2, values.size))
    np.add.at(tables, (owners, truth.astype(int), rank), 1)
    flat = tables.reshape(count, -1)
    random = np.random.default_rng(seed)
    areas = [np.empty(0)]
    at_once = max(1, _CELLS_AT_ONCE // flat.shape[1])
    for start in range(0, resamples, at_once):
        drawn = random.multinomial(count, np.full(count, 1 / count), size=min(at_once, resamples - start))
        found = (drawn @ flat).reshape(len(drawn), 2, values.size)
        alarm, hit = found[:, 0], found[:, 1]
        below = alarm.sum(axis=1, keepdims=True) - np.cumsum(alarm, axis=1)
        pairs = 2 * hit.sum(axis=1) * alarm.sum(axis=1)
        won = (hit * (2 * below + alarm)).sum(axis=1)
        areas.append(np.divide(won, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0))
    return np.concatenate(areas)
