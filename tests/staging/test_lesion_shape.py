from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from annotations.annotation import Annotation, Role
from annotations.measures import measure_lesions
from staging.lesions import shape as lesion_shape
from staging.lesions.components import bands_of
from staging.lesions.finding import as_lesion, find_lesions, lesions_of_mask, measure_heatmap, measure_mask
from staging.lesions.shape import LesionShape, measure_polygons
from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Mask

CELL_UM = 2.0
masks = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.booleans())


def frame_of(shape: tuple[int, int]) -> Frame:
    return Frame(x=100.0, y=-40.0, downsample=8.0, shape=shape, mpp=CELL_UM / 8)


def measured(mask: NDArray[np.bool_], *, gap_cells: float = 0.0, holes: bool = False) -> tuple[LesionShape, ...]:
    return measure_mask([mask], frame_of(mask.shape), merge_gap_um=gap_cells * CELL_UM, with_holes_filled=holes)


def outline_length(mask: NDArray[np.bool_]) -> float:
    """The estimator, step by step as it is defined: on the whole picture with scipy."""
    border = mask & ~ndimage.binary_erosion(mask, border_value=0)
    weights = np.array([[10, 2, 10], [2, 1, 2], [10, 2, 10]])
    codes = ndimage.convolve(border.astype(int), weights, mode="constant")[border]
    diagonal = math.sqrt(2)
    lengths = dict.fromkeys((5, 7, 15, 17, 25, 27), 1.0) | dict.fromkeys((21, 33), diagonal)
    lengths |= dict.fromkeys((13, 23), (1 + diagonal) / 2)
    return sum(lengths.get(int(code), 0.0) for code in codes)


@settings(deadline=None, max_examples=100)
@given(mask=masks, holes=st.booleans())
def test_features_agree_with_their_definitions(mask: NDArray[np.bool_], *, holes: bool) -> None:
    filled = ndimage.binary_fill_holes(mask) if holes else mask
    labels, count = ndimage.label(filled, structure=np.ones((3, 3)))
    found = measured(mask, holes=holes)
    assert len(found) == count
    cells = {one.region: one for one in found}
    for number in range(1, count + 1):
        own = labels == number
        rows, columns = np.nonzero(own)
        frame = frame_of(mask.shape)
        box = frame.part(
            Window(
                row=int(rows.min()),
                column=int(columns.min()),
                height=int(np.ptp(rows)) + 1,
                width=int(np.ptp(columns)) + 1,
            )
        ).region
        candidates = [one for one in found if one.region == box]
        assert candidates
        if len(candidates) > 1:
            continue
        one = cells[box]
        squares = shapely.union_all(shapely.box(columns, rows, columns + 1, rows + 1))
        assert one.area_um2 == pytest.approx(squares.area * CELL_UM**2)
        assert one.solidity == pytest.approx(squares.area / squares.convex_hull.area)
        assert one.extent == pytest.approx(squares.area / squares.envelope.area)
        assert one.perimeter_um == pytest.approx(outline_length(own) * CELL_UM)
        moments = np.cov(np.stack([columns, rows]), ddof=0).reshape(2, 2) + np.eye(2) / 12
        minor, major = 4 * np.sqrt(np.linalg.eigvalsh(moments))
        assert one.major_axis_um == pytest.approx(major * CELL_UM)
        assert one.minor_axis_um == pytest.approx(minor * CELL_UM)
        assert one.eccentricity == pytest.approx(math.sqrt(max(0, 1 - (minor / major) ** 2)), abs=1e-6)
        x, y = frame.centres(rows, columns)
        assert one.centroid == pytest.approx((x.mean(), y.mean()))


@settings(deadline=None, max_examples=60)
@given(mask=masks, band_rows=st.integers(1, 15), gap=st.sampled_from([0.0, 2.0, 4.7]), holes=st.booleans())
def test_features_do_not_depend_on_the_bands(
    mask: NDArray[np.bool_], band_rows: int, gap: float, *, holes: bool
) -> None:
    cut = measure_mask(
        bands_of(mask, band_rows=band_rows),
        frame_of(mask.shape),
        merge_gap_um=gap * CELL_UM,
        with_holes_filled=holes,
    )
    assert cut == measured(mask, gap_cells=gap, holes=holes)


@settings(deadline=None, max_examples=60)
@given(masks, st.sampled_from([0.0, 2.0, 75.0]))
def test_a_mask_of_any_size_gives_the_lesions_of_the_whole(mask: NDArray[np.bool_], gap_um: float) -> None:
    frame = frame_of(mask.shape)
    whole, _ = lesions_of_mask(Mask(frame=frame, array=mask), merge_gap_um=gap_um)
    assert tuple(as_lesion(one) for one in measure_mask([mask], frame, merge_gap_um=gap_um)) == whole


@settings(deadline=None, max_examples=60)
@given(masks)
def test_turning_a_mask_changes_no_feature(mask: NDArray[np.bool_]) -> None:
    def sizes(array: NDArray[np.bool_]) -> list[tuple[float, ...]]:
        return sorted(
            (
                round(one.area_um2, 6),
                round(one.longest_diameter_um, 6),
                round(one.perimeter_um, 6),
                round(one.major_axis_um, 6),
                round(one.solidity, 6),
                round(one.extent, 6),
            )
            for one in measured(array)
        )

    for turned in (np.rot90(mask), mask[::-1], mask.T):
        assert np.allclose(sizes(turned), sizes(mask), atol=2e-6)


def test_known_values_of_a_rectangle() -> None:
    mask = np.zeros((9, 20), dtype=np.bool_)
    mask[2:6, 3:15] = True
    (one,) = measured(mask)
    assert one.major_axis_um == pytest.approx(4 * math.sqrt(12**2 / 12) * CELL_UM)
    assert one.minor_axis_um == pytest.approx(4 * math.sqrt(4**2 / 12) * CELL_UM)
    # regionprops' perimeter runs through the centres of the outline's cells
    assert one.perimeter_um == pytest.approx(2 * (11 + 3) * CELL_UM)
    assert (one.extent, one.solidity, one.deposits) == (1.0, 1.0, 1)
    assert (one.region.x, one.region.y, one.region.width, one.region.height) == (124, -24, 96, 32)


def test_a_disc_of_cells_and_its_polygon_measure_alike() -> None:
    rows, columns = np.mgrid[:120, :120] + 0.5
    ellipse = ((rows - 60) / 40) ** 2 + ((columns - 60) / 50) ** 2 <= 1
    hole = (rows - 60) ** 2 + (columns - 60) ** 2 <= 15**2
    (cells,) = measured(ellipse & ~hole)
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    drawn = [
        outline("tumour", Role.TUMOUR, 60 + circle * (50, 40)),
        outline("hole", Role.CUT_OUT, 60 + circle[::-1] * 15),
    ]
    (polygon,) = measure_polygons(measure_lesions(drawn, mpp=CELL_UM), mpp=CELL_UM)
    for name in ("area_um2", "major_axis_um", "minor_axis_um", "longest_diameter_um", "solidity", "extent"):
        assert getattr(cells, name) == pytest.approx(getattr(polygon, name), rel=0.03), name
    assert cells.eccentricity == pytest.approx(polygon.eccentricity, abs=0.01)
    assert cells.perimeter_um == pytest.approx(polygon.perimeter_um, rel=0.08)
    ((solid,)) = measured(ellipse & ~hole, holes=True)
    assert solid.area_um2 == pytest.approx(ellipse.sum() * CELL_UM**2)
    assert solid.major_axis_um == pytest.approx(100 * CELL_UM, rel=0.01)
    assert solid.perimeter_um < cells.perimeter_um - 1.8 * np.pi * 15 * CELL_UM


def outline(name: str, role: Role, vertices: NDArray[np.float64]) -> Annotation:
    return Annotation(name=name, group=name, role=role, kind="Polygon", vertices=vertices)


def test_polygon_moments_are_those_of_its_cells_exactly() -> None:
    corners = np.array([(3.0, 2.0), (15.0, 2.0), (15.0, 4.0), (7.0, 4.0), (7.0, 9.0), (3.0, 9.0)])
    mask = np.zeros((12, 20), dtype=np.bool_)
    mask[2:4, 3:15] = mask[4:9, 3:7] = True
    (cells,) = measured(mask)
    for ring in (corners, corners[::-1]):
        lesions = measure_lesions([outline("one", Role.TUMOUR, ring)], mpp=CELL_UM, sliver_um=0.0)
        (polygon,) = measure_polygons(lesions, mpp=CELL_UM)
        for name in ("area_um2", "major_axis_um", "minor_axis_um", "eccentricity", "solidity", "extent"):
            assert getattr(cells, name) == pytest.approx(getattr(polygon, name)), name
        assert polygon.perimeter_um == pytest.approx(2 * (12 + 7) * CELL_UM)


def test_probabilities_of_a_heatmap() -> None:
    values = np.zeros((6, 9), dtype=np.float32)
    values[1:4, 1:4] = 0.8
    values[2, 2] = 0.1
    values[1, 7] = 0.6
    heatmap = Heatmap(frame=frame_of((6, 9)), array=values, tissue=np.ones((6, 9), dtype=np.bool_))
    for holes, area in ((False, 8), (True, 9)):
        shapes, found = measure_heatmap(heatmap, threshold=0.5, merge_gap_um=0.0, with_holes_filled=holes)
        ring, dot = shapes
        assert (ring.probability_max, ring.probability_min) == pytest.approx((0.8, 0.8))
        assert ring.probability_mean == pytest.approx(0.8)
        assert ring.area_um2 == area * CELL_UM**2
        assert dot.probability_mean == pytest.approx(0.6)
        assert found[0].array.sum() == area
    ((merged,), _) = measure_heatmap(heatmap, threshold=0.5, merge_gap_um=3 * CELL_UM)
    assert merged.deposits == 2
    assert merged.probability_min == pytest.approx(0.6)
    assert merged.probability_mean == pytest.approx((8 * 0.8 + 0.6) / 9)
    lesions, _ = find_lesions(heatmap, threshold=0.5, merge_gap_um=3 * CELL_UM)
    assert lesions == (as_lesion(merged),)


def test_outlines_in_parts_are_outlines_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = ndimage.gaussian_filter(np.random.default_rng(3).random((80, 90)), 2) > 0.5
    before = measured(mask, gap_cells=3.0)
    monkeypatch.setattr(lesion_shape, "_SPANS_AT_ONCE", 11)
    monkeypatch.setattr(lesion_shape, "_POINTS_AT_ONCE", 2)
    after = measured(mask, gap_cells=3.0)
    assert [one.longest_diameter_um for one in after] == [one.longest_diameter_um for one in before]
    assert sum(one.perimeter_um for one in after) == pytest.approx(sum(one.perimeter_um for one in before))
    assert [one.perimeter_um for one in after] == pytest.approx([one.perimeter_um for one in before])


def test_bands_must_make_up_the_frame() -> None:
    with pytest.raises(ValueError, match="the bands have shape"):
        measure_mask([np.zeros((2, 3), dtype=np.bool_)], frame_of((3, 3)))
