"""The curve of a Spline against ASAP's own formula, evaluated densely."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.files.asap import read_asap
from annotations.polygons import to_geometry
from annotations.splines import TOLERANCE_PX, flatten

positions = st.floats(0, 5000)
outlines = st.lists(st.tuples(positions, positions), min_size=3, max_size=8, unique=True).map(np.array)


def asap_curve(vertices: NDArray[np.float64], steps: int = 400) -> NDArray[np.float64]:
    """PolyQtAnnotation::getCurrentPath of a closed spline, vertex by vertex."""
    count = len(vertices)
    pieces = []
    for index in range(count):
        p1, p2 = vertices[index], vertices[(index + 1) % count]
        p0 = vertices[index - 1] if index < count - 1 else p1 - (p2 - p1)
        p3 = p2 + (p2 - p1) if index == count - 2 else vertices[(index + 2) % count]
        d1, d2, d3 = math.dist(p1, p0), math.dist(p2, p1), math.dist(p3, p2)
        r1, r2, r3 = math.sqrt(d1), math.sqrt(d2), math.sqrt(d3)
        b1 = (d1 * p2 - d2 * p0 + (2 * d1 + 3 * r1 * r2 + d2) * p1) / (3 * r1 * (r1 + r2))
        b2 = (d3 * p1 - d2 * p3 + (2 * d3 + 3 * r3 * r2 + d2) * p2) / (3 * r3 * (r3 + r2))
        t = np.linspace(0, 1, steps, endpoint=False)[:, None]
        pieces.append((1 - t) ** 3 * p1 + 3 * (1 - t) ** 2 * t * b1 + 3 * (1 - t) * t**2 * b2 + t**3 * p2)
    return np.concatenate(pieces)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(outlines, st.sampled_from([0.25, 2.0, 30.0]))
def test_the_polygon_lies_within_the_tolerance(vertices: NDArray[np.float64], tolerance: float) -> None:
    if min(math.dist(one, other) for one, other in zip(vertices, np.roll(vertices, 1, axis=0), strict=True)) < 1e-3:
        return
    found = flatten(vertices, tolerance)
    ring = shapely.linestrings(np.vstack([found, found[:1]]))
    distances = shapely.distance(ring, shapely.points(asap_curve(vertices)))
    assert distances.max() <= tolerance + 1e-6
    assert {tuple(point) for point in vertices} <= {tuple(point) for point in found}


def test_points_on_a_circle_give_nearly_its_area() -> None:
    angle = np.arange(24) * (2 * math.pi / 24)
    circle = 1000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    curve, polygon = shapely.Polygon(flatten(circle)).area, shapely.Polygon(circle).area
    truth = math.pi * 1000**2
    assert abs(curve - truth) < 0.1 * abs(polygon - truth)


def test_straight_pieces_need_no_further_points() -> None:
    line = np.array([(0.0, 0.0), (10.0, 0.0), (20.0, 0.0), (30.0, 0.0), (30.0, 30.0), (0.0, 30.0)])
    found = flatten(line).tolist()
    assert found[found.index([10.0, 0.0]) + 1] == [20.0, 0.0]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_points_are_no_curve(count: int) -> None:
    points = np.arange(2 * count, dtype=np.float64).reshape(-1, 2)
    assert len(flatten(np.repeat(points, 3, axis=0))) <= count
    with pytest.raises(ValueError, match="above 0"):
        flatten(points, 0)


def test_repeated_points_count_once() -> None:
    points = np.array([(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 90.0)])
    doubled = np.vstack([np.repeat(points, 2, axis=0), points[:1]])
    np.testing.assert_array_equal(flatten(doubled), flatten(points))
    assert np.isfinite(flatten(np.array([(0, 0), (5e-324, 0), (1, 0), (1, 1e-300), (0, 1)], dtype=np.float64))).all()


@pytest.mark.slow
def test_hostile_points_take_bounded_memory() -> None:
    zigzag = np.zeros((200_000, 2))
    zigzag[::2] = 1e9
    zigzag[:, 1] += np.arange(200_000)
    assert len(flatten(zigzag)) < 5_000_000


def test_an_annotation_takes_the_curve() -> None:
    square = np.array([(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)])
    spline = Annotation(name="a", group="Tumor", role=Role.TUMOUR, kind="Spline", vertices=square)
    assert spline.outline is not None
    np.testing.assert_array_equal(spline.outline, flatten(square, TOLERANCE_PX))
    assert to_geometry(spline).area > 10_500
    assert to_geometry(replace(spline, kind="Polygon")).area == 10_000
    assert replace(spline, vertices=square[:2]).outline is None
    assert replace(spline, vertices=np.zeros((5, 2))).outline is None


@pytest.mark.slow
def test_real_splines_are_dense(real_data: Callable[[str], Path]) -> None:
    for annotation in read_asap(real_data("annotations/camelyon16/tumor_009.xml")):
        assert annotation.kind == "Spline"
        straight = replace(annotation, kind="Polygon")
        assert to_geometry(annotation).area == pytest.approx(to_geometry(straight).area, rel=3e-4)
