"""Outlines as geometry: nothing drawn is lost, and pixels and polygons tell the same area."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import pdist

from annotations.annotation import Annotation, Role
from annotations.errors import OutsideSlideError
from annotations.files.asap import read_asap
from annotations.painting import polygon_mask, rasterize
from annotations.polygons import (
    BEYOND_EDGE_PX,
    check_within,
    longest_diameter,
    mask_to_polygons,
    to_geometry,
    tumour_area,
)
from wsi.geometry import Frame
from wsi.raster import Mask

Points = list[tuple[float, float]]


def drawn(points: Points, role: Role = Role.TUMOUR, kind: str = "Polygon") -> Annotation:
    return Annotation(
        name="a", group="g", role=role, kind=kind, vertices=np.array(points, dtype=np.float64).reshape(-1, 2)
    )


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def mask_of(array: NDArray[np.bool_], *, x: float = 0, y: float = 0, downsample: float = 1) -> Mask:
    return Mask(frame=Frame(x=x, y=y, downsample=downsample, shape=array.shape, mpp=0.25), array=array)


def test_a_bow_tie_keeps_both_halves() -> None:
    assert to_geometry(drawn([(0, 0), (10, 10), (10, 0), (0, 10)])).area == 50


def test_an_outline_over_itself_has_no_hole() -> None:
    twice = [*box(0, 0, 10, 10), (0, 0), *box(2, 2, 8, 8), (2, 2)]
    geometry = to_geometry(drawn([*twice]))
    assert geometry.is_valid
    assert geometry.area == 100
    assert shapely.make_valid(shapely.Polygon(twice)).area == 64  # what the non-zero rule is for


def test_a_pentagram_is_filled() -> None:
    star = [(math.cos(4 * math.pi * n / 5), math.sin(4 * math.pi * n / 5)) for n in range(5)]
    geometry = to_geometry(drawn(star))
    assert geometry.contains(shapely.Point(0, 0))
    assert geometry.area == pytest.approx(1.12257, abs=1e-4)


@pytest.mark.parametrize("points", [[], [(1, 1)], [(1, 1), (5, 5)], [(1, 1), (5, 5), (3, 3)], [(1, 1)] * 4])
def test_without_area_there_is_no_geometry(points: Points) -> None:
    assert to_geometry(drawn(points)).area == 0
    assert tumour_area([drawn(points)]).is_empty
    assert to_geometry(drawn(box(0, 0, 1, 1), kind="PointSet")).is_empty


positions = st.integers(0, 24).map(lambda value: value / 2 + 0.25)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(positions, positions), min_size=3, max_size=9))
def test_geometry_and_pixels_agree(points: Points) -> None:
    geometry = to_geometry(drawn(points))
    assert geometry.is_valid
    frame = Frame(x=0, y=0, downsample=0.25, shape=(52, 52), mpp=None)
    found = polygon_mask([np.array(points)], frame).array
    rows, columns = np.indices(frame.shape)
    centres = shapely.points(*frame.centres(rows, columns))
    ring = shapely.LineString([*points, points[0]])
    clear = shapely.distance(ring, centres) > 1e-6
    np.testing.assert_array_equal(found[clear], shapely.intersects(geometry, centres)[clear])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Role.TUMOUR, Role.CUT_OUT]), positions, positions, st.integers(1, 6), st.integers(1, 6)
        ),
        max_size=6,
    )
)
def test_tumour_area_is_what_is_rasterised(shapes: list[tuple[Role, float, float, int, int]]) -> None:
    annotations = [drawn(box(x, y, x + width, y + height), role) for role, x, y, width, height in shapes]
    area = tumour_area(annotations)
    assert area.is_valid
    mask = rasterize(annotations, Frame(x=0, y=0, downsample=0.25, shape=(80, 80), mpp=None))
    assert area.area == mask.array.sum() / 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camelyon16/tumor_085", "camelyon17/patient_004_node_4"])
def test_real_contours_have_the_area_of_their_pixels(real_data: Callable[[str], Path], name: str) -> None:
    annotations = read_asap(real_data(f"annotations/{name}.xml"))
    area = tumour_area(annotations)
    assert area.is_valid
    left, top, right, bottom = area.bounds
    step = max(right - left, bottom - top) / 3000
    shape = math.ceil((bottom - top) / step), math.ceil((right - left) / step)
    mask = rasterize(annotations, Frame(x=left, y=top, downsample=step, shape=shape, mpp=None))
    assert mask.array.sum() * step**2 == pytest.approx(area.area, rel=2e-3)


def test_the_real_area_of_patient_004(real_data: Callable[[str], Path]) -> None:
    annotations = read_asap(real_data("annotations/camelyon17/patient_004_node_4.xml"))
    assert tumour_area(annotations).area == pytest.approx(252_947, abs=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)), min_size=2, max_size=40))
def test_longest_diameter_is_the_largest_distance(points: Points) -> None:
    array = np.array(points)
    assert longest_diameter(array) == pytest.approx(pdist(array).max(), rel=1e-9, abs=1e-9)


def test_longest_diameter_of_a_point_and_of_none() -> None:
    assert longest_diameter(np.array([[3.0, 4.0]])) == 0
    with pytest.raises(ValueError, match="at least 1"):
        longest_diameter(np.empty((0, 2)))


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**30 - 1), st.sampled_from([(5, 6), (1, 30), (6, 5), (3, 10)]))
def test_mask_outlines_hold_exactly_the_pixels(bits: int, shape: tuple[int, int]) -> None:
    array = np.array([bits >> n & 1 for n in range(30)], dtype=bool).reshape(shape)
    polygons = mask_to_polygons(mask_of(array, x=-3, y=8, downsample=4))
    assert all(polygon.is_valid for polygon in polygons)
    assert sum(polygon.area for polygon in polygons) == array.sum() * 16
    assert len(polygons) == ndimage.label(array)[1]
    back = np.zeros(shape, dtype=bool)
    for polygon in polygons:
        rings = [np.array(ring.coords) for ring in (polygon.exterior, *polygon.interiors)]
        frame = Frame(x=-3, y=8, downsample=4, shape=shape, mpp=None)
        filled = polygon_mask(rings[:1], frame).array & ~polygon_mask(rings[1:], frame).array
        assert not (back & filled).any()
        back |= filled
    np.testing.assert_array_equal(back, array)


def test_mask_outlines_turn_only_at_corners() -> None:
    array = np.zeros((40, 60), dtype=bool)
    array[5:30, 10:50] = True
    array[10:20, 20:30] = False
    (polygon,) = mask_to_polygons(mask_of(array, x=100, y=200, downsample=2))
    assert polygon.bounds == (120, 210, 200, 260)
    assert len(polygon.exterior.coords) == 5
    assert [len(hole.coords) for hole in polygon.interiors] == [5]
    assert mask_to_polygons(mask_of(np.zeros((3, 3), dtype=bool))) == []


def test_what_lies_outside_the_slide_is_named() -> None:
    inside = drawn(box(-BEYOND_EDGE_PX, 0, 100 + BEYOND_EDGE_PX, 50))
    check_within([inside], 100, 50)
    for x, y in ((100 + BEYOND_EDGE_PX + 0.5, 7.0), (7.0, -BEYOND_EDGE_PX - 0.5)):
        points = [(5.0, 5.0), (x, y), (9.0, 9.0)]
        with pytest.raises(OutsideSlideError, match="outside the slide of 100 x 50 px") as caught:
            check_within([inside, drawn(points)], 100, 50, path="a.xml")
        assert caught.value.where == "annotation 1 ('a'), vertex 1"
        assert "a.xml" in str(caught.value)
    with pytest.raises(OutsideSlideError):
        check_within([inside], 100, 50, beyond_px=0)


@pytest.mark.parametrize("name", ["camelyon16/tumor_009", "camelyon16/tumor_085", "camelyon17/patient_004_node_4"])
def test_real_contours_lie_on_their_slides(real_data: Callable[[str], Path], name: str) -> None:
    annotations = read_asap(real_data(f"annotations/{name}.xml"))
    check_within(annotations, 97_792, 221_184)
    with pytest.raises(OutsideSlideError):
        check_within(annotations, 97_792 / 10, 221_184 / 10)
