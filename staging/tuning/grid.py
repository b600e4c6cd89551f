"""The settings that are tried, and the label of a slide with each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from staging.lesions.finding import lesion_sizes
from staging.lesions.labels import SizeRule
from wsi.raster import Heatmap

NAMES = ("threshold", "merge_gap_um", "peak", "smallest_um")
"""The axes of a grid, in their order; as in LesionSettings."""

_TRIED = {
    "threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "merge_gap_um": (0.0, 25.0, 50.0, 75.0, 100.0, 150.0, 200.0),
    "peak": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999),
    "smallest_um": (0.0, 30.0, 60.0, 90.0, 120.0, 160.0, 200.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingGrid:
    """Every combination of some values of each setting.

    Attributes:
        values: ascending, of each of NAMES.
        start: the settings so far, each among its values.
    """

    values: Mapping[str, tuple[float, ...]]
    start: Mapping[str, float]

    @classmethod
    def around(cls, start: Mapping[str, float]) -> SettingGrid:
        """Make the grid that is tried: fixed values, and the settings so far."""
        values = {name: tuple(sorted({*_TRIED[name], float(start[name])})) for name in NAMES}
        return cls(values=values, start={name: float(start[name]) for name in NAMES})

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each setting."""
        return tuple(len(self.values[name]) for name in NAMES)

    def at(self, index: int) -> dict[str, float]:
        """Return the settings at an index into the flattened grid."""
        found = np.unravel_index(index, self.shape)
        return {name: self.values[name][int(at)] for name, at in zip(NAMES, found, strict=True)}

    def at_bound(self, settings: Mapping[str, float]) -> list[str]:
        """Return the settings that are the first or last value tried: a better one may lie beyond, unless that is 0."""
        ends = {name: (self.values[name][0], self.values[name][-1]) for name in NAMES}
        return [name for name in NAMES if settings[name] > 0 and settings[name] in ends[name]]

    def steps(self) -> NDArray[np.int64]:
        """Return how many steps each combination is from the settings so far: int64, of the grid's shape."""
        found = np.zeros(self.shape, dtype=np.int64)
        for axis, name in enumerate(NAMES):
            away = np.abs(np.arange(self.shape[axis]) - self.values[name].index(self.start[name]))
            found += away.reshape([-1 if one == axis else 1 for one in range(len(NAMES))])
        return found


def slide_ranks(heatmap: Heatmap, grid: SettingGrid, rule: SizeRule) -> NDArray[np.int8]:
    """Return the rank of the slide's label with every combination of settings.

    Args:
        heatmap: its frame must know its mpp.
        grid: the settings; its smallest sizes stand in for the rule's.
        rule: the limits of ITC and micro.

    Returns:
        int8, of the grid's shape: ranks of SlideLabel.

    Raises:
        ResolutionError: mpp is unknown.
    """
    found = np.zeros(grid.shape, dtype=np.int8)
    peaks, smallest = (np.array(grid.values[name]) for name in ("peak", "smallest_um"))
    for row, threshold in enumerate(grid.values["threshold"]):
        sizes = lesion_sizes(heatmap, threshold=threshold, merge_gaps_um=grid.values["merge_gap_um"])
        for column, (diameters, probabilities) in enumerate(sizes):
            reached = probabilities >= peaks[:, np.newaxis]
            # only the longest lesion decides, and of those left none is longer
            longest = np.where(reached, diameters, -1.0).max(axis=1, initial=-1.0)
            limits = np.array([rule.itc_max_um, rule.micro_max_um])
            above_noise = longest[:, np.newaxis] >= smallest
            found[row, column] = above_noise * (1 + (longest[:, np.newaxis] > limits).sum(axis=1))[:, np.newaxis]
    return found
