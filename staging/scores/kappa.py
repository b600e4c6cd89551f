"""Quadratic weighted kappa with its confusion matrix and interval; two raters compared. Uses ranks only.

The interval is the jackknife over patients on Fisher's scale, atanh kappa. Where all agree, the lower bound takes the
share of patients that may still differ from the exact binomial limit, (1 - level) / 2 to the power 1 / n, and puts them
one stage off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from staging.scores.intervals import (
    FEW,
    Interval,
    check_bootstrap,
    interval_json,
    jackknife_variance,
    or_none,
    percentile_interval,
)

CLASSES = 5
"""Number of CAMELYON17's stages."""
FEWEST_PATIENTS = 10
"""With fewer, an interval is said to be rough: four patients have 35 different bootstrap samples, ten have 92,378."""
MOST_SWAPS = 2**16
"""Most ways of swapping patients between two submissions for which all are computed."""

METHOD = "jackknife over patients on Fisher's scale, Student's t; exact where all agree; patients are independent"
_NEAREST = 1 - 1e-6  # to 1 on Fisher's scale, which is infinite there
_ROUNDING = 1e-12
_MOST_UNDEFINED = 0.01  # of the resamples


@dataclass(frozen=True, slots=True, kw_only=True)
class KappaScore:
    """How well a submission agrees with the reference.

    Attributes:
        kappa: quadratic weighted kappa; nan if undefined.
        interval: (low, high); nan if kappa is.
        bootstrap: (low, high), the percentile bootstrap over patients; nan if no resample was defined.
        level: of both intervals.
        confusion: counts, rows reference and columns submission, both in the order of stages.
        stages: names of the classes in rank order.
        patients: number of patients compared.
        resamples: number of bootstrap samples.
        undefined: number of samples without a kappa (all patients in one class), left out of the interval.
        seed: of the bootstrap's random numbers.
        ignored: patients of the submission that the reference lacks.
    """

    kappa: float
    interval: Interval
    bootstrap: Interval
    level: float
    confusion: tuple[tuple[int, ...], ...]
    stages: tuple[str, ...]
    patients: int
    resamples: int
    undefined: int
    seed: int
    ignored: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why kappa or its interval says little; none without patients."""
        counts = np.array(self.confusion)
        rows, columns = (np.flatnonzero(counts.sum(axis=axis)) for axis in (1, 0))
        found = []
        if len(rows) == len(columns) == 1 and rows[0] == columns[0]:
            found.append(f"kappa is undefined: every patient is {self.stages[rows[0]]} in both tables")
        elif len(rows) == 1:
            found.append(f"kappa is 0 whatever is submitted: every patient is {self.stages[rows[0]]} in the reference")
        elif len(columns) == 1:
            found.append(f"kappa is 0: every patient is {self.stages[columns[0]]} in the submission")
        elif self.patients:
            if self.patients < FEWEST_PATIENTS:
                found.append(f"the interval is rough: there are only {self.patients} patients")
            elif self.kappa >= 1 and self.patients < FEW:
                found.append("all agree: the interval's lower end takes errors that were not seen to be of one stage")
            if self.undefined > self.resamples * _MOST_UNDEFINED:
                share = f"{self.undefined:,} of {self.resamples:,} resamples"
                found.append(f"{share} have all patients in one class and no kappa: the bootstrap leaves them out")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps; undefined numbers are None, since JSON has no nan."""
        return {
            "kappa": or_none(self.kappa),
            "interval": interval_json(self.interval),
            "interval_method": METHOD,
            "bootstrap": interval_json(self.bootstrap),
            "level": self.level,
            "confusion": [list(row) for row in self.confusion],
            "stages": list(self.stages),
            "patients": self.patients,
            "resamples": self.resamples,
            "undefined": self.undefined,
            "seed": self.seed,
            "ignored": list(self.ignored),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KappaComparison:
    """Two submissions against one reference.

    Attributes:
        patients: number of patients compared.
        kappas: of the one and the other.
        difference: the first minus the second; nan if either is undefined.
        interval: (low, high) of the difference, the percentile bootstrap over patients; nan if undefined.
        level: the share of the bootstrap distribution between low and high.
        p_value: the two-sided probability of a difference this large if stages were exchangeable between the two
            submissions; nan if the difference is.
        differing: number of patients staged differently by the two: only these can be swapped.
        permutations: number of ways of swapping that were computed.
        is_exact: whether these were all ways; otherwise they were sampled, and p_value also counts the observed one.
        resamples: number of bootstrap samples.
        seed: of the random numbers.
    """

    patients: int
    kappas: tuple[float, float]
    difference: float
    interval: tuple[float, float]
    level: float
    p_value: float
    differing: int
    permutations: int
    is_exact: bool
    resamples: int
    seed: int

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the difference or its interval says little; none without patients."""
        if math.isnan(self.difference):
            return ("the difference is undefined, as a kappa is",) if self.patients else ()
        if not self.differing:
            return ("both submissions stage every patient alike",)
        return tuple(_interval_warnings(self.interval, self.patients))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps; undefined numbers are None, since JSON has no nan."""
        return {
            "kappas": [or_none(kappa) for kappa in self.kappas],
            "difference": or_none(self.difference),
            "interval": interval_json(self.interval),
            "level": self.level,
            "p_value": or_none(self.p_value),
            "differing": self.differing,
            "permutations": self.permutations,
            "is_exact": self.is_exact,
            "resamples": self.resamples,
            "seed": self.seed,
            "warnings": list(self.warnings),
        }


def confusion_matrix(reference: ArrayLike, submission: ArrayLike, *, classes: int = CLASSES) -> NDArray[np.int64]:
    """Count (classes, classes): rows are the reference's ranks, columns the submission's.

    Args:
        reference: ranks 0..classes-1, one per patient.
        submission: ranks of the same patients in the same order.
        classes: number of ranks, used or not.

    Raises:
        ValueError: different lengths, ranks that are not integers or outside 0..classes-1.
    """
    rows, columns = _ranks(reference, classes), _ranks(submission, classes)
    if rows.shape != columns.shape:
        raise ValueError(f"kappa needs as many ranks in both, got {rows.size} and {columns.size}")
    return np.bincount(rows * classes + columns, minlength=classes * classes).reshape(classes, classes)


def quadratic_kappa(reference: ArrayLike, submission: ArrayLike, *, classes: int = CLASSES) -> float:
    """Compute Cohen's kappa with quadratic weights (i - j)^2 / (classes - 1)^2, as CAMELYON17 scores stages.

    Args:
        reference: ranks 0..classes-1, one per patient; never texts, whose alphabetical order is not that of stages.
        submission: ranks of the same patients in the same order.
        classes: number of ranks, used or not.

    Returns:
        At most 1; nan if undefined: no patients, or both raters give every patient the same class.

    Raises:
        ValueError: as for confusion_matrix.
    """
    return float(_kappas(confusion_matrix(reference, submission, classes=classes)[np.newaxis])[0])


def score(
    reference: ArrayLike,
    submission: ArrayLike,
    *,
    stages: Sequence[str],
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    ignored: Sequence[str] = (),
) -> KappaScore:
    """Compute kappa with its interval, and the percentile bootstrap over patients.

    A bootstrap sample of n patients enters kappa only through its confusion matrix, which is a multinomial draw of n
    from the observed matrix, so the samples are drawn as matrices, all at once.

    Args:
        reference: ranks, one per patient.
        submission: ranks of the same patients in the same order.
        stages: names of the classes in rank order; their number is the number of classes.
        resamples: bootstrap samples; 0 for none.
        level: of the intervals.
        seed: of the random numbers; equal seeds give equal intervals.
        ignored: patients left out, for the report only.

    Raises:
        ValueError: as for confusion_matrix, or resamples or level out of range.
    """
    check_bootstrap(resamples, level)
    confusion = confusion_matrix(reference, submission, classes=len(stages))
    drawn = _resampled_kappas(confusion, resamples, seed)
    return KappaScore(
        kappa=float(_kappas(confusion[np.newaxis])[0]),
        interval=jackknife_interval(confusion, level=level),
        bootstrap=percentile_interval(drawn, level),
        level=level,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        stages=tuple(stages),
        patients=int(confusion.sum()),
        resamples=resamples,
        undefined=int(np.isnan(drawn).sum()),
        seed=seed,
        ignored=tuple(ignored),
    )


def jackknife_interval(confusion: NDArray[np.int64], *, level: float = 0.95) -> Interval:
    """Return the interval of the kappa of a confusion matrix, see the top of this module.

    Where leaving out any patient changes nothing, as where every stage is the opposite, it reaches to the kappas with
    as many patients staged otherwise as may be although none was seen. It is nan if kappa is undefined, or 0 whatever
    is submitted.
    """
    from scipy.stats import t as student  # noqa: PLC0415  (slow import)

    kappa = float(_kappas(confusion[np.newaxis])[0])
    patients = int(confusion.sum())
    if math.isnan(kappa):
        return math.nan, math.nan
    if kappa >= 1:
        return _lowest_of_agreement(confusion, level), 1.0
    if patients < 2:
        return -1.0, 1.0
    cells = np.flatnonzero(confusion)
    without = np.repeat(confusion.reshape(1, -1), cells.size, axis=0)
    without[np.arange(cells.size), cells] -= 1
    left_out = _kappas(without.reshape(-1, *confusion.shape))
    left_out[np.isnan(left_out)] = kappa
    error = math.sqrt(jackknife_variance(np.repeat(left_out, confusion.reshape(-1)[cells])))
    middle = max(-_NEAREST, kappa)
    if error < _ROUNDING:
        others = _kappas_of_others(confusion, level)
        low, high = min(kappa, *others), max(kappa, *others)
        return (low, high) if high - low > _ROUNDING else (math.nan, math.nan)
    # the error on Fisher's scale by its slope: left out, a single error would leave kappa at 1, which is infinite there
    reach = float(student.ppf((1 + level) / 2, patients - 1)) * error / (1 - middle**2)
    middle = math.atanh(middle)
    return math.tanh(middle - reach), math.tanh(middle + reach)


def _kappas_of_others(confusion: NDArray[np.int64], level: float) -> tuple[float, float]:
    """Return the kappas if as many patients as may be, although none was seen, were staged right, or worst of all."""
    share = 1 - ((1 - level) / 2) ** (1 / int(confusion.sum()))
    ranks = np.arange(len(confusion))
    found = []
    for columns in (ranks, np.where(ranks < len(ranks) / 2, ranks[-1], 0)):
        others = np.zeros(confusion.shape)
        others[ranks, columns] = confusion.sum(axis=1)
        found.append(_kappa_of((1 - share) * confusion + share * others))
    return found[0], found[1]


def _kappa_of(joint: NDArray[np.float64]) -> float:
    """Return the kappa of shares, of which not all are in one cell."""
    ranks = np.arange(len(joint))
    weights = (ranks[:, np.newaxis] - ranks) ** 2
    expected = (np.outer(joint.sum(axis=1), joint.sum(axis=0)) * weights).sum() / joint.sum()
    return 1 - float((joint * weights).sum() / expected)


def _lowest_of_agreement(confusion: NDArray[np.int64], level: float) -> float:
    """Return the kappa with as many patients one stage off as may be although none was seen."""
    patients, classes = int(confusion.sum()), len(confusion)
    share = 1 - ((1 - level) / 2) ** (1 / patients)
    classes_of = confusion.sum(axis=1) / patients
    likely = np.diag(classes_of * (1 - share))
    for rank in range(classes):
        neighbours = [one for one in (rank - 1, rank + 1) if 0 <= one < classes]
        likely[rank, neighbours] += classes_of[rank] * share / len(neighbours)
    return _kappa_of(likely)


def compare(
    reference: ArrayLike,
    one: ArrayLike,
    other: ArrayLike,
    *,
    classes: int = CLASSES,
    permutations: int = 10_000,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> KappaComparison:
    """Test whether two submissions agree with the reference equally well: a paired permutation test of their kappas.

    Under the null hypothesis the two stages of a patient may be swapped. All ways of swapping are computed if there are
    at most MOST_SWAPS, otherwise ``permutations`` are sampled. Swaps with an undefined kappa count as no difference.

    Args:
        reference: ranks, one per patient.
        one: ranks of the same patients in the same order.
        other: ranks of the same patients in the same order.
        classes: number of ranks, used or not.
        permutations: number sampled if there are too many to compute all.
        resamples: bootstrap samples; 0 for no interval.
        level: share of the bootstrap distribution within the interval.
        seed: of the random numbers; equal seeds give equal results.

    Raises:
        ValueError: as for confusion_matrix, or permutations, resamples or level out of range.
    """
    check_bootstrap(resamples, level)
    if permutations < 1:
        raise ValueError(f"a comparison needs permutations >= 1, got {permutations}")
    rows, first, second = (_ranks(values, classes) for values in (reference, one, other))
    confusions = np.stack([confusion_matrix(rows, ranks, classes=classes) for ranks in (first, second)])
    kappas = _kappas(confusions)
    difference = float(kappas[0] - kappas[1])
    random = np.random.default_rng(seed)
    counts = np.bincount((rows * classes + first) * classes + second, minlength=classes**3)
    drawn = _resampled_differences(counts.reshape(classes, classes, classes), resamples, random)
    differing = np.nonzero(first != second)[0]
    swaps, is_exact = _swaps(differing.size, permutations, random)
    moved = np.zeros((differing.size, classes, classes), dtype=np.int64)
    which, row = np.arange(differing.size), rows[differing]
    moved[which, row, second[differing]] = 1
    moved[which, row, first[differing]] = -1
    change = np.tensordot(swaps, moved, axes=1)
    differences = np.abs(_kappas(confusions[0] + change) - _kappas(confusions[1] - change))
    # Mirrored swaps give the same difference except for the last bits.
    reached = int((differences >= abs(difference) - 1e-12).sum())
    p_value = reached / len(swaps) if is_exact else (reached + 1) / (len(swaps) + 1)
    return KappaComparison(
        patients=int(rows.size),
        kappas=(float(kappas[0]), float(kappas[1])),
        difference=difference,
        interval=percentile_interval(drawn, level),
        level=level,
        p_value=math.nan if math.isnan(difference) else p_value,
        differing=int(differing.size),
        permutations=len(swaps),
        is_exact=is_exact,
        resamples=resamples,
        seed=seed,
    )


def _interval_warnings(interval: tuple[float, float], patients: int) -> Iterator[str]:
    """Why a bootstrap interval says little; nothing if there is none."""
    if math.isnan(interval[0]):
        return
    if interval[0] == interval[1]:
        yield "the interval has no width, as all resamples agree: it does not say how certain the value is"
    if patients < FEWEST_PATIENTS:
        yield (
            f"the interval is rough: {patients} patients have only {math.comb(2 * patients - 1, patients):,} different "
            "resamples"
        )


def _swaps(differing: int, permutations: int, random: np.random.Generator) -> tuple[NDArray[np.int64], bool]:
    """Return (n, differing) zeros and ones, the patients swapped in each way, and whether these are all ways."""
    if 2**differing <= MOST_SWAPS:
        return (np.arange(2**differing)[:, np.newaxis] >> np.arange(differing)) & 1, True
    return random.integers(0, 2, size=(permutations, differing)), False


def _resampled_differences(
    counts: NDArray[np.int64], resamples: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return (resamples,) differences of kappas in bootstrap samples of patients.

    Args:
        counts: patients by the ranks that the reference, the one and the other give them.
        resamples: number of samples.
        random: the random generator.
    """
    patients = int(counts.sum())
    if patients == 0 or resamples == 0:
        return np.empty(0)
    drawn = random.multinomial(patients, counts.reshape(-1) / patients, size=resamples).reshape(-1, *counts.shape)
    return _kappas(drawn.sum(axis=3)) - _kappas(drawn.sum(axis=2))


def _resampled_kappas(confusion: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Return (resamples,) kappas of bootstrap samples; empty without patients."""
    patients = int(confusion.sum())
    if patients == 0 or resamples == 0:
        return np.empty(0)
    drawn = np.random.default_rng(seed).multinomial(patients, confusion.ravel() / patients, size=resamples)
    return _kappas(drawn.reshape(resamples, *confusion.shape))


def _kappas(confusions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (n,) kappas of (n, classes, classes) confusion matrices; nan if undefined.

    Weights and counts stay integers, so that perfect and chance agreement are exactly 1 and 0.
    """
    ranks = np.arange(confusions.shape[1])
    weights = (ranks[:, np.newaxis] - ranks) ** 2
    totals = confusions.sum(axis=(1, 2))
    observed = np.einsum("nij,ij->n", confusions, weights) * totals
    expected = np.einsum("ni,nj,ij->n", confusions.sum(axis=2), confusions.sum(axis=1), weights)
    result = np.full(len(confusions), np.nan)
    defined = expected > 0
    result[defined] = 1 - observed[defined] / expected[defined]
    return result


def _ranks(values: ArrayLike, classes: int) -> NDArray[np.int64]:
    ranks = np.asarray(values)
    if ranks.ndim != 1:
        raise ValueError(f"kappa needs one rank per patient, got an array of shape {ranks.shape}")
    if ranks.size and not np.issubdtype(ranks.dtype, np.integer):
        raise ValueError(f"kappa needs integer ranks, got {ranks.dtype}: texts and fractions have no rank")
    if ranks.size and (ranks.min() < 0 or ranks.max() >= classes):
        raise ValueError(f"ranks must be 0 to {classes - 1}, got {ranks.min()}..{ranks.max()}")
    return ranks.astype(np.int64)
