"""The data of a training: the patches to learn from, those of the judges, and the weight of each class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsi.cnn.cells import IGNORE, cell_targets
from wsi.cnn.network import CellGeometry
from wsi.errors import PathologyError
from wsi.patches.feeding import TrainingPatches

Judges: TypeAlias = float | Collection[str]
"""The patients who judge a network and are never learnt from: a share of all, drawn at random, or their names."""

_LOOKED_AT = 8192  # patches used to measure colours, at most
_TOGETHER = 64


class UnfitPatchesError(PathologyError, ValueError):
    """Nothing can be learnt from these patches; others are needed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """Patches, split.

    Attributes:
        patches: all of them.
        cells: uint8 (n, i, j), the class of each output cell, before any augmentation: 0 normal, 1 tumour, 255
            ignored.
        class_weights: float64 (2,), give each class half of the total weight.
        learning, shown: indices of the patches learnt from, and of those of the judges.
        judges: names of the judges.
        architecture: of the network.
    """

    patches: TrainingPatches
    cells: NDArray[np.uint8]
    class_weights: NDArray[np.float64]
    learning: NDArray[np.int64]
    shown: NDArray[np.int64]
    judges: tuple[str, ...]
    architecture: CellGeometry

    @classmethod
    def split(
        cls, patches: TrainingPatches, *, judges: Judges, architecture: CellGeometry, rng: np.random.Generator
    ) -> TrainingData:
        """Hold the judges' patches out, and weight the classes of the others.

        Args:
            patches: all.
            judges: names of patients, or the share of patients to draw; 0 for none.
            architecture: of the network.
            rng: draws the judges.

        Raises:
            UnfitPatchesError: patches are too small, hold an unknown class, or those learnt from lack one of the two.
            ValueError: a judge has no patch, the share is out of range, or the architecture has not two classes.
        """
        cells = _cells(patches, architecture)
        names = patches.patients
        chosen = _drawn(names, cells, judges, rng) if isinstance(judges, float | int) else np.unique([*judges])
        strangers = np.setdiff1d(chosen, names)
        if strangers.size:
            raise ValueError(f"{strangers[0]} is named as a judge but has no patch")
        shown = np.isin(names, chosen)
        learning = np.flatnonzero(~shown)
        return cls(
            patches=patches,
            cells=cells,
            class_weights=_class_weights(cells[learning]),
            learning=learning,
            shown=np.flatnonzero(shown),
            judges=tuple(np.unique(names[shown]).tolist()),
            architecture=architecture,
        )

    def moments(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of red, green and blue of the patches learnt from, of 8,192 at most."""
        chosen = self.learning[np.linspace(0, len(self.learning) - 1, min(len(self.learning), _LOOKED_AT)).astype(int)]
        counts = np.zeros((3, 256), np.int64)
        for images in self.patches.images(blocks_of(chosen[self.patches.reading_order(chosen)], _TOGETHER)):
            for channel in range(3):
                counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
        return _moments(counts)


def blocks_of(chosen: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    """Consecutive parts of ``size``; the last one may be smaller."""
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def _cells(patches: TrainingPatches, architecture: CellGeometry) -> NDArray[np.uint8]:
    """The cells' targets, uint8 (n, i, j)."""
    if patches.size_px < architecture.receptive_field_px:
        field = architecture.receptive_field_px
        reason = f"patches of {patches.size_px} px are smaller than the receptive field of {field} px"
        raise UnfitPatchesError(None, reason, mend="draw larger patches (--size), or use another --network")
    if architecture.classes != 2:
        raise ValueError(f"training needs two classes, normal and tumour, not {architecture.classes}")
    count = architecture.cells(patches.size_px)
    cells = np.empty((len(patches), count, count), np.uint8)
    for chosen in blocks_of(np.arange(len(patches)), _TOGETHER):
        targets = patches.targets(chosen)
        unknown = set(np.flatnonzero(np.bincount(targets.ravel(), minlength=256)).tolist()) - {0, 1, IGNORE}
        if unknown:
            raise UnfitPatchesError(None, f"targets must be 0, 1 or {IGNORE}, got {sorted(unknown)}")
        cells[chosen] = cell_targets(targets, architecture)
    return cells


def _drawn(
    names: NDArray[np.str_], cells: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> NDArray[np.str_]:
    """Draw the judges. Patients with and without tumour are drawn separately, in the same share."""
    if not 0 <= share < 1:
        raise ValueError(f"the held-out share must be in 0..1, got {share}")
    sick = np.unique(names[(cells == 1).any(axis=(1, 2))])
    chosen: list[NDArray[np.str_]] = []
    for stratum in (sick, np.setdiff1d(np.unique(names), sick)):
        count = min(max(1, round(share * len(stratum))), len(stratum) - 1) if share else 0
        chosen.append(rng.permutation(stratum)[: max(0, count)])
    return np.concatenate(chosen)


def _class_weights(cells: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weights that give each class half of the total."""
    counts = np.array([np.count_nonzero(cells == 0), np.count_nonzero(cells == 1)])
    if not counts.all():
        missing = "normal" if not counts[0] else "tumour"
        raise UnfitPatchesError(None, f"the training patches hold no {missing} cell")
    weights: NDArray[np.float64] = counts.sum() / (2 * counts)
    return weights


def _moments(counts: NDArray[np.int64]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel from its histogram, int64 (3, 256)."""
    grey = np.arange(256)
    means = [float((count * grey).sum() / count.sum()) for count in counts]
    squares = [float((count * grey**2).sum() / count.sum()) for count in counts]
    stds = [max(1.0, square - mean**2) ** 0.5 for mean, square in zip(means, squares, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
