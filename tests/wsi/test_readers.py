"""Readers against OpenSlide, tifffile and Pillow."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from openslide import OpenSlide
from PIL import Image as Pillow
from slide_files import RNG, picture, pixels, through_openslide, whole, write_tiff

from wsi.errors import SlideFormatError, TileError
from wsi.geometry import Region, Window
from wsi.readers.base import measure_downsample
from wsi.readers.flat import FlatReader
from wsi.readers.openslide import OpenSlideReader
from wsi.readers.structure import read_structure
from wsi.readers.tiff import TiffReader
from wsi.slide import Slide
from wsi.writing.pyramid import write_pyramid

RealData = Callable[[str], Path]


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.svs", "small.svs", "boxes.tiff", "asap_mask_864x800.tif", "boxes_0.dcm"]
)
def test_real_files_equal_openslide(real_data: RealData, name: str) -> None:
    path = real_data(f"slides/{name}")
    reader = OpenSlideReader(path) if name.endswith(".dcm") else TiffReader(path)
    with OpenSlide(str(path)) as oracle:
        assert [(level.width, level.height) for level in reader.levels] == list(oracle.level_dimensions)
        if name != "boxes.tiff":  # it states 353 um per px
            assert reader.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"]))
    for level in reader.levels:
        np.testing.assert_array_equal(whole(reader, level.index), through_openslide(path, level.index))


def test_windows_of_a_real_slide_equal_openslide(real_data: RealData) -> None:
    path = real_data("slides/CMU-1-Small-Region.svs")
    reader = TiffReader(path)
    full = np.full((3400, 2700, 3), 255, dtype=np.uint8)
    full[200 : 200 + 2967, 200 : 200 + 2220] = through_openslide(path)
    for row, column, height, width in RNG.integers((-200, -200, 1, 1), (2960, 2200, 230, 290), (25, 4)):
        part = pixels(reader, 0, Window(row=row, column=column, height=height, width=width))
        np.testing.assert_array_equal(part, full[row + 200 : row + 200 + height, column + 200 : column + 200 + width])


def test_missing_tiles_and_everything_outside_are_white(sparse: Path) -> None:
    reader = TiffReader(sparse)
    for level in reader.levels:
        np.testing.assert_array_equal(whole(reader, level.index), through_openslide(sparse, level.index))
    assert (pixels(reader, 0, Window(row=0, column=0, height=128, width=128)) == 255).all()
    assert (pixels(reader, 0, Window(row=-70, column=-70, height=60, width=60)) == 255).all()
    beyond = pixels(reader, 0, Window(row=100, column=160, height=500, width=50))
    assert (beyond[92:] == 255).all()
    assert (beyond[:92] < 255).any()


def test_has_pixels_only_where_tiles_are_stored(sparse: Path) -> None:
    reader = TiffReader(sparse)

    def has(row: int, column: int, height: int = 1, width: int = 1, level: int = 0) -> bool:
        return reader.has_pixels(level, Window(row=row, column=column, height=height, width=width))

    assert not has(0, 0, 128, 128)
    assert has(0, 0, 129, 128)
    assert has(0, 0, 128, 129)
    assert not has(130, 200, 62, 56)
    assert not has(192, 0, 50, 256)
    assert not has(-5, -5, 5, 500)
    assert not has(0, 0, 64, 64, level=1)
    assert has(0, 0, 64, 65, level=1)


@pytest.mark.parametrize(
    "options",
    [
        {"compression": None},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True},
        {"compression": "deflate", "predictor": True},
        {"compression": "adobe_deflate"},
        {"compression": "zstd"},
        {"compression": "zstd", "predictor": True},
        {"compression": "lzw", "bigtiff": True, "byteorder": ">"},
        {"compression": "jpeg2000", "compressionargs": {"reversible": True}},
    ],
    ids=str,
)
def test_lossless_compressions(tmp_path: Path, options: dict[str, Any]) -> None:
    image = picture()
    reader = TiffReader(write_tiff(tmp_path / "a.tif", image, **options))
    np.testing.assert_array_equal(whole(reader), image)


@pytest.mark.parametrize(
    ("photometric", "subsampling"), [("rgb", (1, 1)), ("ycbcr", (1, 1)), ("ycbcr", (2, 2)), ("ycbcr", (2, 1))]
)
def test_jpeg_colours_follow_photometric(tmp_path: Path, photometric: str, subsampling: tuple[int, int]) -> None:
    image = picture()
    arguments = {"level": 95, "outcolorspace": photometric}
    path = write_tiff(tmp_path / "a.tif", image, compression="jpeg", compressionargs=arguments, subsampling=subsampling)
    assert read_structure(path)[0].photometric == (2 if photometric == "rgb" else 6)
    pixels = whole(TiffReader(path))
    np.testing.assert_array_equal(pixels, through_openslide(path))
    smooth = np.s_[110:]
    assert np.abs(pixels[smooth].astype(int) - image[smooth]).mean() < 4


@pytest.mark.parametrize("code", [33003, 33005])
def test_aperio_jpeg2000_equals_openslide(tmp_path: Path, code: int) -> None:
    image = picture(128, 128)
    tiles = [
        bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), codecformat="j2k", mct=False, reversible=True))
        for row in np.split(image, 2)
        for tile in np.split(row, 2, axis=1)
    ]
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(128, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        compression=code,
        photometric="rgb",
        description="Aperio Image Library|MPP = 0.25",
        metadata=None,
    )
    assert TiffReader(path).mpp == 0.25
    pixels = whole(TiffReader(path)).astype(int)
    # Conversion from YCbCr rounds differently by one in places.
    assert np.abs(pixels - through_openslide(path)).max() <= (1 if code == 33003 else 0)
    assert (pixels == image).all() == (code == 33005)


def test_grey_and_inverted_grey(tmp_path: Path) -> None:
    grey = picture()[:, :, 0]
    for photometric, expected in (("minisblack", grey), ("miniswhite", 255 - grey)):
        path = write_tiff(tmp_path / "a.tif", grey, photometric=photometric, compression="lzw")
        np.testing.assert_array_equal(whole(TiffReader(path)), np.repeat(expected[:, :, None], 3, axis=2))


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    image, alpha = picture(), RNG.integers(0, 256, (200, 300, 1), dtype=np.uint8)
    path = write_tiff(
        tmp_path / "a.tif", np.concatenate([image, alpha], axis=2), extrasamples=["unassalpha"], compression="lzw"
    )
    exact = image * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(whole(TiffReader(path)) - exact).max() <= 0.51


def test_sub_ifds_are_levels(tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tiff:
        options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
        size = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
        tiff.write(image, subifds=1, metadata={"axes": "YXS", **size}, **options)
        tiff.write(image[::2, ::2], subfiletype=1, **options)
    reader = TiffReader(path)
    assert reader.properties["sentinode.format"] == "ome-tiff"
    assert reader.mpp == pytest.approx(0.5)
    assert [level.downsample for level in reader.levels] == [1, 2]
    np.testing.assert_array_equal(whole(reader, 1), image[::2, ::2])


def test_label_macro_and_other_shapes_are_no_levels(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for image, description in (
            (picture(200, 300), None),
            (picture(100, 150), None),
            (picture(100, 100), None),
            (picture(50, 75), "label 75x50"),
            (picture(51, 75), None),
        ):
            tiff.write(image, tile=(64, 64), photometric="rgb", description=description, metadata=None)
        tiff.write(picture(25, 38), photometric="rgb", rowsperstrip=5, metadata=None)
    sizes = [(level.width, level.height) for level in TiffReader(path).levels]
    assert sizes == [(300, 200), (150, 100), (75, 51)]


def test_a_level_may_have_more_tiles_in_a_row_than_it_is_wide(tmp_path: Path) -> None:
    """Philips pads levels, sometimes by more than a tile: what a row of tiles has is told by the page."""
    image, path = picture(320, 384), tmp_path / "philips.tif"
    tiles = [image[row : row + 64, column : column + 64] for row in range(0, 320, 64) for column in range(0, 384, 64)]
    write_pyramid(path, width=384, height=320, mpp=0.25, tile_size=64, levels=2, tiles=tiles, philips=True)
    with tifffile.TiffFile(path) as tiff:
        description, software = tiff.pages.first.description, tiff.pages.first.software
    half = np.full((192, 320, 3), 255, np.uint8)
    half[:160, :192] = image[::2, ::2]
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "software": software, "metadata": None}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, description=description, **options)
        tiff.write(half, **options)
    with Slide.open(path) as slide:
        assert slide.properties["sentinode.format"] == "philips"
        assert (slide.levels[1].shape, slide.levels[1].downsample) == ((160, 192), 2.0)
        np.testing.assert_array_equal(slide.read_frame(slide.frame_of(1)).array, half[:160, :192])
        regions = [Region(x=x, y=y, width=60, height=60) for x in range(-20, 384, 38) for y in range(-20, 320, 42)]
        for region, found in zip(regions, slide.read_many(regions, 1), strict=True):
            np.testing.assert_array_equal(found, slide.read(region, 1).array)


def test_openslide_reader_reads_what_the_direct_reader_reads(sparse: Path) -> None:
    ours, theirs = TiffReader(sparse), OpenSlideReader(sparse)
    assert theirs.mpp == pytest.approx(ours.mpp)
    assert theirs.levels == ours.levels
    for level in range(len(ours.levels)):
        window = Window(row=-7, column=11, height=150, width=300)
        np.testing.assert_array_equal(pixels(ours, level, window), pixels(theirs, level, window))
    theirs.close()


def test_openslide_reader_survives_an_error(real_data: RealData) -> None:
    reader = OpenSlideReader(real_data("slides/unreadable.svs"))
    for _ in range(2):
        with pytest.raises(TileError, match=r"unreadable\.svs, level 0, rows 0 to 16"):
            whole(reader)
        assert reader._slide.level_count == 1  # a fresh handle: a failed one refuses everything


def test_properties_identify_nobody(real_data: RealData) -> None:
    for reader in (TiffReader, OpenSlideReader):
        properties: Mapping[str, str] = reader(real_data("slides/CMU-1-Small-Region.svs")).properties
        assert properties["sentinode.format"] == "aperio"
        text = " ".join(f"{key} {value}" for key, value in properties.items()).lower()
        assert not any(word in text for word in ("user", "title", "filename", "barcode", "comment", "date"))


# --- plain pictures -------------------------------------------------------------------------------------------------


def test_a_picture_is_a_slide_of_one_level(tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.png"
    Pillow.fromarray(image).save(path, dpi=(101_600, 101_600))
    reader = FlatReader(path)
    np.testing.assert_array_equal(
        pixels(reader, 0, Window(row=150, column=-5, height=60, width=20))[:50, 5:], image[150:, :15]
    )
    assert (pixels(reader, 0, Window(row=150, column=-5, height=60, width=20))[50:] == 255).all()
    assert reader.mpp == pytest.approx(0.25, rel=1e-4)
    Pillow.fromarray(image).save(path, dpi=(72, 72))
    assert FlatReader(path).mpp is None


def test_transparency_in_a_picture_is_white(tmp_path: Path) -> None:
    image = np.dstack([picture(), np.zeros((200, 300), dtype=np.uint8)])
    image[:10, :, 3] = 255
    Pillow.fromarray(image).save(tmp_path / "a.png")
    pixels = whole(FlatReader(tmp_path / "a.png"))
    np.testing.assert_array_equal(pixels[:10], image[:10, :, :3])
    assert (pixels[10:] == 255).all()


def test_a_truncated_picture_is_a_tile_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(picture()).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(TileError, match=r"a\.png"):
        whole(FlatReader(path))


def test_a_picture_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(picture()).save(path)
    data = bytearray(path.read_bytes())
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    data[12:33] = header + struct.pack(">I", imagecodecs.zlib_crc32(bytes(header)))
    path.write_bytes(data)
    with pytest.raises(SlideFormatError):
        FlatReader(path)


# --- scale ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (101_600, 101_600), "resolutionunit": "INCH"}, 0.25),
        ({"resolution": (40_000, 40_100), "resolutionunit": "CENTIMETER"}, 0.24969),
        ({"resolution": (40_000, 40_000), "resolutionunit": "NONE"}, None),
        ({"description": "Aperio Image|AppMag = 20|MPP = 0.4990|Left = 25"}, 0.499),
        ({"description": "Aperio Image|AppMag = 20|MPP = 0.4990"}, 0.499),
        ({"description": "Aperio Image|XMPP = 0.3|MPP = nan"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_mpp(tmp_path: Path, options: dict[str, Any], expected: float | None) -> None:
    reader = TiffReader(write_tiff(tmp_path / "a.tif", picture(), **options))
    assert reader.mpp == (None if expected is None else pytest.approx(expected, rel=1e-4))


@settings(deadline=None)
@given(width=st.integers(128, 5000), height=st.integers(128, 5000), power=st.integers(1, 5), up=st.booleans())
def test_downsamples_are_whole_where_sizes_say_so(width: int, height: int, power: int, up: bool) -> None:  # noqa: FBT001
    factor = 2**power
    reduced = tuple(-(-side // factor) if up else max(1, side // factor) for side in (width, height))
    assert measure_downsample((width, height), (reduced[0], reduced[1])) == factor


def test_downsamples_are_measured_where_no_whole_factor_fits() -> None:
    assert measure_downsample((10_000, 8000), (4000, 3200)) == pytest.approx(2.5)
    assert measure_downsample((10_000, 8000), (3333, 2667)) == 3.0
    assert measure_downsample((100_000, 80_000), (1, 1), stated=1.9999956) == 2.0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"<DataObject Obj", b"<DataObjekt Obj", "not valid XML"),
        (
            b'"0.00025" "0.00025"</Attribute><Attribute Name="PIIM',
            b'"0.00025" "0.000x5"</Attribute><Attribute Name="PIIM',
            "spacing",
        ),
    ],
)
def test_a_damaged_philips_description(sparse: Path, tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    data = sparse.read_bytes()
    assert old in data
    path = tmp_path / "a.tif"
    path.write_bytes(data.replace(old, new, 1))
    with pytest.raises(SlideFormatError, match=reason):
        TiffReader(path)


# --- what is kept between reads --------------------------------------------------------------------------------------


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi.readers.tiff.CACHE_BYTES", 3 * 64 * 64 * 3)
    path = write_tiff(tmp_path / "a.tif", picture(), compression="lzw")
    reader, image = TiffReader(path), tifffile.imread(path)
    for row in range(-10, 190, 33):
        for column in range(-10, 290, 33):
            part = pixels(reader, 0, Window(row=row, column=column, height=33, width=33))
            np.testing.assert_array_equal(
                part,
                np.pad(image, ((50, 50), (50, 50), (0, 0)), constant_values=255)[
                    row + 50 : row + 83, column + 50 : column + 83
                ],
            )
    kept = [tile.nbytes for tile, _ in reader._tiles._decoded._values.values()]
    assert sum(kept) == 3 * 64 * 64 * 3
