"""Percentile intervals of bootstrap samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from staging.scores.intervals import check_bootstrap, interval_json, percentile_interval


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
