"""The tiles of an open TIFF: fetched, decoded, and the most recent kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from itertools import compress
from threading import Lock, local
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import TileError
from wsi.geometry import Window
from wsi.readers.base import BadTile, OnBadTile, StoredTiles
from wsi.readers.codec import TileCodec
from wsi.readers.source import ByteSource
from wsi.readers.structure import TiffPage

_LATELY = 32  # parts of tiles
_MOSTLY = 0.5
_Value = TypeVar("_Value")
# what decoders raise on damaged bytes
_DAMAGE = (ValueError, RuntimeError, TypeError, MemoryError)


class TiffTiles:
    """The tiles of the levels of one TIFF. Safe from many threads.

    Of a tile only the requested part is decoded, if possible; if the tile is requested again among the next few, as
    many as the cache holds, it is decoded whole and kept. If most recent requests were for such tiles, new ones are
    decoded whole at once. So patches drawn at random cost little more than their own pixels, and windows that share
    tiles decode each of them about once. The pixels are the same either way.

    Args:
        source: the bytes of the file.
        pages: one per level.
        on_bad_tile: "raise" or "white".
        cache_bytes: of decoded tiles that are kept, most recently used first.
    """

    def __init__(
        self, source: ByteSource, pages: Sequence[TiffPage], *, on_bad_tile: OnBadTile, cache_bytes: int
    ) -> None:
        self._source = source
        self._pages = tuple(pages)
        self._codecs = tuple(TileCodec(page) for page in pages)
        self._on_bad_tile = on_bad_tile
        self._present = tuple(
            (page.counts > 0).reshape(-1, self.columns(level)) for level, page in enumerate(self._pages)
        )
        self._decoded: _Recent[NDArray[np.uint8]] = _Recent(cache_bytes)
        self._touched: _Recent[bool] = _Recent(cache_bytes)
        self._again = 0.0  # the share of recent requests whose tile had been requested before
        self._bad: dict[tuple[int, int], str] = {}
        self._own = local()

    @property
    def bad(self) -> tuple[BadTile, ...]:
        """The tiles read as white so far because they could not be decoded."""
        return tuple(
            sorted(
                BadTile(
                    level=level, row=index // self.columns(level), column=index % self.columns(level), reason=reason
                )
                for (level, index), reason in self._bad.copy().items()
            )
        )

    def columns(self, level: int) -> int:
        """Number of tiles in a row of a level."""
        page = self._pages[level]
        return -(-page.width // page.tile_width)

    def present(self, level: int) -> NDArray[np.bool_]:
        """Which tiles of a level hold bytes: bool (rows, columns)."""
        return self._present[level]

    def is_missing(self, level: int, index: int) -> bool:
        """Whether a tile holds no bytes, and is not known to be bad."""
        return not self._pages[level].counts[index] and (level, index) not in self._bad

    def set_bad(self, level: int, index: int, reason: str) -> None:
        """List a tile as bad: it is white from now on."""
        self._bad[level, index] = reason

    def fetch(self, level: int, indices: Sequence[int]) -> list[bytes | None]:
        """The stored bytes of tiles by index, row by row; None where a tile is missing or cached.

        Raises:
            TileError: the file cannot be read.
        """
        page = self._pages[level]
        wanted = [index for index in indices if page.counts[index] and (level, index) not in self._decoded]
        found = dict(zip(wanted, self._read_many(level, wanted), strict=True))
        return [found.get(index) for index in indices]

    def paste(
        self,
        level: int,
        index: int,
        data: bytes | None,
        part: Window,
        *,
        out: NDArray[np.uint8],
        once: bool = False,
    ) -> None:
        """Fill an array with a part of one stored tile, white if it is bad.

        Args:
            level: index of the level.
            index: of the tile, row by row.
            data: from ``fetch``.
            part: of the tile, all within it.
            out: uint8 (height, width, 3) of the part, in any layout of rows.
            once: this tile will not be requested again soon: nothing need be kept.

        Raises:
            TileError: the tile cannot be decoded, and bad tiles raise.
        """
        key = level, index
        if key in self._bad:
            out[...] = 255
            return
        tile = self._decoded.get(key)
        if not once:
            is_known = tile is not None or key in self._touched
            self._again += (is_known - self._again) / _LATELY
        try:
            if tile is None:
                tile = self._decode(level, index, data, part, out=out, once=once)
        except _DAMAGE as error:
            self._settle_bad(key, error, out)
            return
        if tile is not None:
            out[...] = tile[part.slices]

    def paste_reduced(self, level: int, index: int, data: bytes | None, *, factor: int, out: NDArray[np.uint8]) -> None:
        """Fill an array with one stored tile, reduced by 2, 4 or 8 within its JPEG transform; white if it is bad.

        Args:
            level: index of the level; ``is_jpeg`` holds for it.
            index: of the tile, row by row.
            data: from ``fetch``.
            factor: 2, 4 or 8.
            out: uint8, at most (tile_height // factor, tile_width // factor, 3).

        Raises:
            TileError: as ``paste``.
        """
        key = level, index
        jpeg = self._codecs[level].jpeg
        if jpeg is None:
            raise ValueError("only JPEG tiles can be decoded at a reduced size")
        if key in self._bad:
            out[...] = 255
            return
        try:
            tile = jpeg.decode_reduced(self._stored(level, index) if data is None else data, factor)
        except _DAMAGE as error:
            self._settle_bad(key, error, out)
            return
        out[...] = tile[: out.shape[0], : out.shape[1]]

    def is_jpeg(self, level: int) -> bool:
        """Whether the tiles of a level are JPEG."""
        return self._codecs[level].jpeg is not None

    def stream(self, level: int, row: int, column: int) -> bytes | None:
        """One tile as a complete JPEG, None where it is missing.

        Raises:
            ValueError: the level's tiles are not JPEG, or it has no such tile.
            TileError: the bytes are not a JPEG of the page's kind.
        """
        jpeg = self._codecs[level].jpeg
        if jpeg is None:
            raise ValueError(f"{self._source.name}: the tiles of level {level} are not JPEG")
        data = self._at(level, row, column)
        if data is None:
            return None
        try:
            return jpeg.stream(data)
        except _DAMAGE as error:
            raise self._error((level, row * self.columns(level) + column), error) from error

    def stored(self, level: int) -> StoredTiles:
        """The tiles of a level as stored."""
        page, columns = self._pages[level], self.columns(level)
        return StoredTiles(
            compression=page.compression,
            photometric=page.photometric,
            samples=page.samples,
            predictor=page.predictor,
            extra_samples=page.extra_samples,
            subsampling=page.subsampling,
            jpeg_tables=page.jpeg_tables,
            rows=len(page.counts) // columns,
            columns=columns,
            read=lambda row, column: self._at(level, row, column),
            read_many=lambda tiles: self._many_at(level, tiles),
            read_sound=lambda row, column: self._sound_at(level, row, column),
        )

    def _index(self, level: int, row: int, column: int) -> int:
        page, columns = self._pages[level], self.columns(level)
        if not (0 <= column < columns and 0 <= row < len(page.counts) // columns):
            raise ValueError(f"{self._source.name}: level {level} has no tile in row {row}, column {column}")
        return row * columns + column

    def _read_many(self, level: int, indices: Sequence[int]) -> list[bytes]:
        """The stored bytes of tiles that exist."""
        if not indices:
            return []
        page = self._pages[level]
        try:
            return self._source.read_many([(int(page.offsets[index]), int(page.counts[index])) for index in indices])
        except OSError as error:
            raise TileError(
                self._source.name,
                f"cannot be read: {error.strerror or error}",
                where=f"level {level}, {self._where(level, indices[0])}",
                mend="try again; if it persists, copy the slide again from its source",
            ) from error

    def _many_at(self, level: int, tiles: Sequence[tuple[int, int]]) -> list[bytes | None]:
        indices, counts = [self._index(level, row, column) for row, column in tiles], self._pages[level].counts
        is_there = [bool(counts[index]) for index in indices]
        found = iter(self._read_many(level, list(compress(indices, is_there))))
        return [next(found) if there else None for there in is_there]

    def _at(self, level: int, row: int, column: int) -> bytes | None:
        page, index = self._pages[level], self._index(level, row, column)
        return self._stored(level, index) if page.counts[index] else None

    def _sound_at(self, level: int, row: int, column: int) -> bytes | None:
        page, data = self._pages[level], self._at(level, row, column)
        if data is not None:
            try:
                self._codecs[level].decode(data, self._scratch((page.tile_height, page.tile_width, 3)))
            except _DAMAGE as error:
                raise self._error((level, row * self.columns(level) + column), error) from error
        return data

    def _stored(self, level: int, index: int) -> bytes:
        page = self._pages[level]
        try:
            return self._source.read(int(page.offsets[index]), int(page.counts[index]))
        except OSError as error:
            raise self._error((level, index), error) from error

    def _decode(
        self, level: int, index: int, data: bytes | None, part: Window, *, out: NDArray[np.uint8], once: bool
    ) -> NDArray[np.uint8] | None:
        """Decode a part of a tile into ``out``, or return the whole tile."""
        page, codec = self._pages[level], self._codecs[level]
        if data is None:
            data = self._stored(level, index)
        shape = (page.tile_height, page.tile_width, 3)
        if out.shape == shape:
            if out.flags.c_contiguous:
                codec.decode(data, out)
                return None
            once = True  # no other part of it is left to request
        is_alone = once or not (self._again > _MOSTLY or self._touched.get((level, index)))
        if codec.jpeg is not None and is_alone:
            pixels = codec.jpeg.decode_window(data, part)
            if pixels is not None:
                out[...] = pixels
                if not once:
                    self._touched.put((level, index), True, page.tile_height * page.tile_width * 3)
                return None
        tile = self._scratch(shape) if once else np.empty(shape, dtype=np.uint8)
        codec.decode(data, tile)
        if not once:
            self._decoded.put((level, index), tile, tile.nbytes)
        return tile

    def _scratch(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        """This thread's own array for a tile, valid until its next tile: memory that is already in the cache."""
        scratch: NDArray[np.uint8] | None = getattr(self._own, "scratch", None)
        if scratch is None or scratch.shape != shape:
            scratch = self._own.scratch = np.empty(shape, dtype=np.uint8)
        return scratch

    def _settle_bad(self, key: tuple[int, int], error: BaseException, out: NDArray[np.uint8]) -> None:
        if self._on_bad_tile == "raise":
            raise self._error(key, error) from error
        self._bad[key] = str(error)
        out[...] = 255

    def _error(self, key: tuple[int, int], error: BaseException) -> TileError:
        return TileError(
            self._source.name,
            f"the tile cannot be decoded: {error}",
            where=f"level {key[0]}, {self._where(*key)}",
            mend="copy the slide again from its source and compare the checksum",
        )

    def _where(self, level: int, index: int) -> str:
        row, column = divmod(index, self.columns(level))
        return f"tile row {row}, tile column {column}"


class _Recent(Generic[_Value]):
    """The most recently used values, bounded by the sum of their sizes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._values: OrderedDict[Hashable, tuple[_Value, int]] = OrderedDict()
        self._lock = Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> _Value | None:
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, value: _Value, size: int) -> None:
        with self._lock:
            if key not in self._values and size <= self._limit:
                self._values[key] = value, size
                self._size += size
            while self._size > self._limit:
                self._size -= self._values.popitem(last=False)[1][1]
