"""Group deposits that are near each other: exact, whatever the direction of the gap.

Deposits are cut into pieces with boxes around their cells. Two boxes bound the gap of their pieces from below and
above: if the upper bound is within the limit, the deposits are one lesion; if the lower bound is beyond it, these
pieces do not join them; only if neither holds are the pieces halved, down to rectangles full of cells, whose gap is
known. Once two deposits are in one group, their pieces are not compared again. So the work grows with the length of
the outlines, not with the pairs of deposits or the gap; memory holds a few bands of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from staging.lesions.components import Numbers, Spans, connected, expanded, ordered

_SPANS_AT_ONCE = 1 << 19
_PAIRS_AT_ONCE = 1 << 16
_ROUNDING = 1e-9  # cells; a gap of exactly the limit is within it
_AROUND = [(0, 1), (0, 2)] + [(down, aside) for down in (1, 2) for aside in range(-2, 3)]


def merge_near(spans: Spans, components: Numbers, gap: float) -> Numbers:
    """Group components with at most ``gap`` cells between the nearest edges of their cells.

    Exact, whatever the direction of the gap; 0 merges none.

    Args:
        spans: of the grid.
        components: int64 (n,), the component of each span.
        gap: the largest gap, in cells.

    Returns:
        int64 (n,), the group of each span, numbered from 0 in the order of first cells.
    """
    if len(spans) == 0 or gap <= 0:
        return components
    limit = _Limit.of(min(gap, float(sum(spans.shape))))
    # any two cells of a square of this side are within the limit, and those of squares three apart are not
    side = int(limit.gap / math.sqrt(2)) + 1
    ones, others = [], []
    for part, own_rows in _parts(spans, side):
        known, local = np.unique(components[part], return_inverse=True)
        group = _grouped(spans.chosen(part), local, side=side, end=own_rows, limit=limit)
        ones.append(known)
        others.append(known[np.unique(group, return_index=True)[1]][group])
    count = int(components.max()) + 1
    return ordered(connected(count, np.concatenate(ones), np.concatenate(others))[components])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Limit:
    """The largest gap within a group, in cells; ``reach[rows]`` is the most columns for that many rows between."""

    gap: float
    reach: Numbers

    @classmethod
    def of(cls, gap: float) -> _Limit:
        rise = np.arange(int(gap) + 1)
        return cls(gap=gap, reach=(np.sqrt(gap * gap - rise * rise) + _ROUNDING).astype(np.int64))

    def holds(self, down: Numbers, aside: Numbers) -> NDArray[np.bool_]:
        """Return whether gaps of these rows and columns are within the limit."""
        last = len(self.reach) - 1
        result: NDArray[np.bool_] = (down <= last) & (aside <= self.reach[down.clip(None, last)])
        return result


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pieces:
    """Sets of cells, each of one group, as spans of rows sorted by piece.

    Attributes:
        groups: int64 (m,), of each piece.
        counts: int64 (m,), spans of each.
        rows, starts, stops: int64 (n,), the spans.
        tops, lefts, bottoms, rights: int64 (m,), first and last row and column that hold cells of the piece.
        is_full: bool (m,), whether the box is full of cells.
    """

    groups: Numbers
    counts: Numbers
    rows: Numbers
    starts: Numbers
    stops: Numbers
    tops: Numbers
    lefts: Numbers
    bottoms: Numbers
    rights: Numbers
    is_full: NDArray[np.bool_]

    @classmethod
    def of(cls, *, groups: Numbers, counts: Numbers, rows: Numbers, starts: Numbers, stops: Numbers) -> _Pieces:
        first = np.cumsum(counts) - counts
        tops, bottoms = np.minimum.reduceat(rows, first), np.maximum.reduceat(rows, first)
        lefts, rights = np.minimum.reduceat(starts, first), np.maximum.reduceat(stops, first) - 1
        return cls(
            groups=groups,
            counts=counts,
            rows=rows,
            starts=starts,
            stops=stops,
            tops=tops,
            lefts=lefts,
            bottoms=bottoms,
            rights=rights,
            is_full=np.add.reduceat(stops - starts, first) == (bottoms - tops + 1) * (rights - lefts + 1),
        )

    def halved(self, chosen: Numbers) -> tuple[_Pieces, Numbers]:
        """Halve some of the pieces both ways unless they are full; return them and how many each became."""
        which, offset = expanded(self.counts[chosen])
        piece = chosen[which]
        span = (np.cumsum(self.counts) - self.counts)[piece] + offset
        rows, starts, stops = self.rows[span], self.starts[span], self.stops[span]
        middle_row, middle = (self.tops + self.bottoms + 1) // 2, (self.lefts + self.rights + 1) // 2
        # beyond the box: a full one stays whole
        middle_row, middle = (
            np.where(self.is_full, self.bottoms + 1, middle_row)[piece],
            np.where(self.is_full, self.rights + 1, middle)[piece],
        )
        cell = 4 * which + 2 * (rows >= middle_row)
        left, right = np.flatnonzero(starts < middle), np.flatnonzero(stops > middle)
        cell = np.concatenate([cell[left], cell[right] + 1])
        order = np.argsort(cell, kind="stable")
        both = np.concatenate([left, right])[order]
        starts = np.concatenate([starts[left], np.maximum(starts, middle)[right]])[order]
        stops = np.concatenate([np.minimum(stops, middle)[left], stops[right]])[order]
        cells, counts = np.unique(cell, return_counts=True)
        parents = cells // 4
        halves = _Pieces.of(
            groups=self.groups[chosen[parents]], counts=counts, rows=rows[both], starts=starts, stops=stops
        )
        return halves, np.bincount(parents, minlength=len(chosen))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pairs:
    """Pieces to compare, by number: int64 (n,) each."""

    pieces: _Pieces
    ones: Numbers
    others: Numbers

    def __len__(self) -> int:
        return len(self.ones)

    def chosen(self, chosen: NDArray[np.bool_] | slice) -> _Pairs:
        return _Pairs(pieces=self.pieces, ones=self.ones[chosen], others=self.others[chosen])

    def groups(self) -> tuple[Numbers, Numbers]:
        return self.pieces.groups[self.ones], self.pieces.groups[self.others]

    def halved(self) -> _Pairs:
        """Pair each half of the one with each half of the other."""
        chosen, index = np.unique(np.concatenate([self.ones, self.others]), return_inverse=True)
        pieces, counts = self.pieces.halved(chosen)
        begins = np.cumsum(counts) - counts
        one, other = np.split(index, 2)
        pair, offset = expanded(counts[one] * counts[other])
        one, other = one[pair], other[pair]
        down, along = np.divmod(offset, counts[other])
        return _Pairs(pieces=pieces, ones=begins[one] + down, others=begins[other] + along)

    def compared(self, limit: _Limit) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (certainly within the limit, possibly within it)."""
        pieces, one, other = self.pieces, self.ones, self.others
        below, above = pieces.tops[other] - pieces.bottoms[one], pieces.tops[one] - pieces.bottoms[other]
        right, left = pieces.lefts[other] - pieces.rights[one], pieces.lefts[one] - pieces.rights[other]
        least = np.maximum(below, above) - 1, np.maximum(right, left) - 1
        most = -np.minimum(below, above) - 1, -np.minimum(right, left) - 1
        may = limit.holds(least[0].clip(0, None), least[1].clip(0, None))
        is_exact = pieces.is_full[one] & pieces.is_full[other]
        must = may & (is_exact | limit.holds(most[0].clip(0, None), most[1].clip(0, None)))
        return must, may & ~must


def _parts(spans: Spans, side: int) -> Iterator[tuple[slice, int]]:
    """Yield spans of whole bands of ``side`` rows, some at a time, with two more bands, and the row of these."""
    at = 0
    while at < len(spans):
        few = slice(at, at + _SPANS_AT_ONCE)
        entries = np.cumsum((spans.stops[few] - 1) // side - spans.starts[few] // side + 1)
        last = at + max(1, int(np.searchsorted(entries, _SPANS_AT_ONCE, side="right"))) - 1
        end = (int(spans.rows[last]) // side + 1) * side
        begin = at
        at, after = (int(one) for one in np.searchsorted(spans.rows, (end, end + 2 * side)))
        yield slice(begin, after), end


def _grouped(spans: Spans, components: Numbers, *, side: int, end: int, limit: _Limit) -> Numbers:
    """Group components by all pairs within the limit of which one begins above row ``end``."""
    holder, squares = _squares(spans, side)
    order = np.argsort(squares, kind="stable")
    holder, squares = holder[order], squares[order]
    same = np.flatnonzero(squares[1:] == squares[:-1])
    owner = components[holder]
    group = connected(int(components.max()) + 1, owner[same], owner[same + 1])
    known, first, counts = np.unique(squares, return_index=True, return_counts=True)
    stride = _stride(spans, side)
    left = (squares % stride - 2) * side
    pieces = _Pieces.of(
        groups=group[owner[first]],
        counts=counts,
        rows=spans.rows[holder],
        starts=np.maximum(spans.starts[holder], left),
        stops=np.minimum(spans.stops[holder], left + side),
    )
    pairs = _around(pieces, known, stride=stride, own=int(np.searchsorted(known, end // side * stride)))
    return _joined(pairs, np.arange(int(group.max()) + 1), limit)[group]


def _stride(spans: Spans, side: int) -> int:
    return spans.shape[1] // side + 5


def _squares(spans: Spans, side: int) -> tuple[Numbers, Numbers]:
    """Return (span, number of the square) for every square of side x side cells in which a span has cells."""
    first, last = spans.starts // side, (spans.stops - 1) // side
    holder, offset = expanded(last - first + 1)
    return holder, spans.rows[holder] // side * _stride(spans, side) + first[holder] + offset + 2


def _around(pieces: _Pieces, squares: Numbers, *, stride: int, own: int) -> _Pairs:
    """Pair the first ``own`` pieces, one per square, with those of the surrounding squares, nearest first."""
    ones, others = [], []
    for down, aside in _AROUND:
        wanted = squares[:own] + down * stride + aside
        at = np.searchsorted(squares, wanted).clip(0, len(squares) - 1)
        (one,) = np.nonzero(squares[at] == wanted)
        ones.append(one)
        others.append(at[one])
    return _Pairs(pieces=pieces, ones=np.concatenate(ones), others=np.concatenate(others))


def _joined(pairs: _Pairs, group: Numbers, limit: _Limit) -> Numbers:
    """Join the groups of which a pair is within the limit."""
    waiting = [pairs]
    while waiting:
        pairs = waiting.pop()
        if len(pairs) > _PAIRS_AT_ONCE:
            half = len(pairs) // 2
            waiting += [pairs.chosen(slice(half, None)), pairs.chosen(slice(half))]
            continue
        one, other = pairs.groups()
        pairs = pairs.chosen(group[one] != group[other])
        must, may = pairs.compared(limit)
        if must.any():
            one, other = pairs.chosen(must).groups()
            group = connected(int(group.max()) + 1, group[one], group[other])[group]
        one, other = pairs.groups()
        pairs = pairs.chosen(may & (group[one] != group[other]))
        if len(pairs):
            waiting.append(pairs.halved())
    return group
