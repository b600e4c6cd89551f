"""Streamed writing of tiled pyramidal BigTIFFs: slides built like CAMELYON's, lossless masks and float32 heatmaps.

Tiles arrive one by one and are written encoded; every lower level is made from the 2 x 2 blocks of the one above it.
The directories follow at the end of the file, so that only the tiles in flight, the quarters of unfinished tiles (about
one row of tiles per lower level) and the tables of offsets are kept in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from wsi.writing.bigtiff import Tags, long8_table, long_table, longs, new_bigtiff, rational, shorts, text
from wsi.writing.tile_encoding import ColourTiles, Compression, FloatTiles, MaskTiles, Reduction, TileKind
from wsi.writing.tile_stream import LevelTable, plan_levels, store_levels

_SOFTWARE = "sentinode"
_PHILIPS_SOFTWARE = "Philips DP v1.0"  # the prefixes that OpenSlide ("Philips") and tifffile ("Philips DP") look for


@dataclass(frozen=True, slots=True, kw_only=True)
class PyramidStats:
    """Tiles stored over all levels (missing ones not counted) and seconds spent in the encoder.

    The seconds are summed over the threads.
    """

    tiles: int
    encode_seconds: float


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
    workers: int | None = None,
) -> PyramidStats:
    """Write a slide from the tiles of its finest level.

    JPEG tiles (YCbCr 4:2:0, tables shared), factor-2 levels averaged over 2 x 2 px with halves rounded up, level
    sizes rounded up. A lower tile is missing only if all four tiles above it are; next to stored tiles, missing ones
    count as white. The file appears under its name only when it is complete; its bytes do not depend on the number of
    threads.

    Args:
        path: the file to write; an existing one is replaced.
        width: of level 0 in px.
        height: of level 0 in px.
        mpp: um per level-0 px; None writes no resolution (not possible with ``philips``).
        tiles: level 0 in row-major order, uint8 (tile_size, tile_size, 3) RGB each, or None for a missing tile.
            Tiles on the right and lower edge are full size, too: the caller's padding (usually white) enters the
            average of the last row and column of the lower levels.
        tile_size: side of a tile in px, a multiple of 16.
        levels: number of levels; by default until one fits a single tile, 10 at most.
        quality: of the JPEG tiles, 1 to 100.
        philips: write a Philips file: resolution only in the XML, level sizes padded to whole tiles (so readers see
            level 0 padded as well).
        description: ASCII text for the ImageDescription tag (not with ``philips``, which puts its XML there).
        workers: encoding threads; by default one per usable core.

    Returns:
        Number of stored tiles and seconds spent encoding.

    Raises:
        ValueError: an argument is out of range, or ``tiles`` are too few, too many or of the wrong shape.
        StorageError: the file cannot be written (disk full, no such folder).
    """
    if philips and (mpp is None or description is not None):
        raise ValueError("a Philips file needs an mpp and allows no other description")
    _check_arguments(
        width=width,
        height=height,
        mpp=mpp,
        tile_size=tile_size,
        levels=levels,
        description=description,
        workers=workers,
    )
    kind = ColourTiles(tile_size=tile_size, quality=quality)
    tables = plan_levels(width=width, height=height, tile_size=tile_size, levels=levels)
    if philips and mpp is not None:
        return _write(path, tables, kind, tiles, _philips_pages(tables, kind, mpp=mpp), workers=workers)
    pages = _generic_pages(tables, kind, mpp=mpp, description=description)
    return _write(path, tables, kind, tiles, pages, workers=workers)


def write_mask(
    path: str | PathLike[str],
    *,
    width: int,
    height: int,
    mpp: float | None,
    tiles: Iterable[NDArray[np.uint8] | None],
    tile_size: int = 512,
    levels: int | None = None,
    compression: Compression = "deflate",
    reduction: Reduction = "max",
    description: str | None = None,
    workers: int | None = None,
) -> PyramidStats:
    """Write a mask, one value of 8 bits per pixel, from the tiles of its finest level; lossless.

    Readers disagree on missing tiles (black, transparent, white), so missing tiles and tiles of only 0 all refer to one
    stored tile of zeros: they read as 0 everywhere and cost a few bytes in all.

    Args:
        path: the file to write; an existing one is replaced.
        width: of level 0 in px.
        height: of level 0 in px.
        mpp: um per level-0 px; None writes no resolution.
        tiles: level 0 in row-major order, uint8 (tile_size, tile_size) each, or None for only 0. Tiles on the
            right and lower edge are full size, too; pixels beyond the edge do not influence lower levels.
        tile_size: side of a tile in px, a multiple of 16.
        levels: number of levels; by default until one fits a single tile, 10 at most.
        compression: deflate opens in every viewer, lzw even in the oldest, zstd is the smallest and fastest.
        reduction: how 2 x 2 px become one on the next level: ``max`` keeps the smallest lesion (for values such as
            0/255, 0/1 and 0/1/2, where the largest is tumour), ``majority`` takes the most frequent value (of equally
            frequent ones the largest), ``nearest`` the upper left.
        description: ASCII text for the ImageDescription tag.
        workers: encoding threads; by default one per usable core.

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
        description=description,
        workers=workers,
    )
    kind = MaskTiles(tile_size=tile_size, compression=compression, reduction=reduction)
    tables = plan_levels(width=width, height=height, tile_size=tile_size, levels=levels)
    pages = _generic_pages(tables, kind, mpp=mpp, description=description)
    return _write(path, tables, kind, tiles, pages, workers=workers)


def write_float(
    path: str | PathLike[str],
    *,
    width: int,
    height: int,
    mpp: float | None,
    tiles: Iterable[NDArray[np.float32] | None],
    tile_size: int = 512,
    levels: int | None = None,
    compression: Compression = "deflate",
    has_predictor: bool = True,
    description: str | None = None,
    workers: int | None = None,
) -> PyramidStats:
    """Write a heatmap, one float32 per cell, from the tiles of its finest level; lossless.

    A cell of a lower level is the mean of the finite ones among its four, NaN if none is. Missing tiles read as 0
    everywhere, see ``write_mask``, and count as 0 next to stored ones.

    Args:
        path: the file to write; an existing one is replaced.
        width: of level 0 in cells.
        height: of level 0 in cells.
        mpp: um per level-0 cell; None writes no resolution.
        tiles: level 0 in row-major order, float32 (tile_size, tile_size) each, or None for only 0. Tiles on the
            right and lower edge are full size, too; pixels beyond the edge do not influence lower levels.
        tile_size: side of a tile in cells, a multiple of 16.
        levels: number of levels; by default until one fits a single tile, 10 at most.
        compression: deflate opens in every viewer, lzw even in the oldest, zstd is the smallest and fastest.
        has_predictor: TIFF's predictor for floats (3), which makes smooth maps smaller; off for viewers without it.
        description: ASCII text for the ImageDescription tag.
        workers: encoding threads; by default one per usable core.

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
        description=description,
        workers=workers,
    )
    kind = FloatTiles(tile_size=tile_size, compression=compression, has_predictor=has_predictor)
    tables = plan_levels(width=width, height=height, tile_size=tile_size, levels=levels)
    pages = _generic_pages(tables, kind, mpp=mpp, description=description)
    return _write(path, tables, kind, tiles, pages, workers=workers)


def level_tags(table: LevelTable, kind: Tags, *, is_reduced: bool, mpp: float | None) -> Tags:
    """The directory of one level of a generic pyramid.

    Args:
        table: with all tiles written.
        kind: the part that depends on the kind of tile.
        is_reduced: True for all levels but the finest.
        mpp: um per px of this level; None writes no resolution.
    """
    tags = _page(table, kind, is_reduced=is_reduced, software=_SOFTWARE)
    tags |= {256: longs(table.width), 257: longs(table.height)}
    if mpp is not None:
        resolution = rational(1e4 / mpp)
        tags |= {282: resolution, 283: resolution, 296: shorts(3)}  # pixels per centimetre
    return tags


def check_mpp(mpp: float | None) -> None:
    """Check that the tags can hold a resolution.

    Raises:
        ValueError: outside 0.001 to 100,000 um per px.
    """
    if mpp is not None and not 0.001 <= mpp <= 1e5:
        raise ValueError(f"mpp is um per px and must be 0.001 to 1e5, got {mpp}")


def check_tile_size(tile_size: int) -> None:
    """Check that TIFF allows a tile's side.

    Raises:
        ValueError: not a positive multiple of 16.
    """
    if tile_size < 16 or tile_size % 16:
        raise ValueError(f"TIFF needs tiles of a multiple of 16 px, got {tile_size}")


def _check_arguments(
    *,
    width: int,
    height: int,
    mpp: float | None,
    tile_size: int,
    levels: int | None,
    description: str | None,
    workers: int | None,
) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"a slide needs at least 1 x 1 px, got {width} x {height}")
    check_mpp(mpp)
    check_tile_size(tile_size)
    if levels is not None and levels < 1:
        raise ValueError(f"a slide needs at least 1 level, got {levels}")
    if description is not None and not description.isascii():
        raise ValueError("TIFF allows only ASCII in a description")
    if workers is not None and workers < 1:
        raise ValueError(f"encoding needs at least 1 thread, got {workers}")


def _write(
    path: str | PathLike[str],
    tables: list[LevelTable],
    kind: TileKind,
    tiles: Iterable[NDArray[Any] | None],
    pages: Iterator[Tags],
    *,
    workers: int | None,
) -> PyramidStats:
    """``pages`` is consumed after all tiles have been written."""
    with new_bigtiff(path) as file:
        stored = store_levels(file, tables, kind, tiles, workers=workers)
        file.write_directories(pages)
    return PyramidStats(tiles=stored.tiles, encode_seconds=stored.encode_seconds)


def _generic_pages(
    tables: list[LevelTable], kind: TileKind, *, mpp: float | None, description: str | None
) -> Iterator[Tags]:
    for index, table in enumerate(tables):
        tags = level_tags(table, kind.tags, is_reduced=index > 0, mpp=None if mpp is None else mpp * 2**index)
        if description is not None and index == 0:
            tags[270] = text(description)
        yield tags


def _philips_pages(tables: list[LevelTable], kind: TileKind, *, mpp: float) -> Iterator[Tags]:
    for index, table in enumerate(tables):
        tags = _page(table, kind.tags, is_reduced=index > 0, software=_PHILIPS_SOFTWARE)
        columns, rows = _padded(table)
        tags |= {256: longs(columns), 257: longs(rows)}
        if index == 0:
            tags[270] = text(_philips_xml(tables, mpp=mpp))
        yield tags


def _page(table: LevelTable, kind: Tags, *, is_reduced: bool, software: str) -> Tags:
    return kind | {
        254: longs(int(is_reduced)),
        284: shorts(1),  # the samples of a pixel lie together
        305: text(software),
        322: longs(table.tile_width),
        323: longs(table.tile_height),
        324: long8_table(table.offsets.tobytes()),
        325: long_table(table.counts.tobytes()),
    }


def _padded(table: LevelTable) -> tuple[int, int]:
    """(columns, rows) of pixels of all tiles."""
    return table.columns * table.tile_width, table.rows * table.tile_height


def _philips_xml(tables: list[LevelTable], *, mpp: float) -> str:
    def attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
        return (
            f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">{escape(value)}</Attribute>'
        )

    def spacing(index: int) -> str:
        millimetres = f"{mpp * 2**index / 1000:.12g}"
        pair = f'"{millimetres}" "{millimetres}"'  # row, column
        return attribute("DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", pair)

    def representation(index: int, table: LevelTable) -> str:
        columns, rows = _padded(table)
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
