"""The ways to label a slide, each judged on slides that it was not made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from staging.learned_labels.training import LabelledSlides, Recipe, nested
from staging.tuning.choosing import Evidence, choose
from staging.tuning.grid import NAMES
from staging.tuning.losses import LossName
from staging.tuning.slides import LabelledHeatmaps


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labelled:
    """What a method says of slides that it was not made from.

    Attributes:
        name: of the method.
        ranks: int64 (slides,), of the labels.
        probabilities: float64 (slides,), of any metastasis.
    """

    name: str
    ranks: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def by_size(evidence: Evidence, highest: NDArray[np.float64]) -> Labelled:
    """The size rule with the settings so far.

    Args:
        evidence: the slides.
        highest: float64 (slides,), the highest probability of each heatmap.
    """
    start = [evidence.grid.values[name].index(evidence.grid.start[name]) for name in NAMES]
    index = int(np.ravel_multi_index(start, evidence.grid.shape))
    return Labelled(name="size rule", ranks=evidence.claimed[:, index].astype(np.int64), probabilities=highest)


def by_tuned_size(
    evidence: Evidence, fold: NDArray[np.int64], highest: NDArray[np.float64], loss: LossName
) -> Labelled:
    """The size rule with settings tuned without the slide's fold."""
    chosen = choose(evidence, fold, loss)
    return Labelled(name="tuned size rule", ranks=chosen.unseen.astype(np.int64), probabilities=highest)


def by_learning(
    slides: LabelledHeatmaps,
    predictors: NDArray[np.float64],
    groups: tuple[str, ...],
    fold: NDArray[np.int64],
    recipe: Recipe,
) -> Labelled:
    """A classifier of heatmaps trained without the slide's fold.

    Args:
        slides: the slides.
        predictors: float64 (slides, predictors), of their heatmaps.
        groups: of each slide, what is never divided.
        fold: int64 (slides,).
        recipe: of the classifier.

    Raises:
        CohortError: without one fold all other slides have one label.
    """
    labelled = LabelledSlides(names=slides.names, predictors=predictors, ranks=slides.truth, groups=groups)
    folds = [np.flatnonzero(fold == number) for number in range(int(fold.max()) + 1)]
    shares, ranks, _ = nested(labelled, recipe, folds)
    return Labelled(name=f"learned labels ({recipe.kind})", ranks=ranks, probabilities=1 - shares[:, 0])


def by_attention(slides: LabelledHeatmaps, shares: Mapping[str, NDArray[np.float64]]) -> Labelled:
    """An attention head trained without the slide's fold; the likeliest label counts.

    Args:
        slides: the slides.
        shares: by slide name float64 (4,), from judge_held_out.
    """
    each = np.array([shares[name] for name in slides.names])
    return Labelled(name="MIL", ranks=each.argmax(axis=1).astype(np.int64), probabilities=1 - each[:, 0])
