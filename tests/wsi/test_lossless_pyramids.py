"""Masks and heatmaps as pyramids: every level against its rule by brute force, in every library that opens it."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from openslide import OpenSlide

from wsi.geometry import Frame
from wsi.raster import Heatmap
from wsi.slide import Slide
from wsi.writing.heatmap_file import write_eight_bit_heatmap, write_heatmap_tiff
from wsi.writing.pyramid import write_float, write_mask
from wsi.writing.tile_encoding import Compression, Reduction, halve_by_majority, halve_finite

COMPRESSIONS: tuple[Compression, ...] = ("deflate", "lzw", "zstd")
RNG = np.random.default_rng(5)


def cut(image: NDArray[Any], size: int, *, padding: float = 0) -> Iterator[NDArray[Any]]:
    rows, columns = -(-image.shape[0] // size), -(-image.shape[1] // size)
    padded = np.full((rows * size, columns * size), padding, dtype=image.dtype)
    padded[: image.shape[0], : image.shape[1]] = image
    for row in range(rows):
        for column in range(columns):
            yield padded[row * size : (row + 1) * size, column * size : (column + 1) * size]


def blobs(height: int, width: int) -> NDArray[np.uint8]:
    """Values 0, 1 and 2 in pieces of all sizes, down to single pixels."""
    coarse = RNG.choice(3, (height // 16 + 1, width // 16 + 1), p=(0.7, 0.2, 0.1)).astype(np.uint8)
    image = np.kron(coarse, np.ones((16, 16), dtype=np.uint8))[:height, :width]
    single = RNG.random((height, width))
    image[single < 0.002] = 2
    return image


def fours(image: NDArray[Any]) -> NDArray[Any]:
    """The 2 x 2 px of each pixel below, (rows, columns, 4); at an odd edge the last ones stand twice."""
    padded = np.pad(image, [(0, side % 2) for side in image.shape], mode="edge")
    height, width = padded.shape[0] // 2, padded.shape[1] // 2
    return padded.reshape(height, 2, width, 2).transpose(0, 2, 1, 3).reshape(height, width, 4)


def most_frequent(four: NDArray[Any]) -> int:
    counts = Counter(four.tolist())
    return int(max(counts, key=lambda value: (counts[value], value)))


def reduced(image: NDArray[np.uint8], reduction: Reduction) -> NDArray[np.uint8]:
    blocks = fours(image)
    if reduction == "max":
        return np.asarray(blocks.max(axis=-1))
    if reduction == "nearest":
        return np.asarray(blocks[:, :, 0])
    return np.apply_along_axis(most_frequent, 2, blocks).astype(np.uint8)


def pages(path: Path) -> list[NDArray[Any]]:
    with tifffile.TiffFile(path) as tiff:
        return [page.asarray() for page in tiff.pages]


def through_openslide(path: Path) -> list[NDArray[np.uint8]]:
    with OpenSlide(str(path)) as slide:
        return [np.asarray(slide.read_region((0, 0), level, size)) for level, size in enumerate(slide.level_dimensions)]


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_mask_has_its_values_in_every_library(tmp_path: Path, compression: Compression) -> None:
    path = tmp_path / "mask.tif"
    image = blobs(300, 421)
    write_mask(path, width=421, height=300, mpp=0.25, tile_size=64, tiles=cut(image, 64), compression=compression)
    expected = [image]
    while max(expected[-1].shape) > 64:
        expected.append(reduced(expected[-1], "max"))
    stored = pages(path)
    assert [page.shape for page in stored] == [level.shape for level in expected]
    seen = through_openslide(path)
    for level, page, rgba in zip(expected, stored, seen, strict=True):
        np.testing.assert_array_equal(page, level)
        assert (rgba[:, :, 3] == 255).all()
        for channel in range(3):
            np.testing.assert_array_equal(rgba[:, :, channel], level)
    with Slide.open(path) as slide:
        assert slide.mpp == pytest.approx(0.25)
        assert len(slide.levels) == len(expected)
        for index, level in enumerate(expected):
            array = slide.read_frame(slide.frame_of(index)).array
            np.testing.assert_array_equal(array, np.repeat(level[:, :, None], 3, axis=2))
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages.first.aspage()
        assert (first.photometric, first.bitspersample, first.samplesperpixel) == (1, 8, 1)
        assert first.tags["XResolution"].value == (40_000, 1)
        assert first.tags["ResolutionUnit"].value == 3
    with OpenSlide(str(path)) as oracle:
        assert float(oracle.properties["openslide.mpp-x"]) == pytest.approx(0.25)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    reduction=st.sampled_from(["max", "majority", "nearest"]),
    padding=st.sampled_from([0, 1, 255]),
)
def test_every_level_of_a_mask_follows_its_rule(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, reduction: Reduction, padding: int
) -> None:
    path = tmp_path_factory.mktemp("mask") / "mask.tif"
    level = blobs(height, width)
    tiles = cut(level, 32, padding=padding)
    write_mask(path, width=width, height=height, mpp=None, tile_size=32, tiles=tiles, reduction=reduction)
    for page in pages(path):
        np.testing.assert_array_equal(page, level)
        level = reduced(level, reduction)


@pytest.mark.parametrize("value", [1, 2, 255])
def test_a_single_pixel_of_tumour_reaches_the_coarsest_level(tmp_path: Path, value: int) -> None:
    image = np.zeros((1000, 700), dtype=np.uint8)
    image[999, 699] = value
    write_mask(tmp_path / "mask.tif", width=700, height=1000, mpp=1, tile_size=64, tiles=cut(image, 64, padding=9))
    levels = pages(tmp_path / "mask.tif")
    assert len(levels) == 5
    assert all((page == value).sum() == 1 and page[-1, -1] == value for page in levels)


def test_missing_tiles_of_a_mask_are_zero_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    tiles = [None, np.full((64, 64), 7, dtype=np.uint8), None, np.zeros((64, 64), dtype=np.uint8)]
    stats = write_mask(path, width=128, height=128, mpp=1, tile_size=64, tiles=tiles)
    assert stats.tiles == 2
    expected = np.zeros((128, 128), dtype=np.uint8)
    expected[:64, 64:] = 7
    np.testing.assert_array_equal(pages(path)[0], expected)
    np.testing.assert_array_equal(pages(path)[1], reduced(expected, "max"))
    rgba = through_openslide(path)[0]
    np.testing.assert_array_equal(rgba[:, :, 0], expected)
    assert (rgba[:, :, 3] == 255).all()
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array[:, :, 0], expected)


def test_a_mask_of_no_tumour_at_all(tmp_path: Path) -> None:
    path = tmp_path / "mask.tif"
    assert write_mask(path, width=1000, height=900, mpp=1, tile_size=64, tiles=[None] * (16 * 15)).tiles == 0
    assert [page.any() for page in pages(path)] == [False] * 5
    assert path.stat().st_size < 10_000


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, (6, 8), elements=st.integers(0, 4)))
def test_majority_is_the_most_frequent(tile: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(halve_by_majority(tile), reduced(tile, "majority"))


@pytest.mark.slow
def test_a_wide_mask_needs_no_more_memory_than_its_rows(tmp_path: Path) -> None:
    columns, rows = 938, 20  # 60,032 x 1,280 px of 64: a band of a slide at full width
    full = np.full((64, 64), 1, dtype=np.uint8)
    tiles = (full if row % 5 == 0 and column % 50 == 0 else None for row in range(rows) for column in range(columns))
    tracemalloc.start()
    try:
        write_mask(tmp_path / "wide.tif", width=60_000, height=1_280, mpp=0.25, tile_size=64, tiles=tiles)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # level 0 is 77 MB; what must be kept are 16 bytes per tile and a few hundred pieces of a tile
    assert peak < 2_500_000
    assert pages(tmp_path / "wide.tif")[-1].sum() > 0


# --- heatmaps -------------------------------------------------------------------------------------------------------


def mean_of_finite(image: NDArray[np.float32]) -> NDArray[np.float64]:
    blocks = fours(image).astype(np.float64)
    out = np.full(blocks.shape[:2], np.nan)
    for row, column in np.ndindex(*out.shape):
        finite = [value for value in blocks[row, column] if np.isfinite(value)]
        if finite:
            out[row, column] = sum(finite) / len(finite)
    return out


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("has_predictor", [True, False])
def test_a_heatmap_is_lossless(tmp_path: Path, compression: Compression, *, has_predictor: bool) -> None:
    path = tmp_path / "heat.tif"
    image = RNG.random((200, 150)).astype(np.float32)
    image[30:60, 20:90] = np.nan
    image[100, 100] = np.inf
    image[0, :3] = (-0.0, np.finfo(np.float32).tiny, -np.finfo(np.float32).max)
    write_float(
        path,
        width=150,
        height=200,
        mpp=2.0,
        tile_size=64,
        tiles=cut(image, 64),
        compression=compression,
        has_predictor=has_predictor,
    )
    stored = pages(path)
    assert [page.dtype for page in stored] == [np.float32] * 3
    np.testing.assert_array_equal(stored[0].view(np.uint32), image.view(np.uint32))
    for above, below in pairwise(stored):
        np.testing.assert_allclose(below, mean_of_finite(above), rtol=1e-6)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.aspage().predictor == (3 if has_predictor else 1)
        assert tiff.pages.first.aspage().tags["XResolution"].value == (5_000, 1)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 100), height=st.integers(1, 100), padding=st.sampled_from([0.0, 5.0, float("nan")]))
def test_any_size_of_heatmap(tmp_path_factory: pytest.TempPathFactory, width: int, height: int, padding: float) -> None:
    path = tmp_path_factory.mktemp("heat") / "heat.tif"
    image = RNG.random((height, width)).astype(np.float32)
    tiles = cut(image, 32, padding=padding)
    write_float(path, width=width, height=height, mpp=None, tile_size=32, tiles=tiles)
    expected: NDArray[Any] = image
    for page in pages(path):
        assert page.shape == expected.shape
        np.testing.assert_allclose(page, expected, rtol=1e-5)
        expected = mean_of_finite(expected)


def test_missing_tiles_of_a_heatmap_are_zero(tmp_path: Path) -> None:
    path = tmp_path / "heat.tif"
    tiles = [None, np.full((64, 64), 0.5, dtype=np.float32), None, None]
    assert write_float(path, width=128, height=128, mpp=1, tile_size=64, tiles=tiles).tiles == 2
    first, second = pages(path)
    assert (first[:64, 64:] == 0.5).all()
    assert first.sum() == 0.5 * 64 * 64
    assert second.sum() == 0.5 * 32 * 32


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (4, 6), elements=st.floats(width=32)))
def test_halving_takes_the_finite(tile: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(halve_finite(tile), mean_of_finite(tile), rtol=1e-6, atol=1e-40)


# --- both -----------------------------------------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    mask, heat = blobs(500, 700), RNG.random((300, 300)).astype(np.float32)
    for workers in (1, 2, 6):
        write_mask(
            tmp_path / f"mask{workers}",
            width=700,
            height=500,
            mpp=1,
            tile_size=64,
            tiles=cut(mask, 64),
            workers=workers,
        )
        write_float(
            tmp_path / f"heat{workers}",
            width=300,
            height=300,
            mpp=1,
            tile_size=64,
            tiles=cut(heat, 64),
            workers=workers,
        )
    for name in ("mask", "heat"):
        assert len({(tmp_path / f"{name}{workers}").read_bytes() for workers in (1, 2, 6)}) == 1


@pytest.mark.parametrize("change", [{"compression": "jpeg"}, {"reduction": "mean"}, {"workers": 0}, {"tile_size": 20}])
def test_wrong_arguments_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"width": 64, "height": 64, "mpp": 0.5, "tile_size": 64, "tiles": [None]}
    with pytest.raises(ValueError, match=r"."):
        write_mask(tmp_path / "mask.tif", **(arguments | change))
    assert list(tmp_path.iterdir()) == []


def test_a_tile_of_another_kind_is_refused(tmp_path: Path) -> None:
    for tile in (np.zeros((64, 64, 3), dtype=np.uint8), np.zeros((64, 64), dtype=np.int64)):
        for write in (write_mask, write_float):
            with pytest.raises(ValueError, match="must be"):
                write(tmp_path / "a.tif", width=64, height=64, mpp=None, tile_size=64, tiles=[tile])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_heatmap_is_written_cell_by_cell(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((300, 700), dtype=np.float32)
    frame = Frame(x=0.0, y=0.0, downsample=64.0, shape=array.shape, mpp=0.25)
    write_heatmap_tiff(tmp_path / "heat.tif", Heatmap(frame=frame, array=array, tissue=np.ones(array.shape, np.bool_)))
    with tifffile.TiffFile(tmp_path / "heat.tif") as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        np.testing.assert_array_equal(page.asarray(), array)
        assert page.get_resolution(5)[0] == pytest.approx(1 / 16.0)
    elsewhere = replace(frame, x=64.0)
    with pytest.raises(ValueError, match="slide's corner"):
        write_heatmap_tiff(
            tmp_path / "b.tif", Heatmap(frame=elsewhere, array=array, tissue=np.ones(array.shape, np.bool_))
        )


def test_a_heatmap_of_8_bits_opens_in_openslide(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((700, 1100), dtype=np.float32)
    array[:300] = 0
    array[17, 900] = 1  # one cell, to be seen on every level
    frame = Frame(x=0.0, y=0.0, downsample=64.0, shape=array.shape, mpp=0.25)
    path = tmp_path / "heat.tif"
    write_eight_bit_heatmap(path, Heatmap(frame=frame, array=array, tissue=np.ones(array.shape, np.bool_)))
    with OpenSlide(path) as oracle:
        assert oracle.level_dimensions == ((1100, 700), (550, 350), (275, 175), (138, 88))
        assert float(oracle.properties["openslide.mpp-x"]) == pytest.approx(16.0)
        for level, size in enumerate(oracle.level_dimensions):
            seen = np.asarray(oracle.read_region((0, 0), level, size))
            assert (seen[..., 3] == 255).all()
            assert (np.ptp(seen[..., :3], axis=2) == 0).all()
            assert seen[17 >> level, 900 >> level, 0] == 255
            if level == 0:
                assert np.abs(seen[..., 0] / 255 - array).max() <= 0.5 / 255 + 1e-6
    elsewhere = Heatmap(frame=replace(frame, x=64.0), array=array, tissue=np.ones(array.shape, np.bool_))
    with pytest.raises(ValueError, match="slide's corner"):
        write_eight_bit_heatmap(tmp_path / "b.tif", elsewhere)
