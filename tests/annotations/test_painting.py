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
from annotations.files.asap import read_asap
from annotations.painting import Cover, Painting, layers, polygon_mask, rasterize
from wsi.geometry import Frame, Window

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


@pytest.mark.slow
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
    tile = painting.mask(whole.part(Window(row=row + 5, column=column + 5, height=height, width=width))).array
    np.testing.assert_array_equal(tile, full[row + 5 : row + 5 + height, column + 5 : column + 5 + width])


painted_shapes = st.lists(
    st.tuples(
        st.sampled_from([Role.TUMOUR, Role.TUMOUR, Role.CUT_OUT]),
        st.lists(st.tuples(any_positions, any_positions), max_size=7),
    ),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(painted_shapes, st.integers(2, 9), st.tuples(st.integers(-40, 20), st.integers(-40, 20)))
def test_max_is_the_block_maximum_of_level_0(
    shapes: list[tuple[Role, Points]], factor: int, corner: tuple[int, int]
) -> None:
    painting = Painting.of([drawn(role, points) for role, points in shapes])
    finest = frame_of(11 * factor, 13 * factor, x=corner[0], y=corner[1])
    expected = painting.mask(finest).array.reshape(11, factor, 13, factor).any(axis=(1, 3))
    found = painting.mask(finest.coarser(factor), reduce="max").array
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(painted_shapes, st.sampled_from([1.25, 1.5, 2.75, 6.5]), positions, positions)
def test_max_gives_every_pixel_of_level_0_to_the_one_that_holds_its_centre(
    shapes: list[tuple[Role, Points]], downsample: float, x: float, y: float
) -> None:
    painting = Painting.of([drawn(role, points) for role, points in shapes])
    frame = frame_of(12, 9, x=x, y=y, downsample=downsample)
    finest = frame_of(100, 100, x=-10, y=-10)
    expected = np.zeros(frame.shape, dtype=bool)
    for row, column in np.argwhere(painting.mask(finest).array):
        at_row = (Fraction(int(row) - 10) + Fraction(1, 2) - Fraction(y)) // Fraction(downsample)
        at_column = (Fraction(int(column) - 10) + Fraction(1, 2) - Fraction(x)) // Fraction(downsample)
        if 0 <= at_row < 12 and 0 <= at_column < 9:
            expected[at_row, at_column] = True
    found = painting.mask(frame, reduce="max").array
    np.testing.assert_array_equal(found, expected)
    part = painting.mask(frame.part(Window(row=5, column=2, height=6, width=4)), reduce="max").array
    np.testing.assert_array_equal(part, found[5:11, 2:6])


def test_max_over_many_tiles_of_level_0_keeps_the_smallest_lesion() -> None:
    shapes = [box(-700, 100, 1500, 1400), box(2000.2, 1800.2, 2001.2, 1801.2), box(2600.6, 20.6, 2601.4, 21.4)]
    painting = Painting.of([drawn(Role.TUMOUR, shape) for shape in shapes])
    finest = frame_of(2048, 3072)
    for factor in (3, 64, 1024):
        coarse = finest.coarser(factor)
        rows, columns = coarse.shape
        padded = painting.mask(frame_of(rows * factor, columns * factor)).array
        expected = padded.reshape(rows, factor, columns, factor).any(axis=(1, 3))
        np.testing.assert_array_equal(painting.mask(coarse, reduce="max").array, expected)
    kept = painting.mask(finest.coarser(64), reduce="max").array
    assert kept[1801 // 64, 2001 // 64]
    assert not painting.mask(finest.coarser(64)).array[1801 // 64, 2001 // 64]
    assert not kept[:, 40:].any(), "an outline without a pixel centre is no pixel at level 0 either"


def test_max_at_level_0_and_finer_is_the_centre_rule() -> None:
    painting = Painting.of([drawn(Role.TUMOUR, box(1.2, 1.2, 6.7, 5.1))])
    for downsample in (0.5, 1.0):
        frame = frame_of(20, 20, downsample=downsample)
        np.testing.assert_array_equal(painting.mask(frame, reduce="max").array, painting.mask(frame).array)
    with pytest.raises(ValueError, match="mean"):
        painting.mask(frame_of(2, 2), reduce="mean")  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(painted_shapes, st.sampled_from([0.5, 1.0, 1.7]), st.integers(2, 20))
def test_squares_without_an_edge_are_all_or_nothing(
    shapes: list[tuple[Role, Points]], downsample: float, factor: int
) -> None:
    painting = Painting.of([drawn(role, points) for role, points in shapes])
    frame = frame_of(5 * factor, 6 * factor, x=-20.4, y=-9.3, downsample=downsample)
    blocks = painting.mask(frame).array.reshape(5, factor, 6, factor)
    cover = painting.cover(frame.coarser(factor))
    assert np.all(blocks, axis=(1, 3))[cover == Cover.ALL].all()
    assert not np.any(blocks, axis=(1, 3))[cover == Cover.NONE].any()


def test_only_squares_with_an_edge_need_painting() -> None:
    # Level and upright edges of 400 px, with all vertices in the corners; a cut-out in the middle.
    shapes = [drawn(Role.TUMOUR, box(15, 15, 415, 415)), drawn(Role.CUT_OUT, box(105, 105, 295, 295))]
    cover = Painting.of(shapes).cover(frame_of(50, 50, downsample=10))
    expected = np.zeros((50, 50), dtype=int)
    expected[1:42, 1:42] = Cover.PART
    expected[2:41, 2:41] = Cover.ALL
    expected[10:30, 10:30] = Cover.PART
    expected[11:29, 11:29] = Cover.NONE
    np.testing.assert_array_equal(cover, expected)
    # A slanted edge passes the squares along it, not all in its bounding box.
    slanted = Painting.of([drawn(Role.TUMOUR, [(5, 5), (495, 485), (5, 485)])]).cover(frame_of(50, 50, downsample=10))
    assert (slanted == Cover.PART).sum() < 49 * 5


def exact_mask(outline: NDArray[np.float64], *, per_px: int, left: int, top: int, side: int) -> NDArray[np.bool_]:
    """The non-zero rule at pixel centres of level 0, in whole numbers; for vertices that are whole 1/per_px px."""
    scaled = np.rint((outline - (left, top)) * per_px).astype(np.int64)
    np.testing.assert_allclose(scaled / per_px + (left, top), outline, rtol=0, atol=1e-9)
    x = per_px // 2 + per_px * np.arange(side, dtype=np.int64)
    winding = np.zeros((side, side), dtype=np.int64)
    for (x0, y0), (x1, y1) in zip(scaled.tolist(), np.roll(scaled, -1, axis=0).tolist(), strict=True):
        low, high = ((y - per_px // 2 + per_px - 1) // per_px for y in sorted((y0, y1)))
        for row in range(max(0, low), min(side, high)):
            # Which side of the edge a centre lies on is the sign of a cross product.
            cross = (x1 - x0) * (per_px * row + per_px // 2 - y0) - (x - x0) * (y1 - y0)
            winding[row] += (cross <= 0) if y1 > y0 else -(cross >= 0).astype(np.int64)
    return np.asarray(winding != 0)


@pytest.mark.parametrize("count", [40, 3000])
def test_dense_crossing_outlines_have_no_wrong_pixel(count: int) -> None:
    generator = np.random.default_rng(count)
    steps = generator.integers(-90, 91, (count, 2)) if count > 100 else generator.integers(-1600, 1601, (count, 2))
    outline = (np.cumsum(steps, axis=0) % 4096) / 16 + (90_000, 200_000)
    for left, top in ((90_000, 200_000), (90_077, 200_131), (90_200, 199_950)):
        found = polygon_mask([outline], frame_of(128, 128, x=left, y=top)).array
        expected = exact_mask(outline, per_px=16, left=left, top=top, side=128)
        assert 0 < expected.sum() < expected.size
        np.testing.assert_array_equal(found, expected)


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
        # one that strays farther is cut
        (
            [(Role.TUMOUR, box(0, 0, 30, 20)), (Role.CUT_OUT, box(0, 0, 20, 20)), (Role.TUMOUR, box(12, 5, 21, 15))],
            200,
        ),
        # the same outline twice: cut out
        ([(Role.TUMOUR, box(0, 0, 10, 10)), (Role.CUT_OUT, box(0, 0, 10, 10))], 0),
        # a cut-out that takes most of a tumour outline and reaches over it
        ([(Role.TUMOUR, box(0, 0, 20, 20)), (Role.CUT_OUT, box(-1, -1, 15, 21))], 100),
        # what lies outside a cut-out is not its business; other roles are nobody's
        ([(Role.TUMOUR, box(0, 0, 5, 5)), (Role.CUT_OUT, box(6, 6, 9, 9)), (Role.TISSUE, box(0, 0, 30, 30))], 25),
        ([(Role.CUT_OUT, box(0, 0, 5, 5)), (Role.IGNORE, box(0, 0, 5, 5))], 0),
        # a cut-out around the very same pixels is no larger, wherever a spike without area sticks out
        ([(Role.TUMOUR, [(0, 8), (0, 17), (0, 0), (8, 0)]), (Role.CUT_OUT, [(0, 0), (0, 8), (8, 0)])], 0),
        ([(Role.TUMOUR, [(0, 8), (0, 0), (8, 0)]), (Role.CUT_OUT, [(0, 0), (0, 8), (17, -9), (8, 0)])], 0),
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


def test_a_sliver_without_a_pixel_of_its_own_grid_is_no_island() -> None:
    """That grid has 256 pixels along the sliver, so that its only row of centres lies at 1/512 of its length."""
    cut_out = drawn(Role.CUT_OUT, box(-10, -10, 600, 600))
    for height, cut_outs in ((0.9, 1), (1.1, 0)):
        (layer,) = layers([drawn(Role.TUMOUR, box(0, 0, 512, height)), cut_out])
        assert len(layer.cut_outs) == cut_outs


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
            tile = painting.mask(frame.part(Window(row=row, column=column, height=500, width=333))).array
            part = whole[row : row + 500, column : column + 333]
            np.testing.assert_array_equal(tile[: part.shape[0], : part.shape[1]], part)


@pytest.mark.parametrize("name", ["tumor_009", "tumor_085"])
def test_real_contours_have_no_wrong_pixel(real_data: Callable[[str], Path], name: str) -> None:
    # The files give decimals of a ten-thousandth of a pixel.
    annotations = read_asap(real_data(f"annotations/camelyon16/{name}.xml"))
    for annotation in sorted(annotations, key=lambda one: -len(one.vertices))[:3]:
        for x, y in annotation.vertices[:: len(annotation.vertices) // 6]:
            left, top = int(x) - 100, int(y) - 100
            expected = exact_mask(annotation.vertices, per_px=10_000, left=left, top=top, side=200)
            assert 0 < expected.sum() < expected.size
            found = polygon_mask([annotation.vertices], frame_of(200, 200, x=left, y=top)).array
            np.testing.assert_array_equal(found, expected)


def test_long_edges_through_pixel_centres_are_exact() -> None:
    # Every 7th row the first edge passes through a centre, a hundred thousand px from its ends.
    outline = np.array([(0.5, 0.5), (150_000.5, 210_000.5), (0.5, 210_000.5), (90_000.3125, 100_000.0625)])
    for left, top in ((49_930, 69_930), (44_930, 49_930), (44_930, 154_930)):
        expected = exact_mask(outline, per_px=16, left=left, top=top, side=150)
        assert 0 < expected.sum() < expected.size
        found = polygon_mask([outline], frame_of(150, 150, x=left, y=top)).array
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300_000), min_size=2, max_size=6, unique=True), st.integers(0, 70_000))
def test_slanted_edges_through_pixel_centres_are_exact(along: list[int], corner: int) -> None:
    # On a line of slope -1 each vertex has decimals that no binary fraction holds, but every 10,000th step is a centre.
    ends = [(corner + where / 10_000, corner + (300_000 - where) / 10_000) for where in along]
    outline = np.array([*ends, (corner + 30.25, corner + 29.5)])
    found = polygon_mask([outline], frame_of(32, 32, x=corner, y=corner)).array
    np.testing.assert_array_equal(found, exact_mask(outline, per_px=10_000, left=corner, top=corner, side=32))
