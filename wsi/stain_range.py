"""How dark the stains of a training set are, and how far a slide lies outside of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsi.patches.feeding import TrainingPatches
from wsi.raster import Mask
from wsi.slide import Slide
from wsi.stain import rgb_to_od

FARTHEST = 0.15
"""A slide whose density lies farther outside the training set's is reported. Measured on the phantom's five centres:
slides of a centre in the training set lie up to 0.12 outside, those of other centres 0.17 to 0.66, unless the training
set has both lighter and darker ones; single fields of the five CAMELYON17 centres lie 0.18 to 0.95 apart."""

PROVENANCE = "stain_range"
"""Where a checkpoint's provenance keeps the range of its training set."""

_STAIN_UM = 16.0  # densities are compared between pixels of this size: finer ones differ with focus and cell type
_MOST_BLACK, _LEAST_COLOUR = 0.005, 2
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_CHANNELS = ("red", "green", "blue")
_FAINTEST = 0.15  # mean density of the channels: glass and empty tissue are no stain
_FEWEST_PX = 100
_MOST_PATCHES = 512
_AT_A_TIME = 32

_Densities: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StainRange:
    """The lowest and highest of each quantile of optical density among the patients of a training set.

    What is compared is the darkness of red, green and blue light as a whole, not the colour of a cell: a slide within
    the range may still look unlike any of the training set, and one outside may be judged well.

    Attributes:
        low, high: float64 (5, 3), at 5, 25, 50, 75 and 95 % of red, green and blue.
    """

    low: _Densities
    high: _Densities

    @classmethod
    def of_provenance(cls, provenance: Mapping[str, Any]) -> StainRange | None:
        """The range that a checkpoint keeps; None of older and imported checkpoints, which keep none."""
        try:
            low, high = (np.array(provenance[PROVENANCE][name], np.float64) for name in ("low", "high"))
        except (TypeError, KeyError, ValueError, OverflowError):
            return None
        shape = len(_QUANTILES), len(_CHANNELS)
        is_sound = low.shape == high.shape == shape and np.isfinite([low, high]).all()
        return cls(low=low, high=high) if is_sound else None

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dumps."""
        return {"low": self.low.round(3).tolist(), "high": self.high.round(3).tolist()}

    def beyond(self, densities: _Densities) -> str | None:
        """What lies more than ``FARTHEST`` outside, in words; None if nothing does."""
        outside = np.maximum(self.low - densities, densities - self.high)
        quantile, channel = np.unravel_index(outside.argmax(), outside.shape)
        if outside[quantile, channel] <= FARTHEST:
            return None
        found, low, high = (values[quantile, channel] for values in (densities, self.low, self.high))
        which = f"the {_QUANTILES[quantile]:.0%} quantile of the {_CHANNELS[channel]} density of its tissue"
        return f"{which} is {found:.2f}, in training {low:.2f} to {high:.2f}"


def measure_range(patches: TrainingPatches) -> StainRange | None:
    """The range of a training set, from up to 512 patches spread over it; None if they show hardly any stain."""
    factor = round(_STAIN_UM / patches.mpp) or 1
    if factor > patches.size_px:
        return None
    chosen = np.unique(np.linspace(0, len(patches) - 1, _MOST_PATCHES).round().astype(np.int64))
    chosen = chosen[patches.reading_order(chosen)]
    parts = np.split(chosen, range(_AT_A_TIME, len(chosen), _AT_A_TIME))
    pixels: dict[str, list[NDArray[np.uint8]]] = {}
    for part, images in zip(parts, patches.images(parts), strict=True):
        for patient, image in zip(patches.patients[part].tolist(), images, strict=True):
            pixels.setdefault(patient, []).append(_averaged(image, factor))
    found = [_densities(np.concatenate(of_patient)) for of_patient in pixels.values()]
    known = [densities for densities in found if densities is not None]
    return StainRange(low=np.min(known, axis=0), high=np.max(known, axis=0)) if known else None


def stain_warnings(slide: Slide, tissue: Mask, trained: StainRange | None) -> tuple[str, ...]:
    """Say that the stain of a slide lies beyond that of the training set, that it has no colours, or is partly black.

    Black is neither glass nor tissue: other programs write it where a slide was not scanned, or was cut out.

    Args:
        slide: its resolution must be known.
        tissue: from find_tissue, on whose grid the slide is read.
        trained: None if the checkpoint does not say.
    """
    image = slide.read_frame(tissue.frame).array
    stained = image[tissue.array]
    found = []
    black = float((image.max(axis=2) == 0).mean())
    if black > _MOST_BLACK:
        found.append(f"is exactly black on {black:.0%} of its area: what was there is not known, and counts as glass")
    if len(stained) and np.ptp(stained, axis=1).max() <= _LEAST_COLOUR:
        found.append("has no colours where its tissue is: stains and heatmaps need them, so trust nothing found on it")
    densities = None if trained is None else _densities(stained)
    what = None if trained is None or densities is None else trained.beyond(densities)
    if what is not None:
        found.append(f"is stained unlike the training set: {what}; look at its heatmap yourself")
    return tuple(found)


def _densities(pixels: NDArray[np.uint8]) -> _Densities | None:
    """The quantiles of the stained pixels among (n, 3); None if there are too few."""
    density = rgb_to_od(pixels)
    density = density[density.mean(axis=1) > _FAINTEST]
    return np.quantile(density, _QUANTILES, axis=0) if len(density) >= _FEWEST_PX else None


def _averaged(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Pixels (n, 3) of whole squares of factor x factor px."""
    side = image.shape[0] // factor
    squares = image[: side * factor, : side * factor].reshape(side, factor, side, factor, 3)
    return np.asarray(squares.mean(axis=(1, 3)).round(), dtype=np.uint8).reshape(-1, 3)
