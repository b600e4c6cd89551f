"""Exact area averaging: every output pixel is the mean of the source pixels it covers, by covered area.

An image counts as constant over each of its pixels, so the mean is defined for any ratio, also below 1. Positions
are rounded to 2**-20 px and each output pixel is computed from its own position alone, in a fixed order of
operations: the same pixel comes out bit for bit whatever window it is computed in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Window

_BITS = 20
_ONE = 1 << _BITS
# Far above the rounding error of a whole quotient, far below a shift of 2**-20 px over 10**6 pixels.
_WHOLE = 1e-13
_BLOCK_ROWS = 32  # output rows at a time: the running sums stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AxisPlan:
    """How output pixels along one axis are computed from source pixels.

    Attributes:
        start, stop: the source pixels needed, half-open.
        first: int64 (n,), the first source pixel of each output pixel, counted from ``start``.
        weights: float32 (taps, n), the share of source pixel ``first + tap``.
        factor: whole number of source pixels per output pixel if the grids coincide, else 0.
    """

    start: int
    stop: int
    first: NDArray[np.int64]
    weights: NDArray[np.float32]
    factor: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FramePlan:
    """How the pixels of a frame are computed from those of a level: its rows and its columns."""

    rows: AxisPlan
    columns: AxisPlan

    @classmethod
    def of(cls, frame: Frame, *, source: float) -> FramePlan:
        """Plan a frame.

        Args:
            frame: the output.
            source: level-0 px per px of the level.
        """
        wanted = frame.in_px_of(source)
        rows, columns = wanted.shape
        return cls(
            rows=plan_axis(origin=wanted.y, ratio=wanted.downsample, count=rows),
            columns=plan_axis(origin=wanted.x, ratio=wanted.downsample, count=columns),
        )

    @property
    def window(self) -> Window:
        """The pixels of the level that are needed; may extend beyond it."""
        rows, columns = self.rows, self.columns
        return Window.between(row=rows.start, column=columns.start, bottom=rows.stop, right=columns.stop)


def plan_axis(*, origin: float, ratio: float, count: int) -> AxisPlan:
    """Plan ``count`` output pixels along one axis.

    Args:
        origin: where the first output pixel begins, in source px.
        ratio: source px per output px, above 0.
        count: number of output pixels.
    """
    whole = round(ratio)
    is_whole = whole >= 1 and abs(ratio - whole) <= _WHOLE * whole
    step = float(whole) if is_whole else ratio
    edges = np.rint((origin + np.arange(count + 1) * step) * _ONE).astype(np.int64)
    lower, upper = edges[:-1], np.maximum(edges[1:], edges[:-1] + 1)
    first = lower >> _BITS
    stop = -(-upper >> _BITS)
    if is_whole and lower[0] % _ONE == 0:
        weights = np.empty((0, count), dtype=np.float32)
    else:
        taps = first + np.arange(int((stop - first).max()))[:, None]
        covered = np.minimum(upper, (taps + 1) << _BITS) - np.maximum(lower, taps << _BITS)
        weights = (np.maximum(covered, 0) / (upper - lower)).astype(np.float32)
        whole = 0
    start = int(first[0])
    return AxisPlan(start=start, stop=int(stop[-1]), first=first - start, weights=weights, factor=whole)


def average(source: NDArray[np.uint8], plan: FramePlan) -> NDArray[np.uint8]:
    """Average a source image.

    Args:
        source: uint8 (rows, columns, 3), the pixels of ``plan.window``.
        plan: of the output.

    Returns:
        uint8 (rows, columns, 3) of the planned frame, halves rounded up.
    """
    rows, columns = plan.rows, plan.columns
    if rows.factor and rows.factor == columns.factor:
        return source if rows.factor == 1 else _average_blocks(source, rows.factor)
    return _average_weighted(source, _with_weights(rows), _with_weights(columns))


def _with_weights(plan: AxisPlan) -> AxisPlan:
    if not plan.factor:
        return plan
    weights = np.full((plan.factor, plan.first.size), 1 / plan.factor, dtype=np.float32)
    return AxisPlan(start=plan.start, stop=plan.stop, first=plan.first, weights=weights, factor=0)


def _average_blocks(source: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    height, width = source.shape[0] // factor, source.shape[1] // factor
    flat = source.reshape(source.shape[0], -1)
    out = np.empty((height, width * 3), dtype=np.uint8)
    area = factor * factor
    narrow = np.uint16 if area * 255 + area // 2 < 2**16 else np.uint32
    for top in range(0, height, _BLOCK_ROWS):
        strip = flat[top * factor : min(top + _BLOCK_ROWS, height) * factor]
        sums = np.add(strip[0::factor], 0, dtype=narrow)
        for row in range(1, factor):
            sums += strip[row::factor]
        blocks = np.full((sums.shape[0], width * 3), area // 2, dtype=narrow)
        for channel in range(3):
            for column in range(factor):
                blocks[:, channel::3] += sums[:, channel + 3 * column :: 3 * factor]
        out[top : top + _BLOCK_ROWS] = blocks // narrow(area)
    return out.reshape(height, width, 3)


def _average_weighted(source: NDArray[np.uint8], rows: AxisPlan, columns: AxisPlan) -> NDArray[np.uint8]:
    flat = source.reshape(source.shape[0], -1)
    height, width = rows.first.size, columns.first.size
    out = np.empty((height, width, 3), dtype=np.uint8)
    row_taps = _tap_indices(rows)
    column_taps = _tap_indices(columns)
    column_weights = np.repeat(columns.weights, 3, axis=1)  # one weight per sample: keeps numpy's inner loops long
    for top in range(0, height, _BLOCK_ROWS):
        bottom = min(top + _BLOCK_ROWS, height)
        sums = np.zeros((bottom - top, flat.shape[1]), dtype=np.float32)
        for tap, weights in zip(row_taps, rows.weights, strict=True):
            sums += np.multiply(flat[tap[top:bottom]], weights[top:bottom, None], dtype=np.float32)
        pixels = sums.reshape(bottom - top, -1, 3)
        block = np.full((bottom - top, width * 3), 0.5, dtype=np.float32)
        for tap, weights in zip(column_taps, column_weights, strict=True):
            taken = np.take(pixels, tap, axis=1).reshape(block.shape)
            taken *= weights
            block += taken
        out[top:bottom] = block.reshape(bottom - top, width, 3)
    return out


def _tap_indices(plan: AxisPlan) -> NDArray[np.int64]:
    """The source pixel of each tap, (taps, n); taps of weight 0 beyond the source repeat its last pixel."""
    taps = plan.first + np.arange(len(plan.weights))[:, None]
    return np.asarray(np.minimum(taps, plan.stop - plan.start - 1))
