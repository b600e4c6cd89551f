from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import auc as sklearn_area
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve

from staging.scores.roc import area_under_curve, delong_error, roc_curve, score

# few distinct scores, so that ties are common; at least one slide of each kind
scored = st.tuples(
    st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40), st.integers(0, 6), st.integers(0, 6)
)


def columns(drawn: tuple[list[tuple[bool, int]], int, int]) -> tuple[list[bool], list[float]]:
    slides, positive, negative = drawn
    slides = [*slides, (True, positive), (False, negative)]
    return [truth for truth, _ in slides], [value / 7 for _, value in slides]


def by_pairs(truth: list[bool], scores: list[float]) -> float:
    positive = [value for kind, value in zip(truth, scores, strict=True) if kind]
    negative = [value for kind, value in zip(truth, scores, strict=True) if not kind]
    won = sum((one > other) + 0.5 * (one == other) for one, other in product(positive, negative))
    return won / (len(positive) * len(negative))


@settings(deadline=None)
@given(scored)
def test_area_agrees_with_pairs_and_scikit_learn(drawn: tuple[list[tuple[bool, int]], int, int]) -> None:
    truth, scores = columns(drawn)
    ours = area_under_curve(truth, scores)
    assert ours == pytest.approx(by_pairs(truth, scores), abs=1e-12)
    assert ours == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    points = roc_curve(truth, scores)
    assert sklearn_area(points[:, 0], points[:, 1]) == pytest.approx(ours, abs=1e-12)
    false, true, _ = sklearn_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(points, np.stack([false, true], axis=1), atol=1e-12)


@pytest.mark.parametrize(
    ("truth", "scores", "expected"),
    [
        ([0, 1], [0.1, 0.9], 1.0),
        ([0, 1], [0.9, 0.1], 0.0),
        ([0, 1], [0.5, 0.5], 0.5),
        ([0, 0, 1, 1], [0.0, 0.0, 0.0, 0.0], 0.5),
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),
        ([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8], 0.875),
        ([1, 0, 1, 0], [-1e300, 1e300, 1e-300, 0.0], 0.25),
        ([0, 1, 1], [0.3, 0.1 + 0.2, 0.3], 0.75),
        ([0] * 80 + [1] * 49, [0.0] * 129, 0.5),
    ],
)
def test_areas(truth: list[int], scores: list[float], expected: float) -> None:
    assert area_under_curve(truth, scores) == pytest.approx(expected, abs=1e-12)
    assert area_under_curve(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def placements(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(positives, negatives): 1 where the positive slide has the higher score, 1/2 where they tie."""
    positive, negative = scores[truth][:, np.newaxis], scores[~truth]
    won: NDArray[np.float64] = (positive > negative) + 0.5 * (positive == negative)
    return won


def delong_by_definition(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """The structural components of DeLong et al. 1988, pair by pair."""
    won = placements(truth, scores)
    of_positive, of_negative = won.mean(axis=1), won.mean(axis=0)
    return math.sqrt(of_positive.var(ddof=1) / of_positive.size + of_negative.var(ddof=1) / of_negative.size)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(2, 40), st.integers(1, 30))
def test_delong_agrees_with_its_definition(seed: int, positives: int, negatives: int, values: int) -> None:
    random = np.random.default_rng(seed)
    truth = np.arange(positives + negatives) < positives
    scores = random.integers(0, values, truth.size) / values
    assert delong_error(truth, scores) == pytest.approx(delong_by_definition(truth, scores), abs=1e-12)


def test_intervals_agree_with_a_plain_bootstrap_of_slides() -> None:
    random = np.random.default_rng(5)
    truth = np.arange(129) < 49
    scores = np.round(random.normal(truth * 1.2), 1)
    ours = score(truth, scores, seed=1)
    drawn = []
    for _ in range(1500):
        chosen = random.integers(0, 129, 129)
        drawn.append(placements(truth[chosen], scores[chosen]).mean())
    assert ours.bootstrap == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert ours.standard_error == pytest.approx(np.std(drawn), rel=0.1)
    reach = 1.959964 * ours.standard_error
    assert ours.delong == pytest.approx((ours.auc - reach, ours.auc + reach), abs=1e-6)
    assert ours.delong[0] < ours.bootstrap[0] + 0.02 < ours.auc < ours.delong[1]
    assert (ours.positives, ours.negatives, ours.resamples, ours.undefined) == (49, 80, 10_000, 0)


def test_score_is_seeded() -> None:
    truth, scores = [0, 1] * 10, np.linspace(0, 1, 20)
    assert score(truth, scores, seed=1).bootstrap == score(truth, scores, seed=1).bootstrap
    assert score(truth, scores, seed=1).bootstrap != score(truth, scores, seed=2).bootstrap


def test_resamples_of_one_kind_are_counted_and_left_out() -> None:
    result = score([0, 1], [0.2, 0.9])
    assert result.undefined / result.resamples == pytest.approx(0.5, abs=0.02)
    assert result.bootstrap == (1.0, 1.0)
    record = result.to_json()
    assert record["standard_error"] is None
    assert record["delong"] == [None, None]
    assert score([0, 1], [0.2, 0.9], resamples=0).to_json()["bootstrap"] == [None, None]


def test_perfect_scores_have_a_narrow_interval() -> None:
    assert score([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], resamples=0).delong == (1.0, 1.0)


@pytest.mark.parametrize(
    ("truth", "scores"),
    [
        ([1, 1], [0.1, 0.2]),
        ([0, 0], [0.1, 0.2]),
        ([], []),
        ([0, 1], [0.1]),
        ([0, 1], [0.1, math.nan]),
        ([[0, 1]], [[0.1, 0.2]]),
    ],
)
def test_bad_columns_are_refused(truth: list[int], scores: list[float]) -> None:
    with pytest.raises(ValueError, match=r"score|slides"):
        area_under_curve(truth, scores)


@pytest.mark.parametrize("options", [{"resamples": -1}, {"level": 1.0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="bootstrap needs"):
        score([0, 1], [0.1, 0.2], **options)  # type: ignore[arg-type]


def test_the_interval_of_delong_ends_at_0_and_1() -> None:
    assert delong_error([0, 1, 1, 0], [1, 2, 3, 4]) == 0.5
    assert score([0, 1, 1, 0], [1, 2, 3, 4], resamples=0).delong == (0.0, 1.0)
    assert score([1, 1, 0, 0], [1, 2, 3, 4], resamples=0).delong == (0.0, 0.0)


@pytest.mark.parametrize("truth", [[1, 0, 0, 0], [0, 1, 1, 1]])
def test_one_slide_of_a_kind_has_no_error(truth: list[int]) -> None:
    assert math.isnan(delong_error(truth, [1, 2, 3, 4]))


@pytest.mark.parametrize("resamples", [1, 10, 11])
def test_how_many_are_drawn_at_once_changes_nothing(resamples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    truth, scores = [0, 1] * 10, [0, 1, 2, 3, 4] * 4
    whole = score(truth, scores, resamples=resamples).bootstrap
    assert not any(map(math.isnan, whole))
    monkeypatch.setattr("staging.scores.roc._CELLS_AT_ONCE", 15)  # three samples of five scores
    assert score(truth, scores, resamples=resamples).bootstrap == whole
