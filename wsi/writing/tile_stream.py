"""From a stream of tiles to the levels of a pyramid, on all cores.

Tiles arrive one by one and are encoded and halved by a pool of threads (the codecs release the interpreter's lock); a
tile of a lower level follows as soon as the four above it are there. Results are written in the order in which they
were started, so the file has the same bytes for any number of threads. Memory: the tiles in flight, the quarters of
unfinished tiles (about one row of tiles per lower level) and the tables of offsets.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.cores import usable_cores
from wsi.writing.bigtiff import BigTiff
from wsi.writing.tile_encoding import TileKind

MAX_LEVELS = 10
"""CAMELYON's pyramids have up to ten levels."""

_IN_FLIGHT = 2  # tiles started per thread: one at work, one ready


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelTable:
    """One level while it is written: its size, and its tiles' offsets and counts, row by row (count 0: missing)."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint32]

    @classmethod
    def empty(cls, *, width: int, height: int, tile_width: int, tile_height: int) -> LevelTable:
        """The table of a level without any tile written yet."""
        tiles = -(-height // tile_height) * -(-width // tile_width)
        return cls(
            width=width,
            height=height,
            tile_width=tile_width,
            tile_height=tile_height,
            offsets=np.zeros(tiles, dtype="<u8"),
            counts=np.zeros(tiles, dtype="<u4"),
        )

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return -(-self.height // self.tile_height)

    @property
    def columns(self) -> int:
        """Columns of tiles."""
        return -(-self.width // self.tile_width)

    def put(self, index: int, *, offset: int, count: int) -> None:
        """Record where a tile was written."""
        self.offsets[index], self.counts[index] = offset, count


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamStats:
    """Tiles stored over all levels (missing ones not counted) and seconds spent encoding, summed over the threads."""

    tiles: int
    encode_seconds: float


def plan_levels(*, width: int, height: int, tile_size: int, levels: int | None = None) -> list[LevelTable]:
    """Levels of half the size each, rounded up; by default until one fits a single tile, MAX_LEVELS at most."""
    tables: list[LevelTable] = []
    for _ in range(MAX_LEVELS if levels is None else levels):
        table = LevelTable.empty(width=width, height=height, tile_width=tile_size, tile_height=tile_size)
        tables.append(table)
        if levels is None and table.rows == table.columns == 1:
            break
        width, height = -(-width // 2), -(-height // 2)
    return tables


def store_levels(
    file: BigTiff,
    levels: Sequence[LevelTable],
    kind: TileKind,
    tiles: Iterable[NDArray[Any] | None],
    *,
    workers: int | None = None,
    is_first_stored: bool = True,
) -> StreamStats:
    """Append the tiles of the first level and of all levels made from it; the tables record where.

    Args:
        file: to append to.
        levels: as from ``plan_levels``, finest first, all with the kind's size of tile.
        kind: of the tiles.
        tiles: the first level in row-major order, None for a missing tile. Each is copied when it arrives.
        workers: threads; by default one per usable core.
        is_first_stored: False if the first level only serves to make the others.

    Raises:
        ValueError: ``tiles`` are too few, too many or of the wrong shape or type; or workers is less than 1.
        StorageError: the file system refuses.
    """
    workers = usable_cores() if workers is None else workers
    pool = ThreadPoolExecutor(workers)
    stream = _Stream(
        file=file, levels=levels, kind=kind, pool=pool, most=_IN_FLIGHT * workers, is_first_stored=is_first_stored
    )
    try:
        stream.take_all(tiles)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if kind.blank is not None:
        _fill_holes(file, levels if is_first_stored else levels[1:], kind.blank)
    return StreamStats(tiles=stream.stored, encode_seconds=stream.encode_seconds)


@dataclass(slots=True, kw_only=True)
class _Work:
    """The result for one tile: its bytes (None: not stored), its half size (None: blank, or not needed)."""

    encoded: bytes | None
    half: NDArray[Any] | None
    seconds: float


_Quarters = list[tuple[int, int, Future[_Work]]]  # (0 or 1 down, 0 or 1 to the right, the tile above)


class _Stream:
    """Takes the tiles of the first level in order."""

    def __init__(
        self,
        *,
        file: BigTiff,
        levels: Sequence[LevelTable],
        kind: TileKind,
        pool: ThreadPoolExecutor,
        most: int,
        is_first_stored: bool,
    ) -> None:
        self.stored = 0
        self.encode_seconds = 0.0
        self._file = file
        self._levels = levels
        self._kind = kind
        self._pool = pool
        self._most = most
        self._is_first_stored = is_first_stored
        self._unfinished: list[dict[int, _Quarters]] = [{} for _ in levels]
        self._begun: deque[tuple[LevelTable, int, Future[_Work]]] = deque()

    def take_all(self, tiles: Iterable[NDArray[Any] | None]) -> None:
        table, kind = self._levels[0], self._kind
        total = table.rows * table.columns
        given = 0
        for given, tile in enumerate(islice(tiles, total + 1), start=1):
            if given > total:
                break
            if tile is not None and (tile.shape != kind.shape or tile.dtype != kind.dtype):
                raise ValueError(f"tile {given - 1} must be {kind.dtype} {kind.shape}, got {tile.dtype} {tile.shape}")
            row, column = divmod(given - 1, table.columns)
            self._take(row, column, tile)
            while len(self._begun) > self._most:
                self._write_next()
        if given != total:
            raise ValueError(
                f"{table.rows} x {table.columns} tiles are {total}, got {'more' if given > total else given}"
            )
        while self._begun:
            self._write_next()

    def _take(self, row: int, column: int, tile: NDArray[Any] | None) -> None:
        """Start one tile of the first level, then each lower tile that it completes."""
        # A copy: the caller may reuse the tile's memory for the next one.
        source: NDArray[Any] | _Quarters | None = None if tile is None else np.array(tile, order="C")
        for level, table in enumerate(self._levels):
            is_last_level = level == len(self._levels) - 1
            if source is not None:
                work = self._begin(level, row, column, source)
                if not is_last_level:
                    below = self._unfinished[level + 1]
                    below.setdefault(column // 2, []).append((row % 2, column % 2, work))
            is_last_child = (row % 2 == 1 or row == table.rows - 1) and (column % 2 == 1 or column == table.columns - 1)
            if is_last_level or not is_last_child:
                return
            row, column = row // 2, column // 2
            source = self._unfinished[level + 1].pop(column, None)

    def _begin(self, level: int, row: int, column: int, source: NDArray[Any] | _Quarters) -> Future[_Work]:
        table = self._levels[level]
        size = self._kind.shape[0]
        inside = min(size, table.height - row * size), min(size, table.width - column * size)
        work = self._pool.submit(
            _work,
            self._kind,
            source,
            inside=inside,
            is_stored=level > 0 or self._is_first_stored,
            is_halved=level < len(self._levels) - 1,
        )
        self._begun.append((table, row * table.columns + column, work))
        return work

    def _write_next(self) -> None:
        table, index, future = self._begun.popleft()
        work = future.result()
        self.encode_seconds += work.seconds
        if work.encoded is not None:
            table.put(index, offset=self._file.append(work.encoded), count=len(work.encoded))
            self.stored += 1
            work.encoded = None  # its half may be needed for as long as a row of tiles


def _work(
    kind: TileKind, source: NDArray[Any] | _Quarters, *, inside: tuple[int, int], is_stored: bool, is_halved: bool
) -> _Work:
    """Encode and halve one tile, given or assembled from its quarters.

    No deadlock: a tile waits only for tiles started before it, and the pool starts them in order.
    """
    tile = _put_together(kind, source) if isinstance(source, list) else source
    if kind.blank is not None and not tile.any():
        return _Work(encoded=None, half=None, seconds=0.0)
    start = time.perf_counter()
    encoded = kind.encode(tile) if is_stored else None
    seconds = time.perf_counter() - start
    if not is_halved:
        return _Work(encoded=encoded, half=None, seconds=seconds)
    if kind.repeats_edge:
        _repeat_edge(tile, inside)
    return _Work(encoded=encoded, half=kind.halve(tile), seconds=seconds)


def _put_together(kind: TileKind, quarters: _Quarters) -> NDArray[Any]:
    tile = np.full(kind.shape, kind.fill, dtype=kind.dtype)
    side = kind.shape[0] // 2
    for down, right, above in quarters:
        half = above.result().half
        if half is not None:
            tile[down * side : (down + 1) * side, right * side : (right + 1) * side] = half
    return tile


def _repeat_edge(tile: NDArray[Any], inside: tuple[int, int]) -> None:
    """Replace pixels beyond the edge that are halved together with one at the edge by that one."""
    rows, columns = inside
    if columns % 2:
        tile[:, columns] = tile[:, columns - 1]
    if rows % 2:
        tile[rows] = tile[rows - 1]


def _fill_holes(file: BigTiff, levels: Sequence[LevelTable], blank: bytes) -> None:
    """Make all missing tiles refer to one stored tile."""
    holes = [table.counts == 0 for table in levels]
    if any(hole.any() for hole in holes):
        offset = file.append(blank)
        for table, hole in zip(levels, holes, strict=True):
            table.offsets[hole], table.counts[hole] = offset, len(blank)
