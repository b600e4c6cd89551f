"""Stains as light absorbers: optical density, separation of haematoxylin and eosin, and stain jitter for training.

Optical density here is -ln((grey + 1) / 256) per channel: 0 for white, 5.545 for black, finite and exactly invertible
for all 256 grey values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STAIN_VECTORS: NDArray[np.float64] = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical density in (red, green, blue) of haematoxylin, eosin and DAB; rows are not of unit length.

Source: A. C. Ruifrok, D. A. Johnston, "Quantification of histochemical staining by color deconvolution",
Analytical and Quantitative Cytology and Histology 23(4), 2001, 291-299. On a slide without DAB the third takes up what
the first two cannot explain (pigment, blood, ink).
"""

JITTER_DRAWS = 11
"""The number of random numbers that a StainJitter needs for one image."""

_UNIT = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
_APART = np.linalg.inv(_UNIT)
_DENSITY: NDArray[np.float32] = -np.log((np.arange(256) + 1) / 256).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class StainJitter:
    """How far training colours are shifted; one draw per image.

    Attributes:
        sigma: each stain's concentration is multiplied by a factor from exp(-sigma) .. exp(sigma), independently.
        strength: all optical density is multiplied by one factor from exp(-strength) .. exp(strength): thickness of
            the section and time in the bath.
        hue: the density of each channel is multiplied by its own factor from exp(-hue) .. exp(hue): another dye, lamp
            or sensor.
        bias: to each concentration (optical density of the unit stain) a term from -bias .. bias is added.
        exposure: a grey optical density from -exposure .. exposure is added: a lighter or darker scan.

    The scheme widens the HED jitter of D. Tellez et al., "Whole-slide mitosis detection in H&E breast histology using
    PHH3 as a reference", IEEE Transactions on Medical Imaging 37(9), 2018. The defaults span the five CAMELYON17
    centres, whose mean optical density differs by a factor of 2 and whose blue-to-green ratio by one of 2 (measured on
    one field each): the colours of any of them can become those of any other.
    """

    sigma: float = 0.2
    strength: float = 0.35
    hue: float = 0.25
    bias: float = 0.05
    exposure: float = 0.04

    def __post_init__(self) -> None:
        limits = (self.sigma, self.strength, self.hue, self.bias, self.exposure)
        if not all(0 <= limit < 2 for limit in limits):
            raise ValueError(f"a stain jitter's limits must be in 0..2, got {self}")

    def __call__(self, images: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Shift the stains of each image by its own draw.

        Args:
            images: uint8 (n, rows, columns, 3), RGB.
            rng: the only source of randomness; the same state yields the same images.

        Returns:
            uint8, the same shape, a new array.
        """
        count, rows, columns, _ = images.shape
        stains = np.exp(rng.uniform(-self.sigma, self.sigma, (count, 3, 1)))
        strength = np.exp(rng.uniform(-self.strength, self.strength, (count, 1, 1)))
        channels = np.exp(rng.uniform(-self.hue, self.hue, (count, 1, 3)))
        terms = rng.uniform(-self.bias, self.bias, (count, 3))
        grey = rng.uniform(-self.exposure, self.exposure, (count, 1, 1))
        mix, shift = _moves(stains, strength, channels, terms, grey)
        density = rgb_to_od(images).reshape(count, rows * columns, 3) @ mix
        density += shift
        return od_to_rgb(density).reshape(images.shape)

    def moves(self, draws: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The effect of draws on optical density: the same jitter for callers that compute elsewhere.

        Args:
            draws: float64 (n, JITTER_DRAWS), each from -1..1: where within its limits each amount lies.

        Returns:
            (mix, shift), float32 (n, 3, 3) and (n, 1, 3): the densities of an image, (pixels, 3), become
            density @ mix + shift.
        """
        stains = np.exp(self.sigma * draws[:, 0:3, None])
        strength = np.exp(self.strength * draws[:, 3:4, None])
        channels = np.exp(self.hue * draws[:, None, 4:7])
        return _moves(stains, strength, channels, self.bias * draws[:, 7:10], self.exposure * draws[:, 10:11, None])


def _moves(
    stains: NDArray[np.float64],
    strength: NDArray[np.float64],
    channels: NDArray[np.float64],
    terms: NDArray[np.float64],
    grey: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    mix = (_APART @ (stains * _UNIT)) * (strength * channels)
    shift = (terms @ _UNIT)[:, None, :] + grey
    return mix.astype(np.float32), shift.astype(np.float32)


def rgb_to_od(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density of each channel: uint8 (..., 3) to float32 (..., 3), 0 for white."""
    return _DENSITY.take(image)


def od_to_rgb(density: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The colours of an optical density, rounded and clipped to 0..255; the exact inverse of rgb_to_od.

    Args:
        density: floating (..., 3), not modified.
    """
    grey = np.exp(-np.asarray(density, dtype=np.float32))
    grey *= 256
    grey -= 0.5  # minus the one added before the logarithm, plus a half so that truncation rounds
    return np.clip(grey, 0, 255, out=grey).astype(np.uint8)


def separate(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Separate haematoxylin and eosin (colour deconvolution with STAIN_VECTORS).

    Args:
        image: uint8 (..., 3), RGB.

    Returns:
        (haematoxylin, eosin), float32 (...): the optical density of the unit stain. Colours that no mixture of the
        stains yields come out slightly negative; nothing is clipped.
    """
    concentrations = rgb_to_od(image) @ _APART.astype(np.float32)
    return concentrations[..., 0], concentrations[..., 1]
