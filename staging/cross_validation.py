"""How well the whole pipeline does on unseen slides: train, run and score, fold by fold.

A fold is a medical centre (leave one centre out) or a share of the patients. Slides of a patient are never on both
sides. Everything is kept, and a second call resumes where the first ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from staging.bars import CohortProgress
from staging.cohorts.camelyon import SlideFile, StageTable, write_stage_table
from staging.cohorts.names import CENTRES, centre_of_patient
from staging.errors import CohortError, MissingPatientError, listed
from staging.lesions.labels import SlideLabel
from staging.runs.cohort import CohortResult, run_cohort
from staging.runs.config import refuse_other_settings
from staging.scores.patients import score_kappa
from staging.stages.pn import PatientStage
from staging.training.labelled_cohort import LabelledCohort
from staging.training.plan import TrainingPlan
from staging.training.recipe import CohortRecipe
from staging.training.rounds import TrainingNews, run_training
from wsi.store import atomic_text, json_text

MODEL = "model.safetensors"
RECORD = "cross_validation.json"
"""File in the output with what it was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """One part of the cohort: its name and the slides held out with it."""

    name: str
    held_out: tuple[SlideFile, ...]


def folds_by_centre(slides: Sequence[SlideFile]) -> tuple[Fold, ...]:
    """Make one fold per medical centre of CAMELYON17, in the centres' order.

    Raises:
        CohortError: a slide's name does not give its patient, or all are of one centre.
    """
    by_centre: dict[int, list[SlideFile]] = {}
    for slide in slides:
        centre = centre_of_patient(_patient(slide))
        if centre is None:
            raise CohortError(
                slide.path, "has a name that does not give its centre", mend="use --folds, which splits by patient"
            )
        by_centre.setdefault(centre, []).append(slide)
    folds = tuple(Fold(name=CENTRES[centre], held_out=tuple(found)) for centre, found in sorted(by_centre.items()))
    if len(folds) < 2:
        raise CohortError(slides[0].path, "is of the only centre", mend="use --folds, which splits by patient")
    return folds


def folds_by_patient(slides: Sequence[SlideFile], folds: int) -> tuple[Fold, ...]:
    """Make folds of equal shares of the patients; neighbours by name, often of one centre, go to different folds.

    Raises:
        CohortError: a slide's name does not give its patient, or there are fewer patients than folds.
        ValueError: fewer than two folds.
    """
    if folds < 2:
        raise ValueError(f"a cross-validation needs at least 2 folds, got {folds}")
    patients = sorted({_patient(slide) for slide in slides})
    if len(patients) < folds:
        raise CohortError(None, f"{len(patients)} patients are too few for {folds} folds", mend="use fewer folds")
    part = {patient: index % folds for index, patient in enumerate(patients)}
    return tuple(
        Fold(name=f"fold_{number}", held_out=tuple(slide for slide in slides if part[_patient(slide)] == number))
        for number in range(folds)
    )


def cross_validate(
    cohort: LabelledCohort,
    folds: Sequence[Fold],
    output: Path,
    *,
    recipe: CohortRecipe,
    workers: int,
    nodes: int = 5,
    news: TrainingNews,
) -> dict[str, Any]:
    """For every fold, train on all others, run the held-out slides and score their patients.

    Args:
        cohort: all slides with their annotations and labels; its stages are the reference.
        folds: the slides held out together.
        output: gets a folder per fold, ``stages.csv`` of all patients, ``score.json``.
        recipe: how the networks are made.
        workers: number of processes.
        nodes: number of slides a patient needs to be staged.
        news: receives progress.

    Returns:
        The contents of score.json: ``kappa`` over all staged patients, ``folds`` (kappa, patients and slide
        accuracy of each), ``unscored``, ``quarantined``.

    Raises:
        CohortError: a patient is in two folds, or nothing is left to train on.
        ConfigurationError: the output is of another cross-validation, or holds something else. Nothing is touched.
        MissingPatientError: the reference lacks a patient.
        PathologyError: a step failed.
    """
    _check_apart(folds)
    _check_reference(cohort, folds)
    # all plans first: what is wrong with a later fold is told before the first one trains
    plans = [_plan(cohort, fold, output / fold.name, recipe, workers) for fold in folds]
    settings = _settings(folds, recipe, nodes)
    refuse_other_settings(output, settings, record=RECORD)
    atomic_text(output / RECORD, json_text(settings))
    stages: dict[str, PatientStage] = {}
    labels: dict[str, SlideLabel] = {}
    parts: dict[str, dict[str, Any]] = {}
    unscored: dict[str, str] = {}
    quarantined: dict[str, str] = {}
    for number, (fold, plan) in enumerate(zip(folds, plans, strict=True), start=1):
        news.say(f"{number}/{len(folds)} {fold.name}: {len(fold.held_out)} slides held out")
        run_training(plan, news=news)
        result = _run(cohort, fold, output / fold.name, recipe=recipe, workers=workers, nodes=nodes)
        stages |= result.staging.stages
        found = {analysis.slide: analysis.label for analysis in result.analyses}
        labels |= found
        unscored |= {one.patient: one.reason for one in result.staging.unscored}
        quarantined |= {failure.slide: f"{failure.step}: {failure.reason}" for failure in result.failures}
        parts[fold.name] = _part(cohort.reference, result.staging.stages, found)
    write_stage_table(output / "stages.csv", stages, labels, cohort.nodes)
    whole = _part(cohort.reference, stages, labels)
    record = whole | {"folds": parts, "unscored": unscored, "quarantined": quarantined}
    atomic_text(output / "score.json", json_text(record))
    return record


def _settings(folds: Sequence[Fold], recipe: CohortRecipe, nodes: int) -> dict[str, Any]:
    """Return what decides the result, which neither the device nor the permission to upsample does."""
    how = {name: value for name, value in asdict(recipe).items() if name not in ("device", "upsample")}
    return {"recipe": how, "nodes": nodes, "folds": {one.name: [slide.name for slide in one.held_out] for one in folds}}


def _plan(cohort: LabelledCohort, fold: Fold, output: Path, recipe: CohortRecipe, workers: int) -> TrainingPlan:
    """Plan the training on all patients but those held out."""
    held_out = {_patient(slide) for slide in fold.held_out}
    training = [slide for slide in cohort.slides if _patient(slide) not in held_out]
    if not training:
        raise CohortError(fold.held_out[0].path, f"is in {fold.name}, which leaves nothing to train on")
    return recipe.plan(replace(cohort, slides=training), output / MODEL, workers=workers)


def _run(
    cohort: LabelledCohort, fold: Fold, output: Path, *, recipe: CohortRecipe, workers: int, nodes: int
) -> CohortResult:
    """Run the slides held out."""
    model = output / MODEL
    with CohortProgress(len(fold.held_out)) as progress:
        return run_cohort(
            fold.held_out,
            output / "results",
            model=model,
            config=recipe.run_configuration(model, nodes=nodes),
            reference=cohort.reference,
            workers=workers,
            device=recipe.device,
            upsample=recipe.upsample,
            nodes=cohort.nodes,
            news=progress,
        )


def _part(reference: StageTable, stages: dict[str, PatientStage], labels: dict[str, SlideLabel]) -> dict[str, Any]:
    """Score kappa over the staged patients, and how many slides have the reference's label."""
    asked = StageTable(stages={patient: reference.stages[patient] for patient in stages}, path=reference.path)
    score = score_kappa(asked, StageTable(stages=stages)).to_json() if stages else {"kappa": None, "patients": 0}
    known = [slide for slide in labels if slide in reference.labels]
    right = sum(labels[slide] is reference.labels[slide] for slide in known)
    return score | {"slides": len(known), "slides_right": right}


def _check_apart(folds: Sequence[Fold]) -> None:
    seen: dict[str, str] = {}
    for fold in folds:
        for patient in {_patient(slide) for slide in fold.held_out}:
            if seen.setdefault(patient, fold.name) != fold.name:
                raise CohortError(None, f"{patient} is in {seen[patient]} and in {fold.name}")


def _check_reference(cohort: LabelledCohort, folds: Sequence[Fold]) -> None:
    patients = sorted({_patient(slide) for fold in folds for slide in fold.held_out})
    missing = [patient for patient in patients if patient not in cohort.reference.stages]
    if missing:
        raise MissingPatientError(
            cohort.reference.path, f"has no stage for {listed(missing)}", mend="complete the reference"
        )


def _patient(slide: SlideFile) -> str:
    if slide.patient is None:
        raise CohortError(
            slide.path,
            "has a name that does not give its patient",
            mend="name slides like patient_000_node_0.tif, or give --patients",
        )
    return slide.patient
