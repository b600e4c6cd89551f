"""Sparse slides: pyramids that hold only the tiles somebody wants, copied byte for byte.

All other tiles are missing and read as white. Every level keeps its size, so that positions and resolutions stay those
of the slide and its pixels under the wanted windows are the very same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from wsi.bigtiff import BigTiff, Tags, new_bigtiff
from wsi.convert import copy_tile, is_jpeg, is_mask, is_same_file, jpeg_tags
from wsi.errors import SlideError, SlideFormatError
from wsi.geometry import Level, TileGrid
from wsi.pyramid import level_tags
from wsi.raster import Mask
from wsi.readers.base import StoredTiles
from wsi.slide import Slide
from wsi.tile_encoding import ColourTiles
from wsi.tile_stream import LevelTable, map_in_order

Windows = Mapping[int, NDArray[np.int64]]
"""By level: int64 (n, 4), row, column, height and width in px of the level."""

_ENCODED_TILE_PX = 512
_SAMPLED_TILES = 24
_SAME = 1e-9
_BYTES_PER_ENCODED_PX = 0.35  # JPEG at quality 90 of stained tissue, for the estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseStats:
    """What a sparse copy holds.

    Attributes:
        levels: of the pyramid.
        tiles_copied: byte for byte.
        tiles_encoded: decoded and encoded again, where tiles could not be copied.
        file_bytes: size of the written file.
        is_exact: every wanted pixel of the copy is the slide's: nothing was encoded again, and readers measure the same
            downsamples.
    """

    levels: int
    tiles_copied: int
    tiles_encoded: int
    file_bytes: int
    is_exact: bool


def write_sparse(
    slide: Slide,
    path: str | PathLike[str],
    windows: Windows,
    *,
    quality: int = 90,
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> SparseStats:
    """Write the tiles of a slide that windows touch as a tiled BigTIFF pyramid that OpenSlide and QuPath open.

    JPEG tiles are copied without decoding. Levels of any other kind (other compressions, slides read by OpenSlide,
    plain pictures) get tiles of 512 px, decoded and encoded as JPEG. The resolution is the slide's, as given on opening
    if it was; label, macro and thumbnail images and the vendor's description are left out.

    Args:
        slide: its file is only read.
        path: the file to write; an older one is replaced when the new one is complete, and not before.
        windows: what is wanted of each level; levels that are not named are there without tiles.
        quality: of the JPEG tiles that have to be made, 1 to 100.
        workers: threads that encode; by default one per usable core. The written bytes do not depend on it.
        on_tiles: called now and then with the numbers of tiles done and of all.

    Raises:
        SlideError: ``path`` is the slide itself.
        SlideFormatError: the slide is a mask, for which white is a value.
        TileError: a wanted tile is no JPEG as it should be, or cannot be decoded.
        StorageError: the file cannot be written.
    """
    if is_same_file(slide.path, path):
        raise SlideError(path, "is the slide that is to be copied", mend="name another file for the result")
    if is_mask(slide.stored_tiles(0)):
        raise SlideFormatError(
            slide.path, "is a mask: missing tiles would read as its largest value", mend="convert it as a whole"
        )
    with new_bigtiff(path) as file:
        copy = _SparseCopy(slide=slide, file=file, quality=quality, workers=workers, on_tiles=on_tiles)
        copy.take(windows)
    with Slide.open(path) as written:
        same = all(
            abs(ours.downsample - theirs.downsample) <= _SAME * theirs.downsample and ours.shape == theirs.shape
            for ours, theirs in zip(written.levels, slide.levels, strict=False)
        ) and len(written.levels) == len(slide.levels)
    return SparseStats(
        levels=len(slide.levels),
        tiles_copied=copy.copied,
        tiles_encoded=copy.encoded,
        file_bytes=file.size,
        is_exact=same and not copy.encoded,
    )


def tissue_windows(slide: Slide, tissue: Mask) -> dict[int, NDArray[np.int64]]:
    """Windows that cover the tissue on every level: for ``write_sparse``.

    Args:
        slide: the slide.
        tissue: its tissue, on any grid.
    """
    rows, columns = np.nonzero(tissue.array)
    frame = tissue.frame
    x, y = frame.x + columns * frame.downsample, frame.y + rows * frame.downsample
    found = {}
    for level in slide.levels:
        left, top = np.floor(x / level.downsample), np.floor(y / level.downsample)
        right = np.ceil((x + frame.downsample) / level.downsample)
        bottom = np.ceil((y + frame.downsample) / level.downsample)
        found[level.index] = np.stack([top, left, bottom - top, right - left], axis=1).astype(np.int64)
    return found


def count_tiles(slide: Slide, windows: Windows) -> int:
    """How many tiles ``write_sparse`` would visit; missing ones count."""
    return sum(int(touched(_table(slide, slide.levels[level]), some).sum()) for level, some in windows.items())


def estimate_bytes(slide: Slide, windows: Windows) -> int:
    """About how large the sparse copy gets: the mean of some of its tiles times their number."""
    total = 0.0
    for index, some in windows.items():
        table, stored = _table(slide, slide.levels[index]), slide.stored_tiles(index)
        places = np.argwhere(touched(table, some))
        if stored is None or not is_jpeg(stored):
            total += len(places) * table.tile_height * table.tile_width * _BYTES_PER_ENCODED_PX
        elif len(places):
            chosen = places[np.linspace(0, len(places) - 1, min(len(places), _SAMPLED_TILES)).astype(int)]
            sizes = [len(stored.read(row, column) or b"") for row, column in chosen.tolist()]
            total += float(np.mean(sizes)) * len(places)
    tables = sum(12 * _table(slide, level).offsets.size + 4096 for level in slide.levels)
    return round(total) + tables


def touched(table: LevelTable, windows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tiles of a level windows touch: bool (tile rows, tile columns)."""
    top, left = np.maximum(windows[:, 0], 0), np.maximum(windows[:, 1], 0)
    bottom = np.minimum(windows[:, 0] + windows[:, 2], table.height)
    right = np.minimum(windows[:, 1] + windows[:, 3], table.width)
    inside = (top < bottom) & (left < right)
    first_row, last_row = top[inside] // table.tile_height, (bottom[inside] - 1) // table.tile_height + 1
    first_column, last_column = left[inside] // table.tile_width, (right[inside] - 1) // table.tile_width + 1
    # Each window adds 1 to its tiles: written at four corners, summed up once.
    steps = np.zeros((table.rows + 1, table.columns + 1), dtype=np.int64)
    np.add.at(steps, (first_row, first_column), 1)
    np.add.at(steps, (last_row, last_column), 1)
    np.add.at(steps, (first_row, last_column), -1)
    np.add.at(steps, (last_row, first_column), -1)
    return np.asarray(steps.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)


class _SparseCopy:
    """One file on its way."""

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
        self._slide = slide
        self._file = file
        self._quality = quality
        self._workers = workers
        self._on_tiles = on_tiles

    def take(self, windows: Windows) -> None:
        """Store the wanted tiles of every level, then the directories."""
        slide = self._slide
        total, done = count_tiles(slide, windows), 0
        pages: list[tuple[LevelTable, Tags, float | None]] = []
        for level in slide.levels:
            table, stored, frame = _table(slide, level), slide.stored_tiles(level.index), slide.frame_of(level)
            some = windows.get(level.index, np.empty((0, 4), np.int64))
            places = [(int(row), int(column)) for row, column in np.argwhere(touched(table, some))]
            if stored is not None and is_jpeg(stored):
                self._copy(level.index, stored, table, places)
                tags = jpeg_tags(stored)
            else:
                colour = ColourTiles(tile_size=_ENCODED_TILE_PX, quality=self._quality)
                self._encode(level, colour, table, places)
                tags = colour.tags
            pages.append((table, tags, None if frame.mpp is None else frame.pixel_um))
            done += len(places)
            if self._on_tiles is not None and total:
                self._on_tiles(done, total)
        self._file.write_directories(
            level_tags(table, tags, is_reduced=index > 0, mpp=mpp) for index, (table, tags, mpp) in enumerate(pages)
        )

    def _copy(self, level: int, stored: StoredTiles, table: LevelTable, places: list[tuple[int, int]]) -> None:
        for place in places:
            data = copy_tile(self._slide, level, stored, place)
            if data is not None:
                index = place[0] * table.columns + place[1]
                table.put(index, offset=self._file.append(data), count=len(data))
                self.copied += 1

    def _encode(self, level: Level, colour: ColourTiles, table: LevelTable, places: list[tuple[int, int]]) -> None:
        slide, size = self._slide, _ENCODED_TILE_PX
        grid = TileGrid(frame=slide.frame_of(level), tile_shape=(size, size))

        def make(place: tuple[int, int]) -> bytes | None:
            if slide.is_missing(grid.tile(*place)):
                return None
            row, column = place[0] * size, place[1] * size
            return colour.encode(slide.read_window(level.index, row=row, column=column, height=size, width=size))

        made = map_in_order(make, places, workers=self._workers)
        with closing(made):
            for place, data in zip(places, made, strict=True):
                if data is not None:
                    index = place[0] * table.columns + place[1]
                    table.put(index, offset=self._file.append(data), count=len(data))
                    self.encoded += 1


def _table(slide: Slide, level: Level) -> LevelTable:
    """A level's table, with the tiles it has or, where these cannot be copied, those that will be made."""
    copied = is_jpeg(slide.stored_tiles(level.index))
    return LevelTable.empty(
        width=level.width,
        height=level.height,
        tile_width=level.tile_width if copied else _ENCODED_TILE_PX,
        tile_height=level.tile_height if copied else _ENCODED_TILE_PX,
    )
