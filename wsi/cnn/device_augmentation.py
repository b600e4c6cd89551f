"""Varying training patches on the network's own device: batched, the same on the CPU or a GPU.

Random numbers are drawn on the CPU, for each patch from its own seed: the result for a patch depends neither on the
other patches of its batch nor on the device (except for rounding).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.jpeg_noise import compressed
from wsi.cnn.macenko import normalise
from wsi.stain import JITTER_DRAWS, StainJitter

_BLUR_REACH = 6
_MOST_BLUR = 2.0
_FAINTEST_WEIGHT = 1e-6
_DRAWS = 7 + JITTER_DRAWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """The variations, applied in this order.

    Attributes:
        turns: put the square into one of its eight orientations.
        macenko: share of the patches whose stains are normalised before they are shifted, so that the network sees
            normalised colours as well.
        stain: how far haematoxylin, eosin and the rest are shifted; None leaves them.
        brightness: grey values are multiplied by a factor from exp(-brightness) .. exp(brightness).
        blur: largest standard deviation in px of a Gaussian; each patch's is uniform between 0 and it.
        jpeg: share of the patches that go through JPEG compression.
        quality: lowest and highest quality of that.
    """

    turns: bool = True
    macenko: float = 0.2
    stain: StainJitter | None = field(default_factory=StainJitter)
    brightness: float = 0.1
    blur: float = 1.0
    jpeg: float = 0.3
    quality: tuple[int, int] = (30, 95)

    def __post_init__(self) -> None:
        if not (0 <= self.macenko <= 1 and 0 <= self.jpeg <= 1):
            raise ValueError(f"shares must be in 0..1, got macenko {self.macenko} and jpeg {self.jpeg}")
        if not (0 <= self.brightness < 2 and 0 <= self.blur <= _MOST_BLUR):
            raise ValueError(f"brightness must be in 0..2, blur in 0..{_MOST_BLUR} px: {self.brightness}, {self.blur}")
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"quality must be two numbers in 1..100, the lower first, got {self.quality}")

    def draw(self, seeds: NDArray[np.int64]) -> Draws:
        """The random numbers of each patch, from its own seed.

        Args:
            seeds: int64 (n, k): k non-negative numbers together are a patch's seed, for example those of the training,
                the pass and the patch.
        """
        chances = np.array([np.random.default_rng(seed.tolist()).random(_DRAWS) for seed in seeds])
        return Draws(chances=chances.reshape(len(seeds), _DRAWS))

    def turn_of(self, draws: Draws) -> NDArray[np.int64]:
        """The orientation of each patch, int64 (n,): quarter turns, from 4 on also mirrored."""
        return np.floor(draws.chances[:, 0] * 8).astype(np.int64) * self.turns

    def __call__(self, images: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Vary patches.

        Args:
            images: uint8 (n, side, side, 3), RGB, on any device.
            draws: from ``draw``.

        Returns:
            Float32 (n, 3, side, side) on the 0..255 scale, on the same device, channels last in memory.
        """
        chances = draws.chances
        pixels = laid(images, self.turn_of(draws)).permute(0, 3, 1, 2).float()
        pixels = self._stained(pixels, chances)
        if self.brightness:
            factor = np.exp(self.brightness * (2 * chances[:, 1] - 1))
            pixels = (pixels * _each(factor, pixels)).clamp(0, 255)
        if self.blur:
            pixels = blurred(pixels, self.blur * chances[:, 2])
        chosen = chances[:, 3] < self.jpeg
        if chosen.any():
            low, high = self.quality
            quality = np.floor(low + chances[chosen, 4] * (high + 1 - low))
            index = torch.from_numpy(np.flatnonzero(chosen)).to(pixels.device)
            worn = compressed(pixels[index], torch.from_numpy(quality).to(pixels.device))
            pixels = pixels.index_copy(0, index, worn)
        return pixels.contiguous(memory_format=torch.channels_last)

    def _stained(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        chosen = chances[:, 5] < self.macenko
        if self.stain is None and not chosen.any():
            return pixels
        density = -torch.log((pixels + 1) / 256)
        if chosen.any():
            index = torch.from_numpy(np.flatnonzero(chosen)).to(pixels.device)
            density = density.index_copy(0, index, normalise(density[index]))
        if self.stain is not None:
            mix, shift = (torch.from_numpy(part).to(pixels.device) for part in self.stain.moves(2 * chances[:, 7:] - 1))
            channels = density.unbind(dim=1)
            # sums written out: a matrix product's last bits may depend on the number of patches
            moved = [
                sum(
                    (channels[source] * mix[:, source, target, None, None] for source in (1, 2)),
                    channels[0] * mix[:, 0, target, None, None],
                )
                + shift[:, 0, target, None, None]
                for target in range(3)
            ]
            density = torch.stack(moved, dim=1)
        return (256 * torch.exp(-density) - 1).clamp(0, 255)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """The random numbers of each patch.

    Attributes:
        chances: float64 (n, 18), each from 0..1.
    """

    chances: NDArray[np.float64]


def laid(images: torch.Tensor, turns: NDArray[np.int64]) -> torch.Tensor:
    """Put each square into its orientation, numbered as by ``Augmentation.turn_of``: (n, side, side, ...), any type."""
    result = images.clone()
    for turn in np.unique(turns[turns > 0]).tolist():
        index = torch.from_numpy(np.flatnonzero(turns == turn)).to(images.device)
        turned = torch.rot90(images[index], turn % 4, (1, 2))
        result[index] = turned.flip(2) if turn >= 4 else turned
    return result


def blurred(pixels: torch.Tensor, sigma: NDArray[np.float64]) -> torch.Tensor:
    """Each image blurred by its own Gaussian: float32 (n, 3, rows, columns), sigma (n,) in px; the border repeats."""
    reach = np.arange(-_BLUR_REACH, _BLUR_REACH + 1)
    weights = np.exp(-(reach**2) / (2 * np.maximum(sigma, 1e-3)[:, None] ** 2))
    weights[weights < _FAINTEST_WEIGHT] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    for axis in (2, 3):
        size = pixels.shape[axis]
        result = pixels * _each(weights[:, _BLUR_REACH], pixels)
        for step in range(1, _BLUR_REACH + 1):
            if not weights[:, _BLUR_REACH + step].any():
                break
            indices = torch.arange(size, device=pixels.device)
            sides = [pixels.index_select(axis, (indices + way * step).clamp(0, size - 1)) for way in (-1, 1)]
            result = result + (sides[0] + sides[1]) * _each(weights[:, _BLUR_REACH + step], pixels)
        pixels = result
    return pixels


def _each(values: NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    """One number per image, broadcastable to (n, 3, rows, columns)."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device).view(-1, 1, 1, 1)
