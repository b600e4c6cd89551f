"""Outlines as exact geometry, and masks as outlines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from annotations.annotation import Annotation
from annotations.errors import OutsideSlideError
from annotations.painting import Layer, layers
from wsi.geometry import Window
from wsi.raster import Mask

BEYOND_EDGE_PX = 64.0
"""Vertices may lie this far beyond a slide: hands draw over its edge, and its true size is uncertain by a few px."""

_PAIRS_AT_ONCE = 1 << 22


def to_geometry(annotation: Annotation) -> shapely.Polygon | shapely.MultiPolygon:
    """The area of an outline by the non-zero rule, valid, in level-0 px; empty if there is none.

    An outline that crosses itself is cut at its crossings and every piece that it winds around is kept: unlike
    ``buffer(0)`` this keeps both halves of a bow-tie, and unlike ``make_valid`` it leaves no hole where an outline
    overlaps itself.
    """
    outline = annotation.outline
    if outline is None:
        return shapely.Polygon()
    polygon = shapely.Polygon(outline)
    if polygon.is_valid:
        return polygon
    ring = np.vstack([outline, outline[:1]])
    pieces = shapely.get_parts(shapely.polygonize(shapely.get_parts(shapely.union_all(_segments(ring)))))
    kept = [piece for piece in pieces if _winding(ring, shapely.point_on_surface(piece)) != 0]
    return _areas(shapely.union_all(kept))


def tumour_area(annotations: Iterable[Annotation]) -> shapely.MultiPolygon:
    """Tumour minus cut-outs, by the rule of ``rasterize``, as valid geometry in level-0 px."""
    parts = [_area_of(layer) for layer in layers(annotations)]
    areas = _areas(parts[0] if len(parts) == 1 else shapely.disjoint_subset_union_all(parts))
    return areas if isinstance(areas, shapely.MultiPolygon) else shapely.MultiPolygon([areas])


def _area_of(layer: Layer) -> shapely.Geometry:
    # of 20,000 cells 30 times as fast as a union of all at once
    tumour, cut_outs = (
        shapely.disjoint_subset_union_all([to_geometry(one) for one in group])
        for group in (layer.tumour, layer.cut_outs)
    )
    return shapely.difference(tumour, cut_outs) if layer.cut_outs else tumour


def check_within(
    annotations: Iterable[Annotation],
    width: float,
    height: float,
    *,
    beyond_px: float = BEYOND_EDGE_PX,
    path: str | Path | None = None,
) -> None:
    """Refuse annotations that do not fit a slide: they belong to another slide, or to another resolution of it.

    Args:
        annotations: of one slide.
        width: of the slide in level-0 px.
        height: of the slide in level-0 px.
        beyond_px: how far vertices may lie beyond it.
        path: the file that they were read from, for the message.

    Raises:
        OutsideSlideError: for the first vertex farther out; names the annotation, the vertex and its position.
    """
    for number, annotation in enumerate(annotations):
        x, y = annotation.vertices.T
        beyond = np.maximum(np.maximum(-x, x - width), np.maximum(-y, y - height)) > beyond_px
        if beyond.any():
            vertex = int(np.argmax(beyond))
            raise OutsideSlideError(
                path,
                f"({x[vertex]:.1f}, {y[vertex]:.1f}) lies outside the slide of {width:g} x {height:g} px",
                where=f"annotation {number} ({annotation.name!r}), vertex {vertex}",
                mend="check that the annotations belong to this slide",
            )


def longest_diameter(points: NDArray[np.float64]) -> float:
    """The largest distance between any two points, in their own unit.

    Args:
        points: (n, 2), at least one.

    Raises:
        ValueError: there are no points, or they are not (n, 2).
    """
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"points must be (n, 2) with n at least 1, got {points.shape}")
    hull = shapely.get_coordinates(shapely.convex_hull(shapely.multipoints(points)))
    step = max(1, _PAIRS_AT_ONCE // len(hull))
    squares = (
        ((hull[start : start + step, None] - hull[None]) ** 2).sum(axis=2).max() for start in range(0, len(hull), step)
    )
    return float(np.sqrt(max(squares)))


def connected_groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """The numbers below ``count`` in groups that pairs connect, each group in order and the groups by first member."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for number in range(count):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())


def mask_to_polygons(mask: Mask) -> list[shapely.Polygon]:
    """Outlines of a mask along its pixels' edges, with holes, in level-0 px.

    Pixels that touch only at a corner become two polygons. The area is the number of pixels times downsample squared.

    Returns:
        Valid polygons, from top to bottom and left to right by their bounding boxes.
    """
    rows, columns = (np.flatnonzero(mask.array.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return []
    cropped = mask.array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(_pixel_edges(cropped))))
    inner = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(np.int64)
    faces = faces[cropped[inner[:, 1], inner[:, 0]]]
    left, top = shapely.bounds(faces)[:, :2].T
    frame = mask.frame.part(Window.whole(cropped.shape).shifted(int(rows[0]), int(columns[0])))
    moved = shapely.transform(
        faces[np.lexsort((left, top))], lambda points: np.stack(frame.positions(points[:, 1], points[:, 0]), axis=1)
    )
    return list(moved)


def _pixel_edges(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Straight spans of pixel edges between true and false, float64 (n, 2, 2): from and to, each column, row."""
    padded = np.pad(mask, 1)
    level = padded[1:, 1:-1] != padded[:-1, 1:-1]
    upright = padded[1:-1, 1:] != padded[1:-1, :-1]
    # A span ends at every pixel corner that an edge of the other direction reaches.
    crossed = np.pad(upright, ((1, 0), (0, 0))) | np.pad(upright, ((0, 1), (0, 0)))
    level_spans = _spans(level, crossed)
    crossed = np.pad(level, ((0, 0), (1, 0))) | np.pad(level, ((0, 0), (0, 1)))
    upright_spans = _spans(upright.T, crossed.T)[:, :, ::-1]
    return np.concatenate([level_spans, upright_spans]).astype(np.float64)


def _spans(edges: NDArray[np.bool_], stops: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n, 2, 2): (from, line) and (to, line) of edges joined along each line, cut at the stops.

    Args:
        edges: (lines, n), unit edges from i to i + 1.
        stops: (lines, n + 1), where a span must end.
    """
    joined = edges[:, 1:] & edges[:, :-1] & ~stops[:, 1:-1]
    starts, ends = edges.copy(), edges.copy()
    starts[:, 1:] &= ~joined
    ends[:, :-1] &= ~joined
    line, start = np.nonzero(starts)
    _, end = np.nonzero(ends)
    return np.stack([np.stack([start, line], axis=1), np.stack([end + 1, line], axis=1)], axis=1)


def _segments(ring: NDArray[np.float64]) -> NDArray[np.object_]:
    segments: NDArray[np.object_] = shapely.linestrings(np.stack([ring[:-1], ring[1:]], axis=1))
    return segments


def _winding(ring: NDArray[np.float64], point: shapely.Point) -> int:
    """How often a closed ring (n, 2) winds around a point that does not lie on it."""
    x, y = (ring - (point.x, point.y)).T
    down = (y[:-1] <= 0) & (y[1:] > 0)
    up = (y[:-1] > 0) & (y[1:] <= 0)
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    return int((down & (cross > 0)).sum()) - int((up & (cross < 0)).sum())


def _areas(geometry: shapely.Geometry) -> shapely.Polygon | shapely.MultiPolygon:
    """The parts with an area: overlays may leave points and lines behind."""
    parts = [part for part in shapely.get_parts(geometry) if isinstance(part, shapely.Polygon) and not part.is_empty]
    if len(parts) == 1:
        return parts[0]
    return shapely.MultiPolygon(parts)
