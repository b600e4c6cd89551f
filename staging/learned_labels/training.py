"""Training of the learned slide label, with an unbiased estimate of its quality.

Nested cross-validation: the slides of a patient (or of a centre) are never on both sides of a fold, and the limits that
decide the label are tuned within the training side of each fold, on slides that its trees did not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from staging.bars import watched
from staging.cohorts.folds import HeldOut, deal_folds, groups_of
from staging.cohorts.names import slide_key
from staging.errors import CohortError, listed
from staging.learned_labels.predictors import PREDICTOR_NAMES, slide_predictors
from staging.learned_labels.trees import Floats, Kind, SlideClassifier, Whole, fit, ranks_of
from staging.lesions.labels import SlideLabel
from staging.scores.intervals import or_none
from staging.scores.kappa import confusion_matrix, quadratic_kappa
from wsi.heatmap_store import read_heatmap

_GRID = tuple(step / 20 for step in range(1, 20))
_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledSlides:
    """Slides of known label.

    Attributes:
        names: names of the slides.
        predictors: float64 (n, predictors).
        ranks: int64 (n,), of their SlideLabels.
        groups: of each slide, what must stay on one side of a fold: its patient or centre.
        predictor_names: names of the predictors.
    """

    names: tuple[str, ...]
    predictors: Floats
    ranks: Whole
    groups: tuple[str, ...]
    predictor_names: tuple[str, ...] = PREDICTOR_NAMES

    def part(self, chosen: NDArray[np.intp]) -> LabelledSlides:
        """Select some of the slides."""
        return replace(
            self,
            names=tuple(self.names[at] for at in chosen),
            predictors=self.predictors[chosen],
            ranks=self.ranks[chosen],
            groups=tuple(self.groups[at] for at in chosen),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a classifier is made.

    Attributes:
        kind: kind of trees.
        trees: number of trees (with boosting per class).
        folds: number of cross-validation folds; leave-one-centre-out has one per centre.
        split: whether patients or centres stay together.
        seed: of trees and folds.
    """

    kind: Kind = "forest"
    trees: int = 300
    folds: int = 5
    split: HeldOut = "patients"
    seed: int = 0


def gather(
    heatmaps: Sequence[Path],
    labels: Mapping[str, SlideLabel],
    *,
    split: HeldOut = "patients",
    reference: Path | None = None,
) -> LabelledSlides:
    """Compute the predictors of heatmaps and match them with labels.

    Args:
        heatmaps: published ones, named by their slides.
        labels: of the slides; both must name the same ones.
        split: "patients" keeps a patient's slides together (a slide whose name gives none is its own patient),
            "centres" those of a CAMELYON centre.
        reference: the file of the labels, for errors.

    Raises:
        CohortError: a heatmap without a label, a label without a heatmap, or a slide whose name gives no centre.
        ArtefactError, ResolutionError: a heatmap cannot be used.
    """
    by_name = {slide_key(path.stem): path for path in heatmaps}
    truth = {slide_key(name): label for name, label in labels.items()}
    _refuse(reference, by_name.keys() - truth.keys(), "label", "label every slide, or leave its heatmap out")
    _refuse(reference, truth.keys() - by_name.keys(), "heatmap", "make its heatmap, or leave its row out")
    names = tuple(sorted(by_name))
    groups = groups_of(names, split, source=reference)
    looked_at = watched(names, count=len(names), verb="heatmaps measured", name=str)
    return LabelledSlides(
        names=names,
        predictors=np.array([slide_predictors(read_heatmap(by_name[name])) for name in looked_at]),
        ranks=np.array([truth[name].rank for name in names], dtype=np.int64),
        groups=groups,
    )


def train_classifier(slides: LabelledSlides, recipe: Recipe) -> SlideClassifier:
    """Train on all slides; the provenance has the result of nested cross-validation.

    Raises:
        CohortError: all slides have one label, or there are fewer patients (or centres) than folds.
    """
    if len(np.unique(slides.ranks)) < 2:
        one = list(SlideLabel)[int(slides.ranks[0])].value if len(slides.ranks) else "none"
        raise CohortError(None, f"all slides have one label: {one}", mend="train on slides of several labels")
    seen, claimed, limits = nested(slides, recipe, _folds(slides, recipe))
    final = _grown(slides, recipe)
    return replace(
        final,
        # predictions of the outer folds are for unseen slides, so they can tune the final limits
        limits=tune_limits(slides.ranks, seen),
        provenance={
            "slides": len(slides.ranks),
            "names": list(slides.names),
            "groups": len(set(slides.groups)),
            "recipe": {name: getattr(recipe, name) for name in ("kind", "trees", "folds", "split", "seed")},
            "nested": {
                "quadratic_kappa": or_none(quadratic_kappa(slides.ranks, claimed, classes=len(SlideLabel))),
                "accuracy": float(np.mean(claimed == slides.ranks)),
                "confusion": confusion_matrix(slides.ranks, claimed, classes=len(SlideLabel)).tolist(),
                "labels": [label.value for label in SlideLabel],
                "limits": [list(one) for one in limits],
            },
        },
    )


def nested(
    slides: LabelledSlides, recipe: Recipe, folds: Sequence[NDArray[np.intp]]
) -> tuple[Floats, Whole, list[tuple[float, ...]]]:
    """Label each slide by a classifier that was trained, and whose limits were tuned, without its fold.

    Args:
        slides: the slides.
        recipe: of each classifier; its folds are those within a training side.
        folds: the slides of each, as indices.

    Returns:
        float64 (n, 4) probabilities, int64 (n,) ranks, and the limits of each fold.

    Raises:
        CohortError: without one fold all other slides have one label.
    """
    seen: Floats = np.zeros((len(slides.ranks), len(SlideLabel)))
    claimed: Whole = np.zeros(len(slides.ranks), dtype=np.int64)
    limits = []
    for held_out in folds:
        rest = np.setdiff1d(np.arange(len(slides.ranks)), held_out)
        seen[held_out], inner = _nested(slides.part(rest), slides.predictors[held_out], recipe)
        claimed[held_out] = ranks_of(seen[held_out], inner)
        limits.append(inner)
    return seen, claimed, limits


def tune_limits(ranks: Whole, probabilities: Floats) -> tuple[float, ...]:
    """Tune limits for itc, micro and macro on a grid of twentieths to maximise the quadratic kappa.

    One limit at a time is moved to its best value until none moves; of equally good values the nearest to one half is
    taken, so that what the slides do not decide stays in the middle.

    Args:
        ranks: int64 (n,), of the true labels.
        probabilities: float64 (n, 4) of the same slides, which the classifier has not seen.
    """
    limits = [0.5] * (len(SlideLabel) - 1)
    for _ in range(_ROUNDS):
        before = list(limits)
        for number in range(len(limits)):
            limits[number] = max(
                _GRID,
                key=lambda limit: (
                    _kappa(ranks, probabilities, (*limits[:number], limit, *limits[number + 1 :])),
                    -abs(limit - 0.5),
                ),
            )
        if limits == before:
            break
    return tuple(limits)


def _kappa(ranks: Whole, probabilities: Floats, limits: tuple[float, ...]) -> float:
    kappa = quadratic_kappa(ranks, ranks_of(probabilities, limits), classes=len(SlideLabel))
    return -2.0 if np.isnan(kappa) else round(kappa, 12)


def _nested(slides: LabelledSlides, held_out: Floats, recipe: Recipe) -> tuple[Floats, tuple[float, ...]]:
    """Return (probabilities of held-out slides, limits), both from the training side only."""
    unseen: Floats = np.zeros((len(slides.ranks), len(SlideLabel)))
    unseen[np.arange(len(slides.ranks)), slides.ranks] = 1.0
    if len(set(slides.groups)) > 1:
        for inner in _folds(slides, replace(recipe, folds=min(recipe.folds, len(set(slides.groups))))):
            rest = np.setdiff1d(np.arange(len(slides.ranks)), inner)
            unseen[inner] = _grown(slides.part(rest), recipe).predict(slides.predictors[inner])
    return _grown(slides, recipe).predict(held_out), tune_limits(slides.ranks, unseen)


def _grown(slides: LabelledSlides, recipe: Recipe) -> SlideClassifier:
    if len(np.unique(slides.ranks)) < 2:
        raise CohortError(
            None,
            "without one fold all other slides have one label",
            mend="give more slides of each label, or other folds",
        )
    return fit(
        slides.predictors,
        slides.ranks,
        names=slides.predictor_names,
        kind=recipe.kind,
        trees=recipe.trees,
        seed=recipe.seed,
    )


def _folds(slides: LabelledSlides, recipe: Recipe) -> list[NDArray[np.intp]]:
    """Choose the held-out slides of each fold."""
    of_slide = deal_folds(slides.groups, slides.ranks, count=recipe.folds, held_out=recipe.split, seed=recipe.seed)
    return [np.flatnonzero(of_slide == number) for number in range(int(of_slide.max()) + 1)]


def _refuse(path: Path | None, names: Iterable[str], noun: str, mend: str) -> None:
    missing = sorted(names)
    if missing:
        raise CohortError(path, f"there is no {noun} for {listed(missing)}", mend=mend)
