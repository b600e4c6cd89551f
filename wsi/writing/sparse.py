"""Sparse slides: pyramids that hold only the wanted tiles, copied byte for byte if JPEG or lossless.

All other tiles are missing and read as white, or as the mean of a finer level's. Every level keeps its size, so that
positions and resolutions stay those of the slide and its pixels under the wanted windows are identical.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from typing import TypeGuard

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError, SlideFormatError, StorageError
from wsi.geometry import Level, TileGrid, Window
from wsi.raster import Mask
from wsi.readers.base import StoredTiles
from wsi.readers.structure import read_structure
from wsi.readers.tiff import TiffReader
from wsi.slide import Slide
from wsi.threads import map_in_order
from wsi.windows import Windows
from wsi.writing.bigtiff import BigTiff, Tags, new_bigtiff, shorts
from wsi.writing.convert import (
    LOSSLESS_TAGS,
    check_jpeg,
    copy_tile,
    is_jpeg,
    is_lossless,
    is_mask,
    is_same_file,
    profile_tags,
    stored_tags,
)
from wsi.writing.pyramid import level_tags
from wsi.writing.tile_encoding import ColourTiles
from wsi.writing.tile_stream import LevelTable

_ENCODED_TILE_PX = 512
_SAMPLED_TILES = 24
_SAME = 1e-9
_BYTES_PER_ENCODED_PX = 0.35  # JPEG at quality 90 of stained tissue, for the estimate
_BYTES_PER_LOSSLESS_PX = 1.7  # deflate of the same
_OUTBOX_BYTES = 2**20
_TILES_AHEAD = 16  # few requests for a remote slide; more tiles of a local one would not stay in the processor's cache
_DEFLATE, _RGB, _DIFFERENCES, _DEFLATE_LEVEL = 8, 2, 2, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseStats:
    """What a sparse copy holds.

    Attributes:
        levels: of the pyramid.
        tiles_copied: byte for byte.
        tiles_encoded: re-encoded, as they could not be copied.
        file_bytes: size of the written file.
        is_exact: every wanted pixel of the copy is the slide's: nothing was re-encoded with loss, and readers measure
            the same downsamples.
    """

    levels: int
    tiles_copied: int
    tiles_encoded: int
    file_bytes: int
    is_exact: bool


def write_sparse(
    slide: Slide,
    path: str | PathLike[str],
    windows: Mapping[int, Windows],
    *,
    quality: int = 90,
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> SparseStats:
    """Write the tiles of a slide that windows touch as a tiled BigTIFF pyramid that OpenSlide and QuPath open.

    JPEG tiles are copied without decoding, and so are lossless ones (none, LZW, deflate, ZSTD; with their predictor),
    after each was decoded once as a check: any reader of the slide's tiles can read the copy's.

    Everything else gets new tiles of 512 px. Sources known to be lossless (PNG pictures, and TIFFs that only OpenSlide
    reads: PackBits, a plane per colour) stay so, as deflate with horizontal differences. Other kinds (JPEG 2000,
    vendors' formats, JPEG pictures) become JPEG, a second loss that ``is_exact`` reports: without it they would take
    six times the bytes (stained tissue at 0.5 um per px: 0.28 bytes per px at quality 90, 1.7 as deflate).

    The resolution is the slide's, or the one given on opening, and every level keeps its ICC profile; label, macro and
    thumbnail images and the vendor's description are left out.

    Args:
        slide: its file is only read.
        path: the file to write; an older one is replaced only when the new one is complete.
        windows: the wanted windows of each level, by its index; other levels are written without tiles.
        quality: of new JPEG tiles, 1 to 100.
        workers: threads that decode and encode; by default one per usable core. The written bytes do not depend on it.
        on_tiles: called now and then with (tiles done, tiles in all).

    Raises:
        SlideError: ``path`` is the slide itself.
        SlideFormatError: the slide is a mask, for which white is a value.
        TileError: a wanted tile is not the expected JPEG, or cannot be decoded. A tile to be copied raises it even if
            the slide was opened with bad tiles as white.
        StorageError: the file cannot be written, or cannot be read back.
    """
    if is_same_file(slide.path, path):
        raise SlideError(path, "is the slide to be copied", mend="choose another output")
    if is_mask(slide.stored_tiles(0)):
        raise SlideFormatError(
            slide.path, "is a mask: missing tiles would read as its largest value", mend="convert it as a whole"
        )
    with new_bigtiff(path) as file:
        copy = _SparseCopy(slide=slide, file=file, quality=quality, workers=workers, on_tiles=on_tiles)
        copy.take(windows)
    return SparseStats(
        levels=len(slide.levels),
        tiles_copied=copy.copied,
        tiles_encoded=copy.encoded,
        file_bytes=file.size,
        is_exact=copy.is_exact and _has_levels(path, slide.levels),
    )


def tissue_windows(slide: Slide, tissue: Mask) -> dict[int, Windows]:
    """Windows that cover the tissue on every level: for ``write_sparse``.

    Args:
        slide: the slide.
        tissue: its tissue, on any grid.
    """
    rows, columns = np.nonzero(tissue.array)
    side = tissue.frame.downsample
    x, y = tissue.frame.positions(rows, columns)
    found = {}
    for level in slide.levels:
        first = (np.floor(along).astype(np.int64) for along in level.frame.fractions(x, y))
        end = (np.ceil(along).astype(np.int64) for along in level.frame.fractions(x + side, y + side))
        (top, left), (bottom, right) = first, end
        found[level.index] = Windows(rows=top, columns=left, heights=bottom - top, widths=right - left)
    return found


def estimate_bytes(slide: Slide, windows: Mapping[int, Windows]) -> int:
    """The approximate size of the sparse copy: the mean of a sample of its tiles times their number."""
    total = 0.0
    for index, wanted in windows.items():
        stored = slide.stored_tiles(index)
        table = _table(slide.levels[index], stored)
        indices = np.argwhere(touched(table, wanted))
        if not _can_copy(stored):
            per_px = _BYTES_PER_LOSSLESS_PX if _is_known_lossless(slide, stored) else _BYTES_PER_ENCODED_PX
            total += len(indices) * table.tile_height * table.tile_width * per_px
        elif len(indices):
            chosen = indices[np.linspace(0, len(indices) - 1, min(len(indices), _SAMPLED_TILES)).astype(int)]
            sizes = [len(stored.read(row, column) or b"") for row, column in chosen.tolist()]
            total += float(np.mean(sizes)) * len(indices)
    tables = sum(12 * _table(level, slide.stored_tiles(level.index)).offsets.size + 4096 for level in slide.levels)
    profiles = {profile.data for level in slide.levels if (profile := slide.profile(level.index)) is not None}
    return round(total) + tables + sum(map(len, profiles))


def touched(table: LevelTable, windows: Windows) -> NDArray[np.bool_]:
    """The tiles of a level that windows touch: bool (tile rows, tile columns)."""
    _, rows, columns = windows.tiles((table.height, table.width), (table.tile_height, table.tile_width))
    found = np.zeros((table.rows, table.columns), dtype=np.bool_)
    found[rows, columns] = True
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _LevelPlan:
    """One level in progress: its table, and the (row, column) of its wanted tiles."""

    level: Level
    stored: StoredTiles | None
    table: LevelTable
    indices: list[tuple[int, int]]

    @classmethod
    def of(cls, slide: Slide, level: Level, windows: Mapping[int, Windows]) -> _LevelPlan:
        stored = slide.stored_tiles(level.index)
        table = _table(level, stored)
        indices: list[tuple[int, int]] = []
        if level.index in windows:
            rows, columns = np.nonzero(touched(table, windows[level.index]))
            indices = list(zip(rows.tolist(), columns.tolist(), strict=True))
        return cls(level=level, stored=stored, table=table, indices=indices)


class _SparseCopy:
    """One sparse copy in progress."""

    def __init__(
        self,
        *,
        slide: Slide,
        file: BigTiff,
        quality: int,
        workers: int | None,
        on_tiles: Callable[[int, int], None] | None,
    ) -> None:
        self.copied = 0
        self.encoded = 0
        self.is_exact = True
        self._slide = slide
        self._file = file
        self._quality = quality
        self._workers = workers
        self._on_tiles = on_tiles

    def take(self, windows: Mapping[int, Windows]) -> None:
        """Store the wanted tiles of every level, then the directories."""
        slide = self._slide
        plans = [_LevelPlan.of(slide, level, windows) for level in slide.levels]
        total, done = sum(len(plan.indices) for plan in plans), 0
        pages: list[tuple[LevelTable, Tags, float | None]] = []
        outbox = _Outbox(self._file)
        for plan in plans:
            tags = self._take_level(plan, outbox) | profile_tags(slide, plan.level.index)
            frame = slide.frame_of(plan.level)
            pages.append((plan.table, tags, None if frame.mpp is None else frame.pixel_um))
            done += len(plan.indices)
            if self._on_tiles is not None and total:
                self._on_tiles(done, total)
        outbox.flush()
        self._file.write_directories(
            level_tags(table, tags, is_reduced=index > 0, mpp=mpp) for index, (table, tags, mpp) in enumerate(pages)
        )

    def _take_level(self, plan: _LevelPlan, outbox: _Outbox) -> Tags:
        """Store the wanted tiles of one level; return the tags that a decoder needs for them."""
        if _can_copy(plan.stored):
            # Closed at once even on failure: no thread may still be reading when the slide is closed.
            with closing(self._copied(plan, plan.stored)) as tiles:
                self.copied += outbox.put_all(plan, tiles)
            return stored_tags(plan.stored)
        is_kept = _is_known_lossless(self._slide, plan.stored)
        colour = _LosslessTiles() if is_kept else ColourTiles(tile_size=_ENCODED_TILE_PX, quality=self._quality)
        with closing(self._made(plan, colour)) as tiles:
            encoded = outbox.put_all(plan, tiles)
        self.encoded += encoded
        # At fractional downsamples OpenSlide shifts what it reads by fractions of a pixel: windows differ.
        if encoded and not (is_kept and plan.level.downsample.is_integer()):
            self.is_exact = False
        return colour.tags

    def _copied(self, plan: _LevelPlan, stored: StoredTiles) -> Generator[bytes | None]:
        level = plan.level.index
        if is_jpeg(stored):  # nothing to decode: threads would cost more than they gain
            for start in range(0, len(plan.indices), _TILES_AHEAD):
                batch = plan.indices[start : start + _TILES_AHEAD]
                for index, data in zip(batch, stored.read_many(batch), strict=True):
                    check_jpeg(self._slide, level, index, data)
                    yield data
            return

        def read(index: tuple[int, int]) -> bytes | None:
            return copy_tile(self._slide, level, stored, index)

        tiles = map_in_order(read, plan.indices, workers=self._workers)
        with closing(tiles):
            yield from tiles

    def _made(self, plan: _LevelPlan, colour: ColourTiles | _LosslessTiles) -> Generator[bytes | None]:
        slide, level, size = self._slide, plan.level.index, _ENCODED_TILE_PX
        grid = TileGrid(frame=slide.frame_of(plan.level), tile_shape=(size, size))

        def make(index: tuple[int, int]) -> bytes | None:
            if slide.is_missing(grid.tile(*index)):
                return None
            window = Window(row=index[0] * size, column=index[1] * size, height=size, width=size)
            return colour.encode(slide.read_window(level, window))

        return map_in_order(make, plan.indices, workers=self._workers)


class _Outbox:
    """Tiles waiting to be written: a few large writes cost about half as much as many small ones."""

    def __init__(self, file: BigTiff) -> None:
        self._file = file
        self._waiting = bytearray(_OUTBOX_BYTES)
        self._used = 0

    def put_all(self, plan: _LevelPlan, tiles: Iterable[bytes | None]) -> int:
        """Store the tiles of a level, None for missing ones.

        Returns:
            Their number.
        """
        stored = 0
        for (row, column), data in zip(plan.indices, tiles, strict=True):
            if data is not None:
                plan.table.put(row * plan.table.columns + column, offset=self._put(data), count=len(data))
                stored += 1
        return stored

    def flush(self) -> None:
        """Write the waiting tiles."""
        if self._used:
            self._file.append(memoryview(self._waiting)[: self._used])
            self._used = 0

    def _put(self, data: bytes) -> int:
        """Queue bytes; return their future offset in the file."""
        if self._used + len(data) > _OUTBOX_BYTES:
            self.flush()
        if len(data) > _OUTBOX_BYTES:
            return self._file.append(data)
        start = self._file.size + self._used
        self._waiting[self._used : self._used + len(data)] = data
        self._used += len(data)
        return start


class _LosslessTiles:
    """RGB as deflate of the differences between neighbours in a row (TIFF's predictor 2), which all readers know."""

    def __init__(self) -> None:
        self.tags: Tags = {
            258: shorts(8, 8, 8),
            259: shorts(_DEFLATE),
            262: shorts(_RGB),
            277: shorts(3),
            317: shorts(_DIFFERENCES),
        }

    def encode(self, tile: NDArray[np.uint8]) -> bytes:
        """The compressed tile."""
        differences = np.asarray(imagecodecs.delta_encode(tile, axis=1))
        return bytes(imagecodecs.deflate_encode(differences.tobytes(), level=_DEFLATE_LEVEL))


def _can_copy(stored: StoredTiles | None) -> TypeGuard[StoredTiles]:
    """Whether OpenSlide opens a generic TIFF with these tiles."""
    return is_jpeg(stored) or is_lossless(stored)


def _is_known_lossless(slide: Slide, stored: StoredTiles | None) -> bool:
    """Whether a level that cannot be copied is known to be lossless so far."""
    kind = slide.properties["sentinode.format"]
    if stored is not None or kind != "generic-tiff" or isinstance(slide.path, str):
        return kind == "png"
    return all(page.compression in LOSSLESS_TAGS for page in read_structure(slide.path) if page.is_tiled)


def _has_levels(path: str | PathLike[str], levels: tuple[Level, ...]) -> bool:
    """Whether a written file opens with these levels. Its kind is known, so it is not detected."""
    try:
        with closing(TiffReader(path)) as reader:
            found = reader.levels
    except OSError as error:
        reason = f"cannot be read back: {error.strerror or error}"
        raise StorageError(path, reason, mend="choose another output") from error
    return len(found) == len(levels) and all(
        abs(ours.downsample - theirs.downsample) <= _SAME * theirs.downsample and ours.shape == theirs.shape
        for ours, theirs in zip(found, levels, strict=True)
    )


def _table(level: Level, stored: StoredTiles | None) -> LevelTable:
    """A level's table, with the size of its tiles or, if these cannot be copied, of new ones."""
    is_copied = _can_copy(stored)
    return LevelTable.empty(
        width=level.width,
        height=level.height,
        tile_width=level.tile_width if is_copied else _ENCODED_TILE_PX,
        tile_height=level.tile_height if is_copied else _ENCODED_TILE_PX,
    )
