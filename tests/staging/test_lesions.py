from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from staging.lesions.finding import Lesion, find_lesions, lesions_of_mask, measure_heatmap, measure_mask
from wsi.errors import ResolutionError
from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Mask

CELL_UM = 16.0
small_masks = arrays(np.bool_, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.booleans())


def frame_of(shape: tuple[int, int], *, x: float = 0.0, y: float = 0.0, mpp: float | None = 0.25) -> Frame:
    return Frame(x=x, y=y, downsample=64.0, shape=shape, mpp=mpp)


def heatmap_of(values: NDArray[np.floating]) -> Heatmap:
    tissue = np.ones(values.shape, dtype=bool)
    return Heatmap(frame=frame_of(values.shape), array=values.astype(np.float32), tissue=tissue)


def mask_of(array: NDArray[np.bool_]) -> Mask:
    return Mask(frame=frame_of(array.shape), array=array)


def test_single_cell() -> None:
    array = np.zeros((5, 7), dtype=bool)
    array[2, 3] = True
    (lesion,), (mask,) = lesions_of_mask(mask_of(array))
    assert lesion.longest_diameter_um == pytest.approx(CELL_UM)
    assert lesion.area_um2 == pytest.approx(CELL_UM**2)
    assert lesion.centroid == (3.5 * 64, 2.5 * 64)
    assert (lesion.region.x, lesion.region.y, lesion.region.width, lesion.region.height) == (192, 128, 64, 64)
    assert lesion.probability == 1.0
    assert mask.array.tolist() == [[True]]


def test_a_row_of_cells_is_as_long_as_its_cells_also_at_the_edge() -> None:
    array = np.ones((1, 125), dtype=bool)
    (lesion,), _ = lesions_of_mask(mask_of(array))
    assert lesion.longest_diameter_um == 2000.0


def test_outline_is_interpolated_at_the_threshold() -> None:
    values = np.array([[0.0, 0.2, 0.8, 0.9, 0.4, 0.0]])
    (lesion,), _ = find_lesions(heatmap_of(values), threshold=0.5)
    left, right = 2 - (0.8 - 0.5) / (0.8 - 0.2), 3 + (0.9 - 0.5) / (0.9 - 0.4)
    assert lesion.longest_diameter_um == pytest.approx((right - left) * CELL_UM, rel=1e-5)
    assert lesion.probability == pytest.approx(0.9)


def test_the_threshold_itself_is_tumour() -> None:
    values = np.array([[0.0, 0.7, 0.7, 0.0]])
    (lesion,), _ = find_lesions(heatmap_of(values), threshold=0.7)
    assert lesion.area_um2 == pytest.approx(2 * CELL_UM**2)
    assert lesion.longest_diameter_um == pytest.approx(CELL_UM, rel=1e-5)


def test_nothing_found() -> None:
    assert find_lesions(heatmap_of(np.full((4, 4), 0.3)), threshold=0.5) == ((), ())
    assert lesions_of_mask(mask_of(np.zeros((3, 3), dtype=bool))) == ((), ())


def test_bad_arguments() -> None:
    heatmap = heatmap_of(np.zeros((2, 2)))
    for threshold in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="threshold"):
            find_lesions(heatmap, threshold=threshold)
    with pytest.raises(ValueError, match="gap"):
        find_lesions(heatmap, threshold=0.5, merge_gap_um=-1.0)
    with pytest.raises(ResolutionError):
        lesions_of_mask(Mask(frame=frame_of((2, 2), mpp=None), array=np.ones((2, 2), dtype=bool)))


@pytest.mark.parametrize(("empty_cells", "lesions"), [(0, 1), (4, 1), (5, 2)])
def test_gap_is_measured_from_edge_to_edge(empty_cells: int, lesions: int) -> None:
    array = np.zeros((3, 40), dtype=bool)
    array[1, 10] = array[1, 11 + empty_cells] = True
    found, masks = lesions_of_mask(mask_of(array), merge_gap_um=75.0)
    assert len(found) == lesions
    if lesions == 1:
        assert found[0].longest_diameter_um == pytest.approx((empty_cells + 2) * CELL_UM)
        assert found[0].area_um2 == pytest.approx(2 * CELL_UM**2)
        assert masks[0].array.sum() == 2


def test_a_gap_of_exactly_the_limit_is_merged() -> None:
    array = np.zeros((1, 12), dtype=bool)
    array[0, 2] = array[0, 7] = True
    assert len(lesions_of_mask(mask_of(array), merge_gap_um=64.0)[0]) == 1
    assert len(lesions_of_mask(mask_of(array), merge_gap_um=63.9)[0]) == 2


@settings(deadline=None, max_examples=150)
@given(small_masks, st.sampled_from([0.0, 1.0, 1.5, 2.0, 2.3, 4.6875, 5.0]))
def test_components_and_gaps_agree_with_brute_force(array: NDArray[np.bool_], gap_cells: float) -> None:
    found, masks = lesions_of_mask(mask_of(array), merge_gap_um=gap_cells * CELL_UM)
    ours = {frozenset((int(r), int(c)) for r, c in np.argwhere(mask.array) + offset_of(mask)) for mask in masks}
    assert ours == brute_force_groups(array, gap_cells)
    assert sum(lesion.area_um2 for lesion in found) == pytest.approx(array.sum() * CELL_UM**2)


def offset_of(mask: Mask) -> tuple[int, int]:
    return round(mask.frame.y / 64), round(mask.frame.x / 64)


def brute_force_groups(array: NDArray[np.bool_], gap: float) -> set[frozenset[tuple[int, int]]]:
    left = {(int(row), int(column)) for row, column in np.argwhere(array)}
    groups = set()
    while left:
        group, waiting = set(), [left.pop()]
        while waiting:
            here = waiting.pop()
            group.add(here)
            near = {
                one
                for one in left
                if np.hypot(max(0, abs(one[0] - here[0]) - 1), max(0, abs(one[1] - here[1]) - 1)) <= gap
            }
            left -= near
            waiting += near
        groups.add(frozenset(group))
    return groups


@settings(deadline=None, max_examples=100)
@given(small_masks)
def test_diameter_agrees_with_brute_force(array: NDArray[np.bool_]) -> None:
    found, _ = lesions_of_mask(mask_of(array), merge_gap_um=1e4)
    padded = np.pad(array, 1)
    points = [
        (row + down / 2, column + aside / 2)
        for row, column in np.argwhere(padded)
        for down, aside in ((1, 0), (-1, 0), (0, 1), (0, -1))
        if not padded[row + down, column + aside]
    ]
    assert len(found) == int(array.any())
    if found:
        at = np.array(points)
        longest = np.sqrt(((at[:, np.newaxis] - at) ** 2).sum(axis=2)).max()
        assert found[0].longest_diameter_um == pytest.approx(longest * CELL_UM)


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(0, 1, width=32)),
    st.integers(0, 3),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_turning_and_shifting_changes_no_size(values: NDArray[np.float32], turns: int, shift: tuple[int, int]) -> None:
    moved = np.pad(np.rot90(values, turns), ((shift[0], 2), (shift[1], 3)))
    before, _ = find_lesions(heatmap_of(values), threshold=0.5)
    after, _ = find_lesions(heatmap_of(moved), threshold=0.5)
    assert sizes(after) == pytest.approx(sizes(before))


def sizes(lesions: tuple[Lesion, ...]) -> list[float]:
    return sorted([one.longest_diameter_um for one in lesions] + [one.area_um2 for one in lesions])


def test_places_are_level_0_pixels() -> None:
    values = np.zeros((6, 6))
    values[2:4, 3:6] = 0.9
    heatmap = heatmap_of(values)
    moved = Heatmap(
        frame=Frame(x=1000.5, y=-20.0, downsample=64.0, shape=(6, 6), mpp=0.25),
        array=heatmap.array,
        tissue=heatmap.tissue,
    )
    (lesion,), (mask,) = find_lesions(moved, threshold=0.5)
    assert lesion.centroid == (1000.5 + 4.5 * 64, -20.0 + 3 * 64)
    assert mask.frame == moved.frame.part(Window(row=2, column=3, height=2, width=3))
    assert lesion.region == mask.frame.region


def test_largest_first_and_masks_in_the_same_order() -> None:
    array = np.zeros((30, 60), dtype=bool)
    array[2, 2:4] = array[10, 20:29] = array[25, 50:55] = array[2, 40:45] = True
    found, masks = lesions_of_mask(mask_of(array), merge_gap_um=0.0)
    assert [int(mask.array.sum()) for mask in masks] == [9, 5, 5, 2]
    assert [lesion.region.y // 64 for lesion in found] == [10, 2, 25, 2]


@pytest.mark.parametrize("with_holes_filled", [False, True])
def test_a_lesion_exactly_of_the_smallest_size_is_kept(*, with_holes_filled: bool) -> None:
    array = np.zeros((9, 12), dtype=bool)
    array[4, 3:8] = True
    heatmap, frame = heatmap_of(array), frame_of(array.shape)
    for smallest_um, kept in ((5 * CELL_UM, 1), (np.nextafter(5 * CELL_UM, 999), 0)):
        options: dict[str, Any] = {"smallest_um": float(smallest_um), "with_holes_filled": with_holes_filled}
        assert len(measure_mask([array], frame, **options)) == kept
        shapes, masks = measure_heatmap(heatmap, threshold=0.5, **options)
        assert len(shapes) == len(masks) == kept


def test_without_limits_every_lesion_is_kept() -> None:
    """Cells whose outline has no length, and probabilities as low as a threshold can be."""
    values = np.zeros((5, 5))
    values[2, 2] = 0.05
    for find in (find_lesions, measure_heatmap):
        lesions, _ = find(heatmap_of(values), threshold=float(np.float32(0.05)))
        assert [lesion.longest_diameter_um for lesion in lesions] == [0.0]
    (lesion,) = measure_mask([np.ones((1, 1), bool)], Frame(x=0, y=0, downsample=1, shape=(1, 1), mpp=0.05))
    assert lesion.longest_diameter_um == 0.05


def test_small_and_faint_lesions_are_dropped_after_merging() -> None:
    values = np.zeros((20, 40))
    values[3, 3] = values[3, 5] = 0.8
    values[15, 30] = 0.6
    heatmap = heatmap_of(values)
    assert len(find_lesions(heatmap, threshold=0.5)[0]) == 2
    assert len(find_lesions(heatmap, threshold=0.5, smallest_um=2 * CELL_UM)[0]) == 1
    assert len(find_lesions(heatmap, threshold=0.5, peak=0.7)[0]) == 1
    assert find_lesions(heatmap, threshold=0.5, peak=0.9)[0] == ()


def disc_shares(diameter: float, offset: tuple[float, float]) -> NDArray[np.float64]:
    """Share of each cell that a disc covers, in cells, from 8 x 8 samples."""
    size = int(diameter) + 10
    at = (np.arange(size * 8) + 0.5) / 8 - size / 2
    y, x = np.meshgrid(at + offset[0], at + offset[1], indexing="ij")
    shares: NDArray[np.float64] = (x * x + y * y <= diameter**2 / 4).reshape(size, 8, size, 8).mean(axis=(1, 3))
    return shares


@pytest.mark.parametrize("peak", [0.75, float(np.float32(0.9)), 1.0])
def test_a_lesion_exactly_at_the_peak_is_kept(peak: float) -> None:
    heatmap = heatmap_of(np.array([[0.0, peak, 0.6]]))
    (lesion,), _ = find_lesions(heatmap, threshold=0.5, peak=peak)
    assert lesion.probability == peak
    above = float(np.nextafter(np.float32(peak), np.float32(2)))
    assert find_lesions(heatmap, threshold=0.5, peak=above)[0] == ()


@pytest.mark.parametrize("diameter", [3.0, 6.0, 12.5, 25.0, 60.0])
def test_discs_are_measured_without_bias(diameter: float) -> None:
    rng = np.random.default_rng(7)
    errors = []
    coarse = []
    for _ in range(12):
        shares = disc_shares(diameter, tuple(rng.uniform(-0.5, 0.5, 2)))
        (lesion,), _ = find_lesions(heatmap_of(shares), threshold=0.5)
        errors.append(lesion.longest_diameter_um / CELL_UM - diameter)
        (lesion,), _ = lesions_of_mask(mask_of(shares >= 0.5))
        coarse.append(lesion.longest_diameter_um / CELL_UM - diameter)
    assert abs(np.mean(errors)) < 0.2
    assert np.std(errors) < 0.1
    assert abs(np.mean(errors)) < abs(np.mean(coarse)) + 0.05
    assert 0 < np.mean(coarse) < 1.1


def test_diameter_lies_within_the_shape_it_outlines() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 8))
        radii = rng.uniform(6, 12, 8)
        shape = shapely.Polygon(np.c_[16 + radii * np.cos(angles), 16 + radii * np.sin(angles)])
        y, x = np.mgrid[:32, :32] + 0.5
        (lesion, *_), _ = lesions_of_mask(mask_of(shapely.contains_xy(shape, x, y)))
        corners = shapely.get_coordinates(shape)
        truth = max(float(np.hypot(*(corners - one).T).max()) for one in corners)
        assert truth - 4 < lesion.longest_diameter_um / CELL_UM < truth + 1


def test_lesions_of_one_diameter_come_by_area_then_from_the_top_and_from_the_left() -> None:
    cells = np.zeros((60, 60), np.float32)
    for row, column, height in ((30, 20, 1), (10, 45, 1), (10, 25, 1), (45, 10, 3)):
        cells[row : row + height, column : column + 9] = 1
    cells[45:48, 10:19] = [[0, 1, 1, 1, 1, 1, 1, 1, 0], [1] * 9, [0, 1, 1, 1, 1, 1, 1, 1, 0]]
    frame = Frame(x=0, y=0, downsample=1, shape=cells.shape, mpp=1.0)
    heatmap = Heatmap(frame=frame, array=cells, tissue=cells >= 0)
    lesions, _ = find_lesions(heatmap, threshold=0.5, merge_gap_um=1.0)
    assert len({lesion.longest_diameter_um for lesion in lesions}) == 1
    assert [lesion.area_um2 for lesion in lesions] == [23, 9, 9, 9]
    assert [(lesion.region.y, lesion.region.x) for lesion in lesions] == [(45, 10), (10, 25), (10, 45), (30, 20)]
