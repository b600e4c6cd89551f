"""Outlines of metastases: irregular polygons that fit into the tissue and have exactly the requested diameter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotations.measures import MERGE_GAP_UM
from annotations.polygons import longest_diameter
from staging.phantom.anatomy import CELL_UM, RIM, Anatomy
from staging.phantom.texture import Tissue

Outline = NDArray[np.float64]
_APART_UM = 170.0
_MARGIN_UM = 26.0
_VERTEX_UM = 6.0
_RIPPLE_UM = 34.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GrownLesion:
    """One lesion as drawn: float64 (n, 2) outlines x, y in um on the slide, not closed.

    Attributes:
        deposits: tumour.
        islands: lymphoid islands inside a deposit.
    """

    deposits: tuple[Outline, ...]
    islands: tuple[Outline, ...]


class Ground:
    """Where on a section metastases may still grow; a grown lesion blocks its surroundings."""

    def __init__(self, anatomy: Anatomy) -> None:
        solid = (anatomy.tissue != Tissue.GLASS) & (anatomy.tissue != Tissue.FAT)
        self.depth_um = anatomy.depth_um
        self.free: NDArray[np.bool_] = solid & (anatomy.depth_um > _MARGIN_UM)

    def holds(self, points: Outline) -> bool:
        """Return whether all points (n, 2: x, y in um) are on free ground."""
        return bool(self.free[self._cells(points)].all())

    def room(self, x: float, y: float, turns: NDArray[np.float64], reach_um: float) -> NDArray[np.float64]:
        """Return how far free ground extends from (x, y) in each direction, in um, ``reach_um`` at most."""
        steps = np.arange(1, int(reach_um / 12) + 2) * 12.0
        rays = np.stack(
            [x + steps[None, :] * np.cos(turns)[:, None], y + steps[None, :] * np.sin(turns)[:, None]], axis=2
        )
        open_ = self.free[self._cells(rays.reshape(-1, 2))].reshape(len(turns), -1)
        blocked = np.where(open_.all(axis=1), len(steps), np.argmin(open_, axis=1))
        return np.asarray(blocked * 12.0 - 12.0)

    def block(self, lesion: GrownLesion) -> None:
        """Block the lesion and everything nearer to it than another lesion may be."""
        from scipy import ndimage  # noqa: PLC0415  (slow to import)

        points = np.concatenate(lesion.deposits)
        pad = int(_APART_UM / CELL_UM) + 3
        low = np.maximum(np.floor(points.min(axis=0) / CELL_UM).astype(int) + RIM - pad, 0)
        high = np.ceil(points.max(axis=0) / CELL_UM).astype(int) + RIM + pad
        window = slice(low[1], high[1]), slice(low[0], high[0])
        rows_columns = self.free[window].shape
        taken = np.zeros(rows_columns, dtype=bool)
        for outline in lesion.deposits:
            columns, rows = ((outline / CELL_UM + RIM) - low).T
            taken |= fill_polygon(columns, rows, (rows_columns[0], rows_columns[1]))
            taken[rows.astype(int), columns.astype(int)] = True
        near = ndimage.distance_transform_edt(~taken) * CELL_UM < _APART_UM + 1.5 * CELL_UM
        self.free[window] &= ~near

    def _cells(self, points: Outline) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        cells = np.floor(points / CELL_UM).astype(np.intp) + RIM
        rows, columns = self.free.shape
        return np.clip(cells[:, 1], 0, rows - 1), np.clip(cells[:, 0], 0, columns - 1)


def fill_polygon(x: NDArray[np.float64], y: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Find the cells whose centre is inside a closed polygon by the non-zero rule.

    Args:
        x: of the vertices (n,) in cells; cell (row, column) covers [column, column + 1) x [row, row + 1).
        y: of the vertices (n,).
        shape: (rows, columns) of the raster, which begins at (0, 0); vertices may be outside.

    Returns:
        bool ``shape``.
    """
    rows, columns = shape
    winding = np.zeros((rows, columns + 1), dtype=np.int16)
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    first = np.ceil(np.minimum(y, y2) - 0.5)
    last = np.ceil(np.maximum(y, y2) - 0.5)
    first, last = np.clip(first, 0, rows).astype(np.intp), np.clip(last, 0, rows).astype(np.intp)
    count = last - first
    edge = np.repeat(np.arange(len(x)), count)
    if edge.size:
        row = np.arange(edge.size) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        crossing = x[edge] + (row + 0.5 - y[edge]) * (x2[edge] - x[edge]) / (y2[edge] - y[edge])
        column = np.clip(np.ceil(crossing - 0.5), 0, columns).astype(np.intp)
        np.add.at(winding, (row, column), np.where(y2[edge] > y[edge], 1, -1).astype(np.int16))
        np.cumsum(winding, axis=1, out=winding)
    return np.asarray(winding[:, :columns] != 0)


def grow_lesion(
    rng: np.random.Generator, ground: Ground, diameter_um: float, *, deposits: int, island: bool, loop: bool
) -> GrownLesion | None:
    """Outline one lesion on free ground.

    Args:
        rng: source of randomness.
        ground: where there is room.
        diameter_um: longest diameter of the lesion, all deposits together.
        deposits: number of tumour deposits, less than MERGE_GAP_UM apart, that form it.
        island: whether to leave a lymphoid island in the largest deposit.
        loop: whether the largest outline crosses itself once, as hand-drawn outlines do.

    Returns:
        The outlines, or None if no room was found.
    """
    starts = np.argwhere(ground.free)
    if not len(starts):
        return None
    shape = _cluster(rng, diameter_um, deposits) if deposits > 1 else None
    for attempt in range(40):
        row, column = starts[rng.integers(len(starts))]
        x, y = (column - RIM + 0.5) * CELL_UM, (row - RIM + 0.5) * CELL_UM
        if shape is not None and attempt < 25:
            outlines = [outline + np.array([x, y]) for outline in shape]
            if not ground.holds(np.concatenate(outlines)):
                continue
        else:
            if ground.depth_um[row, column] < min(0.12 * diameter_um, 250):
                continue
            single = _fitted(rng, ground, x, y, diameter_um)
            if single is None:
                continue
            outlines = [single]
        islands = _island(rng, outlines[0], diameter_um) if island else []
        if loop:
            outlines[0] = _with_loop(rng, outlines[0])
        return GrownLesion(deposits=tuple(outlines), islands=tuple(islands))
    return None


def _star(rng: np.random.Generator, diameter_um: float, *, rough: float) -> NDArray[np.float64]:
    """Relative radius of an irregular closed outline about ``diameter_um`` wide at equal turns, 1 on average."""
    count = _vertices(diameter_um)
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False)
    stretch, lie = rng.uniform(1.05, 1.7), rng.uniform(0, np.pi)
    radius = 1 / np.hypot(np.cos(turns - lie) / stretch, np.sin(turns - lie) * stretch)
    order = np.arange(count // 2 + 1)
    finest = np.pi * diameter_um / _RIPPLE_UM
    amplitude = np.where(order >= 2, rough / np.maximum(order, 1) ** 1.1 * np.exp(-((order / finest) ** 2)), 0.0)
    phases = rng.standard_normal(len(order)) * np.exp(2j * np.pi * rng.random(len(order)))
    waves = np.fft.irfft(amplitude * phases, n=count) * count / 2
    return np.asarray(radius * np.exp(np.clip(waves, -0.9, 0.7)))


def _vertices(diameter_um: float) -> int:
    return int(np.clip(3.6 * diameter_um / _VERTEX_UM, 20, 3600))


def _polar(x: float, y: float, radius: NDArray[np.float64]) -> Outline:
    turns = np.linspace(0, 2 * np.pi, len(radius), endpoint=False)
    return np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], axis=1)


def _fitted(rng: np.random.Generator, ground: Ground, x: float, y: float, diameter_um: float) -> Outline | None:
    """Grow an outline around (x, y) where there is room until it has the diameter."""
    star = _star(rng, diameter_um, rough=0.16)
    turns = np.linspace(0, 2 * np.pi, len(star), endpoint=False)
    rays = min(len(star), 720)
    few = np.linspace(0, 2 * np.pi, rays, endpoint=False)
    limit = ground.room(x, y, few, 1.1 * diameter_um)
    # the rays end at grid cells: an outline along the shortest of neighbouring rays is smooth and stays inside
    near = np.stack([np.roll(limit, shift) for shift in range(-3, 4)]).min(axis=0)
    limit = np.stack([np.roll(near, shift) for shift in range(-3, 4)]).mean(axis=0)
    limit = np.interp(turns, few, limit, period=2 * np.pi)
    if limit.min() < 4:
        return None

    def outline(size: float) -> Outline:
        return _polar(x, y, np.minimum(size * star, limit))

    low, high = 0.0, 3.0 * diameter_um
    if longest_diameter(outline(high)) < diameter_um:
        return None
    for _ in range(30):
        middle = (low + high) / 2
        if longest_diameter(outline(middle)) < diameter_um:
            low = middle
        else:
            high = middle
    found = outline(high)
    centre = np.array([x, y])
    return np.asarray(centre + (found - centre) * (diameter_um / longest_diameter(found)))


def _cluster(rng: np.random.Generator, diameter_um: float, deposits: int) -> list[Outline] | None:
    """Make deposits around (0, 0), each less than MERGE_GAP_UM from the first, together of the requested diameter."""
    from scipy.spatial import cKDTree  # noqa: PLC0415  (slow to import)

    for _ in range(30):
        main = diameter_um * rng.uniform(0.3, 0.75)
        star = _star(rng, main, rough=0.14)
        sides = rng.uniform(0, 2 * np.pi, deposits - 1)
        gaps = rng.uniform(14, 52, deposits - 1)
        sizes = np.clip(main * rng.uniform(0.15, 0.6, deposits - 1), 22, 260)
        others = [_star(rng, size, rough=0.14) for size in sizes]
        outlines: list[Outline] = []
        for _ in range(6):
            radius = star * main / 2
            outlines = [_polar(0, 0, radius)]
            for side, gap, size, other in zip(sides, gaps, sizes, others, strict=True):
                away = radius[int(side / (2 * np.pi) * len(radius)) % len(radius)] + gap + other.max() * size / 2
                outlines.append(_polar(away * np.cos(side), away * np.sin(side), other * size / 2))
            factor = diameter_um / longest_diameter(np.concatenate(outlines))
            main *= factor
        outlines = [outline * factor for outline in outlines]
        tree = cKDTree(outlines[0])
        near = [float(np.min(tree.query(outline)[0])) for outline in outlines[1:]]
        if main > 20 and 0.8 < factor < 1.25 and all(8 < gap < 0.85 * MERGE_GAP_UM for gap in near):
            return outlines
    return None


def _island(rng: np.random.Generator, outline: Outline, diameter_um: float) -> list[Outline]:
    import shapely  # noqa: PLC0415  (slow to import)

    polygon = shapely.Polygon(outline)
    for _ in range(20):
        size = diameter_um * rng.uniform(0.08, 0.2)
        x, y = outline.mean(axis=0) + rng.normal(0, 0.12 * diameter_um, 2)
        island = _polar(x, y, _star(rng, size, rough=0.12) * size / 2)
        if polygon.is_valid and polygon.buffer(-20).contains(shapely.Polygon(island)):
            return [island]
    return []


def _with_loop(rng: np.random.Generator, outline: Outline) -> Outline:
    """The outline with two neighbouring vertices swapped, so that it crosses itself there."""
    at = int(rng.integers(1, len(outline) - 2))
    crossed = outline.copy()
    crossed[[at, at + 1]] = crossed[[at + 1, at]]
    return crossed
