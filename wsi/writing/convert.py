"""Any readable slide to a generic pyramidal BigTIFF, without loss if its tiles are already JPEG.

JPEG tiles are copied byte for byte with their tables, photometric and subsampling; levels below the coarsest stored
one are added until one fits a single tile. Anything else is decoded tile by tile and encoded. Label, macro and
thumbnail images and the vendor's description, which identify patients, are never carried over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideError, SlideFormatError, TileError
from wsi.geometry import Frame, TileGrid, Window
from wsi.readers.base import StoredTiles
from wsi.slide import Slide
from wsi.threads import map_in_order
from wsi.writing.bigtiff import ICC_PROFILE, BigTiff, Tags, new_bigtiff, opaque, shorts
from wsi.writing.pyramid import check_mpp, check_tile_size, level_tags
from wsi.writing.tile_encoding import FULL_RANGE, JPEG_TAG, ColourTiles, MaskTiles, TileKind, encode_like
from wsi.writing.tile_stream import LevelTable, plan_levels, store_levels

MAX_SIDE_PX = 4_000_000
"""The longest side that the slide readers accept."""

LOSSLESS_TAGS = (1, 5, 8, 32_946, 32_773, 50_000)
"""TIFF's codes of lossless compressions: none, LZW, deflate (new and old), PackBits, ZSTD."""

_WITHOUT_PREDICTOR = (1, 32_773)
_YCBCR, _COLOURS = 6, 3
_SAME_MPP = 1e-6
_JPEG_START = b"\xff\xd8"
_Tile = TypeVar("_Tile")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionStats:
    """The result of a conversion.

    Attributes:
        levels: of the written pyramid.
        tiles_copied: byte for byte.
        tiles_encoded: decoded or made, then encoded.
        file_bytes: size of the written file.
    """

    levels: int
    tiles_copied: int
    tiles_encoded: int
    file_bytes: int


def convert_slide(
    slide: Slide,
    path: str | PathLike[str],
    *,
    mpp: float | None = None,
    tile_size: int = 512,
    quality: int = 80,
    reencode: bool = False,
    workers: int | None = None,
    on_tiles: Callable[[int, int], None] | None = None,
) -> ConversionStats:
    """Write a slide as a generic tiled BigTIFF pyramid that OpenSlide, QuPath and ASAP open.

    If the finest level is stored as JPEG tiles these are copied, and so are those of the other stored levels, at any
    downsample. A tile that a coarse level lacks is encoded from the finer one that has its pixels, as other readers do
    not draw it; tiles that no level has stay missing. Everything else becomes JPEG, YCbCr 4:2:0, even colours stored
    losslessly so far (``write_sparse`` keeps those), with factor-2 levels made from the finest. Slides with one
    lossless value per pixel, such as masks, stay so: no value changes, and lower levels take the upper left of 2 x 2,
    as the organisers' pyramids do: areas are right on average, and other numbers than masks keep their meaning. The
    resolution is the slide's, or the one given on opening. Every level keeps its ICC profile; new ones have that of the
    level they are made from.

    Args:
        slide: any slide; its file is only read. Copied tiles are not decoded: only gross damage (not a JPEG at all) is
            detected, and ends the conversion whatever ``on_bad_tile`` is.
        path: the file to write; an older one is replaced only when the new one is complete.
        mpp: resample to this many um per px by exact area averaging; a finer value than the slide's repeats pixels.
        tile_size: side of new tiles, a multiple of 16.
        quality: of new JPEG tiles, 1 to 100.
        reencode: decode and encode even tiles that could be copied.
        workers: threads; by default one per usable core. The written bytes do not depend on it.
        on_tiles: called now and then with (source tiles done, source tiles in all).

    Raises:
        ValueError: mpp, tile_size or quality is out of range.
        SlideError: ``path`` is the slide itself, or the result would be larger than readers accept.
        SlideFormatError: mpp is given for a mask: resampling would mix its values.
        ResolutionError: mpp is given but the slide's own is unknown.
        TileError: a tile of the slide cannot be decoded; names the slide and the tile.
        StorageError: the file cannot be written.
    """
    check_mpp(mpp)
    check_tile_size(tile_size)
    if not 1 <= quality <= 100:
        raise ValueError(f"the quality of JPEG must be 1 to 100, got {quality}")
    if is_same_file(slide.path, path):
        raise SlideError(path, "is the slide to be converted", mend="choose another output")
    frame = _target_frame(slide, mpp)
    stored = slide.stored_tiles(0) if frame == slide.frame else None
    has_values = is_mask(slide.stored_tiles(0))
    if has_values and frame != slide.frame:
        raise SlideFormatError(
            slide.path, "has one value per pixel, as masks do; resampling mixes the values", mend="leave --mpp out"
        )
    with new_bigtiff(path) as file:
        conversion = _Conversion(slide=slide, file=file, workers=workers, on_tiles=on_tiles)
        if has_values:
            mask = MaskTiles(tile_size=tile_size, compression="deflate", reduction="nearest")
            conversion.make_pyramid(frame, mask)
        else:
            colour = ColourTiles(tile_size=tile_size, quality=quality)
            if is_jpeg(stored) and not reencode:
                conversion.keep_levels(colour)
            else:
                conversion.make_pyramid(frame, colour)
        conversion.finish()
    return ConversionStats(
        levels=len(conversion.pages),
        tiles_copied=conversion.copied,
        tiles_encoded=conversion.encoded,
        file_bytes=file.size,
    )


def is_same_file(source: str | PathLike[str], target: str | PathLike[str]) -> bool:
    """Whether two names refer to the same existing file."""
    try:
        return Path(source).samefile(target)
    except OSError:
        return False


class _Conversion:
    """One conversion in progress: its counts, and the directories to write at the end."""

    def __init__(
        self, *, slide: Slide, file: BigTiff, workers: int | None, on_tiles: Callable[[int, int], None] | None
    ) -> None:
        self.copied = 0
        self.encoded = 0
        self.pages: list[tuple[LevelTable, Tags, float | None]] = []  # mpp last
        self._slide = slide
        self._file = file
        self._workers = workers
        self._on_tiles = on_tiles
        self._done = 0
        self._total = 0

    def make_pyramid(self, frame: Frame, kind: TileKind) -> None:
        """Decode the whole frame and make all levels from it."""
        height, width = frame.shape
        tables = plan_levels(width=width, height=height, tile_size=kind.shape[0])
        self._total = tables[0].rows * tables[0].columns
        self._store(tables, kind, frame)
        tags = kind.tags | profile_tags(self._slide, 0)
        self._add_pages(tables, tags, None if frame.mpp is None else frame.pixel_um)

    def keep_levels(self, colour: ColourTiles) -> None:
        """Store each of the slide's levels, its tiles copied where they are JPEG; then make coarser ones."""
        slide = self._slide
        coarsest = slide.levels[-1]
        further = plan_levels(width=coarsest.width, height=coarsest.height, tile_size=colour.shape[0])
        work = [(level, slide.stored_tiles(level.index)) for level in slide.levels]
        tables = [
            LevelTable.empty(
                width=level.width, height=level.height, tile_width=level.tile_width, tile_height=level.tile_height
            )
            if is_jpeg(stored)
            else plan_levels(width=level.width, height=level.height, tile_size=colour.shape[0], levels=1)[0]
            for level, stored in work
        ]
        self._total = sum(table.rows * table.columns for table in [*tables, *(further[:1] if further[1:] else [])])
        for (level, stored), table in zip(work, tables, strict=True):
            frame = slide.frame_of(level)
            if stored is not None and is_jpeg(stored):
                self._copy(level.index, stored, table, quality=colour.quality)
                tags = stored_tags(stored)
            else:
                self._store([table], colour, frame)
                tags = colour.tags
            tags = tags | profile_tags(slide, level.index)
            self._add_pages([table], tags, None if frame.mpp is None else frame.pixel_um)
        if further[1:]:
            frame = slide.frame_of(coarsest)
            self._store(further, colour, frame, is_first_stored=False)
            tags = colour.tags | profile_tags(slide, coarsest.index)
            self._add_pages(further[1:], tags, None if frame.mpp is None else frame.pixel_um * 2)

    def finish(self) -> None:
        """Append the directories."""
        self._file.write_directories(
            level_tags(table, tags, is_reduced=index > 0, mpp=mpp)
            for index, (table, tags, mpp) in enumerate(self.pages)
        )

    def _add_pages(self, tables: Iterable[LevelTable], tags: Tags, mpp: float | None) -> None:
        """Levels of half the size each, the first with pixels of ``mpp``."""
        for index, table in enumerate(tables):
            self.pages.append((table, tags, None if mpp is None else mpp * 2**index))

    def _copy(self, level: int, stored: StoredTiles, table: LevelTable, *, quality: int) -> None:
        """Copy the tiles of a level; encode those that it lacks and a finer level has."""
        grid = TileGrid(frame=self._slide.frame_of(level), tile_shape=(table.tile_height, table.tile_width))

        def read(index: tuple[int, int]) -> tuple[bytes | None, bool]:
            data = copy_tile(self._slide, level, stored, index)
            if (
                data is not None
                or level == 0
                or stored.samples != _COLOURS
                or self._slide.is_missing(grid.tile(*index))
            ):
                return data, True
            window = Window(
                row=index[0] * table.tile_height,
                column=index[1] * table.tile_width,
                height=table.tile_height,
                width=table.tile_width,
            )
            return encode_like(stored, self._slide.read_window(level, window), quality=quality), False

        # A stored grid may be larger than the level: Philips pads levels to whole tiles and more.
        indices = ((row, column) for row in range(table.rows) for column in range(table.columns))
        tiles = map_in_order(read, indices, workers=self._workers)
        with closing(tiles):
            for index, (data, is_copy) in enumerate(self._counted(tiles, table.columns)):
                if data is not None:
                    table.put(index, offset=self._file.append(data), count=len(data))
                    self.copied += is_copy
                    self.encoded += not is_copy

    def _store(self, tables: list[LevelTable], kind: TileKind, frame: Frame, *, is_first_stored: bool = True) -> None:
        """Decode a frame, and encode it and the levels below it."""
        tiles = self._decode(frame, kind)
        # Closed at once even on failure: no thread may still be reading when the slide is closed.
        with closing(tiles):
            counted = self._counted(tiles, tables[0].columns)
            stats = store_levels(
                self._file, tables, kind, counted, workers=self._workers, is_first_stored=is_first_stored
            )
        self.encoded += stats.tiles

    def _decode(self, frame: Frame, kind: TileKind) -> Generator[NDArray[np.uint8] | None]:
        """The tiles of a frame row by row, full size even at its edge; None where the slide stores nothing."""
        size = kind.shape[0]
        slide = self._slide
        grid = TileGrid(frame=frame, tile_shape=(size, size))

        def read(index: tuple[int, int]) -> NDArray[np.uint8] | None:
            if slide.is_missing(grid.tile(*index)):
                return None
            window = Window(row=index[0] * size, column=index[1] * size, height=size, width=size)
            if len(kind.shape) == 3:
                return slide.read_frame(frame.part(window)).array
            return _read_mask(slide, window)

        return map_in_order(read, grid, workers=self._workers)

    def _counted(self, tiles: Iterator[_Tile], columns: int) -> Iterator[_Tile]:
        """Pass tiles on and report progress, once per row."""
        for index, tile in enumerate(tiles, start=1):
            yield tile
            if index % columns == 0:
                self._done += columns
                if self._on_tiles is not None:
                    self._on_tiles(self._done, self._total)


def _read_mask(slide: Slide, window: Window) -> NDArray[np.uint8]:
    """The values of a window of level 0: uint8 (rows, columns), 0 where tiles are missing and beyond the edge.

    Slides read as white there, which in a mask would be its largest value.
    """
    level = slide.levels[0]
    out = np.zeros(window.shape, dtype=np.uint8)
    inside = window.clipped(level.shape)
    if inside is None:
        return out
    target = out[inside.within(window).slices]
    grid = TileGrid(frame=slide.frame, tile_shape=level.tile_shape)
    for tile, own, _ in inside.cut(level.tile_shape):
        if not slide.is_missing(grid.tile(*tile)):
            part = slide.frame.part(own.shifted(inside.row, inside.column))
            target[own.slices] = slide.read_frame(part).array[:, :, 0]
    return out


def _target_frame(slide: Slide, mpp: float | None) -> Frame:
    """The whole slide at its own or the given resolution."""
    if mpp is None or (slide.mpp is not None and math.isclose(mpp, slide.mpp, rel_tol=_SAME_MPP)):
        return slide.frame
    frame = slide.frame_at(mpp)
    if max(frame.shape) > MAX_SIDE_PX:
        rows, columns = frame.shape
        raise SlideError(slide.path, f"would have {columns} x {rows} px at {mpp:g} um per px", mend="use a larger mpp")
    return frame


def copy_tile(slide: Slide, level: int, stored: StoredTiles, index: tuple[int, int]) -> bytes | None:
    """The bytes of a tile at (row, column), None where it is missing.

    Raises:
        TileError: they are not the expected JPEG, or the lossless tile cannot be decoded.
    """
    if not is_jpeg(stored):
        return stored.read_sound(*index)
    data = stored.read(*index)
    check_jpeg(slide, level, index, data)
    return data


def check_jpeg(slide: Slide, level: int, index: tuple[int, int], data: bytes | None) -> None:
    """Check that the bytes of the tile at (row, column) can be a JPEG; None, a missing tile, passes.

    Raises:
        TileError: they are not a JPEG.
    """
    if data is not None and not data.startswith(_JPEG_START):
        raise TileError(
            slide.path,
            "the tile should be a JPEG but is not",
            where=f"level {level}, tile row {index[0]}, tile column {index[1]}",
            mend="copy the slide again from its source and compare the checksum",
        )


def is_jpeg(stored: StoredTiles | None) -> bool:
    """Whether tiles can be copied into a file that every viewer opens."""
    return stored is not None and stored.compression == JPEG_TAG


def is_lossless(stored: StoredTiles | None) -> bool:
    """Whether tiles are stored losslessly, so that JPEG would be their first loss."""
    return stored is not None and stored.compression in LOSSLESS_TAGS


def is_mask(stored: StoredTiles | None) -> bool:
    """Whether tiles hold one lossless value per pixel, which JPEG would change."""
    return stored is not None and stored.samples == 1 and is_lossless(stored)


def profile_tags(slide: Slide, level: int) -> Tags:
    """The part of a directory that keeps a level's ICC profile; empty if it has none."""
    profile = slide.profile(level)
    return {} if profile is None else {ICC_PROFILE: opaque(profile.data)}


def stored_tags(stored: StoredTiles) -> Tags:
    """The part of a directory that tells a decoder how to read copied tiles, JPEG or lossless."""
    tags: Tags = {
        258: shorts(*[8] * stored.samples),
        259: shorts(stored.compression),
        262: shorts(stored.photometric),
        277: shorts(stored.samples),
    }
    if is_lossless(stored):
        if stored.predictor != 1 and stored.compression not in _WITHOUT_PREDICTOR:
            tags[317] = shorts(stored.predictor)
        if stored.samples > _COLOURS and stored.extra_samples:
            tags[338] = shorts(*stored.extra_samples[: stored.samples - _COLOURS])
        return tags
    if stored.jpeg_tables:
        tags[347] = opaque(stored.jpeg_tables)
    if stored.photometric == _YCBCR:
        tags |= {530: shorts(*stored.subsampling), 532: FULL_RANGE}
    return tags
