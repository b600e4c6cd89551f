"""The interface of all readers, and how scale is measured from what files say."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Level, Window
from wsi.threads import do_all
from wsi.windows import Windows

REDUCTIONS = (8, 4, 2)
"""Factors by which the tiles of some levels can be reduced while decoding."""

OnBadTile = Literal["raise", "white"]
"""What to do with a tile that cannot be decoded: raise, or read it as white and list it."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BadTile:
    """A tile that could not be decoded and was read as white: its row and column in the level's tile grid, and why."""

    level: int
    row: int
    column: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTiles:
    """The tiles of one level as stored, for copying: 8 bits per sample, the samples of a pixel together.

    Attributes:
        compression, photometric, samples, predictor: the values of the TIFF tags 259, 262, 277 and 317.
        extra_samples: tag 338, the meaning of the samples after the colours.
        subsampling: tag 530, (across, down).
        jpeg_tables: tag 347, empty if the tiles carry their own.
        rows, columns: the size of the tile grid.
        read: the bytes of the tile at (row, column), None where it is missing.
        read_many: the same for several (row, column), in order; from a remote file in few requests.
        read_sound: as read, after decoding the tile as a check; TileError if that fails.
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


class Reader(ABC):
    """One open file: its levels and their pixels. Safe to use from many threads, not across a fork.

    Each kind of file has its own class, listed in ``wsi.readers.opening``, with the attributes, ``open``, ``read`` and
    ``close``. Everything else has a default here, to be overridden if a format can do better.

    Attributes:
        suffixes: of its files, in lower case with the dot: how a cohort's slides are found in a folder.
        is_photograph: such files are slides only in a folder without others; next to slides they are overviews,
            overlays and labels.
        levels: finest first.
        mpp: um per level-0 px, None if the file states no plausible value.
        mpp_warnings: what is doubtful about that, and what to do about it, in one line each.
        warnings: the same of everything else in the file.
        has_opacity: pixels may be hidden, and are white then.
        properties: plain metadata, including ``sentinode.format``; nothing that identifies a patient.
    """

    suffixes: ClassVar[frozenset[str]]
    is_photograph: ClassVar[bool] = False

    levels: tuple[Level, ...]
    mpp: float | None
    mpp_warnings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    has_opacity: bool = False
    properties: Mapping[str, str]

    @classmethod
    @abstractmethod
    def open(cls, path: Path, head: bytes, *, on_bad_tile: OnBadTile) -> Self | None:
        """Open a file of this kind.

        Args:
            path: the file.
            head: its first bytes, up to 16.
            on_bad_tile: what to do with a tile that cannot be decoded.

        Returns:
            None if the file is of another kind: the next reader is tried.

        Raises:
            SlideFormatError: the file is of this kind, and damaged.
            OSError: the file cannot be read.
        """

    @abstractmethod
    def read(self, level: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        """Fill an array with pixels of a level, white outside and where missing.

        Args:
            level: index.
            window: in px of the level; may lie outside.
            out: uint8 (height, width, 3) of the window.

        Raises:
            TileError: a tile under the window cannot be decoded.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file; the reader cannot be used afterwards."""

    def seen_through(self) -> Reader:
        """Return a reader of the same file that shows what opacity hides; this one, if nothing can be hidden."""
        return self

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """The tiles read as white so far because they could not be decoded."""
        return ()

    def read_many(self, level: int, windows: Windows, *, out: NDArray[np.uint8], workers: int) -> None:
        """Fill an array with windows of one size, on several threads.

        Args:
            level: index.
            windows: in px of the level; may lie outside.
            out: uint8 (n, height, width, 3).
            workers: threads.

        Raises:
            TileError: as ``read``.
        """

        def read(job: tuple[Window, NDArray[np.uint8]]) -> None:
            self.read(level, job[0], out=job[1])

        do_all(read, list(zip(windows, out, strict=True)), workers=workers, name="read")

    def can_reduce(self, level: int) -> bool:
        """Whether ``read_reduced`` works for a level."""
        del level
        return False

    def read_reduced(self, level: int, factor: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        """Fill an array with pixels of a level reduced by the decoder: faster than averaging, and nearly the same.

        Args:
            level: index; ``can_reduce`` holds for it.
            factor: of ``REDUCTIONS``.
            window: in px of the reduced level; may lie outside.
            out: uint8 (height, width, 3) of the window; white outside and where missing.

        Raises:
            ValueError: the level cannot be reduced.
            TileError: as ``read``.
        """
        del window, out
        raise ValueError(f"level {level} cannot be reduced by {factor} while decoding")

    def has_pixels(self, level: int, window: Window) -> bool:
        """False if the whole window lies outside the level, or in tiles that neither it nor a finer level stores."""
        return window.clipped(self.levels[level].shape) is not None

    def icc_profile(self, level: int) -> bytes | None:
        """The ICC profile of a level, as stored; None if it has none.

        Raises:
            OSError: the file cannot be read.
        """
        del level
        return None

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """The tiles of a level as stored, for copying; None if the kind of file has none."""
        del level
        return None

    def tile_bytes(self, level: int, row: int, column: int) -> bytes | None:
        """The tile at (row, column) of a level as a complete JPEG, None where it is missing.

        Raises:
            ValueError: the file has no JPEG tiles, or there is no such tile.
            TileError: the stored bytes are not a JPEG of the level's kind.
        """
        del level, row, column
        raise ValueError(f"a slide of the kind {self.properties['sentinode.format']} has no JPEG tiles")


def measure_downsample(full: tuple[int, int], reduced: tuple[int, int], *, stated: float | None = None) -> float:
    """Level-0 px per px of a level.

    Level sizes are whole pixels, so their quotient is off by up to one pixel over the level (300 x 250 px halved
    twice and rounded down are 75 x 62: 4.016). A whole factor that explains the sizes to the pixel is preferred.

    Args:
        full: (width, height) of level 0.
        reduced: (width, height) of the level.
        stated: the downsample from the file's own metadata, used instead of the quotient of the sizes.
    """
    measured = stated if stated is not None else (full[0] / reduced[0] + full[1] / reduced[1]) / 2
    sides = (full[0] / measured, full[1] / measured) if stated is not None else reduced
    # A power of two first: on levels of a few pixels a wrong whole number may explain the sizes as well.
    for factor in (2 ** max(0, round(math.log2(measured))), max(1, round(measured))):
        if all(abs(size / factor - side) < 1 for size, side in zip(full, sides, strict=True)):
            return float(factor)
    return measured
