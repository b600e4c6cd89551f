"""How often an interval holds the true value: the defaults of the scores, beside what they were chosen over.

Sets are drawn again and again from populations of known kappa, area, FROC score, recall and balanced accuracy, and each
interval of 95 % is asked whether it holds that value. A row is one population and size; the lines at the end are what
counts: the lowest, mean and highest coverage over all rows from 20 patients or slides on.

Run: python benchmarks/coverage.py [--sets N] [kappa|auc|froc|labels|differences ...]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from staging.lesions.labels import SlideLabel
from staging.scores.differences import Judged, paired_difference
from staging.scores.froc import FrocCurve, SlideHits, Target
from staging.scores.intervals import (
    Interval,
    clustered_interval,
    effective_interval,
    jackknife_variance,
    mean_of_shares,
    percentile_interval,
)
from staging.scores.kappa import jackknife_interval, quadratic_kappa
from staging.scores.kappa import score as score_kappa
from staging.scores.roc import judged as area
from staging.scores.roc import score as score_roc
from staging.stages.pn import PatientStage

Row = tuple[str, int, float, dict[str, list[Interval]]]  # population, size, true value, intervals by their names
LEVEL = 0.95
STAGES = tuple(stage.value for stage in PatientStage)
SHARES = np.array([0.24, 0.35, 0.14, 0.08, 0.19])  # of the stages among patients
RESAMPLES = 400


def main() -> None:
    """Print the coverage of each interval."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="*", choices=[[], *STUDIES], default=[])
    parser.add_argument("--sets", type=int, default=400)
    asked = parser.parse_args()
    for name in asked.scores or STUDIES:
        found: dict[str, list[float]] = {}
        print(f"{name}\n{'population':34s}{'n':>5s}{'true':>8s}  coverage in %")
        for population, size, true, intervals in STUDIES[name](asked.sets):
            shares = {method: covered(true, every) for method, every in intervals.items()}
            print(
                f"{population:34s}{size:5d}{true:8.3f}  " + ", ".join(f"{m} {100 * s:.1f}" for m, s in shares.items())
            )
            for method, share in shares.items():
                if size >= 20:
                    found.setdefault(method, []).append(share)
        for method, every in found.items():
            low, mean, high = 100 * min(every), 100 * sum(every) / len(every), 100 * max(every)
            print(f"{name}: {method:24s} lowest {low:.1f}, mean {mean:.1f}, highest {high:.1f} %")


def covered(true: float, intervals: list[Interval]) -> float:
    """Return the share of intervals that hold the true value; undefined scores do not count."""
    known = [low - 1e-12 <= true <= high + 1e-12 for low, high in intervals if not math.isnan(low)]
    return sum(known) / max(1, len(known))


def kappa_rows(sets: int) -> Iterator[Row]:
    """Stages of which a share is wrong: by one, by one downwards, or anywhere (rare and gross errors)."""
    random = np.random.default_rng(0)
    for kind in ("one off", "one down", "anywhere"):
        for right in (0.3, 0.6, 0.8, 0.9, 0.97):
            joint = staged(kind, right)
            ranks = np.indices(joint.shape).reshape(2, -1)
            whole = np.repeat(ranks, np.rint(joint.reshape(-1) * 1e6).astype(int), axis=1)
            true = quadratic_kappa(*whole)
            for size in (10, 20, 50, 100, 500):
                intervals: dict[str, list[Interval]] = {"default": [], "percentile bootstrap": []}
                for seed in range(sets):
                    table = random.multinomial(size, joint.reshape(-1)).reshape(joint.shape)
                    intervals["default"].append(jackknife_interval(table, level=LEVEL))
                    if size <= 100:
                        pair = np.repeat(ranks, table.reshape(-1), axis=1)
                        one = score_kappa(*pair, stages=STAGES, resamples=RESAMPLES, seed=seed)
                        intervals["percentile bootstrap"].append(one.bootstrap)
                yield f"{right:.0%} right, others {kind}", size, true, {m: i for m, i in intervals.items() if i}


def staged(kind: str, right: float) -> NDArray[np.float64]:
    """The probability of each pair of a true and a submitted stage."""
    joint = np.diag(SHARES * right)
    for rank, share in enumerate(SHARES * (1 - right)):
        near = [one for one in (rank - 1, rank + 1) if 0 <= one < len(SHARES)]
        where = {"one off": near, "one down": [max(0, rank - 1)], "anywhere": range(len(SHARES))}[kind]
        joint[rank, list(where)] += share / len(where)
    return joint


def auc_rows(sets: int) -> Iterator[Row]:
    """Normal scores of equal and of unequal spread."""
    random = np.random.default_rng(0)
    for spread in (1.0, 2.0, 0.5):
        for true in (0.5, 0.7, 0.85, 0.95, 0.983, 0.995):
            shift = norm.ppf(true) * math.hypot(1, spread)
            for positives, negatives in ((5, 5), (10, 10), (10, 15), (14, 36), (49, 80), (250, 250)):
                truth = np.arange(positives + negatives) < positives
                scores = [
                    score_roc(
                        truth,
                        np.where(truth, random.normal(shift, spread, truth.size), random.normal(0, 1, truth.size)),
                        resamples=RESAMPLES if truth.size <= 129 else 0,
                        level=LEVEL,
                    )
                    for _ in range(sets)
                ]
                intervals = {"default": [s.interval for s in scores], "DeLong": [s.delong for s in scores]}
                if truth.size <= 129:
                    intervals["percentile bootstrap"] = [s.bootstrap for s in scores]
                yield f"spread {spread:g}, {positives} + {negatives}", truth.size, true, intervals


def froc_rows(sets: int) -> Iterator[Row]:
    """Lesions that are found alike on one slide and less so on another, and false positives."""
    for found in (0.5, 0.8, 0.95):
        for alarms in (1.0, 6.0):
            whole = FrocCurve(slides(np.random.default_rng(9), 20_000, found, alarms), official=False)
            true = float(whole.sensitivities().mean())
            random = np.random.default_rng(0)
            for size in (20, 50, 129):
                intervals: dict[str, list[Interval]] = {"default": [], "percentile bootstrap": []}
                for seed in range(max(1, sets // 2)):
                    drawn = slides(random, size, found, alarms)
                    with_lesions = sum(bool(one.targets) for one in drawn)
                    if not with_lesions:
                        continue
                    curve = FrocCurve(drawn, official=False)
                    variance = jackknife_variance(curve.left_out(np.arange(size)))
                    value = float(curve.sensitivities().mean())
                    intervals["default"].append(
                        effective_interval(value, variance, count=curve.lesions, fewest=with_lesions, level=LEVEL)
                    )
                    boot = curve.bootstrap(resamples=RESAMPLES // 2, seed=seed)
                    intervals["percentile bootstrap"].append(percentile_interval(boot, LEVEL))
                yield f"{found:.0%} found, {alarms:g} false per slide", size, true, intervals


def slides(random: np.random.Generator, count: int, found: float, alarms: float) -> list[SlideHits]:
    """Two fifths have lesions, one or more; how many are found differs from slide to slide."""
    made = []
    for number in range(count):
        lesions = 1 + random.poisson(1.0) if random.random() < 0.4 else 0
        ease = random.beta(4 * found, 4 * (1 - found))
        hits = tuple(float(random.beta(5, 2)) if random.random() < ease else None for _ in range(lesions))
        target = Target(number=1, major_axis_px=50.0, is_itc=False, area_px=9, centroid=(0.0, 0.0))
        false = np.asarray(random.beta(2, 4, random.poisson(alarms)), dtype=np.float64)
        made.append(SlideHits(slide=str(number), targets=(target,) * lesions, hits=hits, false_positives=false))
    return made


def label_rows(sets: int) -> Iterator[Row]:
    """Recall of slides that come alone or five from a patient, and the mean over four classes."""
    random = np.random.default_rng(0)
    for right in (0.5, 0.8, 0.95, 0.99):
        for of_patient, spread in ((1, 0.0), (5, 0.5)):
            for patients in (20, 50, 100):
                wholes = np.full(patients, float(of_patient))
                ease = right if not spread else random.beta(right / spread, (1 - right) / spread, (sets, patients))
                parts = random.binomial(of_patient, ease, (sets, patients)).astype(np.float64)
                every = [clustered_interval(one, wholes, level=LEVEL)[1] for one in parts]
                intervals = {"default": [i for i in every if i[0] is not None and i[1] is not None]}
                if of_patient > 1:
                    flat = np.ones(patients * of_patient)
                    counted = [np.repeat((1.0, 0.0), (int(p.sum()), int(flat.sum() - p.sum()))) for p in parts]
                    pairs = [clustered_interval(one, flat, level=LEVEL)[1] for one in counted]
                    intervals["Wilson over slides"] = [i for i in pairs if i[0] is not None and i[1] is not None]
                yield f"recall, {of_patient} of a patient", patients, right, intervals
        for size in (20, 50, 100, 500):
            share = np.array([0.6, 0.1, 0.1, 0.2])
            recalls = np.array([right, right / 2, right, min(1.0, right + 0.01)])
            intervals = {"default": []}
            for _ in range(sets):
                counts = random.multinomial(size, share)
                if (counts == 0).any():
                    continue
                hits = random.binomial(counts, recalls)
                each = [
                    clustered_interval(np.repeat((1.0, 0.0), (hit, n - hit)), np.ones(n), level=LEVEL)
                    for hit, n in zip(hits.tolist(), counts.tolist(), strict=True)
                ]
                known = [(value, (low, high)) for value, (low, high) in each if None not in (value, low, high)]
                intervals["default"].append(mean_of_shares(known)[1])  # type: ignore[arg-type]  # none is None
            yield f"balanced accuracy, {len(SlideLabel)} labels", size, float(recalls.mean()), intervals


def difference_rows(sets: int) -> Iterator[Row]:
    """Two readers of the same slides, whose scores, or what they find, go together (correlation one half or more)."""
    random = np.random.default_rng(0)
    for first, second in ((0.7, 0.7), (0.85, 0.75), (0.95, 0.95), (0.983, 0.95), (0.995, 0.995), (0.995, 0.95)):
        shifts = np.array([norm.ppf(first), norm.ppf(second)]) * math.sqrt(2)
        for positives, negatives in ((10, 15), (14, 36), (49, 80)):
            truth = np.arange(positives + negatives) < positives
            groups = [str(number) for number in range(truth.size)]
            found: list[tuple[Judged, Judged]] = []
            for _ in range(sets):
                both = random.multivariate_normal((0, 0), ((1, 0.5), (0.5, 1)), truth.size) + truth[:, None] * shifts
                found.append((area(truth, both[:, 0], groups=groups), area(truth, both[:, 1], groups=groups)))
            yield f"AUC, {positives} + {negatives}", truth.size, first - second, of_pairs(found)
    for right, other in ((0.9, 0.9), (0.9, 0.8), (0.97, 0.97), (0.97, 0.9)):
        for of_patient, patients in ((1, 20), (1, 100), (5, 20), (5, 100)):
            found = [accuracies(random, right, other, patients, of_patient) for _ in range(sets)]
            yield f"accuracy, {of_patient} of a patient", patients, right - other, of_pairs(found)
    for hit, other in ((0.8, 0.78), (0.95, 0.8)):
        whole = [
            FrocCurve(slides(np.random.default_rng(seed), 20_000, one, 2.0), official=False)
            for seed, one in enumerate((hit, other))
        ]
        true = float(whole[0].sensitivities().mean() - whole[1].sensitivities().mean())
        for size in (20, 50, 129):
            found = []
            for _ in range(max(1, sets // 2)):
                seed = int(random.integers(2**32))
                # the same seed draws the same lesions, and ease and false positives that go together
                drawn = [slides(np.random.default_rng(seed), size, one, 2.0) for one in (hit, other)]
                if all(any(one.targets for one in every) for every in drawn):
                    found.append((froc(drawn[0]), froc(drawn[1])))
            yield f"FROC, {hit:.0%} and {other:.0%} found", size, true, of_pairs(found)


def of_pairs(found: list[tuple[Judged, Judged]]) -> dict[str, list[Interval]]:
    """The default interval of each difference, and the normal one of its variance over units."""
    normal = []
    for one, other in found:
        reach = norm.ppf(0.975) * math.sqrt(float(((one.added - other.added) ** 2).sum()))
        normal.append((one.value - other.value - reach, one.value - other.value + reach))
    return {"default": [paired_difference(*pair).interval for pair in found], "normal": normal}


def accuracies(
    random: np.random.Generator, right: float, other: float, patients: int, of_patient: int
) -> tuple[Judged, Judged]:
    """Two readers of whom a half of the slides gets the same luck; patients of several slides differ in ease."""
    ease = random.random(patients)
    luck = random.random((2, patients, of_patient))
    luck[1] = np.where(random.random((patients, of_patient)) < 0.5, luck[0], luck[1])
    made = []
    for share, lucks in zip((right, other), luck, strict=True):
        of_patients = np.full(patients, share) if of_patient == 1 else beta.ppf(ease, 6 * share, 6 * (1 - share))
        parts = (lucks < of_patients[:, None]).sum(axis=1).astype(np.float64)
        wholes = np.full(patients, float(of_patient))
        value = float(parts.sum() / wholes.sum())

        def interval(
            level: float, parts: NDArray[np.float64] = parts, wholes: NDArray[np.float64] = wholes
        ) -> Interval:
            return clustered_interval(parts, wholes, level=level)[1]  # type: ignore[return-value]  # there are slides

        made.append(Judged(value=value, added=(parts - value * wholes) / wholes.sum(), interval=interval))
    return made[0], made[1]


def froc(drawn: list[SlideHits]) -> Judged:
    """The corrected score of slides that are patients of their own."""
    curve = FrocCurve(drawn, official=False)
    left_out = curve.left_out(np.arange(len(drawn)))
    value, variance = float(curve.sensitivities().mean()), jackknife_variance(left_out)
    fewest = sum(bool(one.targets) for one in drawn)
    return Judged(
        value=value,
        added=left_out.mean() - left_out,
        interval=lambda level: effective_interval(value, variance, count=curve.lesions, fewest=fewest, level=level),
    )


STUDIES: dict[str, Callable[[int], Iterator[Row]]] = {
    "kappa": kappa_rows,
    "auc": auc_rows,
    "froc": froc_rows,
    "labels": label_rows,
    "differences": difference_rows,
}


if __name__ == "__main__":
    main()
