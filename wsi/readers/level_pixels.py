"""A stored level as the source of an average, first reduced by the JPEG decoder if that is allowed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Level, TileGrid
from wsi.readers.base import REDUCTIONS, Reader
from wsi.resample import FramePlan, average

_BLOCK_BYTES = 64 * 2**20  # source pixels held at a time
_CUT_PIXELS = 4  # along a side: see _reduces_well


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelPixels:
    """A stored level to average from, or one of JPEG tiles that the decoder reduces by ``factor``."""

    reader: Reader
    level: int
    factor: int
    downsample: float

    @classmethod
    def of(cls, reader: Reader, level: Level, frame: Frame, *, exact: bool) -> LevelPixels:
        factor = 1
        if not exact and reader.can_reduce(level.index):
            factor = next((factor for factor in REDUCTIONS if _reduces_well(frame, level, factor)), 1)
        return cls(reader=reader, level=level.index, factor=factor, downsample=level.downsample * factor)

    def averaged(self, frame: Frame) -> NDArray[np.uint8]:
        """Uint8 (rows, columns, 3) of the frame; memory beyond that stays near 64 MiB of source pixels."""
        rows, columns = frame.shape
        side = max(1, int(math.sqrt(_BLOCK_BYTES / 3) * self.downsample / frame.downsample))
        if rows * columns <= side * side:
            return self._averaged_at_once(frame)
        out = np.empty((rows, columns, 3), dtype=np.uint8)
        blocks = TileGrid(frame=frame, tile_shape=(side, side))
        for block in blocks:
            out[blocks.window(*block).slices] = self._averaged_at_once(blocks.tile(*block))
        return out

    def _averaged_at_once(self, frame: Frame) -> NDArray[np.uint8]:
        plan = FramePlan.of(frame, source=self.downsample)
        source = np.empty((*plan.window.shape, 3), dtype=np.uint8)
        if self.factor == 1:
            self.reader.read(self.level, plan.window, out=source)
        else:
            self.reader.read_reduced(self.level, self.factor, plan.window, out=source)
        return average(source, plan)


def _reduces_well(frame: Frame, level: Level, factor: int) -> bool:
    """Whether a level reduced first yields nearly the same means.

    It does if each pixel of the frame holds whole pixels of the reduced level, or so many that those cut by its border
    matter little.
    """
    own = frame.in_px_of(level.downsample * factor)
    lines = (own.downsample, own.x, own.y)
    is_aligned = own.downsample >= 1 - 1e-6 and all(abs(line - round(line)) < 1e-6 for line in lines)
    return is_aligned or own.downsample >= _CUT_PIXELS
