"""Annotations to a pyramidal mask TIFF: streamed, painted only where an outline passes.

A tile that no edge crosses is background, tumour or cut-out throughout, as the point at its centre shows; such tiles
are never painted, and all tiles of one value share their encoded bytes. Memory: the outlines, a few tiles per thread
and the tables of offsets.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from os import PathLike
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.errors import BlankMaskError
from annotations.painting import Cover, Painting
from wsi.cores import usable_cores
from wsi.geometry import Frame, TileGrid
from wsi.mask_rules import MaskRule
from wsi.threads import map_in_order
from wsi.writing.bigtiff import Tags, new_bigtiff, text
from wsi.writing.pyramid import check_mpp, check_tile_size, level_tags
from wsi.writing.tile_encoding import Compression, MaskTiles
from wsi.writing.tile_stream import LevelTable, plan_levels, store_levels

Values = Literal["0/255", "asap", "0/1"]
TileNews = Callable[[int, int], None]

MASK_VALUES: Mapping[Values, tuple[int, int]] = MappingProxyType({"0/255": (255, 0), "asap": (1, 2), "0/1": (1, 0)})
"""Pixel values of tumour and of cut-outs. CAMELYON16 uses ``0/255``, ASAP and CAMELYON17 use ``asap``."""

_PAINTED = -1
_IMAGE_DESCRIPTION = 270


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskStats:
    """What was written.

    Attributes:
        tumour_px: pixels of tumour on the finest level.
        painted_tiles: tiles of the finest level that were painted pixel by pixel.
        tiles: all tiles of the finest level.
        stored_tiles: tiles with anything in them, over all levels.
    """

    tumour_px: int
    painted_tiles: int
    tiles: int
    stored_tiles: int


def write_annotation_mask(
    path: str | PathLike[str],
    annotations: Iterable[Annotation],
    frame: Frame,
    *,
    values: Values = "0/255",
    reduce: Literal["centre", "max"] = "centre",
    tile_size: int = 512,
    compression: Compression = "deflate",
    workers: int | None = None,
    allows_blank: bool = True,
    on_tiles: TileNews | None = None,
) -> MaskStats:
    """Paint annotations by the rule of Painting and write them as a tiled pyramidal BigTIFF of 8 bits.

    Each lower level is half the size. By ``centre`` each is painted from the outlines like the finest, so that areas
    are right on all of them. By ``max`` a pixel is tumour if any of the four above it is, so that no lesion vanishes;
    with ASAP's values a cut-out takes precedence over background in the same way. The file says which rule it has
    (wsi.mask_rules).

    Args:
        path: the file to write; an existing one is replaced when the new one is complete.
        annotations: of one slide.
        frame: the finest level. ``slide.frame`` for level 0, ``slide.frame_of(n)`` for the grid of a coarser level,
            ``slide.frame_at(mpp)`` for any resolution. If its mpp is unknown the file states none.
        values: ``0/255`` and ``0/1``: background and tumour. ``asap``: 0 background, 1 tumour, 2 inside a cut-out and
            not tumour.
        reduce: what a pixel larger than a level-0 px stands for, see Painting.mask. Up to 16 um/px the areas of 55 real
            outlines sum up to the right value within 0.2 % by ``centre``; by ``max`` to 1.7 % too much at 2 um/px and
            16 % at 16 um/px (benchmarks/mask_rules.py).
        tile_size: side of a tile in px, a multiple of 16.
        compression: deflate opens in every viewer, lzw even in the oldest, zstd is the smallest and fastest.
        workers: threads; by default one per usable core. The bytes of the file do not depend on it.
        allows_blank: whether a mask without tumour is written, too.
        on_tiles: called with (tiles done, tiles in all) after every row of tiles.

    Raises:
        ValueError: an argument is out of range.
        BlankMaskError: no pixel is tumour and that is not allowed; nothing is written.
        StorageError: the file cannot be written (disk full, no such folder).
    """
    if values not in MASK_VALUES:
        raise ValueError(f"the values of a mask must be one of {', '.join(MASK_VALUES)}, got {values!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"painting needs at least 1 thread, got {workers}")
    check_tile_size(tile_size)
    mpp = None if frame.mpp is None else frame.pixel_um
    check_mpp(mpp)
    kind = _AnnotationTiles(tile_size=tile_size, compression=compression)
    tables = plan_levels(width=frame.shape[1], height=frame.shape[0], tile_size=tile_size)
    annotations = tuple(annotations)
    drawn = Painting.of(annotations)
    cut_outs = Painting.of(_cut_outs_alone(annotations) if MASK_VALUES[values][1] else ())
    drawings = [
        _Drawing(drawn, cut_outs, _coarser(frame, table, 2**index), values=values, reduce=reduce, tile_size=tile_size)
        for index, table in enumerate(tables[:1] if reduce == "max" else tables)
    ]
    # by max each level follows from the one above it, by centre it is painted on its own
    levels_of = [tables] if reduce == "max" else [[table] for table in tables]
    stored = 0
    with new_bigtiff(path) as file:
        for drawing, levels in zip(drawings, levels_of, strict=True):
            news = on_tiles if drawing is drawings[0] else None
            with closing(drawing.tiles(workers or usable_cores(), news)) as tiles:
                stored += store_levels(file, levels, kind, tiles, workers=workers).tiles
            if not (allows_blank or drawings[0].tumour_px):
                finer = "" if reduce == "max" else "draw it finer, or with --reduce max, or "
                mend = f"{finer}give --allow-empty"
                raise BlankMaskError(path, "would be blank: no pixel's centre lies in the tumour", mend=mend)
        rule = MaskRule(reduce=reduce, downsample=frame.downsample)
        file.write_directories(_pages(tables, kind, mpp, f"{_meaning(values)}; {rule}"))
    return MaskStats(
        tumour_px=drawings[0].tumour_px,
        painted_tiles=int((drawings[0].plan == _PAINTED).sum()),
        tiles=drawings[0].plan.size,
        stored_tiles=stored,
    )


def _coarser(frame: Frame, table: LevelTable, factor: int) -> Frame:
    """The grid of a level of the file."""
    return replace(frame, downsample=frame.downsample * factor, shape=(table.height, table.width))


class _AnnotationTiles(MaskTiles):
    """Masks halved so that tumour wins over cut-outs and these over background; uniform tiles are encoded once."""

    def __init__(self, *, tile_size: int, compression: Compression) -> None:
        self._even: dict[int, bytes] = {}
        super().__init__(tile_size=tile_size, compression=compression, reduction="max")

    def encode(self, tile: NDArray[Any]) -> bytes:
        """The compressed tile."""
        value = int(tile[0, 0])
        if (tile != value).any():
            return super().encode(tile)
        if value not in self._even:
            self._even[value] = super().encode(tile)
        return self._even[value]

    def halve(self, tile: NDArray[Any]) -> NDArray[Any]:
        """The smallest nonzero value of 2 x 2 px: tumour has a smaller one than cut-outs."""
        # 0 - 1 wraps to the largest 8-bit value.
        below = tile - np.uint8(1)
        pairs = np.minimum(below[0::2], below[1::2])
        smallest = np.minimum(pairs[:, 0::2], pairs[:, 1::2])
        return np.asarray(smallest + np.uint8(1))


class _Drawing:
    """The tiles of one level of a mask, in order, and the count of their tumour.

    Attributes:
        plan: int16 (rows, columns) of tiles: the single value of a uniform tile, or _PAINTED.
        tumour_px: pixels of tumour in the tiles yielded so far.
    """

    def __init__(
        self,
        tumour: Painting,
        cut_outs: Painting,
        frame: Frame,
        *,
        values: Values,
        reduce: Literal["centre", "max"],
        tile_size: int,
    ) -> None:
        self.tumour_px = 0
        self._tumour_value, self._cut_out_value = MASK_VALUES[values]
        self._tumour, self._cut_outs = tumour, cut_outs
        self._reduce = reduce
        self._size = tile_size
        self._grid = TileGrid(frame=frame, tile_shape=(tile_size, tile_size))
        self.plan = self._planned(frame.coarser(tile_size))

    def tiles(self, workers: int, on_tiles: TileNews | None) -> Generator[NDArray[np.uint8] | None]:
        """All tiles row by row, full size even at the edge; None for a tile of background only."""
        rows, columns = self.plan.shape
        indices = [(int(row), int(column)) for row, column in np.argwhere(self.plan == _PAINTED)]
        full = {
            value: np.full((self._size, self._size), value, dtype=np.uint8)
            for value in (self._tumour_value, self._cut_out_value)
        }
        with closing(map_in_order(self._painted, indices, workers=workers)) as painted:
            for row in range(rows):
                for value in self.plan[row].tolist():
                    tile = next(painted) if value == _PAINTED else full.get(value) if value else None
                    if tile is not None:
                        self.tumour_px += int(np.count_nonzero(tile == self._tumour_value))
                    yield tile
                if on_tiles is not None:
                    on_tiles((row + 1) * columns, rows * columns)

    def _planned(self, tiles: Frame) -> NDArray[np.int16]:
        """See ``plan``. Tiles that extend beyond the frame are painted unless they are background."""
        tumour, cut_outs = self._tumour.cover(tiles), self._cut_outs.cover(tiles)
        plan = np.zeros(tiles.shape, dtype=np.int16)
        plan[cut_outs == Cover.ALL] = self._cut_out_value
        plan[cut_outs == Cover.PART] = _PAINTED
        plan[tumour == Cover.PART] = _PAINTED
        plan[tumour == Cover.ALL] = self._tumour_value
        height, width = self._grid.frame.shape
        if height % self._size:
            plan[-1, plan[-1] != 0] = _PAINTED
        if width % self._size:
            plan[plan[:, -1] != 0, -1] = _PAINTED
        return plan

    def _painted(self, index: tuple[int, int]) -> NDArray[np.uint8]:
        frame = self._grid.tile(*index)
        rows, columns = frame.shape
        tile = np.zeros((self._size, self._size), dtype=np.uint8)
        inside = tile[:rows, :columns]
        if self._cut_out_value:
            inside[self._cut_outs.mask(frame, reduce=self._reduce).array] = self._cut_out_value
        inside[self._tumour.mask(frame, reduce=self._reduce).array] = self._tumour_value
        return tile


def _cut_outs_alone(annotations: Iterable[Annotation]) -> list[Annotation]:
    """The cut-outs, turned into tumour so that they are painted."""
    return [replace(one, role=Role.TUMOUR) for one in annotations if one.role is Role.CUT_OUT]


def _meaning(values: Values) -> str:
    tumour, cut_out = MASK_VALUES[values]
    return f"mask: 0 background, {tumour} tumour" + (f", {cut_out} cut out of tumour" if cut_out else "")


def _pages(tables: Iterable[LevelTable], kind: MaskTiles, mpp: float | None, meaning: str) -> Generator[Tags]:
    """The directories of all levels; the first states what the values and the coarse pixels mean."""
    for index, table in enumerate(tables):
        tags = level_tags(table, kind.tags, is_reduced=index > 0, mpp=None if mpp is None else mpp * 2**index)
        yield tags | ({} if index else {_IMAGE_DESCRIPTION: text(meaning)})
