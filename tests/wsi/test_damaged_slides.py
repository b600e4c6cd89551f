"""The structure of TIFFs against tifffile; damage and contradictions end in one clear error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from slide_files import picture, pixels, whole

from wsi.errors import SlideError, SlideFormatError, TileError
from wsi.geometry import Window
from wsi.readers.flat import FlatReader
from wsi.readers.structure import read_structure
from wsi.readers.tiff import TiffReader
from wsi.slide import Slide

RealData = Callable[[str], Path]


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


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [(258, 16 | 16 << 16 | 16 << 32, "16 bits"), (277, 5, "5 samples"), (277, 65, "65 samples")],
)
def test_a_picture_of_other_samples_is_refused(sparse: Path, tmp_path: Path, tag: int, value: int, reason: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(sparse.read_bytes())
    patch(path, tag, value=value)
    with pytest.raises(SlideFormatError, match=rf"a\.tif, directory 0.*({reason})"):
        Slide.open(path)


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


@pytest.mark.slow
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
    message = "mutant.tif"
    try:
        reader = TiffReader(path)
        for level in reader.levels:
            pixels(reader, level.index, Window(row=0, column=0, height=256, width=256))
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
    assert (pixels(reader, 0, Window(row=0, column=0, height=64, width=192))[:, 128:] < 255).any()


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Pillow.fromarray(picture(192, 256)).save(path)
    data = path.read_bytes()
    start = data.index(b"IDAT") + 10
    for at in range(start, start + 620, 31):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(TileError, match=r"a\.png, level 0: the picture cannot be decoded"):
            whole(FlatReader(path))


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
