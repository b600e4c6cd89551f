"""Lesions measured on their polygons, exactly and without a raster: the basis of reference labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import shapely

    from annotations.annotation import Annotation

MERGE_GAP_UM = 75.0
"""Deposits this close or closer are one lesion: the CAMELYON16 evaluation grows every deposit by 37.5 um."""

SLIVER_UM = 1.0
"""A deposit nowhere this wide holds no cell: it is left over from a cut-out drawn along its outline."""

_ROUNDING_PX = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PolygonLesion:
    """One metastasis: a deposit, or several with small gaps between them.

    Attributes:
        longest_diameter_um: largest distance between two of its points.
        area_um2: of its deposits, gaps and holes excluded.
        centroid: (x, y) in level-0 px, of that area.
        parts: number of deposits.
        geometry: its deposits in level-0 px.
    """

    longest_diameter_um: float
    area_um2: float
    centroid: tuple[float, float]
    parts: int
    geometry: shapely.MultiPolygon


def measure_lesions(
    annotations: Iterable[Annotation], *, mpp: float, merge_gap_um: float = MERGE_GAP_UM, sliver_um: float = SLIVER_UM
) -> tuple[PolygonLesion, ...]:
    """Find and measure the lesions of one slide on its polygons.

    Tumour is the union of the tumour outlines minus the cut-outs, as in rasterize; outlines drawn twice count once.
    Its connected pieces are the deposits. Deposits with a gap of at most merge_gap_um are one lesion, by the exact
    distance of their outlines.

    Args:
        annotations: of one slide.
        mpp: um per level-0 px.
        merge_gap_um: largest gap within a lesion; 0 merges only deposits that touch at a point.
        sliver_um: deposits that are nowhere this wide are dropped; 0 keeps all.

    Returns:
        Lesions, largest longest diameter first (then area, then top to bottom); none without tumour.

    Raises:
        ValueError: mpp is not positive, or a distance is negative.
    """
    from annotations.polygons import connected_groups, tumour_area  # noqa: PLC0415  (slow import)

    if not 0 < mpp < float("inf"):
        raise ValueError(f"mpp must be above 0 um per px, got {mpp}")
    if not (merge_gap_um >= 0 and sliver_um >= 0):
        raise ValueError(f"distances must be at least 0 um, got {merge_gap_um} and {sliver_um}")
    deposits = [deposit for deposit in tumour_area(annotations).geoms if not _is_sliver(deposit, sliver_um / mpp)]
    groups = connected_groups(len(deposits), _near(deposits, merge_gap_um / mpp))
    lesions = [_lesion([deposits[number] for number in group], mpp) for group in groups]
    return tuple(sorted(lesions, key=_order))


def _order(lesion: PolygonLesion) -> tuple[float, float, float, float]:
    return -lesion.longest_diameter_um, -lesion.area_um2, lesion.centroid[1], lesion.centroid[0]


def _lesion(deposits: Sequence[shapely.Polygon], mpp: float) -> PolygonLesion:
    import shapely  # noqa: PLC0415  (slow import)

    from annotations.polygons import longest_diameter  # noqa: PLC0415

    geometry = shapely.MultiPolygon(deposits)
    return PolygonLesion(
        longest_diameter_um=longest_diameter(shapely.get_coordinates(geometry)) * mpp,
        area_um2=geometry.area * mpp**2,
        centroid=(geometry.centroid.x, geometry.centroid.y),
        parts=len(deposits),
        geometry=geometry,
    )


def _is_sliver(deposit: shapely.Polygon, width_px: float) -> bool:
    # The cheap test first: a shape of this area and perimeter cannot be that narrow everywhere.
    if not width_px or deposit.area > width_px * deposit.length:
        return False
    return bool(deposit.buffer(-width_px / 2).is_empty)


def _near(deposits: Sequence[shapely.Polygon], gap_px: float) -> Iterator[tuple[int, int]]:
    """Pairs at most ``gap_px`` apart."""
    if not deposits:
        return
    import shapely  # noqa: PLC0415  (slow import)

    tree = shapely.STRtree(deposits)
    sure, likely = (
        {(one, other) for one, other in tree.query(deposits, predicate="dwithin", distance=gap).T.tolist()}
        for gap in (gap_px, gap_px + _ROUNDING_PX)
    )
    yield from sure
    # GEOS rounds differently here than in its distance: outlines that touch may be apart by the last bit
    for one, other in likely - sure:
        if one < other and shapely.distance(deposits[one], deposits[other]) <= gap_px:
            yield one, other
