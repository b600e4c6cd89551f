"""From features to kappa: every slide labelled by an attention head that never saw its patient or centre."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.camelyon import StageTable, read_label_table, read_stage_table, write_stage_table
from staging.cohorts.errata import EXCLUDED
from staging.cohorts.folds import HeldOut, deal_folds, groups_of
from staging.cohorts.names import CENTRES, slide_key
from staging.csv_rows import csv_text
from staging.errors import CohortError, NoSlidesError, TableError
from staging.lesions.labels import SlideLabel
from staging.lesions.seen import SEEN_COLUMNS, SeenRule, seen_json
from staging.scores.kappa import score as kappa_of
from staging.scores.patients import score_stages
from staging.scores.slides import score_auc, score_labels
from staging.stages.pn import BY_NAME, PatientStage, SlideNodes, stage_patients
from staging.training.mil_features import bags_of, open_features, recipe_of, seen_features
from wsi.outputs import FileKind, FolderKind, json_file, table
from wsi.store import atomic_text, json_text

if TYPE_CHECKING:
    from wsi.cnn.encoders.mil_training import MilTraining

RECORD, LABELS, STAGES = "mil_folds.json", "labels.csv", "stages.csv"
_OF_LABELS = ("slide", "label", "probability", *(label.value for label in SlideLabel), "reference", "fold")
FILES: dict[str, FileKind] = {
    RECORD: json_file("a record of sentinode mil cross-validate", '"held_out"'),
    LABELS: table(*_OF_LABELS, name="a table of labels by folds"),
    STAGES: table("patient", "stage", name="a table of stages"),
}
OUTPUT = FolderKind(files=FILES)
"""The folder of a cross-validation; its record is written last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MilFolds:
    """How slides are divided, and heads trained.

    Attributes:
        options: of the heads.
        held_out: whether patients or centres are left out together.
        folds: of patients; centres are left out one at a time.
        nodes: which patient and node each slide is of.
        expected_nodes: slides a patient needs to be staged.
        seen_rule: which features are set aside because they show too little of the tissue.
        device: auto, cpu or cuda.
    """

    options: MilTraining
    held_out: HeldOut = "centres"
    folds: int = 5
    nodes: SlideNodes = BY_NAME
    expected_nodes: int = 5
    seen_rule: SeenRule = field(default_factory=SeenRule)
    device: str = "auto"


def cross_validate_mil(
    features: Sequence[Path],
    reference: Path,
    output: Path,
    plan: MilFolds,
    *,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Label and stage every slide and patient by heads trained without them, and score both.

    Args:
        features: directories of features, or single Zarr folders.
        reference: stage_labels.csv, or a table of slide labels, from which the true stages then follow.
        output: a folder; the files of FILES are written.
        plan: how.
        on_round: called with (rounds done, total rounds).

    Returns:
        The contents of mil_folds.json: ``stages`` (kappa of all patients, of each centre), ``labels``, ``auc``,
        ``folds`` (what was left out, kappa, patients), and which slides were not used.

    Raises:
        CohortError: too few patients or centres, or all slides left when one fold is out have one label.
        NoSlidesError, DuplicateSlideError, ArtefactError: features are missing, given twice or cannot be used.
        TableError: the reference cannot be read.
        StorageError: the output cannot be written.
    """
    truth = {slide_key(name): label for name, label in read_label_table(reference).items()}
    seen, quarantined = seen_features(features, plan.seen_rule)
    left_out = {name: why for name in seen if (why := _why_left_out(name, truth)) is not None}
    labels = {name: truth[slide_key(name)] for name in seen if name not in left_out}
    if not labels:
        raise CohortError(reference, "labels none of the slides with usable features", mend="compare the names in both")
    names = list(labels)
    groups = groups_of(names, plan.held_out, nodes=plan.nodes, source=reference)
    ranks = np.array([labels[name].rank for name in names])
    fold = deal_folds(groups, ranks, count=plan.folds, held_out=plan.held_out, seed=plan.options.seed)
    _check_folds(reference, ranks, fold, groups)
    shares = judge_held_out(
        features,
        labels,
        dict(zip(names, fold.tolist(), strict=True)),
        nodes=plan.nodes,
        options=plan.options,
        device=plan.device,
        seen_rule=plan.seen_rule,
        on_round=on_round,
    )
    claimed = {name: list(SlideLabel)[int(shares[name].argmax())] for name in names}
    probability = {name: float(shares[name][1:].sum()) for name in names}
    staged = {
        kind: stage_patients(of_slides, expected_nodes=plan.expected_nodes, nodes=plan.nodes)
        for kind, of_slides in (("true", labels), ("found", claimed))
    }
    stages = StageTable(
        stages={**staged["true"].stages, **_stages_in(reference, staged["true"].stages)}, path=reference
    )
    found = StageTable(stages=staged["found"].stages)
    dealt = dict(zip(names, zip(groups, fold.tolist(), strict=True), strict=True))
    rows = [
        (
            name,
            claimed[name].value,
            f"{probability[name]:.9g}",
            *(f"{value:.9g}" for value in shares[name].tolist()),
            labels[name].value,
            dealt[name][0 if plan.held_out == "centres" else 1],
            *seen[name].cells,
        )
        for name in names
    ]
    atomic_text(output / LABELS, csv_text((*_OF_LABELS, *SEEN_COLUMNS), rows))
    write_stage_table(output / STAGES, found.stages, claimed, plan.nodes)
    tumour = {name: label is not SlideLabel.NEGATIVE for name, label in labels.items()}
    # without negative slides, or without others, there is no curve
    has_both = len(set(tumour.values())) == 2
    area = score_auc(tumour, probability, with_errata=False, nodes=plan.nodes).to_json() if has_both else None
    record = {
        "held_out": plan.held_out,
        "stages": score_stages(stages, found).to_json() if stages.stages else None,
        "labels": score_labels(labels, claimed, nodes=plan.nodes).to_json(),
        "auc": area,
        "folds": _of_folds(stages, found, dealt, plan),
        "slides": len(names),
        "patients": len(stages.stages),
        "unstaged": {one.patient: one.reason for one in staged["true"].unscored},
        "left_out": left_out,
        "without_features": sorted(truth.keys() - {slide_key(name) for name in seen}),
        "seed": plan.options.seed,
        **seen_json({name: seen[name] for name in names}, quarantined),
    }
    atomic_text(output / RECORD, json_text(record))
    return record


def judge_held_out(
    features: Sequence[Path],
    labels: Mapping[str, SlideLabel],
    fold: Mapping[str, int],
    *,
    nodes: SlideNodes = BY_NAME,
    options: MilTraining,
    device: str = "auto",
    seen_rule: SeenRule | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Classify every slide with a head that was trained without its fold.

    Args:
        features: directories of features, or single Zarr folders.
        labels: by slide name.
        fold: of each slide, by the same names; a patient is never divided.
        nodes: which patient each slide is of.
        options: of the training.
        device: auto, cpu or cuda.
        seen_rule: which features are set aside because they show too little of the tissue; None for SeenRule().
        on_round: called with (rounds done, total rounds).

    Returns:
        By slide name float64 (4,), the probability of each SlideLabel; slides without features are left out.

    Raises:
        NoSlidesError: there are no features of these slides.
        ArtefactError: features were not all made alike, or cannot be read.
        PathologyError: the device is missing, or the training yields NaN.
    """
    from wsi.cnn.encoders.mil_training import train_head  # noqa: PLC0415  (loads torch)

    found, _ = open_features(features, seen_rule or SeenRule())
    names = {slide_key(name): name for name in labels}
    used = [slide for slide in found if slide_key(slide.name) in names]
    if not used:
        raise NoSlidesError(features[0], "has no features of the slides", mend="make them with sentinode features")
    bags = bags_of(used, {key: labels[name].rank for key, name in names.items()}, nodes)
    result = train_head(
        bags,
        class_names=tuple(label.value for label in SlideLabel),
        recipe=recipe_of(used),
        options=options,
        dealt={bag.patient: fold[names[slide_key(bag.slide)]] for bag in bags},
        device=device,
        on_round=on_round,
    )
    return {names[slide_key(slide)]: shares for slide, shares in result.unseen.items()}


def _of_folds(
    stages: StageTable, found: StageTable, dealt: Mapping[str, tuple[str, int]], plan: MilFolds
) -> list[dict[str, Any]]:
    """What was left out of each fold, its patients, and their kappa.

    Args:
        stages: the true ones.
        found: those found.
        dealt: of each slide its group (patient or centre) and the number of its fold.
        plan: how slides were divided.
    """
    of_patient = {plan.nodes.patient(name): number for name, (_, number) in dealt.items()}
    folds = []
    for number in sorted({number for _, number in dealt.values()}):
        patients = [one for one in stages.stages if of_patient.get(one) == number]
        score = kappa_of(
            [stages.stages[one].rank for one in patients],
            [found.stages[one].rank for one in patients],
            stages=[stage.value for stage in PatientStage],
            resamples=0,
        ).to_json()
        centres = sorted({group for group, of_group in dealt.values() if of_group == number})
        folds.append(
            {
                **({"centre": centres[0]} if plan.held_out == "centres" else {}),
                "slides": sum(of_group == number for _, of_group in dealt.values()),
                "patients": patients,
                "kappa": score["kappa"],
                "interval": score["interval"],
            }
        )
    return sorted(folds, key=lambda one: list(CENTRES).index(one["centre"])) if plan.held_out == "centres" else folds


def _why_left_out(name: str, truth: Mapping[str, SlideLabel]) -> str | None:
    key = slide_key(name)
    if key in EXCLUDED:
        return EXCLUDED[key]
    return None if key in truth else "the reference has no label for it"


def _stages_in(reference: Path, patients: Collection[str]) -> dict[str, PatientStage]:
    """The stages that the reference states itself, of those patients."""
    try:
        stated = read_stage_table(reference).stages
    except TableError:  # labels alone
        return {}
    return {patient: stage for patient, stage in stated.items() if patient in patients}


def _check_folds(reference: Path, ranks: NDArray[np.int64], fold: NDArray[np.int64], groups: Sequence[str]) -> None:
    """Refuse folds without which all slides have one label: nothing could be learnt.

    Raises:
        CohortError: there is one.
    """
    for number in range(int(fold.max()) + 1):
        if len(set(ranks[fold != number].tolist())) < 2:
            left = sorted({group for group, of_group in zip(groups, fold.tolist(), strict=True) if of_group == number})
            raise CohortError(
                reference,
                f"has one label alone where {', '.join(left[:3])} is left out",
                mend="give more slides, or other folds",
            )
