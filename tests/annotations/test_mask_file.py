"""Mask pyramids from annotations: the pixels of Painting on every level, whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openslide import OpenSlide

from annotations.annotation import Annotation, Role
from annotations.errors import BlankMaskError
from annotations.files.asap import read_asap
from annotations.masks.lost import lost_outlines
from annotations.masks.mask_file import MASK_VALUES, write_annotation_mask
from annotations.painting import Painting, polygon_mask
from annotations.polygons import tumour_area
from wsi.errors import StorageError
from wsi.geometry import Frame, Window
from wsi.mask_rules import MASK_RULE, MaskRule, grown_warnings, rule_in
from wsi.slide import Slide

Points = list[tuple[float, float]]


def frame_of(rows: int, columns: int, *, downsample: float = 1.0, mpp: float | None = 0.25) -> Frame:
    return Frame(x=0.0, y=0.0, downsample=downsample, shape=(rows, columns), mpp=mpp)


def drawn(role: Role, points: Points) -> Annotation:
    return Annotation(
        name="a", group="g", role=role, kind="Polygon", vertices=np.asarray(points, dtype=np.float64).reshape(-1, 2)
    )


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


# tumour with a cut-out and an island in it, one over the right edge, one smaller than a coarse pixel, a stray cut-out
SHAPES = [
    drawn(Role.TUMOUR, [(10.3, 12.1), (280.7, 20.2), (260.2, 290.4), (30.5, 250.9)]),
    drawn(Role.CUT_OUT, box(60.5, 60.5, 200.2, 200.2)),
    drawn(Role.TUMOUR, box(100, 100, 130, 120)),
    drawn(Role.TUMOUR, box(290, 300, 330, 344)),
    drawn(Role.TUMOUR, box(20, 320, 21, 321)),
    drawn(Role.CUT_OUT, box(240, 240, 311, 311)),
    drawn(Role.IGNORE, box(0, 0, 300, 300)),
]


def painted(annotations: list[Annotation], frame: Frame, values: Any) -> NDArray[np.uint8]:
    tumour_value, cut_out_value = MASK_VALUES[values]
    array = np.zeros(frame.shape, dtype=np.uint8)
    if cut_out_value:
        cut_outs = [one.outline for one in annotations if one.role is Role.CUT_OUT and one.outline is not None]
        array[polygon_mask(cut_outs, frame).array] = cut_out_value
    array[Painting.of(annotations).mask(frame).array] = tumour_value
    return array


def halved(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each 2 x 2 px by hand: tumour, else a cut-out, else background."""
    rows, columns = -(-array.shape[0] // 2), -(-array.shape[1] // 2)
    found = np.zeros((rows, columns), dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            four = set(array[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel().tolist())
            found[row, column] = min(four - {0}, default=0)
    return found


def levels_of(path: Path) -> list[NDArray[np.uint8]]:
    with tifffile.TiffFile(path) as tiff:
        return [page.aspage().asarray() for page in tiff.pages]


@pytest.mark.parametrize("values", ["0/255", "asap", "0/1"])
@pytest.mark.parametrize("compression", ["deflate", "lzw", "zstd"])
@pytest.mark.parametrize("reduce", ["centre", "max"])
def test_every_level_has_the_pixels_of_the_painting(tmp_path: Path, values: Any, compression: Any, reduce: Any) -> None:
    frame = frame_of(341, 317)
    path = tmp_path / "mask.tif"
    options: dict[str, Any] = {"values": values, "compression": compression, "reduce": reduce}
    stats = write_annotation_mask(path, SHAPES, frame, tile_size=64, **options)
    expected = painted(SHAPES, frame, values)
    found = levels_of(path)
    assert len(found) == 4
    for index, level in enumerate(found):
        if reduce == "centre":
            rows, columns = -(-341 // 2**index), -(-317 // 2**index)
            expected = painted(SHAPES, frame_of(rows, columns, downsample=2.0**index), values)
        np.testing.assert_array_equal(level, expected)
        expected = halved(expected)
    tumour = found[0] == MASK_VALUES[values][0]
    assert stats.tumour_px == tumour.sum() == Painting.of(SHAPES).mask(frame).array.sum()
    assert stats.tiles == 30
    assert 0 < stats.painted_tiles < 30


shapes = st.lists(
    st.tuples(
        st.sampled_from([Role.TUMOUR, Role.CUT_OUT]),
        st.lists(st.tuples(st.integers(-40, 400), st.integers(-40, 400)), min_size=3, max_size=6),
    ),
    max_size=4,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    shapes,
    st.sampled_from(["0/255", "asap", "0/1"]),
    st.builds(frame_of, st.integers(1, 150), st.integers(1, 150), downsample=st.sampled_from([0.5, 1.0, 2.0, 3.7])),
    st.sampled_from([16, 48]),
)
def test_equals_the_painting_in_tiles_of_any_size(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[tuple[Role, Points]],
    values: Any,
    frame: Frame,
    tile_size: int,
) -> None:
    annotations = [drawn(role, points) for role, points in shapes]
    path = tmp_path_factory.mktemp("property") / "mask.tif"
    stats = write_annotation_mask(path, annotations, frame, values=values, reduce="centre", tile_size=tile_size)
    found, *coarser = levels_of(path)
    np.testing.assert_array_equal(found, painted(annotations, frame, values))
    for index, level in enumerate(coarser, 1):
        grid = replace(frame, downsample=frame.downsample * 2**index, shape=level.shape)
        np.testing.assert_array_equal(level, painted(annotations, grid, values))
    assert stats.tumour_px == (found == MASK_VALUES[values][0]).sum()


def test_coarse_masks_keep_what_is_smaller_than_a_pixel(tmp_path: Path) -> None:
    path, frame = tmp_path / "mask.tif", frame_of(341, 317).coarser(8)
    write_annotation_mask(path, SHAPES, frame, tile_size=16, reduce="max")
    full = Painting.of(SHAPES).mask(frame_of(frame.shape[0] * 8, frame.shape[1] * 8)).array
    expected = np.any(full.reshape(frame.shape[0], 8, frame.shape[1], 8), axis=(1, 3))
    np.testing.assert_array_equal(levels_of(path)[0] == 255, expected)
    assert expected[40, 2]
    write_annotation_mask(path, SHAPES, frame, tile_size=16, reduce="centre")
    assert not levels_of(path)[0][40, 2]


def test_coarse_asap_masks_let_tumour_win(tmp_path: Path) -> None:
    path, frame = tmp_path / "mask.tif", frame_of(340, 320).coarser(4)
    write_annotation_mask(path, SHAPES, frame, tile_size=16, values="asap", reduce="max")
    expected = halved(halved(painted(SHAPES, frame_of(340, 320), "asap")))
    np.testing.assert_array_equal(levels_of(path)[0], expected)


def test_nothing_and_everything(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    nothing = write_annotation_mask(path, [], frame_of(100, 100), tile_size=32)
    assert (nothing.tumour_px, nothing.painted_tiles) == (0, 0)
    assert not levels_of(path)[0].any()
    all_over = [drawn(Role.TUMOUR, box(-5, -5, 200, 200))]
    everything = write_annotation_mask(path, all_over, frame_of(100, 90), tile_size=32, values="0/1")
    assert everything.tumour_px == 9000
    assert everything.painted_tiles == 3 + 4 - 1, "only those that reach beyond the lower and the right edge"
    assert all(level.all() for level in levels_of(path))


def test_areas_are_right_on_every_level(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    middles = rng.uniform(60, 3900, (60, 2))
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    annotations = [drawn(Role.TUMOUR, [*map(tuple, middle + 40 * circle)]) for middle in middles]
    area = tumour_area(annotations).area
    shares = {}
    for reduce in ("centre", "max"):
        write_annotation_mask(tmp_path / "m.tif", annotations, frame_of(3960, 3960), tile_size=64, reduce=reduce)
        shares[reduce] = [
            (level > 0).sum() * 4**index / area for index, level in enumerate(levels_of(tmp_path / "m.tif"))
        ]
    assert shares["centre"][:5] == pytest.approx([1] * 5, abs=0.03)
    assert shares["max"][4] > 1.3


@pytest.mark.parametrize(("reduce", "downsample", "grown"), [("centre", 4.0, None), ("max", 1.0, 2), ("max", 4.0, 1)])
def test_a_mask_says_what_its_coarse_pixels_stand_for(
    tmp_path: Path, reduce: Any, downsample: float, grown: float | None
) -> None:
    frame = frame_of(300, 300).resampled(downsample)
    write_annotation_mask(tmp_path / "m.tif", SHAPES, frame, tile_size=64, reduce=reduce)
    with Slide.open(tmp_path / "m.tif") as slide:
        rule = rule_in(slide.properties[MASK_RULE])
    assert rule == MaskRule(reduce=reduce, downsample=downsample)
    for level in (1, 2):
        assert bool(grown_warnings(rule, level)) == (grown is not None and level >= grown)
    assert rule_in("mask: 0 background, 255 tumour") is None
    assert grown_warnings(None, 8) == ()


def test_a_blank_mask_is_written_only_if_allowed(tmp_path: Path) -> None:
    tiny = [drawn(Role.TUMOUR, box(9.1, 9.1, 9.4, 9.4))]
    frame = frame_of(100, 100)
    with pytest.raises(BlankMaskError, match="no pixel's centre"):
        write_annotation_mask(tmp_path / "m.tif", tiny, frame, allows_blank=False)
    assert list(tmp_path.iterdir()) == []
    assert write_annotation_mask(tmp_path / "m.tif", tiny, frame).tumour_px == 0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), min_size=3, max_size=7),
    st.sampled_from([0.7, 1.0, 4.0, 13.0]),
    st.sampled_from([0.02, 0.1, 1.0]),
)
def test_lost_outlines_are_those_without_a_pixel(points: Points, downsample: float, scale: float) -> None:
    one = drawn(Role.TUMOUR, [(7 + scale * x, 5 + scale * y) for x, y in points])
    frame = frame_of(60, 60, downsample=downsample)
    assert lost_outlines([one, drawn(Role.CUT_OUT, box(1, 1, 1.1, 1.1))], frame) == (
        [] if one.outline is None or Painting.of([one]).mask(frame).array.any() else [one]
    )


def test_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    written = []
    for workers in (1, 3):
        path = tmp_path / f"{workers}.tif"
        write_annotation_mask(path, SHAPES, frame_of(341, 317), tile_size=32, workers=workers, values="asap")
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.slow
def test_other_readers_find_size_resolution_and_values(tmp_path: Path) -> None:
    path, frame = tmp_path / "mask.tif", frame_of(1000, 1200, downsample=2.0)
    write_annotation_mask(path, SHAPES, frame, tile_size=256, values="asap", reduce="centre")
    expected = painted(SHAPES, frame, "asap")
    with OpenSlide(str(path)) as theirs:
        assert theirs.dimensions == (1200, 1000)
        assert theirs.level_count == 4
        pixels = np.asarray(theirs.read_region((0, 0), 0, theirs.dimensions))
    np.testing.assert_array_equal(pixels[..., 0], expected)
    with Slide.open(path) as ours:
        assert ours.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(ours.read_frame(ours.frame).array[..., 0], expected)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].aspage().description == (
            "mask: 0 background, 1 tumour, 2 cut out of tumour; reduce=centre, downsample=2"
        )
    write_annotation_mask(path, SHAPES, frame_of(50, 50, mpp=None))
    with Slide.open(path) as without:
        assert without.mpp is None


def test_news_of_tiles(tmp_path: Path) -> None:
    news: list[tuple[int, int]] = []
    write_annotation_mask(
        tmp_path / "mask.tif", SHAPES, frame_of(100, 90), tile_size=32, on_tiles=lambda *counts: news.append(counts)
    )
    assert news == [(3, 12), (6, 12), (9, 12), (12, 12)]


@pytest.mark.parametrize(
    "wrong", [{"values": "0/2"}, {"reduce": "mean"}, {"tile_size": 100}, {"compression": "jpeg"}, {"workers": 0}]
)
def test_wrong_arguments_leave_no_file(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        write_annotation_mask(tmp_path / "mask.tif", SHAPES, frame_of(341, 317, downsample=2), **wrong)
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no_such_folder"):
        write_annotation_mask(tmp_path / "no_such_folder" / "mask.tif", SHAPES, frame_of(50, 50))


@pytest.mark.slow
def test_a_real_slide_at_full_resolution(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    annotations = read_asap(real_data("annotations/camelyon16/tumor_009.xml"))
    path = tmp_path / "mask.tif"
    frame = frame_of(221_184, 97_792)
    stats = write_annotation_mask(path, annotations, frame, compression="zstd")
    assert stats.tiles == 82_512
    assert stats.painted_tiles < 800
    with Slide.open(path) as mask:
        assert mask.levels[0].shape == frame.shape
        vertices = np.concatenate([one.vertices for one in annotations])
        for x, y in vertices[::2000]:
            window = frame.part(Window(row=int(y) - 100, column=int(x) - 100, height=200, width=200))
            expected = Painting.of(annotations).mask(window).array
            found = mask.read_window(0, Window(row=int(y) - 100, column=int(x) - 100, height=200, width=200))[..., 0]
            np.testing.assert_array_equal(found, expected * np.uint8(255))
