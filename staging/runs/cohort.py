"""The run: slides become heatmaps, labels, stages and a score; resumable, and one bad slide never ends it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from staging.cohorts.camelyon import SlideFile, StageTable, write_stage_table
from staging.cohorts.skipped import Skipped, skipped_json, skipped_table, skipped_text
from staging.cohorts.slide_warnings import warning_table
from staging.cohorts.training_patients import trained_on, trained_on_text
from staging.csv_rows import csv_for_people, csv_text
from staging.errors import MissingPatientError, TooManyFailuresError, listed
from staging.lesions.labels import SlideLabel
from staging.lesions.seen import SeenRule
from staging.lesions.tables import label_table, lesion_table
from staging.runs.analysis import SlideAnalysis
from staging.runs.cluster import each
from staging.runs.config import RECORD, RunConfig, model_name, refuse_other_settings
from staging.runs.deaths import mark_path, tried_alone
from staging.runs.earlier import QUARANTINE, Earlier, earlier_results, earlier_slides, forget_slides
from staging.runs.records import (
    FOLDER,
    artefact_paths,
    broken_tables,
    forget_tables_record,
    heatmap_path,
    is_cheap,
    record_path,
    write_tables_record,
)
from staging.runs.report import write_report
from staging.runs.slide_fault import Failure, quarantine_table
from staging.runs.slide_task import SlideTask, analyse_alone, analyse_slide, read_finished
from staging.scores.kappa import score as kappa_of
from staging.scores.patients import score_kappa
from staging.stages.pn import BY_NAME, PatientStage, SlideNodes, Staging, stage_patients
from wsi.errors import CheckpointError, OutputExistsError, StorageError, plain
from wsi.lock import OutputLock
from wsi.store import DONE, atomic_text, check_kept, json_text, name_fault, storage, sweep
from wsi.threads import map_in_order

log = logging.getLogger(__name__)
MAX_FAILURES = 0.10
_OTHER = "choose another output"
_FEWEST_TO_ABORT = 10


class RunNews(Protocol):
    """Receives the progress of a run."""

    def tiles(self, slide: str, done: int, total: int) -> None:
        """Report the tiles done on a slide."""

    def slide(self, name: str, outcome: str = "") -> None:
        """Report a finished slide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortResult:
    """The results of a run.

    Attributes:
        analyses: finished slides, by name.
        failures: quarantined slides, by name.
        staging: stages and unscored patients.
        score: the contents of score.json; None without a reference.
        earlier: names of those slides that this call was not given, but earlier ones were.
        skipped: what was passed over in the folders of the slides.
        trained_on: finished slides of patients that the model was trained on.
        changed_tables: what was wrong with the tables of an earlier call.
    """

    analyses: tuple[SlideAnalysis, ...]
    failures: tuple[Failure, ...]
    staging: Staging
    score: dict[str, Any] | None
    earlier: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    trained_on: tuple[str, ...] = ()
    changed_tables: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether no slide failed, every patient is staged, and there is a score if there is a reference.

        Slides that are of no known patient do not count.
        """
        slides = {one.slide for one in self.analyses} | {one.slide for one in self.failures}
        unstaged = {one.patient for one in self.staging.unscored} - slides
        return not (self.failures or unstaged) and (self.score is None or bool(self.score["patients"]))

    @property
    def warnings(self) -> dict[str, list[str]]:
        """What is doubtful about finished slides, by slide; of quarantined ones it stands in the reason."""
        return {one.slide: list(one.warnings) for one in self.analyses if one.warnings}

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps: what was staged, and what could not be."""
        score = self.score or {}
        return {
            "slides": len(self.analyses),
            "earlier": len(self.earlier),
            "quarantined": {failure.slide: str(failure) for failure in self.failures},
            "stages": {patient: stage.value for patient, stage in self.staging.stages.items()},
            "remade": {one.slide: list(one.remade) for one in self.analyses if one.remade}
            | ({"tables": list(self.changed_tables)} if self.changed_tables else {}),
            "partial": [one.slide for one in self.analyses if one.is_partial],
            "at_least": sorted(self.staging.at_least),
            "unscored": {one.patient: one.reason for one in self.staging.unscored},
            "warnings": self.warnings,
            "trained_on": len(self.trained_on),
            "skipped": skipped_json(self.skipped),
            "kappa": score.get("kappa"),
            "interval": score.get("interval"),
            "kappa_warnings": score.get("warnings", []),
        }


def run_cohort(
    slides: Sequence[SlideFile],
    output: Path,
    *,
    model: Path,
    config: RunConfig,
    reference: StageTable | None = None,
    workers: int = 1,
    device: str = "auto",
    threads: int = 1,
    max_failures: float = MAX_FAILURES,
    digests: bool | None = None,
    skipped: Sequence[Skipped] = (),
    overwrite: bool = False,
    upsample: bool = False,
    nodes: SlideNodes = BY_NAME,
    known: Collection[str] = (),
    news: RunNews,
) -> CohortResult:
    """Analyse every unfinished slide, then write the tables, the score and the report.

    Slides of earlier calls that are not given now stay in the tables: halves of a cohort give what the whole gives.

    Args:
        slides: what find_slides found.
        output: the directory of the run, with the artefacts of one configuration.
        model: the checkpoint.
        config: what decides the result; its ``model`` is the digest of the checkpoint.
        reference: stages to score against.
        workers: number of processes that analyse slides.
        device: where the network runs.
        threads: number of reading threads per process.
        max_failures: give up when more than this share of the slides, and at least ten, have failed.
        digests: compare the digests, not only the sizes, of what an earlier call left; None does so when it is quick.
        skipped: what was passed over in the folders of the slides.
        overwrite: replace what was made with another configuration.
        upsample: analyse slides coarser than the model, too, instead of quarantining them.
        nodes: which patient and node each slide is of.
        known: patients that the model was trained on.
        news: receives progress.

    Raises:
        ConfigurationError: the directory was made with another configuration; lists what differs. Nothing is touched.
        MissingPatientError: the reference lacks a patient of the slides. Nothing is touched.
        OutputExistsError: a folder of the run is a link.
        OutputInUseError: another run is using the directory.
        StorageError: the output cannot be written; finished slides stay and a second call resumes from there.
        TooManyFailuresError: more slides failed than max_failures allows.
    """
    is_other = refuse_other_settings(output, config.to_json(), record=RECORD, overwrite=overwrite)
    given = {slide.name for slide in slides}
    if reference is not None:
        _check_reference(slides, [] if is_other else earlier_slides(output, given), reference, nodes)
    folders = [output / name for name in ("heatmaps", "lesions", "overlays", "slides")]
    for folder in folders:
        if folder.is_symlink():
            raise OutputExistsError(folder, "is a symbolic link; a run writes only into its own folders", mend=_OTHER)
    with OutputLock(output) as lock:
        for folder in (output, *folders):
            sweep(folder)
        if is_other:
            dropped = earlier_slides(output, given)
            if dropped:
                log.warning("made with other settings, and not given to this call: dropped are %s", listed(dropped))
            forget_slides(output)
            forget_tables_record(output)
        atomic_text(output / RECORD, json_text(config.to_json()))
        if digests is None:
            digests = is_cheap(output / name for name in ("heatmaps", "overlays", "lesions"))
        tasks = slide_tasks(
            slides,
            output,
            model=model,
            config=config,
            device=device,
            threads=threads,
            digests=digests,
            upsample=upsample,
        )
        analyses, failures = _analyse(tasks, workers=workers, max_failures=max_failures, news=news)
        lock.check()
        for one in analyses:
            heatmap, record = heatmap_path(output, one.slide), record_path(output, one.slide)
            check_kept((*artefact_paths(output, one.slide), heatmap / DONE, record))
        changed = () if is_other else broken_tables(output)
        for reason in changed:
            log.warning("%s since the last call: made again", reason)
        forget_tables_record(output)
        atomic_text(output / "skipped.csv", skipped_table(skipped))
        earlier = earlier_results(output, given, digests=digests)
        return _conclude(
            output,
            analyses,
            failures,
            earlier=earlier,
            model=model,
            config=config,
            reference=reference,
            skipped=tuple(skipped),
            nodes=nodes,
            known=known,
            changed=changed,
        )


def slide_tasks(
    slides: Sequence[SlideFile],
    output: Path,
    *,
    model: Path,
    config: RunConfig,
    device: str,
    threads: int,
    digests: bool,
    upsample: bool,
) -> list[SlideTask]:
    """Return the work of a run, slide by slide; arguments as for run_cohort."""
    return [
        SlideTask(
            path=slide.path,
            name=slide.name,
            output=output,
            model=model,
            config=config,
            device=device,
            threads=threads,
            digests=digests,
            upsample=upsample,
        )
        for slide in slides
    ]


def _analyse(
    tasks: Sequence[SlideTask], *, workers: int, max_failures: float, news: RunNews
) -> tuple[list[SlideAnalysis], list[Failure]]:
    analyses: list[SlideAnalysis] = []
    failures: list[Failure] = []
    named = [task for task in tasks if name_fault(task.name) is None]
    for task in tasks:
        fault = name_fault(task.name)
        if fault is not None:
            failures.append(Failure(slide=plain(task.name), path=plain(str(task.path)), step="name", reason=fault))
            news.slide(plain(task.name), f"quarantined at name: {fault}")
    suspects = [task for task in named if mark_path(task.output / FOLDER, task.name).exists()]
    # finished slides are told apart here: starting processes takes longer than comparing a thousand of them
    others, pending = [task for task in named if task not in suspects], list[SlideTask]()
    for task, finished in zip(others, map_in_order(read_finished, others, name="finished"), strict=True):
        if finished is None:
            pending.append(task)
        else:
            analyses.append(finished)
            news.slide(task.name, finished.label.value)
    for task, outcome in chain(
        each(analyse_slide, pending, workers=workers, on_tiles=news.tiles), tried_alone(analyse_alone, suspects)
    ):
        if isinstance(outcome, StorageError | CheckpointError | ConnectionError | OutputExistsError):
            raise outcome
        if isinstance(outcome, SlideAnalysis):
            analyses.append(outcome)
            again = f" (made again: {'; '.join(outcome.remade)})" if outcome.remade else ""
            news.slide(task.name, f"{outcome.label.value}{again}")
            continue
        failure = Failure.of(task.name, task.path, outcome)
        failures.append(failure)
        with storage(task.output):  # what was found on the slide before no longer holds
            record_path(task.output, task.name).unlink(missing_ok=True)
        news.slide(task.name, f"quarantined at {failure}")
        if len(failures) >= _FEWEST_TO_ABORT and len(failures) > max_failures * len(tasks):
            raise TooManyFailuresError(
                failure.path,
                f"is the last of {len(failures)} failed slides of {len(tasks)}: {failure.reason}",
                mend="look for a common cause, or raise --max-failures",
            )
    return analyses, failures


def _conclude(
    output: Path,
    analyses: Sequence[SlideAnalysis],
    failures: Sequence[Failure],
    *,
    earlier: Earlier,
    model: Path,
    config: RunConfig,
    reference: StageTable | None,
    skipped: tuple[Skipped, ...],
    nodes: SlideNodes,
    known: Collection[str],
    changed: Sequence[str],
) -> CohortResult:
    analyses = sorted((*analyses, *earlier.analyses), key=lambda one: one.slide)
    failures = sorted((*failures, *earlier.failures), key=lambda one: one.slide)
    labels = {analysis.slide: analysis.label for analysis in analyses}
    reasons = {failure.slide: str(failure) for failure in failures}
    partial = [analysis.slide for analysis in analyses if analysis.is_partial]
    staging = stage_patients(labels, failed=reasons, partial=partial, expected_nodes=config.nodes, nodes=nodes)
    learnt = trained_on((analysis.slide for analysis in analyses), known, nodes)
    lesions = {analysis.slide: analysis.lesions for analysis in analyses}
    atomic_text(output / "lesions.csv", lesion_table(lesions, config.rule))
    rule = SeenRule(tolerance=config.coverage_tolerance, allow_partial=config.allow_partial)
    seen = {analysis.slide: rule.judge(analysis.coverage) for analysis in analyses}
    highest = {analysis.slide: analysis.probability for analysis in analyses}
    atomic_text(output / "labels.csv", label_table(lesions, config.rule, seen=seen, probabilities=highest))
    atomic_text(output / QUARANTINE, quarantine_table(failures))
    bad = ((one.slide, tile.level, tile.row, tile.column, tile.reason) for one in analyses for tile in one.bad_tiles)
    atomic_text(output / "bad_tiles.csv", csv_for_people(("slide", "level", "tile_row", "tile_column", "reason"), bad))
    atomic_text(output / "warnings.csv", warning_table({one.slide: one.warnings for one in analyses}))
    partly = ((patient, f"at least {staging.stages[patient].value}") for patient in sorted(staging.at_least))
    atomic_text(output / "at_least.csv", csv_text(("patient", "stage"), partly))
    unscored = ((one.patient, one.reason) for one in staging.unscored)
    atomic_text(output / "unscored.csv", csv_for_people(("patient", "reason"), unscored))
    staged = {slide: label for slide, label in labels.items() if nodes.patient(slide) in staging.stages}
    write_stage_table(output / "stages.csv", staging.stages, staged, nodes)
    score = _score(staging, reference) if reference is not None else None
    if score is not None:
        atomic_text(output / "score.json", json_text(score))
    elif (output / "score.json").exists():
        log.warning("score.json of an earlier call is removed: this call has no reference")
        (output / "score.json").unlink()
    write_report(
        output / "report.html",
        analyses=analyses,
        failures=failures,
        staging=staging,
        config=config,
        model=model_name(model),
        reference=reference,
        score=score,
        skipped=skipped_text(skipped),
        nodes=nodes,
        known=trained_on_text("model", len(learnt), len(analyses)) if learnt else "",
    )
    write_tables_record(output)
    return CohortResult(
        analyses=tuple(analyses),
        failures=tuple(failures),
        staging=staging,
        score=score,
        earlier=earlier.slides,
        skipped=skipped,
        trained_on=tuple(learnt),
        changed_tables=tuple(changed),
    )


def _score(staging: Staging, reference: StageTable) -> dict[str, Any]:
    """Score kappa over the staged patients, undefined if there are none; the cohort's others are listed beside it."""
    asked = StageTable(
        stages={patient: reference.stages[patient] for patient in staging.stages},
        labels={},
    )
    result = (
        score_kappa(asked, StageTable(stages=staging.stages, labels={}))
        if staging.stages
        else kappa_of([], [], stages=[stage.value for stage in PatientStage])
    ).to_json()
    unscored = [one.patient for one in staging.unscored if one.patient in reference.stages]
    return {**result, "unscored": unscored, "complete": bool(staging.stages) and not unscored}


def cannot_be_staged(
    slides: Sequence[SlideFile], output: Path, count: int, nodes: SlideNodes = BY_NAME
) -> dict[str, str]:
    """Tell before any work which patients have too few or too many slides to be staged, and how.

    Args:
        slides: those of this call.
        output: the directory of the run; slides of earlier calls count.
        count: slides per patient, where their names say the node.
        nodes: which patient and node each slide is of.
    """
    given = [slide.name for slide in slides if name_fault(slide.name) is None]
    names = dict.fromkeys([*given, *earlier_slides(output, given)], SlideLabel.NEGATIVE)
    return {one.patient: one.reason for one in stage_patients(names, expected_nodes=count, nodes=nodes).unscored}


def _check_reference(
    slides: Sequence[SlideFile], earlier: Sequence[str], reference: StageTable, nodes: SlideNodes
) -> None:
    every = {nodes.patient(name) for name in (*(slide.name for slide in slides), *earlier)}
    patients = {patient for patient in every if patient is not None}
    missing = sorted(patients - set(reference.stages))
    if missing:
        raise MissingPatientError(
            reference.path,
            f"has no stage for {', '.join(missing)}, whose slides are in this run",
            mend="complete the reference, or leave it out",
        )
