from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsi.coverage import Coverage, measure_coverage, stored_coverage, unread, without_unread
from wsi.errors import NoTissueError
from wsi.geometry import Window
from wsi.hidden import hidden
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue
from wsi.writing.pyramid import write_pyramid

TILE = 64
Tiles = AbstractSet[tuple[int, int]]


def a_slide(path: Path, *, missing: Tiles = frozenset(), bad: Tiles = frozenset()) -> Slide:
    """6 x 8 tiles at 4 um/px; the inner 4 x 6 are tissue all over."""
    image = np.random.default_rng(1).integers(235, 250, (6 * TILE, 8 * TILE, 3), dtype=np.uint8)
    image[TILE : 5 * TILE, TILE : 7 * TILE] = np.random.default_rng(0).integers(120, 190, (4 * TILE, 6 * TILE, 3))
    tiles = [
        None if (row, column) in missing else image[row * TILE :, column * TILE :][:TILE, :TILE]
        for row in range(6)
        for column in range(8)
    ]
    write_pyramid(path, width=8 * TILE, height=6 * TILE, mpp=4.0, tile_size=TILE, levels=1, tiles=tiles)
    with Slide.open(path) as slide:
        stored = slide.stored_tiles(0)
        assert stored is not None
        damaged = {tile: stored.read(*tile) for tile in bad}
    data = path.read_bytes()
    for tile in damaged.values():
        assert tile is not None
        at = data.index(tile)
        data = data[: at + 2] + bytes(40) + data[at + 42 :]
    path.write_bytes(data)
    return Slide.open(path, on_bad_tile="white")


def tissue_of(slide: Slide) -> Mask:
    """The tissue as a whole slide would show it, with the detector's rim."""
    frame = slide.frame_at(16.0)
    array = np.zeros(frame.shape, bool)
    array[TILE // 4 - 1 : 5 * TILE // 4 + 1, TILE // 4 - 1 : 7 * TILE // 4 + 1] = True
    return Mask(frame=frame, array=array)


def looked_at(slide: Slide, missing: Tiles, bad: Tiles) -> Mask:
    """Cells of 8 px that are tissue and stored: what inference sees."""
    cells = slide.frame.coarser(8)
    array = np.zeros(cells.shape, bool)
    array[TILE // 8 : 5 * TILE // 8, TILE // 8 : 7 * TILE // 8] = True
    for row, column in missing | bad:
        array[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = False
    return Mask(frame=cells, array=array)


inner = st.frozensets(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=8)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(missing=inner, bad=inner)
def test_both_areas_and_both_counts_are_those_of_the_tiles(
    missing: Tiles, bad: Tiles, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bad = bad - missing
    with a_slide(tmp_path_factory.mktemp("slide") / "a.tif", missing=missing, bad=bad) as slide:
        slide.read_frame(slide.frame)  # finds the bad ones
        looked = looked_at(slide, missing, bad)
        found = measure_coverage(slide, tissue_of(slide), looked, downsample=1.0)
        under = {(row, column) for row in range(1, 5) for column in range(1, 7)}
        tile_mm2 = (TILE * 4 / 1000) ** 2
        assert found.tissue_mm2 == pytest.approx(24 * tile_mm2)
        assert found.looked_mm2 == pytest.approx((24 - len(under & (missing | bad))) * tile_mm2)
        assert (found.missing_tiles, found.bad_tiles) == (len(under & missing), len(under & bad))
        assert found.is_whole(0.005) is (found.looked_mm2 == found.tissue_mm2)
        assert Coverage.from_json(found.to_json()) == found
        cells = unread(slide, looked.frame, downsample=1.0)
        expected = np.zeros(cells.shape, bool)
        for row, column in bad:
            expected[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = True
        np.testing.assert_array_equal(cells, expected)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(missing=inner, bad=inner)
def test_what_is_stored_is_what_whoever_reads_all_of_it_sees(
    missing: Tiles, bad: Tiles, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bad = bad - missing
    with a_slide(tmp_path_factory.mktemp("slide") / "a.tif", missing=missing, bad=bad) as slide:
        before = stored_coverage(slide, tissue_of(slide), downsample=1.0)
        assert before.bad_tiles == 0  # not read yet
        slide.read_frame(slide.frame)
        found = stored_coverage(slide, tissue_of(slide), downsample=1.0)
        assert before.missing_tiles == found.missing_tiles
        assert found == measure_coverage(slide, tissue_of(slide), looked_at(slide, missing, bad), downsample=1.0)


def test_a_pixel_of_the_overview_belongs_to_the_tile_under_its_centre(tmp_path: Path) -> None:
    """Overview pixels of 3 tile pixels, which tiles of 64 px cut: each counts once, as a brute force over them says."""
    missing = {(1, 1), (2, 3), (4, 6)}
    with a_slide(tmp_path / "a.tif", missing=missing) as slide:
        frame = slide.frame_at(12.0)
        tissue = Mask(frame=frame, array=np.ones(frame.shape, bool))
        found = stored_coverage(slide, tissue, downsample=1.0)
        unseen = sum(
            (int(3 * row + 1.5) // TILE, int(3 * column + 1.5) // TILE) in missing
            for row, column in product(*map(range, frame.shape))
        )
    assert found.missing_tiles == 3
    assert found.tissue_mm2 - found.looked_mm2 == pytest.approx(unseen * 0.012**2)


def test_a_pixel_whose_centre_is_beyond_the_slide_belongs_to_the_last_tile(tmp_path: Path) -> None:
    """Overview pixels of 10 px on 384 x 512: the centres of the last row and column are at 385 and 515 px."""
    with a_slide(tmp_path / "a.tif", missing={(5, 7)}) as slide:
        frame = slide.frame_at(40.0)
        tissue = Mask(frame=frame, array=np.ones(frame.shape, bool))
        found = stored_coverage(slide, tissue, downsample=1.0)
    assert (frame.shape, found.missing_tiles) == ((39, 52), 1)
    assert found.tissue_mm2 == pytest.approx(39 * 52 * 0.04**2)
    assert found.tissue_mm2 - found.looked_mm2 == pytest.approx((39 - 32) * (52 - 45) * 0.04**2)


def test_cells_over_bad_tiles_were_not_looked_at(tmp_path: Path) -> None:
    bad = {(0, 1), (2, 3), (2, 4), (5, 7)}
    with a_slide(tmp_path / "a.tif", bad=bad) as slide:
        slide.read_frame(slide.frame)
        looked = looked_at(slide, set(), set())
        array = np.where(looked.array, np.float32(0.25), np.float32(0))
        heatmap = Heatmap(frame=looked.frame, array=array, tissue=looked.array)
        found = without_unread(heatmap, slide, tissue_of(slide), downsample=1.0)
        expected = looked_at(slide, set(), bad).array
        np.testing.assert_array_equal(found.tissue, expected)
        np.testing.assert_array_equal(found.array, np.where(expected, np.float32(0.25), 0))
        whole = unread(slide, looked.frame, downsample=1.0)
        assert whole.sum() == 4 * 64
        for row, column in product((0, 3, 8, 20, 30), repeat=2):
            window = Window(row=row, column=column, height=9, width=13)
            part = unread(slide, looked.frame.part(window), downsample=1.0)
            wanted = np.pad(whole, ((0, 9), (0, 13)))[window.slices]
            np.testing.assert_array_equal(part, wanted)


def test_a_missing_tile_counts_where_any_of_its_tissue_went_unseen(tmp_path: Path) -> None:
    """Tissue in the right half of one tile and all of the next."""
    missing = {(1, 1), (1, 2), (4, 4)}
    with a_slide(tmp_path / "a.tif", missing=missing) as slide:
        tissue = tissue_of(slide)
        tissue.array[...] = False
        tissue.array[15:33, 23:49] = True
        found = measure_coverage(slide, tissue, looked_at(slide, missing, set()), downsample=1.0)
    assert (found.missing_tiles, found.bad_tiles, found.looked_mm2) == (2, 0, 0.0)


def test_areas_are_told_to_a_square_um(tmp_path: Path) -> None:
    with a_slide(tmp_path / "a.tif", missing={(1, 1)}) as slide:
        looked = looked_at(slide, {(1, 1)}, set())
        finer = Mask(frame=replace(looked.frame, mpp=0.243), array=looked.array)
        found = measure_coverage(slide, tissue_of(slide), finer, downsample=1.0)
    cell_mm2 = (8 * 0.243 / 1000) ** 2
    assert (found.tissue_mm2, found.looked_mm2) == (round(24 * 64 * cell_mm2, 6), round(23 * 64 * cell_mm2, 6))
    assert found.to_json()["share"] == round(found.looked_mm2 / found.tissue_mm2, 6)


def test_the_tolerance_is_a_share_of_the_tissue() -> None:
    found = Coverage(tissue_mm2=200.0, looked_mm2=199.0)
    assert found.is_whole(0.005)
    assert not Coverage(tissue_mm2=200.0, looked_mm2=198.9).is_whole(0.005)
    assert Coverage(tissue_mm2=200.0, looked_mm2=100.0).is_whole(0.5)
    assert not Coverage(tissue_mm2=0.0, looked_mm2=0.0).is_whole(0.5)  # nothing was seen


def test_it_says_both_areas_and_what_is_not_there() -> None:
    text = str(Coverage(tissue_mm2=20.0, looked_mm2=5.0, missing_tiles=1, bad_tiles=3))
    assert text == "5.00 of 20.00 mm2 of tissue were looked at (25.0%); 1 missing tile and 3 bad tiles under tissue"
    assert str(Coverage(tissue_mm2=20.0, looked_mm2=20.0)) == "20.00 of 20.00 mm2 of tissue were looked at (100.0%)"


@pytest.mark.parametrize("side_px", [8, 36, 40, 200])
def test_a_blank_slide_has_no_tissue_at_any_size(tmp_path: Path, side_px: int) -> None:
    path = tmp_path / "blank.tif"
    tile = np.full((256, 256, 3), 244, np.uint8)
    write_pyramid(path, width=side_px, height=side_px, mpp=16.0, tile_size=256, levels=1, tiles=[tile])
    with Slide.open(path) as slide, pytest.raises(NoTissueError):
        find_tissue(slide)


def test_only_what_tissue_encloses_is_filled(tmp_path: Path) -> None:
    """A ring is filled; a bay that is open to the edge of the picture is not, however small."""
    path = tmp_path / "ring.tif"
    image = np.full((256, 256, 3), 244, np.uint8)
    image[60:110, 60:110] = (170, 110, 160)
    image[75:95, 75:95] = 244
    image[180:256, 100:150] = (170, 110, 160)
    image[236:256, 115:135] = 244
    write_pyramid(path, width=256, height=256, mpp=16.0, tile_size=256, levels=1, tiles=[image])
    with Slide.open(path) as slide:
        found = find_tissue(slide).array
    assert found[85, 85]
    assert not found[250, 125]


GOOD = Coverage(tissue_mm2=4.0, looked_mm2=3.0, missing_tiles=1, bad_tiles=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"looked_mm2": None},
        {"tissue_mm2": [1]},
        {"tissue_mm2": "4"},
        {"tissue_mm2": 10**400},
        {"missing_tiles": -1},
        {"looked_mm2": float("nan")},
        {"looked_mm2": 9.0},
    ],
)
def test_a_coverage_that_is_none_is_refused(wrong: dict[str, object]) -> None:
    assert Coverage.from_json(GOOD.to_json()) == GOOD
    with pytest.raises(ValueError, match=r"its coverage is not of numbers|more tissue was looked at"):
        Coverage.from_json({**GOOD.to_json(), **wrong})


@pytest.mark.parametrize("sigma", [2.0, 6.0, 15.0])
def test_what_is_out_of_focus_is_not_taken_for_blank(tmp_path: Path, sigma: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (1024, 1024, 1))
    blurred = ndimage.gaussian_filter(noise, (sigma, sigma, 0))
    tissue = np.array([170.0, 110.0, 170.0]) + 25 * blurred / blurred.std()
    image = np.full((1536, 1536, 3), 244, np.uint8)
    image[256:1280, 256:1280] = tissue.clip(40, 230)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for number in range(5):
            side = 1536 >> number
            level = image.reshape(side, 1 << number, side, 1 << number, 3).mean(axis=(1, 3)).astype(np.uint8)
            file.write(
                level,
                photometric="rgb",
                tile=(256, 256),
                subfiletype=1 if number else 0,
                resolution=(1e4 / (0.5 * 2**number),) * 2,
                resolutionunit="CENTIMETER",
            )
    with Slide.open(path) as slide:
        found = find_tissue(slide, um_per_px=8.0)
        assert not hidden(slide, found, downsample=1.0).any()
        assert stored_coverage(slide, found, downsample=1.0).share == 1.0
