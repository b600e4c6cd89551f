"""Outlines as one table of edges: found by position, and filled by the non-zero rule on the grid of any Frame.

Vertices are snapped to a lattice of 2**-26 of an array pixel, far finer than anyone draws and far coarser than the
rounding of a Frame's position; everything after that depends only on differences of integers. So a mask painted in
tiles at any offset equals the mask painted whole, bit for bit, and of two outlines that share an edge exactly one gets
a pixel whose centre lies on it (the one to the right of, or below, the edge).

Outlines are ordered so that neighbours in the table are neighbours on the slide, and every few consecutive ones, and
every few consecutive edges, have a common box: a frame costs what is near it, however much lies elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Window

SUBPIXEL_BITS = 26
_SUBPIXELS = 1 << SUBPIXEL_BITS
_BEFORE_CENTRE = (
    _SUBPIXELS // 2 - 1
)  # (position + this) >> bits: the first pixel whose centre does not precede the position
_BAND_PX = 1 << 22  # winding numbers are kept for this many pixels at a time
_BLOCK = 64  # edges, and outlines, that share a box
_BLOCKS_AT_ONCE = 1 << 12
_MARGIN = 2.0**-12  # of a pixel; far more than snapping moves a vertex on any finer grid

_Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """Closed outlines that are painted as one, each by the non-zero rule. Built with Outlines.of.

    Attributes:
        numbers: int64 (outlines,): which of the given ones each is; those without an area are left out.
        bounds: float64 (outlines, 4): left, top, right, bottom in level-0 px.
        ends: float64 (4, edges): x, y of the upper end, x, y of the lower end in level-0 px, outline by outline.
        turn: int8 (edges,): 1 drawn downwards, -1 drawn upwards.
        blocks: float64 (3, blocks): the top, bottom and left of at most _BLOCK consecutive edges of one outline. Edges
            drawn one after another lie close together.
        edges_of: int64 (blocks + 1,): the first edge of each block.
        blocks_of: int64 (outlines + 1,): the first block of each outline.
        groups: float64 (groups, 4): the bounds of every _BLOCK consecutive outlines.
    """

    numbers: _Index
    bounds: NDArray[np.float64]
    ends: NDArray[np.float64]
    turn: NDArray[np.int8]
    blocks: NDArray[np.float64]
    edges_of: _Index
    blocks_of: _Index
    groups: NDArray[np.float64]

    @classmethod
    def of(cls, outlines: Iterable[NDArray[np.float64]]) -> Outlines:
        """Prepare outlines, float64 (n, 2) x, y in level-0 px each; the last vertex joins the first."""
        given = list(outlines)
        drawn = np.flatnonzero([len(outline) > 0 for outline in given])
        sizes = np.array([len(given[number]) for number in drawn], dtype=np.int64)
        points = np.concatenate([given[number] for number in drawn] or [np.empty((0, 2))])
        starts = np.cumsum(sizes) - sizes
        low, high = (_reduced(extreme, points, starts) for extreme in (np.minimum, np.maximum))
        kept = np.flatnonzero((low < high).all(axis=1))
        kept = kept[_neighbours_first((low[kept] + high[kept]) / 2)]
        bounds = np.concatenate([low[kept], high[kept]], axis=1)
        points, sizes = points[_ranges(starts[kept], sizes[kept])], sizes[kept]
        starts = np.cumsum(sizes) - sizes
        following = np.arange(1, len(points) + 1)
        following[starts + sizes - 1] = starts
        x, y = np.ascontiguousarray(points.T)
        x_end, y_end = x[following], y[following]
        down = y < y_end
        ends = np.empty((4, len(points)))
        for row, (upper, lower) in enumerate(((x, x_end), (y, y_end), (x_end, x), (y_end, y))):
            ends[row] = np.where(down, upper, lower)
        count = -(-sizes // _BLOCK)
        within = _ranges(np.zeros_like(count), count)
        first = np.repeat(starts, count) + within * _BLOCK
        extents = (
            _reduced(np.minimum, ends[1], first),
            _reduced(np.maximum, ends[3], first),
            _reduced(np.minimum, np.minimum(x, x_end), first),
        )
        every = np.arange(0, len(kept), _BLOCK)
        corners = _reduced(np.minimum, bounds[:, :2], every), _reduced(np.maximum, bounds[:, 2:], every)
        return cls(
            numbers=drawn[kept],
            bounds=bounds,
            ends=ends,
            turn=np.where(down, 1, -1).astype(np.int8),
            blocks=np.stack(extents),
            edges_of=np.append(first, len(points)),
            blocks_of=np.append(0, np.cumsum(count)),
            groups=np.concatenate(corners, axis=1),
        )

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of all in level-0 px; left is greater than right without an outline."""
        if not len(self.bounds):
            return math.inf, math.inf, -math.inf, -math.inf
        (left, top), (right, bottom) = self.groups[:, :2].min(axis=0).tolist(), self.groups[:, 2:].max(axis=0).tolist()
        return left, top, right, bottom

    def meeting(self, box: tuple[float, float, float, float]) -> list[int]:
        """The numbers of the outlines whose bounds meet a box (left, top, right, bottom), ascending."""
        numbers: list[int] = sorted(self.numbers[self._meeting(*box)].tolist())
        return numbers

    def union(self, frame: Frame) -> NDArray[np.bool_] | None:
        """The pixels whose centres lie in at least one outline, bool (rows, columns); None if no outline is near."""
        rows, columns = frame.shape
        height = max(1, _BAND_PX // columns)
        if height >= rows:
            return self._painted(frame)
        inside = None
        for row in range(0, rows, height):
            band = Window(row=row, column=0, height=min(height, rows - row), width=columns)
            found = self._painted(frame.part(band))
            if found is not None:
                inside = np.zeros(frame.shape, dtype=np.bool_) if inside is None else inside
                inside[band.slices] = found
        return inside

    def count_passes(self, frame: Frame, begun: NDArray[np.int32]) -> None:
        """Add +1 where edges begin to touch pixels of a row, and -1 after the last one.

        Args:
            frame: the grid; an edge within _MARGIN of a pixel's side counts as touching it.
            begun: int32 (rows, columns + 1), modified; the running sum along a row is the number of edges in a pixel.
        """
        near, _ = self._near(frame)
        for edges in self._edges(near, frame):
            _count_passes(edges.ends, frame, begun)

    def _painted(self, frame: Frame) -> NDArray[np.bool_] | None:
        near, window = self._near(frame)
        if window is None:
            return None
        begun = np.zeros((window.height, window.width + 1), dtype=np.int32)
        for edges in self._edges(near, frame):
            _begin(edges, frame, window, begun)
        np.cumsum(begun, axis=1, out=begun)
        inside = np.zeros(frame.shape, dtype=np.bool_)
        inside[window.slices] = begun[:, :-1] > 0
        return inside

    def _near(self, frame: Frame) -> tuple[_Index, Window | None]:
        """Which outlines may hold pixels, and the window of those pixels."""
        around = 2 * frame.downsample
        near = self._meeting(frame.x - around, frame.y - around, frame.right + around, frame.bottom + around)
        if not len(near):
            return near, None
        (left, top), (right, bottom) = self.bounds[near, :2].min(axis=0), self.bounds[near, 2:].max(axis=0)
        (row, end_row), (column, end_column) = (
            (max(0, math.floor(low) - 1), min(length, math.ceil(high) + 1))
            for (low, high), length in zip(frame.fractions((left, right), (top, bottom)), frame.shape, strict=True)
        )
        if row >= end_row or column >= end_column:
            return near[:0], None
        return near, Window.between(row=row, column=column, bottom=end_row, right=end_column)

    def _meeting(self, left: float, top: float, right: float, bottom: float) -> _Index:
        """Which outlines' bounds meet a box."""
        groups = np.flatnonzero(_meets(self.groups, left, top, right, bottom))
        starts = groups * _BLOCK
        members = _ranges(starts, np.minimum(starts + _BLOCK, len(self.bounds)) - starts)
        return members[_meets(self.bounds[members], left, top, right, bottom)]

    def _edges(self, near: _Index, frame: Frame) -> Iterator[_Edges]:
        """The edges of outlines, many at a time, without most of those that affect no row of the frame.

        Those are above, below or to its right; the ones to its left are needed, as winding numbers are counted from
        them.
        """
        rows, columns = frame.shape
        (_, right), (top, bottom) = frame.positions((-1, rows + 1), (-1, columns + 1))
        count = self.blocks_of[near + 1] - self.blocks_of[near]
        blocks, owner = _ranges(self.blocks_of[near], count), np.repeat(np.arange(len(near)), count)
        above, below, left = self.blocks[:, blocks]
        kept = (below >= top) & (above <= bottom) & (left <= right)
        blocks, owner = blocks[kept], owner[kept]
        first_of_owner = _begins(owner)
        cuts = first_of_owner[_begins(first_of_owner // _BLOCKS_AT_ONCE)]
        for start, stop in pairwise([*cuts.tolist(), len(blocks)]):
            some = blocks[start:stop]
            sizes = self.edges_of[some + 1] - self.edges_of[some]
            edges = _ranges(self.edges_of[some], sizes)
            yield _Edges(self.ends[:, edges], self.turn[edges], np.repeat(owner[start:stop], sizes))


def lattice(fractions: NDArray[np.float64]) -> _Index:
    """Rows or columns of a frame as whole numbers of 2**-SUBPIXEL_BITS pixels."""
    return np.rint(fractions * _SUBPIXELS).astype(np.int64)


class _Edges(NamedTuple):
    """Edges as in Outlines, and the outline of each, numbered from 0."""

    ends: NDArray[np.float64]
    turn: NDArray[np.int8]
    owner: _Index


def _begin(edges: _Edges, frame: Frame, window: Window, begun: NDArray[np.int32]) -> None:
    """Add +1 where a row enters an outline and -1 where it leaves one.

    Winding numbers are the running sums, along a row and for one outline, of the crossings before.

    Args:
        edges: of whole outlines.
        frame: the grid.
        window: the pixels that may be inside.
        begun: int32 (height, width + 1) of the window, modified; the running sum along a row is the number of outlines
            that a pixel lies in.
    """
    ends, turn, owner = edges
    (top, bottom), (x_top, x_bottom) = (lattice(along) for along in frame.fractions(ends[::2], ends[1::2]))
    start = np.clip((top + _BEFORE_CENTRE) >> SUBPIXEL_BITS, window.row, window.bottom)
    stop = np.clip((bottom + _BEFORE_CENTRE) >> SUBPIXEL_BITS, window.row, window.bottom)
    edge = np.repeat(np.arange(len(start)), stop - start)
    if not len(edge):
        return
    row = _ranges(start, stop - start)
    depth, height = (row << SUBPIXEL_BITS) + _SUBPIXELS // 2 - top[edge], (bottom - top)[edge]
    across = (x_bottom - x_top)[edge]
    run = np.ceil(across.astype(np.float64) * depth / height).astype(np.int64)
    # Exact: products beyond 64 bits wrap around, but their difference is small and comes out right.
    run -= (run * height - across * depth) // height
    crossing = x_top[edge] + run
    column = np.clip((crossing + _BEFORE_CENTRE) >> SUBPIXEL_BITS, window.column, window.right) - window.column
    # One sort puts the crossings of each outline and row in order; the lowest bit is the direction.
    width = window.width + 1
    key = ((owner[edge] * window.height + row - window.row) * width + column) * 2 + (turn[edge] > 0)
    key.sort()
    pixel = key >> 1
    line = pixel // width
    winding = np.cumsum((key & 1) * 2 - 1)
    first = _begins(line)
    winding -= np.repeat(np.append(0, winding)[first], np.diff(np.append(first, len(line))))
    is_inside = winding != 0
    was_inside = np.append(False, is_inside[:-1])
    was_inside[first] = False
    changed = np.flatnonzero(is_inside != was_inside)
    np.add.at(
        begun.reshape(-1),
        pixel[changed] % (window.height * width),
        np.where(is_inside[changed], np.int32(1), np.int32(-1)),
    )


def _count_passes(ends: NDArray[np.float64], frame: Frame, begun: NDArray[np.int32]) -> None:
    """See Outlines.count_passes."""
    rows, columns = frame.shape
    (top, bottom), (x_top, x_bottom) = frame.fractions(ends[::2], ends[1::2])
    start = np.clip(np.floor(top - _MARGIN), 0, rows).astype(np.int64)
    stop = np.clip(np.floor(bottom + _MARGIN) + 1, 0, rows).astype(np.int64)
    count = np.maximum(stop - start, 0)
    edge, row = np.repeat(np.arange(len(count)), count), _ranges(start, count)
    height = np.where(bottom > top, bottom - top, 1.0)[edge]
    # The part of the edge within the row; all of it for a horizontal edge.
    upper = np.clip((row - _MARGIN - top[edge]) / height, 0, 1)
    lower = np.where(bottom > top, 0.0, 1.0)[edge] + np.clip((row + 1 + _MARGIN - top[edge]) / height, 0, 1)
    lower = np.minimum(lower, 1)
    across = (x_bottom - x_top)[edge]
    x_upper, x_lower = x_top[edge] + across * upper, x_top[edge] + across * lower
    first = np.clip(np.floor(np.minimum(x_upper, x_lower) - _MARGIN), 0, columns).astype(np.int64)
    end = np.clip(np.floor(np.maximum(x_upper, x_lower) + _MARGIN) + 1, 0, columns).astype(np.int64)
    flat = begun.reshape(-1)
    np.add.at(flat, row * (columns + 1) + first, np.int32(1))
    np.add.at(flat, row * (columns + 1) + end, np.int32(-1))


def _meets(bounds: NDArray[np.float64], left: float, top: float, right: float, bottom: float) -> NDArray[np.bool_]:
    lefts, tops, rights, bottoms = bounds.T
    return np.asarray((lefts <= right) & (tops <= bottom) & (rights >= left) & (bottoms >= top))


def _begins(labels: _Index) -> _Index:
    """Where stretches of equal labels begin."""
    is_first = np.ones(len(labels), dtype=np.bool_)
    np.not_equal(labels[1:], labels[:-1], out=is_first[1:])
    return np.flatnonzero(is_first)


def _neighbours_first(centres: NDArray[np.float64]) -> _Index:
    """An order of points in which consecutive ones lie close together: by strips along x, within each by y."""
    strips = max(1, round(math.sqrt(len(centres) / _BLOCK)))
    rank = np.empty(len(centres), dtype=np.int64)
    rank[np.argsort(centres[:, 0], kind="stable")] = np.arange(len(centres))
    return np.lexsort((centres[:, 1], rank * strips // max(1, len(centres))))


def _ranges(starts: _Index, counts: _Index) -> _Index:
    """start, start + 1, ... of each, ``count`` of them, one after another."""
    offsets: _Index = np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return offsets


def _reduced(extreme: np.ufunc, values: NDArray[np.float64], starts: _Index) -> NDArray[np.float64]:
    """The extreme of the values from each start to the next, along the first axis; nothing without a start."""
    return np.asarray(extreme.reduceat(values, starts, axis=0) if len(starts) else values[:0])
