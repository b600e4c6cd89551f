"""Converted slides: the same pixels and bytes where tiles are copied, the right ones where they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image as Pillow
from slide_files import forget_tiles

from wsi.errors import ResolutionError, SlideError, SlideFormatError
from wsi.geometry import Window
from wsi.slide import Slide
from wsi.writing.convert import ConversionStats, convert_slide
from wsi.writing.pyramid import write_mask, write_pyramid

RealData = Callable[[str], Path]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [np.sin(x / 97 + y / 153), np.cos(x / 131), np.sin(y / 113)]
    return np.stack([127 + 100 * wave for wave in waves], axis=-1).astype(np.uint8)


def cut(image: NDArray[np.uint8], size: int) -> list[NDArray[np.uint8]]:
    rows, columns = -(-image.shape[0] // size), -(-image.shape[1] // size)
    padded = np.full((rows * size, columns * size, *image.shape[2:]), 255, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    return [
        padded[row * size : (row + 1) * size, column * size : (column + 1) * size]
        for row in range(rows)
        for column in range(columns)
    ]


def converted(source: Path, target: Path, *, slide_mpp: float | None = None, **options: Any) -> ConversionStats:
    with Slide.open(source, mpp=slide_mpp) as slide:
        return convert_slide(slide, target, **options)


def whole(slide: Slide, level: int = 0) -> NDArray[np.uint8]:
    return slide.read_frame(slide.frame_of(level)).array


def through_openslide(path: Path, level: int = 0) -> NDArray[np.uint8]:
    """A level as OpenSlide reads it, laid over white."""
    with OpenSlide(str(path)) as slide:
        pixels = slide.read_region((0, 0), level, slide.level_dimensions[level])
    white = Pillow.new("RGB", pixels.size, (255, 255, 255))
    white.paste(pixels, mask=pixels.getchannel("A"))
    return np.asarray(white)


def stored_bytes(path: Path, page: int = 0) -> list[bytes]:
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        found = tiff.pages[page].aspage()
        tiles = []
        for offset, count in zip(found.dataoffsets, found.databytecounts, strict=True):
            file.seek(offset)
            tiles.append(file.read(count))
        return tiles


def facts(path: Path) -> list[tuple[Any, ...]]:
    """What a decoder must know of each page."""
    with tifffile.TiffFile(path) as tiff:
        pages = [page.aspage() for page in tiff.pages]
        return [
            (int(p.compression), int(p.photometric), p.subsampling if p.photometric == 6 else None, p.jpegtables)
            for p in pages
        ]


def write_tiff(path: Path, image: NDArray[np.uint8] | Iterator[NDArray[np.uint8] | None], **options: Any) -> Path:
    settings = {"tile": (64, 64), "metadata": None, "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, image, **(settings | options))
    return path


# --- copied tiles ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("photometric", "subsampling"), [("rgb", (1, 1)), ("ycbcr", (1, 1)), ("ycbcr", (2, 2)), ("ycbcr", (2, 1))]
)
def test_jpeg_tiles_are_copied_byte_for_byte(tmp_path: Path, photometric: str, subsampling: tuple[int, int]) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    write_tiff(
        source,
        picture(500, 700),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 90, "outcolorspace": photometric},
        subsampling=subsampling,
    )
    stats = converted(source, target, tile_size=128)
    # 8 x 11 tiles; then 350 x 250, 175 x 125, 88 x 63 px in tiles of 128
    assert stats == ConversionStats(
        levels=4, tiles_copied=88, tiles_encoded=6 + 2 + 1, file_bytes=target.stat().st_size
    )
    assert stored_bytes(target) == stored_bytes(source)
    assert facts(target)[0] == facts(source)[0]
    np.testing.assert_array_equal(through_openslide(target), through_openslide(source))
    with Slide.open(source) as before, Slide.open(target) as after:
        np.testing.assert_array_equal(whole(after), whole(before))
        assert [(level.width, level.height) for level in after.levels] == [(700, 500), (350, 250), (175, 125), (88, 63)]
        assert after.mpp == pytest.approx(0.25)
        for level in after.levels[1:]:
            mean = before.read_frame(before.frame.coarser(int(level.downsample))).array
            made = whole(after, level.index)
            assert np.abs(made.astype(int) - mean).mean() < 3
            np.testing.assert_array_equal(made, through_openslide(target, level.index))
    with OpenSlide(str(target)) as oracle:
        assert oracle.properties["openslide.vendor"] == "generic-tiff"
        assert oracle.level_downsamples == pytest.approx((1, 2, 4, 8), rel=0.01)
        assert float(oracle.properties["openslide.mpp-x"]) == pytest.approx(0.25)


@pytest.mark.slow
def test_a_philips_slide_keeps_levels_holes_and_sizes(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    image = picture(750, 1101)
    tiles: list[NDArray[np.uint8] | None] = list(cut(image, 256))
    for missing in (0, 1, 5, 6, 13):
        tiles[missing] = None
    write_pyramid(source, width=1101, height=750, mpp=0.243, tile_size=256, tiles=tiles, philips=True)
    stats = converted(source, target)
    with Slide.open(source) as before, Slide.open(target) as after:
        assert before.properties["sentinode.format"] == "philips"
        assert after.properties["sentinode.format"] == "tiff"
        assert after.mpp == pytest.approx(before.mpp)
        assert [(level.width, level.height, level.downsample) for level in after.levels] == [
            (level.width, level.height, level.downsample) for level in before.levels
        ]
        for level in before.levels:
            np.testing.assert_array_equal(whole(after, level.index), whole(before, level.index))
            np.testing.assert_array_equal(through_openslide(target, level.index), whole(before, level.index))
        assert after.is_missing(after.frame.part(Window(row=0, column=0, height=512, width=512)))
    assert [not data for data in stored_bytes(target)] == [tile is None for tile in tiles]
    assert (stats.levels, stats.tiles_copied, stats.tiles_encoded) == (4, 10 + 5 + 2 + 1, 0)
    assert b"DPUfsImport" not in target.read_bytes()


@pytest.mark.slow
def test_a_real_aperio_slide_gets_a_pyramid(real_data: RealData, tmp_path: Path) -> None:
    source, target = real_data("slides/CMU-1-Small-Region.svs"), tmp_path / "out.tif"
    stats = converted(source, target)
    assert (stats.levels, stats.tiles_copied) == (4, 130)
    assert stored_bytes(target) == stored_bytes(source)
    np.testing.assert_array_equal(through_openslide(target), through_openslide(source))
    with Slide.open(source) as before, Slide.open(target) as after:
        np.testing.assert_array_equal(whole(after), whole(before))
        assert after.mpp == pytest.approx(0.499)
        mean = before.read_frame(before.frame.coarser(2).part(Window(row=512, column=512, height=512, width=512))).array
        coded = simplejpeg.encode_jpeg(mean, quality=80, colorspace="RGB", colorsubsampling="420", fastdct=False)
        made = whole(after, 1)[512:1024, 512:1024]
        np.testing.assert_array_equal(made, simplejpeg.decode_jpeg(coded, colorspace="RGB"))
    # Neither the scanner's description nor the label and macro images come along.
    assert b"Aperio" not in target.read_bytes()
    with tifffile.TiffFile(target) as tiff:
        assert all(page.aspage().is_tiled and not page.aspage().description for page in tiff.pages)
    with OpenSlide(str(target)) as oracle:
        assert len(oracle.associated_images) == 0


def test_levels_that_are_no_jpeg_are_encoded(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    image = picture(512, 512)
    with tifffile.TiffWriter(source, bigtiff=True) as tiff:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
        tiff.write(image, compression="jpeg", **options)
        tiff.write(image[::4, ::4], compression="lzw", subfiletype=1, **options)
    stats = converted(source, target, tile_size=64, quality=95)
    assert (stats.levels, stats.tiles_copied, stats.tiles_encoded) == (3, 64, 4 + 1)
    with Slide.open(target) as slide:
        assert [level.downsample for level in slide.levels] == [1, 4, 8]
        assert slide.mpp is None
        assert np.abs(whole(slide, 1).astype(int) - image[::4, ::4]).mean() < 3


# --- decoded tiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", None])
def test_other_compressions_become_jpeg(tmp_path: Path, compression: str | None) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    image = picture(300, 500)
    write_tiff(source, image, photometric="rgb", compression=compression)
    stats = converted(source, target, tile_size=128, quality=95)
    assert (stats.levels, stats.tiles_copied, stats.tiles_encoded) == (3, 0, 12 + 4 + 1)
    expected = tmp_path / "expected.tif"
    write_pyramid(expected, width=500, height=300, mpp=0.25, tile_size=128, tiles=cut(image, 128), quality=95)
    assert target.read_bytes() == expected.read_bytes()


def test_aperio_jpeg2000_becomes_jpeg(tmp_path: Path) -> None:
    source, target = tmp_path / "in.svs", tmp_path / "out.tif"
    image = picture(128, 192)
    tiles = [
        bytes(imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=False, reversible=True))
        for tile in map(np.ascontiguousarray, cut(image, 64))
    ]
    tifffile.imwrite(
        source,
        iter(tiles),
        shape=image.shape,
        dtype=np.uint8,
        tile=(64, 64),
        compression=33005,
        photometric="rgb",
        metadata=None,
        description="Aperio Image Library\r\n192x128 |Title = Jane Doe|MPP = 0.5",
    )
    converted(source, target, quality=95)
    assert facts(target)[0][:2] == (7, 6)
    assert b"Jane" not in target.read_bytes()
    assert np.abs(through_openslide(target).astype(int) - image).mean() < 3
    with Slide.open(target) as slide:
        assert slide.mpp == pytest.approx(0.5)


@pytest.mark.slow
def test_a_flat_picture_gets_a_pyramid(tmp_path: Path) -> None:
    source, target = tmp_path / "in.png", tmp_path / "out.tif"
    image = picture(700, 900)
    Pillow.fromarray(image).save(source)
    stats = converted(source, target, tile_size=256, slide_mpp=0.5)
    assert (stats.levels, stats.tiles_copied, stats.tiles_encoded) == (3, 0, 12 + 4 + 1)
    with Slide.open(target) as slide:
        assert slide.mpp == pytest.approx(0.5)
        assert np.abs(whole(slide).astype(int) - image).mean() < 3


def test_an_openslide_vendor_s_slide(real_data: RealData, tmp_path: Path) -> None:
    source, target = real_data("slides/boxes_0.dcm"), tmp_path / "out.tif"
    stats = converted(source, target, tile_size=64)
    with Slide.open(source) as slide:
        assert slide.properties["sentinode.format"] == "dicom"
        height, width = slide.frame.shape
        tiles = cut(whole(slide), 64)
        expected = tmp_path / "expected.tif"
        write_pyramid(expected, width=width, height=height, mpp=slide.mpp, tile_size=64, tiles=tiles)
        profile = slide.profile()
        assert profile is not None
    assert stored_bytes(target) == stored_bytes(expected)
    assert facts(target) == facts(expected)
    with Slide.open(target) as slide:
        kept = slide.profile()
        assert kept is not None
        assert kept.data == profile.data
    assert stats.tiles_copied == 0


def test_reencode_makes_every_level_from_the_finest(tmp_path: Path) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    image = picture(256, 384)
    tiles: list[NDArray[np.uint8] | None] = [*cut(image, 64)]
    tiles[0] = None
    write_pyramid(source, width=384, height=256, mpp=0.5, tile_size=64, tiles=tiles, levels=1)
    stats = converted(source, target, reencode=True, tile_size=64, quality=50)
    assert (stats.levels, stats.tiles_copied, stats.tiles_encoded) == (4, 0, 23 + 6 + 2 + 1)
    assert stored_bytes(target)[0] == b""
    assert target.stat().st_size != source.stat().st_size


def test_masks_stay_lossless(tmp_path: Path) -> None:
    source, target = tmp_path / "mask.tif", tmp_path / "out.tif"
    image = np.zeros((300, 500), dtype=np.uint8)
    image[100:140, 200:203] = 2
    image[299, 499] = 1
    write_tiff(source, image, photometric="minisblack", compression="lzw", predictor=True)
    stats = converted(source, target, tile_size=128)
    assert (stats.levels, stats.tiles_copied) == (3, 0)
    expected = tmp_path / "expected.tif"
    tiles = cut(image, 128)
    write_mask(expected, width=500, height=300, mpp=0.25, tile_size=128, tiles=tiles, reduction="nearest")
    with tifffile.TiffFile(target) as tiff, tifffile.TiffFile(expected) as oracle:
        np.testing.assert_array_equal(tiff.pages.first.asarray(), image)
        for page, wanted in zip(tiff.pages, oracle.pages, strict=True):
            np.testing.assert_array_equal(page.asarray(), wanted.asarray())
    assert source.read_bytes() != target.read_bytes()
    with pytest.raises(SlideFormatError, match="mixes the values"):
        converted(source, tmp_path / "coarse.tif", mpp=1.0)


def test_what_a_mask_does_not_store_is_no_tumour(tmp_path: Path) -> None:
    source, target = tmp_path / "mask.tif", tmp_path / "out.tif"
    image = np.zeros((192, 192), dtype=np.uint8)
    image[30:60, 30:100] = 1

    tiles = (tile if tile.any() else None for tile in cut(image, 64))
    options: dict[str, Any] = {"photometric": "minisblack", "compression": "adobe_deflate"}
    write_tiff(source, tiles, shape=image.shape, dtype=np.uint8, **options)
    assert [bool(data) for data in stored_bytes(source)] == [True, True] + [False] * 7
    converted(source, target, tile_size=128)  # a tile of 128 px covers stored and missing ones of 64 px
    with tifffile.TiffFile(target) as tiff:
        np.testing.assert_array_equal(tiff.pages.first.asarray(), image)
    np.testing.assert_array_equal(through_openslide(target)[:, :, 0], image)


def test_levels_in_sub_directories_come_into_the_chain(tmp_path: Path) -> None:
    source, target = tmp_path / "in.ome.tif", tmp_path / "out.tif"
    image = picture(512, 640)
    with tifffile.TiffWriter(source, bigtiff=True, ome=True) as tiff:
        options: dict[str, Any] = {"tile": (64, 128), "photometric": "rgb", "compression": "jpeg"}
        tiff.write(image, subifds=2, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **options)
        tiff.write(image[::2, ::2], subfiletype=1, **options)
        tiff.write(image[::4, ::4], subfiletype=1, **options)
    assert converted(source, target).tiles_encoded == 0
    with Slide.open(source) as before, Slide.open(target) as after:
        assert before.properties["sentinode.format"] == "ome-tiff"
        assert [level.downsample for level in after.levels] == [1, 2, 4]
        assert after.mpp == pytest.approx(0.5)
        for level in before.levels:
            np.testing.assert_array_equal(whole(after, level.index), whole(before, level.index))
            np.testing.assert_array_equal(through_openslide(target, level.index), whole(before, level.index))


# --- resolution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mpp", [0.5, 0.6, 1.7, 0.2])
def test_resampling_is_that_of_read_at(tmp_path: Path, mpp: float) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    image = picture(500, 700)
    tiles: list[NDArray[np.uint8] | None] = [*cut(image, 64)]
    tiles[:22] = [None] * 22
    write_pyramid(source, width=700, height=500, mpp=0.25, tile_size=64, tiles=tiles)
    converted(source, target, mpp=mpp, tile_size=64, quality=98)
    with Slide.open(source) as before, Slide.open(target) as after:
        wanted = before.read_at(mpp).array
        assert after.frame.shape == wanted.shape[:2] == before.frame_at(mpp).shape
        assert after.mpp == pytest.approx(mpp)
        assert np.abs(whole(after).astype(int) - wanted).mean() < 1.5
        assert max(after.levels[-1].shape) <= 64
        if mpp <= 0.5:  # two source rows of tiles are missing: a whole row at 0.5
            assert after.is_missing(after.frame.part(Window(row=0, column=0, height=1, width=1)))


def test_the_slide_s_own_mpp_means_copying(tmp_path: Path) -> None:
    source = tmp_path / "in.tif"
    write_pyramid(source, width=128, height=128, mpp=0.25, tile_size=64, tiles=cut(picture(128, 128), 64))
    assert converted(source, tmp_path / "out.tif", mpp=0.25).tiles_encoded == 0
    assert stored_bytes(tmp_path / "out.tif") == stored_bytes(source)


def test_a_given_mpp_is_written(tmp_path: Path) -> None:
    source = tmp_path / "in.tif"
    write_pyramid(source, width=128, height=128, mpp=None, tile_size=64, tiles=cut(picture(128, 128), 64))
    converted(source, tmp_path / "out.tif", slide_mpp=0.321)
    with Slide.open(tmp_path / "out.tif") as slide:
        assert slide.mpp == pytest.approx(0.321)
    with pytest.raises(ResolutionError):
        converted(source, tmp_path / "coarse.tif", mpp=1.0)
    with pytest.raises(SlideError, match="use a larger mpp"):
        converted(source, tmp_path / "fine.tif", slide_mpp=100.0, mpp=0.001)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.tif", "out.tif"]


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_coarse_tiles_that_a_finer_level_has_are_stored_for_other_readers(tmp_path: Path, photometric: str) -> None:
    source, target = tmp_path / "in.tif", tmp_path / "out.tif"
    y, x = np.mgrid[0:256, 0:256]
    image = np.stack([220 - x / 4, 140 + y / 4, 190 - y / 3], axis=-1).astype(np.uint8)
    arguments: dict[str, Any] = {"compressionargs": {"level": 95, "outcolorspace": photometric}, "subsampling": (1, 1)}
    with tifffile.TiffWriter(source) as tiff:
        for side in (1, 2):
            small = np.ascontiguousarray(image[::side, ::side])
            tiff.write(small, tile=(64, 64), photometric="rgb", compression="jpeg", metadata=None, **arguments)
    forget_tiles(source, page=1, only=1)
    for tile in (10, 11, 14, 15):  # under the last coarse tile, which is missing, too
        forget_tiles(source, only=tile)
    forget_tiles(source, page=1, only=3)
    stats = converted(source, target, tile_size=128, quality=95)
    assert (stats.tiles_copied, stats.tiles_encoded) == (12 + 2, 1)
    with Slide.open(source) as before, Slide.open(target) as after:
        assert (whole(after, 1)[64:, 64:] == 255).all()
        assert np.abs(whole(after, 1).astype(int) - whole(before, 1)).max() <= 6
        assert after.is_missing(after.frame_of(1).part(Window(row=64, column=64, height=64, width=64)))
    seen = through_openslide(target, 1).astype(int)
    assert np.abs(seen[:64] - image[:128:2, ::2]).max() <= 6
