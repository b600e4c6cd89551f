"""Many windows of one level at once, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Window, z_order


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """Windows of one level or frame; each may extend beyond it or lie outside.

    Attributes:
        rows, columns: int64 (n,), of each window's first pixel.
        heights, widths: int64 (n,), at least 1.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]

    @classmethod
    def of(cls, windows: Iterable[Window]) -> Windows:
        """Collect many windows."""
        sides = [(one.row, one.column, one.height, one.width) for one in windows]
        rows, columns, heights, widths = np.array(sides, dtype=np.int64).reshape(-1, 4).T
        return cls(rows=rows, columns=columns, heights=heights, widths=widths)

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """Concatenate several."""
        return cls(
            rows=np.concatenate([part.rows for part in parts]),
            columns=np.concatenate([part.columns for part in parts]),
            heights=np.concatenate([part.heights for part in parts]),
            widths=np.concatenate([part.widths for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Window]:
        sides = (self.rows.tolist(), self.columns.tolist(), self.heights.tolist(), self.widths.tolist())
        for row, column, height, width in zip(*sides, strict=True):
            yield Window(row=row, column=column, height=height, width=width)

    def take(self, chosen: NDArray[np.int64]) -> Windows:
        """The windows at the chosen indices."""
        return Windows(
            rows=self.rows[chosen],
            columns=self.columns[chosen],
            heights=self.heights[chosen],
            widths=self.widths[chosen],
        )

    def alike(self) -> Windows:
        """Windows with the same origins, all as high and wide as the largest."""
        return Windows(
            rows=self.rows,
            columns=self.columns,
            heights=np.full_like(self.heights, self.heights.max()),
            widths=np.full_like(self.widths, self.widths.max()),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of every window.

        Raises:
            ValueError: there are none, or they differ in size.
        """
        if not len(self):
            raise ValueError("there are no windows")
        height, width = int(self.heights[0]), int(self.widths[0])
        differing = np.flatnonzero((self.heights != height) | (self.widths != width))
        if differing.size:
            other = f"{self.widths[differing[0]]} x {self.heights[differing[0]]}"
            raise ValueError(f"the windows differ in size: {width} x {height} and {other} px")
        return height, width

    def lie_on(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Whether each lies wholly on a level of (rows, columns): bool (n,)."""
        is_after = (self.rows >= 0) & (self.columns >= 0)
        return is_after & (self.rows + self.heights <= shape[0]) & (self.columns + self.widths <= shape[1])

    def tiles(
        self, shape: tuple[int, int], tile_shape: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Which tiles of a level they touch.

        Args:
            shape: (rows, columns) of the level.
            tile_shape: (rows, columns) of a tile.

        Returns:
            int64 (uses,) each: the number of a window, and the row and the column of a tile that it touches; in the
            order of the windows and, for each, row by row.
        """
        height, width = tile_shape
        top, bottom = np.maximum(self.rows, 0), np.minimum(self.rows + self.heights, shape[0])
        left, right = np.maximum(self.columns, 0), np.minimum(self.columns + self.widths, shape[1])
        inside = np.flatnonzero((top < bottom) & (left < right))
        first_row, first_column = top[inside] // height, left[inside] // width
        down = (bottom[inside] - 1) // height - first_row + 1
        across = (right[inside] - 1) // width - first_column + 1
        counts = down * across
        window = np.repeat(np.arange(len(inside)), counts)
        step = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
        return inside[window], first_row[window] + step // across[window], first_column[window] + step % across[window]

    def cut(
        self, shape: tuple[int, int], tile_shape: tuple[int, int]
    ) -> tuple[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]], Windows, Windows]:
        """What of a level's tiles lies in them: ``Window.cut`` of all at once.

        Returns:
            What ``tiles`` gives, and twice what window and tile have in common on the level: counted from the window's
            first pixel, and from the tile's.
        """
        number, row, column = self.tiles(shape, tile_shape)
        window, y, x = self.take(number), row * tile_shape[0], column * tile_shape[1]
        top, left = np.maximum(window.rows, y), np.maximum(window.columns, x)
        heights = np.minimum(np.minimum(window.rows + window.heights, y + tile_shape[0]), shape[0]) - top
        widths = np.minimum(np.minimum(window.columns + window.widths, x + tile_shape[1]), shape[1]) - left
        own = Windows(rows=top - window.rows, columns=left - window.columns, heights=heights, widths=widths)
        part = Windows(rows=top - y, columns=left - x, heights=heights, widths=widths)
        return (number, row, column), own, part

    def tile_order(self, tile_shape: tuple[int, int]) -> NDArray[np.int64]:
        """An order of windows in which those of neighbouring tiles are close to each other: their indices, (n,)."""
        rows, columns = self.rows + self.heights // 2, self.columns + self.widths // 2
        return z_order(rows // tile_shape[0], columns // tile_shape[1])
