"""Metastases on a slide: connected deposits of a Heatmap or Mask, measured in um.

The longest diameter decides a slide's label, so it is measured below the grid: it is the largest distance between the
points at which the probability, taken as linear between neighbouring cell centres, crosses the threshold. Bias and
spread of that against the truth, in cells, over discs and irregular blobs of 6 to 125 cells at random offsets:

- values that are the tumour's share of the cell: discs +0.06 to +0.17 (spread 0.03), blobs -0.26 to +0.04 (0.05-0.15);
  the same blurred by one cell: discs -0.37 to +0.03, blobs from 25 cells on -0.48 to -0.12;
- yes or no at the cells' centres: discs +0.5 to +0.9 (0.02-0.2), blobs +0.1 to +0.6 (0.2-0.3), polygons with sharp tips
  -1.3 to -0.5.

On the same shapes the other conventions, which only see which cells are inside, gave: distance of cell centres -0.9 to
0.0, one cell more -0.03 to +1.0, distance of cell corners +0.3 to +1.3; all with spreads as for yes or no.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Region
from wsi.raster import Heatmap, Mask

MERGE_GAP_UM = 75.0
"""Deposits this close or closer are one lesion: the CAMELYON16 evaluation grows every deposit by 37.5 um."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesion:
    """One metastasis: a deposit, or several with small gaps between them.

    Attributes:
        longest_diameter_um: largest distance between two points of its outline.
        area_um2: of its cells, gaps excluded.
        centroid: (x, y) in level-0 px, mean of its cells' centres.
        probability: the highest of its cells; 1.0 for a mask's.
        region: smallest whole level-0 rectangle that covers its cells.
    """

    longest_diameter_um: float
    area_um2: float
    centroid: tuple[float, float]
    probability: float
    region: Region


def find_lesions(
    heatmap: Heatmap,
    *,
    threshold: float,
    merge_gap_um: float = MERGE_GAP_UM,
    min_area_um2: float = 0.0,
    min_diameter_um: float = 0.0,
    min_probability: float = 0.0,
) -> tuple[tuple[Lesion, ...], tuple[Mask, ...]]:
    """Find and measure the lesions of a heatmap.

    Cells of at least the threshold that touch by side or corner are one deposit; deposits with at most merge_gap_um
    between the nearest edges of their cells are one lesion (exact, whatever the direction of the gap; 0 merges none).
    Lesions that are too small or too faint are dropped after merging, so that a cluster counts by its whole extent.
    Cells beyond the edge of the heatmap count as probability 0.

    Args:
        heatmap: its frame must know its mpp.
        threshold: a cell is tumour from this probability on, above 0 and at most 1.
        merge_gap_um: largest gap within a lesion.
        min_area_um2: lesions of a smaller area are dropped.
        min_diameter_um: lesions of a shorter longest diameter are dropped.
        min_probability: lesions whose highest probability is lower are dropped.

    Returns:
        Lesions, largest longest diameter first (then area, then top to bottom), and for each the Mask of its cells on
        its own window of the heatmap's grid.

    Raises:
        ResolutionError: mpp is not known.
        ValueError: the threshold or the gap is out of range.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold lies above 0 and at most at 1, got {threshold}")
    found = _measure(heatmap.frame, heatmap.array, threshold, merge_gap_um)
    kept = [
        (lesion, mask)
        for lesion, mask in found
        if lesion.area_um2 >= min_area_um2
        and lesion.longest_diameter_um >= min_diameter_um
        and lesion.probability >= min_probability
    ]
    return tuple(lesion for lesion, _ in kept), tuple(mask for _, mask in kept)


def lesions_of_mask(mask: Mask, *, merge_gap_um: float = MERGE_GAP_UM) -> tuple[tuple[Lesion, ...], tuple[Mask, ...]]:
    """Find and measure the lesions of a mask, for example of rasterised annotations: as find_lesions does.

    Outlines run half-way between the centres of cells inside and outside, so that a single cell is one cell long.

    Raises:
        ResolutionError: mpp is not known.
        ValueError: the gap is negative.
    """
    found = _measure(mask.frame, mask.array.astype(np.float32), 0.5, merge_gap_um)
    return tuple(lesion for lesion, _ in found), tuple(mask for _, mask in found)


def _measure(frame: Frame, values: NDArray[np.float32], threshold: float, gap_um: float) -> list[tuple[Lesion, Mask]]:
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    pixel_um = frame.pixel_um
    if not gap_um >= 0:
        raise ValueError(f"a gap is at least 0 um, got {gap_um}")
    inside = values >= threshold
    deposits, count = ndimage.label(inside, structure=np.ones((3, 3)))
    labels = _merged(deposits.astype(np.int32), count, gap_um / pixel_um)
    windows = ndimage.find_objects(labels)
    outlines = _outlines(values, labels, len(windows), threshold)
    found = []
    for number, (window, outline) in enumerate(zip(windows, outlines, strict=True), start=1):
        cells = labels[window] == number
        rows, columns = window
        place = frame.window(row=rows.start, column=columns.start, height=cells.shape[0], width=cells.shape[1])
        x, y = place.centres(*np.nonzero(cells))
        lesion = Lesion(
            longest_diameter_um=_longest(outline) * pixel_um,
            area_um2=float(np.count_nonzero(cells)) * pixel_um**2,
            centroid=(float(x.mean()), float(y.mean())),
            probability=float(values[window][cells].max()),
            region=place.region,
        )
        found.append((lesion, Mask(frame=place, array=cells)))
    return sorted(found, key=lambda one: _order(one[0]))


def _order(lesion: Lesion) -> tuple[float, float, int, int]:
    return -lesion.longest_diameter_um, -lesion.area_um2, lesion.region.y, lesion.region.x


def _outlines(
    values: NDArray[np.float32], labels: NDArray[np.int32], count: int, threshold: float
) -> list[NDArray[np.float64]]:
    """For every lesion 1..count the (n, 2) rows and columns, in cells, where its outline crosses the grid's lines.

    A crossing lies between the centres of a cell of the lesion and of a side neighbour below the threshold, where the
    line between their values meets the threshold: these are the vertices of marching squares.
    """
    height, width = values.shape
    rows, columns = np.nonzero(_edge(labels))
    points, owners = [], []
    for down, aside in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        row, column = rows + down, columns + aside
        within = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        place = row.clip(0, height - 1), column.clip(0, width - 1)
        crossed = ~within | (labels[place] == 0)
        here = values[rows, columns][crossed].astype(np.float64)
        there = np.where(within, values[place], 0.0)[crossed]
        share = ((here - threshold) / (here - there)).clip(0.0, 1.0)
        points.append(np.stack([rows[crossed] + share * down, columns[crossed] + share * aside], axis=1))
        owners.append(labels[rows, columns][crossed])
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=count + 1))[:-1]
    return np.split(np.concatenate(points)[order], ends)[1:]


def _longest(points: NDArray[np.float64]) -> float:
    """Largest distance between two of (n, 2) points, in their units."""
    import shapely  # noqa: PLC0415  (slow import)

    hull = shapely.get_coordinates(shapely.convex_hull(shapely.MultiPoint(points)))
    return max(float(np.hypot(*(hull - point).T).max()) for point in hull)


def _merged(deposits: NDArray[np.int32], count: int, gap: float) -> NDArray[np.int32]:
    """Relabel 8-connected deposits 1..count so that those with at most ``gap`` cells between their edges share one.

    Exact and fast: in a row of cells below or above an edge cell only the nearest labelled cell to either side matters,
    because whatever lies behind it is nearer to that one. So a cell looks at two cells per row within reach.
    """
    from scipy.sparse import coo_array  # noqa: PLC0415  (slow import)
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    if count < 2:
        return deposits
    height, width = deposits.shape
    column = np.arange(width, dtype=np.int32)
    left = np.maximum.accumulate(np.where(deposits > 0, column, -1), axis=1)
    right = np.minimum.accumulate(np.where(deposits > 0, column, width)[:, ::-1], axis=1)[:, ::-1]
    rows, columns = np.nonzero(_edge(deposits))
    own = deposits[rows, columns]
    joined = []
    for step in range(int(gap) + 2):
        rise = max(0, step - 1)
        if rise > gap:
            break
        reach = int(np.sqrt(gap**2 - rise**2) + 1e-9) + 1
        valid = rows + step < height
        row, start, mine = rows[valid] + step, columns[valid], own[valid]
        for nearest, aside in ((left, -1), (right, 1)):
            begin = start + (aside if step == 0 else 0)
            seen = (begin >= 0) & (begin < width)
            other = np.where(seen, nearest[row, begin.clip(0, width - 1)], -1)
            near = seen & (other >= 0) & (other < width) & (abs(other - start) <= reach)
            joined.append(np.stack([mine[near], deposits[row[near], other[near]]]))
    pairs = np.unique(np.concatenate(joined, axis=1), axis=1) - 1
    graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    return np.concatenate([[0], group + 1]).astype(np.int32)[deposits]


def _edge(deposits: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Cells of a deposit with a side neighbour outside it; cells at the array's edge have one."""
    padded = np.pad(deposits > 0, 1)
    around = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return (deposits > 0) & ~around
