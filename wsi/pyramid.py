"""Streamed writing of slides: tiled BigTIFF pyramids with JPEG tiles, as CAMELYON's files are built.

Tiles come in one by one, are encoded once and appended to the file; every lower level grows from the 2 x 2 averages
of the tiles above it as soon as four of them are complete. The directories follow at the end of the file, so nothing
but the unfinished tiles of the lower levels (about one row of tiles) and the tables of offsets is kept in memory.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4
from xml.sax.saxutils import escape

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.errors import StorageError

MAX_LEVELS = 10
"""CAMELYON's pyramids have up to ten levels."""

_SOFTWARE = "sentinode"
_PHILIPS_SOFTWARE = "Philips DP v1.0"  # the prefixes that OpenSlide ("Philips") and tifffile ("Philips DP") look for
_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 2, 3, 4, 5, 7, 16
_Tags = dict[int, tuple[int, int, bytes]]  # tag code: field type, number of values, their bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidStats:
    """What was written: tiles stored over all levels (missing ones not counted) and seconds spent in the encoder."""

    tiles: int
    encode_seconds: float


@dataclass(slots=True, kw_only=True)
class _LevelTable:
    """One level while it is written: its grid, where its tiles went, and its tiles that still lack children."""

    rows: int
    columns: int
    width: int
    height: int
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint32]
    unfinished: dict[int, NDArray[np.uint8]] = field(default_factory=dict)


def write_pyramid(
    path: str | PathLike[str],
    *,
    width: int,
    height: int,
    mpp: float | None,
    tiles: Iterable[NDArray[np.uint8] | None],
    tile_size: int = 512,
    levels: int | None = None,
    quality: int = 80,
    philips: bool = False,
    description: str | None = None,
) -> PyramidStats:
    """Write a slide from the tiles of its finest level.

    JPEG tiles (YCbCr 4:2:0, tables shared), factor-2 levels averaged over 2 x 2 px with halves rounded up, level
    sizes rounded up. A lower tile is missing only where all four tiles above it are; next to stored tiles, missing
    ones count as white. The file appears under its name when it is complete and not before.

    Args:
        path: the file to write; an existing one is replaced.
        width: of level 0 in px.
        height: of level 0 in px.
        mpp: um per level-0 px; None writes no resolution (not possible with ``philips``).
        tiles: level 0 in row-major order, uint8 (tile_size, tile_size, 3) RGB each, or None for a missing tile.
            Tiles on the right and lower edge are full size, too: the caller's padding (white, usually) takes part in
            the average of the last row and column of the lower levels.
        tile_size: side of a tile in px, a multiple of 16.
        levels: number of levels; by default until one fits a single tile, 10 at most.
        quality: of the JPEG tiles, 1 to 100.
        philips: write the Philips kind of file: resolution only in the XML, level sizes padded to whole tiles (so
            readers see level 0 padded as well).
        description: ASCII text for the ImageDescription tag (not with ``philips``, which puts its XML there).

    Returns:
        Number of stored tiles and seconds spent encoding.

    Raises:
        ValueError: an argument is out of range, or ``tiles`` are too few, too many or of the wrong shape.
        StorageError: the file cannot be written (disk full, no such folder).
    """
    _check_arguments(
        width=width,
        height=height,
        mpp=mpp,
        tile_size=tile_size,
        levels=levels,
        philips=philips,
        description=description,
    )
    tables = _plan(width=width, height=height, tile_size=tile_size, levels=levels)
    path = Path(path)
    with _new_file(path) as file:
        writer = _TileWriter(path=path, file=file, tables=tables, tile_size=tile_size, quality=quality)
        writer.write_all(tiles)
        if philips and mpp is not None:
            pages = _philips_pages(tables, tile_size=tile_size, mpp=mpp)
        else:
            pages = _generic_pages(tables, tile_size=tile_size, mpp=mpp, description=description)
        with _storage_errors(path):
            _write_directories(file, pages, jpeg_tables=writer.jpeg_tables)
    return PyramidStats(tiles=writer.stored, encode_seconds=writer.encode_seconds)


def _check_arguments(
    *,
    width: int,
    height: int,
    mpp: float | None,
    tile_size: int,
    levels: int | None,
    philips: bool,
    description: str | None,
) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"a slide needs at least 1 x 1 px, got {width} x {height}")
    if mpp is not None and not 0.001 <= mpp <= 1e5:
        raise ValueError(f"mpp is um per px and must be 0.001 to 1e5, got {mpp}")
    if tile_size < 16 or tile_size % 16:
        raise ValueError(f"TIFF wants tiles of a multiple of 16 px, got {tile_size}")
    if levels is not None and levels < 1:
        raise ValueError(f"a slide needs at least 1 level, got {levels}")
    if philips and (mpp is None or description is not None):
        raise ValueError("a Philips file needs an mpp and takes no other description")
    if description is not None and not description.isascii():
        raise ValueError("TIFF takes only ASCII in a description")


def _plan(*, width: int, height: int, tile_size: int, levels: int | None) -> list[_LevelTable]:
    tables: list[_LevelTable] = []
    for _ in range(MAX_LEVELS if levels is None else levels):
        rows, columns = -(-height // tile_size), -(-width // tile_size)
        tables.append(
            _LevelTable(
                rows=rows,
                columns=columns,
                width=width,
                height=height,
                offsets=np.zeros(rows * columns, dtype="<u8"),
                counts=np.zeros(rows * columns, dtype="<u4"),
            )
        )
        if levels is None and rows == columns == 1:
            break
        width, height = -(-width // 2), -(-height // 2)
    return tables


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(path, f"cannot be written: {error.strerror or error}") from error


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A hidden file beside ``path`` that takes its name on success and is removed on any failure."""
    hidden = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    with _storage_errors(path):
        file = hidden.open("xb")
    try:
        with file:
            with _storage_errors(path):
                file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
            yield file
            with _storage_errors(path):
                file.flush()
                os.fsync(file.fileno())
        with _storage_errors(path):
            hidden.replace(path)
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


class _TileWriter:
    """Takes the tiles of level 0 in order; encodes and appends them and all that follows from them below."""

    def __init__(self, *, path: Path, file: BinaryIO, tables: list[_LevelTable], tile_size: int, quality: int) -> None:
        self.stored = 0
        self.encode_seconds = 0.0
        self._path = path
        self._file = file
        self._end = file.tell()
        self._tables = tables
        self._tile_size = tile_size
        self._quality = quality
        # The encoder writes the same headers for every tile of one size: taken apart once, they give the shared
        # tables and the short header that each stored tile begins with.
        white = np.full((tile_size, tile_size, 3), 255, dtype=np.uint8)
        self._header, self.jpeg_tables, self._short_header = _split_header(self._encode(white))
        self.encode_seconds = 0.0

    def write_all(self, tiles: Iterable[NDArray[np.uint8] | None]) -> None:
        table = self._tables[0]
        total, shape = table.rows * table.columns, (self._tile_size, self._tile_size, 3)
        given = 0
        for given, tile in enumerate(tiles, start=1):
            if given > total:
                break
            if tile is not None and (tile.shape != shape or tile.dtype != np.uint8):
                raise ValueError(f"tile {given - 1} is {tile.dtype} {tile.shape}, wanted uint8 {shape}")
            row, column = divmod(given - 1, table.columns)
            self._add(0, row, column, tile)
        if given != total:
            raise ValueError(
                f"{table.rows} x {table.columns} tiles are {total}, got {'more' if given > total else given}"
            )

    def _add(self, level: int, row: int, column: int, tile: NDArray[np.uint8] | None) -> None:
        """Store one tile of a level, then each tile below that it completes."""
        while True:
            table = self._tables[level]
            if tile is not None:
                self._store(table, row * table.columns + column, tile)
            level += 1
            if level == len(self._tables):
                return
            below = self._tables[level]
            if tile is not None:
                self._reduce(tile, below, row=row, column=column)
            is_last_child = (row % 2 == 1 or row == table.rows - 1) and (column % 2 == 1 or column == table.columns - 1)
            if not is_last_child:
                return
            row, column = row // 2, column // 2
            tile = below.unfinished.pop(column, None)

    def _reduce(self, tile: NDArray[np.uint8], below: _LevelTable, *, row: int, column: int) -> None:
        size, half = self._tile_size, self._tile_size // 2
        parent = below.unfinished.get(column // 2)
        if parent is None:
            parent = below.unfinished[column // 2] = np.full((size, size, 3), 255, dtype=np.uint8)
        y, x = row % 2 * half, column % 2 * half
        halve(tile, parent[y : y + half, x : x + half])

    def _encode(self, tile: NDArray[np.uint8]) -> bytes:
        start = time.perf_counter()
        encoded: bytes = simplejpeg.encode_jpeg(
            np.ascontiguousarray(tile), quality=self._quality, colorspace="RGB", colorsubsampling="420", fastdct=False
        )
        self.encode_seconds += time.perf_counter() - start
        return encoded

    def _store(self, table: _LevelTable, index: int, tile: NDArray[np.uint8]) -> None:
        encoded = self._encode(tile)
        if not encoded.startswith(self._header):
            raise RuntimeError("the JPEG encoder changed its tables between two tiles")
        with _storage_errors(self._path):
            self._file.write(self._short_header)
            self._file.write(memoryview(encoded)[len(self._header) :])
        count = len(self._short_header) + len(encoded) - len(self._header)
        table.offsets[index], table.counts[index] = self._end, count
        self._end += count
        self.stored += 1


def halve(tile: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Average 2 x 2 px, halves rounded up: (2h, 2w, 3) into ``out`` (h, w, 3), both uint8."""
    # Flat rows with one strided sum per channel: several times faster than numpy's loops over a last axis of 3.
    height, width, _ = tile.shape
    sums = np.add(tile[0::2], tile[1::2], dtype=np.uint16).reshape(height // 2, width * 3)
    blocks = np.empty((height // 2, width // 2 * 3), dtype=np.uint16)
    for channel in range(3):
        np.add(sums[:, channel::6], sums[:, channel + 3 :: 6], out=blocks[:, channel::3])
    blocks += 2
    blocks >>= 2
    out[...] = blocks.reshape(out.shape)


def _split_header(encoded: bytes) -> tuple[bytes, bytes, bytes]:
    """Take a JPEG's header apart: (all up to the coded data, a table-only stream, the header without tables).

    An abbreviated stream in the sense of TIFF Technical Note 2: quantisation and Huffman tables move to JPEGTables,
    application markers are dropped.
    """
    tables, kept = b"", b""
    position = 2
    while True:
        marker, size = struct.unpack_from(">HH", encoded, position)
        segment = encoded[position : position + 2 + size]
        position += 2 + size
        if marker in (0xFFDB, 0xFFC4):
            tables += segment
        elif not 0xFFE0 <= marker <= 0xFFEF:
            kept += segment
        if marker == 0xFFDA:
            return encoded[:position], b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + kept


def _generic_pages(
    tables: list[_LevelTable], *, tile_size: int, mpp: float | None, description: str | None
) -> Iterator[_Tags]:
    for index, table in enumerate(tables):
        tags = _page(table, tile_size=tile_size, is_reduced=index > 0, software=_SOFTWARE)
        tags |= {256: _longs(table.width), 257: _longs(table.height)}
        if mpp is not None:
            resolution = _rational(1e4 / (mpp * 2**index))
            tags |= {282: resolution, 283: resolution, 296: _shorts(3)}  # pixels per centimetre
        if description is not None and index == 0:
            tags[270] = _text(description)
        yield tags


def _philips_pages(tables: list[_LevelTable], *, tile_size: int, mpp: float) -> Iterator[_Tags]:
    for index, table in enumerate(tables):
        tags = _page(table, tile_size=tile_size, is_reduced=index > 0, software=_PHILIPS_SOFTWARE)
        tags |= {256: _longs(table.columns * tile_size), 257: _longs(table.rows * tile_size)}
        if index == 0:
            tags[270] = _text(_philips_xml(tables, tile_size=tile_size, mpp=mpp))
        yield tags


def _page(table: _LevelTable, *, tile_size: int, is_reduced: bool, software: str) -> _Tags:
    return {
        254: _longs(int(is_reduced)),
        258: _shorts(8, 8, 8),
        259: _shorts(7),  # JPEG
        262: _shorts(6),  # YCbCr
        277: _shorts(3),
        284: _shorts(1),
        305: _text(software),
        322: _longs(tile_size),
        323: _longs(tile_size),
        324: (_LONG8, table.offsets.size, table.offsets.tobytes()),
        325: (_LONG, table.counts.size, table.counts.tobytes()),
        530: _shorts(2, 2),
        532: (_RATIONAL, 6, struct.pack("<12I", 0, 1, 255, 1, 128, 1, 255, 1, 128, 1, 255, 1)),
    }


def _shorts(*values: int) -> tuple[int, int, bytes]:
    return _SHORT, len(values), struct.pack(f"<{len(values)}H", *values)


def _longs(*values: int) -> tuple[int, int, bytes]:
    return _LONG, len(values), struct.pack(f"<{len(values)}I", *values)


def _text(value: str) -> tuple[int, int, bytes]:
    data = value.encode("ascii") + b"\0"
    return _ASCII, len(data), data


def _rational(value: float) -> tuple[int, int, bytes]:
    largest = 2**32 - 1
    fraction = Fraction(value).limit_denominator(max(1, min(largest, int(largest / value) - 1)))
    return _RATIONAL, 1, struct.pack("<2I", fraction.numerator, fraction.denominator)


def _philips_xml(tables: list[_LevelTable], *, tile_size: int, mpp: float) -> str:
    def attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
        return (
            f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">{escape(value)}</Attribute>'
        )

    def spacing(index: int) -> str:
        millimetres = f"{mpp * 2**index / 1000:.12g}"
        pair = f'"{millimetres}" "{millimetres}"'  # row, column
        return attribute("DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", pair)

    def representation(index: int, table: _LevelTable) -> str:
        columns, rows = table.columns * tile_size, table.rows * tile_size
        return (
            '<DataObject ObjectType="PixelDataRepresentation">'
            + spacing(index)
            + attribute("PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS", "0x2001", "0x115E", "IUInt32", str(columns))
            + attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "0x1001", "0x8B02", "IUInt16", str(index))
            + attribute("PIIM_PIXEL_DATA_REPRESENTATION_ROWS", "0x2001", "0x115D", "IUInt32", str(rows))
            + "</DataObject>\n"
        )

    levels = "".join(representation(index, table) for index, table in enumerate(tables))
    return (
        '<?xml version="1.0" encoding="UTF-8" ?>\n<DataObject ObjectType="DPUfsImport">\n'
        + attribute("DICOM_MANUFACTURER", "0x0008", "0x0070", "IString", _SOFTWARE)
        + '\n<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>\n'
        + '<DataObject ObjectType="DPScannedImage">\n'
        + attribute("PIM_DP_IMAGE_TYPE", "0x301D", "0x1004", "IString", "WSI")
        + spacing(0)
        + '\n<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01"'
        + ' PMSVR="IDataObjectArray"><Array>\n'
        + levels
        + "</Array></Attribute>\n</DataObject>\n</Array></Attribute>\n</DataObject>"
    )


def _write_directories(file: BinaryIO, pages: Iterable[_Tags], *, jpeg_tables: bytes) -> None:
    """Append the directories, each with its values before it, and link them into one chain from the header."""
    tables_offset = _append(file, jpeg_tables)
    link = 8  # where the offset of the next directory stands; the header's is at byte 8
    for tags in pages:
        entries = []
        for code, (kind, count, data) in sorted((tags | {347: (_UNDEFINED, len(jpeg_tables), jpeg_tables)}).items()):
            if len(data) <= 8:
                value = data.ljust(8, b"\0")
            else:
                value = struct.pack("<Q", tables_offset if code == 347 else _append(file, data))
            entries.append(struct.pack("<HHQ", code, kind, count) + value)
        start = _append(file, struct.pack("<Q", len(entries)) + b"".join(entries) + bytes(8))
        end = file.tell()
        file.seek(link)
        file.write(struct.pack("<Q", start))
        file.seek(end)
        link = end - 8


def _append(file: BinaryIO, data: bytes) -> int:
    """Append on the next multiple of 8; returns where."""
    file.write(bytes(-file.tell() % 8))
    start = file.tell()
    file.write(data)
    return start
