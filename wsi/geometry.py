"""Where things lie on a slide. The only module that converts between units and axes.

Positions are level-0 pixels, named x (to the right) and y (down). Arrays are indexed (row, column). Pixel (row,
column) of an array with downsample d covers the half-open square [x0 + column*d, x0 + (column+1)*d) x [y0 + row*d,
y0 + (row+1)*d) of level-0 pixels; its centre lies half an array pixel further.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi.errors import ResolutionError


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

    def intersection(self, other: Region) -> Region | None:
        """The common rectangle, or None where the two do not overlap."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right, bottom = min(self.right, other.right), min(self.bottom, other.bottom)
        return Region(x=x, y=y, width=right - x, height=bottom - y) if right > x and bottom > y else None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where a two-dimensional array lies on its slide.

    Attributes:
        x, y: level-0 position of the outer corner of pixel (0, 0).
        downsample: level-0 px per array pixel, the same along both axes.
        shape: (rows, columns) of the array.
        mpp: um per level-0 px, or None where the slide does not say.
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
            raise ResolutionError(None, "the resolution is not known", mend="give it with --slide-mpp or mpp=")
        return self.mpp * self.downsample

    @property
    def region(self) -> Region:
        """The smallest Region of whole level-0 px that covers the array."""
        x, y = math.floor(self.x), math.floor(self.y)
        right = math.ceil(self.x + self.shape[1] * self.downsample)
        bottom = math.ceil(self.y + self.shape[0] * self.downsample)
        return Region(x=x, y=y, width=max(1, right - x), height=max(1, bottom - y))

    def centres(self, rows: ArrayLike, columns: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Level-0 (x, y) of the centres of array pixels; same shapes as the arguments."""
        x = self.x + (np.asarray(columns, dtype=np.float64) + 0.5) * self.downsample
        y = self.y + (np.asarray(rows, dtype=np.float64) + 0.5) * self.downsample
        return x, y

    def fractions(self, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(rows, columns) as fractions: the outer corner of pixel (0, 0) is (0.0, 0.0), its centre (0.5, 0.5)."""
        rows = (np.asarray(y, dtype=np.float64) - self.y) / self.downsample
        columns = (np.asarray(x, dtype=np.float64) - self.x) / self.downsample
        return rows, columns

    def window(self, *, row: int, column: int, height: int, width: int) -> Frame:
        """The frame of array[row:row + height, column:column + width]; may reach beyond this frame."""
        return Frame(
            x=self.x + column * self.downsample,
            y=self.y + row * self.downsample,
            downsample=self.downsample,
            shape=(height, width),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TileGrid:
    """A Frame cut into equal tiles from its top left corner; the last row and column may be smaller.

    Attributes:
        frame: what is cut.
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

    def slices(self, row: int, column: int) -> tuple[slice, slice]:
        """Where tile (row, column) lies in the array of the frame."""
        height, width = self.tile_shape
        return (
            slice(row * height, min((row + 1) * height, self.frame.shape[0])),
            slice(column * width, min((column + 1) * width, self.frame.shape[1])),
        )

    def tile(self, row: int, column: int) -> Frame:
        """The Frame of tile (row, column)."""
        rows, columns = self.slices(row, column)
        return self.frame.window(
            row=rows.start, column=columns.start, height=rows.stop - rows.start, width=columns.stop - columns.start
        )

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All (row, column), row by row."""
        rows, columns = self.shape
        return ((row, column) for row in range(rows) for column in range(columns))


def tile_order(regions: Sequence[Region], level: Level) -> NDArray[np.int64]:
    """An order of regions in which those that share tiles of a level stand near each other: their numbers, (n,).

    Regions are taken by the tile at their centre along a Z-curve (Morton order), so that a stretch of any length covers
    a compact patch of tiles.
    """
    x = np.array([region.x + region.width / 2 for region in regions]) / level.downsample
    y = np.array([region.y + region.height / 2 for region in regions]) / level.downsample
    return z_order(np.floor(y / level.tile_height).astype(np.int64), np.floor(x / level.tile_width).astype(np.int64))


def z_order(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order of places on a grid along a Z-curve (Morton order): their numbers, (n,); below 0 counts as 0."""
    rows, columns = np.maximum(rows, 0), np.maximum(columns, 0)
    keys = np.zeros(len(rows), dtype=np.int64)
    for bit in range(24):
        keys |= ((columns >> bit) & 1) << (2 * bit)
        keys |= ((rows >> bit) & 1) << (2 * bit + 1)
    return np.argsort(keys, kind="stable")
