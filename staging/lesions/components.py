"""Connected components of masks and heatmaps of any size, exact and independent of how the pixels are read.

A mask is read once, in bands of rows, and kept as the spans of its rows: a span is a longest stretch of tumour cells.
Components, holes and gaps follow from the spans alone, so no seam between bands exists. Memory holds one band and the
spans, whose number grows with the length of the outlines and not with the area.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BAND_CELLS = 1 << 25
"""Cells read at a time."""

_SPANS_AT_ONCE = 1 << 19

Numbers = NDArray[np.int64]


class PixelSource(Protocol):
    """Anything that can be sliced into windows: a NumPy or Zarr array, or a mask file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""

    def __getitem__(self, window: tuple[slice, slice], /) -> Any:  # noqa: ANN401  (an array of any library)
        """Return the pixels of a half-open window of rows and columns."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spans:
    """The tumour cells of a grid as maximal spans within rows, top to bottom and left to right.

    Attributes:
        shape: (rows, columns) of the whole grid.
        rows: int64 (n,).
        starts, stops: int64 (n,), the columns start <= column < stop.
        cells: int64 (n,), the tumour cells of each: its length, or less if a hole was filled.
        sums, highs, lows: float64 (n,), sum, maximum and minimum of the values of its tumour cells.
        crossings: float64 (m, 2) row and column, in cells, at which the value crosses the threshold between the centres
            of a tumour cell and of a side neighbour outside; None for a mask, where that is half-way.
        crossing_spans: int64 (m,), the span of that tumour cell.
    """

    shape: tuple[int, int]
    rows: Numbers
    starts: Numbers
    stops: Numbers
    cells: Numbers
    sums: NDArray[np.float64]
    highs: NDArray[np.float64]
    lows: NDArray[np.float64]
    crossings: NDArray[np.float64] | None = None
    crossing_spans: Numbers | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Numbers:
        """Return the columns of each span, int64 (n,)."""
        return self.stops - self.starts

    def holding(self, rows: Numbers, columns: Numbers) -> Numbers:
        """Return the span of each of some cells, all of which must be in a span."""
        stride = self.shape[1] + 2
        return np.searchsorted(self.rows * stride + self.starts, rows * stride + columns, side="right") - 1

    def chosen(self, chosen: Numbers | slice) -> Spans:
        """Select some of the spans, in their order, without crossings."""
        names = ("rows", "starts", "stops", "cells", "sums", "highs", "lows")
        return Spans(shape=self.shape, **{name: getattr(self, name)[chosen] for name in names})


def bands_of(source: PixelSource, *, band_rows: int | None = None) -> Iterator[NDArray[Any]]:
    """Yield the rows of an array or a file in bands from top to bottom: (rows, columns) each.

    Args:
        source: an array, or anything that returns one for ``source[rows, columns]``.
        band_rows: rows per band; by default about BAND_CELLS cells, in whole chunks of the source.

    Raises:
        ValueError: band_rows < 1, or the source is not two-dimensional.
    """
    if len(source.shape) != 2:
        raise ValueError(f"a mask or heatmap is (rows, columns), got {tuple(source.shape)}")
    height, width = source.shape
    if band_rows is None:
        chunk = int((getattr(source, "chunks", None) or (1,))[0])
        band_rows = max(1, BAND_CELLS // max(1, width) // chunk) * chunk
    if band_rows < 1:
        raise ValueError(f"a band has at least 1 row, got {band_rows}")
    for row in range(0, height, band_rows):
        yield np.asarray(source[slice(row, min(row + band_rows, height)), slice(0, width)])


def trace(bands: Iterable[NDArray[Any]], *, threshold: float | None = None) -> Spans:
    """Find the spans of a mask or heatmap given in bands of rows.

    Args:
        bands: bool (rows, columns) of a mask, or floating of a heatmap, from top to bottom and of one width.
        threshold: cells of a heatmap of at least this value are tumour; None for a mask. Beyond the grid all is 0.

    Raises:
        ValueError: no bands, bands of different widths, or a mask that is not bool.
    """
    tracer = _Tracer(threshold)
    for band in bands:
        tracer.add(band)
    return tracer.finished()


class _Tracer:
    """Collects spans band by band."""

    def __init__(self, threshold: float | None) -> None:
        self._threshold = threshold
        self._width: int | None = None
        self._height = 0
        self._above: NDArray[Any] | None = None
        self._spans: list[tuple[NDArray[Any], ...]] = []
        self._crossings: list[tuple[Numbers, Numbers, NDArray[np.float64]]] = []

    def add(self, band: NDArray[Any]) -> None:
        if band.ndim != 2 or self._width not in (None, band.shape[1]):
            raise ValueError(f"bands are (rows, columns) of one width, got {band.shape} after a width of {self._width}")
        if self._threshold is None and band.dtype != np.bool_:
            raise ValueError(f"a mask is bool, got {band.dtype}")
        self._width = band.shape[1]
        inside = band if self._threshold is None else band >= self._threshold
        if inside.any():
            self._spans.append(_spans_of_band(inside, None if self._threshold is None else band, self._height))
        if self._threshold is not None:
            self._cross(band, inside)
        self._height += band.shape[0]

    def finished(self) -> Spans:
        if self._width is None:
            raise ValueError("a mask has at least one band")
        if self._above is not None:
            self._cross_down(np.concatenate([self._above, np.zeros_like(self._above)]), self._height - 1)
        kinds = (np.int64, np.int64, np.int64, np.int64, np.float64, np.float64, np.float64)
        columns = zip(*self._spans, strict=True) if self._spans else [()] * len(kinds)
        joined = [np.concatenate([np.empty(0, dtype=kind), *parts]) for kind, parts in zip(kinds, columns, strict=True)]
        rows, starts, stops, cells, sums, highs, lows = joined
        spans = Spans(
            shape=(self._height, self._width),
            rows=rows,
            starts=starts,
            stops=stops,
            cells=cells,
            sums=sums,
            highs=highs,
            lows=lows,
        )
        if self._threshold is None:
            return spans
        nowhere = np.empty(0, dtype=np.int64)
        cell_rows = np.concatenate([nowhere, *(part[0] for part in self._crossings)])
        cell_columns = np.concatenate([nowhere, *(part[1] for part in self._crossings)])
        points = np.concatenate([np.empty((0, 2)), *(part[2] for part in self._crossings)])
        owners = spans.holding(cell_rows, cell_columns)
        order = np.lexsort((points[:, 1], points[:, 0], owners))
        return replace(spans, crossings=points[order], crossing_spans=owners[order])

    def _cross(self, values: NDArray[Any], inside: NDArray[np.bool_]) -> None:
        """Collect the crossings within a band, and those between it and the row above it."""
        for aside in (-1, 1):
            beside = np.zeros_like(values)
            if aside < 0:
                beside[:, 1:] = values[:, :-1]
            else:
                beside[:, :-1] = values[:, 1:]
            at = np.nonzero(inside & ~(beside >= self._threshold))
            self._collect(at, values[at], beside[at], top=self._height, down=0, aside=aside)
        above = np.zeros_like(values[:1]) if self._above is None else self._above
        self._cross_down(np.concatenate([above, values]), self._height - 1)
        self._above = values[-1:].copy()

    def _cross_down(self, values: NDArray[Any], top: int) -> None:
        """Collect the crossings between each row and the one below it, of the cells of both."""
        inside = values >= self._threshold
        upper, lower = slice(None, -1), slice(1, None)
        for here, there, row, down in ((upper, lower, top, 1), (lower, upper, top + 1, -1)):
            at = np.nonzero(inside[here] & ~inside[there])
            self._collect(at, values[here][at], values[there][at], top=row, down=down, aside=0)

    def _collect(
        self,
        at: tuple[NDArray[np.intp], ...],
        here: NDArray[Any],
        there: NDArray[Any],
        *,
        top: int,
        down: int,
        aside: int,
    ) -> None:
        if not len(here) or self._threshold is None:
            return
        rows, columns = at[0] + top, at[1]
        inner, outer = here.astype(np.float64), there.astype(np.float64)
        share = ((inner - self._threshold) / (inner - outer)).clip(0.0, 1.0)
        points = np.stack([rows + share * down, columns + share * aside], axis=1)
        self._crossings.append((rows.astype(np.int64), columns.astype(np.int64), points))


def _spans_of_band(inside: NDArray[np.bool_], values: NDArray[Any] | None, top: int) -> tuple[NDArray[Any], ...]:
    """(rows, starts, stops, cells, sums, highs, lows) of one band."""
    height, width = inside.shape
    changes = np.empty((height, width + 1), dtype=np.bool_)
    changes[:, 0], changes[:, -1] = inside[:, 0], inside[:, -1]
    np.not_equal(inside[:, 1:], inside[:, :-1], out=changes[:, 1:-1])
    at = np.flatnonzero(changes)
    rows, columns = at[::2] // (width + 1), at % (width + 1)
    starts, stops = columns[::2], columns[1::2]
    cells = stops - starts
    if values is None:
        ones = np.ones(len(rows))
        return rows + top, starts, stops, cells, cells.astype(np.float64), ones, ones
    own = values[inside].astype(np.float64)
    begins = np.cumsum(cells) - cells
    sums, highs, lows = (kind.reduceat(own, begins) for kind in (np.add, np.maximum, np.minimum))
    return rows + top, starts, stops, cells, sums, highs, lows


def label_spans(spans: Spans) -> Numbers:
    """Label the component of each span, int64 (n,), numbered from 0 in the order of first cells; corners connect."""
    return connected(len(spans), *near(spans, spans, step=1, reach=0))


def fill_holes(spans: Spans) -> Spans:
    """Fill every hole: background that no path over sides leads out of, as in scipy's binary_fill_holes.

    The values of filled cells are ignored: sums, highs and lows stay those of the tumour cells.
    """
    is_after_hole = _after_holes(spans)
    if not is_after_hole.any():
        return spans
    first = np.flatnonzero(~is_after_hole)
    last = np.append(first[1:], len(spans)) - 1
    return replace(
        spans,
        rows=spans.rows[first],
        starts=spans.starts[first],
        stops=spans.stops[last],
        cells=np.add.reduceat(spans.cells, first),
        sums=np.add.reduceat(spans.sums, first),
        highs=np.maximum.reduceat(spans.highs, first),
        lows=np.minimum.reduceat(spans.lows, first),
        crossing_spans=None if spans.crossing_spans is None else (np.cumsum(~is_after_hole) - 1)[spans.crossing_spans],
    )


def _after_holes(spans: Spans) -> NDArray[np.bool_]:
    """Find the spans with a hole on their left, bool (n,)."""
    result = np.zeros(len(spans), dtype=np.bool_)
    (left,) = np.nonzero(spans.rows[1:] == spans.rows[:-1])
    if not len(left):
        return result
    nothing = np.broadcast_to(0.0, len(left))
    gaps = Spans(
        shape=spans.shape,
        rows=spans.rows[left],
        starts=spans.stops[left],
        stops=spans.starts[left + 1],
        cells=np.broadcast_to(0, len(left)),
        sums=nothing,
        highs=nothing,
        lows=nothing,
    )
    component = connected(len(gaps), *near(gaps, gaps, step=1, reach=-1))
    is_open = np.zeros(len(gaps), dtype=np.bool_)
    is_open[component[_opens(gaps, spans)]] = True
    result[left + 1] = ~is_open[component]
    return result


def _opens(gaps: Spans, spans: Spans) -> NDArray[np.bool_]:
    """Find the gaps between spans of a row that meet, above or below, the background outside all spans of that row."""
    result = np.zeros(len(gaps), dtype=np.bool_)
    for step in (-1, 1):
        row = gaps.rows + step
        first, end = np.searchsorted(spans.rows, row), np.searchsorted(spans.rows, row, side="right")
        empty = first == end
        some = first.clip(0, len(spans) - 1), (end - 1).clip(0, len(spans) - 1)
        result |= empty | (gaps.starts < spans.starts[some[0]]) | (gaps.stops > spans.stops[some[1]])
    return result


def near(spans: Spans, others: Spans, *, step: int, reach: int) -> tuple[Numbers, Numbers]:
    """Find all pairs (span, other) with the other ``step`` rows below and at most ``reach`` columns between them.

    Reach 0 includes touching corners, -1 only spans with a common column.
    """
    stride, width = spans.shape[1] + 2, spans.shape[1]
    found_ones, found_others = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for at in range(0, len(spans), _SPANS_AT_ONCE):
        few = slice(at, at + _SPANS_AT_ONCE)
        row = spans.rows[few] + step
        top, bottom = (int(one) for one in np.searchsorted(others.rows, (row[0], row[-1] + 1)))
        base = others.rows[top:bottom] * stride
        low = (spans.starts[few] - reach).clip(0, None)
        high = (spans.stops[few] + reach).clip(None, width)
        begin = np.searchsorted(base + others.stops[top:bottom], row * stride + low)
        end = np.searchsorted(base + others.starts[top:bottom], row * stride + high, side="right")
        one, offset = expanded((end - begin).clip(0, None))
        found_ones.append(one + at)
        found_others.append(begin[one] + offset + top)
    return np.concatenate(found_ones), np.concatenate(found_others)


def expanded(counts: Numbers) -> tuple[Numbers, Numbers]:
    """Expand counts: (2, 0, 3) gives (0, 0, 2, 2, 2) and (0, 1, 0, 1, 2)."""
    holder = np.repeat(np.arange(len(counts)), counts)
    begins = np.cumsum(counts) - counts
    return holder, np.arange(len(holder)) - begins[holder]


def connected(count: int, ones: Numbers, others: Numbers) -> Numbers:
    """Return the group of each of ``count`` items, given pairs that belong together, numbered in order from 0."""
    from scipy.sparse import coo_array  # noqa: PLC0415  (slow import)
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    if count == 0:
        return np.empty(0, dtype=np.int64)
    graph = coo_array((np.ones(len(ones), dtype=np.int8), (ones, others)), shape=(count, count))
    return ordered(connected_components(graph, directed=False)[1].astype(np.int64))


def ordered(numbers: Numbers) -> Numbers:
    """Renumber from 0 in the order of first appearance."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
