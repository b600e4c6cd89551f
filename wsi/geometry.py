"""Where things lie on a slide. The only module that converts between units and axes.

Positions are level-0 pixels, named x (to the right) and y (down). Arrays are indexed (row, column). Pixel (row,
column) of an array with downsample d covers the half-open square [x0 + column*d, x0 + (column+1)*d) x [y0 + row*d,
y0 + (row+1)*d) of level-0 pixels; its centre lies half an array pixel further.

A rectangle of level-0 px is a Region, one of array pixels is a Window. A Frame says where an array lies and turns one
into the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import ResolutionError

_HAIR_PX = 1e-9
_HAIR_SHARE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A half-open rectangle in level-0 px: x <= px < x + width, y <= py < y + height."""

    x: int
    y: int
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a region needs a width and height of at least 1 px, got {self.width} x {self.height}")

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A half-open rectangle of pixels of a level, a frame or any array: row <= pixel row < row + height.

    It may extend beyond its level, frame or array, or lie outside it.
    """

    row: int
    column: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a window needs a height and width of at least 1 px, got {self.height} x {self.width}")

    @classmethod
    def between(cls, *, row: int, column: int, bottom: int, right: int) -> Window:
        """The window from its first pixel to the row and column after its last one."""
        return cls(row=row, column=column, height=bottom - row, width=right - column)

    @classmethod
    def around(cls, windows: Sequence[Window]) -> Window:
        """The smallest window that contains all of ``windows``."""
        return cls.between(
            row=min(one.row for one in windows),
            column=min(one.column for one in windows),
            bottom=max(one.bottom for one in windows),
            right=max(one.right for one in windows),
        )

    @classmethod
    def whole(cls, shape: tuple[int, int]) -> Window:
        """The window of a whole array of (rows, columns)."""
        return cls(row=0, column=0, height=shape[0], width=shape[1])

    @property
    def bottom(self) -> int:
        """The row after the last one."""
        return self.row + self.height

    @property
    def right(self) -> int:
        """The column after the last one."""
        return self.column + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.height, self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """The slices that cut the window out of its array: ``array[window.slices]``.

        Raises:
            ValueError: it begins before the array; clip it first.
        """
        if self.row < 0 or self.column < 0:
            raise ValueError(f"a window at row {self.row}, column {self.column} begins before any array")
        return slice(self.row, self.row + self.height), slice(self.column, self.column + self.width)

    def intersection(self, other: Window) -> Window | None:
        """The common pixels, None if there are none."""
        common = self.within(other).clipped(other.shape)
        return None if common is None else common.shifted(other.row, other.column)

    def clipped(self, shape: tuple[int, int]) -> Window | None:
        """The part on an array of (rows, columns), None if there is none; the window itself if it all is."""
        row, column = max(self.row, 0), max(self.column, 0)
        height, width = min(self.bottom, shape[0]) - row, min(self.right, shape[1]) - column
        if height < 1 or width < 1:
            return None
        if height == self.height and width == self.width:
            return self
        return Window(row=row, column=column, height=height, width=width)

    def shifted(self, rows: int, columns: int) -> Window:
        """The window moved down and to the right by ``rows`` and ``columns``."""
        return Window(row=self.row + rows, column=self.column + columns, height=self.height, width=self.width)

    def within(self, other: Window) -> Window:
        """The same pixels, counted from the first pixel of another window."""
        return self.shifted(-other.row, -other.column)

    def grown(self, margin: int) -> Window:
        """The window with ``margin`` more pixels on every side."""
        return Window(
            row=self.row - margin,
            column=self.column - margin,
            height=self.height + 2 * margin,
            width=self.width + 2 * margin,
        )

    def tile_range(self, tile_shape: tuple[int, int]) -> Window:
        """The tiles of (rows, columns) px that it touches, as a window of the tile grid, which begins at 0, 0."""
        height, width = tile_shape
        return Window.between(
            row=self.row // height,
            column=self.column // width,
            bottom=-(-self.bottom // height),
            right=-(-self.right // width),
        )

    def tiles(self, tile_shape: tuple[int, int]) -> list[tuple[int, int]]:
        """(row, column) of the tiles of ``tile_range``, row by row."""
        touched = self.tile_range(tile_shape)
        return [
            (row, column)
            for row in range(touched.row, touched.bottom)
            for column in range(touched.column, touched.right)
        ]

    def cut(self, tile_shape: tuple[int, int]) -> list[tuple[tuple[int, int], Window, Window]]:
        """Cut the window along the borders of tiles.

        Returns:
            For each of ``tiles``: its (row, column), and twice the part of the window in it: counted from the window's
            first pixel, and from the tile's.
        """
        (height, width), bottom, right = tile_shape, self.bottom, self.right
        pieces = []
        for row in range(self.row // height, -(-bottom // height)):
            y = row * height
            top = max(self.row, y)
            down = min(bottom, y + height) - top
            for column in range(self.column // width, -(-right // width)):
                x = column * width
                left = max(self.column, x)
                across = min(right, x + width) - left
                own = Window(row=top - self.row, column=left - self.column, height=down, width=across)
                pieces.append(((row, column), own, Window(row=top - y, column=left - x, height=down, width=across)))
        return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One stored resolution of a slide.

    Attributes:
        index: 0 is the finest.
        width, height: true size in pixels of this level (padding of the stored tiles excluded).
        tile_width, tile_height: stored tile size in pixels of this level.
        downsample: level-0 px per pixel of this level, measured from the file, never assumed to be 2**index.
    """

    index: int
    width: int
    height: int
    tile_width: int
    tile_height: int
    downsample: float

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.height, self.width

    @property
    def tile_shape(self) -> tuple[int, int]:
        """(rows, columns) of a stored tile."""
        return self.tile_height, self.tile_width

    @property
    def frame(self) -> Frame:
        """The whole level. A level does not know its mpp; ``Slide.frame_of`` does."""
        return Frame(x=0.0, y=0.0, downsample=self.downsample, shape=self.shape, mpp=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a two-dimensional array lies on its slide.

    Attributes:
        x, y: level-0 position of the outer corner of pixel (0, 0).
        downsample: level-0 px per array pixel, the same along both axes.
        shape: (rows, columns) of the array.
        mpp: um per level-0 px, or None if the slide does not say.
    """

    x: float
    y: float
    downsample: float
    shape: tuple[int, int]
    mpp: float | None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.y)):
            raise ValueError(f"a frame needs a finite position, got ({self.x}, {self.y})")
        if not (math.isfinite(self.downsample) and self.downsample > 0):
            raise ValueError(f"a frame needs a positive downsample, got {self.downsample}")
        if self.mpp is not None and not (math.isfinite(self.mpp) and self.mpp > 0):
            raise ValueError(f"a frame needs a positive mpp or None, got {self.mpp}")
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"a frame needs (rows, columns) of at least 1, got {self.shape}")

    @property
    def pixel_um(self) -> float:
        """Side of one array pixel in um.

        Raises:
            ResolutionError: mpp is None.
        """
        if self.mpp is None:
            raise ResolutionError(None, "the resolution is unknown", mend="set it with --slide-mpp or mpp=")
        return self.mpp * self.downsample

    @property
    def right(self) -> float:
        """Level-0 x of the array's right edge."""
        return self.x + self.shape[1] * self.downsample

    @property
    def bottom(self) -> float:
        """Level-0 y of the array's lower edge."""
        return self.y + self.shape[0] * self.downsample

    @property
    def region(self) -> Region:
        """The smallest Region of whole level-0 px that covers the array."""
        x, y = math.floor(self.x), math.floor(self.y)
        right, bottom = math.ceil(self.right), math.ceil(self.bottom)
        return Region(x=x, y=y, width=max(1, right - x), height=max(1, bottom - y))

    def positions(self, rows: ArrayLike, columns: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level-0 (x, y) of fractional rows and columns, each in its argument's shape; the inverse of ``fractions``."""
        x = self.x + np.asarray(columns, dtype=np.float64) * self.downsample
        y = self.y + np.asarray(rows, dtype=np.float64) * self.downsample
        return x, y

    def centres(self, rows: ArrayLike, columns: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level-0 (x, y) of the centres of array pixels; same shapes as the arguments."""
        return self.positions(np.asarray(rows, dtype=np.float64) + 0.5, np.asarray(columns, dtype=np.float64) + 0.5)

    def fractions(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fractional (rows, columns): the outer corner of pixel (0, 0) is (0.0, 0.0), its centre (0.5, 0.5)."""
        rows = (np.asarray(y, dtype=np.float64) - self.y) / self.downsample
        columns = (np.asarray(x, dtype=np.float64) - self.x) / self.downsample
        return rows, columns

    def window_of(self, region: Region) -> Window:
        """The array's pixels that a region touches, at least one; may extend beyond the array."""
        row, column = (
            math.floor((region.y - self.y) / self.downsample),
            math.floor((region.x - self.x) / self.downsample),
        )
        # Slightly less than the quotient: a region up to a pixel's edge does not touch the next one.
        bottom = math.ceil((region.bottom - self.y) / self.downsample - _HAIR_PX)
        right = math.ceil((region.right - self.x) / self.downsample - _HAIR_PX)
        return Window(row=row, column=column, height=max(1, bottom - row), width=max(1, right - column))

    def part(self, window: Window) -> Frame:
        """The frame of ``array[window.slices]``; the window may extend beyond this frame."""
        return Frame(
            x=self.x + window.column * self.downsample,
            y=self.y + window.row * self.downsample,
            downsample=self.downsample,
            shape=window.shape,
            mpp=self.mpp,
        )

    def coarser(self, factor: int) -> Frame:
        """The frame whose pixels are factor x factor of these, covering all of them (the last ones may overhang)."""
        rows, columns = self.shape
        return Frame(
            x=self.x,
            y=self.y,
            downsample=self.downsample * factor,
            shape=(-(-rows // factor), -(-columns // factor)),
            mpp=self.mpp,
        )

    def finer(self, factor: int) -> Frame:
        """The frame of factor x factor pixels for each of these."""
        rows, columns = self.shape
        return Frame(
            x=self.x,
            y=self.y,
            downsample=self.downsample / factor,
            shape=(rows * factor, columns * factor),
            mpp=self.mpp,
        )

    def resampled(self, downsample: float) -> Frame:
        """The same area with pixels of another size; the last row and column may overhang."""
        # Slightly less than the quotient: 1000.0000000001 columns are 1000.
        rows, columns = (
            max(1, math.ceil(side * self.downsample / downsample * (1 - _HAIR_SHARE))) for side in self.shape
        )
        return Frame(x=self.x, y=self.y, downsample=downsample, shape=(rows, columns), mpp=self.mpp)

    def in_px_of(self, downsample: float) -> Frame:
        """The same array with its position in pixels of a level, as if that were level 0."""
        return Frame(
            x=self.x / downsample,
            y=self.y / downsample,
            downsample=self.downsample / downsample,
            shape=self.shape,
            mpp=None if self.mpp is None else self.mpp * downsample,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """A Frame cut into equal tiles from its top left corner; the last row and column may be smaller.

    Attributes:
        frame: the frame that is cut.
        tile_shape: (rows, columns) of a full tile in array pixels.
    """

    frame: Frame
    tile_shape: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.tile_shape) < 1:
            raise ValueError(f"a tile needs at least 1 x 1 px, got {self.tile_shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return -(-self.frame.shape[0] // self.tile_shape[0]), -(-self.frame.shape[1] // self.tile_shape[1])

    def window(self, row: int, column: int) -> Window:
        """The window of tile (row, column) in the frame's array."""
        height, width = self.tile_shape
        return Window.between(
            row=row * height,
            column=column * width,
            bottom=min((row + 1) * height, self.frame.shape[0]),
            right=min((column + 1) * width, self.frame.shape[1]),
        )

    def tile(self, row: int, column: int) -> Frame:
        """The Frame of tile (row, column)."""
        return self.frame.part(self.window(row, column))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All (row, column), row by row."""
        rows, columns = self.shape
        return ((row, column) for row in range(rows) for column in range(columns))


def tile_order(regions: Sequence[Region], level: Level) -> NDArray[np.int64]:
    """An order of regions in which those that share tiles of a level are close to each other: their indices, (n,).

    Regions are ordered by the tile at their centre along a Z-curve (Morton order), so that consecutive ones cover a
    compact area of tiles.
    """
    x = np.array([region.x + region.width / 2 for region in regions]) / level.downsample
    y = np.array([region.y + region.height / 2 for region in regions]) / level.downsample
    return z_order(np.floor(y / level.tile_height).astype(np.int64), np.floor(x / level.tile_width).astype(np.int64))


def z_order(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of cells of a grid along a Z-curve (Morton order): their indices, (n,); below 0 counts as 0."""
    rows, columns = np.maximum(rows, 0), np.maximum(columns, 0)
    keys = np.zeros(len(rows), dtype=np.int64)
    for bit in range(24):
        keys |= ((columns >> bit) & 1) << (2 * bit)
        keys |= ((rows >> bit) & 1) << (2 * bit + 1)
    return np.argsort(keys, kind="stable")
