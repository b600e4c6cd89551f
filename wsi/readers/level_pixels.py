"""A stored level as the source of an average, made smaller by the JPEG decoder first where that is allowed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Level
from wsi.readers.base import Reader
from wsi.readers.tiff import REDUCTIONS, TiffReader
from wsi.resample import average, plan_axis

_CUT_PIXELS = 4  # along a side: see _reduces_well


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelPixels:
    """A stored level, or one of JPEG tiles that the decoder makes smaller by ``factor``, to be averaged from."""

    reader: Reader
    level: int
    factor: int
    downsample: float

    @classmethod
    def of(cls, reader: Reader, level: Level, frame: Frame, *, exact: bool) -> LevelPixels:
        factor = 1
        if not exact and isinstance(reader, TiffReader) and reader.can_reduce(level.index):
            factor = next((factor for factor in REDUCTIONS if _reduces_well(frame, level, factor)), 1)
        return cls(reader=reader, level=level.index, factor=factor, downsample=level.downsample * factor)

    def averaged(self, frame: Frame) -> NDArray[np.uint8]:
        """Uint8 (rows, columns, 3) of the frame."""
        ratio = frame.downsample / self.downsample
        rows = plan_axis(origin=frame.y / self.downsample, ratio=ratio, count=frame.shape[0])
        columns = plan_axis(origin=frame.x / self.downsample, ratio=ratio, count=frame.shape[1])
        source = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), dtype=np.uint8)
        if self.factor == 1:
            self.reader.read(self.level, row=rows.start, column=columns.start, out=source)
        elif isinstance(self.reader, TiffReader):
            self.reader.read_reduced(self.level, self.factor, row=rows.start, column=columns.start, out=source)
        return average(source, rows=rows, columns=columns)


def _reduces_well(frame: Frame, level: Level, factor: int) -> bool:
    """Whether a level made smaller first gives nearly the same means.

    It does where each pixel of the frame holds whole pixels of the smaller level, or so many that those cut by its
    border weigh little.
    """
    pixel = level.downsample * factor
    lines = (frame.downsample / pixel, frame.x / pixel, frame.y / pixel)
    is_aligned = lines[0] >= 1 - 1e-6 and all(abs(line - round(line)) < 1e-6 for line in lines)
    return is_aligned or lines[0] >= _CUT_PIXELS
