"""Missing tiles of coarse levels show what the next finer level stores there; white is only what no level stores."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slide_files import forget_tiles, picture, through_openslide

from wsi.coverage import stored_coverage
from wsi.errors import TileError
from wsi.geometry import Frame, Window
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue, tissue_area_um2
from wsi.windows import Windows

RealData = Callable[[str], Path]


def halved(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """The mean of factor x factor px each, halves rounded up: by brute force."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image.reshape(height, factor, width, factor, 3).astype(np.int64)
    return np.asarray((blocks.sum(axis=(1, 3)) + factor**2 // 2) // factor**2, dtype=np.uint8)


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    return picture(512, 512)


def write(path: Path, image: NDArray[np.uint8], *factors: int) -> Path:
    """Levels of the image, lossless, in tiles of 64 px, at 1 um per px."""
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, *factors):
            tiff.write(
                halved(image, factor),
                tile=(64, 64),
                photometric="rgb",
                compression="deflate",
                resolution=(10_000 / factor, 10_000 / factor),
                resolutionunit="CENTIMETER",
                subfiletype=int(factor > 1),
                metadata=None,
            )
    return path


def test_a_missing_coarse_tile_is_the_mean_of_the_next_finer_level(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write(tmp_path / "a.tif", image, 2, 4)
    forget_tiles(path, page=2, only=1)
    with Slide.open(path) as slide:
        expected = halved(image, 4)
        expected[:64, 64:] = halved(halved(image, 2), 2)[:64, 64:]
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(2)).array, expected)
        assert not slide.is_missing(slide.frame_of(2).part(Window(row=0, column=64, height=64, width=64)))
    forget_tiles(path, page=1)  # now only level 0 has these pixels
    with Slide.open(path) as slide:
        expected[:64, 64:] = halved(image, 4)[:64, 64:]
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(2)).array, expected)
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(1)).array, halved(image, 2))


def test_only_what_no_level_stores_is_white_and_missing(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write(tmp_path / "a.tif", image, 4)
    forget_tiles(path, page=1)
    for tile in (0, 1, 8):
        forget_tiles(path, only=tile)
    with Slide.open(path) as slide:
        seen = image.copy()
        for row, column in ((0, 0), (0, 1), (1, 0)):
            seen[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64] = 255
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, seen)
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(1)).array, halved(seen, 4))
        coarse = slide.frame_of(1)
        assert slide.is_missing(slide.frame.part(Window(row=0, column=0, height=64, width=128)))
        assert slide.is_missing(coarse.part(Window(row=0, column=0, height=16, width=32)))
        assert not slide.is_missing(coarse.part(Window(row=0, column=0, height=17, width=32)))
        # tissue that level 0 stores counts as stored for a network that reads the coarse level, the rest does not
        tissue = Mask(frame=slide.frame.coarser(16), array=np.ones((32, 32), bool))
        found = stored_coverage(slide, tissue, downsample=1.0)
        assert found.missing_tiles == 3
        assert found.share == pytest.approx(1 - 3 / 64, abs=0.01)
    forget_tiles(path)
    with Slide.open(path) as slide:
        assert (slide.read_frame(slide.frame_of(1)).array == 255).all()
        assert slide.is_missing(slide.frame_of(1))


def test_a_missing_tile_of_level_0_stays_missing_whatever_coarser_levels_store(
    tmp_path: Path, image: NDArray[np.uint8]
) -> None:
    path = write(tmp_path / "a.tif", image, 4)
    forget_tiles(path, only=0)
    with Slide.open(path) as slide:
        assert (slide.read_frame(slide.frame).array[:64, :64] == 255).all()
        assert slide.is_missing(slide.frame.part(Window(row=0, column=0, height=64, width=64)))
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(1)).array, halved(image, 4))


@pytest.fixture(scope="module")
def holes(tmp_path_factory: pytest.TempPathFactory, image: NDArray[np.uint8]) -> Path:
    path = write(tmp_path_factory.mktemp("holes") / "a.tif", image, 2, 4)
    for page, tile in itertools.chain(((0, 0), (0, 9), (2, 0), (2, 3)), ((1, tile) for tile in (0, 5, 6, 15))):
        forget_tiles(path, page=page, only=tile)
    return path


@settings(max_examples=30)
@given(level=st.integers(1, 2), window=st.tuples(*[st.integers(-20, 120)] * 2, *[st.integers(1, 150)] * 2))
def test_windows_of_drawn_tiles_equal_the_whole(holes: Path, level: int, window: tuple[int, int, int, int]) -> None:
    row, column, height, width = window
    one = Window(row=row, column=column, height=height, width=width)
    with Slide.open(holes) as slide:
        full = np.full((400, 400, 3), 255, np.uint8)
        whole = slide.read_frame(slide.frame_of(level)).array
        full[20 : 20 + len(whole), 20 : 20 + len(whole)] = whole
        expected = full[20 + row : 20 + row + height, 20 + column : 20 + column + width]
        np.testing.assert_array_equal(slide.read_window(level, one), expected)
        many = slide.read_windows(level, Windows.of([one, one]), workers=2)
        np.testing.assert_array_equal(many[1], expected)


def test_tiles_drawn_while_jpegs_are_reduced_are_nearly_the_exact_ones(tmp_path: Path) -> None:
    y, x = np.mgrid[0:512, 0:512]
    smooth = np.stack([x / 3, y / 3, (x + y) / 5], axis=-1).astype(np.uint8)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2):
            options: dict[str, Any] = {"compressionargs": {"level": 98}, "subfiletype": factor - 1, "metadata": None}
            tiff.write(halved(smooth, factor), tile=(64, 64), photometric="rgb", compression="jpeg", **options)
    forget_tiles(path, page=1, only=5)
    with Slide.open(path) as slide:
        frame = Frame(x=0, y=0, downsample=8, shape=(64, 64), mpp=None)
        quick, exact = (slide.read_frame(frame, exact=way).array.astype(int) for way in (False, True))
        assert np.abs(quick - exact).max() <= 4
        assert np.abs(exact - halved(smooth, 8)).max() <= 4


def test_a_tile_drawn_from_a_bad_one_is_bad(tmp_path: Path, image: NDArray[np.uint8]) -> None:
    path = write(tmp_path / "a.tif", image, 4)
    forget_tiles(path, page=1, only=0)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].dataoffsets[9]
    data = bytearray(path.read_bytes())
    data[at : at + 20] = bytes(20)
    path.write_bytes(data)
    with Slide.open(path) as slide, pytest.raises(TileError, match="level 0, tile row 1, tile column 1"):
        slide.read_frame(slide.frame_of(1))
    with Slide.open(path, on_bad_tile="white") as slide:
        assert (slide.read_frame(slide.frame_of(1)).array[:64, :64] == 255).all()
        assert [(bad.level, bad.row, bad.column) for bad in slide.bad_tiles] == [(0, 1, 1), (1, 0, 0)]


def test_an_aperio_slide_without_coarse_tiles_is_seen_as_its_twin(real_data: RealData) -> None:
    empty, twin = real_data("reports/svs_coarse_tiles_empty.svs"), real_data("reports/svs_coarse_tiles_ok.svs")
    with Slide.open(empty) as one, Slide.open(twin) as other:
        areas = [tissue_area_um2(find_tissue(slide)) / 1e6 for slide in (one, other)]
        assert areas == [pytest.approx(2.07, abs=0.005)] * 2
        assert areas[0] == areas[1]
        for um in (1.0, 2.7, 4.0, 8.0, 16.0):
            difference = one.read_at(um).array.astype(int) - other.read_at(um).array
            assert np.abs(difference).max() <= 1
            assert np.abs(one.read_at(um, exact=False).array.astype(int) - other.read_at(um).array).max() <= 1
        assert not one.is_missing(one.frame_of(1))
        drawn = one.read_frame(one.frame_of(1)).array.astype(int)
    assert np.abs(drawn - through_openslide(empty, 1)).max() <= 1  # which draws Aperio's missing tiles, too
