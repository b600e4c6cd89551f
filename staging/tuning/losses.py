"""How wrong the labels of slides and the stages of patients are, with many settings at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from staging.lesions.labels import SlideLabel
from staging.stages.pn import stage_patient

LossName = Literal["kappa", "labels"]
LOSSES: dict[LossName, str] = {
    "kappa": "1 - quadratic kappa of the patients' stages; of equally good settings the ones with the lower label cost",
    "labels": "mean squared difference between the ranks of a slide's label and of the true one (0 negative to 3 "
    "macro), every true label counting the same",
}
"""What is minimised, in words."""

_LABELS = tuple(SlideLabel)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientSlides:
    """A patient who can be staged.

    Attributes:
        name: of the patient.
        nodes: the slides of each node, as indices.
        stage: rank of the true stage.
    """

    name: str
    nodes: tuple[tuple[int, ...], ...]
    stage: int


def stage_ranks(claimed: NDArray[np.int8], patients: Sequence[PatientSlides]) -> NDArray[np.int64]:
    """Stage every patient with every setting, by the rule of stage_patient.

    Args:
        claimed: int8 (slides, settings), ranks of labels.
        patients: who is staged.

    Returns:
        int64 (patients, settings), ranks of stages.
    """
    found = np.zeros((len(patients), claimed.shape[1]), dtype=np.int64)
    for row, patient in enumerate(patients):
        worst = np.array([claimed[list(slides)].max(axis=0) for slides in patient.nodes])
        # the rule does not look at the nodes' order, and few of its cases occur
        cases, of_setting = np.unique(np.sort(worst, axis=0), axis=1, return_inverse=True)
        stages = [stage_patient(_LABELS[rank] for rank in case).rank for case in cases.T.tolist()]
        found[row] = np.array(stages)[of_setting.reshape(-1)]
    return found


def kappas(truth: NDArray[np.int64], claimed: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the quadratic kappa of each setting; 1 where all agree on one class, which leaves it undefined.

    Args:
        truth: int64 (patients,).
        claimed: int64 (patients, settings).

    Returns:
        float64 (settings,).
    """
    wide = claimed.astype(np.float64)
    disagreement = ((wide - truth[:, np.newaxis]) ** 2).mean(axis=0)
    # the mean squared difference of a rank of one and a rank of the other, drawn apart
    chance = (truth.astype(np.float64) ** 2).mean() + (wide**2).mean(axis=0) - 2 * truth.mean() * wide.mean(axis=0)
    return np.where(chance > 0, 1 - disagreement / np.where(chance > 0, chance, 1.0), 1.0)


def label_costs(truth: NDArray[np.int64], claimed: NDArray[np.int8]) -> NDArray[np.float64]:
    """Compute the label cost of each setting, see LOSSES.

    Args:
        truth: int64 (slides,).
        claimed: int8 (slides, settings).

    Returns:
        float64 (settings,), 0 to 9.
    """
    squared = (claimed.astype(np.float64) - truth[:, np.newaxis]) ** 2
    each: NDArray[np.float64] = np.array([squared[truth == rank].mean(axis=0) for rank in np.unique(truth)])
    averaged: NDArray[np.float64] = each.mean(axis=0)
    return averaged
