"""The size rule, learned labels and MIL on the same slides, by the same folds, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from staging.bars import watched
from staging.cohorts.camelyon import StageTable
from staging.cohorts.folds import deal_folds, groups_of
from staging.comparison.methods import Labelled, by_attention, by_learning, by_size, by_tuned_size
from staging.csv_rows import csv_text
from staging.learned_labels.predictors import slide_predictors
from staging.learned_labels.training import Recipe
from staging.lesions.labels import SlideLabel
from staging.lesions.seen import SeenRule, seen_json
from staging.scores.kappa import compare as compare_kappas
from staging.scores.patients import score_kappa
from staging.scores.several import ADJUSTED, with_adjusted
from staging.scores.slides import compare_areas, compare_labels, score_auc, score_labels
from staging.stages.pn import BY_NAME, PatientStage, SlideNodes
from staging.training.mil_folds import judge_held_out
from staging.tuning.losses import stage_ranks
from staging.tuning.slides import LabelledHeatmaps
from staging.tuning.tuning import TuningRecipe, gather_evidence
from wsi.heatmap_store import read_heatmap
from wsi.outputs import FileKind, FolderKind, json_file, table
from wsi.store import atomic_text, json_text

if TYPE_CHECKING:
    from wsi.cnn.encoders.mil_training import MilTraining

RECORD, TABLE, DIFFERENCES, LABELS = "compare.json", "compare.csv", "differences.csv", "labels.csv"
_COLUMNS = ("method", "kappa", "kappa_low", "kappa_high", "accuracy", "balanced_accuracy", "auc", "auc_low", "auc_high")
_OF_DIFFERENCES = ("score", "of", "minus", "difference", "low", "high", "p_value", "p_adjusted")
FILES: dict[str, FileKind] = {
    RECORD: json_file("a record of sentinode compare", '"differences"'),
    TABLE: table(*_COLUMNS, name="a table of methods"),
    DIFFERENCES: table(*_OF_DIFFERENCES, name="a table of differences"),
    LABELS: table("slide", "fold", "reference", name="a table of labels by method"),
}
OUTPUT = FolderKind(files=FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """The features of the slides' tiles, for MIL.

    Attributes:
        folder: of the features.
        options: of the heads.
        device: auto, cpu or cuda.
        seen_rule: which features are set aside; None for SeenRule().
    """

    folder: Path
    options: MilTraining
    device: str = "auto"
    seen_rule: SeenRule | None = None


def compare_methods(
    slides: LabelledHeatmaps,
    output: Path,
    recipe: TuningRecipe,
    *,
    features: Features | None = None,
    nodes: SlideNodes = BY_NAME,
    workers: int = 1,
) -> dict[str, Any]:
    """Label every slide by every method, each made without the slide's fold, and score them all.

    Args:
        slides: heatmaps of patients that the network did not see, with their labels; features of all, if any are given.
        output: a folder; the files of FILES are written.
        recipe: the folds, and the loss of the tuned size rule.
        features: for MIL; None leaves it out.
        nodes: which patient and node each slide is of.
        workers: number of processes that measure heatmaps; without influence on the result.

    Returns:
        The contents of compare.json: ``methods`` (the scores of each), ``differences`` (each pair of methods: kappa of
        stages, accuracy of labels, AUC; p-values adjusted by Holm), ``left_out``.

    Raises:
        CohortError: too few patients for the folds, or one label without a fold.
        ArtefactError, ResolutionError: a heatmap or features cannot be used.
        StorageError: a file cannot be written.
    """
    groups = groups_of(slides.names, recipe.held_out, nodes=nodes)
    fold = deal_folds(groups, slides.truth, count=recipe.folds, held_out=recipe.held_out, seed=recipe.seed)
    evidence = gather_evidence(slides, workers=workers)
    looked_at = watched(slides.heatmaps.values(), count=len(slides.names), verb="predictors", name=lambda one: one.stem)
    predictors = np.array([slide_predictors(read_heatmap(path)) for path in looked_at])
    highest = predictors[:, 0]
    learning = Recipe(folds=recipe.folds, split=recipe.held_out, seed=recipe.seed)
    methods = [
        by_size(evidence, highest),
        by_tuned_size(evidence, fold, highest, recipe.loss),
        by_learning(slides, predictors, groups, fold, learning),
    ]
    labels = {name: list(SlideLabel)[rank] for name, rank in zip(slides.names, slides.truth.tolist(), strict=True)}
    if features is not None:
        shares = judge_held_out(
            [features.folder],
            labels,
            dict(zip(slides.names, fold.tolist(), strict=True)),
            nodes=nodes,
            options=features.options,
            device=features.device,
            seen_rule=features.seen_rule,
        )
        methods.append(by_attention(slides, shares))
    record = {
        "methods": {one.name: _scored(slides, labels, one, nodes) for one in methods},
        "differences": _differences(slides, labels, methods, nodes),
        "adjusted": f"p-values are adjusted for their number: {ADJUSTED}",
        "held_out": recipe.held_out,
        "folds": int(fold.max()) + 1,
        "seed": recipe.seed,
        "slides": len(slides.names),
        "patients": len(slides.patients),
        "left_out": dict(slides.left_out),
        **seen_json(slides.seen, slides.faults),
    }
    atomic_text(output / LABELS, _label_table(labels, fold, methods))
    atomic_text(output / TABLE, csv_text(_COLUMNS, _rows(record["methods"])))
    atomic_text(output / DIFFERENCES, csv_text(_OF_DIFFERENCES, map(_difference_row, record["differences"])))
    atomic_text(output / RECORD, json_text(record))
    return record


def _scored(
    slides: LabelledHeatmaps, truth: Mapping[str, SlideLabel], method: Labelled, nodes: SlideNodes
) -> dict[str, Any]:
    claimed = _claimed(slides, method)
    stages = {one.name: list(PatientStage)[one.stage] for one in slides.patients}
    found = {
        one.name: list(PatientStage)[rank]
        for one, rank in zip(slides.patients, _stages(slides, method).tolist(), strict=True)
    }
    has_tumour = {name: label is not SlideLabel.NEGATIVE for name, label in truth.items()}
    probabilities = dict(zip(slides.names, method.probabilities.tolist(), strict=True))
    is_scored = len(set(has_tumour.values())) == 2
    return {
        "stages": score_kappa(StageTable(stages=stages), StageTable(stages=found)).to_json() if stages else None,
        "labels": score_labels(truth, claimed, nodes=nodes).to_json(),
        "auc": score_auc(has_tumour, probabilities, with_errata=False, nodes=nodes).to_json() if is_scored else None,
    }


def _claimed(slides: LabelledHeatmaps, method: Labelled) -> dict[str, SlideLabel]:
    return {name: list(SlideLabel)[rank] for name, rank in zip(slides.names, method.ranks.tolist(), strict=True)}


def _stages(slides: LabelledHeatmaps, method: Labelled) -> NDArray[np.int64]:
    return stage_ranks(method.ranks.astype(np.int8)[:, np.newaxis], slides.patients)[:, 0]


def _differences(
    slides: LabelledHeatmaps, labels: Mapping[str, SlideLabel], methods: Sequence[Labelled], nodes: SlideNodes
) -> list[dict[str, Any]]:
    """Compare every two methods; the p-values of all are adjusted together."""
    found: list[dict[str, Any]] = []
    has_tumour = {name: label is not SlideLabel.NEGATIVE for name, label in labels.items()}
    areas = [dict(zip(slides.names, one.probabilities.tolist(), strict=True)) for one in methods]
    scores = [score_labels(labels, _claimed(slides, one), nodes=nodes) for one in methods]
    staged = np.array([one.stage for one in slides.patients], dtype=np.int64)
    for number, one in enumerate(methods):
        for before, other in enumerate(methods[:number]):
            pair = {"of": one.name, "minus": other.name}
            if len(staged):
                stages = compare_kappas(staged, _stages(slides, one), _stages(slides, other), classes=len(PatientStage))
                found.append({**pair, "score": "kappa of stages", **stages.to_json()})
            # slides of a patient are no independent evidence, so labels are compared over patients
            of_labels = compare_labels(scores[number], scores[before])["accuracy"]
            found.append({**pair, "score": "accuracy of labels", **of_labels.to_json()})
            if len(set(has_tumour.values())) == 2:
                area = compare_areas(has_tumour, areas[number], areas[before], with_errata=False, nodes=nodes)
                found.append({**pair, "score": "auc", **area.to_json()})
    return with_adjusted(found)


def _label_table(labels: Mapping[str, SlideLabel], fold: NDArray[np.int64], methods: Sequence[Labelled]) -> str:
    header = ("slide", "fold", "reference", *(one.name for one in methods))
    rows = (
        (name, int(part), label.value, *(list(SlideLabel)[one.ranks[at]].value for one in methods))
        for at, ((name, label), part) in enumerate(zip(labels.items(), fold, strict=True))
    )
    return csv_text(header, rows)


def _rows(methods: Mapping[str, Mapping[str, Any]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, scores in methods.items():
        stages, labels, auc = scores["stages"], scores["labels"], scores["auc"]
        kappa = (None, None, None) if stages is None else (stages["kappa"], *stages["interval"])
        area = (None, None, None) if auc is None else (auc["auc"], *auc["interval"])
        values = (*kappa, labels["accuracy"], labels["balanced_accuracy"], *area)
        rows.append((name, *map(_cell, values)))
    return rows


def _difference_row(one: Mapping[str, Any]) -> tuple[object, ...]:
    values = (one["difference"], *one["interval"], one["p_value"], one["p_adjusted"])
    return (one["score"], one["of"], one["minus"], *map(_cell, values))


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
