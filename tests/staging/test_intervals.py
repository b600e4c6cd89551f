"""Intervals of scores: laws that they keep, and the cases in which they must not vanish."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from staging.scores.intervals import (
    check_bootstrap,
    clustered_interval,
    effective_interval,
    heterogeneity,
    interval_json,
    jackknife_variance,
    mean_of_shares,
    percentile_interval,
    wilson,
)
from staging.scores.roc import delong_error, score, score_interval


def test_undefined_samples_do_not_count() -> None:
    drawn = np.array([math.nan, *range(101), math.nan], dtype=np.float64)
    assert percentile_interval(drawn, 0.9) == pytest.approx((5, 95))
    assert percentile_interval(drawn, 0.5) == pytest.approx((25, 75))


def test_nothing_defined_has_no_interval() -> None:
    for drawn in (np.empty(0), np.array([math.nan])):
        assert interval_json(percentile_interval(drawn, 0.95)) == [None, None]


@pytest.mark.parametrize(("resamples", "level"), [(-1, 0.95), (1, 0.0), (1, 1.0)])
def test_impossible_numbers_are_refused(resamples: int, level: float) -> None:
    check_bootstrap(0, 0.5)
    with pytest.raises(ValueError, match="resamples >= 0 and 0 < level < 1"):
        check_bootstrap(resamples, level)


counts = st.lists(st.integers(0, 1), min_size=2, max_size=30)


@given(counts)
def test_alone_every_slide_gives_wilsons_interval(right: list[int]) -> None:
    parts, wholes = np.array(right, dtype=float), np.ones(len(right))
    share, interval = clustered_interval(parts, wholes)
    assert share == sum(right) / len(right)
    assert interval == wilson(share, len(right))


@given(counts, st.integers(2, 5))
def test_slides_that_all_agree_within_a_patient_count_once(right: list[int], copies: int) -> None:
    parts = np.array(right, dtype=float)
    _, (low, high) = clustered_interval(copies * parts, np.full(len(right), float(copies)))
    assert low is not None
    assert high is not None
    alone = wilson(float(parts.mean()), len(right))
    assert low == pytest.approx(alone[0], abs=0.06)
    assert high == pytest.approx(alone[1], abs=0.06)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_always_agrees_is_not_certain(share: float) -> None:
    low, high = effective_interval(share, 0.0, count=500, fewest=10)
    assert high - low == pytest.approx(0.2775, abs=1e-3)
    assert effective_interval(0.9, math.nan, count=500, fewest=10) == wilson(0.9, 10)


def test_the_mean_of_one_share_is_that_share() -> None:
    value, interval = mean_of_shares([(0.7, (0.5, 0.8))])
    assert (value, *interval) == pytest.approx((0.7, 0.5, 0.8))
    value, interval = mean_of_shares([(1.0, (0.8, 1.0)), (0.5, (0.3, 0.7))])
    assert (value, *interval) == pytest.approx((0.75, 0.75 - math.hypot(0.2, 0.2) / 2, 0.75 + 0.1))


def test_centres_that_differ_are_told_from_those_that_do_not() -> None:
    alike = heterogeneity({"a": (0.8, (0.6, 0.9)), "b": (0.75, (0.6, 0.9)), "c": (math.nan, (math.nan, math.nan))})
    apart = heterogeneity({"a": (0.9, (0.85, 0.95)), "b": (0.4, (0.3, 0.5))})
    assert alike is not None
    assert apart is not None
    assert (alike.freedom, apart.freedom) == (1, 1)
    assert alike.p_value > 0.5
    assert apart.p_value < 0.001
    assert heterogeneity({"a": (0.9, (0.85, 0.95))}) is None


def test_the_jackknife_of_a_mean_is_its_variance() -> None:
    values = np.random.default_rng(0).normal(size=50)
    left = np.array([np.delete(values, at).mean() for at in range(50)])
    assert jackknife_variance(left) == pytest.approx(values.var(ddof=1) / 50)
    assert math.isnan(jackknife_variance(np.array([1.0, math.nan])))


def test_the_area_of_patients_with_copies_is_no_more_certain() -> None:
    random = np.random.default_rng(1)
    truth = np.arange(40) % 3 == 0
    scores = random.normal(truth * 1.2, 1)
    owners = np.arange(40)
    alone = delong_error(truth, scores)
    assert delong_error(truth, scores, owners=owners) == pytest.approx(alone)
    copied = delong_error(np.tile(truth, 3), np.tile(scores, 3), owners=np.tile(owners, 3))
    assert copied == pytest.approx(alone, rel=0.05)
    assert delong_error(np.tile(truth, 3), np.tile(scores, 3)) < 0.7 * alone
    groups = [f"P{owner}" for owner in np.tile(owners, 3)]
    ours = score(np.tile(truth, 3), np.tile(scores, 3), groups=groups, resamples=4000)
    theirs = score(truth, scores, resamples=4000)
    assert ours.bootstrap == pytest.approx(theirs.bootstrap, abs=0.02)
    assert ours.interval == pytest.approx(theirs.interval, abs=0.02)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1))
def test_the_interval_of_an_area_never_vanishes(positives: int, negatives: int, auc: float) -> None:
    for error in (0.0, math.nan, 0.05):
        low, high = score_interval(auc, error, positives=positives, negatives=negatives)
        assert 0 <= low <= auc + 1e-12
        assert auc - 1e-12 <= high <= 1
        assert high - low > 1e-4
