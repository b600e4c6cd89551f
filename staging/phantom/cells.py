"""Cells under the microscope: stamps of single cells and the toroidal canvas they are put on."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from staging.phantom.noise import Field, enlarge_periodic, periodic_noise
from staging.phantom.stain import E_UNIT, H_UNIT

_MARGIN = 160
"""Fine px around the canvas for stamps that reach over its edge."""
_GRAIN_SEED = 19860426
_COARSE_UM = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How cells of one kind look; lengths in um, stain in units of stain.H_UNIT and stain.E_UNIT.

    Attributes:
        nucleus_um: mean diameter of the nucleus (0 for none).
        spread: relative standard deviation of the diameter.
        aspect: longest to shortest axis of nucleus and cell.
        chromatin: haematoxylin of the nucleus.
        pallor: how much paler its middle is than its rim, 0 to 1.
        clumps: contrast of the chromatin.
        nucleoli: dark spots in the nucleus, at most.
        body_um: diameter of the cell (0: no visible body).
        eosin: eosin of the body.
        basophilia: haematoxylin of the body.
        clears: whether the cell hides what is under it (as a vacuole does, with eosin 0).
        lie: direction of the long axis in radians; None for any.
        ragged: irregularity of the outline.
    """

    nucleus_um: float = 6.2
    spread: float = 0.08
    aspect: float = 1.1
    chromatin: float = 1.0
    pallor: float = 0.15
    clumps: float = 0.22
    nucleoli: int = 0
    body_um: float = 0.0
    eosin: float = 0.0
    basophilia: float = 0.0
    clears: bool = False
    lie: float | None = None
    ragged: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """One cell: uint8 (side, side) haematoxylin and eosin, and how much ground shows through (0 to 256) or None."""

    h: NDArray[np.uint8]
    e: NDArray[np.uint8]
    ground: NDArray[np.uint16] | None


def cut_stamps(rng: np.random.Generator, kind: Kind, *, pixel_um: float, count: int) -> list[Stamp]:
    """Cut different cells of one kind, with edges antialiased for px of ``pixel_um``."""
    grain = periodic_noise(rng, 192, wavelength=5.0 / pixel_um, roughness=-0.4, finest=0.9 / pixel_um)
    return [_cut(rng, kind, pixel_um, grain) for _ in range(count)]


def _cut(rng: np.random.Generator, kind: Kind, pixel_um: float, grain: Field) -> Stamp:
    scale = min(max(1 + kind.spread * rng.standard_normal(), 0.6), 1.6)
    stretch = kind.aspect ** rng.uniform(0.3, 1.2)
    reach = max(kind.nucleus_um, kind.body_um) * scale * np.sqrt(stretch) * (1 + 2 * kind.ragged) / 2 + 2 * pixel_um
    side = min(2 * int(np.ceil(reach / pixel_um)) + 1, _MARGIN)
    axis = ((np.arange(side) - side // 2) * pixel_um).astype(np.float32)
    shift_x, shift_y = rng.uniform(-0.5, 0.5, 2) * pixel_um
    angle = (rng.uniform(0, np.pi) if kind.lie is None else kind.lie) + 0.25 * rng.standard_normal()
    cosine, sine = np.cos(angle), np.sin(angle)
    y, x = (axis - np.float32(shift_y))[:, None], (axis - np.float32(shift_x))[None, :]
    along = (x * np.float32(cosine) + y * np.float32(sine)) * np.float32(stretch**-0.5)
    across = (y * np.float32(cosine) - x * np.float32(sine)) * np.float32(stretch**0.5)
    radius = np.sqrt(along * along + across * across)
    theta = np.arctan2(across, along)
    scales = _Shape(radius=radius, theta=theta, scale=float(scale), soft=max(pixel_um, 0.25), ragged=kind.ragged)
    body = scales.disc(rng, kind.body_um) if kind.body_um else np.zeros((side, side), np.float32)
    tone = np.float32(rng.uniform(0.82, 1.18))
    h = np.float32(kind.basophilia) * body
    e = np.float32(kind.eosin) * tone * body
    covered = body
    if kind.nucleus_um:
        inside = scales.disc(rng, kind.nucleus_um)
        depth = np.minimum(radius / np.float32(kind.nucleus_um * scale / 2), 1)
        ink = np.float32(kind.chromatin * rng.uniform(0.82, 1.12)) * (1 - np.float32(kind.pallor) * (1 - depth**4))
        top, left = rng.integers(0, 192 - side, 2) if side < 192 else (0, 0)
        ink = ink * (1 + np.float32(kind.clumps) * grain[top : top + side, left : left + side])
        for _ in range(int(rng.integers(0, kind.nucleoli + 1)) if kind.nucleoli else 0):
            spot_x, spot_y = rng.normal(0, kind.nucleus_um / 7, 2)
            ink = ink + 0.55 * np.exp(-((along - spot_x) ** 2 + (across - spot_y) ** 2) / (2 * 0.62**2))
        h = h * (1 - inside) + np.clip(ink, 0.05, 1.55) * inside
        e = np.maximum(e * (1 - 0.6 * inside), 0.25 * inside)
        covered = np.maximum(body, inside)
    ground = np.asarray(np.rint(256 * (1 - covered)), dtype=np.uint16) if kind.clears else None
    return Stamp(h=_bytes(h * H_UNIT), e=_bytes(e * E_UNIT), ground=ground)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """Polar coordinates of a stamp's px in um, stretched to make the cell round."""

    radius: Field
    theta: Field
    scale: float
    soft: float
    ragged: float

    def disc(self, rng: np.random.Generator, diameter_um: float) -> Field:
        """Coverage 0 to 1 of an irregular disc."""
        bends, turns = rng.standard_normal(3), rng.uniform(0, 2 * np.pi, 3)
        table = np.linspace(-np.pi, np.pi, 65)
        edge = sum(bends[k] / (k + 2) * np.cos((k + 2) * table + turns[k]) for k in range(3))
        outline = (diameter_um * self.scale / 2 * (1 + self.ragged * edge)).astype(np.float32)
        index = ((self.theta + np.float32(np.pi)) * np.float32(64 / (2 * np.pi))).astype(np.intp)
        cover = (outline[np.clip(index, 0, 64)] - self.radius) / np.float32(self.soft) + np.float32(0.5)
        return np.asarray(np.clip(cover, 0, 1), dtype=np.float32)


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


@lru_cache(maxsize=2)
def _grain(size: int, pixel_um: float) -> Field:
    rng = np.random.default_rng(_GRAIN_SEED)
    return periodic_noise(rng, size, wavelength=9.0 / pixel_um, roughness=-0.35, finest=0.45 / pixel_um)


@dataclass(slots=True)
class Canvas:
    """A square of tissue that continues over its edges, as two concentrations.

    Attributes:
        size: rows and columns in fine px.
        pixel_um: side of a fine px.
        h, e: uint8 (size + 2 margins,) squared: haematoxylin and eosin in canvas values.
    """

    size: int
    pixel_um: float
    h: NDArray[np.uint8] = field(init=False)
    e: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        side = self.size + 2 * _MARGIN
        self.h = np.zeros((side, side), dtype=np.uint8)
        self.e = np.zeros((side, side), dtype=np.uint8)

    @property
    def width_um(self) -> float:
        return self.size * self.pixel_um

    def noise(
        self, rng: np.random.Generator, *, wavelength_um: float, roughness: float = 0.6, finest_um: float = 0.0
    ) -> Field:
        """A periodic field over the canvas without its margins, at most 320 samples wide before it is enlarged."""
        detail = 2.2 * self.width_um / finest_um if finest_um else 5 * self.width_um / wavelength_um
        samples = min(self.size, max(64, min(320, int(max(detail, 5 * self.width_um / wavelength_um)))))
        sample_um = self.width_um / samples
        small = periodic_noise(
            rng, samples, wavelength=wavelength_um / sample_um, roughness=roughness, finest=finest_um / sample_um
        )
        return enlarge_periodic(small, self.size)

    def grain(self, rng: np.random.Generator) -> Field:
        """Fine threads and grains, 0.5 to 9 um wide: one periodic field for all canvases of a size, shifted."""
        shift = rng.integers(0, self.size, 2)
        return np.roll(_grain(self.size, self.pixel_um), (int(shift[0]), int(shift[1])), (0, 1))

    def roughen(self, rng: np.random.Generator, *, h: float, e: float) -> None:
        """Vary both stains by shares of themselves, as the thickness of the section and its fibres do."""
        if self.pixel_um > _COARSE_UM:
            return  # it averages out
        for target, share in ((self.h, h), (self.e, e)):
            factor = np.pad(1 + np.float32(share) * self.grain(rng), _MARGIN, mode="wrap")
            target[...] = _bytes(target.astype(np.float32) * factor)

    def thin(self, where: Field) -> None:
        """Take both stains away by shares from 0 to 1, float32 (size, size)."""
        left = np.pad(1 - where, _MARGIN, mode="wrap")
        for target in (self.h, self.e):
            target[...] = _bytes(target.astype(np.float32) * left)

    def ground(self, *, h: Field | float = 0.0, e: Field | float = 0.0) -> None:
        """Cover everything with a ground of these concentrations in units, float or (size, size)."""
        for target, value, unit in ((self.h, h, H_UNIT), (self.e, e, E_UNIT)):
            if isinstance(value, float):
                target[...] = round(value * unit)
            else:
                target[...] = np.pad(_bytes(value * unit), _MARGIN, mode="wrap")

    def put(self, stamps: list[Stamp], centres: NDArray[np.float64]) -> None:
        """Put the ``stamps``, in turn, with their centres at each of ``centres`` (n, 2: x, y in um)."""
        halves = [stamp.h.shape[0] // 2 for stamp in stamps]
        corners = np.rint(centres / self.pixel_um).astype(np.intp) % self.size
        for number, (x, y) in enumerate(corners.tolist()):
            pick = number % len(stamps)
            half = halves[pick]
            # a stamp over the edge is pressed again on the other side
            for row in {y, y + self.size if y < half else y - self.size if y >= self.size - half else y}:
                for column in {x, x + self.size if x < half else x - self.size if x >= self.size - half else x}:
                    self._press(stamps[pick], row - half + _MARGIN, column - half + _MARGIN)

    def core(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Haematoxylin and eosin without the margins, uint8 (size, size) each."""
        window = slice(_MARGIN, _MARGIN + self.size)
        return self.h[window, window], self.e[window, window]

    def _press(self, stamp: Stamp, row: int, column: int) -> None:
        side = stamp.h.shape[0]
        window = slice(row, row + side), slice(column, column + side)
        h, e = self.h[window], self.e[window]
        if stamp.ground is None:
            np.maximum(h, stamp.h, out=h)
            np.maximum(e, stamp.e, out=e)
        else:
            h[...] = ((h * stamp.ground) >> 8) + stamp.h
            e[...] = ((e * stamp.ground) >> 8) + stamp.e
