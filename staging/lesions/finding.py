"""Metastases on a slide: connected deposits of a Heatmap or Mask, measured in um.

The longest diameter decides a slide's label, so it is measured below the grid: it is the largest distance between the
points at which the probability, linear between neighbouring cell centres, crosses the threshold. Bias and
spread of that against the truth, in cells, over discs and irregular blobs of 6 to 125 cells at random offsets:

- values that are the tumour's share of the cell: discs +0.06 to +0.17 (spread 0.03), blobs -0.26 to +0.04 (0.05-0.15);
  the same blurred by one cell: discs -0.37 to +0.03, blobs from 25 cells on -0.48 to -0.12;
- binary values at the cells' centres: discs +0.5 to +0.9 (0.02-0.2), blobs +0.1 to +0.6 (0.2-0.3), polygons with sharp
  tips -1.3 to -0.5.

On the same shapes the other conventions, which only see which cells are inside, gave: distance of cell centres -0.9 to
0.0, one cell more -0.03 to +1.0, distance of cell corners +0.3 to +1.3; all with spreads as for binary values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotations.measures import MERGE_GAP_UM
from staging.lesions.components import Numbers, Spans, fill_holes, label_spans, trace
from staging.lesions.merging import merge_near
from staging.lesions.shape import LesionShape, measure_spans
from wsi.geometry import Frame, Region, Window
from wsi.raster import Heatmap, Mask


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
    smallest_um: float = 0.0,
    peak: float = 0.0,
) -> tuple[tuple[Lesion, ...], tuple[Mask, ...]]:
    """Find and measure the lesions of a heatmap.

    Cells of at least the threshold that touch by side or corner are one deposit; deposits with at most merge_gap_um
    between the nearest edges of their cells are one lesion (exact, whatever the direction of the gap; 0 merges none).
    Lesions that are too short or too faint are dropped after merging, so that a cluster counts by its whole extent.
    Cells beyond the edge of the heatmap count as probability 0.

    Args:
        heatmap: its frame must know its mpp.
        threshold: a cell is tumour from this probability on, above 0 and at most 1.
        merge_gap_um: largest gap within a lesion.
        smallest_um: lesions of a shorter longest diameter are dropped.
        peak: lesions whose highest probability is lower are dropped.

    Returns:
        Lesions, largest longest diameter first (then area, then top to bottom), and for each the Mask of its cells on
        its own window of the heatmap's grid.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the threshold or the gap is out of range.
    """
    shapes, masks = measure_heatmap(
        heatmap,
        threshold=threshold,
        merge_gap_um=merge_gap_um,
        smallest_um=smallest_um,
        peak=peak,
    )
    return tuple(as_lesion(one) for one in shapes), masks


def lesions_of_mask(mask: Mask, *, merge_gap_um: float = MERGE_GAP_UM) -> tuple[tuple[Lesion, ...], tuple[Mask, ...]]:
    """Find and measure the lesions of a mask, for example of rasterised annotations, as find_lesions does.

    Outlines run half-way between the centres of cells inside and outside, so that a single cell is one cell long.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the gap is negative.
    """
    found = _found(trace([mask.array]), mask.frame, merge_gap_um)
    return tuple(as_lesion(one) for one in found.shapes), found.masks(range(len(found.shapes)))


def measure_heatmap(
    heatmap: Heatmap,
    *,
    threshold: float,
    merge_gap_um: float = MERGE_GAP_UM,
    with_holes_filled: bool = False,
    smallest_um: float = 0.0,
    peak: float = 0.0,
) -> tuple[tuple[LesionShape, ...], tuple[Mask, ...]]:
    """Find the lesions of a heatmap, by the rules of find_lesions, and measure them in full.

    Args:
        heatmap: its frame must know its mpp.
        threshold: a cell is tumour from this probability on, above 0 and at most 1.
        merge_gap_um: largest gap within a lesion.
        with_holes_filled: count holes as tumour, before deposits are merged; probabilities stay those of the others.
        smallest_um: lesions of a shorter longest diameter are dropped.
        peak: lesions whose highest probability is lower are dropped.

    Returns:
        Shapes and masks, in the order of find_lesions.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the threshold or the gap is out of range.
    """
    spans = _spans(heatmap, threshold)
    found = _found(spans, heatmap.frame, merge_gap_um, with_holes_filled=with_holes_filled)
    kept = [
        number
        for number, one in enumerate(found.shapes)
        if one.longest_diameter_um >= smallest_um and one.probability_max >= peak
    ]
    return tuple(found.shapes[number] for number in kept), found.masks(kept)


def lesion_sizes(
    heatmap: Heatmap, *, threshold: float, merge_gaps_um: Iterable[float]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Find the lesions of a heatmap with several gaps at once, by the rules of find_lesions.

    Args:
        heatmap: its frame must know its mpp.
        threshold: a cell is tumour from this probability on, above 0 and at most 1.
        merge_gaps_um: largest gaps within a lesion.

    Returns:
        For each gap (longest diameters in um, highest probabilities), float64 (lesions,) each, longest first.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the threshold or a gap is out of range.
    """
    spans = _spans(heatmap, threshold)
    found = (_found(spans, heatmap.frame, gap).shapes for gap in merge_gaps_um)
    return [
        (
            np.array([one.longest_diameter_um for one in shapes], dtype=np.float64),
            np.array([one.probability_max for one in shapes], dtype=np.float64),
        )
        for shapes in found
    ]


def measure_mask(
    bands: Iterable[NDArray[np.bool_]],
    frame: Frame,
    *,
    merge_gap_um: float = MERGE_GAP_UM,
    with_holes_filled: bool = False,
    smallest_um: float = 0.0,
) -> tuple[LesionShape, ...]:
    """Find and measure the lesions of a mask of any size, which is read once and never held whole.

    Args:
        bands: its rows from top to bottom, bool (rows, columns) each, as from components.bands_of; how they are cut
            changes nothing.
        frame: the frame of the whole mask; its mpp must be known.
        merge_gap_um: largest gap within a lesion.
        with_holes_filled: count holes as tumour, before deposits are merged.
        smallest_um: lesions of a shorter longest diameter are dropped.

    Returns:
        Shapes, in the order of find_lesions.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the gap is negative, or the bands do not have the frame's shape.
    """
    spans = trace(bands)
    if spans.shape != tuple(frame.shape):
        raise ValueError(f"the bands have shape {spans.shape}, but the frame {frame.shape}")
    found = _found(spans, frame, merge_gap_um, with_holes_filled=with_holes_filled)
    return tuple(one for one in found.shapes if one.longest_diameter_um >= smallest_um)


def as_lesion(shape: LesionShape) -> Lesion:
    """Return the measurements that decide labels."""
    return Lesion(
        longest_diameter_um=shape.longest_diameter_um,
        area_um2=shape.area_um2,
        centroid=shape.centroid,
        probability=shape.probability_max,
        region=shape.region,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Found:
    """The lesions of a grid, largest first: the shape of each, and its number in ``groups``."""

    shapes: tuple[LesionShape, ...]
    numbers: tuple[int, ...]
    spans: Spans
    groups: Numbers
    frame: Frame

    def masks(self, chosen: Iterable[int]) -> tuple[Mask, ...]:
        """Return the cells of some of the lesions, each on its own window of the grid."""
        order = np.argsort(self.groups, kind="stable")
        ends = np.searchsorted(self.groups[order], np.arange(len(self.numbers) + 1))
        return tuple(
            self._mask(order[ends[number] : ends[number + 1]]) for number in map(self.numbers.__getitem__, chosen)
        )

    def _mask(self, members: NDArray[np.intp]) -> Mask:
        rows, starts, stops = self.spans.rows[members], self.spans.starts[members], self.spans.stops[members]
        top, left = int(rows[0]), int(starts.min())
        cells = np.zeros((int(rows[-1]) + 1 - top, int(stops.max()) - left), dtype=np.bool_)
        for row, start, stop in zip(
            (rows - top).tolist(), (starts - left).tolist(), (stops - left).tolist(), strict=True
        ):
            cells[row, start:stop] = True
        return Mask(frame=self.frame.part(Window.whole(cells.shape).shifted(top, left)), array=cells)


def _spans(heatmap: Heatmap, threshold: float) -> Spans:
    if not 0 < threshold <= 1:
        raise ValueError(f"a threshold must be above 0 and at most 1, got {threshold}")
    return trace([heatmap.array], threshold=threshold)


def _found(spans: Spans, frame: Frame, gap_um: float, *, with_holes_filled: bool = False) -> _Found:
    pixel_um = frame.pixel_um
    if not gap_um >= 0:
        raise ValueError(f"a gap must be at least 0 um, got {gap_um}")
    spans = fill_holes(spans) if with_holes_filled else spans
    components = label_spans(spans)
    groups = merge_near(spans, components, gap_um / pixel_um)
    shapes = measure_spans(spans, groups, components, frame)
    numbers = sorted(range(len(shapes)), key=lambda number: _order(shapes[number]))
    return _Found(
        shapes=tuple(shapes[number] for number in numbers),
        numbers=tuple(numbers),
        spans=spans,
        groups=groups,
        frame=frame,
    )


def _order(lesion: LesionShape) -> tuple[float, float, int, int]:
    return -lesion.longest_diameter_um, -lesion.area_um2, lesion.region.y, lesion.region.x
