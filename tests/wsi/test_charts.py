"""Charts: what is drawn lies where the axes say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi.charts import BLUE, ORANGE, Axis, Bar, Curve, bar_chart, curve_chart, round_up, whole_ticks

LINEAR = Axis(name="x", ticks=(0, 0.5, 1))


def dotted(point: tuple[float, float], *, x: Axis = LINEAR, y: Axis = LINEAR) -> tuple[float, float]:
    """Where a dot at a point is seen, as shares of the plot from its lower left corner."""
    dots = np.array([point], dtype=np.float64)
    chart = curve_chart([Curve(points=np.empty((0, 2)), dots=dots)], title="", x=x, y=y)
    rows, columns = np.nonzero((chart == BLUE).all(axis=2))
    left, top, right, bottom = plot_of(chart)
    return (columns.mean() - left) / (right - left), (bottom - rows.mean()) / (bottom - top)


def plot_of(chart: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the frame: its lines are the longest dark ones."""
    dark = chart.max(axis=2) < 160
    rows, columns = np.flatnonzero(dark.sum(axis=1) > 300), np.flatnonzero(dark.sum(axis=0) > 300)
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


@pytest.mark.parametrize("point", [(0.2, 0.7), (0.5, 0.5), (0.9, 0.1)])
def test_points_lie_where_the_axes_say(point: tuple[float, float]) -> None:
    assert dotted(point) == pytest.approx(point, abs=0.005)


def test_logarithms_space_their_ticks_evenly() -> None:
    rates = Axis(name="rate", ticks=(0.125, 0.5, 2, 8), is_log=True)
    assert dotted((0.5, 0.4), x=rates) == pytest.approx((1 / 3, 0.4), abs=0.005)
    assert dotted((2, 0.4), x=rates) == pytest.approx((2 / 3, 0.4), abs=0.005)
    np.testing.assert_array_equal(rates.along(np.array([0.0, 0.01, 80.0])), [0, 0, 1])


def test_what_is_not_finite_is_left_out_and_what_lies_beyond_lies_on_the_edge() -> None:
    points = np.array([(0.1, np.inf), (0.2, np.nan), (0.4, 0.5), (0.6, 3.0)])
    chart = curve_chart([Curve(points=points)], title="", x=LINEAR, y=LINEAR)
    left, top, right, _ = plot_of(chart)
    rows, columns = np.nonzero((chart == BLUE).all(axis=2))
    assert (columns.min() - left) / (right - left) == pytest.approx(0.4, abs=0.01)
    assert rows.min() == pytest.approx(top, abs=2)


def test_a_legend_names_what_is_there() -> None:
    line = np.array([(0.0, 0.0), (1.0, 1.0)])

    def above(*curves: Curve) -> NDArray[np.uint8]:
        chart = curve_chart(curves, title="", x=LINEAR, y=LINEAR)
        return chart[: plot_of(chart)[1]]

    named = above(Curve(points=line, name="a"), Curve(points=line, name="b", ink=ORANGE))
    assert all((named == ink).all(axis=2).any() for ink in (BLUE, ORANGE))
    assert not (above(Curve(points=line)) == BLUE).all(axis=2).any()
    assert not (above(Curve(points=line[:0], name="a")) == BLUE).all(axis=2).any()


def test_the_first_curve_lies_on_top() -> None:
    line = np.array([(0.0, 0.5), (1.0, 0.5)])
    curves = [Curve(points=line), Curve(points=line, ink=ORANGE, width=9)]
    chart = curve_chart(curves, title="", x=LINEAR, y=LINEAR)
    left, top, right, bottom = plot_of(chart)
    middle = chart[(top + bottom) // 2 - 6 : (top + bottom) // 2 + 6, (left + right) // 3]
    assert [(middle == ink).all(axis=1).any() for ink in (BLUE, ORANGE)] == [True, True]


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart([Bar(name=str(value), value=value, label="") for value in (4.0, 1.0, 0.0)], title="bars")
    lengths = (chart == BLUE).all(axis=2).sum(axis=1)
    assert sorted(set(lengths.tolist())) == pytest.approx([0, 105, 420], abs=2)


def test_wide_titles_widen_the_picture() -> None:
    one, other = (bar_chart([Bar(name="a", value=1.0, label="1")], title=title) for title in ("b", "b" * 90))
    assert other.shape[0] == one.shape[0]
    assert other.shape[1] > one.shape[1]


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_ticks_of_passes_are_whole(first: int, more: int) -> None:
    ticks = whole_ticks(first, first + more)
    steps = set(np.diff(ticks).tolist())
    assert len(steps) == 1
    assert ticks[0] == first
    assert first + more <= ticks[-1] < first + more + steps.pop()
    assert all(tick.is_integer() for tick in ticks)
    assert 2 <= len(ticks) == len(set(ticks)) <= 6


@given(st.floats(1e-5, 1e9))
def test_rounded_up_is_the_next_of_one_two_five(value: float) -> None:
    rounded = round_up(value)
    assert value <= rounded <= 2.5 * value * (1 + 1e-9)
    assert f"{rounded:.0e}"[0] in "125"
