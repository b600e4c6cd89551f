"""Annotations to pixels: which cut-outs apply to which tumour, painted on the grid of any Frame."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.outlines import SUBPIXEL_BITS, Outlines, lattice
from wsi.geometry import Frame, TileGrid
from wsi.raster import Mask

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
    inside = Outlines.of(outlines).union(frame)
    return Mask(frame=frame, array=np.zeros(frame.shape, dtype=np.bool_) if inside is None else inside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Tumour outlines and the cut-outs that apply to them."""

    tumour: tuple[Annotation, ...]
    cut_outs: tuple[Annotation, ...]


def layers(annotations: Iterable[Annotation]) -> tuple[Layer, ...]:
    """Which cut-outs apply to which tumour outlines; the tumour is the union over layers of tumour minus cut-outs.

    A cut-out applies to every tumour outline except those that lie inside it: an island of tumour within a cut-out is
    tumour again (and may have cut-outs of its own). Inside means by INSIDE_SHARE of the island's area, the island being
    the smaller of the two. Outlines without area and other roles are left out, and so are cut-outs whose bounds meet no
    tumour of the layer.
    """
    drawn = [(annotation, annotation.outline) for annotation in annotations]
    tumour, cut_outs = (
        [(one, outline) for one, outline in drawn if one.role is role and outline is not None]
        for role in (Role.TUMOUR, Role.CUT_OUT)
    )
    table = Outlines.of(outline for _, outline in cut_outs)
    members: dict[tuple[int, ...], list[Annotation]] = {}
    applying: dict[tuple[int, ...], set[int]] = {}
    for annotation, outline in tumour:
        met = table.meeting(_bounds(outline)) if cut_outs else []
        around = tuple(number for number in met if _lies_inside(outline, cut_outs[number][1]))
        members.setdefault(around, []).append(annotation)
        applying.setdefault(around, set()).update(set(met).difference(around))
    return tuple(
        Layer(tumour=tuple(found), cut_outs=tuple(cut_outs[number][0] for number in sorted(applying[around])))
        for around, found in members.items()
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

    _layers: tuple[tuple[Outlines, Outlines], ...]
    _boxes: NDArray[np.float64]

    @classmethod
    def of(cls, annotations: Iterable[Annotation]) -> Painting:
        """Prepare the tumour and cut-out outlines among annotations; other roles and kinds without area are ignored."""
        found = tuple((_outlines(layer.tumour), _outlines(layer.cut_outs)) for layer in layers(annotations))
        return cls(found, np.array([tumour.box for tumour, _ in found]).reshape(-1, 4))

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
        for tumour, cut_outs in self._layers_near(frame):
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
        for tumour, cut_outs in self._layers_near(frame):
            tumour.count_passes(frame, begun)
            cut_outs.count_passes(frame, begun)
        return np.asarray(np.cumsum(begun, axis=1)[:, :columns] > 0)

    def _layers_near(self, frame: Frame) -> list[tuple[Outlines, Outlines]]:
        """Those whose tumour may reach the frame."""
        (left, right), (top, bottom) = frame.positions((-1, frame.shape[0] + 1), (-1, frame.shape[1] + 1))
        boxes = self._boxes.T
        is_near = (boxes[0] <= right) & (boxes[1] <= bottom) & (boxes[2] >= left) & (boxes[3] >= top)
        return [self._layers[index] for index in np.flatnonzero(is_near)]

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


def _offsets_in(frame: Frame, tile: Frame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows and columns of a frame that hold the centres of a tile's rows and columns; they may lie beyond it."""
    x, y = tile.centres(np.arange(tile.shape[0]), np.arange(tile.shape[1]))
    rows, columns = (lattice(along) >> SUBPIXEL_BITS for along in frame.fractions(x, y))
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


def _outlines(annotations: Iterable[Annotation]) -> Outlines:
    return Outlines.of(outline for one in annotations if (outline := one.outline) is not None)


def _lies_inside(island: NDArray[np.float64], cut_out: NDArray[np.float64]) -> bool:
    """Whether nearly all of one outline lies in another, larger one; decided on the island's own grid."""
    grid = probe_frame(island)
    if grid is None:
        return False
    own = polygon_mask([island], grid).array
    area = int(own.sum())
    common = int((own & polygon_mask([cut_out], grid).array).sum())
    return common >= INSIDE_SHARE * area > 0 and _is_smaller(island, cut_out)


def _is_smaller(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Decided on one grid over both, on which outlines around the same pixels are equal, however they were drawn."""
    grid = probe_frame(np.concatenate([one, other]))
    return grid is not None and polygon_mask([one], grid).array.sum() < polygon_mask([other], grid).array.sum()


def probe_frame(outline: NDArray[np.float64]) -> Frame | None:
    """A frame over an outline's bounding box with 256 pixels along its longer side; None for a single point."""
    left, top, right, bottom = _bounds(outline)
    side = max(right - left, bottom - top) / _PROBE_PX
    if not side > 0:
        return None
    shape = max(1, math.ceil((bottom - top) / side)), max(1, math.ceil((right - left) / side))
    return Frame(x=left, y=top, downsample=side, shape=shape, mpp=None)


def _bounds(outline: NDArray[np.float64]) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return left, top, right, bottom
