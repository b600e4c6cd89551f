"""Measurements of a lesion, in um: from the spans of a mask or heatmap of any size, and from polygons.

Names shared with scikit-image's regionprops have its definitions, with two exceptions that make small lesions right,
and cells agree with polygons: a cell is a square, not a point. So the moments include 1/12 of a cell's side squared for
its own extent (like MATLAB's regionprops), and the convex hull is that of the cells' corners.

With mu the second central moments divided by the area, the ellipse with the same moments has the axes (R. M. Haralick,
L. G. Shapiro, Computer and Robot Vision I, 1992, appendix A; M. R. Teague, J. Opt. Soc. Am. 70 (1980) 920-930)

    4 * sqrt((mu_xx + mu_yy) / 2 +- sqrt(((mu_xx - mu_yy) / 2)**2 + mu_xy**2)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from staging.lesions.components import Numbers, Spans, expanded, near
from wsi.geometry import Frame, Region, Window

if TYPE_CHECKING:
    import shapely

    from annotations.measures import PolygonLesion

# Weights of an outline's cells by 1 + 2 * (cells of the outline beside it) + 10 * (those at its corners).
# K. Benkrid, D. Crookes, "Design and FPGA implementation of a perimeter estimator", Irish Machine Vision and Image
# Processing Conference, 2000; regionprops' perimeter with neighborhood=4.
_WEIGHTS = np.zeros(50)
_WEIGHTS[[5, 7, 15, 17, 25, 27]] = 1.0
_WEIGHTS[[21, 33]] = math.sqrt(2)
_WEIGHTS[[13, 23]] = (1 + math.sqrt(2)) / 2
_SPANS_AT_ONCE = 1 << 17
_POINTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionShape:
    """One metastasis, measured.

    Attributes:
        longest_diameter_um: largest distance between two points of its outline (maximum Feret diameter).
        major_axis_um, minor_axis_um: of the ellipse with the same second moments.
        eccentricity: of that ellipse: 0 for a circle, approaching 1 for a line.
        area_um2: of its cells or deposits, gaps excluded.
        perimeter_um: length of its outlines, including holes; exact from polygons, from cells by the estimator of
            Benkrid and Crookes, which is a few per cent too long for curves and 0 for one or two cells.
        extent: area divided by that of its bounding box.
        solidity: area divided by that of its convex hull.
        probability_max, probability_mean, probability_min: of the cells that reach the threshold, without filled holes;
            1.0 for masks and polygons.
        centroid: (x, y) in level-0 px.
        region: smallest whole level-0 rectangle that covers it.
        deposits: connected pieces that were merged into it.
    """

    longest_diameter_um: float
    major_axis_um: float
    minor_axis_um: float
    eccentricity: float
    area_um2: float
    perimeter_um: float
    extent: float
    solidity: float
    probability_max: float
    probability_mean: float
    probability_min: float
    centroid: tuple[float, float]
    region: Region
    deposits: int


def measure_spans(spans: Spans, groups: Numbers, components: Numbers, frame: Frame) -> list[LesionShape]:
    """Measure the lesions of a grid.

    Args:
        spans: of the grid.
        groups: int64 (n,), the lesion of each span, numbered from 0.
        components: int64 (n,), the connected deposit of each span.
        frame: the frame of the grid; its mpp must be known.

    Returns:
        One per lesion, in the order of their numbers.

    Raises:
        ResolutionError: mpp is unknown.
    """
    pixel_um = frame.pixel_um
    if len(spans) == 0:
        return []
    count = int(groups.max()) + 1
    area = np.bincount(groups, spans.lengths, count).astype(np.float64)
    row, column = _centres(spans, groups, area)
    axes = _axes(*_cell_moments(spans, groups, area))
    boxes = _boxes(spans, groups, count)
    hulls = _hull_areas(_corners(spans, groups))
    longest = _longest(_outline_points(spans, groups), count)
    perimeter = _perimeters(spans, groups, count)
    tumour = np.bincount(groups, spans.cells, count)
    means = np.bincount(groups, spans.sums, count) / tumour
    highs, lows = np.zeros(count), np.full(count, np.inf)
    np.maximum.at(highs, groups, spans.highs)
    np.minimum.at(lows, groups, spans.lows)
    deposits = np.bincount(groups[np.unique(components, return_index=True)[1]], minlength=count)
    x, y = frame.centres(row, column)
    result = []
    for number, (top, left, bottom, right) in enumerate(boxes.tolist()):
        window = Window.between(row=top, column=left, bottom=bottom, right=right)
        result.append(
            LesionShape(
                longest_diameter_um=float(longest[number]) * pixel_um,
                major_axis_um=float(axes[0][number]) * pixel_um,
                minor_axis_um=float(axes[1][number]) * pixel_um,
                eccentricity=eccentricity(float(axes[0][number]), float(axes[1][number])),
                area_um2=float(area[number]) * pixel_um**2,
                perimeter_um=float(perimeter[number]) * pixel_um,
                extent=float(area[number]) / (window.height * window.width),
                solidity=min(1.0, float(area[number] / hulls[number])),
                probability_max=float(highs[number]),
                # the mean of equal values may round outside their range
                probability_mean=float(np.clip(means[number], lows[number], highs[number])),
                probability_min=float(lows[number]),
                centroid=(float(x[number]), float(y[number])),
                region=frame.part(window).region,
                deposits=int(deposits[number]),
            )
        )
    return result


def measure_polygons(lesions: Sequence[PolygonLesion], *, mpp: float) -> list[LesionShape]:
    """Measure annotated lesions exactly, on their polygons.

    Args:
        lesions: from annotations.measures.measure_lesions.
        mpp: um per level-0 px.
    """
    import shapely  # noqa: PLC0415  (slow import)

    result = []
    for lesion in lesions:
        geometry = lesion.geometry
        left, top, right, bottom = geometry.bounds
        major, minor = (float(one[0]) for one in _axes(*(np.array([one]) for one in _polygon_moments(geometry))))
        x, y = math.floor(left), math.floor(top)
        result.append(
            LesionShape(
                longest_diameter_um=lesion.longest_diameter_um,
                major_axis_um=major * mpp,
                minor_axis_um=minor * mpp,
                eccentricity=eccentricity(major, minor),
                area_um2=lesion.area_um2,
                perimeter_um=geometry.length * mpp,
                extent=geometry.area / ((right - left) * (bottom - top)),
                solidity=min(1.0, geometry.area / shapely.convex_hull(geometry).area),
                probability_max=1.0,
                probability_mean=1.0,
                probability_min=1.0,
                centroid=lesion.centroid,
                region=Region(x=x, y=y, width=max(1, math.ceil(right) - x), height=max(1, math.ceil(bottom) - y)),
                deposits=lesion.parts,
            )
        )
    return result


def eccentricity(major: float, minor: float) -> float:
    """Compute the eccentricity of an ellipse with these axes; 0 for a point."""
    return math.sqrt(max(0.0, 1 - (minor / major) ** 2)) if major > 0 else 0.0


def _axes(
    xx: NDArray[np.float64], yy: NDArray[np.float64], xy: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Major and minor axis for second central moments divided by the area."""
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    return 4 * np.sqrt(middle + spread), 4 * np.sqrt((middle - spread).clip(0, None))


def _centres(
    spans: Spans, groups: Numbers, area: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(row, column) of the centroid of each lesion, counted from the centre of cell (0, 0)."""
    middle = (spans.starts + spans.stops - 1) / 2
    row = np.bincount(groups, spans.lengths * spans.rows, len(area)) / area
    return row, np.bincount(groups, spans.lengths * middle, len(area)) / area


def _cell_moments(
    spans: Spans, groups: Numbers, area: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """(xx, yy, xy) of each lesion, about its centroid, in cells squared."""
    row, column = _centres(spans, groups, area)
    lengths = spans.lengths.astype(np.float64)
    aside, down = (spans.starts + spans.stops - 1) / 2 - column[groups], spans.rows - row[groups]
    # a span of n cells of side 1 has length n
    xx = np.bincount(groups, lengths * (aside**2 + lengths**2 / 12)) / area
    yy = np.bincount(groups, lengths * (down**2 + 1 / 12)) / area
    xy = np.bincount(groups, lengths * aside * down) / area
    return xx, yy, xy


def _polygon_moments(geometry: shapely.MultiPolygon) -> tuple[float, float, float]:
    """(xx, yy, xy) about the centroid divided by the area, by Green's theorem over all rings."""
    import shapely  # noqa: PLC0415  (slow import)

    sums = np.zeros(3)
    for part in shapely.get_parts(geometry):
        for ring, sign in ((part.exterior, 1), *((hole, -1) for hole in part.interiors)):
            x, y = (shapely.get_coordinates(ring) - (geometry.centroid.x, geometry.centroid.y)).T
            cross = x[:-1] * y[1:] - x[1:] * y[:-1]
            moments = (
                (cross * (x[:-1] ** 2 + x[:-1] * x[1:] + x[1:] ** 2)).sum() / 12,
                (cross * (y[:-1] ** 2 + y[:-1] * y[1:] + y[1:] ** 2)).sum() / 12,
                (cross * (x[:-1] * y[1:] + 2 * x[:-1] * y[:-1] + 2 * x[1:] * y[1:] + x[1:] * y[:-1])).sum() / 24,
            )
            # a ring may run in either direction
            sums += sign * math.copysign(1, cross.sum()) * np.array(moments)
    xx, yy, xy = (float(one) / geometry.area for one in sums)
    return xx, yy, xy


def _boxes(spans: Spans, groups: Numbers, count: int) -> Numbers:
    """int64 (count, 4): top, left, bottom, right of each lesion in cells, half-open."""
    boxes = np.empty((count, 4), dtype=np.int64)
    boxes[:, :2], boxes[:, 2:] = np.iinfo(np.int64).max, -1
    np.minimum.at(boxes[:, 0], groups, spans.rows)
    np.minimum.at(boxes[:, 1], groups, spans.starts)
    np.maximum.at(boxes[:, 2], groups, spans.rows + 1)
    np.maximum.at(boxes[:, 3], groups, spans.stops)
    return boxes


_Points = tuple[Numbers, NDArray[np.float64]]
"""The lesion of each point, and float64 (n, 2) row and column; sorted by lesion."""


def _rows_of_lesions(spans: Spans, groups: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """(lesion, row, first column, end of the last): only these of a lesion's row can lie on a convex hull."""
    order = np.lexsort((spans.starts, spans.rows, groups))
    owner, row = groups[order], spans.rows[order]
    first = np.flatnonzero(np.append(True, (owner[1:] != owner[:-1]) | (row[1:] != row[:-1])))
    last = np.append(first[1:], len(order)) - 1
    return owner[first], row[first], spans.starts[order[first]], spans.stops[order[last]]


def _corners(spans: Spans, groups: Numbers) -> _Points:
    """Corners of cells, counted from the outer corner of cell (0, 0)."""
    owner, row, start, stop = _rows_of_lesions(spans, groups)
    points = np.stack([row, start, row, stop, row + 1, start, row + 1, stop], axis=1)
    return np.repeat(owner, 4), points.reshape(-1, 2).astype(np.float64)


def _outline_points(spans: Spans, groups: Numbers) -> _Points:
    """Where the outline crosses the lines between cells' centres, counted from the centre of cell (0, 0)."""
    if spans.crossings is not None and spans.crossing_spans is not None:
        owner = groups[spans.crossing_spans]
        order = np.argsort(owner, kind="stable")
        return owner[order], spans.crossings[order]
    owner, row, start, stop = _rows_of_lesions(spans, groups)
    end = stop - 1
    up, down = row - 0.5, row + 0.5
    points = np.stack([row, start - 0.5, row, end + 0.5, up, start, up, end, down, start, down, end], axis=1)
    return np.repeat(owner, 6), points.reshape(-1, 2)


def _hull_areas(points: _Points) -> NDArray[np.float64]:
    import shapely  # noqa: PLC0415  (slow import)

    hulls = shapely.convex_hull(shapely.linestrings(points[1], indices=points[0]))
    return np.asarray(shapely.area(hulls), dtype=np.float64)


def _longest(points: _Points, count: int) -> NDArray[np.float64]:
    """Largest distance between two points of each lesion."""
    import shapely  # noqa: PLC0415  (slow import)

    hulls = shapely.convex_hull(shapely.linestrings(points[1], indices=points[0]))
    corners, owner = shapely.get_coordinates(hulls, return_index=True)
    longest = np.zeros(count)
    for number, hull in enumerate(np.split(corners, np.cumsum(np.bincount(owner, minlength=count))[:-1])):
        for at in range(0, len(hull), _POINTS_AT_ONCE):
            apart = hull - hull[at : at + _POINTS_AT_ONCE, np.newaxis]
            longest[number] = max(longest[number], np.hypot(apart[..., 0], apart[..., 1]).max())
    return longest


def _perimeters(spans: Spans, groups: Numbers, count: int) -> NDArray[np.float64]:
    """Length of the outlines of each lesion in cells."""
    lengths = np.zeros(count)
    stride = spans.shape[1] + 2
    for part, around in _parts(spans):
        keys = _outline_cells(spans.chosen(around))
        top, bottom = int(spans.rows[part][0]), int(spans.rows[part][-1])
        own = keys[slice(*np.searchsorted(keys, (top * stride, (bottom + 1) * stride)))]
        code = np.ones(len(own), dtype=np.int64)
        ended = np.append(keys, -1)
        for down in (-1, 0, 1):
            # the three cells beside, where they are outline, follow one another
            beside = own + (down * stride - 1)
            at = np.searchsorted(keys, beside)
            for aside in (-1, 0, 1):
                is_outline = ended[at] == beside + (aside + 1)
                at += is_outline
                if down or aside:
                    code += is_outline * (10 if down and aside else 2)
        owner = groups[spans.holding(own // stride, own % stride - 1)]
        lengths += np.bincount(owner, _WEIGHTS[code], count)
    return lengths


def _parts(spans: Spans) -> Iterator[tuple[slice, slice]]:
    """Yield spans of whole rows, some at a time, and the same with two more rows on either side."""
    at = 0
    while at < len(spans):
        last = int(spans.rows[min(at + _SPANS_AT_ONCE, len(spans)) - 1])
        first = int(spans.rows[at])
        begin, end, after = (int(one) for one in np.searchsorted(spans.rows, (first - 2, last + 1, last + 3)))
        yield slice(at, end), slice(begin, after)
        at = end


def _outline_cells(spans: Spans) -> Numbers:
    """Cells with a side neighbour outside, each as row * (columns + 2) + column + 1, sorted."""
    stride = spans.shape[1] + 2
    outside = _background(spans)
    firsts, lasts = [spans.starts, spans.stops - 1], [spans.starts, spans.stops - 1]
    rows = [spans.rows, spans.rows]
    for step in (-1, 1):
        one, other = near(spans, outside, step=step, reach=-1)
        firsts.append(np.maximum(spans.starts[one], outside.starts[other]))
        lasts.append(np.minimum(spans.stops[one], outside.stops[other]) - 1)
        rows.append(spans.rows[one])
    first, last = np.concatenate(firsts), np.concatenate(lasts)
    holder, offset = expanded(last - first + 1)
    # np.unique hashes first, which for millions of nearly sorted cells takes five times as long
    keys: Numbers = np.sort(np.concatenate(rows)[holder] * stride + first[holder] + offset + 1)
    is_new: NDArray[np.bool_] = np.append(True, keys[1:] != keys[:-1])
    return keys[is_new]


def _background(spans: Spans) -> Spans:
    """Return the background in the rows of the spans and in those above and below, even beyond the grid."""
    new_row = np.flatnonzero(np.append(True, spans.rows[1:] != spans.rows[:-1]))
    before = np.append(0, spans.stops[:-1])
    before[new_row] = 0
    ends = np.append(new_row[1:], len(spans)) - 1
    known = spans.rows[new_row]
    empty = np.setdiff1d(np.concatenate([known - 1, known + 1]), known)
    row = np.concatenate([spans.rows, known, empty])
    start = np.concatenate([before, spans.stops[ends], np.zeros_like(empty)])
    width = spans.shape[1]
    stop = np.concatenate([spans.starts, np.full(len(known) + len(empty), width)])
    order = np.lexsort((start, row))
    order = order[stop[order] > start[order]]
    nothing = np.zeros(len(order))
    return Spans(
        shape=spans.shape,
        rows=row[order],
        starts=start[order],
        stops=stop[order],
        cells=np.zeros_like(order),
        sums=nothing,
        highs=nothing,
        lows=nothing,
    )
