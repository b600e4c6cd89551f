"""Many equal patches of many slides: their positions and their pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Level
from wsi.patches.pool import SlidePool
from wsi.resample import FramePlan, average
from wsi.slide import Slide
from wsi.windows import Windows

_GRID = 1 << 20  # positions are rounded to this fraction of a source pixel, as in wsi.resample
_SOURCE_BYTES = 128 * 2**20  # source pixels in memory at a time when patches are averaged from a finer level


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchPositions:
    """The positions of patches, without pixels.

    Attributes:
        slides: paths or URLs.
        slide: int (n,), index into ``slides`` for each patch.
        x, y: float64 (n,), level-0 px of the outer corner of pixel (0, 0).
        downsample: float64 (n,), level-0 px per patch px.
        size_px: side of every patch.
    """

    slides: tuple[str, ...]
    slide: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    downsample: NDArray[np.float64]
    size_px: int

    def __post_init__(self) -> None:
        if not self.slide.shape == self.x.shape == self.y.shape == self.downsample.shape or self.slide.ndim != 1:
            raise ValueError("each patch needs a slide, an x, a y and a downsample")
        if self.size_px < 1:
            raise ValueError(f"a patch needs at least 1 px, got {self.size_px}")
        if self.slide.size and not 0 <= self.slide.min() <= self.slide.max() < len(self.slides):
            raise ValueError(f"patches refer to slides beyond the {len(self.slides)} given")

    def __len__(self) -> int:
        return len(self.slide)


def source_windows(
    slide: Slide, x: NDArray[np.float64], y: NDArray[np.float64], *, downsample: float, size_px: int
) -> tuple[Level, Windows]:
    """The stored pixels that patches are made of: a level, and a window of it for each patch."""
    level = slide.level_for(downsample)
    first_rows, first_columns = level.frame.fractions(x, y)
    rows, heights = _extents(first_rows, downsample / level.downsample, size_px)
    columns, widths = _extents(first_columns, downsample / level.downsample, size_px)
    return level, Windows(rows=rows, columns=columns, heights=heights, widths=widths)


def read_patches(
    slide: Slide,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    downsample: float,
    size_px: int,
    out: NDArray[np.uint8] | None = None,
    workers: int | None = None,
) -> NDArray[np.uint8]:
    """Pixels of many patches of one slide, each bit for bit as from ``Slide.read_frame``.

    Each tile is decoded once for all patches; if they are averaged from a finer level, once for all that fit into 128
    MiB of source pixels.

    Args:
        slide: the slide.
        x: float64 (n,), level-0 px of the outer corners of the patches.
        y: the same.
        downsample: level-0 px per patch px.
        size_px: side of the patches.
        out: uint8 (n, size_px, size_px, 3) to fill instead of a new array.
        workers: decoding threads; by default one per usable core.

    Raises:
        TileError: a tile cannot be decoded.
    """
    if out is None:
        out = np.empty((len(x), size_px, size_px, 3), dtype=np.uint8)
    if not len(x):
        return out
    level, windows = source_windows(slide, x, y, downsample=downsample, size_px=size_px)
    windows = windows.alike()
    if _is_stored(level, x, y, downsample):
        return slide.read_windows(level.index, windows, out=out, workers=workers)
    order = windows.tile_order(level.tile_shape)
    share = max(1, _SOURCE_BYTES // (3 * math.prod(windows.shape)))
    source = np.empty((min(share, len(order)), *windows.shape, 3), dtype=np.uint8)
    for start in range(0, len(order), share):
        chosen = order[start : start + share]
        pixels = slide.read_windows(level.index, windows.take(chosen), out=source[: len(chosen)], workers=workers)
        for at, window in zip(chosen.tolist(), pixels, strict=True):
            patch = Frame(x=float(x[at]), y=float(y[at]), downsample=downsample, shape=(size_px, size_px), mpp=None)
            plan = FramePlan.of(patch, source=level.downsample)
            height, width = plan.window.shape
            out[at] = average(np.ascontiguousarray(window[:height, :width]), plan)
    return out


def read_positions(
    positions: PatchPositions,
    indices: NDArray[np.int64],
    pool: SlidePool,
    *,
    out: NDArray[np.uint8] | None = None,
    workers: int | None = None,
) -> NDArray[np.uint8]:
    """Pixels of patches of many slides, in the order of ``indices``; each slide is opened once.

    Args:
        positions: all patches.
        indices: int (n,), the patches to read.
        pool: opens the slides.
        out: uint8 (n, size_px, size_px, 3) to fill instead of a new array.
        workers: decoding threads.

    Raises:
        SlideError: a slide cannot be opened.
        TileError: a tile cannot be decoded.
    """
    side = positions.size_px
    if out is None:
        out = np.empty((len(indices), side, side, 3), dtype=np.uint8)
    for slide, downsample, members in by_slide(positions, indices):
        chosen = indices[members]
        whole = len(members) == len(indices)
        pixels = read_patches(
            pool.get(positions.slides[slide]),
            positions.x[chosen],
            positions.y[chosen],
            downsample=downsample,
            size_px=side,
            out=out if whole else None,
            workers=workers,
        )
        if not whole:
            out[members] = pixels
    return out


def by_slide(positions: PatchPositions, indices: NDArray[np.int64]) -> Iterator[tuple[int, float, NDArray[np.int64]]]:
    """(slide, downsample, positions in ``indices``) of patches that can be read together."""
    slides, downsamples = positions.slide[indices], positions.downsample[indices]
    order = np.lexsort((downsamples, slides))
    if not order.size:
        return
    changes = (np.diff(slides[order]) != 0) | (np.diff(downsamples[order]) != 0)
    for members in np.split(order, np.flatnonzero(changes) + 1):
        yield int(slides[members[0]]), float(downsamples[members[0]]), members


def _extents(origin: NDArray[np.float64], ratio: float, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First source pixel and number of source pixels of many axes at once, as by ``wsi.resample.plan_axis``."""
    step = float(round(ratio)) if _is_whole(ratio) else ratio
    first, before, last = (np.rint((origin + at * step) * _GRID).astype(np.int64) for at in (0, count - 1, count))
    start = first // _GRID
    return start, -(-np.maximum(last, before + 1) // _GRID) - start


def _is_whole(ratio: float) -> bool:
    return round(ratio) >= 1 and abs(ratio - round(ratio)) <= 1e-13 * round(ratio)


def _is_stored(level: Level, x: NDArray[np.float64], y: NDArray[np.float64], downsample: float) -> bool:
    """Whether patches are stored pixels of a level."""
    ratio = downsample / level.downsample
    corners = np.rint(np.concatenate(level.frame.fractions(x, y)) * _GRID).astype(np.int64)
    return _is_whole(ratio) and round(ratio) == 1 and not (corners % _GRID).any()
