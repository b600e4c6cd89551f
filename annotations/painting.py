"""Outlines to pixels: a pixel is inside when its centre is, by the non-zero rule, on the grid of any Frame.

Vertices are snapped to a lattice of 2**-26 of an array pixel, far finer than anyone draws and far coarser than the
rounding of a Frame's position; everything after that depends only on differences of integers. So a mask painted in
tiles at any offset equals the mask painted whole, bit for bit, and of two outlines that share an edge exactly one gets
a pixel whose centre lies on it (the one to the right of, or below, the edge).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from wsi.geometry import Frame, TileGrid, Window
from wsi.raster import Mask

_SUBPIXEL_BITS = 26
_SUBPIXELS = 1 << _SUBPIXEL_BITS
_BEFORE_CENTRE = (
    _SUBPIXELS // 2 - 1
)  # (position + this) >> bits: the first pixel whose centre does not precede the position
_BAND_PX = 1 << 22  # winding numbers are kept for this many pixels at a time
_BLOCK = 64  # edges
_MARGIN = 2.0**-12  # of a pixel; far more than snapping moves a vertex on any finer grid
_FINE_PX = 512  # side of the tiles in which level 0 is painted for coarser grids

# Outlines are drawn by hand: an island of tumour may extend a little over the edge of the cut-out it lies in.
INSIDE_SHARE = 0.9
_PROBE_PX = 256


def rasterize(annotations: Iterable[Annotation], frame: Frame) -> Mask:
    """The tumour among annotations: see Painting. For many frames of one slide, build the Painting once."""
    return Painting.of(annotations).mask(frame)


def polygon_mask(outlines: Iterable[NDArray[np.float64]], frame: Frame) -> Mask:
    """The union of polygons, each filled by the non-zero rule.

    Args:
        outlines: float64 (n, 2) x, y in level-0 px each; the last vertex joins the first.
        frame: the grid.
    """
    return Mask(frame=frame, array=_union([_Edges.of(outline) for outline in outlines], frame))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Tumour outlines and the cut-outs that apply to them."""

    tumour: tuple[Annotation, ...]
    cut_outs: tuple[Annotation, ...]


def layers(annotations: Iterable[Annotation]) -> tuple[Layer, ...]:
    """Which cut-outs apply to which tumour outlines; the tumour is the union over layers of tumour minus cut-outs.

    A cut-out applies to every tumour outline except those that lie inside it: an island of tumour within a cut-out is
    tumour again (and may have cut-outs of its own). Inside means by INSIDE_SHARE of the island's area, the island being
    the smaller of the two. Outlines without area and other roles are left out.
    """
    drawn = [annotation for annotation in annotations if annotation.outline is not None]
    tumour = [annotation for annotation in drawn if annotation.role is Role.TUMOUR]
    cut_outs = [annotation for annotation in drawn if annotation.role is Role.CUT_OUT]
    cut_edges = [_Edges.of(_outline(cut_out)) for cut_out in cut_outs]
    by_cut_outs: dict[tuple[int, ...], list[Annotation]] = {}
    for annotation in tumour:
        edges = _Edges.of(_outline(annotation))
        applying = tuple(index for index, cut in enumerate(cut_edges) if not _lies_inside(edges, cut))
        by_cut_outs.setdefault(applying, []).append(annotation)
    return tuple(
        Layer(tumour=tuple(members), cut_outs=tuple(cut_outs[index] for index in applying))
        for applying, members in by_cut_outs.items()
    )


class Cover(IntEnum):
    """How much of a square is tumour."""

    NONE = 0
    ALL = 1
    PART = 2
    """An edge crosses it: only painting its pixels can tell, and all or none of them may be tumour."""


@dataclass(frozen=True, slots=True, eq=False)
class Painting:
    """The tumour of one slide, ready to be painted on any grid.

    Tumour is the union of the tumour outlines minus the cut-outs, where an island of tumour that lies inside a cut-out
    is tumour again (see layers). Outlines cross themselves in real files: within one outline the non-zero rule applies,
    so that nothing drawn vanishes. Build it with Painting.of.

    Example: the mask of one patch, without an intermediate file::

        painting = Painting.of(read_annotations("tumor_009.xml"))
        patch = slide.read_at(0.5, Region(x=61_000, y=120_000, width=1024, height=1024))
        mask = painting.mask(patch.frame)  # mask.array: bool, the patch's rows and columns
    """

    _layers: tuple[tuple[_Outlines, _Outlines], ...]

    @classmethod
    def of(cls, annotations: Iterable[Annotation]) -> Painting:
        """Prepare the tumour and cut-out outlines among annotations; other roles and kinds without area are ignored."""
        return cls(
            tuple((_Outlines.of(layer.tumour), _Outlines.of(layer.cut_outs)) for layer in layers(annotations)),
        )

    def mask(self, frame: Frame, *, reduce: Literal["centre", "max"] = "centre") -> Mask:
        """The tumour on a grid, the same whether whole or in tiles; only outlines near it are processed.

        Args:
            frame: the grid.
            reduce: what a pixel larger than a level-0 px represents. ``centre``: the point at its centre, so that areas
                are right on average and lesions smaller than a pixel may vanish. ``max``: all level-0 px whose centres
                lie in it, so that the mask is the block maximum of the level-0 mask and no lesion vanishes. Level 0 is
                painted tile by tile, only where an edge passes. No effect at a downsample of 1 or below.
        """
        if reduce not in ("centre", "max"):
            raise ValueError(f"masks must be reduced by centre or max, got {reduce!r}")
        if reduce == "max" and frame.downsample > 1:
            return Mask(frame=frame, array=self._block_maximum(frame))
        return Mask(frame=frame, array=self._at_centres(frame))

    def cover(self, frame: Frame) -> NDArray[np.int8]:
        """How much of every pixel of a coarse grid is tumour, without looking at its finer pixels.

        For masks in tiles of n px, use ``frame.coarser(n)``: a tile that no edge crosses is tumour throughout or
        nowhere, as the point at its centre is.

        Args:
            frame: the grid; its pixels are the squares in question.

        Returns:
            int8 (rows, columns) of Cover.
        """
        cover = self._at_centres(frame).astype(np.int8)
        cover[self._is_passed(frame)] = Cover.PART
        return cover

    def _at_centres(self, frame: Frame) -> NDArray[np.bool_]:
        painted = None
        for tumour, cut_outs in self._layers:
            layer = tumour.union(frame)
            if layer is None:
                continue
            cut = cut_outs.union(frame)
            if cut is not None:
                layer &= ~cut
            painted = layer if painted is None else painted | layer
        return np.zeros(frame.shape, dtype=np.bool_) if painted is None else painted

    def _is_passed(self, frame: Frame) -> NDArray[np.bool_]:
        rows, columns = frame.shape
        begun = np.zeros((rows, columns + 1), dtype=np.int32)
        for tumour, cut_outs in self._layers:
            tumour.count_passes(frame, begun)
            cut_outs.count_passes(frame, begun)
        return np.asarray(np.cumsum(begun, axis=1)[:, :columns] > 0)

    def _block_maximum(self, frame: Frame) -> NDArray[np.bool_]:
        found = np.zeros(frame.shape, dtype=np.bool_)
        whole = frame.region
        finest = Frame(x=whole.x, y=whole.y, downsample=1.0, shape=(whole.height, whole.width), mpp=frame.mpp)
        grid = TileGrid(frame=finest, tile_shape=(_FINE_PX, _FINE_PX))
        cover = self.cover(finest.coarser(_FINE_PX))
        for row, column in np.argwhere(cover != Cover.NONE):
            tile = grid.tile(int(row), int(column))
            rows, columns = _offsets_in(frame, tile)
            own_rows, own_columns = _within(rows, frame.shape[0]), _within(columns, frame.shape[1])
            rows, columns = rows[own_rows], columns[own_columns]
            if not (len(rows) and len(columns)):
                continue
            if cover[row, column] == Cover.ALL:
                found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
            else:
                _merge_maximum(self._at_centres(tile)[own_rows, own_columns], rows, columns, found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Edges:
    """The edges of one closed outline, each from its upper to its lower end, in level-0 px.

    Attributes:
        ends: float64 (4, n): x, y of the upper end, x, y of the lower end; in drawing order.
        turn: int32 (n,): +1 drawn downwards, -1 drawn upwards.
        blocks: float64 (3, blocks): the top, bottom and left of every _BLOCK consecutive edges. Edges drawn one after
            another lie close together, so this is a spatial index.
        bounds: left, top, right, bottom.
    """

    ends: NDArray[np.float64]
    turn: NDArray[np.int32]
    blocks: NDArray[np.float64]
    bounds: tuple[float, float, float, float]

    @classmethod
    def of(cls, outline: NDArray[np.float64]) -> _Edges:
        x, y = np.ascontiguousarray(outline.T)
        if not len(x):
            return cls(
                ends=np.empty((4, 0)),
                turn=np.empty(0, dtype=np.int32),
                blocks=np.empty((3, 0)),
                bounds=(math.inf, math.inf, -math.inf, -math.inf),
            )
        x_end, y_end = np.roll(x, -1), np.roll(y, -1)
        down = y < y_end
        ends = np.where(down, (x, y, x_end, y_end), (x_end, y_end, x, y))
        starts = np.arange(0, len(x), _BLOCK)
        blocks = np.stack(
            [
                np.minimum.reduceat(ends[1], starts),
                np.maximum.reduceat(ends[3], starts),
                np.minimum.reduceat(np.minimum(x, x_end), starts),
            ]
        )
        return cls(
            ends=ends,
            turn=np.where(down, 1, -1).astype(np.int32),
            blocks=blocks,
            bounds=(float(x.min()), float(y.min()), float(x.max()), float(y.max())),
        )

    @property
    def has_area(self) -> bool:
        left, top, right, bottom = self.bounds
        return left < right and top < bottom

    def near(self, frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
        """(ends, turn) without most of the edges above, below or to the right of the frame, which affect no row of it.

        Those to its left are needed: winding numbers are counted from them.
        """
        rows, columns = frame.shape
        (_, right), (top, bottom) = frame.positions((-1, rows + 1), (-1, columns + 1))
        kept = np.flatnonzero((self.blocks[1] >= top) & (self.blocks[0] <= bottom) & (self.blocks[2] <= right))
        if len(kept) == self.blocks.shape[1]:
            return self.ends, self.turn
        index = (kept[:, np.newaxis] * _BLOCK + np.arange(_BLOCK)).ravel()
        index = index[index < len(self.turn)]
        return self.ends[:, index], self.turn[index]


@dataclass(frozen=True, slots=True, eq=False)
class _Outlines:
    """Outlines that are painted as one, each by the non-zero rule.

    Attributes:
        edges: of each outline that can hold a pixel.
        bounds: float64 (outlines, 4): left, top, right, bottom.
    """

    edges: tuple[_Edges, ...]
    bounds: NDArray[np.float64]

    @classmethod
    def of(cls, annotations: Iterable[Annotation]) -> _Outlines:
        return cls.around([_Edges.of(_outline(annotation)) for annotation in annotations])

    @classmethod
    def around(cls, edges: Iterable[_Edges]) -> _Outlines:
        held = tuple(one for one in edges if one.has_area)
        return cls(held, np.array([one.bounds for one in held], dtype=np.float64).reshape(-1, 4))

    def union(self, frame: Frame) -> NDArray[np.bool_] | None:
        """The pixels whose centres lie in at least one outline; None if no outline is near."""
        inside = None
        for edges, window in self._near(frame):
            is_blank = inside is None
            if inside is None:
                inside = np.zeros(frame.shape, dtype=np.bool_)
            _fill(*edges.near(frame), frame, window, inside, is_blank=is_blank)
        return inside

    def count_passes(self, frame: Frame, begun: NDArray[np.int32]) -> None:
        """Add +1 where edges begin to touch pixels of a row, and -1 after the last one.

        Args:
            frame: the grid.
            begun: int32 (rows, columns + 1), modified; the running sum along a row is the number of edges in a pixel.
        """
        for edges, _ in self._near(frame):
            _count_passes(edges.near(frame)[0], frame, begun)

    def _near(self, frame: Frame) -> Iterator[tuple[_Edges, Window]]:
        """The outlines that may hold pixels, each with the window of those pixels."""
        rows, columns = frame.fractions(self.bounds[:, ::2], self.bounds[:, 1::2])
        first = np.maximum(np.floor(np.stack([rows[:, 0], columns[:, 0]], axis=1)) - 1, 0)
        end = np.minimum(np.ceil(np.stack([rows[:, 1], columns[:, 1]], axis=1)) + 1, frame.shape)
        for index in np.flatnonzero((first < end).all(axis=1)):
            (row, column), (bottom, right) = first[index].astype(int).tolist(), end[index].astype(int).tolist()
            yield self.edges[index], Window.between(row=row, column=column, bottom=bottom, right=right)


def _fill(
    ends: NDArray[np.float64],
    turn: NDArray[np.int32],
    frame: Frame,
    window: Window,
    inside: NDArray[np.bool_],
    *,
    is_blank: bool,
) -> None:
    """Set the pixels of one outline: winding numbers are the running sums, along a row, of the crossings before.

    ``is_blank`` promises that nothing is set yet, which saves a pass.
    """
    (top, bottom), (x_top, x_bottom) = (_lattice(along) for along in frame.fractions(ends[::2], ends[1::2]))
    step = max(1, _BAND_PX // window.width)
    for band_row in range(window.row, window.bottom, step):
        band_end = min(window.bottom, band_row + step)
        start = np.clip((top + _BEFORE_CENTRE) >> _SUBPIXEL_BITS, band_row, band_end)
        stop = np.clip((bottom + _BEFORE_CENTRE) >> _SUBPIXEL_BITS, band_row, band_end)
        count = stop - start
        total = int(count.sum())
        if not total:
            continue
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(total) - np.repeat(np.cumsum(count) - count - start, count)
        depth, height = (row << _SUBPIXEL_BITS) + _SUBPIXELS // 2 - top[edge], (bottom - top)[edge]
        across = (x_bottom - x_top)[edge]
        run = np.ceil(across.astype(np.float64) * depth / height).astype(np.int64)
        # Exact: products beyond 64 bits wrap around, but their difference is small and comes out right.
        run -= (run * height - across * depth) // height
        crossing = x_top[edge] + run
        column = np.clip((crossing + _BEFORE_CENTRE) >> _SUBPIXEL_BITS, window.column, window.right) - window.column
        winding = np.zeros((band_end - band_row, window.width + 1), dtype=np.int32)
        np.add.at(winding.reshape(-1), (row - band_row) * (window.width + 1) + column, turn[edge])
        np.cumsum(winding, axis=1, out=winding)
        part = inside[band_row:band_end, window.column : window.right]
        if is_blank:
            part[...] = winding[:, :-1]
        else:
            part |= winding[:, :-1] != 0


def _count_passes(ends: NDArray[np.float64], frame: Frame, begun: NDArray[np.int32]) -> None:
    """See _Outlines.count_passes; an edge within _MARGIN of a pixel's side counts as touching it."""
    rows, columns = frame.shape
    (top, bottom), (x_top, x_bottom) = frame.fractions(ends[::2], ends[1::2])
    start = np.clip(np.floor(top - _MARGIN), 0, rows).astype(np.int64)
    stop = np.clip(np.floor(bottom + _MARGIN) + 1, 0, rows).astype(np.int64)
    count = np.maximum(stop - start, 0)
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count - start, count)
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


def _offsets_in(frame: Frame, tile: Frame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of a frame that hold the centres of a tile's rows and columns; they may lie beyond it."""
    x, y = tile.centres(np.arange(tile.shape[0]), np.arange(tile.shape[1]))
    rows, columns = (_lattice(along) >> _SUBPIXEL_BITS for along in frame.fractions(x, y))
    return rows, columns


def _within(offsets: NDArray[np.int64], length: int) -> slice:
    """Where ascending offsets are 0 to length - 1."""
    start, stop = np.searchsorted(offsets, (0, length))
    return slice(int(start), int(stop))


def _merge_maximum(
    fine: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64], found: NDArray[np.bool_]
) -> None:
    """Set the pixels of ``found`` that hold a finer set one; rows and columns say where the finer ones lie."""
    first_rows = np.flatnonzero(np.diff(rows, prepend=-1))
    first_columns = np.flatnonzero(np.diff(columns, prepend=-1))
    blocks = np.logical_or.reduceat(fine, first_rows, axis=0)
    blocks = np.logical_or.reduceat(blocks, first_columns, axis=1)
    found[np.ix_(rows[first_rows], columns[first_columns])] |= blocks


def _lattice(fractions: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.rint(fractions * _SUBPIXELS).astype(np.int64)


def _union(edges: Iterable[_Edges], frame: Frame) -> NDArray[np.bool_]:
    inside = _Outlines.around(edges).union(frame)
    return np.zeros(frame.shape, dtype=np.bool_) if inside is None else inside


def _lies_inside(island: _Edges, cut_out: _Edges) -> bool:
    """Whether nearly all of one outline lies in another, larger one; decided on the island's own grid."""
    left, top, right, bottom = island.bounds
    other_left, other_top, other_right, other_bottom = cut_out.bounds
    if right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top:
        return False
    grid = _probe(island)
    if grid is None:
        return False
    own = _union([island], grid)
    area = int(own.sum())
    common = int((own & _union([cut_out], grid)).sum())
    return common >= INSIDE_SHARE * area > 0 and _is_smaller(island, cut_out)


def _is_smaller(one: _Edges, other: _Edges) -> bool:
    """Decided on one grid over both, on which outlines around the same pixels are equal, however they were drawn."""
    grid = _probe(one, other)
    return grid is not None and int(_union([one], grid).sum()) < int(_union([other], grid).sum())


def probe_frame(outline: NDArray[np.float64]) -> Frame | None:
    """A frame over an outline's bounding box with 256 pixels along its longer side; None for a single point."""
    return _probe(_Edges.of(outline))


def _probe(*outlines: _Edges) -> Frame | None:
    lefts, tops, rights, bottoms = zip(*(edges.bounds for edges in outlines), strict=True)
    left, top, right, bottom = min(lefts), min(tops), max(rights), max(bottoms)
    side = max(right - left, bottom - top) / _PROBE_PX
    if not side > 0:
        return None
    shape = max(1, math.ceil((bottom - top) / side)), max(1, math.ceil((right - left) / side))
    return Frame(x=left, y=top, downsample=side, shape=shape, mpp=None)


def _outline(annotation: Annotation) -> NDArray[np.float64]:
    outline = annotation.outline
    return np.empty((0, 2)) if outline is None else outline
