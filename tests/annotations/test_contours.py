"""From pixels back to outlines: valid, in the right place, with the area of the pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from annotations.contours import heatmap_to_polygons, mask_to_smooth_polygons, polygon_annotations
from annotations.files.asap import read_asap, write_asap
from annotations.files.formats import read_annotations, write_annotations
from annotations.polygons import tumour_area
from wsi.geometry import Frame
from wsi.raster import Heatmap, Mask


def heatmap_of(values: NDArray[np.float32], **where: float) -> Heatmap:
    frame = Frame(**{"x": 0, "y": 0, "downsample": 1, **where}, shape=values.shape, mpp=0.25)
    return Heatmap(frame=frame, array=values, tissue=np.ones(values.shape, dtype=np.bool_))


def mask_of(array: NDArray[np.bool_]) -> Mask:
    return Mask(frame=Frame(x=-3, y=8, downsample=4, shape=array.shape, mpp=None), array=array)


def shares_of_disc(radius: float, x: float, y: float, size: int, parts: int = 16) -> NDArray[np.float32]:
    """Of each cell the share that lies in a disc."""
    positions = (np.arange(size * parts) + 0.5) / parts
    inside = (positions[None] - x) ** 2 + (positions[:, None] - y) ** 2 <= radius**2
    shares: NDArray[np.float32] = inside.reshape(size, parts, size, parts).mean(axis=(1, 3)).astype(np.float32)
    return shares


def test_one_cell_is_a_diamond_where_its_neighbours_say() -> None:
    (diamond,) = heatmap_to_polygons(heatmap_of(np.array([[1.0]], dtype=np.float32), x=100, y=50, downsample=8), 0.5)
    assert diamond.equals(shapely.Polygon([(104, 50), (108, 54), (104, 58), (100, 54)]))
    (diamond,) = heatmap_to_polygons(heatmap_of(np.array([[1.0]], dtype=np.float32)), 0.75)
    assert diamond.bounds == pytest.approx((0.25, 0.25, 0.75, 0.75))
    row = np.array([[0.2, 1.0, 0.6, 0.0]], dtype=np.float32)
    (found,) = heatmap_to_polygons(heatmap_of(row), 0.4)
    assert found.bounds[0] == pytest.approx(0.5 + 0.2 / 0.8)
    assert found.bounds[2] == pytest.approx(2.5 + 0.2 / 0.6)


values = st.sampled_from([0.0, 0.2, 0.5, 0.5, 0.75, 1.0])


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)).flatmap(
        lambda n: st.lists(values, min_size=49, max_size=49).map(
            lambda flat: np.array(flat[: n[0] * n[1]], dtype=np.float32).reshape(n)
        )
    )
)
def test_polygons_hold_the_centres_at_or_above_the_level(array: NDArray[np.float32]) -> None:
    heatmap = heatmap_of(array, x=3, y=-5, downsample=2.5)
    polygons = heatmap_to_polygons(heatmap, 0.5)
    assert all(polygon.is_valid and polygon.area > 0 for polygon in polygons)
    together = shapely.union_all(polygons)
    assert together.area == pytest.approx(sum(polygon.area for polygon in polygons))
    centres = shapely.points(*heatmap.frame.centres(*np.indices(array.shape)))
    np.testing.assert_array_equal(shapely.intersects(together, centres), array >= 0.5)
    corners = [polygon.bounds[1::-1] for polygon in polygons]
    assert corners == sorted(corners)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**30 - 1), st.sampled_from([(5, 6), (1, 30), (6, 5), (3, 10)]))
def test_the_area_of_a_mask_is_kept_to_half_a_pixel_an_outline(bits: int, shape: tuple[int, int]) -> None:
    array = np.array([bits >> n & 1 for n in range(30)], dtype=bool).reshape(shape)
    polygons = mask_to_smooth_polygons(mask_of(array))
    holes = sum(len(polygon.interiors) for polygon in polygons)
    assert len(polygons) == ndimage.label(array, structure=np.ones((3, 3)))[1]
    assert holes == ndimage.label(np.pad(~array, 1, constant_values=True))[1] - 1
    area = sum(polygon.area for polygon in polygons) / 16
    assert area == pytest.approx(array.sum() - 0.5 * (len(polygons) - holes))


@pytest.mark.parametrize(("radius", "error"), [(3, 0.05), (5, 0.025), (10, 0.006), (20, 0.0015)])
def test_the_area_of_a_disc_is_kept(radius: int, error: float) -> None:
    rng = np.random.default_rng(radius)
    size = 2 * radius + 6
    for x, y in size / 2 + rng.uniform(-0.5, 0.5, (20, 2)):
        (disc,) = heatmap_to_polygons(heatmap_of(shares_of_disc(radius, x, y, size)), 0.5)
        assert disc.area == pytest.approx(math.pi * radius**2, rel=error)
        assert math.dist(disc.centroid.coords[0], (x, y)) < 0.05


def test_holes_and_islands() -> None:
    array = np.ones((9, 9), dtype=bool)
    array[1:8, 1:8] = False
    array[3:6, 3:6] = True
    array[4, 4] = False
    ring, island = mask_to_smooth_polygons(mask_of(array))
    assert (len(ring.interiors), len(island.interiors)) == (1, 1)
    assert not ring.intersects(island)
    assert mask_to_smooth_polygons(mask_of(np.zeros((3, 3), dtype=bool))) == []
    with pytest.raises(ValueError, match="above 0"):
        heatmap_to_polygons(heatmap_of(np.ones((2, 2), dtype=np.float32)), 0)


@pytest.mark.parametrize("suffix", [".xml", ".geojson", ".imagescope.xml"])
def test_files_of_found_polygons_have_their_area(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(3)
    smooth = ndimage.gaussian_filter(rng.random((60, 80)), 2)
    smooth = ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)
    polygons = heatmap_to_polygons(heatmap_of(smooth, x=1000, y=2000, downsample=32), 0.45)
    assert len(polygons) > 5
    assert any(polygon.interiors for polygon in polygons)
    path = tmp_path / f"a{suffix}"
    write_annotations(path, polygon_annotations(polygons))
    found = tumour_area(read_annotations(path))
    assert found.is_valid
    assert found.symmetric_difference(shapely.MultiPolygon(polygons)).area < 1e-6


def test_cut_outs_keep_the_group_asked_for(tmp_path: Path) -> None:
    square = shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 6, 6))
    write_asap(tmp_path / "a.xml", polygon_annotations([square], hole_group="normal"))
    outer, hole = read_asap(tmp_path / "a.xml")
    assert (outer.group, hole.group, hole.name) == ("metastases", "normal", "lesion 1 hole")
