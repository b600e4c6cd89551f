"""Many outlines at once: the pixels of each alone, whatever their order, their sense and where tables are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.masks.mask_file import write_annotation_mask
from annotations.outlines import Outlines
from annotations.painting import Cover, Painting, _lies_inside, layers, polygon_mask
from wsi.geometry import Frame

Points = list[tuple[float, float]]

positions = st.integers(-4, 24).flatmap(lambda value: st.sampled_from([value, value + 0.5, value + 0.25]))
corners = st.tuples(positions, positions)
shapes = st.lists(st.lists(corners, max_size=9), max_size=14)
frames = st.builds(
    lambda x, y, downsample: Frame(x=x, y=y, downsample=downsample, shape=(19, 21), mpp=None),
    positions,
    positions,
    st.sampled_from([0.5, 1.0, 3.7]),
)


def arrays(drawn: list[Points]) -> list[NDArray[np.float64]]:
    return [np.array(points, dtype=np.float64).reshape(-1, 2) for points in drawn]


@settings(max_examples=150)
@given(shapes, frames, st.sampled_from([1, 2, 64]), st.sampled_from([1, 3, 4096]), st.sampled_from([1, 50, 1 << 22]))
def test_many_outlines_hold_the_pixels_of_each(
    drawn: list[Points], frame: Frame, block: int, at_once: int, band_px: int
) -> None:
    alone = [polygon_mask([outline], frame).array for outline in arrays(drawn)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotations.outlines._BLOCK", block)
        patch.setattr("annotations.outlines._BLOCKS_AT_ONCE", at_once)
        patch.setattr("annotations.outlines._BAND_PX", band_px)
        together = polygon_mask(arrays(drawn), frame).array
    np.testing.assert_array_equal(together, np.any([np.zeros(frame.shape, dtype=np.bool_), *alone], axis=0))


@pytest.mark.parametrize("seed", range(20))
def test_edges_right_of_the_frame_may_be_left_out(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = Frame(x=1, y=3, downsample=0.5, shape=(19, 21), mpp=None)
    drawn = [rng.integers(-4, 25, (rng.integers(3, 9), 2)).astype(np.float64) for _ in range(4)]
    expected = np.any([polygon_mask([outline], frame).array for outline in drawn], axis=0)
    monkeypatch.setattr("annotations.outlines._BLOCK", 1)
    np.testing.assert_array_equal(polygon_mask(drawn, frame).array, expected)


@given(shapes, frames, st.sampled_from([1, 2, 64]))
def test_edges_that_pass_are_those_of_each(drawn: list[Points], frame: Frame, block: int) -> None:
    def passed(outlines: list[NDArray[np.float64]]) -> NDArray[np.bool_]:
        begun = np.zeros((19, 22), dtype=np.int32)
        Outlines.of(outlines).count_passes(frame, begun)
        return np.cumsum(begun, axis=1)[:, :-1] > 0

    alone = [passed([outline]) for outline in arrays(drawn)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotations.outlines._BLOCK", block)
        together = passed(arrays(drawn))
    np.testing.assert_array_equal(together, np.any([np.zeros(frame.shape, dtype=np.bool_), *alone], axis=0))


@given(shapes, st.tuples(positions, positions, positions, positions), st.sampled_from([1, 2, 64]))
def test_outlines_that_meet_a_box_are_found(
    drawn: list[Points], box: tuple[float, float, float, float], block: int
) -> None:
    left, top = min(box[0], box[2]), min(box[1], box[3])
    right, bottom = max(box[0], box[2]), max(box[1], box[3])
    expected = []
    for number, outline in enumerate(arrays(drawn)):
        if len(outline) and (outline.max(axis=0) > outline.min(axis=0)).all():
            (low_x, low_y), (high_x, high_y) = outline.min(axis=0), outline.max(axis=0)
            if low_x <= right and high_x >= left and low_y <= bottom and high_y >= top:
                expected.append(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotations.outlines._BLOCK", block)
        assert Outlines.of(arrays(drawn)).meeting((left, top, right, bottom)) == expected


def annotation(role: Role, points: Points | NDArray[np.float64]) -> Annotation:
    vertices = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return Annotation(name="a", group="g", role=role, kind="Polygon", vertices=vertices)


@settings(max_examples=80)
@given(st.lists(st.tuples(st.sampled_from([Role.TUMOUR, Role.CUT_OUT]), st.lists(corners, max_size=7)), max_size=9))
def test_layers_are_what_every_pair_says(drawn: list[tuple[Role, Points]]) -> None:
    frame = Frame(x=-5, y=-5, downsample=1, shape=(31, 31), mpp=None)
    every = [annotation(role, points) for role, points in drawn if len(points) > 2]
    cuts = [one for one in every if one.role is Role.CUT_OUT]
    expected = np.zeros(frame.shape, dtype=np.bool_)
    for one in every:
        if one.role is Role.TUMOUR:
            apply = [cut.vertices for cut in cuts if not _lies_inside(one.vertices, cut.vertices)]
            expected |= polygon_mask([one.vertices], frame).array & ~polygon_mask(apply, frame).array
    np.testing.assert_array_equal(Painting.of(every).mask(frame).array, expected)
    found = layers(every)
    assert sum(len(layer.tumour) for layer in found) == len(every) - len(cuts)


def cells(count: int, side: float, *, seed: int = 0) -> list[NDArray[np.float64]]:
    """Round cells of 12 px anywhere in a square, drawn in either sense."""
    rng = np.random.default_rng(seed)
    angle = np.arange(28) * (2 * np.pi / 28)
    ring = 12 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return [(ring if number % 2 else ring[::-1]) + rng.uniform(12, side - 12, 2) for number in range(count)]


def test_cells_hold_the_pixels_that_shapely_says() -> None:
    outlines = cells(400, 500)
    frame = Frame(x=0, y=0, downsample=2.5, shape=(200, 200), mpp=None)
    x, y = frame.centres(*np.indices(frame.shape))
    union = shapely.union_all(shapely.polygons(np.array(outlines)))
    np.testing.assert_array_equal(polygon_mask(outlines, frame).array, shapely.contains_xy(union, x, y))


def test_a_mask_of_many_cells(tmp_path: Path) -> None:
    square = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], dtype=np.float64)
    drawn = [annotation(Role.TUMOUR, np.add(square, (20 * (n % 100), 20 * (n // 100)))) for n in range(10_000)]
    frame = Frame(x=0, y=0, downsample=1, shape=(4096, 4096), mpp=0.25)
    done = write_annotation_mask(tmp_path / "m.tif", drawn, frame, tile_size=256)
    assert done.tumour_px == 1_000_000
    assert (Painting.of(drawn).cover(frame.coarser(256)) == Cover.PART).sum() == done.painted_tiles == 64


def test_tumour_cells_in_normal_ones_are_tumour_and_others_are_cut() -> None:
    small = [annotation(Role.TUMOUR, outline) for outline in cells(30, 4000)]
    around = [annotation(Role.CUT_OUT, 2 * one.vertices - one.vertices.mean(axis=0)) for one in small]
    apart = [annotation(Role.TUMOUR, one.vertices + 5000) for one in small[:5]]
    cut = [annotation(Role.CUT_OUT, np.add(one.vertices, (6, 0))) for one in apart]
    frame = Frame(x=0, y=0, downsample=1, shape=(9100, 9100), mpp=None)
    painted = Painting.of([*small, *around, *apart, *cut]).mask(frame).array
    assert painted[:4000, :4000].sum() == polygon_mask([one.vertices for one in small], frame).array.sum()
    whole = shapely.union_all([shapely.Polygon(one.vertices) for one in apart])
    left = whole - shapely.union_all([shapely.Polygon(one.vertices) for one in cut])
    assert painted[5000:, 5000:].sum() == pytest.approx(left.area, rel=0.02)
