"""Who says what the colours are: the stream first, then the tag; and a word where they contradict each other."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from dicom_files import write_dicom
from numpy.typing import NDArray
from PIL import Image as Pillow
from slide_files import through_openslide, whole
from typer.testing import CliRunner

from staging.cli import app
from staging.cohorts.camelyon import find_slides
from staging.cohorts.slide_warnings import find_warnings
from wsi.errors import SlideFormatError
from wsi.readers.colours import jpeg_colours
from wsi.readers.tiff import TiffReader
from wsi.slide import Slide
from wsi.writing.convert import convert_slide

RealData = Callable[[str], Path]
Encode = Callable[[NDArray[np.uint8]], bytes]
TAGS = {"RGB": 2, "YCbCr": 6}
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"


def smooth(height: int = 128, width: int = 128) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([220 - x / 4, 140 + y / 4 - x / 8, 190 - y / 3], axis=-1).astype(np.uint8)


def jfif(tile: NDArray[np.uint8], subsampling: str = "444") -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=97, subsampling=subsampling))


def adobe_rgb(tile: NDArray[np.uint8]) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(tile, level=97, colorspace="rgb", outcolorspace="rgb", subsampling="444"))


def without_markers(stream: bytes, names: bytes | None = None) -> bytes:
    """The stream without application markers, its components renamed if names are given."""
    kept, position = stream[:2], 2
    while True:
        marker, size = stream[position + 1], int.from_bytes(stream[position + 2 : position + 4], "big")
        segment = bytearray(stream[position : position + 2 + size])
        if names is not None and marker == 0xC0:
            segment[10:19:3] = names
        if names is not None and marker == 0xDA:
            segment[5:11:2] = names
        if not 0xE0 <= marker <= 0xEF:
            kept += bytes(segment)
        position += 2 + size
        if marker == 0xDA:
            return kept + stream[position:]


def with_adobe(stream: bytes, transform: int) -> bytes:
    return stream[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform]) + stream[2:]


def write_tiles(path: Path, image: NDArray[np.uint8], encode: Encode, tag: str, **options: Any) -> Path:
    """A TIFF of coded tiles of 64 px whose Photometric is the tag, whatever the tiles hold."""
    tiles = [encode(np.ascontiguousarray(tile)) for row in np.split(image, 2) for tile in np.split(row, 2, axis=1)]
    settings: dict[str, Any] = {"compression": "jpeg", "photometric": "rgb"} | options
    tifffile.imwrite(path, iter(tiles), shape=image.shape, dtype=np.uint8, tile=(64, 64), metadata=None, **settings)
    with tifffile.TiffFile(path) as file:
        at, order = file.pages.first.tags["PhotometricInterpretation"].valueoffset, file.byteorder
    data = bytearray(path.read_bytes())
    data[at : at + 2] = struct.pack(order + "H", TAGS[tag])
    path.write_bytes(data)
    return path


STREAMS: dict[str, tuple[Encode, str | None]] = {
    "JFIF": (jfif, "YCbCr"),
    "JFIF 4:2:0": (lambda tile: jfif(tile, "420"), "YCbCr"),
    "Adobe RGB": (adobe_rgb, "RGB"),
    "Adobe YCbCr": (lambda tile: with_adobe(without_markers(jfif(tile)), 1), "YCbCr"),
    "Adobe after JFIF": (lambda tile: b"\xff\xd8" + JFIF + adobe_rgb(tile)[2:], "RGB"),
    "components R, G, B": (lambda tile: without_markers(adobe_rgb(tile), b"RGB"), "RGB"),
    "subsampled": (lambda tile: without_markers(jfif(tile, "422"), b"\0\1\2"), "YCbCr"),
    "silent YCbCr": (lambda tile: without_markers(jfif(tile), b"\1\2\3"), None),
    "silent RGB": (lambda tile: without_markers(adobe_rgb(tile), b"\0\1\2"), None),
}


@pytest.mark.parametrize(
    ("stream", "tag"),
    [(name, tag) for name, (_, stated) in STREAMS.items() for tag in TAGS if stated is not None or tag in name],
)
def test_a_jpeg_says_its_colours_itself_or_leaves_them_to_the_tag(tmp_path: Path, stream: str, tag: str) -> None:
    encode, stated = STREAMS[stream]
    image = smooth()
    assert jpeg_colours(encode(image[:64, :64])) == stated
    path = write_tiles(tmp_path / "a.tif", image, encode, tag)
    with Slide.open(path) as slide:
        assert np.abs(slide.read_frame(slide.frame).array.astype(int) - image).max() <= 6
        contradicts = stated not in (None, tag)
        assert [f"says that its colours are {tag}, but its" in doubt for doubt in slide.warnings[1:]] == (
            [True] if contradicts else []
        )


def test_the_colours_of_a_tile_are_those_of_every_way_to_read_it(tmp_path: Path) -> None:
    image = smooth()
    path = write_tiles(tmp_path / "a.tif", image, adobe_rgb, "YCbCr")
    with Slide.open(path) as slide:
        tile = slide.tile_bytes(0, 0, 0)
        assert tile is not None
        seen = np.asarray(Pillow.open(io.BytesIO(tile)).convert("RGB"))
        np.testing.assert_array_equal(seen, slide.read_frame(slide.frame).array[:64, :64])
        reduced = slide.read_frame(slide.frame.resampled(2), exact=False).array
        assert np.abs(reduced.astype(int) - image[::2, ::2]).max() <= 8
        convert_slide(slide, tmp_path / "b.tif")
    # the copied tiles have a tag now that OpenSlide follows to the same colours
    assert np.abs(through_openslide(tmp_path / "b.tif").astype(int) - image).max() <= 6
    with Slide.open(tmp_path / "b.tif") as slide:
        assert not any("colours" in doubt for doubt in slide.warnings)


def jpeg_2000(tile: NDArray[np.uint8], *, transform: bool, boxes: bool = False) -> bytes:
    kind = "jp2" if boxes else "j2k"
    return bytes(imagecodecs.jpeg2k_encode(tile, codecformat=kind, mct=transform, reversible=True, level=0))


def to_ycbcr(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(Pillow.fromarray(tile).convert("YCbCr")))


@pytest.mark.parametrize(
    ("code", "tag", "encode", "doubt"),
    [
        (33003, "RGB", lambda tile: jpeg_2000(to_ycbcr(tile), transform=False), False),
        (33003, "RGB", lambda tile: jpeg_2000(tile, transform=True), True),
        (33005, "RGB", lambda tile: jpeg_2000(tile, transform=False), False),
        (33005, "RGB", lambda tile: jpeg_2000(tile, transform=True), False),
        (34712, "RGB", lambda tile: jpeg_2000(tile, transform=True, boxes=True), False),
        (34712, "YCbCr", lambda tile: jpeg_2000(to_ycbcr(tile), transform=False), False),
        (34712, "YCbCr", lambda tile: jpeg_2000(tile, transform=True), True),
    ],
)
def test_jpeg_2000_says_by_its_transform_or_leaves_it_to_the_tag(
    tmp_path: Path,
    code: int,
    tag: str,
    encode: Encode,
    doubt: bool,  # noqa: FBT001
) -> None:
    image = smooth()
    path = write_tiles(tmp_path / "a.tif", image, encode, tag, compression=code)
    reader = TiffReader(path)
    assert np.abs(whole(reader).astype(int) - image).max() <= 3  # Pillow's YCbCr is cut, not rounded
    assert bool(reader.warnings) is doubt


def test_subsampled_jpeg_2000_of_aperio_is_converted_once(real_data: RealData) -> None:
    path = real_data("reports/svs_33003_422.svs")
    right = np.asarray(Pillow.open(f"{path}.right.png").convert("RGB")).astype(int)
    with Slide.open(path) as slide:
        pixels = slide.read_frame(slide.frame).array
        assert not slide.warnings
    assert np.abs(pixels - right).mean() < 1
    assert np.abs(pixels[0, 0].astype(int) - (246, 244, 244)).max() <= 2
    difference = np.abs(pixels.astype(int) - through_openslide(path))
    assert difference.mean() < 0.5


def test_rgb_streams_under_a_tag_of_ycbcr(real_data: RealData) -> None:
    path = real_data("reports/jpeg_adobe_rgb_tag_ycbcr.tif")
    right = np.asarray(Pillow.open(f"{path}.right.png").convert("RGB")).astype(int)
    with Slide.open(path) as slide:
        assert np.abs(slide.read_frame(slide.frame).array - right).max() <= 9
        assert [doubt for doubt in slide.warnings if "say RGB; the tiles are followed" in doubt]


@pytest.mark.parametrize(("tag", "doubt"), [("RGB", True), ("YBR_FULL_422", False)])
def test_ycbcr_streams_in_dicom_have_their_colours_under_any_tag(
    tmp_path: Path,
    tag: str,
    doubt: bool,  # noqa: FBT001
) -> None:
    image = smooth()
    path = write_dicom(tmp_path / "a.dcm", image, lambda tile: jfif(tile, "422"), photometric=tag)
    with Slide.open(path) as slide:
        assert np.abs(slide.read_frame(slide.frame).array.astype(int) - image).max() <= 8
        assert any("say YCbCr; the tiles are followed" in one for one in slide.warnings) is doubt


def test_each_level_of_a_dicom_series_speaks_for_itself(tmp_path: Path) -> None:
    image, series = smooth(256, 256), "1.2.3.4"
    write_dicom(tmp_path / "a.dcm", image, jfif, photometric="YBR_FULL_422", series=series)
    write_dicom(tmp_path / "b.dcm", image[::2, ::2], jfif, photometric="RGB", series=series, mm_per_px=0.0005)
    with Slide.open(tmp_path / "a.dcm") as slide:
        assert [level.downsample for level in slide.levels] == [1, 2]
        for level in slide.levels:
            pixels = slide.read_frame(slide.frame_of(level)).array.astype(int)
            assert np.abs(pixels - image[:: int(level.downsample), :: int(level.downsample)]).max() <= 6
        assert sum("the tiles are followed" in one for one in slide.warnings) == 1


def test_rgb_streams_in_dicom_under_a_tag_of_ycbcr_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", smooth(), adobe_rgb, photometric="YBR_FULL_422")
    with pytest.raises(SlideFormatError, match=r"are YCbCr, but its compressed tiles say RGB.*Photometric"):
        Slide.open(path)
    path = write_dicom(tmp_path / "b.dcm", smooth(), adobe_rgb, photometric="RGB")
    with Slide.open(path) as slide:
        assert np.abs(slide.read_frame(slide.frame).array.astype(int) - smooth()).max() <= 6


def test_a_damaged_first_tile_leaves_the_word_to_the_next(tmp_path: Path) -> None:
    streams = iter([b"\xff\xd8 no JPEG", *[adobe_rgb(smooth(64, 64))] * 3])
    path = write_tiles(tmp_path / "a.tif", smooth(), lambda _: next(streams), "YCbCr")
    assert "say RGB" in "".join(TiffReader(path).warnings)


def test_a_contradiction_is_said_by_commands(tmp_path: Path) -> None:
    path = write_tiles(tmp_path / "a.tif", smooth(), adobe_rgb, "YCbCr")
    done = CliRunner().invoke(app, ["info", str(path), "--json"])
    said = "says that its colours are YCbCr, but its compressed tiles say RGB"
    assert said in done.stderr
    assert any(said in doubt for doubt in json.loads(done.stdout)["warnings"])
    assert any(said in doubt for doubt in find_warnings(find_slides([path]))["a"])
