"""Lesions measured on polygons, against brute force over vertices and against pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from annotations.annotation import Annotation, Role
from annotations.files.asap import read_asap
from annotations.measures import measure_lesions
from annotations.painting import rasterize
from annotations.polygons import tumour_area
from staging.lesions.finding import lesions_of_mask
from wsi.geometry import Frame

Points = list[tuple[float, float]]


def drawn(points: Points, role: Role = Role.TUMOUR) -> Annotation:
    return Annotation(name="a", group="g", role=role, kind="Polygon", vertices=np.array(points, dtype=np.float64))


def box(left: float, top: float, width: float, height: float) -> Points:
    right, bottom = left + width, top + height
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


positions = st.integers(0, 1600).map(lambda value: value / 4)
triangles = st.lists(st.lists(st.tuples(positions, positions), min_size=3, max_size=5), max_size=6)


TOUCHING: list[Points] = [
    [(0, 0), (0, 0.25), (0.25, 0.5)],
    [(0, 0), (0.25, 0), (0.75, 0.25)],
    [(0, 0.25), (0, 0.5), (0.25, 0)],
    [(0, 0.25), (0.25, 0.25), (0.5, 0)],
    [(0, 0.25), (0.5, 1), (1.25, 0), (128, 0)],
]


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@example(TOUCHING, 0.0)
@given(triangles, st.sampled_from([0.0, 10.0, 75.0]))
def test_brute_force_finds_the_same(shapes: list[Points], gap: float) -> None:
    annotations = [drawn(points) for points in shapes]
    found = measure_lesions(annotations, mpp=0.5, merge_gap_um=gap, sliver_um=0)
    deposits = list(tumour_area(annotations).geoms)
    groups = [{index} for index in range(len(deposits))]
    for one in range(len(deposits)):
        for other in range(one):
            if shapely.distance(deposits[one], deposits[other]) * 0.5 <= gap:
                (first,) = (group for group in groups if one in group)
                (second,) = (group for group in groups if other in group)
                if first is not second:
                    groups.remove(second)
                    first |= second
    expected = []
    for group in groups:
        vertices = np.concatenate([shapely.get_coordinates(deposits[index]) for index in group])
        area = sum(deposits[index].area for index in group) * 0.25
        expected.append((pdist(vertices).max() * 0.5, area, len(group)))
    assert len(found) == len(expected)
    expected.sort(key=lambda one: (-one[0], -one[1]))
    for lesion, (diameter, area, parts) in zip(found, expected, strict=True):
        assert lesion.longest_diameter_um == pytest.approx(diameter)
        assert lesion.area_um2 == pytest.approx(area)
        assert lesion.parts == parts


@pytest.mark.parametrize(("gap_um", "count"), [(74.9, 1), (75.0, 1), (75.1, 2)])
def test_a_gap_of_75_um_still_joins(gap_um: float, count: int) -> None:
    mpp = 0.25
    parts = [drawn(box(0, 0, 400, 200)), drawn(box(400 + gap_um / mpp, 0, 80, 200))]
    found = measure_lesions(parts, mpp=mpp)
    assert len(found) == count
    width = (100 + gap_um + 20) if count == 1 else 100
    assert found[0].longest_diameter_um == pytest.approx(math.hypot(width, 50))
    assert sum(one.area_um2 for one in found) == pytest.approx(100 * 50 + 20 * 50)


def test_drawn_twice_counts_once() -> None:
    (once,), (twice,) = (measure_lesions([drawn(box(0, 0, 40, 20))] * times, mpp=1) for times in (1, 2))
    assert replace(once, geometry=once.geometry.normalize()) == replace(twice, geometry=twice.geometry.normalize())
    assert (once.area_um2, once.parts, once.centroid) == (800, 1, (20, 10))


def test_cut_outs_and_islands_count() -> None:
    annotations = [
        drawn(box(0, 0, 1000, 1000)),
        drawn(box(100, 100, 800, 800), Role.CUT_OUT),
        drawn(box(450, 450, 100, 100)),
    ]
    (far,) = measure_lesions(annotations, mpp=1, merge_gap_um=350)
    assert (far.parts, far.area_um2) == (2, 1_000_000 - 640_000 + 10_000)
    near = measure_lesions(annotations, mpp=1, merge_gap_um=349)
    assert [one.parts for one in near] == [1, 1]


def test_what_a_cut_out_leaves_at_the_edge_is_no_lesion() -> None:
    annotations = [drawn(box(0, 0, 1000, 1000)), drawn(box(0, 0, 997, 1000), Role.CUT_OUT)]
    assert measure_lesions(annotations, mpp=0.25) == ()
    (kept,) = measure_lesions(annotations, mpp=0.25, sliver_um=0)
    assert kept.longest_diameter_um == pytest.approx(250, rel=1e-3)
    assert len(measure_lesions([drawn(box(0, 0, 4.1, 400))], mpp=0.25)) == 1


def test_no_tumour_is_no_lesion() -> None:
    assert measure_lesions([], mpp=0.25) == ()
    assert measure_lesions([drawn(box(0, 0, 9, 9), Role.TISSUE)], mpp=0.25) == ()


@pytest.mark.parametrize("wrong", [{"mpp": 0}, {"mpp": math.nan}, {"mpp": 1, "merge_gap_um": -1}])
def test_absurd_distances_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"above 0|at least 0"):
        measure_lesions([], **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camelyon16/tumor_085", "camelyon16/tumor_009", "camelyon17/patient_004_node_4"])
def test_real_lesions_are_those_of_their_pixels(real_data: Callable[[str], Path], name: str) -> None:
    annotations = read_asap(real_data(f"annotations/{name}.xml"))
    mpp = 0.243
    found = measure_lesions(annotations, mpp=mpp)
    left, top, right, bottom = tumour_area(annotations).bounds
    step = max(right - left, bottom - top) / 3000
    shape = math.ceil((bottom - top) / step) + 2, math.ceil((right - left) / step) + 2
    frame = Frame(x=left - step, y=top - step, downsample=step, shape=shape, mpp=mpp)
    lesions, _ = lesions_of_mask(rasterize(annotations, frame))
    pixel_um = frame.pixel_um
    assert found[0].longest_diameter_um == pytest.approx(lesions[0].longest_diameter_um, abs=2 * pixel_um)
    total = sum(one.area_um2 for one in lesions)
    assert sum(one.area_um2 for one in found) == pytest.approx(total, rel=2e-3)
