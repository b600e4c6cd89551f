"""Sparse slides: the wanted pixels are the slide's, everything else is white, and other libraries open them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide import OpenSlide
from PIL import Image as Pillow
from slide_files import picture, windows, write_tiff
from typer.testing import CliRunner

from staging.cli import app
from wsi.errors import SlideError, SlideFormatError, TileError
from wsi.geometry import Frame
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.writing.pyramid import write_mask, write_pyramid
from wsi.writing.sparse import estimate_bytes, tissue_windows, touched, write_sparse
from wsi.writing.tile_stream import LevelTable

WIDTH, HEIGHT, TILE = 1000, 700, 128


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Slide:
    path = tmp_path_factory.mktemp("slides") / "whole.tif"
    rng = np.random.default_rng(3)
    rows, columns = -(-HEIGHT // TILE), -(-WIDTH // TILE)
    tiles = [
        None
        if (row, column) == (1, 1)
        else np.repeat(np.repeat(rng.integers(60, 250, (TILE // 4, TILE // 4, 3)), 4, 0), 4, 1).astype(np.uint8)
        for row, column in itertools.product(range(rows), range(columns))
    ]
    write_pyramid(path, width=WIDTH, height=HEIGHT, mpp=0.37, tiles=tiles, tile_size=TILE)
    return Slide.open(path)


def test_wanted_tiles_are_copied_byte_for_byte(slide: Slide, tmp_path: Path) -> None:
    asked = {
        0: windows((0, 130, 100, 300), (600, 900, 300, 300), (-50, -50, 60, 60)),
        2: windows((10, 10, 20, 20)),
    }
    path = tmp_path / "sparse.tif"
    done = write_sparse(slide, path, asked)
    wanted = {(0, 0), (0, 1), (0, 2), (0, 3), (4, 7), (5, 7)}
    with Slide.open(path) as copy:
        assert copy.mpp == pytest.approx(slide.mpp)
        assert copy.levels == slide.levels
        for level in slide.levels:
            ours, theirs = copy.stored_tiles(level.index), slide.stored_tiles(level.index)
            assert ours is not None
            assert theirs is not None
            for where in itertools.product(range(ours.rows), range(ours.columns)):
                is_wanted = (level.index == 0 and where in wanted) or (level.index == 2 and where == (0, 0))
                assert ours.read(*where) == (theirs.read(*where) if is_wanted else None)
        found = copy.read_frame(copy.frame).array
        expected = np.full_like(found, 255)
        whole = slide.read_frame(slide.frame).array
        for row, column in wanted:
            inside = slice(row * TILE, (row + 1) * TILE), slice(column * TILE, (column + 1) * TILE)
            expected[inside] = whole[inside]
        np.testing.assert_array_equal(found, expected)
    assert (done.tiles_copied, done.tiles_encoded, done.is_exact) == (7, 0, True)
    assert done.file_bytes == path.stat().st_size < slide.path.stat().st_size  # type: ignore[union-attr]
    assert 0.7 < estimate_bytes(slide, asked) / done.file_bytes < 1.6
    assert [left.name for left in tmp_path.iterdir()] == ["sparse.tif"]


def test_many_stored_tiles_are_read_as_each_is(slide: Slide) -> None:
    stored = slide.stored_tiles(0)
    assert stored is not None
    positions = [(row, column) for row in range(stored.rows) for column in range(stored.columns)][::-1]
    found = stored.read_many(positions)
    assert found == [stored.read(*where) for where in positions] == [stored.read_sound(*where) for where in positions]
    assert [where for where, data in zip(positions, found, strict=True) if data is None] == [(1, 1)]
    assert stored.read_many([]) == []
    assert stored.read_many([(1, 1)]) == [None]
    with pytest.raises(ValueError, match="no tile in row 0, column 8"):
        stored.read_many([(0, 7), (0, 8)])


def test_other_libraries_open_it(slide: Slide, tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    write_sparse(slide, path, {0: windows((200, 300, 90, 90))})
    expected = np.array(slide.read_frame(slide.frame).array[200:290, 300:390], np.int16)
    with OpenSlide(str(path)) as opened, tifffile.TiffFile(path) as tiff:
        assert opened.level_count == len(tiff.series[0].levels) == len(slide.levels)
        assert float(opened.properties["openslide.mpp-x"]) == pytest.approx(0.37)
        pixels = np.asarray(opened.read_region((300, 200), 0, (90, 90)))
        np.testing.assert_allclose(np.array(pixels[..., :3], np.int16), expected, atol=3)
        assert not np.asarray(opened.read_region((0, 500), 0, (90, 90)))[..., 3].any()  # nothing there
        theirs = tiff.series[0].levels[0].asarray()[200:290, 300:390].astype(np.int16)
        np.testing.assert_allclose(theirs, expected, atol=3)


@settings(max_examples=80, deadline=None)
@given(
    sides=st.lists(
        st.tuples(st.integers(-80, 200), st.integers(-80, 300), st.integers(1, 150), st.integers(1, 150)), max_size=6
    )
)
def test_touched_tiles_are_those_that_hold_a_pixel(sides: list[tuple[int, int, int, int]]) -> None:
    table = LevelTable.empty(width=250, height=130, tile_width=32, tile_height=16)
    pixels = np.zeros((130, 250), bool)
    for row, column, height, width in sides:
        pixels[max(0, row) : max(0, row + height), max(0, column) : max(0, column + width)] = True
    expected = np.zeros((table.rows, table.columns), bool)
    for row, column in itertools.product(range(table.rows), range(table.columns)):
        expected[row, column] = pixels[row * 16 : row * 16 + 16, column * 32 : column * 32 + 32].any()
    found = touched(table, windows(*sides))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_what_cannot_be_copied_is_encoded_and_said(tmp_path: Path) -> None:
    image = picture(700, 900)
    Pillow.fromarray(image).save(tmp_path / "a.jpg", quality=98)
    write_tiff(tmp_path / "b.tif", image, compression="jpeg2000")
    asked = {0: windows((10, 20, 30, 600))}
    for name in ("a.jpg", "b.tif"):
        with Slide.open(tmp_path / name, mpp=0.5) as slide:
            done = write_sparse(slide, tmp_path / "sparse.tif", asked, quality=95)
            assert (done.tiles_copied, done.tiles_encoded, done.is_exact) == (0, 2, False)
            with Slide.open(tmp_path / "sparse.tif") as copy:
                assert copy.mpp == pytest.approx(0.5)
                assert copy.frame.shape == slide.frame.shape
                smooth = slice(10, 40), slice(20, 120)
                near = copy.read_frame(copy.frame).array[smooth].astype(int)
                np.testing.assert_allclose(near, image[smooth].astype(int), atol=12)
                assert (copy.read_frame(copy.frame).array[512:] == 255).all()


def test_slides_with_levels_of_a_scanner_keep_them(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    with Slide.open(real_data("slides/CMU-1-Small-Region.svs")) as slide:
        done = write_sparse(slide, tmp_path / "sparse.tif", {0: windows((1000, 500, 400, 400))})
        assert done.is_exact
        frame = Frame(x=500, y=1000, downsample=1, shape=(400, 400), mpp=slide.mpp)
        with Slide.open(tmp_path / "sparse.tif") as copy:
            np.testing.assert_array_equal(copy.read_frame(frame).array, slide.read_frame(frame).array)


def test_refused(slide: Slide, tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="to be copied"):
        write_sparse(slide, slide.path, {})
    mask = tmp_path / "mask.tif"
    write_mask(mask, width=64, height=64, mpp=1.0, tiles=[np.zeros((64, 64), np.uint8)], tile_size=64)
    with Slide.open(mask) as opened, pytest.raises(SlideFormatError, match="is a mask"):
        write_sparse(opened, tmp_path / "out.tif", {})
    damaged = tmp_path / "damaged.tif"
    stored = slide.stored_tiles(0)
    assert stored is not None
    tile = stored.read(0, 0)
    assert tile is not None
    damaged.write_bytes(Path(slide.path).read_bytes().replace(tile, bytes(len(tile))))
    with Slide.open(damaged) as opened, pytest.raises(TileError, match="tile row 0, tile column 0"):
        write_sparse(opened, tmp_path / "out.tif", {0: windows((0, 0, 10, 10))})
    assert not (tmp_path / "out.tif").exists()


def test_tissue_windows_cover_the_tissue_on_every_level(slide: Slide) -> None:
    array = np.zeros((22, 32), bool)
    array[3, 4], array[20, 30] = True, True
    tissue = Mask(frame=Frame(x=0, y=0, downsample=32, shape=array.shape, mpp=slide.mpp), array=array)
    found = tissue_windows(slide, tissue)
    assert set(found) == {level.index for level in slide.levels}
    assert list(found[0]) == list(windows((96, 128, 32, 32), (640, 960, 32, 32)))
    assert list(found[1]) == list(windows((48, 64, 16, 16), (320, 480, 16, 16)))


@pytest.mark.slow
def test_convert_tissue_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal((170, 90, 150), 25, (256, 256, 3)), 0, 255).astype(np.uint8)
    glass = np.full((256, 256, 3), 243, np.uint8)
    tiles = [tissue if 5 <= row <= 7 and 5 <= column <= 8 else glass for row in range(12) for column in range(14)]
    path, out = tmp_path / "slide.tif", tmp_path / "small.tif"
    write_pyramid(path, width=14 * 256, height=12 * 256, mpp=0.5, tiles=tiles, tile_size=256)
    done = CliRunner().invoke(app, ["convert", "--tissue-only", str(path), str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert '"exact": true' in done.stdout
    with Slide.open(path) as whole, Slide.open(out) as small:
        for level in whole.levels:
            ratio = int(level.downsample)
            rows, columns = slice(5 * 256 // ratio, 8 * 256 // ratio), slice(5 * 256 // ratio, 9 * 256 // ratio)
            theirs, ours = (one.read_frame(one.frame_of(level.index)).array for one in (whole, small))
            np.testing.assert_array_equal(ours[rows, columns], theirs[rows, columns])
        assert (small.read_frame(small.frame).array[:256] == 255).all()
    for option in (["--mpp", "2"], ["--reencode"], ["--tile-size", "256"]):
        refused = CliRunner().invoke(app, ["convert", "--tissue-only", *option, str(path), str(tmp_path / "x.tif")])
        assert refused.exit_code != 0
        assert not (tmp_path / "x.tif").exists()
