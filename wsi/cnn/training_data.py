"""What a network learns from: which patches it sees, which it is judged by, and how much each class counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.cnn.augmentation import IGNORE, cell_targets
from wsi.cnn.network import CellGeometry
from wsi.patches.feeding import TrainingPatches
from wsi.stain import StainJitter

_LOOKED_AT = 8192  # patches of which colours are measured, at most
_TOGETHER = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """Patches, split.

    Attributes:
        patches: all of them.
        cells: uint8 (n, i, j), the class of each output cell, before any augmentation: 0 normal, 1 tumour, 255 not
            looked at.
        class_weights: float64 (2,), with which both classes count half of what is learned.
        learning, shown: indices of the patches that are learned from and of those that judge.
        held_out: names of the groups of the latter.
        architecture: of the network.
        jitter: how far stains are moved.
        seed: of the augmentation.
    """

    patches: TrainingPatches
    cells: NDArray[np.uint8]
    class_weights: NDArray[np.float64]
    learning: NDArray[np.int64]
    shown: NDArray[np.int64]
    held_out: tuple[str, ...]
    architecture: CellGeometry
    jitter: StainJitter
    seed: int

    @classmethod
    def split(
        cls,
        patches: TrainingPatches,
        *,
        groups: NDArray[Any] | None,
        share: float,
        validation: NDArray[np.bool_] | None,
        architecture: CellGeometry,
        jitter: StainJitter,
        seed: int,
        rng: np.random.Generator,
    ) -> TrainingData:
        """Hold groups out, and weigh the classes of the others.

        Args:
            patches: all.
            groups: (n,) the group of each patch; None makes each its own.
            share: of the groups that is held out, 0 for none.
            validation: bool (n,), which patches are held out, in place of a share.
            architecture: of the network.
            jitter: how far stains are moved.
            seed: of the augmentation.
            rng: draws the groups.

        Raises:
            ValueError: shapes or values do not fit, a group stands on both sides, or what is learned from lacks one of
                the two classes.
        """
        cells = _cells(patches, architecture)
        names = np.arange(len(patches)).astype(str) if groups is None else np.asarray(groups).astype(str)
        if names.shape != (len(patches),):
            raise ValueError(f"groups need shape ({len(patches)},), got {names.shape}")
        if validation is None:
            validation = _held_out(names, cells, share, rng)
        _check_apart(names, validation)
        learning = np.flatnonzero(~validation)
        return cls(
            patches=patches,
            cells=cells,
            class_weights=_class_weights(cells[learning]),
            learning=learning,
            shown=np.flatnonzero(validation),
            held_out=tuple(np.unique(names[validation]).tolist()),
            architecture=architecture,
            jitter=jitter,
            seed=seed,
        )

    def moments(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Mean and standard deviation of red, green and blue of what is learned from, of 8,192 patches at most."""
        chosen = self.learning[np.linspace(0, len(self.learning) - 1, min(len(self.learning), _LOOKED_AT)).astype(int)]
        counts = np.zeros((3, 256), np.int64)
        for images in self.patches.images(blocks_of(chosen[self.patches.reading_order(chosen)], _TOGETHER)):
            for channel in range(3):
                counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
        return _moments(counts)


def blocks_of(chosen: NDArray[np.int64], size: int) -> Sequence[NDArray[np.int64]]:
    """Neighbours together, so many at a time; the last ones are fewer."""
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def _cells(patches: TrainingPatches, architecture: CellGeometry) -> NDArray[np.uint8]:
    """The cells' targets, uint8 (n, i, j)."""
    if patches.size_px < architecture.receptive_field_px:
        raise ValueError(f"images of {patches.size_px} px are smaller than the receptive field")
    if architecture.classes != 2:
        raise ValueError(f"training tells normal from tumour: two classes, not {architecture.classes}")
    count = architecture.cells(patches.size_px)
    cells = np.empty((len(patches), count, count), np.uint8)
    for chosen in blocks_of(np.arange(len(patches)), _TOGETHER):
        targets = patches.targets(chosen)
        odd = set(np.flatnonzero(np.bincount(targets.ravel(), minlength=256)).tolist()) - {0, 1, IGNORE}
        if odd:
            raise ValueError(f"targets are 0, 1 or {IGNORE}, got {sorted(odd)}")
        cells[chosen] = cell_targets(targets, architecture)
    return cells


def _check_apart(names: NDArray[np.str_], validation: NDArray[np.bool_]) -> None:
    if validation.dtype != bool or validation.shape != names.shape:
        raise ValueError(f"validation needs bool of shape {names.shape}, got {validation.dtype} {validation.shape}")
    both = np.intersect1d(names[validation], names[~validation])
    if both.size:
        raise ValueError(f"{both[0]} is learned from and validated on")


def _held_out(
    names: NDArray[np.str_], cells: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which images are validated on: bool (n,). Groups with and without tumour are drawn apart, in the same share."""
    if not 0 <= share < 1:
        raise ValueError(f"the held-out share lies in 0..1, got {share}")
    sick = np.unique(names[(cells == 1).any(axis=(1, 2))])
    chosen: list[NDArray[np.str_]] = []
    for stratum in (sick, np.setdiff1d(np.unique(names), sick)):
        count = min(max(1, round(share * len(stratum))), len(stratum) - 1) if share else 0
        chosen.append(rng.permutation(stratum)[: max(0, count)])
    return np.isin(names, np.concatenate(chosen))


def _class_weights(cells: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weights with which both classes count half of the whole."""
    counts = np.array([np.count_nonzero(cells == 0), np.count_nonzero(cells == 1)])
    if not counts.all():
        missing = "normal" if not counts[0] else "tumour"
        raise ValueError(f"the training patches hold no {missing} cell")
    weights: NDArray[np.float64] = counts.sum() / (2 * counts)
    return weights


def _moments(counts: NDArray[np.int64]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel from how often it has each value, int64 (3, 256)."""
    grey = np.arange(256)
    means = [float((count * grey).sum() / count.sum()) for count in counts]
    squares = [float((count * grey**2).sum() / count.sum()) for count in counts]
    stds = [max(1.0, square - mean**2) ** 0.5 for mean, square in zip(means, squares, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
