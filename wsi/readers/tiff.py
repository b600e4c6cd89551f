"""Tiled TIFF pyramids, read tile by tile: CAMELYON's files, Philips, Aperio, OME and generic ones.

The directories are read once; after that a tile costs one positioned read and its decoding. Tiles without bytes are
white, as is everything beyond the edge.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from os import PathLike, fspath
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideFormatError, TileError
from wsi.geometry import Level
from wsi.readers.base import measure_downsample
from wsi.readers.codec import COMPRESSIONS, TileCodec, can_decode
from wsi.readers.scale import find_level_pages, measure_mpp, name_format, read_philips_spacings
from wsi.readers.structure import TiffPage, read_structure

CACHE_BYTES = 64 * 2**20
"""Decoded tiles kept per open file: windows that overlap, as with halos, share their border tiles."""


def find_readable_levels(pages: tuple[TiffPage, ...]) -> tuple[TiffPage, ...]:
    """The pages ``TiffReader`` would take as levels; empty where it cannot decode the finest."""
    levels = find_level_pages(pages)
    return tuple(page for page in levels if can_decode(page)) if levels and can_decode(levels[0]) else ()


class TiffReader:
    """Reads one tiled TIFF; see ``wsi.readers.base.Reader``. Safe from many threads.

    Args:
        path: the file.
        pages: its structure, where the caller has read it already.

    Raises:
        SlideFormatError: the file is damaged, or its finest image is not tiled or of a kind not decoded here.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | PathLike[str], pages: tuple[TiffPage, ...] | None = None) -> None:
        self._path = fspath(path)
        self._pages = find_readable_levels(read_structure(path) if pages is None else pages)
        if not self._pages:
            raise SlideFormatError(path, "has no tiled image of a kind that can be decoded")
        first = self._pages[0]
        self.levels = _measure_levels(path, self._pages)
        self.mpp = measure_mpp(path, first)
        self.properties: Mapping[str, str] = {
            "sentinode.format": name_format(first),
            "sentinode.compression": COMPRESSIONS[first.compression],
        }
        self._codecs = tuple(TileCodec(page) for page in self._pages)
        self._cache = _TileCache(CACHE_BYTES)
        self._fd = os.open(self._path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._fd)

    def read(self, level: int, *, row: int, column: int, height: int, width: int) -> NDArray[np.uint8]:
        """Pixels of a window in px of the level: uint8 (height, width, 3), white outside and where missing.

        Raises:
            TileError: a tile under the window cannot be decoded; names path, level, tile row and tile column.
        """
        size = self.levels[level]
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        top, bottom = max(row, 0), min(row + height, size.height)
        left, right = max(column, 0), min(column + width, size.width)
        if top >= bottom or left >= right:
            return out
        for tile_row in range(top // size.tile_height, -(-bottom // size.tile_height)):
            y = tile_row * size.tile_height
            y0, y1 = max(top, y), min(bottom, y + size.tile_height)
            for tile_column in range(left // size.tile_width, -(-right // size.tile_width)):
                tile = self._tile(level, tile_row, tile_column)
                if tile is not None:
                    x = tile_column * size.tile_width
                    x0, x1 = max(left, x), min(right, x + size.tile_width)
                    out[y0 - row : y1 - row, x0 - column : x1 - column] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
        return out

    def has_pixels(self, level: int, *, row: int, column: int, height: int, width: int) -> bool:
        """False where the whole window lies outside the level or in missing tiles."""
        size, page = self.levels[level], self._pages[level]
        top, bottom = max(row, 0), min(row + height, size.height)
        left, right = max(column, 0), min(column + width, size.width)
        if top >= bottom or left >= right:
            return False
        counts = page.counts.reshape(-1, -(-page.width // page.tile_width))
        rows = slice(top // size.tile_height, -(-bottom // size.tile_height))
        columns = slice(left // size.tile_width, -(-right // size.tile_width))
        return bool(counts[rows, columns].any())

    def close(self) -> None:
        """Give the file back."""
        self._close()
        self._fd = -1

    def _tile(self, level: int, row: int, column: int) -> NDArray[np.uint8] | None:
        page = self._pages[level]
        index = row * -(-page.width // page.tile_width) + column
        count = int(page.counts[index])
        if count == 0:
            return None
        tile = self._cache.get((level, index))
        if tile is not None:
            return tile
        try:
            tile = self._codecs[level].decode(os.pread(self._fd, count, int(page.offsets[index])))
        except (OSError, ValueError, RuntimeError, TypeError, MemoryError) as error:
            raise TileError(
                self._path,
                f"the tile cannot be decoded: {error}",
                place=f"level {level}, tile row {row}, tile column {column}",
                mend="copy the slide again from its source and compare the checksum",
            ) from error
        self._cache.put((level, index), tile)
        return tile


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


class _TileCache:
    """The most recently used decoded tiles, bounded in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._tiles: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[int, int]) -> NDArray[np.uint8] | None:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: tuple[int, int], tile: NDArray[np.uint8]) -> None:
        with self._lock:
            if key not in self._tiles and tile.nbytes <= self._limit:
                self._tiles[key] = tile
                self._size += tile.nbytes
            while self._size > self._limit:
                self._size -= self._tiles.popitem(last=False)[1].nbytes
