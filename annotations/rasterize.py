"""Outlines to pixels: a pixel is inside when its centre is, by the non-zero rule, on whatever grid a Frame gives.

Vertices are brought onto a lattice of 1/65,536 of an array pixel and everything after that depends on differences of
whole numbers only. So a mask cut into tiles at any offset equals the mask made whole, bit for bit, and of two outlines
that share an edge exactly one takes a pixel whose centre lies on it (the one to the right of, or below, the edge).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from wsi.geometry import Frame
from wsi.raster import Mask

_SUBPIXEL_BITS = 16
_SUBPIXELS = 1 << _SUBPIXEL_BITS
_BEFORE_CENTRE = _SUBPIXELS // 2 - 1  # (position + this) >> bits: the first pixel whose centre is not before it
_BAND_PX = 1 << 22  # winding numbers are held for this many pixels at a time

# Outlines are drawn by hand: an island of tumour may stray a little over the edge of the cut-out it lies in.
INSIDE_SHARE = 0.9
_PROBE_PX = 256


def rasterize(annotations: Iterable[Annotation], frame: Frame) -> Mask:
    """The tumour among annotations: see Painting. For many frames of one slide make the Painting once."""
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
    tumour again (and may have cut-outs of its own). Inside means INSIDE_SHARE of the island's area, and being the
    smaller one of the two. Outlines without area and other roles are left out.
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


@dataclass(frozen=True, slots=True, eq=False)
class Painting:
    """The tumour of one slide, ready to be put on any grid.

    Tumour is the union of the tumour outlines minus the cut-outs, where an island of tumour that lies inside a cut-out
    is tumour again (see layers). Outlines cross themselves in real files: within one outline the non-zero rule holds,
    so that nothing drawn vanishes. Build it with Painting.of.
    """

    _layers: tuple[tuple[tuple[_Edges, ...], tuple[_Edges, ...]], ...]

    @classmethod
    def of(cls, annotations: Iterable[Annotation]) -> Painting:
        """Prepare the tumour and cut-out outlines among annotations; other roles and kinds without area are ignored."""
        return cls(
            tuple(
                (
                    tuple(_Edges.of(_outline(annotation)) for annotation in layer.tumour),
                    tuple(_Edges.of(_outline(annotation)) for annotation in layer.cut_outs),
                )
                for layer in layers(annotations)
            )
        )

    def mask(self, frame: Frame) -> Mask:
        """The tumour on a grid. Only outlines whose bounding box meets the frame are touched."""
        painted = np.zeros(frame.shape, dtype=np.bool_)
        for tumour, cut_outs in self._layers:
            layer = _union(tumour, frame)
            if layer.any():
                layer &= ~_union(cut_outs, frame)
                painted |= layer
        return Mask(frame=frame, array=painted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Edges:
    """The edges of one closed outline that are not level, each from its upper to its lower end, in level-0 px."""

    x_top: NDArray[np.float64]
    y_top: NDArray[np.float64]
    x_bottom: NDArray[np.float64]
    y_bottom: NDArray[np.float64]
    x_left: NDArray[np.float64]
    turn: NDArray[np.int32]  # +1 drawn downwards, -1 drawn upwards
    bounds: tuple[float, float, float, float]  # left, top, right, bottom

    @classmethod
    def of(cls, outline: NDArray[np.float64]) -> _Edges:
        x, y = np.ascontiguousarray(outline.T)
        # Before level edges go: a vertex may be known as the end of a sloped edge only.
        empty = len(x) == 0
        left, right = (math.inf, -math.inf) if empty else (float(x.min()), float(x.max()))
        top, bottom = (math.inf, -math.inf) if empty else (float(y.min()), float(y.max()))
        x_end, y_end = np.roll(x, -1), np.roll(y, -1)
        sloped = y != y_end
        x, y, x_end, y_end = x[sloped], y[sloped], x_end[sloped], y_end[sloped]
        down = y < y_end
        x_top, x_bottom = np.where(down, x, x_end), np.where(down, x_end, x)
        return cls(
            x_top=x_top,
            y_top=np.where(down, y, y_end),
            x_bottom=x_bottom,
            y_bottom=np.where(down, y_end, y),
            x_left=np.minimum(x_top, x_bottom),
            turn=np.where(down, 1, -1).astype(np.int32),
            bounds=(left, top, right, bottom),
        )

    def near(self, frame: Frame) -> _Edges:
        """Without the edges that lie above, below or to the right of the frame: no row of it sees them."""
        rows, columns = frame.shape
        top, bottom = frame.y - frame.downsample, frame.y + (rows + 1) * frame.downsample
        right = frame.x + (columns + 1) * frame.downsample
        kept = (self.y_bottom >= top) & (self.y_top <= bottom) & (self.x_left <= right)
        return _Edges(
            x_top=self.x_top[kept],
            y_top=self.y_top[kept],
            x_bottom=self.x_bottom[kept],
            y_bottom=self.y_bottom[kept],
            x_left=self.x_left[kept],
            turn=self.turn[kept],
            bounds=self.bounds,
        )


def _union(outlines: Sequence[_Edges], frame: Frame) -> NDArray[np.bool_]:
    inside = np.zeros(frame.shape, dtype=np.bool_)
    for edges in outlines:
        window = _window(edges.bounds, frame)
        if window is not None:
            _fill(edges.near(frame), frame, window, inside)
    return inside


def _window(bounds: tuple[float, float, float, float], frame: Frame) -> tuple[int, int, int, int] | None:
    """(first row, end row, first column, end column) of the pixels an outline may hold, or None."""
    left, top, right, bottom = bounds
    if not (left < right and top < bottom):
        return None
    (row, end_row), (column, end_column) = frame.fractions([left, right], [top, bottom])
    rows = max(0, math.floor(row) - 1), min(frame.shape[0], math.ceil(end_row) + 1)
    columns = max(0, math.floor(column) - 1), min(frame.shape[1], math.ceil(end_column) + 1)
    return (*rows, *columns) if rows[0] < rows[1] and columns[0] < columns[1] else None


def _fill(edges: _Edges, frame: Frame, window: tuple[int, int, int, int], inside: NDArray[np.bool_]) -> None:
    """Set the pixels of one outline: winding numbers are the running sums, along a row, of the crossings before."""
    first_row, end_row, first_column, end_column = window
    width = end_column - first_column
    top, x_top = _lattice(*frame.fractions(edges.x_top, edges.y_top))
    bottom, x_bottom = _lattice(*frame.fractions(edges.x_bottom, edges.y_bottom))
    for band_row in range(first_row, end_row, max(1, _BAND_PX // width)):
        band_end = min(end_row, band_row + max(1, _BAND_PX // width))
        start = np.clip((top + _BEFORE_CENTRE) >> _SUBPIXEL_BITS, band_row, band_end)
        stop = np.clip((bottom + _BEFORE_CENTRE) >> _SUBPIXEL_BITS, band_row, band_end)
        count = stop - start
        total = int(count.sum())
        if not total:
            continue
        edge = np.repeat(np.arange(len(count)), count)
        row = np.arange(total) - np.repeat(np.cumsum(count) - count - start, count)
        # Products stay exact below 2**53; beyond it the rounding is the same in every frame.
        depth = ((row << _SUBPIXEL_BITS) + _SUBPIXELS // 2 - top[edge]).astype(np.float64)
        run = (x_bottom - x_top).astype(np.float64)[edge] * depth / (bottom - top).astype(np.float64)[edge]
        crossing = x_top[edge] + np.ceil(run).astype(np.int64)
        column = np.clip((crossing + _BEFORE_CENTRE) >> _SUBPIXEL_BITS, first_column, end_column) - first_column
        winding = np.zeros((band_end - band_row, width + 1), dtype=np.int32)
        np.add.at(winding.reshape(-1), (row - band_row) * (width + 1) + column, edges.turn[edge])
        np.cumsum(winding, axis=1, out=winding)
        inside[band_row:band_end, first_column:end_column] |= winding[:, :width] != 0


def _lattice(*fractions: NDArray[np.float64]) -> Iterator[NDArray[np.int64]]:
    return (np.rint(fraction * _SUBPIXELS).astype(np.int64) for fraction in fractions)


def _lies_inside(island: _Edges, cut_out: _Edges) -> bool:
    """Whether nearly all of one outline lies in another, larger one; judged on a grid of the island's own."""
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
    return common >= INSIDE_SHARE * area > 0 and area * grid.downsample**2 < _area(cut_out)


def _area(edges: _Edges) -> float:
    """Area in level-0 px by the non-zero rule, good to the pixels of the probing grid."""
    grid = _probe(edges)
    return 0.0 if grid is None else float(_union([edges], grid).sum()) * grid.downsample**2


def probe_frame(outline: NDArray[np.float64]) -> Frame | None:
    """A frame over an outline's bounding box with 256 pixels along its longer side; None for a single point."""
    return _probe(_Edges.of(outline))


def _probe(edges: _Edges) -> Frame | None:
    left, top, right, bottom = edges.bounds
    side = max(right - left, bottom - top) / _PROBE_PX
    if not side > 0:
        return None
    shape = max(1, math.ceil((bottom - top) / side)), max(1, math.ceil((right - left) / side))
    return Frame(x=left, y=top, downsample=side, shape=shape, mpp=None)


def _outline(annotation: Annotation) -> NDArray[np.float64]:
    outline = annotation.outline
    return np.empty((0, 2)) if outline is None else outline
