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
    assert plan_axis(origin=3.0, ratio=0.972 / 0.243, count=5).factor == 4
    assert plan_axis(origin=3.0 + 1e-10, ratio=2.0000000000000004, count=5).factor == 2
    assert plan_axis(origin=3.0, ratio=2.0001, count=5).factor == 0
    assert plan_axis(origin=3.5, ratio=2.0, count=5).factor == 0
