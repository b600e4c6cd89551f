"""What every reader offers, and how readers measure what files say about scale."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Level

MPP_RANGE_UM = (0.05, 100.0)
"""Below lies finer than light resolves, above coarser than any level 0: such values are screen resolutions."""

_MPP_AGREEMENT = 0.01


OnBadTile = Literal["raise", "white"]
"""What a tile that cannot be decoded does: end the reading, or be white and listed."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BadTile:
    """A tile that could not be decoded and was read as white: its place on the level's grid of tiles, and why."""

    level: int
    row: int
    column: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTiles:
    """The tiles of one level as they lie in the file, to be copied: 8 bits a sample, the samples of a pixel together.

    Attributes:
        compression, photometric, samples, predictor: the values of the TIFF tags 259, 262, 277 and 317.
        extra_samples: tag 338, the meaning of what follows the colours.
        subsampling: tag 530, (across, down).
        jpeg_tables: tag 347, empty where the tiles bring their own.
        rows, columns: the size of the grid of tiles.
        read: the bytes of the tile at (row, column), None where it is missing.
        read_many: the same for several (row, column), in their order; of a remote file in few requests.
        read_sound: as read, after the tile was decoded to see whether that can be done; TileError where it cannot.
    """

    compression: int
    photometric: int
    samples: int
    predictor: int
    extra_samples: tuple[int, ...]
    subsampling: tuple[int, int]
    jpeg_tables: bytes
    rows: int
    columns: int
    read: Callable[[int, int], bytes | None]
    read_many: Callable[[Sequence[tuple[int, int]]], list[bytes | None]]
    read_sound: Callable[[int, int], bytes | None]


class Reader(Protocol):
    """One open file: its levels and their pixels. Safe to use from many threads, not across a fork.

    Attributes:
        levels: finest first.
        mpp: um per level-0 px, None where the file does not say it believably.
        properties: plain metadata, among it ``sentinode.format``; nothing that identifies a patient.
        bad_tiles: what was read as white because it could not be decoded, so far.
    """

    @property
    def levels(self) -> tuple[Level, ...]: ...

    @property
    def mpp(self) -> float | None: ...

    @property
    def properties(self) -> Mapping[str, str]: ...

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]: ...

    def read(self, level: int, *, row: int, column: int, out: NDArray[np.uint8]) -> None:
        """Fill an array with pixels of a level, white outside and where missing.

        Args:
            level: index.
            row: of the window's first pixel, in px of the level; may lie outside.
            column: of the same pixel.
            out: uint8 (height, width, 3).

        Raises:
            TileError: a tile under the window cannot be decoded.
        """
        ...

    def has_pixels(self, level: int, *, row: int, column: int, height: int, width: int) -> bool:
        """False where the whole window lies outside the level or in missing tiles."""
        ...

    def close(self) -> None:
        """Give the file back; the reader is of no use afterwards."""
        ...


def settle_mpp(path: str | PathLike[str], x_um: float, y_um: float) -> float | None:
    """One mpp from what a file says for both axes.

    Args:
        path: named in the warning.
        x_um: um per px along x; nan where the file does not say.
        y_um: the same along y.

    Returns:
        The mean; None, with a warning, where the axes differ by more than 1 % or the value is not within 0.05 to
        100 um; None without a warning where nothing is said.
    """
    if math.isnan(x_um) or math.isnan(y_um):
        return None
    low, high = MPP_RANGE_UM
    if not (low <= x_um <= high and low <= y_um <= high):
        warnings.warn(f"{fspath(path)}: ignoring an absurd resolution of {x_um:g} x {y_um:g} um per px", stacklevel=3)
        return None
    if abs(x_um - y_um) > _MPP_AGREEMENT * max(x_um, y_um):
        warnings.warn(f"{fspath(path)}: ignoring a resolution that differs: {x_um:g} x {y_um:g} um", stacklevel=3)
        return None
    return (x_um + y_um) / 2


def measure_downsample(full: tuple[int, int], reduced: tuple[int, int], *, told: float | None = None) -> float:
    """Level-0 px per px of a level.

    Level sizes are whole pixels, so their quotient is off by up to one pixel over the level (300 x 250 px halved
    twice and rounded down are 75 x 62: 4.016). Where a whole factor explains the sizes to the pixel it is the factor.

    Args:
        full: (width, height) of level 0.
        reduced: (width, height) of the level.
        told: the downsample by the file's own metadata, used in place of the quotient of the sizes.
    """
    measured = told if told is not None else (full[0] / reduced[0] + full[1] / reduced[1]) / 2
    sides = (full[0] / measured, full[1] / measured) if told is not None else reduced
    # A power of two first: on levels of a few pixels a wrong whole number may explain the sizes as well.
    for factor in (2 ** max(0, round(math.log2(measured))), max(1, round(measured))):
        if all(abs(size / factor - side) < 1 for size, side in zip(full, sides, strict=True)):
            return float(factor)
    return measured
