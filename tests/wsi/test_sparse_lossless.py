"""Sparse slides of lossless tiles: their bytes are copied, and whatever else lost nothing so far loses nothing here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image as Pillow
from slide_files import picture, through_openslide, windows, write_tiff
from typer.testing import CliRunner

from staging.cli import app
from wsi.errors import SlideFormatError, TileError
from wsi.slide import Slide
from wsi.windows import Windows
from wsi.writing.sparse import SparseStats, estimate_bytes, write_sparse
from wsi.writing.tile_encoding import halve_colour

HEIGHT, WIDTH, TILE = 256, 320, 64
NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, ZSTD = 1, 5, 8, 32_946, 32_773, 50_000
KINDS = [(NONE, False), *itertools.product((LZW, DEFLATE, OLD_DEFLATE, ZSTD), (False, True))]
GREYS = {"minisblack": 1, "miniswhite": 0}
Pixels = NDArray[np.uint8]


def write_slide(path: Path, images: list[Pixels], kinds: list[dict[str, Any]], **options: Any) -> Path:
    """A pyramid of one image a level, each with its own tags."""
    with tifffile.TiffWriter(path, **options) as tiff:
        for index, (image, kind) in enumerate(zip(images, kinds, strict=True)):
            tiff.write(image, **{"tile": (TILE, TILE), "metadata": None, "subfiletype": int(index > 0)} | kind)
    return path


def compressed(compression: int, *, predictor: bool, photometric: str = "rgb") -> dict[str, Any]:
    return {"compression": compression, "predictor": predictor or None, "photometric": photometric}


def drop_tile(path: Path, index: int) -> None:
    """Make a tile of the first level a missing one."""
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (324, 325):
            tag = tiff.pages.first.tags[code]
            values = list(tag.value)
            values[index] = 0
            tag.overwrite(values)


def touched_pixels(shape: tuple[int, int], some: Windows, tile: int) -> NDArray[np.bool_]:
    """Which pixels lie in tiles that hold a pixel of a window, by looking at every tile."""
    wanted = np.zeros(shape, bool)
    for window in some:
        wanted[max(0, window.row) : max(0, window.bottom), max(0, window.column) : max(0, window.right)] = True
    found = np.zeros(shape, bool)
    for row, column in itertools.product(range(0, shape[0], tile), range(0, shape[1], tile)):
        found[row : row + tile, column : column + tile] = wanted[row : row + tile, column : column + tile].any()
    return found


def halved(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean of 2 x 2 px, halves rounded up, white beyond the edge."""
    even = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), constant_values=255)
    return halve_colour(even)


def check_copy(source: Path, target: Path, asked: Mapping[int, Windows], *, tile: int = TILE) -> None:
    """The same pixels in touched tiles, in our reader and in OpenSlide; white elsewhere, or the mean of level 0."""
    with Slide.open(source) as theirs, Slide.open(target) as ours:
        assert [level.shape for level in ours.levels] == [level.shape for level in theirs.levels]
        for level in theirs.levels:
            some = asked.get(level.index, windows())
            inside = touched_pixels(level.shape, some, tile)[:, :, None]
            stored, copied = (slide.read_frame(slide.frame_of(level.index)).array for slide in (theirs, ours))
            outside = (
                255 if level.index == 0 else halved(ours.read_frame(ours.frame).array)[: level.height, : level.width]
            )
            np.testing.assert_array_equal(copied, np.where(inside, stored, outside))
            # OpenSlide takes no big-endian classic TIFF of tifffile's; the copy is one it knows.
            there = stored if OpenSlide.detect_format(str(source)) is None else through_openslide(source, level.index)
            np.testing.assert_array_equal(through_openslide(target, level.index), np.where(inside, there, 255))


def check_bytes(source: Path, target: Path) -> int:
    """Every tile of the copy is the slide's, byte for byte, with the same tags; how many there are."""
    tiles = 0
    with Slide.open(source) as theirs, Slide.open(target) as ours:
        for level in theirs.levels:
            old, new = theirs.stored_tiles(level.index), ours.stored_tiles(level.index)
            assert old is not None
            assert new is not None
            assert (new.compression, new.photometric, new.samples) == (old.compression, old.photometric, old.samples)
            assert new.predictor == (old.predictor if old.compression != NONE else 1)
            assert new.extra_samples == old.extra_samples
            for where in itertools.product(range(new.rows), range(new.columns)):
                data = new.read(*where)
                if data is not None:
                    assert data == old.read(*where)
                    tiles += 1
    return tiles


def copy(source: Path, target: Path, asked: Mapping[int, Windows], **options: Any) -> SparseStats:
    with Slide.open(source) as slide:
        return write_sparse(slide, target, asked, **options)


@pytest.mark.parametrize("options", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=["classic", "big", "big-endian"])
@pytest.mark.parametrize(("compression", "predictor"), KINDS)
def test_lossless_tiles_are_copied_byte_for_byte(
    compression: int, *, predictor: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    full = picture(HEIGHT, WIDTH)
    half = full[::2, ::2].copy()
    kinds = [compressed(compression, predictor=predictor)] * 2
    source, target = write_slide(tmp_path / "slide.tif", [full, half], kinds, **options), tmp_path / "sparse.tif"
    drop_tile(source, 6)  # the second of the second row: wanted, and missing
    asked = {0: windows((0, 130, 100, 90), (200, 300, 99, 99), (70, 70, 4, 4)), 1: windows((70, 100, 10, 60))}
    done = copy(source, target, asked)
    check_copy(source, target, asked)
    assert check_bytes(source, target) == done.tiles_copied == 7
    assert (done.levels, done.tiles_encoded, done.is_exact) == (2, 0, True)
    assert done.file_bytes == target.stat().st_size
    with OpenSlide(str(target)) as opened:
        assert opened.properties["openslide.vendor"] == "generic-tiff"
        assert not np.asarray(opened.read_region((64, 64), 0, (64, 64))).any()  # nothing there, and no error


@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha", "unspecified"])
def test_a_fourth_sample_stays(alpha: str, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    image[:, :, :3] = np.minimum(image[:, :, :3], image[:, :, 3:])  # as premultiplied colours are
    source, target = tmp_path / "slide.tif", tmp_path / "sparse.tif"
    write_tiff(source, image, compression="zlib", predictor=True, extrasamples=[alpha])
    asked = {0: windows((100, 100, 60, 60))}
    done = copy(source, target, asked)
    check_copy(source, target, asked)
    assert check_bytes(source, target) == done.tiles_copied == 4
    assert done.is_exact


def test_levels_may_differ_in_kind(tmp_path: Path) -> None:
    full = picture(HEIGHT, WIDTH)
    kinds = [{"compression": "jpeg", "photometric": "ycbcr"}, compressed(LZW, predictor=True)]
    source, target = write_slide(tmp_path / "slide.tif", [full, full[::2, ::2].copy()], kinds), tmp_path / "sparse.tif"
    asked = {0: windows((0, 0, 70, 10)), 1: windows((0, 0, 10, 70))}
    done = copy(source, target, asked)
    check_copy(source, target, asked)
    assert check_bytes(source, target) == done.tiles_copied == 4
    assert done.is_exact


@pytest.fixture(scope="module")
def deflated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "deflate.tif"
    full = picture(HEIGHT - 9, WIDTH - 11)
    return write_slide(path, [full, full[1::2, 1::2].copy()], [compressed(DEFLATE, predictor=True)] * 2)


positions = st.tuples(st.integers(-80, HEIGHT), st.integers(-80, WIDTH), st.integers(1, 150), st.integers(1, 150))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(levels=st.dictionaries(st.sampled_from([0, 1]), st.lists(positions, max_size=4)))
def test_any_windows(
    levels: dict[int, list[tuple[int, int, int, int]]], deflated: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    asked = {level: windows(*some) for level, some in levels.items()}
    target = tmp_path_factory.mktemp("copies") / "sparse.tif"
    done = copy(deflated, target, asked)
    check_copy(deflated, target, asked)
    assert check_bytes(deflated, target) == done.tiles_copied


@pytest.mark.slow
def test_tiles_of_any_size_keep_their_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    # Noise of 1024 px is more than what is gathered for one write; even parts compress to a few bytes.
    image = np.random.default_rng(2).integers(0, 256, (3 * 1024, 2 * 1024, 3), dtype=np.uint8)
    image[1024:2048] = 77
    image[2048:, 1024:] = 200
    source = write_tiff(tmp_path / "slide.tif", image, compression="zlib", tile=(1024, 1024))
    written = []
    for workers in (1, 3):
        target = tmp_path / f"sparse{workers}.tif"
        asked = {0: windows((0, 0, *image.shape[:2]))}
        assert copy(source, target, asked, workers=workers).is_exact
        written.append(target.read_bytes())
    assert written[0] == written[1]
    assert check_bytes(source, target) == 6
    with Slide.open(target) as slide:
        np.testing.assert_array_equal(slide.read_frame(slide.frame).array, image)
        assert 0.9 < estimate_bytes(slide, asked) / target.stat().st_size < 1.1


@pytest.mark.parametrize("on_bad_tile", ["raise", "white"])
@pytest.mark.parametrize(("compression", "predictor"), KINDS)
def test_damage_is_refused(
    compression: int, *, predictor: bool, on_bad_tile: Literal["raise", "white"], tmp_path: Path
) -> None:
    source = write_tiff(tmp_path / "slide.tif", picture(HEIGHT, WIDTH), **compressed(compression, predictor=predictor))
    with tifffile.TiffFile(source, mode="r+") as tiff:
        counts, offset = tiff.pages.first.tags[325], tiff.pages.first.dataoffsets[7]
        if compression == NONE:  # any bytes are pixels; too few of them are not
            counts.overwrite([count - (index == 7) for index, count in enumerate(counts.value)])
        length = counts.value[7]
    if compression != NONE:
        data = bytearray(source.read_bytes())
        data[offset : offset + length] = b"\xff" * length
        source.write_bytes(data)
    with Slide.open(source, on_bad_tile=on_bad_tile) as slide:
        with pytest.raises(TileError, match="tile row 1, tile column 2"):
            write_sparse(slide, tmp_path / "sparse.tif", {0: windows((70, 130, 10, 10))})
        assert not (tmp_path / "sparse.tif").exists()
        done = write_sparse(slide, tmp_path / "sparse.tif", {0: windows((0, 0, 70, 100))})
        assert done.tiles_copied == 4  # what is not wanted is not looked at


@pytest.mark.parametrize("kind", ["packbits", "planes", "png"])
def test_what_has_no_loss_gets_none(kind: str, tmp_path: Path) -> None:
    image, target = picture(600, 1100), tmp_path / "sparse.tif"
    source = tmp_path / ("slide.png" if kind == "png" else "slide.tif")
    if kind == "png":
        Pillow.fromarray(image).save(source)
    elif kind == "planes":
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        write_tiff(source, planes, compression="lzw", predictor=True, planarconfig="separate")
    else:
        write_tiff(source, image, compression="packbits")
    asked = {0: windows((500, 1000, 30, 30))}
    with Slide.open(source, mpp=0.5) as slide:
        done = write_sparse(slide, target, asked, quality=5)
        assert 0.3 < estimate_bytes(slide, asked) / (4 * 512 * 512 * 3) < 1  # four tiles, not as JPEG
    assert (done.tiles_copied, done.tiles_encoded, done.is_exact) == (0, 4, True)
    expected = np.full_like(image, 255)
    expected[:, 512:] = image[:, 512:]
    with Slide.open(target) as ours:
        np.testing.assert_array_equal(ours.read_frame(ours.frame).array, expected)
        stored = ours.stored_tiles(0)
    assert stored is not None
    assert (stored.compression, stored.predictor, stored.photometric) == (DEFLATE, 2, 2)
    np.testing.assert_array_equal(through_openslide(target), expected)
    again = copy(target, tmp_path / "again.tif", asked)  # now they can be copied
    assert (again.tiles_copied, again.tiles_encoded, again.is_exact) == (4, 0, True)


def test_a_grey_slide_without_loss_counts_as_a_mask(tmp_path: Path) -> None:
    for photometric in GREYS:
        image = np.ascontiguousarray(picture(HEIGHT, WIDTH)[:, :, 0])
        source = write_tiff(tmp_path / "slide.tif", image, compression="lzw", photometric=photometric)
        with pytest.raises(SlideFormatError, match="is a mask"):
            copy(source, tmp_path / "sparse.tif", {})


def test_convert_tissue_only_keeps_lossless_tiles(tmp_path: Path) -> None:
    side = 128
    image = np.full((12 * side, 14 * side, 3), 243, np.uint8)
    where = slice(5 * side, 8 * side), slice(5 * side, 9 * side)
    tissue = np.random.default_rng(0).normal((170, 90, 150), 25, (3 * side, 4 * side, 3))
    image[where] = np.clip(tissue, 0, 255)
    source, target = tmp_path / "slide.tif", tmp_path / "small.tif"
    half_um: dict[str, Any] = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    write_tiff(source, image, tile=(side, side), compression="zlib", predictor=True, **half_um)
    done = CliRunner().invoke(app, ["convert", "--tissue-only", str(source), str(target)], catch_exceptions=False)
    assert done.exit_code == 0
    assert '"exact": true' in done.stdout
    assert 12 <= check_bytes(source, target) < 12 * 14
    with Slide.open(target) as slide:
        found = slide.read_frame(slide.frame).array
        assert slide.mpp == pytest.approx(0.5)
    np.testing.assert_array_equal(found[where], image[where])
    assert (found[:side] == 255).all()
