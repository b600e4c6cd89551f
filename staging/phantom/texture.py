"""The microscopic texture of each tissue of a lymph node, as haematoxylin and eosin on a toroidal canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from staging.phantom.cells import Canvas, Kind, Stamp, cut_stamps
from staging.phantom.noise import Field, enlarge_periodic


class Tissue(IntEnum):
    """The tissue at a position of a section; the value is the code in class maps."""

    GLASS = 0
    FAT = 1
    COLLAGEN = 2
    CORTEX = 3
    MANTLE = 4
    GERMINAL = 5
    PARACORTEX = 6
    SINUS = 7
    HISTIOCYTES = 8
    BLOOD = 9
    TUMOUR_SOLID = 10
    TUMOUR_NESTED = 11
    TUMOUR_GLANDS = 12
    PLASMA = 13
    RESTS = 14
    TUMOUR_FILES = 15
    TUMOUR_NECROSIS = 16


TUMOURS: tuple[Tissue, ...] = (
    Tissue.TUMOUR_SOLID,
    Tissue.TUMOUR_NESTED,
    Tissue.TUMOUR_GLANDS,
    Tissue.TUMOUR_FILES,
    Tissue.TUMOUR_NECROSIS,
)

_LYMPHOCYTE = Kind(
    nucleus_um=4.9,
    spread=0.14,
    aspect=1.25,
    chromatin=0.95,
    pallor=0.16,
    clumps=0.3,
    body_um=6.4,
    eosin=0.32,
    basophilia=0.05,
    ragged=0.09,
)
_LARGER_LYMPHOCYTE = Kind(
    nucleus_um=7.4, spread=0.1, chromatin=0.72, pallor=0.35, clumps=0.3, nucleoli=1, body_um=9.4, eosin=0.42
)
_CENTROBLAST = Kind(
    nucleus_um=8.2,
    spread=0.14,
    aspect=1.25,
    chromatin=0.8,
    pallor=0.5,
    clumps=0.34,
    nucleoli=2,
    body_um=10.2,
    eosin=0.48,
    basophilia=0.14,
    ragged=0.08,
)
_CENTROCYTE = Kind(nucleus_um=6.4, aspect=1.5, chromatin=0.72, pallor=0.25, ragged=0.1, body_um=8, eosin=0.4)
_HISTIOCYTE = Kind(
    nucleus_um=7.2,
    spread=0.14,
    aspect=1.6,
    chromatin=0.62,
    pallor=0.5,
    clumps=0.3,
    nucleoli=1,
    body_um=16,
    eosin=0.52,
    basophilia=0.07,
    ragged=0.12,
)
_RETICULAR = Kind(nucleus_um=8.5, aspect=1.7, chromatin=0.45, pallor=0.55, nucleoli=1, body_um=12, eosin=0.38)
_TINGIBLE = Kind(
    nucleus_um=7.5, aspect=1.3, chromatin=0.4, pallor=0.5, body_um=19, eosin=0.14, clears=True, ragged=0.08
)
_DEBRIS = Kind(nucleus_um=2.4, spread=0.35, chromatin=1.3, pallor=0.0)
_FIBROBLAST = Kind(nucleus_um=4.6, spread=0.15, aspect=4.5, chromatin=0.85, pallor=0.1, ragged=0.08)
_ERYTHROCYTE = Kind(nucleus_um=0.0, body_um=6.6, spread=0.08, eosin=1.5, basophilia=0.02)
# Tumour is told by its nuclei: on the scale of a cell and above, it has the densities of what lies around it.
_TUMOUR_CELL = Kind(
    nucleus_um=9.9,
    spread=0.2,
    aspect=1.35,
    chromatin=0.95,
    pallor=0.5,
    clumps=0.3,
    nucleoli=2,
    body_um=15.0,
    eosin=0.52,
    basophilia=0.27,
    ragged=0.12,
)
_DARK_TUMOUR_CELL = Kind(
    nucleus_um=10.2, spread=0.25, aspect=1.7, chromatin=1.1, pallor=0.1, body_um=14, eosin=0.5, ragged=0.14
)
_LUMEN = Kind(nucleus_um=0.0, body_um=24, spread=0.35, aspect=1.6, clears=True, ragged=0.14)


def paint(tissue: Tissue, rng: np.random.Generator, *, size: int, pixel_um: float) -> Canvas:
    """Paint one tissue on a canvas of ``size`` fine px of ``pixel_um``."""
    canvas = Canvas(size, pixel_um)
    _RECIPES[tissue](canvas, rng)
    if tissue is not Tissue.GLASS:
        canvas.roughen(rng, h=0.2, e=0.18 if tissue in (Tissue.FAT, Tissue.COLLAGEN) else 0.36)
    return canvas


def _scatter(
    canvas: Canvas,
    rng: np.random.Generator,
    spacing_um: float,
    *,
    jitter: float = 0.22,
    share: float = 1.0,
    where: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Draw positions (n, 2: x, y in um) in shuffled order on a jittered hexagonal grid that wraps around the edges."""
    columns = max(1, round(canvas.width_um / spacing_um))
    rows = max(2, 2 * round(canvas.width_um / spacing_um / np.sqrt(0.75) / 2))
    row, column = np.divmod(np.arange(rows * columns), columns)
    x = (column + 0.5 * (row % 2)) / columns
    y = row / rows
    centres = np.stack([x, y], axis=1) * canvas.width_um + rng.normal(0, jitter * spacing_um, (rows * columns, 2))
    centres %= canvas.width_um
    kept = rng.random(len(centres)) < share
    if where is not None:
        index = np.minimum((centres / canvas.pixel_um).astype(np.intp), canvas.size - 1)
        kept &= where[index[:, 1], index[:, 0]]
    return np.asarray(rng.permutation(centres[kept]), dtype=np.float64)


def _cells(
    canvas: Canvas,
    rng: np.random.Generator,
    kind: Kind,
    spacing_um: float,
    *,
    count: int = 24,
    share: float = 1.0,
    jitter: float = 0.22,
    where: NDArray[np.bool_] | None = None,
) -> None:
    stamps = cut_stamps(rng, kind, pixel_um=canvas.pixel_um, count=count)
    canvas.put(stamps, _scatter(canvas, rng, spacing_um, share=share, jitter=jitter, where=where))


def _around(
    canvas: Canvas, rng: np.random.Generator, stamps: list[Stamp], centres: NDArray[np.float64], *, radius_um: float
) -> None:
    """A ring of stamps around each centre."""
    turns = rng.uniform(0, 2 * np.pi, len(centres))[:, None] + np.linspace(0, 2 * np.pi, 7, endpoint=False)[None, :]
    reach = radius_um * rng.uniform(0.85, 1.15, turns.shape)
    ring = centres[:, None, :] + np.stack([reach * np.cos(turns), reach * np.sin(turns)], axis=2)
    canvas.put(stamps, ring.reshape(-1, 2) % canvas.width_um)


def _small_vessels(canvas: Canvas, rng: np.random.Generator, spacing_um: float) -> None:
    """High endothelial venules: a pink wall, plump pale nuclei, some with red cells."""
    wall = Kind(nucleus_um=0.0, body_um=19, spread=0.2, aspect=1.6, eosin=0.72, clears=True, ragged=0.1)
    lumen = Kind(nucleus_um=0.0, body_um=6, spread=0.3, aspect=2.2, eosin=0.22, clears=True)
    endothelium = Kind(nucleus_um=6.5, aspect=1.8, chromatin=0.6, pallor=0.4, nucleoli=1)
    centres = _scatter(canvas, rng, spacing_um, jitter=0.35)
    canvas.put(cut_stamps(rng, wall, pixel_um=canvas.pixel_um, count=8), centres)
    canvas.put(cut_stamps(rng, lumen, pixel_um=canvas.pixel_um, count=8), centres)
    canvas.put(cut_stamps(rng, _ERYTHROCYTE, pixel_um=canvas.pixel_um, count=6), centres[::3])
    _around(canvas, rng, cut_stamps(rng, endothelium, pixel_um=canvas.pixel_um, count=16), centres, radius_um=6.5)


def _lymphoid_ground(canvas: Canvas, rng: np.random.Generator, *, eosin: float, gaps: float) -> None:
    """A net of pale threads, and white between them where the cells shrank away from each other."""
    threads = np.exp(-np.square(canvas.grain(rng) / np.float32(0.6)))
    shrunk = canvas.noise(rng, wavelength_um=22, roughness=0.2) + canvas.grain(rng) > 1.3 - 2 * gaps
    canvas.ground(h=0.03, e=np.where(shrunk, 0.02, eosin * (0.12 + 1.5 * threads)).astype(np.float32))


def _tear(canvas: Canvas, rng: np.random.Generator, *, level: float) -> None:
    """White holes of some um, where sections shrank: what lies above ``level`` standard deviations of a noise."""
    holes = canvas.noise(rng, wavelength_um=34, roughness=0.5, finest_um=3) - np.float32(level)
    canvas.thin(np.clip(holes * np.float32(6) + np.float32(0.5), 0, 1))


def _cortex(canvas: Canvas, rng: np.random.Generator) -> None:
    _lymphoid_ground(canvas, rng, eosin=0.4, gaps=0.15)
    _tear(canvas, rng, level=0.7)
    _cells(canvas, rng, _LYMPHOCYTE, 7.0, share=0.86, count=40, jitter=0.13)
    _cells(canvas, rng, _LARGER_LYMPHOCYTE, 17, share=0.6)
    _cells(canvas, rng, _RETICULAR, 44, share=0.7)


def _mantle(canvas: Canvas, rng: np.random.Generator) -> None:
    _lymphoid_ground(canvas, rng, eosin=0.42, gaps=0.0)
    _tear(canvas, rng, level=1.1)
    _cells(canvas, rng, _LYMPHOCYTE, 6.25, share=0.97, count=40, jitter=0.11)


def _germinal(canvas: Canvas, rng: np.random.Generator) -> None:
    _lymphoid_ground(canvas, rng, eosin=0.46, gaps=0.0)
    _cells(canvas, rng, _CENTROBLAST, 9.8, share=0.8, count=32, jitter=0.15)
    _cells(canvas, rng, _CENTROCYTE, 11.5, share=0.5)
    macrophages = _scatter(canvas, rng, 62, jitter=0.3)
    canvas.put(cut_stamps(rng, _TINGIBLE, pixel_um=canvas.pixel_um, count=8), macrophages)
    crumbs = np.repeat(macrophages, 3, axis=0) + rng.normal(0, 4.0, (3 * len(macrophages), 2))
    canvas.put(cut_stamps(rng, _DEBRIS, pixel_um=canvas.pixel_um, count=12), crumbs % canvas.width_um)


def _paracortex(canvas: Canvas, rng: np.random.Generator) -> None:
    _lymphoid_ground(canvas, rng, eosin=0.48, gaps=0.1)
    _tear(canvas, rng, level=0.8)
    patchy = canvas.noise(rng, wavelength_um=60, finest_um=12)
    _cells(canvas, rng, _LYMPHOCYTE, 7.3, share=0.78, count=40, jitter=0.14)
    _cells(canvas, rng, _LYMPHOCYTE, 12, share=0.6, count=24, where=patchy > 0)
    _cells(canvas, rng, _LARGER_LYMPHOCYTE, 12, share=0.75)
    _cells(canvas, rng, _RETICULAR, 30, share=0.8)
    _small_vessels(canvas, rng, 95)


def _sinus(canvas: Canvas, rng: np.random.Generator) -> None:
    strands = canvas.noise(rng, wavelength_um=30, roughness=0.5, finest_um=2)
    canvas.ground(h=0.02, e=np.clip(0.42 - 0.9 * np.abs(strands), 0.03, 1.0))
    crowd = canvas.noise(rng, wavelength_um=70, finest_um=8)
    _cells(canvas, rng, _HISTIOCYTE, 15, share=0.75, where=crowd > -0.3)
    _cells(canvas, rng, _LYMPHOCYTE, 8.5, share=0.5, where=crowd > 0.0)
    _cells(canvas, rng, _LYMPHOCYTE, 14, share=0.5)
    _cells(canvas, rng, _ERYTHROCYTE, 22, share=0.4)


def _histiocytes(canvas: Canvas, rng: np.random.Generator) -> None:
    _lymphoid_ground(canvas, rng, eosin=0.4, gaps=0.155)
    _cells(canvas, rng, _HISTIOCYTE, 13.5, share=0.95, count=32)
    _cells(canvas, rng, _LYMPHOCYTE, 19, share=0.6, jitter=0.4)


def _plasma(canvas: Canvas, rng: np.random.Generator) -> None:
    """Medullary cords: plasma cells, purple as tumour is, with small round nuclei at one side of the cell."""
    _lymphoid_ground(canvas, rng, eosin=0.44, gaps=0.1)
    body = Kind(nucleus_um=0.0, body_um=11, spread=0.12, aspect=1.3, eosin=0.54, basophilia=0.3, ragged=0.1)
    nucleus = Kind(nucleus_um=5.8, spread=0.1, chromatin=0.92, pallor=0.1, clumps=0.4)
    centres = _scatter(canvas, rng, 11.0, share=0.92, jitter=0.16)
    canvas.put(cut_stamps(rng, body, pixel_um=canvas.pixel_um, count=32), centres)
    turn = rng.uniform(0, 2 * np.pi, len(centres))
    aside = centres + 2.2 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    canvas.put(cut_stamps(rng, nucleus, pixel_um=canvas.pixel_um, count=24), aside % canvas.width_um)
    _cells(canvas, rng, _LYMPHOCYTE, 19, share=0.6, jitter=0.4)
    _cells(canvas, rng, _HISTIOCYTE, 38, share=0.7, jitter=0.3)


def _fibres(canvas: Canvas, rng: np.random.Generator, *, period_um: float) -> tuple[Field, Field]:
    """A wavy bundle pattern 0 to 1 and its phase in turns, both periodic."""
    bends = canvas.noise(rng, wavelength_um=220, roughness=1.2)
    ripples = canvas.noise(rng, wavelength_um=40, roughness=0.8, finest_um=2)
    turns = max(1, round(canvas.width_um / period_um))
    rise = np.linspace(0, turns, canvas.size, endpoint=False, dtype=np.float32)[:, None]
    phase = rise + (17 / period_um) * bends + 0.45 * ripples
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * phase), dtype=np.float32), phase


def _spindle_cells(
    canvas: Canvas,
    rng: np.random.Generator,
    phase: Field,
    spacing_um: float,
    *,
    where: NDArray[np.bool_] | None = None,
    share: float = 0.8,
) -> None:
    """Fibroblasts that lie along the fibres."""
    centres = _scatter(canvas, rng, spacing_um, jitter=0.35, share=share, where=where)
    index = np.minimum((centres / canvas.pixel_um).astype(np.intp), canvas.size - 1)
    step = max(1, round(3 / canvas.pixel_um))
    ahead = np.minimum(index + step, canvas.size - 1)
    here = phase[index[:, 1], index[:, 0]]
    slope_y = phase[ahead[:, 1], index[:, 0]] - here
    slope_x = phase[index[:, 1], ahead[:, 0]] - here
    lie = np.arctan2(-slope_x, slope_y) % np.pi
    bins = 12
    for number in range(bins):
        kind = Kind(
            nucleus_um=4.4, spread=0.2, aspect=4.5, chromatin=0.8, pallor=0.1, ragged=0.08, lie=np.pi * number / bins
        )
        chosen = np.floor(lie / np.pi * bins + 0.5).astype(np.intp) % bins == number
        canvas.put(cut_stamps(rng, kind, pixel_um=canvas.pixel_um, count=3), centres[chosen])


def _collagen(canvas: Canvas, rng: np.random.Generator) -> None:
    bundles, phase = _fibres(canvas, rng, period_um=9)
    thick = canvas.noise(rng, wavelength_um=70, finest_um=4)
    torn = np.clip(0.5 + 0.5 * canvas.noise(rng, wavelength_um=90, finest_um=8), 0.1, 0.85)
    slits = 1 - torn * np.clip(1 - 4 * bundles, 0, 1)
    canvas.ground(h=0.05, e=np.clip((0.7 + 0.16 * bundles + 0.14 * thick) * slits, 0.03, 1.5))
    _spindle_cells(canvas, rng, phase, 24)
    _cells(canvas, rng, _LYMPHOCYTE, 60, share=0.5)


def _fat(canvas: Canvas, rng: np.random.Generator) -> None:
    samples = max(64, min(canvas.size, round(canvas.width_um / 1.5)))
    sample_um = canvas.width_um / samples
    seeds = _scatter(canvas, rng, 72, jitter=0.2)
    nearest = np.full((samples, samples), 1e6, dtype=np.float32)
    second = nearest.copy()
    axis = (np.arange(samples) + 0.5) * sample_um
    half = canvas.width_um / 2
    for x, y in seeds:
        columns = np.flatnonzero(np.abs((axis - x + half) % canvas.width_um - half) < 130)
        rows = np.flatnonzero(np.abs((axis - y + half) % canvas.width_um - half) < 130)
        dx = (axis[columns] - x + half) % canvas.width_um - half
        dy = (axis[rows] - y + half) % canvas.width_um - half
        window = np.ix_(rows, columns)
        distance = np.hypot(dy[:, None], dx[None, :]).astype(np.float32)
        first = nearest[window]
        second[window] = np.minimum(second[window], np.maximum(first, distance))
        nearest[window] = np.minimum(first, distance)
    gap = enlarge_periodic(second - nearest, canvas.size)
    width = 2.6 + 0.9 * canvas.noise(rng, wavelength_um=120, finest_um=6)
    wall = np.clip((width - gap) / max(1.2, canvas.pixel_um) + 0.5, 0, 1)
    canvas.ground(h=0.0, e=0.5 * wall)
    _cells(canvas, rng, _FIBROBLAST, 11, share=0.3, where=gap < 3.0)


def _blood(canvas: Canvas, rng: np.random.Generator) -> None:
    _lymphoid_ground(canvas, rng, eosin=0.4, gaps=0.6)
    _cells(canvas, rng, _ERYTHROCYTE, 6.4, share=0.93, jitter=0.25)
    _cells(canvas, rng, _LYMPHOCYTE, 26, share=0.4)


def _stroma_between(
    canvas: Canvas, rng: np.random.Generator, nests: NDArray[np.bool_], *, cleft: Field | None = None
) -> None:
    """The ground of a tumour: cytoplasm in the nests, collagen between, white clefts where they tore apart."""
    bundles, phase = _fibres(canvas, rng, period_um=9)
    patchy = canvas.noise(rng, wavelength_um=26, roughness=0.3)
    eosin = np.where(nests, 0.4 + 0.12 * patchy, 0.42 + 0.34 * bundles + 0.05 * patchy)
    if cleft is not None:
        eosin *= 1 - 0.9 * cleft
    basophilia = np.clip(np.where(nests, 0.19 - 0.05 * patchy, 0.06), 0, 1).astype(np.float32)
    canvas.ground(h=basophilia, e=np.clip(eosin, 0.02, 1.4).astype(np.float32))
    _spindle_cells(canvas, rng, phase, 17, where=~nests)
    _cells(canvas, rng, _LYMPHOCYTE, 12, share=0.35, where=~nests, jitter=0.4)


def _tumour_solid(canvas: Canvas, rng: np.random.Generator) -> None:
    threads = np.abs(canvas.noise(rng, wavelength_um=170, roughness=0.7, finest_um=14))
    nests = threads > 0.07
    _stroma_between(canvas, rng, nests)
    _cells(canvas, rng, _TUMOUR_CELL, 15.2, count=40, jitter=0.13, where=threads > 0.11)
    _cells(canvas, rng, _DARK_TUMOUR_CELL, 40, share=0.8, where=nests, jitter=0.4)
    _cells(canvas, rng, _LYMPHOCYTE, 24, share=0.5, jitter=0.4)
    _tear(canvas, rng, level=1.7)


def _tumour_nested(canvas: Canvas, rng: np.random.Generator) -> None:
    depth = canvas.noise(rng, wavelength_um=130, roughness=0.8, finest_um=16)
    nests = depth > -0.45
    cleft = np.exp(-(((depth + 0.38) / 0.07) ** 2)).astype(np.float32)
    torn = canvas.noise(rng, wavelength_um=90, finest_um=10) > 0.1
    _stroma_between(canvas, rng, nests, cleft=np.asarray(cleft * torn, dtype=np.float32))
    _cells(canvas, rng, _TUMOUR_CELL, 15.0, count=40, jitter=0.13, where=depth > -0.22)
    _cells(canvas, rng, _DARK_TUMOUR_CELL, 44, share=0.7, where=depth > -0.2, jitter=0.4)
    _cells(canvas, rng, _LYMPHOCYTE, 28, share=0.5, jitter=0.4)
    _tear(canvas, rng, level=1.8)


def _tumour_glands(canvas: Canvas, rng: np.random.Generator) -> None:
    depth = canvas.noise(rng, wavelength_um=150, roughness=0.8, finest_um=16)
    nests = depth > -0.7
    _stroma_between(canvas, rng, nests)
    _cells(canvas, rng, _TUMOUR_CELL, 12.8, count=32, jitter=0.13, where=depth > -0.55)
    centres = _scatter(canvas, rng, 62, jitter=0.3, share=0.75, where=depth > -0.3)
    _around(canvas, rng, cut_stamps(rng, _TUMOUR_CELL, pixel_um=canvas.pixel_um, count=24), centres, radius_um=18)
    canvas.put(cut_stamps(rng, _LUMEN, pixel_um=canvas.pixel_um, count=16), centres)


def _tumour_files(canvas: Canvas, rng: np.random.Generator) -> None:
    """Cells in single file between fibres, as of lobular carcinoma."""
    bundles, phase = _fibres(canvas, rng, period_um=21)
    patchy = canvas.noise(rng, wavelength_um=26, roughness=0.3)
    canvas.ground(h=0.07, e=np.clip(0.36 + 0.2 * (1 - bundles) + 0.07 * patchy, 0.02, 1.4).astype(np.float32))
    small = replace(_TUMOUR_CELL, nucleus_um=8.8, body_um=12.0)
    for _ in range(2):  # the rows are narrow: two grids, so that cells touch along them
        _cells(canvas, rng, small, 9.5, count=32, jitter=0.3, share=0.75, where=bundles > 0.82)
    _spindle_cells(canvas, rng, phase, 26, where=bundles < 0.4)
    _cells(canvas, rng, _LYMPHOCYTE, 24, share=0.5, jitter=0.4)
    _tear(canvas, rng, level=1.9)


def _tumour_necrosis(canvas: Canvas, rng: np.random.Generator) -> None:
    """Dead tumour: pink, with debris of nuclei and ghosts of cells."""
    patchy = canvas.noise(rng, wavelength_um=20, roughness=0.2, finest_um=2)
    canvas.ground(h=0.1, e=np.clip(0.5 + 0.14 * patchy, 0.05, 1.2).astype(np.float32))
    ghost = replace(_TUMOUR_CELL, chromatin=0.38, pallor=0.2, basophilia=0.12, nucleoli=0)
    _cells(canvas, rng, ghost, 15, share=0.5, jitter=0.3)
    _cells(canvas, rng, _DEBRIS, 6.5, share=0.6, jitter=0.5)
    _cells(canvas, rng, _DARK_TUMOUR_CELL, 26, share=0.7, jitter=0.4)
    _tear(canvas, rng, level=1.5)


def _rests(canvas: Canvas, rng: np.random.Generator) -> None:
    """Harmless nests in the capsule, as of naevus cells: round pale nuclei, all alike."""
    depth = canvas.noise(rng, wavelength_um=70, roughness=0.8, finest_um=10)
    nests = depth > -0.3
    _stroma_between(canvas, rng, nests)
    bland = Kind(
        nucleus_um=7.4, spread=0.07, chromatin=0.7, pallor=0.4, clumps=0.16, body_um=11.5, eosin=0.42, basophilia=0.12
    )
    _cells(canvas, rng, bland, 10.6, count=24, jitter=0.12, where=depth > -0.2)


def _glass(canvas: Canvas, rng: np.random.Generator) -> None:
    faint = canvas.noise(rng, wavelength_um=40, roughness=0.2)
    canvas.ground(h=0.0, e=np.clip(0.012 * (faint - 0.5), 0, 1).astype(np.float32))


_RECIPES: dict[Tissue, Callable[[Canvas, np.random.Generator], None]] = {
    Tissue.GLASS: _glass,
    Tissue.FAT: _fat,
    Tissue.COLLAGEN: _collagen,
    Tissue.CORTEX: _cortex,
    Tissue.MANTLE: _mantle,
    Tissue.GERMINAL: _germinal,
    Tissue.PARACORTEX: _paracortex,
    Tissue.SINUS: _sinus,
    Tissue.HISTIOCYTES: _histiocytes,
    Tissue.BLOOD: _blood,
    Tissue.TUMOUR_SOLID: _tumour_solid,
    Tissue.TUMOUR_NESTED: _tumour_nested,
    Tissue.TUMOUR_GLANDS: _tumour_glands,
    Tissue.PLASMA: _plasma,
    Tissue.RESTS: _rests,
    Tissue.TUMOUR_FILES: _tumour_files,
    Tissue.TUMOUR_NECROSIS: _tumour_necrosis,
}
