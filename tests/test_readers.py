"""Readers against OpenSlide, tifffile and Pillow; damaged structure ends in one clear error."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image as Pillow

from wsi.errors import SlideError, SlideFormatError, TileError
from wsi.pyramid import write_pyramid
from wsi.readers.base import Reader, measure_downsample
from wsi.readers.flat import FlatReader
from wsi.readers.openslide import OpenSlideReader
from wsi.readers.structure import read_structure
from wsi.readers.tiff import TiffReader

RealData = Callable[[str], Path]
RNG = np.random.default_rng(3)


def picture(height: int = 200, width: int = 300) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    noisy = image[height // 5 : height // 2, width // 5 : width // 2]
    noisy[...] = RNG.integers(0, 256, noisy.shape)
    return image.astype(np.uint8)


def write_tiff(path: Path, image: NDArray[np.uint8], **options: Any) -> Path:
    settings_ = {"tile": (64, 64), "photometric": "rgb", "metadata": None} | options
    tifffile.imwrite(path, image, **settings_)
    return path


def through_openslide(path: Path, level: int = 0) -> NDArray[np.uint8]:
    """A level as OpenSlide reads it, laid over white."""
    with OpenSlide(str(path)) as slide:
        pixels = slide.read_region((0, 0), level, slide.level_dimensions[level])
    white = Pillow.new("RGB", pixels.size, (255, 255, 255))
    white.paste(pixels, mask=pixels.getchannel("A"))
    return np.asarray(white)


def whole(reader: Reader, level: int = 0) -> NDArray[np.uint8]:
    size = reader.levels[level]
    return reader.read(level, row=0, column=0, height=size.height, width=size.width)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Philips-like file: 3 x 4 tiles of which (0, 0), (0, 1), (1, 0), (1, 1) and (2, 3) are missing."""
    path = tmp_path_factory.mktemp("sparse") / "philips.tif"
    image = np.zeros((192, 256, 3), dtype=np.uint8)
    image[...] = picture(192, 256)
    missing = {(0, 0), (0, 1), (1, 0), (1, 1), (2, 3)}
    tiles = [
        None if (row, column) in missing else image[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
        for row in range(3)
        for column in range(4)
    ]
    write_pyramid(path, width=256, height=192, mpp=0.25, tile_size=64, tiles=tiles, philips=True)
    return path


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["CMU-1-Small-Region.svs", "small.svs", "boxes.tiff", "asap_mask_864x800.tif", "boxes_0.dcm"]
)
def test_real_files_equal_openslide(real_data: RealData, name: str) -> None:
    path = real_data(f"slides/{name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # boxes.tiff says 353 um per px
        reader = OpenSlideReader(path) if name.endswith(".dcm") else TiffReader(path)
    with OpenSlide(str(path)) as oracle:
        assert [(level.width, level.height) for level in reader.levels] == list(oracle.level_dimensions)
        if name != "boxes.tiff":
            assert reader.mpp == pytest.approx(float(oracle.properties["openslide.mpp-x"]))
    for level in reader.levels:
        np.testing.assert_array_equal(whole(reader, level.index), through_openslide(path, level.index))


def test_windows_of_a_real_slide_equal_openslide(real_data: RealData) -> None:
    path = real_data("slides/CMU-1-Small-Region.svs")
    reader = TiffReader(path)
    full = np.full((3400, 2700, 3), 255, dtype=np.uint8)
    full[200 : 200 + 2967, 200 : 200 + 2220] = through_openslide(path)
    for row, column, height, width in RNG.integers((-200, -200, 1, 1), (2960, 2200, 230, 290), (25, 4)):
        window = reader.read(0, row=row, column=column, height=height, width=width)
        np.testing.assert_array_equal(window, full[row + 200 : row + 200 + height, column + 200 : column + 200 + width])


def test_missing_tiles_and_everything_outside_are_white(sparse: Path) -> None:
    reader = TiffReader(sparse)
    for level in reader.levels:
        np.testing.assert_array_equal(whole(reader, level.index), through_openslide(sparse, level.index))
    assert (reader.read(0, row=0, column=0, height=128, width=128) == 255).all()
    assert (reader.read(0, row=-70, column=-70, height=60, width=60) == 255).all()
    beyond = reader.read(0, row=100, column=160, height=500, width=50)
    assert (beyond[92:] == 255).all()
    assert (beyond[:92] < 255).any()


def test_has_pixels_only_where_tiles_are_stored(sparse: Path) -> None:
    reader = TiffReader(sparse)

    def has(row: int, column: int, height: int = 1, width: int = 1, level: int = 0) -> bool:
        return reader.has_pixels(level, row=row, column=column, height=height, width=width)

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


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_markers_do_not_override_photometric(tmp_path: Path, photometric: str) -> None:
    # The same coded samples once named RGB and once YCbCr; each stream also carries a JFIF marker, which says YCbCr.
    tiles = [
        bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=95))
        for row in np.split(picture(128, 128), 2)
        for tile in np.split(row, 2, axis=1)
    ]
    assert all(b"JFIF" in tile[:20] for tile in tiles)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        iter(tiles),
        shape=(128, 128, 3),
        dtype=np.uint8,
        tile=(64, 64),
        compression="jpeg",
        photometric=photometric,
        metadata=None,
    )
    np.testing.assert_array_equal(whole(TiffReader(path)), through_openslide(path))


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


def test_openslide_reader_reads_what_the_direct_reader_reads(sparse: Path) -> None:
    ours, theirs = TiffReader(sparse), OpenSlideReader(sparse)
    assert theirs.mpp == pytest.approx(ours.mpp)
    assert theirs.levels == ours.levels
    for level in range(len(ours.levels)):
        window = {"row": -7, "column": 11, "height": 150, "width": 300}
        np.testing.assert_array_equal(ours.read(level, **window), theirs.read(level, **window))
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
    np.testing.assert_array_equal(reader.read(0, row=150, column=-5, height=60, width=20)[:50, 5:], image[150:, :15])
    assert (reader.read(0, row=150, column=-5, height=60, width=20)[50:] == 255).all()
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


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, "absurd"),
        ({"resolution": (40_000, 20_000), "resolutionunit": "CENTIMETER"}, "differs"),
        ({"description": "Aperio Image|MPP = 0.0001"}, "absurd"),
    ],
    ids=str,
)
def test_unbelievable_mpp_is_none_with_a_warning(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    path = write_tiff(tmp_path / "a.tif", picture(), **options)
    with pytest.warns(UserWarning, match=reason):
        assert TiffReader(path).mpp is None


@settings(deadline=None)
@given(width=st.integers(128, 5000), height=st.integers(128, 5000), power=st.integers(1, 5), up=st.booleans())
def test_downsamples_are_whole_where_sizes_say_so(width: int, height: int, power: int, up: bool) -> None:  # noqa: FBT001
    factor = 2**power
    reduced = tuple(-(-side // factor) if up else max(1, side // factor) for side in (width, height))
    assert measure_downsample((width, height), (reduced[0], reduced[1])) == factor


def test_downsamples_are_measured_where_no_whole_factor_fits() -> None:
    assert measure_downsample((10_000, 8000), (4000, 3200)) == pytest.approx(2.5)
    assert measure_downsample((10_000, 8000), (3333, 2667)) == 3.0
    assert measure_downsample((100_000, 80_000), (1, 1), told=1.9999956) == 2.0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"<DataObject Obj", b"<DataObjekt Obj", "no sound XML"),
        (
            b'"0.00025" "0.00025"</Attribute><Attribute Name="PIIM',
            b'"0.00025" "0,00025"</Attribute><Attribute Name="PIIM',
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


# --- structure ------------------------------------------------------------------------------------------------------


def test_the_structure_equals_tifffile(real_data: RealData, sparse: Path) -> None:
    for path in (real_data("slides/CMU-1-Small-Region.svs"), real_data("slides/boxes.tiff"), sparse):
        pages = read_structure(path)
        with tifffile.TiffFile(path) as tiff:
            assert len(pages) == len(tiff.pages)
            for ours, theirs in zip(pages, (page.aspage() for page in tiff.pages), strict=True):
                assert (ours.width, ours.height) == (theirs.imagewidth, theirs.imagelength)
                assert (ours.tile_width, ours.tile_height) == (theirs.tilewidth, theirs.tilelength)
                assert ours.offsets.tolist() == list(theirs.dataoffsets)
                assert ours.counts.tolist() == list(theirs.databytecounts)
                assert (ours.compression, ours.photometric) == (theirs.compression, theirs.photometric)
                assert (ours.predictor, ours.subfile, ours.planar) == (
                    theirs.predictor,
                    theirs.subfiletype,
                    theirs.planarconfig,
                )
                assert ours.jpeg_tables == (theirs.jpegtables or b"")
                assert ours.description == theirs.description


def patch(path: Path, tag: int, *, value: int | None = None, count: int | None = None, page: int = 0) -> None:
    """Overwrite the inline value or the count of a tag of a little-endian BigTIFF."""
    data = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<Q", data, 8)
    while True:
        (number,) = struct.unpack_from("<Q", data, offset)
        if page == 0:
            break
        page -= 1
        (offset,) = struct.unpack_from("<Q", data, offset + 8 + number * 20)
    for entry in range(offset + 8, offset + 8 + number * 20, 20):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            if value is not None:
                struct.pack_into("<Q", data, entry + 12, value)
            if count is not None:
                struct.pack_into("<Q", data, entry + 4, count)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("tag", "change", "reason"),
    [
        (256, {"value": 2**32 - 1}, "claims an image"),
        (256, {"value": 0}, "claims an image"),
        (256, {"value": 3_000_000}, "needs .* values"),
        (257, {"value": 1000}, "needs .* values"),
        (322, {"value": 60}, "claims tiles"),
        (322, {"value": 65536}, "claims tiles"),
        (323, {"value": 0}, "claims tiles"),
        (324, {"count": 2**60}, "truncated or damaged"),
        (324, {"count": 11}, "needs 12 values"),
        (324, {"value": 2**62}, "truncated or damaged"),
        (325, {"value": 2**63}, "truncated or damaged"),
        (258, {"value": 16 | 16 << 16 | 16 << 32}, "16 bits"),
        (277, {"value": 5}, "5 samples"),
        (347, {"count": 2**40}, "truncated or damaged"),
        (347, {"count": 2**17}, "truncated or damaged|bytes of type"),
    ],
)
def test_contradictions_are_refused(
    sparse: Path, tmp_path: Path, tag: int, change: dict[str, int], reason: str
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(sparse.read_bytes())
    assert len(read_structure(path)) == 3
    patch(path, tag, **change)
    with pytest.raises(SlideFormatError, match=rf"a\.tif, directory 0.*({reason})"):
        read_structure(path)


def test_a_huge_byte_count_is_refused(sparse: Path, tmp_path: Path) -> None:
    data = bytearray(sparse.read_bytes())
    counts = read_structure(sparse)[0].counts.astype("<u4").tobytes()
    at = data.index(counts)
    data[at + 8 : at + 12] = struct.pack("<I", 2**32 - 1)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(SlideFormatError, match="1 of 12 tiles lie outside"):
        TiffReader(path)


def test_loops_of_directories_are_refused(sparse: Path, tmp_path: Path) -> None:
    for back_to in (0, 1):
        data = bytearray(sparse.read_bytes())
        starts, offset = [], struct.unpack_from("<Q", data, 8)[0]
        while offset:
            starts.append(offset)
            link = offset + 8 + struct.unpack_from("<Q", data, offset)[0] * 20
            (offset,) = struct.unpack_from("<Q", data, link)
        struct.pack_into("<Q", data, link, starts[back_to])
        path = tmp_path / "a.tif"
        path.write_bytes(data)
        with pytest.raises(SlideFormatError, match="directory 3: has directories that point back"):
            TiffReader(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutants_and_stumps_end_in_slide_errors_only(
    sparse: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(sparse.read_bytes())
    first = struct.unpack_from("<Q", content, 8)[0]
    tables = min(int(page.offsets.max()) for page in read_structure(sparse))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            low = data.draw(st.sampled_from([0, tables, first]))
            at = data.draw(st.integers(low, len(content) - 1 if low else 15))
            content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "mutant.tif"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        message = "mutant.tif"
        try:
            reader = TiffReader(path)
            for level in reader.levels:
                reader.read(level.index, row=0, column=0, height=256, width=256)
            reader.close()
        except SlideError as error:
            message = str(error)
    assert "mutant.tif" in message


def test_a_corrupt_tile_is_named(sparse: Path, tmp_path: Path) -> None:
    page = read_structure(sparse)[0]
    data = bytearray(sparse.read_bytes())
    at, count = int(page.offsets[6]), int(page.counts[6])
    data[at : at + count] = bytes(count)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    reader = TiffReader(path)
    with pytest.raises(TileError, match=r"a\.tif, level 0, tile row 1, tile column 2: the tile cannot be decoded"):
        whole(reader)
    assert (reader.read(0, row=0, column=0, height=64, width=192)[:, 128:] < 255).any()


def test_a_tile_of_another_size_is_an_error(sparse: Path, tmp_path: Path) -> None:
    page = read_structure(sparse)[0]
    data = bytearray(sparse.read_bytes())
    at = int(page.offsets[6])
    sof = data.index(b"\xff\xc0", at)
    data[sof + 5 : sof + 9] = struct.pack(">HH", 65000, 65000)
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(TileError, match="65000 x 65000"):
        whole(TiffReader(path))


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsi.readers.tiff.CACHE_BYTES", 3 * 64 * 64 * 3)
    reader = TiffReader(write_tiff(tmp_path / "a.tif", picture(), compression="lzw"))
    np.testing.assert_array_equal(whole(reader), picture_again(tmp_path))
    assert sum(tile.nbytes for tile in reader._cache._tiles.values()) == 3 * 64 * 64 * 3


def picture_again(folder: Path) -> NDArray[np.uint8]:
    return np.asarray(tifffile.imread(folder / "a.tif"), dtype=np.uint8)
