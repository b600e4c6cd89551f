"""Tiled TIFF pyramids, read tile by tile: CAMELYON's files, Philips, Aperio, OME and generic ones.

The directories are read once; after that a tile costs one positioned read and its decoding. Tiles without bytes are
white, as is everything beyond the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideFormatError
from wsi.geometry import Level
from wsi.readers.base import BadTile, OnBadTile, StoredTiles, measure_downsample
from wsi.readers.codec import COMPRESSIONS, can_decode
from wsi.readers.scale import find_level_pages, measure_mpp, name_format, read_philips_spacings
from wsi.readers.source import ByteSource, FileSource
from wsi.readers.structure import TiffPage, walk_structure
from wsi.readers.tiff_tiles import TiffTiles

CACHE_BYTES = 64 * 2**20
"""Decoded tiles kept per open file: windows that overlap, as with halos, share their border tiles."""

REDUCTIONS = (8, 4, 2)
"""By how much JPEG tiles can be made smaller while they are decoded."""

# a thread's share at a time, and what is fetched before it is decoded: of a remote file it comes in few requests
_TILES_PER_TASK = 16
_TILES_AHEAD = 64


def find_readable_levels(pages: tuple[TiffPage, ...]) -> tuple[TiffPage, ...]:
    """The pages ``TiffReader`` would take as levels; empty where it cannot decode the finest."""
    levels = find_level_pages(pages)
    return tuple(page for page in levels if can_decode(page)) if levels and can_decode(levels[0]) else ()


def _readable_levels(source: ByteSource, pages: tuple[TiffPage, ...] | None) -> tuple[TiffPage, ...]:
    levels = find_readable_levels(walk_structure(source) if pages is None else pages)
    if not levels:
        raise SlideFormatError(source.name, "has no tiled image of a kind that can be decoded")
    return levels


class TiffReader:
    """Reads one tiled TIFF; see ``wsi.readers.base.Reader``. Safe from many threads.

    Args:
        source: the file, as a path or open already; then it is closed with the reader.
        pages: its structure, where the caller has read it already.
        on_bad_tile: "raise", or "white": tiles that cannot be decoded are white and listed in ``bad_tiles``.

    Raises:
        SlideFormatError: the file is damaged, or its finest image is not tiled or of a kind not decoded here.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        source: str | PathLike[str] | ByteSource,
        pages: tuple[TiffPage, ...] | None = None,
        *,
        on_bad_tile: OnBadTile = "raise",
    ) -> None:
        self._source = FileSource(source) if isinstance(source, (str, PathLike)) else source
        try:
            levels = _readable_levels(self._source, pages)
            self.levels = _measure_levels(self._source.name, levels)
            self.mpp = measure_mpp(self._source.name, levels[0])
        except BaseException:
            self._source.close()
            raise
        self.properties: Mapping[str, str] = {
            "sentinode.format": name_format(levels[0]),
            "sentinode.compression": COMPRESSIONS[levels[0].compression],
        }
        self._tiles = TiffTiles(self._source, levels, on_bad_tile=on_bad_tile, cache_bytes=CACHE_BYTES)

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """See ``wsi.readers.base.Reader``."""
        return self._tiles.bad

    def read(self, level: int, *, row: int, column: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window; see ``wsi.readers.base.Reader``.

        Raises:
            TileError: a tile under the window cannot be decoded; names path, level, tile row and tile column.
        """
        size, height, width = self.levels[level], *out.shape[:2]
        window = _clipped(size, row=row, column=column, height=height, width=width)
        if window is None:
            out[...] = 255
            return
        top, bottom, left, right = window
        if (bottom - top, right - left) != (height, width):
            out[...] = 255
        for tile_row, tile_column, index, data in self._fetched(level, _tiles_under(size, window)):
            y, x = tile_row * size.tile_height, tile_column * size.tile_width
            y0, y1 = max(top, y), min(bottom, y + size.tile_height)
            x0, x1 = max(left, x), min(right, x + size.tile_width)
            part = out[y0 - row : y1 - row, x0 - column : x1 - column]
            self._tiles.paste(level, index, data, top=y0 - y, left=x0 - x, out=part)

    def read_many(
        self, level: int, *, rows: NDArray[np.int64], columns: NDArray[np.int64], out: NDArray[np.uint8], workers: int
    ) -> None:
        """Fill ``out`` with windows of one size; every tile that any of them touches is decoded once.

        Args:
            level: index.
            rows: (n,), of each window's first pixel, in px of the level; may lie outside.
            columns: (n,), of the same pixels.
            out: uint8 (n, height, width, 3).
            workers: threads that decode.

        Raises:
            TileError: as ``read``.
        """
        size = self.levels[level]
        height, width = out.shape[1:3]
        is_inside = (rows >= 0) & (columns >= 0) & (rows + height <= size.height) & (columns + width <= size.width)
        out[~is_inside] = 255
        uses = list(_tile_uses(size, rows=rows, columns=columns, height=height, width=width))
        share = max(1, min(_TILES_PER_TASK, len(uses) // (4 * workers)))
        shares = [uses[start : start + share] for start in range(0, len(uses), share)]

        def serve(some: Sequence[_TileUse]) -> None:
            indices = [use.row * self._tiles.columns(level) + use.column for use in some]
            for use, index, data in zip(some, indices, self._tiles.fetch(level, indices), strict=True):
                self._serve(level, use, index, data, rows=rows, columns=columns, out=out)

        if workers == 1 or len(shares) < 2:
            for some in shares:
                serve(some)
            return
        with ThreadPoolExecutor(min(workers, len(shares)), "read") as pool:
            futures = [pool.submit(serve, some) for some in shares]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def read_reduced(self, level: int, factor: int, *, row: int, column: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window of a level of JPEG tiles that the decoder makes smaller.

        Args:
            level: index; ``can_reduce`` holds for it.
            factor: 2, 4 or 8.
            row: of the window's first pixel, in px of the reduced level.
            column: of the same pixel.
            out: uint8 (height, width, 3); white outside the level.

        Raises:
            TileError: as ``read``.
        """
        size, height, width = self.levels[level], *out.shape[:2]
        out[...] = 255
        limit = -(-size.height // factor), -(-size.width // factor)
        top, bottom = max(row, 0), min(row + height, limit[0])
        left, right = max(column, 0), min(column + width, limit[1])
        if top >= bottom or left >= right:
            return
        down, across = size.tile_height // factor, size.tile_width // factor
        tile = np.empty((down, across, 3), dtype=np.uint8)
        under = (top * factor, min(bottom * factor, size.height), left * factor, min(right * factor, size.width))
        for tile_row, tile_column, index, data in self._fetched(level, _tiles_under(size, under)):
            self._tiles.paste_reduced(level, index, data, factor=factor, out=tile)
            y, x = tile_row * down, tile_column * across
            y0, y1, x0, x1 = max(top, y), min(bottom, y + down), max(left, x), min(right, x + across)
            out[y0 - row : y1 - row, x0 - column : x1 - column] = tile[y0 - y : y1 - y, x0 - x : x1 - x]

    def can_reduce(self, level: int) -> bool:
        """Whether ``read_reduced`` can be had of a level."""
        size = self.levels[level]
        return self._tiles.is_jpeg(level) and size.tile_width % 8 == 0 and size.tile_height % 8 == 0

    def has_pixels(self, level: int, *, row: int, column: int, height: int, width: int) -> bool:
        """False where the whole window lies outside the level or in missing tiles."""
        size = self.levels[level]
        window = _clipped(size, row=row, column=column, height=height, width=width)
        if window is None:
            return False
        top, bottom, left, right = window
        rows = slice(top // size.tile_height, -(-bottom // size.tile_height))
        columns = slice(left // size.tile_width, -(-right // size.tile_width))
        return bool(self._tiles.present(level)[rows, columns].any())

    def tile_bytes(self, level: int, row: int, column: int) -> bytes | None:
        """One tile as a complete JPEG; see ``TiffTiles.stream``."""
        return self._tiles.stream(level, row, column)

    def stored_tiles(self, level: int) -> StoredTiles:
        """The tiles of a level as they lie in the file."""
        return self._tiles.stored(level)

    def close(self) -> None:
        """Give the file back."""
        self._source.close()

    def _fetched(self, level: int, tiles: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, bytes | None]]:
        """(tile row, tile column, number, stored bytes) of tiles; a bounded number of them is fetched ahead."""
        across = self._tiles.columns(level)
        for start in range(0, len(tiles), _TILES_AHEAD):
            some = tiles[start : start + _TILES_AHEAD]
            indices = [row * across + column for row, column in some]
            for (row, column), index, data in zip(some, indices, self._tiles.fetch(level, indices), strict=True):
                yield row, column, index, data

    def _serve(
        self,
        level: int,
        use: _TileUse,
        index: int,
        data: bytes | None,
        *,
        rows: NDArray[np.int64],
        columns: NDArray[np.int64],
        out: NDArray[np.uint8],
    ) -> None:
        """Decode what the windows want of one tile, once, and hand it out."""
        size, height, width = self.levels[level], *out.shape[1:3]
        y, x = use.row * size.tile_height, use.column * size.tile_width
        bottom, right = min(y + size.tile_height, size.height), min(x + size.tile_width, size.width)
        parts = [
            (window, max(y, row), min(bottom, row + height), max(x, column), min(right, column + width))
            for window, row, column in zip(
                use.windows.tolist(), rows[use.windows].tolist(), columns[use.windows].tolist(), strict=True
            )
        ]
        y0, y1 = min(part[1] for part in parts), max(part[2] for part in parts)
        x0, x1 = min(part[3] for part in parts), max(part[4] for part in parts)
        if len(parts) == 1:
            window = parts[0][0]
            row, column = int(rows[window]), int(columns[window])
            target = out[window, y0 - row : y1 - row, x0 - column : x1 - column]
            self._tiles.paste(level, index, data, top=y0 - y, left=x0 - x, out=target, once=True)
            return
        shared = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        self._tiles.paste(level, index, data, top=y0 - y, left=x0 - x, out=shared, once=True)
        for window, top, end, left, stop in parts:
            row, column = int(rows[window]), int(columns[window])
            out[window, top - row : end - row, left - column : stop - column] = shared[
                top - y0 : end - y0, left - x0 : stop - x0
            ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _TileUse:
    """One tile and the windows, by number, that want something of it."""

    row: int
    column: int
    windows: NDArray[np.int64]


def _tile_uses(
    size: Level, *, rows: NDArray[np.int64], columns: NDArray[np.int64], height: int, width: int
) -> Iterator[_TileUse]:
    """Every tile that windows touch, once, row by row of tiles."""
    top, bottom = np.maximum(rows, 0), np.minimum(rows + height, size.height)
    left, right = np.maximum(columns, 0), np.minimum(columns + width, size.width)
    numbers = np.flatnonzero((top < bottom) & (left < right))
    if not numbers.size:
        return
    first_row, last_row = top[numbers] // size.tile_height, (bottom[numbers] - 1) // size.tile_height
    first_column, last_column = left[numbers] // size.tile_width, (right[numbers] - 1) // size.tile_width
    across = -(-size.width // size.tile_width)
    keys, windows = [], []
    for down in range(int((last_row - first_row).max()) + 1):
        for along in range(int((last_column - first_column).max()) + 1):
            kept = (first_row + down <= last_row) & (first_column + along <= last_column)
            keys.append(((first_row + down) * across + first_column + along)[kept])
            windows.append(numbers[kept])
    key, window = np.concatenate(keys), np.concatenate(windows)
    order = np.argsort(key, kind="stable")
    key, window = key[order], window[order]
    for some in np.split(np.arange(key.size), np.flatnonzero(np.diff(key)) + 1):
        row, column = divmod(int(key[some[0]]), across)
        yield _TileUse(row=row, column=column, windows=window[some])


def _tiles_under(size: Level, window: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """(row, column) of the tiles under a (top, bottom, left, right) of a level, row by row."""
    top, bottom, left, right = window
    return [
        (row, column)
        for row in range(top // size.tile_height, -(-bottom // size.tile_height))
        for column in range(left // size.tile_width, -(-right // size.tile_width))
    ]


def _clipped(size: Level, *, row: int, column: int, height: int, width: int) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of what of a window lies on a level, None where nothing does."""
    top, bottom = max(row, 0), min(row + height, size.height)
    left, right = max(column, 0), min(column + width, size.width)
    return (top, bottom, left, right) if top < bottom and left < right else None


def _measure_levels(path: str | PathLike[str], pages: tuple[TiffPage, ...]) -> tuple[Level, ...]:
    first = pages[0]
    full = first.width, first.height
    spacings = read_philips_spacings(path, first.description) if name_format(first) == "philips" else []
    levels = []
    for index, page in enumerate(pages):
        width, height = page.width, page.height
        told = None
        if len(spacings) == len(pages):
            # As OpenSlide: the mean of both axes' ratios; sizes from it, cut off at whole pixels.
            told = (spacings[index][0] / spacings[0][0] + spacings[index][1] / spacings[0][1]) / 2
        downsample = measure_downsample(full, (width, height), told=told) if index else 1.0
        if told is not None and index:
            width, height = min(width, int(full[0] / downsample)), min(height, int(full[1] / downsample))
        levels.append(
            Level(
                index=index,
                width=max(1, width),
                height=max(1, height),
                tile_width=page.tile_width,
                tile_height=page.tile_height,
                downsample=downsample,
            )
        )
    return tuple(levels)
