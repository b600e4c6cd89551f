from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from staging.camelyon import read_stage_table
from staging.kappa import confusion_matrix, quadratic_kappa, score
from staging.labels import SlideLabel
from staging.pn import PatientStage, stage_patients

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
    with pytest.raises(ValueError, match="ranks"):
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
    ours = score(reference, submission, stages=STAGES, seed=seed).interval
    drawn = []
    for _ in range(1500):
        chosen = rng.integers(0, 30, 30)
        drawn.append(quadratic_kappa(reference[chosen], submission[chosen]))
    assert ours == pytest.approx(np.nanquantile(drawn, [0.025, 0.975]), abs=0.06)


def test_undefined_resamples_are_counted_and_left_out() -> None:
    result = score([0, 0, 0, 4], [0, 0, 0, 4], stages=STAGES)
    assert result.interval == (1.0, 1.0)
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
