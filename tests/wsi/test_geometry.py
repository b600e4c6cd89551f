"""Units and axes: every conversion there and back, and grids that cover everything once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.errors import ResolutionError
from wsi.geometry import Frame, Region, TileGrid

coordinates = st.integers(-1000, 1000)
sizes = st.integers(1, 500)
regions = st.builds(Region, x=coordinates, y=coordinates, width=sizes, height=sizes)
frames = st.builds(
    Frame,
    x=st.floats(-1e5, 1e5),
    y=st.floats(-1e5, 1e5),
    downsample=st.floats(0.1, 500),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    mpp=st.none() | st.floats(0.1, 10),
)


@settings(deadline=None)
@given(regions, regions)
def test_intersection_holds_exactly_the_common_pixels(one: Region, other: Region) -> None:
    columns = set(range(one.x, one.right)) & set(range(other.x, other.right))
    rows = set(range(one.y, one.bottom)) & set(range(other.y, other.bottom))
    common = one.intersection(other)
    if common is None:
        assert not (columns and rows)
    else:
        assert set(range(common.x, common.right)) == columns
        assert set(range(common.y, common.bottom)) == rows
        assert other.intersection(one) == common


@settings(deadline=None)
@given(frames)
def test_fractions_undo_centres(frame: Frame) -> None:
    rows, columns = np.arange(frame.shape[0]), np.arange(frame.shape[0]) % frame.shape[1]
    back_rows, back_columns = frame.fractions(*frame.centres(rows, columns))
    np.testing.assert_allclose(back_rows, rows + 0.5, atol=1e-6)
    np.testing.assert_allclose(back_columns, columns + 0.5, atol=1e-6)


def test_x_is_columns_and_y_is_rows() -> None:
    frame = Frame(x=100, y=2000, downsample=4, shape=(3, 5), mpp=0.25)
    x, y = frame.centres(2, 1)
    assert (float(x), float(y)) == (106.0, 2010.0)
    assert frame.region == Region(x=100, y=2000, width=20, height=12)
    assert frame.pixel_um == 1.0


@settings(deadline=None)
@given(frames, st.integers(-50, 50), st.integers(-50, 50))
def test_a_window_names_the_same_places(frame: Frame, row: int, column: int) -> None:
    window = frame.window(row=row, column=column, height=2, width=3)
    np.testing.assert_allclose(window.centres(1, 2), frame.centres(row + 1, column + 2), rtol=0, atol=1e-6)
    assert window.shape == (2, 3)
    assert window.mpp == frame.mpp


@settings(deadline=None)
@given(frames)
def test_the_region_covers_the_frame_tightly(frame: Frame) -> None:
    region = frame.region
    right, bottom = frame.x + frame.shape[1] * frame.downsample, frame.y + frame.shape[0] * frame.downsample
    assert region.x <= frame.x < region.x + 1
    assert region.y <= frame.y < region.y + 1
    assert region.right >= right
    assert region.bottom >= bottom
    assert region.width == 1 or region.right - 1 < right
    assert region.height == 1 or region.bottom - 1 < bottom


@settings(deadline=None)
@given(frames, st.integers(1, 9))
def test_coarser_covers_with_as_few_pixels_as_possible(frame: Frame, factor: int) -> None:
    coarse = frame.coarser(factor)
    for fine_px, coarse_px in zip(frame.shape, coarse.shape, strict=True):
        assert (coarse_px - 1) * factor < fine_px <= coarse_px * factor
    assert coarse.downsample == frame.downsample * factor
    assert (coarse.x, coarse.y) == (frame.x, frame.y)


@settings(deadline=None)
@given(frames, st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_tiles_cover_every_pixel_once(frame: Frame, tile_shape: tuple[int, int]) -> None:
    grid = TileGrid(frame=frame, tile_shape=tile_shape)
    seen = np.zeros(frame.shape, dtype=int)
    for row, column in grid:
        slices = grid.slices(row, column)
        seen[slices] += 1
        tile = grid.tile(row, column)
        assert tile.shape == seen[slices].shape
        assert math.isclose(tile.x, frame.x + slices[1].start * frame.downsample)
    assert (seen == 1).all()
    assert len(list(grid)) == grid.shape[0] * grid.shape[1]


@pytest.mark.parametrize(
    "change",
    [
        {"downsample": 0.0},
        {"downsample": -1.0},
        {"downsample": math.nan},
        {"x": math.inf},
        {"mpp": 0.0},
        {"mpp": math.nan},
        {"shape": (0, 3)},
    ],
)
def test_an_impossible_frame_cannot_be_built(change: dict[str, object]) -> None:
    good: dict[str, object] = {"x": 0.0, "y": 0.0, "downsample": 1.0, "shape": (2, 2), "mpp": None}
    Frame(**good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a frame needs"):
        Frame(**(good | change))  # type: ignore[arg-type]


def test_an_empty_region_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="at least 1 px"):
        Region(x=0, y=0, width=0, height=5)


def test_um_need_an_mpp() -> None:
    with pytest.raises(ResolutionError, match="--slide-mpp"):
        _ = Frame(x=0, y=0, downsample=1, shape=(1, 1), mpp=None).pixel_um
