"""Area averaging against a plain loop over areas, and bit for bit the same in windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsi.resample import FramePlan, average, plan_axis

RNG = np.random.default_rng(7)
SOURCE = RNG.integers(0, 256, (90, 110, 3), dtype=np.uint8)
ratios = st.floats(0.3, 9) | st.sampled_from([1.0, 2.0, 3.0, 4.0, 8.0, 1.1, 0.5, 2.0576131687242798, 4.016129032258064])
origins = st.floats(0, 5) | st.integers(0, 5).map(float) | st.sampled_from([0.5, 1 / 3])


def shares(origin: float, ratio: float, count: int, size: int) -> NDArray[np.float64]:
    """(count, size): which share of each output pixel each source pixel makes."""
    matrix = np.zeros((count, size))
    for index in range(count):
        low, high = origin + index * ratio, origin + (index + 1) * ratio
        for pixel in range(math.floor(low), math.ceil(high)):
            matrix[index, pixel] = max(0.0, min(high, pixel + 1) - max(low, pixel)) / ratio
    return matrix


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(x=origins, y=origins, ratio=ratios)
def test_every_pixel_is_the_mean_over_its_area(x: float, y: float, ratio: float) -> None:
    count = max(1, min(16, int(80 / ratio)))
    rows, columns = plan_axis(origin=y, ratio=ratio, count=count), plan_axis(origin=x, ratio=ratio, count=count)
    plan = FramePlan(rows=rows, columns=columns)
    result = average(SOURCE[plan.window.slices], plan)
    exact = np.einsum("ry,yxc,kx->rkc", shares(y, ratio, count, 90), SOURCE, shares(x, ratio, count, 110))
    assert np.abs(result - exact).max() < 0.51


@settings(max_examples=60, deadline=None)
@given(
    x=origins,
    ratio=ratios,
    first=st.integers(0, 30),
    width=st.integers(1, 9),
    shift=st.sampled_from([0, 100_000, 221_000]),
)
def test_windows_equal_the_whole_bit_for_bit(x: float, ratio: float, first: int, width: int, shift: int) -> None:
    count = max(1, min(16, int(80 / ratio)))
    first = min(first, count - 1)
    width = min(width, count - first)
    origin = x + shift
    whole = plan_axis(origin=origin, ratio=ratio, count=count)
    part = plan_axis(origin=origin + first * ratio, ratio=ratio, count=width)
    columns = plan_axis(origin=origin, ratio=ratio, count=count)
    across = slice(columns.start - shift, columns.stop - shift)
    image = average(SOURCE[whole.start - shift : whole.stop - shift, across], FramePlan(rows=whole, columns=columns))
    window = average(SOURCE[part.start - shift : part.stop - shift, across], FramePlan(rows=part, columns=columns))
    np.testing.assert_array_equal(window, image[first : first + width])


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("ratio", [0.7, 1.1, 2.0, 3.3, 33.0])
def test_a_plain_image_stays_plain(value: int, ratio: float) -> None:
    plan = plan_axis(origin=0.0 if ratio == 2 else 0.3, ratio=ratio, count=20)
    size = plan.stop - plan.start
    image = average(np.full((size, size, 3), value, dtype=np.uint8), FramePlan(rows=plan, columns=plan))
    assert (image == value).all()


def test_rounding_noise_in_a_ratio_does_not_leave_the_grid() -> None:
    assert plan_axis(origin=3.0, ratio=1.0, count=5).factor == 1
    assert plan_axis(origin=3.0, ratio=0.972 / 0.243, count=5).factor == 4
    assert plan_axis(origin=3.0 + 1e-10, ratio=2.0000000000000004, count=5).factor == 2
    assert plan_axis(origin=3.0, ratio=2.0001, count=5).factor == 0
    assert plan_axis(origin=3.5, ratio=2.0, count=5).factor == 0


@pytest.mark.parametrize("factor", [16, 17, 22])
def test_blocks_of_any_size_are_exact(factor: int) -> None:
    """Up to 16 the sums of a block fit 16 bits."""
    source = np.maximum(SOURCE[: 4 * factor, : 5 * factor], 250)
    plan = FramePlan(
        rows=plan_axis(origin=0.0, ratio=factor, count=4), columns=plan_axis(origin=0.0, ratio=factor, count=5)
    )
    means = source.reshape(4, factor, 5, factor, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(average(source, plan), np.floor(means + 0.5))


def test_pixels_finer_than_a_position_are_those_they_begin_in() -> None:
    fine = plan_axis(origin=3.25, ratio=2.0**-22, count=9)
    image = average(SOURCE[3:4, 3:4], FramePlan(rows=fine, columns=fine))
    np.testing.assert_array_equal(image, np.broadcast_to(SOURCE[3, 3], (9, 9, 3)))
    last, next_one = (plan_axis(origin=4 - 2.0**-20, ratio=2.0**-20, count=count) for count in (1, 2))
    assert (last.start, last.stop, last.weights.tolist()) == (3, 4, [[1.0]])
    assert next_one.first.tolist() == [0, 1]
