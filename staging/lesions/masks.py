"""Mask files of any size as bool arrays, read window by window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from staging.errors import ConfigurationError
from staging.lesions.mask_values import tumour_value_of
from wsi.errors import SlideFormatError
from wsi.geometry import Frame, TileGrid, Window
from wsi.mask_rules import MASK_RULE, MaskRule, grown_warnings, rule_in
from wsi.slide import Slide


class MaskFile:
    """One level of a mask pyramid, sliced as ``mask[rows, columns]`` to bool (rows, columns).

    Missing tiles are background. Which value means tumour differs between sources: 0/255 (CAMELYON16), 1 tumour and 2
    normal (ASAP, CAMELYON17), 1 tissue and 2 tumour (the object store), 0/1. So 2 is ambiguous, and the user must say
    what it means.

    Args:
        slide: the opened file.
        value: the value of tumour pixels; detected by default, which reads the level once more.
        level: level of the pyramid.

    Attributes:
        frame: of the level.
        value: of tumour pixels.
        rule: what a pixel larger than a level-0 px stands for, if the file says so.
        warnings: that areas are too large by it.
        has_tumour: whether any pixel read so far is tumour.

    Raises:
        ConfigurationError: its values are ambiguous and none was given.
        SlideFormatError: it is a colour picture.
        ValueError: there is no such level.
    """

    def __init__(self, slide: Slide, *, value: int | None = None, level: int = 0) -> None:
        if not 0 <= level < len(slide.levels):
            raise ConfigurationError(
                slide.path, f"has no level {level}", mend=f"its levels are 0 to {len(slide.levels) - 1}"
            )
        self._slide = slide
        self._level = slide.levels[level]
        self.frame: Frame = slide.frame_of(level)
        self.shape = self.frame.shape
        self.chunks = self._level.tile_shape
        self._grid = TileGrid(frame=self.frame, tile_shape=self.chunks)
        self.value = self._detected() if value is None else value
        self.has_tumour = False
        self.rule: MaskRule | None = rule_in(slide.properties.get(MASK_RULE, ""))
        self.warnings = grown_warnings(self.rule, self._level.downsample)

    def __getitem__(self, slices: tuple[slice, slice]) -> NDArray[np.bool_]:
        rows, columns = (range(*one.indices(side)) for one, side in zip(slices, self.shape, strict=True))
        result = np.zeros((len(rows), len(columns)), dtype=np.bool_)
        if not result.size:
            return result
        window = Window(row=rows[0], column=columns[0], height=len(rows), width=len(columns))
        for tile, own, part in window.cut(self.chunks):
            values = self._tile(*tile)
            if values is not None:
                result[own.slices] = inside = values[part.slices] == self.value
                self.has_tumour |= bool(inside.any())
        return result

    def _tile(self, row: int, column: int) -> NDArray[np.uint8] | None:
        """Read the values of a stored tile; None if it is missing."""
        if self._slide.is_missing(self._grid.tile(row, column)):
            return None
        colours = self._slide.read_window(self._level.index, self._grid.window(row, column))
        values = colours[..., 0]
        if not (np.array_equal(values, colours[..., 1]) and np.array_equal(values, colours[..., 2])):
            raise SlideFormatError(
                self._slide.path, "is a colour picture, not a mask", mend="give masks with one value per pixel"
            )
        return values

    def _detected(self) -> int:
        counts = np.zeros(256, dtype=np.int64)
        for row, column in self._grid:
            values = self._tile(row, column)
            if values is not None:
                counts += np.bincount(values.ravel(), minlength=256)
        present = [int(value) for value in np.flatnonzero(counts)]
        return tumour_value_of(self._slide.path, present, option="--tumour-value") or 255
