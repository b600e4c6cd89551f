"""Outlines to pixels, against exact arithmetic, shapely and themselves in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.asap import read_asap
from annotations.rasterize import Painting, layers, polygon_mask, rasterize
from wsi.geometry import Frame

Points = list[tuple[float, float]]


def frame_of(rows: int, columns: int, *, x: float = 0.0, y: float = 0.0, downsample: float = 1.0) -> Frame:
    return Frame(x=x, y=y, downsample=downsample, shape=(rows, columns), mpp=0.25)


def drawn(role: Role, points: Points | NDArray[np.float64]) -> Annotation:
    return Annotation(
        name="a", group="g", role=role, kind="Polygon", vertices=np.asarray(points, dtype=np.float64).reshape(-1, 2)
    )


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def winding_by_hand(points: Points, x: Fraction, y: Fraction) -> int:
    """The winding number around a point in exact fractions; edges own their upper end, points on an edge lie right."""
    turns = 0
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        top, bottom = sorted([(Fraction(y0), Fraction(x0)), (Fraction(y1), Fraction(x1))])
        if top[0] <= y < bottom[0]:
            crossing = top[1] + (bottom[1] - top[1]) * (y - top[0]) / (bottom[0] - top[0])
            if crossing <= x:
                turns += 1 if y0 < y1 else -1
    return turns


def mask_by_hand(points: Points, frame: Frame) -> NDArray[np.bool_]:
    half, step = Fraction(1, 2), Fraction(frame.downsample)
    return np.array(
        [
            [
                winding_by_hand(
                    points, Fraction(frame.x) + (column + half) * step, Fraction(frame.y) + (row + half) * step
                )
                != 0
                for column in range(frame.shape[1])
            ]
            for row in range(frame.shape[0])
        ]
    )


# Whole, half and quarter positions hit pixel centres, corners and one another all the time.
positions = st.integers(-2, 10).flatmap(lambda value: st.sampled_from([value, value + 0.5, value + 0.25]))
outlines = st.lists(st.tuples(positions, positions), min_size=0, max_size=9)


@settings(max_examples=150, deadline=None)
@given(outlines, st.sampled_from([0.5, 1.0, 2.0]), positions, positions)
def test_equals_exact_arithmetic(points: Points, downsample: float, x: float, y: float) -> None:
    frame = frame_of(9, 11, x=x, y=y, downsample=downsample)
    found = polygon_mask([np.array(points, dtype=np.float64).reshape(-1, 2)], frame).array
    np.testing.assert_array_equal(found, mask_by_hand(points, frame))


any_positions = st.floats(-30, 90, allow_nan=False).map(lambda value: round(value, 4))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Role)), st.lists(st.tuples(any_positions, any_positions), max_size=12)),
        max_size=4,
    ),
    st.sampled_from([0.243, 0.5, 1.0, 3.7, 8 / 0.226]),
    st.tuples(st.integers(-5, 30), st.integers(-5, 30), st.integers(1, 40), st.integers(1, 40)),
)
def test_any_tile_equals_its_part_of_the_whole(
    shapes: list[tuple[Role, Points]], downsample: float, window: tuple[int, int, int, int]
) -> None:
    row, column, height, width = window
    painting = Painting.of([drawn(role, points) for role, points in shapes])
    whole = frame_of(75, 75, x=-7.3 - 5 * downsample, y=11.1 - 5 * downsample, downsample=downsample)
    full = painting.mask(whole).array
    tile = painting.mask(whole.window(row=row + 5, column=column + 5, height=height, width=width)).array
    np.testing.assert_array_equal(tile, full[row + 5 : row + 5 + height, column + 5 : column + 5 + width])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(2, 40), min_size=3, max_size=40), st.floats(0.3, 3))
def test_equals_shapely_away_from_the_edge(radii: list[float], downsample: float) -> None:
    angles = np.linspace(0, 2 * math.pi, len(radii), endpoint=False)
    points = np.stack([30 + np.array(radii) * np.cos(angles), 25 + np.array(radii) * np.sin(angles)], axis=1)
    frame = frame_of(60, 50, downsample=downsample)
    rows, columns = np.indices(frame.shape)
    centres = shapely.points(*frame.centres(rows, columns))
    polygon = shapely.Polygon(points)
    clear = shapely.distance(polygon.exterior, centres) > 1e-3 * downsample
    found = polygon_mask([points], frame).array
    np.testing.assert_array_equal(found[clear], shapely.contains(polygon, centres)[clear])


@settings(max_examples=60, deadline=None)
@given(st.tuples(positions, positions), st.sampled_from([0.5, 1.0]))
def test_outlines_that_share_edges_share_no_pixel(middle: tuple[float, float], downsample: float) -> None:
    corners = box(-2, -2, 10, 10)
    middle = (min(max(middle[0], -1.75), 9.75), min(max(middle[1], -1.75), 9.75))
    frame = frame_of(30, 30, x=-3, y=-3, downsample=downsample)
    parts = [
        polygon_mask([np.array([corners[n], corners[(n + 1) % 4], middle][:: 1 if n % 2 else -1])], frame).array.astype(
            int
        )
        for n in range(4)
    ]
    np.testing.assert_array_equal(sum(parts), polygon_mask([np.array(corners)], frame).array)


def test_a_square_of_ten_has_a_hundred_pixels() -> None:
    assert polygon_mask([np.array(box(5.0, 5.0, 15.0, 15.0))], frame_of(20, 20)).array.sum() == 100


def test_an_outline_over_itself_has_no_holes() -> None:
    twice_round = np.array([*box(1, 1, 9, 9), (1, 1), *box(3, 3, 7, 7), (3, 3)], dtype=float)
    assert polygon_mask([twice_round], frame_of(10, 10)).array.sum() == 64
    bow_tie = np.array([(0.0, 0.25), (10.0, 10.25), (10.0, 0.25), (0.0, 10.25)])
    assert polygon_mask([bow_tie], frame_of(12, 10)).array.sum() == 50
    # Two outlines drawn in opposite directions are a union, never a difference.
    both = [np.array(box(1, 1, 9, 9), dtype=float), np.array(box(3, 3, 7, 7)[::-1], dtype=float)]
    assert polygon_mask(both, frame_of(10, 10)).array.sum() == 64


@pytest.mark.parametrize(
    ("shapes", "area"),
    [
        ([(Role.TUMOUR, box(0, 0, 20, 20))], 400),
        ([(Role.TUMOUR, box(0, 0, 20, 20)), (Role.CUT_OUT, box(5, 5, 15, 15))], 300),
        ([(Role.CUT_OUT, box(5, 5, 15, 15)), (Role.TUMOUR, box(0, 0, 20, 20))], 300),
        # tumour, cut-out in it, island in that, cut-out in the island
        (
            [
                (Role.TUMOUR, box(0, 0, 20, 20)),
                (Role.CUT_OUT, box(2, 2, 18, 18)),
                (Role.TUMOUR, box(4, 4, 16, 16)),
                (Role.CUT_OUT, box(8, 8, 12, 12)),
            ],
            400 - 256 + 144 - 16,
        ),
        # a cut-out that is larger than a tumour outline but does not hold it still cuts
        ([(Role.TUMOUR, box(0, 0, 10, 10)), (Role.CUT_OUT, box(5, 0, 30, 30))], 50),
        # an island that strays a little over the edge of its cut-out
        (
            [(Role.TUMOUR, box(0, 0, 30, 20)), (Role.CUT_OUT, box(0, 0, 20, 20)), (Role.TUMOUR, box(9, 5, 21, 15))],
            200 + 110,
        ),
        # the same outline twice: cut out
        ([(Role.TUMOUR, box(0, 0, 10, 10)), (Role.CUT_OUT, box(0, 0, 10, 10))], 0),
        # a cut-out that takes most of a tumour outline and reaches over it
        ([(Role.TUMOUR, box(0, 0, 20, 20)), (Role.CUT_OUT, box(-1, -1, 15, 21))], 100),
        # what lies outside a cut-out is not its business; other roles are nobody's
        ([(Role.TUMOUR, box(0, 0, 5, 5)), (Role.CUT_OUT, box(6, 6, 9, 9)), (Role.TISSUE, box(0, 0, 30, 30))], 25),
        ([(Role.CUT_OUT, box(0, 0, 5, 5)), (Role.IGNORE, box(0, 0, 5, 5))], 0),
        ([(Role.TUMOUR, [(1, 1), (5, 5)]), (Role.TUMOUR, [(3, 3)])], 0),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_cut_outs_and_islands(shapes: list[tuple[Role, Points]], area: int, *, reverse: bool) -> None:
    annotations = [drawn(role, points) for role, points in (shapes[::-1] if reverse else shapes)]
    assert rasterize(annotations, frame_of(40, 40, x=-5, y=-5)).array.sum() == area


def test_layers_hold_every_tumour_outline_once() -> None:
    shapes = [drawn(Role.TUMOUR, box(n, n, 20 - n, 20 - n)) for n in range(0, 9, 2)]
    cuts = [drawn(Role.CUT_OUT, box(n, n, 20 - n, 20 - n)) for n in range(1, 9, 2)]
    found = layers(shapes + cuts)
    assert sorted(id(annotation) for layer in found for annotation in layer.tumour) == sorted(map(id, shapes))
    assert [len(layer.cut_outs) for layer in found] == [4, 3, 2, 1, 0]


def test_a_frame_elsewhere_is_empty() -> None:
    tumour = [drawn(Role.TUMOUR, box(0, 0, 20, 20))]
    for x, y in ((-50, 0), (50, 0), (0, -50), (0, 50)):
        assert not rasterize(tumour, frame_of(10, 10, x=x, y=y)).array.any()
    assert rasterize(tumour, frame_of(10, 10, x=5, y=5)).array.all()


def test_real_contours_keep_their_area(real_data: Callable[[str], Path]) -> None:
    annotations = read_asap(real_data("annotations/camelyon17/patient_004_node_4.xml"))
    mask = rasterize(annotations, frame_of(13_900, 3_000, x=10_600, y=75_300))
    assert mask.array.sum() == pytest.approx(252_947, rel=1e-3)


@pytest.mark.parametrize("name", ["tumor_009", "tumor_085"])
def test_real_contours_in_tiles_equal_the_whole(real_data: Callable[[str], Path], name: str) -> None:
    annotations = read_asap(real_data(f"annotations/camelyon16/{name}.xml"))
    painting = Painting.of(annotations)
    frame = frame_of(2800, 1400, downsample=64.0 / 0.9)
    whole = painting.mask(frame).array
    assert whole.any()
    for row in range(0, 2800, 500):
        for column in range(0, 1400, 333):
            tile = painting.mask(frame.window(row=row, column=column, height=500, width=333)).array
            part = whole[row : row + 500, column : column + 333]
            np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)
