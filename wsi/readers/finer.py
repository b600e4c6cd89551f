"""Missing tiles of coarse levels: what finer levels hold there. White is only what no level stores.

Programs that write coarse levels tile by tile leave some out, and scanners leave out glass on every level: the first
has pixels on a finer level, the second has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Window
from wsi.readers.base import Reader
from wsi.readers.level_pixels import LevelPixels


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FinerLevels:
    """The levels of one reader as sources of each other's missing tiles.

    Attributes:
        reader: reads them; called again, for finer levels only, while a missing tile is drawn.
        present: which tiles of a level hold bytes, bool (rows, columns).
    """

    reader: Reader
    present: Callable[[int], NDArray[np.bool_]]

    def have_pixels(self, level: int, window: Window) -> bool:
        """Whether a level, or a finer one, stores a tile under a window of the level."""
        size = self.reader.levels[level]
        inside = window.clipped(size.shape)
        if inside is None:
            return False
        return self._stores(level, inside) or self._source(level, size.frame.part(inside)) is not None

    def draw(
        self, level: int, tile: tuple[int, int], part: Window, *, factor: int = 1, out: NDArray[np.uint8]
    ) -> str | None:
        """Fill an array with a part of a missing tile: the mean of the next finer level that stores pixels under it.

        Args:
            level: index of the level.
            tile: row and column.
            part: of the tile, in px of the level reduced by ``factor``.
            factor: how many times coarser than the level the pixels are.
            out: uint8 (height, width, 3) of the part; white if no level has pixels there.

        Returns:
            Why the tile is bad, if one under the part is that was read as white because it could not be decoded.

        Raises:
            TileError: a tile of the finer level cannot be decoded.
        """
        size = self.reader.levels[level]
        height, width = size.tile_shape
        frame = size.frame.part(Window(row=tile[0] * height, column=tile[1] * width, height=height, width=width))
        # by the whole tile: the pixels of a part must not depend on which part it is
        source = self._source(level, frame)
        if source is None:
            out[...] = 255
            return None
        pixels = frame.coarser(factor).part(part)
        out[...] = source.averaged(pixels)
        return self._why_bad(source, pixels)

    def _why_bad(self, source: LevelPixels, frame: Frame) -> str | None:
        size = self.reader.levels[source.level]
        inside = size.frame.window_of(frame.region).clipped(size.shape)
        if inside is None:
            return None
        under = inside.tile_range(size.tile_shape)
        return next(
            (
                f"it is drawn from level {bad.level}, whose tile row {bad.row}, tile column {bad.column} is bad"
                for bad in self.reader.bad_tiles
                if bad.level == source.level
                and under.row <= bad.row < under.bottom
                and under.column <= bad.column < under.right
            ),
            None,
        )

    def _source(self, level: int, frame: Frame) -> LevelPixels | None:
        for finer in reversed(self.reader.levels[:level]):
            if self._stores(finer.index, finer.frame.window_of(frame.region)):
                return LevelPixels(reader=self.reader, level=finer.index, factor=1, downsample=finer.downsample)
        return None

    def _stores(self, level: int, window: Window) -> bool:
        size = self.reader.levels[level]
        inside = window.clipped(size.shape)
        return inside is not None and bool(self.present(level)[inside.tile_range(size.tile_shape).slices].any())
