"""Many windows at once do what each does alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi.geometry import Window
from wsi.windows import Windows

some_windows = st.lists(
    st.builds(
        Window,
        row=st.integers(-40, 80),
        column=st.integers(-40, 80),
        height=st.integers(1, 50),
        width=st.integers(1, 50),
    ),
    max_size=12,
)
shapes = st.tuples(st.integers(1, 70), st.integers(1, 70))
tile_shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


@settings(deadline=None)
@given(some_windows)
def test_they_come_out_as_they_went_in(windows: list[Window]) -> None:
    many = Windows.of(windows)
    assert list(many) == windows
    assert len(many) == len(windows)
    assert list(Windows.joined([many, many])) == windows * 2
    assert list(many.take(np.arange(len(windows))[::-1])) == windows[::-1]


@settings(deadline=None)
@given(some_windows, shapes, tile_shapes)
def test_tiles_and_pieces_are_those_of_each_window(
    windows: list[Window], shape: tuple[int, int], tile_shape: tuple[int, int]
) -> None:
    expected = []
    for number, window in enumerate(windows):
        inside = window.clipped(shape)
        for (row, column), own, part in [] if inside is None else inside.cut(tile_shape):
            assert inside is not None
            first = inside.within(window)
            expected.append(((number, row, column), own.shifted(first.row, first.column), part))
    many = Windows.of(windows)
    uses, own_parts, parts = many.cut(shape, tile_shape)
    assert list(zip(np.stack(uses, axis=1).tolist(), own_parts, parts, strict=True)) == [
        (list(use), own, part) for use, own, part in expected
    ]
    assert np.stack(many.tiles(shape, tile_shape)).tolist() == np.stack(uses).tolist()


@settings(deadline=None)
@given(some_windows, shapes)
def test_which_lie_on_a_level(windows: list[Window], shape: tuple[int, int]) -> None:
    assert Windows.of(windows).lie_on(shape).tolist() == [window.clipped(shape) == window for window in windows]


def test_a_window_up_to_the_edges_lies_on_the_level() -> None:
    whole = Window(row=0, column=0, height=9, width=7)
    moved = [whole.shifted(rows, columns) for rows, columns in ((1, 0), (-1, 0), (0, 1), (0, -1))]
    assert Windows.of([whole, *moved]).lie_on((9, 7)).tolist() == [True, False, False, False, False]


def test_size_of_all() -> None:
    same = Windows.of([Window(row=0, column=0, height=3, width=5), Window(row=-9, column=2, height=3, width=5)])
    assert same.shape == (3, 5)
    mixed = Windows.joined([same, Windows.of([Window(row=1, column=1, height=4, width=2)])])
    with pytest.raises(ValueError, match="5 x 3 and 2 x 4 px"):
        _ = mixed.shape
    for other in (Window(row=0, column=0, height=3, width=6), Window(row=0, column=0, height=2, width=5)):
        with pytest.raises(ValueError, match=f"{other.width} x {other.height} px"):
            _ = Windows.joined([same, Windows.of([other])]).shape
    assert list(mixed.alike()) == [
        Window(row=0, column=0, height=4, width=5),
        Window(row=-9, column=2, height=4, width=5),
        Window(row=1, column=1, height=4, width=5),
    ]
    with pytest.raises(ValueError, match="no windows"):
        _ = Windows.of([]).shape


def test_neighbouring_tiles_stand_together() -> None:
    corners = [(row, column) for row in range(0, 64, 8) for column in range(0, 64, 8)]
    windows = Windows.of(Window(row=row, column=column, height=8, width=8) for row, column in corners)
    order = windows.tile_order((32, 32))
    assert sorted(order.tolist()) == list(range(64))
    tiles = [(corners[index][0] // 32, corners[index][1] // 32) for index in order.tolist()]
    assert tiles == sorted(tiles)
