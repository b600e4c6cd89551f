"""Units and axes: every conversion there and back, and grids that cover everything once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.errors import ResolutionError
from wsi.geometry import Frame, Level, Region, TileGrid, Window, tile_order, z_order

frames = st.builds(
    Frame,
    x=st.floats(-1e5, 1e5),
    y=st.floats(-1e5, 1e5),
    downsample=st.floats(0.1, 500),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    mpp=st.none() | st.floats(0.1, 10),
)


windows = st.builds(
    Window, row=st.integers(-60, 60), column=st.integers(-60, 60), height=st.integers(1, 40), width=st.integers(1, 40)
)
shapes = st.tuples(st.integers(1, 60), st.integers(1, 60))
tile_shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))
shifts = st.integers(-100, 100)


# --- windows --------------------------------------------------------------------------------------------------------


def pixels(window: Window | None) -> set[tuple[int, int]]:
    """Brute force: (row, column) of every pixel."""
    if window is None:
        return set()
    rows, columns = range(window.row, window.row + window.height), range(window.column, window.column + window.width)
    return {(row, column) for row in rows for column in columns}


@settings(deadline=None)
@given(windows, windows)
def test_an_intersection_holds_exactly_the_common_pixels(one: Window, other: Window) -> None:
    assert pixels(one.intersection(other)) == pixels(one) & pixels(other)
    assert one.intersection(other) == other.intersection(one)
    assert one.intersection(one) == one


@pytest.mark.parametrize(("rows", "columns"), [(4, 0), (-4, 0), (0, 6), (0, -6), (4, 6), (-4, 6)])
def test_windows_that_only_touch_have_nothing_in_common(rows: int, columns: int) -> None:
    window = Window(row=3, column=-2, height=4, width=6)
    assert window.intersection(window.shifted(rows, columns)) is None
    nearer = window.shifted(rows - np.sign(rows), columns - np.sign(columns)).intersection(window)
    assert nearer is not None
    assert min(nearer.shape) == 1


@settings(deadline=None)
@given(windows, shapes)
def test_clipping_keeps_what_lies_on_the_array_and_is_idempotent(window: Window, shape: tuple[int, int]) -> None:
    clipped = window.clipped(shape)
    assert pixels(clipped) == {
        (row, column) for row, column in pixels(window) if 0 <= row < shape[0] and 0 <= column < shape[1]
    }
    if clipped is not None:
        assert clipped.clipped(shape) == clipped
        array = np.arange(math.prod(shape)).reshape(shape)
        assert {tuple(divmod(value, shape[1])) for value in array[clipped.slices].ravel().tolist()} == pixels(clipped)
        assert array[clipped.slices].shape == clipped.shape


@settings(deadline=None)
@given(windows, shifts, shifts)
def test_a_shifted_window_comes_back(window: Window, rows: int, columns: int) -> None:
    there = window.shifted(rows, columns)
    assert there.shifted(-rows, -columns) == window
    assert pixels(there) == {(row + rows, column + columns) for row, column in pixels(window)}


@settings(deadline=None)
@given(windows, windows)
def test_a_window_within_another_is_counted_from_its_first_pixel(one: Window, other: Window) -> None:
    assert one.within(one) == Window.whole(one.shape)
    assert one.within(other).shifted(other.row, other.column) == one


@settings(deadline=None)
@given(windows, st.integers(0, 9))
def test_growing_adds_pixels_on_every_side(window: Window, margin: int) -> None:
    grown = window.grown(margin)
    assert grown.within(window) == Window(
        row=-margin, column=-margin, height=window.height + 2 * margin, width=window.width + 2 * margin
    )
    assert grown.grown(-margin) == window


@settings(deadline=None)
@given(windows, windows)
def test_the_window_around_some_is_the_smallest_that_holds_them(one: Window, other: Window) -> None:
    around = Window.around([one, other])
    assert (around.intersection(one), around.intersection(other)) == (one, other)
    assert around.row in (one.row, other.row)
    assert around.column in (one.column, other.column)
    assert around.bottom in (one.bottom, other.bottom)
    assert around.right in (one.right, other.right)


@settings(deadline=None)
@given(windows)
def test_between_undoes_the_ends(window: Window) -> None:
    assert Window.between(row=window.row, column=window.column, bottom=window.bottom, right=window.right) == window


@settings(deadline=None)
@given(windows, tile_shapes)
def test_tiles_are_those_that_hold_a_pixel(window: Window, tile_shape: tuple[int, int]) -> None:
    height, width = tile_shape
    tiles = window.tiles(tile_shape)
    assert tiles == sorted({(row // height, column // width) for row, column in pixels(window)})
    assert set(tiles) == pixels(window.tile_range(tile_shape))


@settings(deadline=None)
@given(windows, tile_shapes)
def test_the_pieces_of_a_window_cover_it_exactly_once(window: Window, tile_shape: tuple[int, int]) -> None:
    pieces = window.cut(tile_shape)
    assert [tile for tile, _, _ in pieces] == window.tiles(tile_shape)
    assert sum(own.height * own.width for _, own, _ in pieces) == window.height * window.width
    assert {pixel for _, own, _ in pieces for pixel in pixels(own)} == pixels(Window.whole(window.shape))
    for (row, column), own, part in pieces:
        assert part.clipped(tile_shape) == part
        assert part.shifted(row * tile_shape[0], column * tile_shape[1]) == own.shifted(window.row, window.column)


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (0, -1)])
def test_a_window_before_the_array_cuts_nothing(row: int, column: int) -> None:
    window = Window(row=row, column=column, height=2, width=2)
    with pytest.raises(ValueError, match=f"row {row}, column {column} begins before"):
        _ = window.slices
    assert window.shifted(-row, -column).slices == (slice(0, 2), slice(0, 2))


@pytest.mark.parametrize(("height", "width"), [(0, 1), (1, 0), (-1, 3)])
def test_an_empty_window_cannot_be_built(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 1 px"):
        Window(row=0, column=0, height=height, width=width)
    assert Window(row=0, column=0, height=1, width=1).shape == (1, 1)


# --- frames ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(frames)
def test_fractions_undo_centres(frame: Frame) -> None:
    rows, columns = np.arange(frame.shape[0]), np.arange(frame.shape[0]) % frame.shape[1]
    back_rows, back_columns = frame.fractions(*frame.centres(rows, columns))
    np.testing.assert_allclose(back_rows, rows + 0.5, atol=1e-6)
    np.testing.assert_allclose(back_columns, columns + 0.5, atol=1e-6)


@settings(deadline=None)
@given(frames, shifts, shifts)
def test_fractions_undo_positions(frame: Frame, row: int, column: int) -> None:
    np.testing.assert_allclose(frame.fractions(*frame.positions(row, column)), (row, column), atol=1e-6)
    part = frame.part(Window(row=row, column=column, height=1, width=1))
    x, y = frame.positions(row, column)
    assert (float(x), float(y)) == (part.x, part.y)


@settings(deadline=None)
@given(st.floats(0.1, 500), windows)
def test_the_window_of_a_region_holds_the_pixels_that_it_touches(downsample: float, window: Window) -> None:
    frame = Frame(x=window.column * 7.0, y=window.row * 3.0, downsample=downsample, shape=(5, 5), mpp=None)
    region = Region(x=window.row * 50, y=window.column * 40, width=window.height * 9, height=window.width * 11)
    found = frame.window_of(region)
    x, y = frame.positions(
        (found.row, found.row + 1, found.bottom - 1, found.bottom),
        (found.column, found.column + 1, found.right - 1, found.right),
    )
    slack = 1e-6 + 2e-9 * downsample
    assert x[0] <= region.x + slack < x[1] + 2 * slack
    assert y[0] <= region.y + slack < y[1] + 2 * slack
    assert x[2] - slack <= region.right <= x[3] + slack
    assert y[2] - slack <= region.bottom <= y[3] + slack


def test_a_region_up_to_a_pixels_edge_does_not_touch_the_next() -> None:
    frame = Frame(x=10.0, y=20.0, downsample=4.0, shape=(9, 9), mpp=None)
    assert frame.window_of(Region(x=14, y=28, width=8, height=4)) == Window(row=2, column=1, height=1, width=2)
    assert frame.window_of(Region(x=14, y=28, width=9, height=5)) == Window(row=2, column=1, height=2, width=3)
    assert frame.window_of(Region(x=13, y=27, width=1, height=1)) == Window(row=1, column=0, height=1, width=1)


def test_x_is_columns_and_y_is_rows() -> None:
    frame = Frame(x=100, y=2000, downsample=4, shape=(3, 5), mpp=0.25)
    x, y = frame.centres(2, 1)
    assert (float(x), float(y)) == (106.0, 2010.0)
    assert frame.region == Region(x=100, y=2000, width=20, height=12)
    assert frame.pixel_um == 1.0


@settings(deadline=None)
@given(frames, st.integers(-50, 50), st.integers(-50, 50))
def test_a_part_names_the_same_positions(frame: Frame, row: int, column: int) -> None:
    part = frame.part(Window(row=row, column=column, height=2, width=3))
    np.testing.assert_allclose(part.centres(1, 2), frame.centres(row + 1, column + 2), rtol=0, atol=1e-6)
    assert part.shape == (2, 3)
    assert part.mpp == frame.mpp


@settings(deadline=None)
@given(frames)
def test_the_region_covers_the_frame_tightly(frame: Frame) -> None:
    region = frame.region
    right, bottom = frame.x + frame.shape[1] * frame.downsample, frame.y + frame.shape[0] * frame.downsample
    assert (frame.right, frame.bottom) == (right, bottom)
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
@given(frames, st.sampled_from([1, 2, 4, 8]))
def test_finer_undoes_coarser(frame: Frame, factor: int) -> None:
    assert frame.finer(factor).coarser(factor) == frame
    assert frame.finer(factor).shape == (frame.shape[0] * factor, frame.shape[1] * factor)


@settings(deadline=None)
@given(frames, st.floats(0.1, 500))
def test_resampled_covers_the_same_area_with_as_few_pixels_as_possible(frame: Frame, downsample: float) -> None:
    other = frame.resampled(downsample)
    assert (other.x, other.y, other.downsample, other.mpp) == (frame.x, frame.y, downsample, frame.mpp)
    for own, found in zip(frame.shape, other.shape, strict=True):
        wanted = own * frame.downsample / downsample
        assert found == 1 or found - 1 < wanted <= found * (1 + 1e-11)


def test_a_hair_more_than_whole_pixels_is_no_pixel_more() -> None:
    frame = Frame(x=0.0, y=0.0, downsample=1.0, shape=(1000, 999), mpp=0.25)
    assert frame.resampled(1 / 1.0000000000001).shape == (1000, 999)
    assert frame.resampled(1 / 1.00000001).shape == (1001, 1000)


@settings(deadline=None)
@given(frames, st.floats(0.1, 500))
def test_in_px_of_a_level_everything_is_that_much_smaller(frame: Frame, downsample: float) -> None:
    own = frame.in_px_of(downsample)
    assert own.shape == frame.shape
    x, y = frame.positions((0, 3), (0, 5))
    np.testing.assert_allclose(own.positions((0, 3), (0, 5)), (x / downsample, y / downsample), rtol=1e-9, atol=1e-9)
    if frame.mpp is not None:
        assert own.pixel_um == pytest.approx(frame.pixel_um)


@pytest.mark.slow
@settings(deadline=None)
@given(frames, st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_tiles_cover_every_pixel_once(frame: Frame, tile_shape: tuple[int, int]) -> None:
    grid = TileGrid(frame=frame, tile_shape=tile_shape)
    seen = np.zeros(frame.shape, dtype=int)
    for row, column in grid:
        window = grid.window(row, column)
        seen[window.slices] += 1
        tile = grid.tile(row, column)
        assert tile.shape == seen[window.slices].shape
        assert math.isclose(tile.x, frame.x + window.column * frame.downsample)
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


@pytest.mark.parametrize("tile_shape", [(0, 5), (5, 0)])
def test_tiles_have_pixels(tile_shape: tuple[int, int]) -> None:
    frame = Frame(x=0, y=0, downsample=1, shape=(9, 9), mpp=None)
    with pytest.raises(ValueError, match="at least 1 x 1 px"):
        TileGrid(frame=frame, tile_shape=tile_shape)
    assert TileGrid(frame=frame, tile_shape=(1, 1)).shape == (9, 9)


def test_an_empty_region_cannot_be_built() -> None:
    for width, height in ((0, 5), (5, 0)):
        with pytest.raises(ValueError, match="at least 1 px"):
            Region(x=0, y=0, width=width, height=height)
    assert Region(x=0, y=0, width=1, height=1).right == 1


def test_um_need_an_mpp() -> None:
    with pytest.raises(ResolutionError, match="--slide-mpp"):
        _ = Frame(x=0, y=0, downsample=1, shape=(1, 1), mpp=None).pixel_um


def morton(row: int, column: int) -> str:
    """The digits of both numbers in turn, the row's first."""
    return "".join(
        f"{down}{aside}" for down, aside in zip(f"{max(row, 0):032b}", f"{max(column, 0):032b}", strict=True)
    )


cells = st.integers(-3, 9) | st.integers(-3, 2**24 - 1)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells), max_size=12))
def test_a_z_curve_sorts_by_the_digits_of_rows_and_columns_in_turn(corners: list[tuple[int, int]]) -> None:
    rows, columns = np.array(corners, dtype=np.int64).reshape(-1, 2).T
    expected = sorted(range(len(corners)), key=lambda number: morton(*corners[number]))
    assert z_order(rows, columns).tolist() == expected


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-300, 900), st.integers(-300, 900)), max_size=12))
def test_regions_are_ordered_by_the_tile_at_their_centre(corners: list[tuple[int, int]]) -> None:
    level = Level(index=1, width=500, height=500, tile_width=40, tile_height=30, downsample=2.0)
    regions = [Region(x=x, y=y, width=101, height=58) for x, y in corners]
    tiles = [(math.floor((y + 29) / 60), math.floor((x + 50.5) / 80)) for x, y in corners]
    expected = sorted(range(len(corners)), key=lambda number: morton(*tiles[number]))
    assert tile_order(regions, level).tolist() == expected


@pytest.mark.parametrize("tile_shape", [(0, 3), (3, 0)])
def test_an_empty_tile_cannot_be_built(tile_shape: tuple[int, int]) -> None:
    frame = Frame(x=0, y=0, downsample=1, shape=(2, 2), mpp=None)
    with pytest.raises(ValueError, match="at least 1 x 1 px"):
        TileGrid(frame=frame, tile_shape=tile_shape)
    assert list(TileGrid(frame=frame, tile_shape=(1, 1))) == [(0, 0), (0, 1), (1, 0), (1, 1)]
