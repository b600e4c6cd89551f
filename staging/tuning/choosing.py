"""Settings chosen on some slides and judged on others, fold by fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from staging.tuning.grid import NAMES, SettingGrid
from staging.tuning.losses import LossName, PatientSlides, kappas, label_costs, stage_ranks

TOLERANCE = 0.01
"""Losses this close are equal: a few patients cannot tell them apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Slides of known label, with the label that every combination of settings gives them.

    Attributes:
        grid: the settings.
        truth: int64 (slides,), ranks of the true labels.
        claimed: int8 (slides, settings), ranks with each combination, the grid flattened.
        patients: those who can be staged; no slide is of two.
    """

    grid: SettingGrid
    truth: NDArray[np.int64]
    claimed: NDArray[np.int8]
    patients: tuple[PatientSlides, ...]

    def costs(self, chosen: NDArray[np.bool_], loss: LossName) -> tuple[NDArray[np.float64], ...]:
        """Return what decides between settings: the loss, then what decides where it is equal; float64 (settings,).

        Args:
            chosen: bool (slides,), those looked at; of a patient all slides or none.
            loss: what is minimised.
        """
        of_labels = label_costs(self.truth[chosen], self.claimed[chosen])
        if loss == "labels":
            return (of_labels,)
        patients = self.staged(chosen)
        truth = np.array([one.stage for one in patients], dtype=np.int64)
        return 1 - kappas(truth, stage_ranks(self.claimed, patients)), of_labels

    def staged(self, chosen: NDArray[np.bool_]) -> list[PatientSlides]:
        """Return the patients whose slides are among those chosen."""
        return [one for one in self.patients if chosen[one.nodes[0][0]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The settings chosen on all slides, and how well such a choice does on slides that it was not made on.

    Attributes:
        setting: index of the combination chosen on all slides.
        of_folds: of the combination chosen without each fold.
        fold: int64 (slides,), the fold of each slide.
        unseen: int8 (slides,), the label's rank by the combination chosen without the slide's fold.
        curves: of each of NAMES float64 (values,): the loss over the held-out slides of all folds if that setting is
            fixed and the others are chosen on the other folds.
    """

    setting: int
    of_folds: tuple[int, ...]
    fold: NDArray[np.int64]
    unseen: NDArray[np.int8]
    curves: dict[str, NDArray[np.float64]]


def choose(evidence: Evidence, fold: NDArray[np.int64], loss: LossName) -> Chosen:
    """Choose settings on all slides, and without each fold.

    A combination is judged together with its neighbours on the grid: a plateau is a better choice than a lucky spike.
    Of all within ``TOLERANCE`` of the best the nearest to the settings so far is taken: what the slides do not decide
    stays as it was.

    Args:
        evidence: the slides.
        fold: int64 (slides,), the fold of each; a patient is never divided.
        loss: what is minimised.
    """
    everyone = np.ones(len(fold), dtype=np.bool_)
    tables = [_smoothed(evidence, fold != number, loss) for number in range(int(fold.max()) + 1)]
    whole = np.arange(evidence.claimed.shape[1])
    of_folds = tuple(_best(evidence, costs, whole) for costs in tables)
    return Chosen(
        setting=_best(evidence, _smoothed(evidence, everyone, loss), whole),
        of_folds=of_folds,
        fold=fold,
        unseen=_held_out(evidence, fold, of_folds),
        curves={name: _curve(evidence, fold, tables, loss, axis) for axis, name in enumerate(NAMES)},
    )


def _best(evidence: Evidence, costs: Sequence[NDArray[np.float64]], allowed: NDArray[np.int64]) -> int:
    """Return the best of the allowed combinations."""
    for cost in costs:
        allowed = allowed[cost[allowed] <= cost[allowed].min() + TOLERANCE]
    return int(allowed[np.argmin(evidence.grid.steps().reshape(-1)[allowed])])


def _smoothed(evidence: Evidence, chosen: NDArray[np.bool_], loss: LossName) -> list[NDArray[np.float64]]:
    """Return what decides, the first first; each combination averaged with its neighbours along every axis."""
    smoothed = []
    for cost in evidence.costs(chosen, loss):
        found = cost.reshape(evidence.grid.shape)
        for axis in range(found.ndim):
            padded = np.pad(found, [(1, 1) if one == axis else (0, 0) for one in range(found.ndim)], mode="edge")
            parts = [np.take(padded, range(at, at + found.shape[axis]), axis=axis) for at in range(3)]
            found = (parts[0] + parts[1] + parts[2]) / 3
        smoothed.append(found.reshape(-1))
    return smoothed


def _held_out(evidence: Evidence, fold: NDArray[np.int64], settings: Sequence[int]) -> NDArray[np.int8]:
    found: NDArray[np.int8] = evidence.claimed[np.arange(len(fold)), np.array(settings)[fold]]
    return found


def _curve(
    evidence: Evidence,
    fold: NDArray[np.int64],
    tables: Sequence[Sequence[NDArray[np.float64]]],
    loss: LossName,
    axis: int,
) -> NDArray[np.float64]:
    shape = evidence.grid.shape
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    everyone = np.ones(len(fold), dtype=np.bool_)
    found = []
    for at in range(shape[axis]):
        allowed = np.take(numbers, at, axis=axis).reshape(-1)
        settings = [_best(evidence, costs, allowed) for costs in tables]
        held_out = replace(evidence, claimed=_held_out(evidence, fold, settings)[:, np.newaxis])
        found.append(held_out.costs(everyone, loss)[0][0])
    return np.array(found)
