"""Coloured textures to be copied into tiles: one toroidal picture per tissue for a centre and a resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from staging.phantom.cells import Canvas
from staging.phantom.noise import Field, enlarge_periodic, periodic_noise
from staging.phantom.plan import Difficulty
from staging.phantom.stain import Centre, colours
from staging.phantom.texture import TUMOURS, Tissue, paint

RELIEF_STEP = 1 / 200
_FIRMNESS = 0.0016
_RAGGEDNESS = 0.36
_RAGGED_UM = 48.0
_EASY_H, _EASY_E = 1.2, 1.5
_Stain: TypeAlias = NDArray[np.uint8]
_SEED = 20170512  # textures are the same for every cohort: only the plan differs between cohorts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Atlas:
    """One tissue as a picture that repeats every ``period`` px.

    Attributes:
        period: px after which the picture repeats.
        pixels: uint8 (period + reach, period + reach, 3), so that any window up to ``reach`` px is one slice.
        relief: int8, the same rows and columns: how firmly a px resists a neighbouring tissue, in steps of
            RELIEF_STEP; nuclei resist, gaps between cells give way.
    """

    period: int
    pixels: NDArray[np.uint8]
    relief: NDArray[np.int8]

    def window(self, row: int, column: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return a view uint8 (height, width, 3) of the endless picture from (row, column) on."""
        top, left = row % self.period, column % self.period
        return self.pixels[top : top + height, left : left + width]

    def relief_window(self, row: int, column: int, height: int, width: int) -> NDArray[np.int8]:
        """Return the relief under ``window`` with the same arguments, int8 (height, width)."""
        top, left = row % self.period, column % self.period
        return self.relief[top : top + height, left : left + width]


@lru_cache(maxsize=1)
def atlases(centre: Centre, mpp: float, reach: int, difficulty: Difficulty) -> tuple[Atlas, ...]:
    """Make one Atlas per Tissue, in the order of their codes; cached for the slides that follow.

    Args:
        centre: the centre whose stain and optics are used.
        mpp: um per px.
        reach: largest window side that will be requested, in px.
        difficulty: by what tumour is told.
    """
    period, _ = _sizes(mpp)
    rng = np.random.default_rng(_SEED)
    ragged = enlarge_periodic(periodic_noise(rng, 128, wavelength=128 * _RAGGED_UM / (period * mpp)), period)
    found = []
    for tissue, canvas in zip(Tissue, _canvases(mpp), strict=True):
        h, e = canvas.core()
        if difficulty == "easy" and tissue in TUMOURS:
            h, e = _darker(h, _EASY_H), _darker(e, _EASY_E)
        found.append(_colour((h, e), centre, mpp, reach, ragged))
    return tuple(found)


def _sizes(mpp: float) -> tuple[int, int]:
    """(period of the atlas in px, fine px per px along one axis)."""
    if mpp <= 0.6:
        return (1536, 1) if mpp < 0.4 else (1024, 1)
    if mpp <= 2.4:
        return (640, 2) if mpp <= 1.2 else (400, 3)
    return (192, 4) if mpp <= 4.8 else (120, 4)


@lru_cache(maxsize=2)
def _canvases(mpp: float) -> tuple[Canvas, ...]:
    period, fine = _sizes(mpp)
    seeds = np.random.SeedSequence(_SEED).spawn(len(Tissue))
    return tuple(
        paint(tissue, np.random.default_rng(seed), size=period * fine, pixel_um=mpp / fine)
        for tissue, seed in zip(Tissue, seeds, strict=True)
    )


def _darker(concentration: _Stain, factor: float) -> _Stain:
    return np.asarray(np.minimum(np.rint(concentration * np.float32(factor)), 255), dtype=np.uint8)


def _colour(stains: tuple[_Stain, _Stain], centre: Centre, mpp: float, reach: int, ragged: Field) -> Atlas:
    period, fine = _sizes(mpp)
    h, e = stains
    index = h.astype(np.uint16)
    index <<= 8
    index |= e
    light = colours(centre)[index].view(np.uint8).reshape(period, fine, period, fine, 4)
    # light adds up on the sensor, concentrations do not: average after the colour, not before
    rows = light[:, 0].astype(np.uint16)
    for row in range(1, fine):
        rows += light[:, row]
    total = rows[:, :, 0].copy()
    for column in range(1, fine):
        total += rows[:, :, column]
    total += fine * fine // 2
    total //= fine * fine
    pixels = np.ascontiguousarray(total[..., :3], dtype=np.uint8)
    sigma = centre.blur_um / mpp
    if sigma > 0.4:
        pixels = _blur(pixels, sigma)
    pad = [(0, reach), (0, reach)]
    return Atlas(
        period=period,
        pixels=np.pad(pixels, [*pad, (0, 0)], mode="wrap"),
        relief=np.pad(_relief(pixels, ragged, mpp), pad, mode="wrap"),
    )


def _relief(pixels: NDArray[np.uint8], ragged: Field, mpp: float) -> NDArray[np.int8]:
    green = np.ascontiguousarray(pixels[..., 1])
    if mpp < 0.6:
        green = _blur(green, 0.7 / mpp)  # without it the border frays px by px
    height = (128.0 - green) * (_FIRMNESS / RELIEF_STEP) + ragged * (_RAGGEDNESS / RELIEF_STEP)
    return np.asarray(np.clip(np.rint(height), -127, 127), dtype=np.int8)


def _blur(pixels: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    reach = max(1, math.ceil(2.5 * sigma))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights = np.rint(256 * taps / taps.sum()).astype(np.int64)
    weights[reach] += 256 - weights.sum()
    for axis in (0, 1):
        total = np.full(pixels.shape, 128, dtype=np.uint16)
        for offset, weight in zip(range(-reach, reach + 1), weights.tolist(), strict=True):
            total += np.roll(pixels, offset, axis=axis) * np.uint16(weight)
        pixels = (total >> 8).astype(np.uint8)
    return pixels
