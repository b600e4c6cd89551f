"""What a network learns from: which patches it sees, which it is judged by, and how much each class counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.cnn.augmentation import IGNORE, cell_targets
from wsi.cnn.network import CellGeometry
from wsi.stain import StainJitter


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """Patches, split.

    Attributes:
        images: uint8 (n, side, side, 3), RGB.
        targets: uint8 (n, side, side): 0 normal, 1 tumour, 255 not looked at.
        cells: uint8 (n, i, j): the same of each output cell, before any augmentation.
        class_weights: float64 (2,), with which both classes count half of what is learned.
        learning, shown: indices of the patches that are learned from and of those that judge.
        held_out: names of the groups of the latter.
        architecture: of the network.
        jitter: how far stains are moved.
        seed: of the augmentation.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    cells: NDArray[np.uint8]
    class_weights: NDArray[np.float64]
    learning: NDArray[np.intp]
    shown: NDArray[np.intp]
    held_out: tuple[str, ...]
    architecture: CellGeometry
    jitter: StainJitter
    seed: int

    @classmethod
    def split(
        cls,
        images: NDArray[np.uint8],
        targets: NDArray[np.uint8],
        *,
        groups: NDArray[Any] | None,
        share: float,
        architecture: CellGeometry,
        jitter: StainJitter,
        seed: int,
        rng: np.random.Generator,
    ) -> TrainingData:
        """Hold groups out, and weigh the classes of the others.

        Args:
            images: uint8 (n, side, side, 3).
            targets: uint8 (n, side, side).
            groups: (n,) the group of each patch; None makes each its own.
            share: of the groups that is held out, 0 for none.
            architecture: of the network.
            jitter: how far stains are moved.
            seed: of the augmentation.
            rng: draws the groups.

        Raises:
            ValueError: shapes or values do not fit, or what is learned from lacks one of the two classes.
        """
        cells = _checked(images, targets, architecture)
        names = np.arange(len(images)).astype(str) if groups is None else np.asarray(groups).astype(str)
        if names.shape != (len(images),):
            raise ValueError(f"groups need shape ({len(images)},), got {names.shape}")
        validation = _held_out(names, cells, share, rng)
        learning = np.flatnonzero(~validation)
        return cls(
            images=images,
            targets=targets,
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
        """Mean and standard deviation of red, green and blue of what is learned from."""
        return _moments(self.images[self.learning])


def batches_of(chosen: NDArray[np.intp], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """One pass in random order, in full batches; what is left over waits for another pass."""
    order = rng.permutation(chosen)
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


def sha256_of(array: NDArray[np.uint8]) -> str:
    """Hex sha256 of the values."""
    return hashlib.sha256(array.tobytes()).hexdigest()


def _checked(images: NDArray[np.uint8], targets: NDArray[np.uint8], architecture: CellGeometry) -> NDArray[np.uint8]:
    """The cells' targets, uint8 (n, i, j)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are uint8 (n, side, side, 3), got {images.dtype} {images.shape}")
    if targets.dtype != np.uint8 or targets.shape != images.shape[:3]:
        raise ValueError(f"targets are uint8 {images.shape[:3]}, got {targets.dtype} {targets.shape}")
    if images.shape[1] < architecture.receptive_field_px:
        raise ValueError(f"images of {images.shape[1]} px are smaller than the receptive field")
    if architecture.classes != 2:
        raise ValueError(f"training tells normal from tumour: two classes, not {architecture.classes}")
    odd = np.setdiff1d(np.unique(targets), (0, 1, IGNORE))
    if odd.size:
        raise ValueError(f"targets are 0, 1 or {IGNORE}, got {odd.tolist()}")
    return cell_targets(targets, architecture)


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


def _moments(images: NDArray[np.uint8]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel."""
    grey = np.arange(256)
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    means = [float((count * grey).sum() / count.sum()) for count in counts]
    squares = [float((count * grey**2).sum() / count.sum()) for count in counts]
    stds = [max(1.0, square - mean**2) ** 0.5 for mean, square in zip(means, squares, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])
