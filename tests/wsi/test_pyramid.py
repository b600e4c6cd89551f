"""Written pyramids: what other libraries see in them, what is missing, and what failures leave behind."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
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

from wsi.errors import StorageError
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid
from wsi.writing.tile_encoding import ColourTiles, halve_colour

Tiles = Iterator[NDArray[np.uint8] | None]


def smooth(height: int, width: int, *, scale: float = 1) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64) / scale
    waves = [np.sin(x / 37 + y / 53), np.cos(x / 71), np.sin(y / 43)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def cut(image: NDArray[np.uint8], size: int, missing: frozenset[tuple[int, int]] = frozenset()) -> Tiles:
    rows, columns = -(-image.shape[0] // size), -(-image.shape[1] // size)
    padded = np.full((rows * size, columns * size, 3), 255, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    for row in range(rows):
        for column in range(columns):
            tile = padded[row * size : (row + 1) * size, column * size : (column + 1) * size]
            yield None if (row, column) in missing else tile


MISSING = frozenset({(0, 0), (0, 1), (1, 0), (1, 1), (2, 3), (0, 4), (1, 4)})


@pytest.fixture(scope="module", params=[False, True], ids=["generic", "philips"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    path = tmp_path_factory.mktemp("pyramid") / "slide.tif"
    stats = write_pyramid(
        path,
        width=1101,
        height=750,
        mpp=0.243,
        tile_size=256,
        tiles=cut(smooth(750, 1101), 256, MISSING),
        philips=request.param,
    )
    # 15 tiles less 7, then 6 less those under (0, 0) and (0, 2), then 2, then 1.
    assert stats.tiles == 8 + 4 + 2 + 1
    assert stats.encode_seconds > 0
    return path, request.param


def test_openslide_sees_what_we_see(written: tuple[Path, bool]) -> None:
    path, is_philips = written
    with OpenSlide(str(path)) as oracle, Slide.open(path) as slide:
        assert oracle.properties["openslide.vendor"] == ("philips" if is_philips else "generic-tiff")
        assert slide.properties["sentinode.format"] == ("philips" if is_philips else "tiff")
        assert [(level.width, level.height) for level in slide.levels] == list(oracle.level_dimensions)
        assert oracle.level_dimensions[0] == ((1280, 768) if is_philips else (1101, 750))
        assert len(slide.levels) == 4
        assert [level.downsample for level in slide.levels] == [1, 2, 4, 8]
        np.testing.assert_allclose(oracle.level_downsamples, [1, 2, 4, 8], rtol=0.005)
        for axis in "xy":
            assert float(oracle.properties[f"openslide.mpp-{axis}"]) == pytest.approx(0.243, rel=1e-6)
        assert slide.mpp == pytest.approx(0.243, rel=1e-6)


def test_tifffile_sees_the_same_structure(written: tuple[Path, bool]) -> None:
    path, is_philips = written
    with tifffile.TiffFile(path) as tiff:
        pages = [page.aspage() for page in tiff.pages]
        assert tiff.is_bigtiff
        assert bool(tiff.is_philips) == is_philips
        assert [int(page.subfiletype) for page in pages] == [0, 1, 1, 1]
        assert all(page.photometric == 6 and page.jpegtables for page in pages)
        assert len({page.jpegtables for page in pages}) == 1
        assert pages[0].software.startswith("Philips" if is_philips else "sentinode")
        assert ("XResolution" in pages[0].tags) != is_philips
        counts = np.array(pages[0].databytecounts).reshape(3, 5)
        assert {(int(row), int(column)) for row, column in np.argwhere(counts == 0)} == MISSING
        offsets = np.array(pages[0].dataoffsets).reshape(3, 5)
        assert (offsets[counts == 0] == 0).all()
        counts = np.array(pages[1].databytecounts).reshape(2, 3)
        assert {(int(row), int(column)) for row, column in np.argwhere(counts == 0)} == {(0, 0), (0, 2)}
        if is_philips:
            assert all(page.imagewidth % 256 == 0 and page.imagelength % 256 == 0 for page in pages)


def test_every_level_is_the_average_of_the_finest(tmp_path: Path) -> None:
    image = smooth(512, 768, scale=4)
    path = tmp_path / "slide.tif"
    write_pyramid(path, width=768, height=512, mpp=None, tile_size=128, tiles=cut(image, 128), quality=95)
    with Slide.open(path) as slide:
        assert len(slide.levels) == 4
        assert slide.mpp is None
        for level in slide.levels:
            factor = int(level.downsample)
            mean = image.reshape(512 // factor, factor, 768 // factor, factor, 3).mean(axis=(1, 3))
            stored = slide.read_frame(slide.frame_of(level)).array
            assert np.abs(stored - mean).mean() < 1.5
            # Chroma of the padding beyond the edge bleeds into the last px.
            assert np.abs(stored - mean)[:-2, :-2].max() < 10


def test_missing_tiles_count_as_white_beside_stored_ones(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    write_pyramid(path, width=128, height=128, mpp=1, tile_size=64, tiles=[black, None, None, None])
    with Slide.open(path) as slide:
        array = slide.read_frame(slide.frame_of(1)).array
    assert array[:28, :28].max() < 10
    assert array[36:].min() > 245
    assert array[:, 36:].min() > 245


@pytest.mark.slow
@settings(deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9).map(lambda n: 2 * n), st.just(12), st.just(3))),
)
def test_halving_is_the_rounded_mean_of_four(tile: NDArray[np.uint8]) -> None:
    height, width = tile.shape[0] // 2, tile.shape[1] // 2
    blocks = tile.reshape(height, 2, width, 2, 3).astype(int).sum(axis=(1, 3))
    np.testing.assert_array_equal(halve_colour(tile), (blocks + 2) // 4)


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), levels=st.none() | st.integers(1, 5))
def test_any_size_opens_everywhere(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, levels: int | None
) -> None:
    path = tmp_path_factory.mktemp("any") / "slide.tif"
    write_pyramid(
        path, width=width, height=height, mpp=0.5, tile_size=32, levels=levels, tiles=cut(smooth(height, width), 32)
    )
    with OpenSlide(str(path)) as oracle, Slide.open(path) as slide:
        sizes = [(level.width, level.height) for level in slide.levels]
        # Asked for more levels than there is to halve, we drop the repeated 1 x 1 px.
        assert sizes == list(dict.fromkeys(oracle.level_dimensions))
        assert sizes[0] == (width, height)
        if levels is None:
            assert max(sizes[-1]) <= 32


def test_memory_stays_at_a_few_rows_of_tiles(tmp_path: Path) -> None:
    def tall() -> Tiles:
        for index in range(8 * 200):
            yield np.full((64, 64, 3), index % 251, dtype=np.uint8)

    tracemalloc.start()
    try:
        write_pyramid(tmp_path / "tall.tif", width=8 * 64, height=200 * 64, mpp=0.5, tile_size=64, tiles=tall())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    row_bytes = 8 * 64 * 64 * 3
    assert peak < 6 * row_bytes  # the whole of level 0 is 200 rows


@pytest.mark.parametrize("number", [0, 3, 5])
def test_a_wrong_number_of_tiles_leaves_nothing(tmp_path: Path, number: int) -> None:
    tile = np.zeros((64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="2 x 2 tiles are 4"):
        write_pyramid(tmp_path / "slide.tif", width=128, height=100, mpp=0.5, tile_size=64, tiles=[tile] * number)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    path.write_bytes(b"before")

    def failing() -> Tiles:
        yield np.zeros((64, 64, 3), dtype=np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pyramid(path, width=128, height=128, mpp=0.5, tile_size=64, tiles=failing())
    assert [entry.name for entry in tmp_path.iterdir()] == ["slide.tif"]
    assert path.read_bytes() == b"before"


def test_a_wrong_tile_is_refused(tmp_path: Path) -> None:
    for tile in (np.zeros((64, 60, 3), dtype=np.uint8), np.zeros((64, 64, 3), dtype=np.float32)):
        with pytest.raises(ValueError, match="must be uint8"):
            write_pyramid(tmp_path / "s.tif", width=64, height=64, mpp=0.5, tile_size=64, tiles=[tile])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"mpp": 0.0},
        {"mpp": float("nan")},
        {"tile_size": 100},
        {"levels": 0},
        {"description": "µ"},
        {"workers": 0},
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path: Path, change: dict[str, object]) -> None:
    arguments: dict[str, object] = {"width": 64, "height": 64, "mpp": 0.5, "tile_size": 64, "tiles": [None]}
    with pytest.raises(ValueError, match=r"."):
        write_pyramid(tmp_path / "slide.tif", **(arguments | change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_philips_needs_an_mpp(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mpp"):
        write_pyramid(tmp_path / "s.tif", width=64, height=64, mpp=None, tile_size=64, tiles=[None], philips=True)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_pyramid(tmp_path / "no" / "slide.tif", width=64, height=64, mpp=0.5, tile_size=64, tiles=[None])


def test_a_slide_without_any_tile_is_white(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    write_pyramid(path, width=100, height=60, mpp=0.5, tile_size=64, tiles=[None, None], description="empty")
    with Slide.open(path) as slide:
        assert slide.is_missing(slide.frame)
        assert (slide.read_frame(slide.frame).array == 255).all()
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages.first.description == "empty"


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    image = smooth(450, 700)
    for workers in (1, 2, 7):
        path = tmp_path / f"{workers}.tif"
        tiles = cut(image, 64, frozenset({(0, 0), (3, 4), (3, 5)}))
        write_pyramid(path, width=700, height=450, mpp=0.5, tile_size=64, tiles=tiles, workers=workers)
    assert (tmp_path / "1.tif").read_bytes() == (tmp_path / "2.tif").read_bytes() == (tmp_path / "7.tif").read_bytes()


def test_the_caller_may_use_a_tile_s_memory_again(tmp_path: Path) -> None:
    image = smooth(320, 320)

    def one_buffer() -> Tiles:
        buffer = np.empty((64, 64, 3), dtype=np.uint8)
        for tile in cut(image, 64):
            buffer[...] = 255 if tile is None else tile
            yield buffer

    arguments: dict[str, Any] = {"width": 320, "height": 320, "mpp": 0.5, "tile_size": 64, "workers": 3}
    write_pyramid(tmp_path / "a.tif", tiles=cut(image, 64), **arguments)
    write_pyramid(tmp_path / "b.tif", tiles=one_buffer(), **arguments)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_failing_encoder_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def failing(_kind: ColourTiles, _tile: NDArray[np.uint8]) -> bytes:
        calls.append(len(calls))
        if len(calls) > 5:
            raise RuntimeError("no more")
        return b"jpeg"

    monkeypatch.setattr(ColourTiles, "encode", failing)
    tiles = [np.zeros((64, 64, 3), dtype=np.uint8)] * 100
    with pytest.raises(RuntimeError, match="no more"):
        write_pyramid(tmp_path / "s.tif", width=640, height=640, mpp=1, tile_size=64, tiles=tiles, workers=2)
    assert list(tmp_path.iterdir()) == []
    assert len(calls) < 60
