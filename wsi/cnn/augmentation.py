"""How training patches are varied: small variations in a list, on a CPU or a GPU alike.

Another one is a class after ``Variation`` and a word in ``LIGHT`` or ``FULL``. Chance is drawn on the CPU from a
stream of its own for each patch and variation, seeded by the patch's seed and the variation's name: what a variation
draws for a patch depends neither on the other patches of its batch, nor on which other variations there are; what it
does does not depend on the device (but for rounding).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.jpeg_noise import compressed
from wsi.cnn.macenko import normalise
from wsi.stain import JITTER_DRAWS, StainJitter

_BLUR_REACH = 6
_MOST_BLUR = 2.0
_FAINTEST_WEIGHT = 1e-6


class Variation(ABC):
    """One way in which patches are varied.

    Attributes:
        name: seeds its chances: another name gives other patches.
        draws: chances it needs for a patch.
    """

    __slots__ = ()
    name: ClassVar[str]
    draws: ClassVar[int]

    @abstractmethod
    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """Vary patches.

        Args:
            pixels: float32 (n, 3, side, side) on the 0..255 scale, RGB, on any device; not to be changed in place.
            chances: float64 (n, draws), each from 0..1.

        Returns:
            The same shape and scale.
        """

    def moved(self, targets: NDArray[np.uint8], chances: NDArray[np.float64]) -> NDArray[np.uint8]:
        """The classes of the pixels, (n, side, side), where they are now; for variations that move pixels."""
        del chances
        return targets


@dataclass(frozen=True, slots=True)
class Turns(Variation):
    """The square is laid in one of its eight ways."""

    name: ClassVar[str] = "turns"
    draws: ClassVar[int] = 1

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        return laid(pixels, self._ways(chances))

    def moved(self, targets: NDArray[np.uint8], chances: NDArray[np.float64]) -> NDArray[np.uint8]:
        """See Variation."""
        found: NDArray[np.uint8] = laid(torch.from_numpy(targets), self._ways(chances)).numpy()
        return found

    def _ways(self, chances: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.floor(chances[:, 0] * 8).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Macenko(Variation):
    """The stains of a share of the patches are normalised, so that the network sees normalised colours as well."""

    share: float = 0.2
    name: ClassVar[str] = "macenko"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check_share(self.share)

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        chosen = _indices(chances[:, 0] < self.share, pixels)
        if not len(chosen):
            return pixels
        return pixels.index_copy(0, chosen, _colours(normalise(_density(pixels[chosen]))))


@dataclass(frozen=True, slots=True)
class Stain(Variation):
    """Haematoxylin, eosin and the rest are moved."""

    jitter: StainJitter = field(default_factory=StainJitter)
    name: ClassVar[str] = "stain"
    draws: ClassVar[int] = JITTER_DRAWS

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        mix, shift = (torch.from_numpy(part).to(pixels.device) for part in self.jitter.moves(2 * chances - 1))
        red, green, blue = _density(pixels).unbind(dim=1)
        # sums written out: a matrix product's last bits may depend on how many patches there are
        moved = [
            red * mix[:, 0, target, None, None]
            + green * mix[:, 1, target, None, None]
            + blue * mix[:, 2, target, None, None]
            + shift[:, 0, target, None, None]
            for target in range(3)
        ]
        return _colours(torch.stack(moved, dim=1))


@dataclass(frozen=True, slots=True)
class Focus(Variation):
    """Softened by part of a small blur, or sharpened: from ``sharpest`` (below 0) to ``softest`` (1: blurred)."""

    sharpest: float = -0.5
    softest: float = 1.0
    name: ClassVar[str] = "focus"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not -1 <= self.sharpest <= self.softest <= 1:
            raise ValueError(f"a focus lies in -1..1, the sharpest first, got {self.sharpest}, {self.softest}")

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        softness = self.sharpest + (self.softest - self.sharpest) * chances[:, 0]
        return pixels.lerp(softened(pixels), _each(softness, pixels)).clamp_(0, 255)


@dataclass(frozen=True, slots=True)
class Brightness(Variation):
    """Grey values are multiplied by a factor from exp(-limit) .. exp(limit)."""

    limit: float = 0.1
    name: ClassVar[str] = "brightness"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.limit < 2:
            raise ValueError(f"brightness lies in 0..2, got {self.limit}")

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        return (pixels * _each(np.exp(self.limit * (2 * chances[:, 0] - 1)), pixels)).clamp_(0, 255)


@dataclass(frozen=True, slots=True)
class Blur(Variation):
    """A Gaussian whose standard deviation lies evenly between 0 and ``most`` px."""

    most: float = 1.0
    name: ClassVar[str] = "blur"
    draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.most <= _MOST_BLUR:
            raise ValueError(f"blur lies in 0..{_MOST_BLUR} px, got {self.most}")

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        return blurred(pixels, self.most * chances[:, 0])


@dataclass(frozen=True, slots=True)
class Jpeg(Variation):
    """A share of the patches goes through JPEG compression, of a quality from the lowest to the highest."""

    share: float = 0.3
    quality: tuple[int, int] = (30, 95)
    name: ClassVar[str] = "jpeg"
    draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check_share(self.share)
        if not 1 <= self.quality[0] <= self.quality[1] <= 100:
            raise ValueError(f"qualities are two numbers in 1..100, the lower first, got {self.quality}")

    def __call__(self, pixels: torch.Tensor, chances: NDArray[np.float64]) -> torch.Tensor:
        """See Variation."""
        is_chosen, (low, high) = chances[:, 0] < self.share, self.quality
        chosen = _indices(is_chosen, pixels)
        if not len(chosen):
            return pixels
        quality = np.floor(low + chances[is_chosen, 1] * (high + 1 - low))
        worn = compressed(pixels[chosen], torch.from_numpy(quality).to(pixels.device))
        return pixels.index_copy(0, chosen, worn)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Variations, applied in this order."""

    variations: tuple[Variation, ...]

    def __post_init__(self) -> None:
        names = [one.name for one in self.variations]
        if len(set(names)) < len(names):
            raise ValueError(f"variations of one name would draw the same chances: {names}")

    def __call__(
        self, images: torch.Tensor, targets: NDArray[np.uint8], seeds: NDArray[np.int64]
    ) -> tuple[torch.Tensor, NDArray[np.uint8]]:
        """Vary patches.

        Args:
            images: uint8 (n, side, side, 3), RGB, on any device.
            targets: uint8 (n, side, side), the class of each pixel.
            seeds: int64 (n, k): k non-negative numbers together are a patch's seed, for example those of the training,
                the pass and the patch.

        Returns:
            Pixels, float32 (n, 3, side, side) on the 0..255 scale, on the same device, channels last in memory; and
            the classes where they are now.
        """
        pixels = images.permute(0, 3, 1, 2).contiguous().float()
        for vary in self.variations:
            chances = drawn(vary.name, seeds, vary.draws)
            pixels, targets = vary(pixels, chances), vary.moved(targets, chances)
        return pixels.contiguous(memory_format=torch.channels_last), targets


def drawn(name: str, seeds: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """The chances of each patch for one variation: float64 (n, count), each from 0..1, from a stream of its own."""
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    rows = [np.random.default_rng([*seed, word]).random(count) for seed in seeds.tolist()]
    return np.array(rows).reshape(len(seeds), count)


def laid(squares: torch.Tensor, ways: NDArray[np.int64]) -> torch.Tensor:
    """Each square (n, ..., side, side) laid in its way: quarter turns, and from 4 on mirrored as well."""
    result = squares.clone()
    for way in np.unique(ways[ways > 0]).tolist():
        chosen = _indices(ways == way, squares)
        turned = torch.rot90(squares[chosen], way % 4, (-2, -1))
        result[chosen] = turned.flip(-1) if way >= 4 else turned
    return result


def softened(pixels: torch.Tensor) -> torch.Tensor:
    """Blurred by (1, 2, 1) / 4 along rows and columns; the border repeats."""
    down = pixels * 2
    down[..., 1:, :] += pixels[..., :-1, :]
    down[..., :-1, :] += pixels[..., 1:, :]
    down[..., 0, :] += pixels[..., 0, :]
    down[..., -1, :] += pixels[..., -1, :]
    both = down * 2
    both[..., 1:] += down[..., :-1]
    both[..., :-1] += down[..., 1:]
    both[..., 0] += down[..., 0]
    both[..., -1] += down[..., -1]
    return both.mul_(1 / 16)


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


def _density(pixels: torch.Tensor) -> torch.Tensor:
    """Optical density, as ``wsi.stain`` has it."""
    return -torch.log((pixels + 1) / 256)


def _colours(density: torch.Tensor) -> torch.Tensor:
    return (256 * torch.exp(-density) - 1).clamp_(0, 255)


def _each(values: NDArray[np.float64], like: torch.Tensor) -> torch.Tensor:
    """One number per image, to be multiplied with (n, 3, rows, columns)."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device).view(-1, 1, 1, 1)


def _indices(is_chosen: NDArray[np.bool_], like: torch.Tensor) -> torch.Tensor:
    """The indices of the chosen patches."""
    return torch.from_numpy(np.flatnonzero(is_chosen)).to(like.device)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"shares lie in 0..1, got {share}")


LIGHT = Augmentation((Turns(), Stain(), Focus()))
"""What costs little."""

FULL = Augmentation((Turns(), Macenko(), Stain(), Brightness(), Blur(), Jpeg()))
"""What scanners and laboratories do to colours and sharpness."""
