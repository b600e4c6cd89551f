"""Tiled TIFF pyramids, read tile by tile: CAMELYON's files, Philips, Aperio, OME and generic ones.

The directories are read once; after that a tile costs one positioned read and its decoding. Tiles without bytes are
drawn from the next finer level that has some there, else white, as is everything beyond the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Level, Window
from wsi.mask_rules import MASK_RULE, rule_in
from wsi.readers.base import BadTile, OnBadTile, Reader, StoredTiles
from wsi.readers.codec import COMPRESSIONS
from wsi.readers.colours import settle_pages
from wsi.readers.finer import FinerLevels
from wsi.readers.levels import find_readable_pages, measure_pyramid
from wsi.readers.openslide import detect_vendor, is_vendors_own
from wsi.readers.picture import check_picture, unreadable
from wsi.readers.profile import MOST_BYTES
from wsi.readers.scale import contradicting_levels, measure_mpp, name_format
from wsi.readers.source import ByteSource, FileSource
from wsi.readers.structure import TIFF_MAGICS, TiffPage, read_structure, walk_structure
from wsi.readers.tiff_tiles import TiffTiles
from wsi.threads import do_all
from wsi.windows import Windows

CACHE_BYTES = 64 * 2**20
"""Decoded tiles kept per open file: overlapping windows, as with halos, share their border tiles."""

# TIFFs whose levels are plain tiled pages; OpenSlide's other vendors overlap tiles or keep several images in a file.
_DIRECT_VENDORS = (None, "generic-tiff", "aperio", "philips")
# a thread's share at a time, fetched before decoding: from a remote file in few requests
_TILES_PER_TASK = 16
_TILES_AHEAD = 64


class TiffReader(Reader):
    """Reads one tiled TIFF.

    Args:
        source: the file, as a path, or already open; then it is closed with the reader.
        pages: its structure, if the caller has already read it.
        on_bad_tile: "raise", or "white": tiles that cannot be decoded are white and listed in ``bad_tiles``.

    Raises:
        SlideFormatError: the file is damaged, or its finest image is not tiled or cannot be decoded.
        OSError: the file cannot be read.
    """

    suffixes = frozenset({".tif", ".tiff", ".svs"})

    def __init__(
        self,
        source: str | PathLike[str] | ByteSource,
        pages: tuple[TiffPage, ...] | None = None,
        *,
        on_bad_tile: OnBadTile = "raise",
    ) -> None:
        self._source = FileSource(source) if isinstance(source, (str, PathLike)) else source
        try:
            pages = walk_structure(self._source) if pages is None else pages
            check_picture(self._source.name, pages)
            pyramid = measure_pyramid(self._source.name, pages)
            levels, doubts = settle_pages(self._source, pyramid.pages)
            resolution = measure_mpp(self._source.name, levels[0])
        except BaseException:
            self._source.close()
            raise
        doubtful = contradicting_levels(levels, resolution.mpp)
        self.mpp, self.mpp_warnings = resolution.mpp, (*resolution.warnings, *doubtful)
        self.levels, self.warnings = pyramid.levels, (*pyramid.warnings, *doubts)
        self.has_opacity, self._pages = pyramid.has_opacity, pages
        self.properties: Mapping[str, str] = {
            "sentinode.format": name_format(levels[0]),
            "sentinode.compression": COMPRESSIONS[levels[0].compression],
        } | ({} if (rule := rule_in(levels[0].description)) is None else {MASK_RULE: str(rule)})
        self._profiles = tuple(page.profile for page in levels)
        self._tiles = TiffTiles(self._source, levels, on_bad_tile=on_bad_tile, cache_bytes=CACHE_BYTES)

    @classmethod
    def open(cls, path: Path, head: bytes, *, on_bad_tile: OnBadTile) -> TiffReader | None:
        """See ``Reader.open``; TIFFs that only OpenSlide reads are of another kind."""
        if not head.startswith(TIFF_MAGICS) or is_vendors_own(path, head):
            return None
        pages = read_structure(path)
        check_picture(str(path), pages)
        vendor = detect_vendor(path)
        if not find_readable_pages(pages):
            if vendor is None:
                raise unreadable(str(path), pages)
            return None
        if vendor not in _DIRECT_VENDORS:
            return None
        return cls(path, pages, on_bad_tile=on_bad_tile)

    def seen_through(self) -> Reader:
        """See ``Reader.seen_through``."""
        if not (self.has_opacity and isinstance(self._source, FileSource)):
            return self
        pages = tuple(replace(page, extra_samples=()) for page in self._pages)
        return TiffReader(self._source.name, pages, on_bad_tile="white")

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """See ``Reader.bad_tiles``."""
        return self._tiles.bad

    def read(self, level: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window; see ``Reader.read``.

        Raises:
            TileError: a tile under the window cannot be decoded; names path, level, tile row and tile column.
        """
        inside = window.clipped(self.levels[level].shape)
        if inside is not window:
            out[...] = 255
        if inside is None:
            return
        target = out if inside is window else out[inside.within(window).slices]
        for own, part, index, data in self._fetched(level, inside, self.levels[level].tile_shape):
            self._paste(level, index, data, part, out=target[own.slices])

    def read_many(self, level: int, windows: Windows, *, out: NDArray[np.uint8], workers: int) -> None:
        """See ``Reader.read_many``; every tile that any of the windows touches is decoded once."""
        size = self.levels[level]
        out[~windows.lie_on(size.shape)] = 255
        uses = _tile_uses(size, windows, across=self._tiles.columns(level))
        share = max(1, min(_TILES_PER_TASK, len(uses) // (4 * workers)))
        shares = [uses[start : start + share] for start in range(0, len(uses), share)]

        def serve(uses: Sequence[_TileUse]) -> None:
            for use, data in zip(uses, self._tiles.fetch(level, [use.index for use in uses]), strict=True):
                self._serve(level, use, data, out)

        do_all(serve, shares, workers=workers, name="read")

    def can_reduce(self, level: int) -> bool:
        """True of JPEG tiles; see ``Reader.can_reduce``."""
        size = self.levels[level]
        return self._tiles.is_jpeg(level) and size.tile_width % 8 == 0 and size.tile_height % 8 == 0

    def read_reduced(self, level: int, factor: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        """See ``Reader.read_reduced``."""
        size = self.levels[level]
        out[...] = 255
        inside = window.clipped((-(-size.height // factor), -(-size.width // factor)))
        if inside is None:
            return
        tile_shape = size.tile_height // factor, size.tile_width // factor
        pixels = np.empty((*tile_shape, 3), dtype=np.uint8)
        target = out[inside.within(window).slices]
        for own, part, index, data in self._fetched(level, inside, tile_shape):
            if self._tiles.is_missing(level, index):
                self._draw(level, index, part, factor=factor, out=target[own.slices])
            else:
                self._tiles.paste_reduced(level, index, data, factor=factor, out=pixels)
                target[own.slices] = pixels[part.slices]

    def has_pixels(self, level: int, window: Window) -> bool:
        """See ``Reader.has_pixels``."""
        return self._finer.have_pixels(level, window)

    def tile_bytes(self, level: int, row: int, column: int) -> bytes | None:
        """See ``Reader.tile_bytes``."""
        return self._tiles.stream(level, row, column)

    def stored_tiles(self, level: int) -> StoredTiles:
        """The tiles of a level as stored."""
        return self._tiles.stored(level)

    def icc_profile(self, level: int) -> bytes | None:
        """See ``Reader.icc_profile``; one that is too large to be one is none."""
        offset, count = self._profiles[level]
        return self._source.read(offset, count) if 0 < count <= MOST_BYTES else None

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def _fetched(
        self, level: int, window: Window, tile_shape: tuple[int, int]
    ) -> Iterator[tuple[Window, Window, int, bytes | None]]:
        """The pieces of a window from ``Window.cut``, and the index and stored bytes of each tile.

        A bounded number of tiles is fetched ahead.
        """
        across, pieces = self._tiles.columns(level), window.cut(tile_shape)
        for start in range(0, len(pieces), _TILES_AHEAD):
            batch = pieces[start : start + _TILES_AHEAD]
            indices = [row * across + column for (row, column), _, _ in batch]
            for (_, own, part), index, data in zip(batch, indices, self._tiles.fetch(level, indices), strict=True):
                yield own, part, index, data

    def _paste(
        self, level: int, index: int, data: bytes | None, part: Window, *, out: NDArray[np.uint8], once: bool = False
    ) -> None:
        """``TiffTiles.paste``, and of a missing tile what a finer level has there."""
        if self._tiles.is_missing(level, index):
            self._draw(level, index, part, out=out)
        else:
            self._tiles.paste(level, index, data, part, out=out, once=once)

    @property
    def _finer(self) -> FinerLevels:
        # made anew: one that is kept would keep this reader open after its last user
        return FinerLevels(reader=self, present=self._tiles.present)

    def _draw(self, level: int, index: int, part: Window, *, factor: int = 1, out: NDArray[np.uint8]) -> None:
        tile = divmod(index, self._tiles.columns(level))
        reason = self._finer.draw(level, tile, part, factor=factor, out=out)
        if reason is not None:
            self._tiles.set_bad(level, index, reason)
            out[...] = 255

    def _serve(self, level: int, use: _TileUse, data: bytes | None, out: NDArray[np.uint8]) -> None:
        """Decode once what the windows need of one tile, and copy it to them."""
        if len(use.pieces) == 1:
            number, own, part = use.pieces[0]
            self._paste(level, use.index, data, part, out=out[number][own.slices], once=True)
            return
        hull = Window.around([part for _, _, part in use.pieces])
        shared = np.empty((*hull.shape, 3), dtype=np.uint8)
        self._paste(level, use.index, data, hull, out=shared, once=True)
        for number, own, part in use.pieces:
            out[number][own.slices] = shared[part.within(hull).slices]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _TileUse:
    """A tile, by its index, and the parts of it that windows need.

    Attributes:
        index: of the tile, row by row.
        pieces: the index of each window, and the two windows of its piece from ``Window.cut``.
    """

    index: int
    pieces: list[tuple[int, Window, Window]]


def _tile_uses(size: Level, windows: Windows, *, across: int) -> list[_TileUse]:
    """Every tile that windows touch, once, row by row of the ``across`` tiles that the file has in each."""
    (number, row, column), own, part = windows.cut(size.shape, size.tile_shape)
    tile = row * across + column
    order = np.argsort(tile, kind="stable")
    pieces = list(zip(number[order].tolist(), own.take(order), part.take(order), strict=True))
    starts = np.flatnonzero(np.diff(tile[order], prepend=-1)).tolist()
    return [
        _TileUse(index=int(tile[order[start]]), pieces=pieces[start:stop])
        for start, stop in pairwise([*starts, len(pieces)])
    ]
