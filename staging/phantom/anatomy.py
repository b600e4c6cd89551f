"""The plan of one section: which tissue lies where, on a grid of 16 um, and where pen, folds and debris darken it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from staging.phantom.noise import Field, coarse_noise, enlarge, spline_rows
from staging.phantom.texture import Tissue

CELL_UM = 16.0
"""Side of a cell of the tissue grid in um."""
TINT_CELL_UM = 32.0
"""Side of a cell of the tint grid in um."""
RIM = 2
"""Cells of glass around both grids, so that every tile has neighbours to interpolate from."""

_PENS = ((0.28, 0.36, 0.78), (0.25, 0.62, 0.42), (0.24, 0.24, 0.27))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anatomy:
    """One section; cell (RIM, RIM) of each grid begins at the slide's corner.

    Attributes:
        tissue: uint8 (rows, columns): Tissue codes of the section without tumour.
        tumour: uint8, the same shape: the tumour texture of a metastasis at this position.
        depth_um: float32, the same shape: distance to the node's outline, positive inside.
        tint: float32 (rows, columns, 3) on the tint grid: share of the light that passes whatever is on or over the
            tissue (uneven stain, folds, ink), 1 for all of it.
    """

    tissue: NDArray[np.uint8]
    tumour: NDArray[np.uint8]
    depth_um: Field
    tint: Field


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    x: float
    y: float
    length: float
    breadth: float
    turn: float
    hilum: float
    fatty: float


def draw_anatomy(
    rng: np.random.Generator,
    *,
    width_um: float,
    height_um: float,
    pieces: int,
    fatty: bool,
    pen: bool,
    fold: bool,
) -> Anatomy:
    """Draw one section on a slide of this size, in one or two pieces."""
    shape = (int(np.ceil(height_um / CELL_UM)) + 2 * RIM + 1, int(np.ceil(width_um / CELL_UM)) + 2 * RIM + 1)
    tissue = np.full(shape, Tissue.GLASS, dtype=np.uint8)
    depth = np.full(shape, -1e4, dtype=np.float32)
    for piece in _pieces(rng, width_um, height_um, pieces, fatty=fatty):
        _draw_piece(rng, piece, tissue, depth)
    kind = np.select(
        [
            _noise(rng, shape, 700) > 1.7,
            _noise(rng, shape, 900) > 0.8,
            _noise(rng, shape, 900) > 0.9,
            _noise(rng, shape, 900) > 0.2,
        ],
        [
            np.uint8(Tissue.TUMOUR_NECROSIS),
            np.uint8(Tissue.TUMOUR_GLANDS),
            np.uint8(Tissue.TUMOUR_FILES),
            np.uint8(Tissue.TUMOUR_NESTED),
        ],
        np.uint8(Tissue.TUMOUR_SOLID),
    )
    tint = _tint(rng, tissue, depth, pen=pen, fold=fold)
    return Anatomy(tissue=tissue, tumour=np.asarray(kind, dtype=np.uint8), depth_um=depth, tint=tint)


def _pieces(rng: np.random.Generator, width_um: float, height_um: float, count: int, *, fatty: bool) -> list[_Piece]:
    turn = rng.normal(0, 0.25)
    replaced = float(rng.uniform(0.12, 0.32)) if fatty else 0.0
    found = []
    for number in range(count):
        share = 1.0 if count == 1 else 0.52
        length = share * width_um * rng.uniform(0.6, 0.72)
        breadth = min(length * rng.uniform(0.58, 0.8), 0.66 * height_um)
        found.append(
            _Piece(
                x=width_um * ((0.5 if count == 1 else 0.27 + 0.46 * number) + rng.uniform(-0.03, 0.03)),
                y=height_um * (0.5 + rng.uniform(-0.04, 0.04)),
                length=length,
                breadth=breadth,
                turn=turn + (0.0 if count == 1 else rng.normal(0, 0.5)),
                hilum=rng.choice([0.5, 1.5]) * np.pi + rng.normal(0, 0.35),
                fatty=replaced,
            )
        )
    return found


def _noise(
    rng: np.random.Generator, shape: tuple[int, int], wavelength_um: float, finest_um: float = 0.0, rough: float = 0.8
) -> Field:
    return coarse_noise(
        rng, shape, wavelength=wavelength_um / CELL_UM, roughness=rough, finest=max(finest_um / CELL_UM, 0.0)
    )


def _draw_piece(rng: np.random.Generator, piece: _Piece, tissue: NDArray[np.uint8], depth_um: Field) -> None:
    rows, columns = tissue.shape
    x = ((np.arange(columns, dtype=np.float32) + 0.5 - RIM) * CELL_UM - piece.x)[None, :]
    y = ((np.arange(rows, dtype=np.float32) + 0.5 - RIM) * CELL_UM - piece.y)[:, None]
    along = (x * np.cos(piece.turn) + y * np.sin(piece.turn)) / (piece.length / 2)
    across = (y * np.cos(piece.turn) - x * np.sin(piece.turn)) / (piece.breadth / 2)
    outline = _outline(rng, piece)
    angle = np.arctan2(across, along)
    edge = np.interp(angle, np.linspace(-np.pi, np.pi, outline.size), outline).astype(np.float32)
    inside = np.hypot(along, across) < edge
    depth = _distance(inside)
    np.maximum(depth_um, depth, out=depth_um)

    tip = 0.82 * np.interp(piece.hilum % (2 * np.pi) - np.pi, np.linspace(-np.pi, np.pi, outline.size), outline)
    hilum_along, hilum_across = -tip * np.cos(piece.hilum), -tip * np.sin(piece.hilum)
    hilum = np.hypot((along - hilum_along) * piece.length, (across - hilum_across) * piece.breadth) / (
        piece.length + piece.breadth
    )
    _draw_fat(rng, depth, hilum, tissue)
    _draw_node(rng, depth, hilum, piece, tissue)
    _draw_vessels(rng, depth, hilum, tissue)


def _outline(rng: np.random.Generator, piece: _Piece) -> Field:
    """Relative radius at 721 angles from -pi to pi: a bean, dented at the hilum."""
    theta = np.linspace(-np.pi, np.pi, 721)
    waves = sum(
        rng.normal(0, 0.16 / order**1.25) * np.cos(order * theta + rng.uniform(0, 2 * np.pi)) for order in range(2, 40)
    )
    away = (theta - (piece.hilum - np.pi) + np.pi) % (2 * np.pi) - np.pi
    dent = rng.uniform(0.12, 0.3) * np.exp(-((away / rng.uniform(0.25, 0.45)) ** 2))
    return np.asarray(np.clip(1 + 0.75 * waves - dent, 0.5, 1.25), dtype=np.float32)


def _distance(inside: NDArray[np.bool_]) -> Field:
    """Distance to the outline in um, positive inside: measured at half the resolution, smoothly enlarged."""
    from scipy import ndimage  # noqa: PLC0415  (slow to import)

    half = np.pad(inside[::2, ::2], 2, mode="edge")
    signed = ndimage.distance_transform_edt(half) - ndimage.distance_transform_edt(~half)
    down = spline_rows(inside.shape[0], 0.5, 2.5)
    across = spline_rows(inside.shape[1], 0.5, 2.5)
    signed = np.pad(signed.astype(np.float32), 1, mode="edge")
    return enlarge(signed[: down.shape[1], : across.shape[1]], down, across) * np.float32(2 * CELL_UM)


def _draw_fat(rng: np.random.Generator, depth: Field, hilum: Field, tissue: NDArray[np.uint8]) -> None:
    shape = depth.shape
    lobes = _noise(rng, shape, 2400, 90, rough=0.7)
    reach = 260 + 380 * lobes + 1500 * np.exp(-((hilum / 0.28) ** 2))
    fat = (depth <= 0) & (-depth < reach)
    tissue[fat & (tissue == Tissue.GLASS)] = Tissue.FAT
    septa = np.abs(_noise(rng, shape, 1300, 160, rough=1.2)) < 0.03
    tissue[fat & septa] = Tissue.COLLAGEN


def _draw_node(rng: np.random.Generator, depth: Field, hilum: Field, piece: _Piece, tissue: NDArray[np.uint8]) -> None:
    shape = depth.shape
    node = depth > 0
    wobble = _noise(rng, shape, 700, 50)
    broad = _noise(rng, shape, 2200, 200)
    fine = _noise(rng, shape, 240, 32)
    plan = np.full(shape, Tissue.CORTEX, dtype=np.uint8)
    plan[depth > 700 + 260 * broad] = Tissue.PARACORTEX
    medulla = hilum + 0.07 * broad + 0.03 * wobble < 0.36
    _draw_follicles(rng, plan, (depth > 150) & (depth < 650 + 200 * wobble) & ~medulla, wobble)
    plan[medulla] = Tissue.CORTEX
    plan[medulla & (_noise(rng, shape, 420, 40) > 0.1)] = Tissue.PARACORTEX
    channels = np.abs(fine) < 0.3 - 0.6 * np.maximum(0, hilum - 0.22)
    cords = _noise(rng, shape, 520, 40)
    plan[medulla & (cords > -0.3)] = Tissue.PLASMA
    plan[~medulla & (depth > 500) & (cords > 1.7)] = Tissue.PLASMA
    plan[medulla & channels] = Tissue.SINUS
    plan[(medulla | (depth < 900)) & (_noise(rng, shape, 800, 50) > 1.5)] = Tissue.HISTIOCYTES
    ridge = np.abs(_noise(rng, shape, 1900, 40))
    thick = 0.022 + 0.012 * wobble
    septum = (depth < 1500 + 500 * broad) & (broad > -0.6)
    plan[septum & (ridge < thick + 0.03)] = Tissue.SINUS
    plan[septum & (ridge < thick)] = Tissue.COLLAGEN
    capsule = 38 + 16 * wobble
    plan[(depth < capsule + 52 + 30 * fine) & (broad + wobble > -0.9)] = Tissue.SINUS
    plan[depth < np.maximum(capsule, 20)] = Tissue.COLLAGEN
    plan[(depth < capsule + 90) & (_noise(rng, shape, 420, 40) > 2.2)] = Tissue.RESTS
    core = hilum + 0.05 * broad + 0.025 * wobble
    plan[core < 0.1 + 0.7 * piece.fatty] = Tissue.COLLAGEN
    plan[core < 0.085 + 0.7 * piece.fatty] = Tissue.FAT
    tissue[node] = plan[node]


def _draw_follicles(rng: np.random.Generator, plan: NDArray[np.uint8], where: NDArray[np.bool_], wobble: Field) -> None:
    candidates = np.argwhere(where)
    drawn: list[tuple[float, float, float]] = []
    for row, column in candidates[rng.permutation(len(candidates))[:260]]:
        radius = rng.uniform(130, 330) / CELL_UM
        if any(np.hypot(row - r, column - c) < 0.95 * (radius + other) for r, c, other in drawn):
            continue
        drawn.append((row, column, radius))
        reach = int(1.6 * radius) + 2
        rows = slice(max(0, row - reach), row + reach + 1)
        columns = slice(max(0, column - reach), column + reach + 1)
        y = np.arange(plan.shape[0])[rows, None] - row
        x = np.arange(plan.shape[1])[None, columns] - column
        squeeze, turn = rng.uniform(1.0, 1.35), rng.uniform(0, np.pi)
        u = (x * np.cos(turn) + y * np.sin(turn)) / squeeze
        v = (y * np.cos(turn) - x * np.sin(turn)) * squeeze
        ratio = np.hypot(u, v) / radius * (1 + 0.12 * wobble[rows, columns])
        window = plan[rows, columns]
        window[ratio < 1] = Tissue.MANTLE
        if rng.random() < 0.7:
            window[ratio < rng.uniform(0.5, 0.7)] = Tissue.GERMINAL


def _draw_vessels(rng: np.random.Generator, depth: Field, hilum: Field, tissue: NDArray[np.uint8]) -> None:
    candidates = np.argwhere((hilum < 0.2) & (depth > -900) & (tissue != Tissue.GLASS))
    for row, column in candidates[rng.permutation(len(candidates))[: int(rng.integers(4, 11))]]:
        radius = rng.uniform(50, 190) / CELL_UM
        reach = int(1.5 * radius) + 2
        rows = slice(max(0, row - reach), row + reach + 1)
        columns = slice(max(0, column - reach), column + reach + 1)
        y = np.arange(tissue.shape[0])[rows, None] - row
        x = np.arange(tissue.shape[1])[None, columns] - column
        squeeze, turn = rng.uniform(1.0, 1.5), rng.uniform(0, np.pi)
        ratio = np.hypot(
            (x * np.cos(turn) + y * np.sin(turn)) / squeeze, (y * np.cos(turn) - x * np.sin(turn)) * squeeze
        )
        window = tissue[rows, columns]
        window[ratio < radius] = Tissue.COLLAGEN
        window[ratio < rng.uniform(0.35, 0.75) * radius] = rng.choice([Tissue.BLOOD, Tissue.BLOOD, Tissue.GLASS])


def _tint(rng: np.random.Generator, tissue: NDArray[np.uint8], depth: Field, *, pen: bool, fold: bool) -> Field:
    step = round(TINT_CELL_UM / CELL_UM)
    # both grids have RIM cells of glass before the slide's corner, in their own cell size
    covered = np.pad(tissue[RIM::step, RIM::step] > Tissue.FAT, RIM)
    # fades out inside the tissue, where it is invisible, not on the white beside it
    for axis in (0, 1):
        covered = covered & np.roll(covered, 1, axis) & np.roll(covered, -1, axis)
    deep = np.pad(depth[RIM::step, RIM::step], RIM, mode="edge")
    shape = covered.shape
    light = coarse_noise(rng, shape, wavelength=2400 / TINT_CELL_UM, finest=250 / TINT_CELL_UM)
    hue = coarse_noise(rng, shape, wavelength=1800 / TINT_CELL_UM, finest=250 / TINT_CELL_UM)
    absorbed = np.clip(0.04 + 0.045 * light, 0, 0.18)[..., None] * np.array([1.0, 1.25, 0.8])
    absorbed = absorbed + np.clip(0.03 * hue, -0.04, 0.08)[..., None] * np.array([1.0, -0.2, 0.3])
    # each slide is a little thicker, or was longer in the bath, than the next
    absorbed = absorbed + rng.uniform(0, 0.05) + rng.normal(0, 0.02, 3)
    tint = 1 - np.clip(absorbed, 0, 0.3) * covered[..., None]
    if fold:
        for _ in range(int(rng.integers(1, 3))):
            _draw_fold(rng, tint, deep, covered)
    for _ in range(int(rng.poisson(3))):
        _draw_debris(rng, tint)
    if pen:
        _draw_pen(rng, tint, covered)
    return np.asarray(tint, dtype=np.float32)


def _stroke(shape: tuple[int, int], points: NDArray[np.float64], width: NDArray[np.float64]) -> Field:
    """Coverage 0 to 1 of a soft line through ``points`` (n, 2: row, column) with half ``width`` (n,) in cells."""
    coverage = np.zeros(shape, dtype=np.float32)
    for (row, column), half in zip(points, width, strict=True):
        reach = int(half) + 3
        rows = slice(max(0, int(row) - reach), max(0, int(row) + reach + 1))
        columns = slice(max(0, int(column) - reach), max(0, int(column) + reach + 1))
        y = np.arange(shape[0])[rows, None] - row
        x = np.arange(shape[1])[None, columns] - column
        window = coverage[rows, columns]
        np.maximum(window, np.clip(half - np.hypot(x, y) + 0.5, 0, 1), out=window)
    return coverage


def _walk(rng: np.random.Generator, start: NDArray[np.float64], steps: int, bend: float) -> NDArray[np.float64]:
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps))
    return np.asarray(start + np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0))


def _draw_fold(rng: np.random.Generator, tint: Field, depth: Field, covered: NDArray[np.bool_]) -> None:
    candidates = np.argwhere(depth > 100)
    if not len(candidates):
        return
    steps = int(rng.uniform(20, 70))
    points = _walk(rng, candidates[rng.integers(len(candidates))].astype(np.float64), steps, 0.05)
    width = rng.uniform(1.0, 2.6) * np.sin(np.linspace(0.15, np.pi - 0.15, steps)) ** 0.5
    cover = _stroke(depth.shape, points, width) * covered  # two layers of glass or fat are as clear as one
    tint *= 1 - cover[..., None] * np.array([0.42, 0.55, 0.36])


def _draw_debris(rng: np.random.Generator, tint: Field) -> None:
    start = rng.uniform(0.04, 0.96, 2) * tint.shape[:2]
    points = _walk(rng, start, int(rng.integers(1, 6)), 1.0)
    cover = _stroke(tint.shape[:2], points, rng.uniform(0.4, 1.2, len(points)))
    tint *= 1 - cover[..., None] * rng.uniform(0.3, 0.75) * np.array([0.9, 0.95, 1.0])


def _draw_pen(rng: np.random.Generator, tint: Field, covered: NDArray[np.bool_]) -> None:
    colour = 1 - np.array(_PENS[rng.integers(len(_PENS))])
    edge = np.argwhere(covered)
    if not len(edge):
        return
    top, left = edge.min(axis=0)
    bottom, right = edge.max(axis=0)
    steps = int(rng.uniform(60, 160))
    start = np.array([rng.choice([top - 8.0, bottom + 8.0]), rng.uniform(left, right)])
    points = _walk(rng, start, steps, 0.035)
    width = rng.uniform(4, 8) * (1 + 0.12 * np.sin(np.linspace(0, rng.uniform(3, 9), steps)))
    streaks = 0.9 + 0.08 * coarse_noise(rng, covered.shape, wavelength=12.0)
    cover = _stroke(covered.shape, points, width) * np.clip(streaks, 0.3, 1)
    tint *= 1 - cover[..., None] * colour
