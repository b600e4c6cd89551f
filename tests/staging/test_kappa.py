from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.metrics import cohen_kappa_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from staging.cohorts.camelyon import StageTable, read_stage_table
from staging.errors import MissingPatientError
from staging.lesions.labels import SlideLabel
from staging.scores.kappa import compare, confusion_matrix, quadratic_kappa, score
from staging.scores.patients import compare_submissions, kappa_by_centre, score_kappa
from staging.stages.pn import PatientStage, stage_patients

STAGES = [stage.value for stage in PatientStage]
pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(deadline=None)
@given(pairs)
def test_agrees_with_scikit_learn(ranks: list[tuple[int, int]]) -> None:
    reference, submission = zip(*ranks, strict=True)
    ours = quadratic_kappa(reference, submission)
    if len(set(reference) | set(submission)) == 1:
        assert math.isnan(ours)
    else:
        theirs = cohen_kappa_score(reference, submission, weights="quadratic", labels=range(5))
        assert ours == pytest.approx(theirs, abs=1e-12)
    expected = sklearn_confusion(reference, submission, labels=range(5))
    np.testing.assert_array_equal(confusion_matrix(reference, submission), expected)


@pytest.mark.parametrize(
    ("change", "expected"), [("no itc", 0.97365), ("one up", 0.79246), ("all pN0", 0.0), ("none", 1.0)]
)
def test_check_values_on_the_real_table(real_data: Callable[[str], Path], change: str, expected: float) -> None:
    table = read_stage_table(real_data("tables/camelyon17_stage_labels.csv"))
    reference = [stage.rank for stage in table.stages.values()]
    missed = {slide: SlideLabel.NEGATIVE if one is SlideLabel.ITC else one for slide, one in table.labels.items()}
    submission = {
        "no itc": [stage.rank for stage in stage_patients(missed).stages.values()],
        "one up": [min(rank + 1, 4) for rank in reference],
        "all pN0": [0] * 100,
        "none": reference,
    }[change]
    assert quadratic_kappa(reference, submission) == pytest.approx(expected, abs=5e-6)


def test_undefined_is_nan() -> None:
    assert math.isnan(quadratic_kappa([], []))
    assert math.isnan(quadratic_kappa([2, 2], [2, 2]))
    assert quadratic_kappa([0, 0], [1, 1]) == 0.0


@pytest.mark.parametrize(
    ("reference", "submission"),
    [([0, 1], [0]), ([0, 5], [0, 1]), ([-1, 0], [0, 0]), (["pN0"], ["pN0"]), ([0.5], [1.0]), ([[0]], [[0]])],
)
def test_bad_ranks_are_refused(reference: list[int], submission: list[int]) -> None:
    with pytest.raises(ValueError, match="rank"):
        quadratic_kappa(reference, submission)


def test_score_is_seeded_and_brackets_kappa() -> None:
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 5, 100)
    submission = np.clip(reference + rng.integers(-1, 2, 100), 0, 4)
    one = score(reference, submission, stages=STAGES, seed=4)
    assert one == score(reference, submission, stages=STAGES, seed=4)
    assert one != score(reference, submission, stages=STAGES, seed=5)
    assert one.interval[0] < one.kappa < one.interval[1]
    assert (one.patients, one.resamples, one.undefined) == (100, 10_000, 0)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_interval_agrees_with_a_plain_bootstrap_of_patients(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 5, 30)
    submission = np.where(rng.random(30) < 0.6, reference, rng.integers(0, 5, 30))
    ours = score(reference, submission, stages=STAGES, seed=seed).bootstrap
    drawn = []
    for _ in range(1500):
        chosen = rng.integers(0, 30, 30)
        drawn.append(quadratic_kappa(reference[chosen], submission[chosen]))
    assert ours == pytest.approx(np.nanquantile(drawn, [0.025, 0.975]), abs=0.1)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=25))
def test_the_interval_is_the_jackknife_patient_by_patient(patients: list[tuple[int, int]]) -> None:
    reference, submission = np.array(patients).T
    kappa = quadratic_kappa(reference, submission)
    low, high = score(reference, submission, stages=STAGES, resamples=0).interval
    if math.isnan(kappa):
        assert math.isnan(low)
        assert math.isnan(high)
    elif kappa == 1:
        assert low < high == 1
    else:
        count = len(patients)
        left = [quadratic_kappa(np.delete(reference, at), np.delete(submission, at)) for at in range(count)]
        known = np.array([kappa if math.isnan(one) else one for one in left])
        error = math.sqrt((count - 1) / count * ((known - known.mean()) ** 2).sum())
        if error < 1e-12:
            assert math.isnan(low) or low < high
            assert math.isnan(low) or low <= kappa <= high
            return
        reach = student.ppf(0.975, count - 1) * error
        reach /= 1 - max(kappa, -1 + 1e-6) ** 2
        middle = math.atanh(max(kappa, -1 + 1e-6))
        assert (low, high) == pytest.approx((math.tanh(middle - reach), math.tanh(middle + reach)), abs=1e-9)
        assert low <= kappa + 1e-5
        assert kappa <= high + 1e-5


@pytest.mark.parametrize(("reference", "submission"), [([0, 2], [2, 2]), ([1, 1, 1, 1], [0, 1, 2, 3]), ([3], [1])])
def test_a_kappa_that_no_patient_changes_is_no_certainty(reference: list[int], submission: list[int]) -> None:
    found = score(reference, submission, stages=STAGES)
    assert found.kappa == 0
    low, high = found.to_json()["interval"]
    if len(set(reference)) == 1 and len(reference) > 1:
        assert (low, high) == (None, None)  # whatever is submitted
    else:
        assert low <= 0 < high
    assert any("kappa is 0" in warning for warning in found.warnings)


@pytest.mark.parametrize("times", [1, 2, 10])
def test_every_stage_swapped_is_no_certainty(times: int) -> None:
    found = score([0, 4] * times, [4, 0] * times, stages=STAGES)
    assert found.kappa == -1
    low, high = found.interval
    assert low == -1
    assert -1 < high <= (1 if times == 1 else 0.5)
    assert times == 1 or high < score([0, 4], [4, 0], stages=STAGES).interval[1]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12))
def test_an_interval_holds_its_kappa_and_is_never_a_point(patients: list[tuple[int, int]]) -> None:
    found = score(*np.array(patients).T, stages=STAGES, resamples=0)
    low, high = found.interval
    assert math.isnan(low) or low <= found.kappa <= high
    assert math.isnan(low) or high - low > 1e-9
    assert not math.isnan(low) or len({one for one, _ in patients}) == 1


def test_one_error_of_ten_is_no_reason_to_know_nothing() -> None:
    low, high = score([0, 0, 1, 2, 2, 3, 3, 4, 4, 4], [0, 0, 1, 2, 2, 3, 3, 4, 4, 3], stages=STAGES).interval
    assert 0.7 < low < 0.95
    assert 0.99 < high < 1


def test_perfect_agreement_of_few_is_less_certain_than_that_of_many() -> None:
    ranks = [0, 1, 2, 3, 4]
    lows = [score(ranks * times, ranks * times, stages=STAGES, resamples=0).interval[0] for times in (1, 4, 20, 100)]
    assert lows == sorted(lows)
    assert lows[0] < 0.9
    assert 0.99 < lows[-1] < 1


def test_undefined_resamples_are_counted_and_left_out() -> None:
    result = score([0, 0, 0, 4], [0, 0, 0, 4], stages=STAGES)
    assert result.bootstrap == (1.0, 1.0)
    assert result.undefined / result.resamples == pytest.approx(0.75**4 + 0.25**4, abs=0.02)


def test_json_has_no_nan() -> None:
    record = score([0, 0], [0, 0], stages=STAGES, resamples=50, ignored=["patient_009"]).to_json()
    text = json.loads(json.dumps(record, allow_nan=False))
    assert text["kappa"] is None
    assert text["interval"] == [None, None]
    assert text["undefined"] == 50
    assert text["stages"] == STAGES
    assert text["confusion"][0][0] == 2
    assert text["ignored"] == ["patient_009"]


def test_rows_of_the_confusion_are_the_reference() -> None:
    assert score([0, 0], [4, 0], stages=STAGES, resamples=0).confusion[0] == (1, 0, 0, 0, 1)


def p_by_swapping(reference: list[int], one: list[int], other: list[int]) -> float:
    """Every way of swapping every patient, also those whom it does not change."""
    observed = abs(quadratic_kappa(reference, one) - quadratic_kappa(reference, other))
    reached = []
    for swap in product((False, True), repeat=len(reference)):
        first = [b if swapped else a for a, b, swapped in zip(one, other, swap, strict=True)]
        second = [a if swapped else b for a, b, swapped in zip(one, other, swap, strict=True)]
        difference = abs(quadratic_kappa(reference, first) - quadratic_kappa(reference, second))
        reached.append(difference >= observed - 1e-12)
    return sum(reached) / len(reached)


three_raters = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=2, max_size=7)


@settings(max_examples=40, deadline=None)
@given(three_raters)
def test_p_value_agrees_with_every_swap(ranks: list[tuple[int, int, int]]) -> None:
    reference, one, other = (list(column) for column in zip(*ranks, strict=True))
    result = compare(reference, one, other, resamples=0)
    assert result.is_exact
    assert result.differing == sum(a != b for a, b in zip(one, other, strict=True))
    assert result.permutations == 2**result.differing
    if math.isnan(result.difference):
        assert result.to_json()["p_value"] is None
    else:
        assert result.p_value == pytest.approx(p_by_swapping(reference, one, other), abs=1e-12)
        mirrored = compare(reference, other, one, resamples=0)
        assert mirrored.p_value == result.p_value
        assert mirrored.difference == -result.difference


def raters(seed: int, patients: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 5, patients)
    good = np.clip(reference + (rng.random(patients) < 0.2), 0, 4)
    poor = np.where(rng.random(patients) < 0.5, reference, rng.integers(0, 5, patients))
    return reference, good, poor


def test_drawn_swaps_tell_good_from_poor_and_are_seeded() -> None:
    reference, good, poor = raters(1)
    result = compare(reference, good, poor, seed=2)
    assert not result.is_exact
    assert (result.permutations, result.resamples) == (10_000, 10_000)
    assert result.difference == pytest.approx(quadratic_kappa(reference, good) - quadratic_kappa(reference, poor))
    assert result.interval[0] > 0
    assert 1 / 10_001 <= result.p_value < 0.01
    assert result == compare(reference, good, poor, seed=2)
    assert result.interval != compare(reference, good, poor, seed=3).interval


def test_drawn_swaps_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, good, poor = (column[:24] for column in raters(7))
    mixed = np.where(np.arange(24) % 3 == 0, good, poor)
    other = np.where(np.arange(24) % 3 == 1, good, poor)
    exact = compare(reference, mixed, other, resamples=0)
    monkeypatch.setattr("staging.scores.kappa.MOST_SWAPS", 1)
    drawn = compare(reference, mixed, other, resamples=0, permutations=20_000)
    assert (exact.is_exact, drawn.is_exact) == (True, False)
    assert 0.02 < exact.p_value < 0.98
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.015)


def test_equal_submissions_do_not_differ() -> None:
    reference, good, _ = raters(3)
    result = compare(reference, good, good)
    assert (result.difference, result.p_value, result.differing, result.permutations) == (0.0, 1.0, 0, 1)
    assert result.interval == (0.0, 0.0)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 1000))
def test_interval_of_the_difference_agrees_with_a_plain_bootstrap(seed: int) -> None:
    reference, good, poor = raters(seed, 40)
    ours = compare(reference, good, poor, seed=seed).interval
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(1500):
        chosen = rng.integers(0, 40, 40)
        drawn.append(
            quadratic_kappa(reference[chosen], good[chosen]) - quadratic_kappa(reference[chosen], poor[chosen])
        )
    assert ours == pytest.approx(np.nanquantile(drawn, [0.025, 0.975]), abs=0.08)


@pytest.mark.parametrize("options", [{"permutations": 0}, {"resamples": -1}, {"level": 0.0}, {"level": 1.0}])
def test_bad_options_of_a_comparison_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"needs (permutations|resamples)"):
        compare([0, 1], [0, 1], [1, 0], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"resamples": -1}, {"level": 0.0}, {"level": 1.0}])
def test_bad_options_of_a_score_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="bootstrap needs"):
        score([0, 1], [0, 1], stages=STAGES, **options)  # type: ignore[arg-type]


def test_kappa_of_each_centre(real_data: Callable[[str], Path]) -> None:
    table = read_stage_table(real_data("tables/camelyon17_stage_labels.csv"))
    shifted = {name: list(PatientStage)[min(stage.rank + 1, 4)] for name, stage in table.stages.items()}
    submission = StageTable(stages=shifted | {"patient_020": PatientStage.PN0})
    centres = kappa_by_centre(table, submission, resamples=50)
    assert list(centres) == ["CWZ", "RST", "UMCU", "RUMC", "LPON"]
    assert [score.patients for score in centres.values()] == [20] * 5
    ranks = [stage.rank for stage in table.stages.values()][:20]
    assert centres["CWZ"].kappa == quadratic_kappa(ranks, [min(rank + 1, 4) for rank in ranks])
    whole = np.array(score_kappa(table, submission, resamples=0).confusion)
    np.testing.assert_array_equal(sum(np.array(score.confusion) for score in centres.values()), whole)


def test_compared_submissions_are_complete() -> None:
    reference = StageTable(stages={"patient_000": PatientStage.PN0, "patient_001": PatientStage.PN1})
    part = StageTable(stages={"patient_000": PatientStage.PN0})
    with pytest.raises(MissingPatientError, match="patient_001"):
        compare_submissions(reference, reference, part)
    result = compare_submissions(reference, reference, reference, resamples=10)
    assert (result.kappas, result.p_value) == ((1.0, 1.0), 1.0)


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_the_interval_of_a_difference_is_that_of_a_plain_bootstrap(level: float) -> None:
    reference, good, poor = raters(1)
    chosen = np.random.default_rng(9).integers(0, len(reference), (4_000, len(reference)))
    drawn = [
        quadratic_kappa(reference[rows], good[rows]) - quadratic_kappa(reference[rows], poor[rows]) for rows in chosen
    ]
    expected = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    assert compare(reference, good, poor, level=level, resamples=40_000).interval == pytest.approx(expected, abs=0.02)
    if level == 0.95:
        assert compare(reference, good, poor, resamples=40_000).interval == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("differing", [3, 4])
def test_all_swaps_are_looked_at_up_to_the_limit(differing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("staging.scores.kappa.MOST_SWAPS", 8)
    reference = [0, 1, 2, 3, 4]
    other = [(rank + 1) % 5 if rank < differing else rank for rank in reference]
    result = compare(reference, reference, other, permutations=20, resamples=0)
    assert (result.is_exact, result.permutations) == ((True, 8) if differing == 3 else (False, 20))


def test_one_permutation_and_one_resample_are_enough() -> None:
    result = compare(*raters(1), permutations=1, resamples=1)
    assert result.p_value in (0.5, 1.0)
    assert result.interval[0] == result.interval[1]
    one = score(*raters(1)[:2], stages=STAGES, resamples=1)
    assert one.bootstrap[0] == one.bootstrap[1]


def test_without_patients_nothing_is_defined() -> None:
    result = compare([], [], [])
    assert all(map(math.isnan, (*result.kappas, result.difference, *result.interval, result.p_value)))
    assert all(map(math.isnan, score([], [], stages=STAGES).interval))
