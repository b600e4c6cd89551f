"""The lesions of a slide as sites to draw patches from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.measures import MERGE_GAP_UM
from annotations.painting import Painting, polygon_mask, probe_frame
from annotations.polygons import connected_groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LesionSite:
    """Tumour outlines that count as one deposit; positions are level-0 px.

    Attributes:
        x, y: float64 (n,), centres of small cells with tumour.
        side: float64 (n,), the cells' sides.
        outline: float64 (m, 4), the edges: x and y of their two ends.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    side: NDArray[np.float64]
    outline: NDArray[np.float64]

    def inner_point(self, rng: np.random.Generator) -> tuple[float, float]:
        """A random (x, y) in the tumour, uniform over its area."""
        area = self.side**2
        cell = rng.choice(len(area), p=area / area.sum())
        x, y = rng.uniform(-0.5, 0.5, 2) * self.side[cell]
        return float(self.x[cell] + x), float(self.y[cell] + y)

    def border_point(self, rng: np.random.Generator) -> tuple[float, float]:
        """A random (x, y) on the outlines, uniform along their length."""
        length = np.hypot(*(self.outline[:, 2:] - self.outline[:, :2]).T)
        x0, y0, x1, y1 = self.outline[rng.choice(len(length), p=length / length.sum())]
        along = rng.uniform()
        return float(x0 + along * (x1 - x0)), float(y0 + along * (y1 - y0))


def find_sites(annotations: Sequence[Annotation], painting: Painting, *, mpp: float) -> tuple[LesionSite, ...]:
    """Group the tumour outlines that lie at most MERGE_GAP_UM apart; those that cut-outs remove wholly are dropped.

    Args:
        annotations: of one slide.
        painting: made of the same annotations.
        mpp: um per level-0 px.
    """
    drawn = [annotation.outline for annotation in annotations if annotation.role is Role.TUMOUR]
    outlines = [outline for outline in drawn if outline is not None]
    sites = (_site(members, painting) for members in _together(outlines, MERGE_GAP_UM / mpp))
    return tuple(site for site in sites if site is not None)


def _site(outlines: Sequence[NDArray[np.float64]], painting: Painting) -> LesionSite | None:
    cells = [_cells(outline, painting) for outline in outlines]
    x, y, side = (np.concatenate(parts) for parts in zip(*cells, strict=True))
    if not len(x):
        return None
    edges = np.concatenate([np.hstack([outline, np.roll(outline, -1, axis=0)]) for outline in outlines])
    return LesionSite(x=x, y=y, side=side, outline=edges)


def _cells(
    outline: NDArray[np.float64], painting: Painting
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    frame = probe_frame(outline)
    if frame is None:
        return np.empty(0), np.empty(0), np.empty(0)
    rows, columns = np.nonzero(polygon_mask([outline], frame).array & painting.mask(frame).array)
    x, y = frame.centres(rows, columns)
    return x, y, np.full(len(x), frame.downsample)


def _together(outlines: Sequence[NDArray[np.float64]], gap_px: float) -> list[list[NDArray[np.float64]]]:
    """Outlines in groups, each connected by gaps of at most ``gap_px``; in order of their first members."""
    if not outlines:
        return []
    rings = [shapely.linestrings(np.vstack([outline, outline[:1]])) for outline in outlines]
    near = shapely.STRtree(rings).query(rings, predicate="dwithin", distance=gap_px).T.tolist()
    return [[outlines[number] for number in group] for group in connected_groups(len(rings), near)]
