"""Who says what a slide's colours are: the coded stream first, then the file's tag. The only place that decides it.

A stream without its own statement has the tag's colours; where both state different ones, the stream is right, as its
encoder wrote it along with the samples, while tags are written by whoever packed them later.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsi.readers.source import ByteSource, FileSource
from wsi.readers.structure import TiffPage

Colours = Literal["RGB", "YCbCr"]

RGB, YCBCR = 2, 6
"""TIFF's Photometric of these colours."""

JPEG = 7
"""TIFF's Compression of JPEG tiles."""

APERIO_YCBCR, APERIO_RGB, JPEG2000 = 33003, 33005, 34712
JPEG2000_KINDS = (APERIO_YCBCR, APERIO_RGB, JPEG2000)
"""TIFF's Compressions of JPEG 2000 tiles; Aperio's two name the colours in place of the Photometric."""

HEADER_BYTES = 2**16
"""How much of a stream is read for its header."""

START_OF_SCAN = 0xDA
STARTS_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}

_PHOTOMETRIC: dict[Colours, int] = {"RGB": RGB, "YCbCr": YCBCR}
_END_OF_IMAGE, _JFIF, _ADOBE = 0xD9, 0xE0, 0xEE
_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000's start and the marker of its sizes, SIZ
_CODING, _START_OF_TILE = 0xFF52, 0xFF90
_TRIED_TILES = 4


@dataclass(frozen=True, slots=True)
class Statement:
    """What a coded stream and the file's tag say; None of the stream if it does not."""

    stream: Colours | None
    tag: Colours

    @property
    def colours(self) -> Colours:
        """What is believed."""
        return self.stream or self.tag

    @property
    def doubt(self) -> str | None:
        """The warning of a slide whose stream and tag contradict each other."""
        if self.colours == self.tag:
            return None
        return (
            f"says that its colours are {self.tag}, but its compressed tiles say {self.stream}; "
            "the tiles are followed: check the colours in its thumbnail"
        )


def settle_pages(source: ByteSource, pages: Sequence[TiffPage]) -> tuple[tuple[TiffPage, ...], tuple[str, ...]]:
    """Pages whose Photometric is that of their tiles, and a warning for each contradiction.

    The header of one tile of each page is read, of a few if it is damaged.

    Args:
        source: the open TIFF.
        pages: any of its tiled pages.

    Raises:
        OSError: the file cannot be read.
    """
    found = [read_statement(source, page) for page in pages]
    settled = tuple(
        page if one is None else replace(page, photometric=_PHOTOMETRIC[one.colours])
        for page, one in zip(pages, found, strict=True)
    )
    return settled, doubts(one for one in found if one is not None)


def doubts(statements: Iterable[Statement]) -> tuple[str, ...]:
    """The warnings of a slide's images, each once."""
    return tuple(dict.fromkeys(one.doubt for one in statements if one.doubt is not None))


def read_statement(source: ByteSource, page: TiffPage) -> Statement | None:
    """What the tiles of a page and its tags say of its colours; None if it is grey or not of JPEG or JPEG 2000.

    Raises:
        OSError: the file cannot be read.
    """
    tag = _tag_colours(page)
    if tag is None:
        return None
    for tile in np.flatnonzero(page.counts)[:_TRIED_TILES].tolist():
        data = source.read(int(page.offsets[tile]), min(int(page.counts[tile]), HEADER_BYTES))
        try:
            return Statement(jpeg_colours(data, page.jpeg_tables) if page.compression == JPEG else _of_2000(data), tag)
        except ValueError:
            continue
    return Statement(None, tag)


def page_statements(path: Path, pages: Sequence[TiffPage]) -> dict[tuple[int, int], Statement]:
    """``read_statement`` of all JPEG pages, by their (width, height).

    Raises:
        OSError: the file cannot be read.
    """
    source = FileSource(path)
    try:
        found = ((page, read_statement(source, page)) for page in pages if page.compression == JPEG and page.is_tiled)
        return {(page.width, page.height): one for page, one in found if one is not None}
    finally:
        source.close()


def jpeg_colours(data: bytes, tables: bytes = b"") -> Colours | None:
    """What a JPEG stream says of its colours; None if it does not.

    In this order: Adobe's marker (its transform), JFIF's (always YCbCr; ITU-T T.871), the components' names if they are
    R, G and B, and a sampling that differs between components, which only YCbCr has.

    Args:
        data: the stream, at least up to its first scan.
        tables: TIFF's JPEGTables, which precede it.

    Raises:
        ValueError: this is no JPEG of three colours.
    """
    adobe: Colours | None = None
    is_jfif, names, samplings = False, b"", b""
    for marker, segment in (*jpeg_segments(tables), *jpeg_segments(data)):
        if marker == _ADOBE and segment[4:9] == b"Adobe" and len(segment) >= 16:
            adobe = "YCbCr" if segment[15] else "RGB"
        elif marker == _JFIF and segment[4:9] == b"JFIF\0":
            is_jfif = True
        elif marker in STARTS_OF_FRAME:
            names, samplings = segment[10::3], segment[11::3]
    if len(names) != 3:
        raise ValueError("no JPEG data of three colours")
    if adobe is not None:
        return adobe
    if is_jfif or len(set(samplings)) > 1:
        return "YCbCr"
    return "RGB" if names == b"RGB" else None


def jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (marker, bytes) of each segment of a JPEG's header; the last is the first scan with all that follows.

    TIFF's JPEGTables, and what is damaged, end earlier: callers check that they met what they need.
    """
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _END_OF_IMAGE:
        marker = data[position + 1]
        if marker == START_OF_SCAN:
            yield marker, data[position:]
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position:end]
        position = end


@dataclass(frozen=True, slots=True)
class Codestream:
    """The header of a JPEG 2000 codestream (ITU-T T.800, annex A).

    Attributes:
        start: where it begins, after the boxes of a JP2.
        width, height: of the tile in px.
        is_subsampled: its components have different sizes.
        is_transformed: it codes RGB by JPEG 2000's own colour transform, which every decoder undoes.
    """

    start: int
    width: int
    height: int
    is_subsampled: bool
    is_transformed: bool

    @classmethod
    def of(cls, data: bytes) -> Codestream:
        """Read it.

        Raises:
            ValueError: this is no JPEG 2000.
        """
        start = data.find(_CODESTREAM, 0, 4096)
        if start < 0:
            raise ValueError("no JPEG 2000 data")
        try:
            right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
            (count,) = struct.unpack_from(">H", data, start + 40)
            steps = {tuple(data[at : at + 2]) for at in range(start + 43, start + 43 + 3 * count, 3)}
            return cls(start, right - left, bottom - top, len(steps) > 1, cls._find_transform(data, start + 2))
        except struct.error as error:
            raise ValueError("JPEG 2000 data end within their header") from error

    @staticmethod
    def _find_transform(data: bytes, position: int) -> bool:
        while True:
            marker, size = struct.unpack_from(">HH", data, position)
            if marker == _CODING:
                return bool(struct.unpack_from(">B", data, position + 8)[0])
            if marker == _START_OF_TILE:
                raise ValueError("JPEG 2000 data without a coding style")
            position += 2 + size


def ycbcr_to_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Uint8 (rows, columns, 3): full-range BT.601, as in JPEG (JFIF 1.02)."""
    y, cb, cr = (pixels[:, :, channel].astype(np.float32) for channel in range(3))
    cb -= 128
    cr -= 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255), dtype=np.uint8)


def _of_2000(data: bytes) -> Colours | None:
    header = Codestream.of(data)
    if header.is_subsampled:
        return "YCbCr"
    return "RGB" if header.is_transformed else None


def _tag_colours(page: TiffPage) -> Colours | None:
    if page.samples != 3 or page.compression not in (JPEG, *JPEG2000_KINDS):
        return None
    if page.compression in (APERIO_YCBCR, APERIO_RGB):
        return "YCbCr" if page.compression == APERIO_YCBCR else "RGB"
    return "YCbCr" if page.photometric == YCBCR else "RGB"
