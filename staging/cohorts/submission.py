"""Submissions to the CAMELYON challenges: made from a run, and checked before they are sent.

CAMELYON17 takes one table of stages. CAMELYON16 takes a folder with one CSV of detections per slide (lesion task) and
one table with a probability per slide (slide task).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from staging.bars import watched
from staging.cohorts.camelyon import read_stage_table, write_stage_table
from staging.cohorts.names import slide_key
from staging.cohorts.official_format import FormatFault, fault_of_detections, faults_of_stages
from staging.cohorts.references import read_predictions
from staging.csv_rows import read_rows
from staging.errors import CohortError, ConflictError, MissingPatientError, TableError, listed
from staging.lesions.detections import RADIUS_UM, Detections, detections_of, read_detections, write_detections
from staging.stages.pn import BY_NAME, stage_patient
from wsi.errors import ArtefactError, OutputExistsError
from wsi.heatmap_store import read_heatmap
from wsi.store import DONE, atomic_text, read_named

_HEADERS = frozenset({"slide", "patient", "name", "image", "file", "case"})


class Task(Enum):
    """What is submitted; the value is its name on the command line."""

    STAGES = "stages"
    LESIONS = "lesions"
    SLIDES = "slides"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A submission that was written or checked.

    Attributes:
        task: which of the three.
        path: the table, or the folder of the lesion task.
        entries: patients of a stage table, slides otherwise.
        detections: total detections of the lesion task.
        missing: expected entries that are not in it.
        beyond: entries that were not expected; the organisers ignore them.
        doubts: what is allowed but suspicious.
    """

    task: Task
    path: Path
    entries: int
    detections: int | None = None
    missing: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        found: dict[str, Any] = {"task": self.task.value, "submission": str(self.path), "entries": self.entries}
        if self.detections is not None:
            found["detections"] = self.detections
        return found | {"missing": list(self.missing), "beyond": list(self.beyond), "doubts": list(self.doubts)}


def write_submission(
    task: Task,
    run: Path,
    output: Path,
    *,
    threshold: float = 0.5,
    radius_um: float = RADIUS_UM,
    allow_incomplete: bool = False,
) -> Submission:
    """Write a submission from the output of ``sentinode run``.

    Args:
        task: what to submit.
        run: the directory of the run.
        output: the table to write, or the folder of the lesion task.
        threshold: detections must exceed this probability.
        radius_um: minimum distance between two detections on a slide.
        allow_incomplete: write it even if slides are quarantined or patients could not be staged.

    Raises:
        CohortError: the directory has no finished run, or the run is incomplete.
        ArtefactError: a heatmap is damaged.
        OutputExistsError: the folder of the lesion task holds detections of other slides, which would be scored, too.
        StorageError: the output cannot be written.
    """
    analyses = _analyses(run)
    probabilities = {slide: found["probability"] for slide, found in analyses.items()}
    partial = [slide for slide, found in analyses.items() if found.get("is_partial")]
    doubts = (f"seen only in part, which no submission can say: {listed(partial)}",) if partial else ()
    left_out = _left_out(run, task)
    if left_out and not allow_incomplete:
        raise CohortError(
            run,
            f"is incomplete: {listed(left_out)}",
            mend="fix what failed and run again, or give --allow-incomplete: the organisers' score may then refuse it",
        )
    if task is Task.STAGES:
        table = read_stage_table(run / "stages.csv")
        write_stage_table(output, table.stages, table.labels)
        return Submission(task=task, path=output, entries=len(table.stages), missing=left_out, doubts=doubts)
    if task is Task.SLIDES:
        atomic_text(output, "".join(f"{slide},{p:.6f}\n" for slide, p in sorted(probabilities.items())))
        return Submission(task=task, path=output, entries=len(probabilities), missing=left_out, doubts=doubts)
    strangers = sorted({path.stem for path in output.glob("*.csv")}.difference(probabilities))
    if strangers:
        raise OutputExistsError(
            output,
            f"holds detections of slides that are not in this run: {listed(strangers)}",
            mend="choose a new folder",
        )
    missing = [slide for slide in sorted(probabilities) if not (run / "heatmaps" / f"{slide}.zarr" / DONE).is_file()]
    if missing:
        raise CohortError(run, f"has no heatmap of {listed(missing)}", mend="call sentinode run again")
    count = 0
    for slide in watched(sorted(probabilities), count=len(probabilities), verb="slides written", name=str):
        found = detections_of(
            read_heatmap(run / "heatmaps" / f"{slide}.zarr"), threshold=threshold, radius_um=radius_um
        )
        write_detections(output / f"{slide}.csv", found)
        count += found.probability.size
    return Submission(
        task=task, path=output, entries=len(probabilities), detections=count, missing=left_out, doubts=doubts
    )


def check_submission(task: Task, path: Path, *, expected: Collection[str] | None = None) -> Submission:
    """Read a submission as the organisers do and report what is missing or suspicious.

    Args:
        task: what it is.
        path: the table, or the folder of the lesion task.
        expected: names of the patients (stages) or slides that must be in it; None checks only the format.

    Raises:
        ConflictError: two files are of one slide.
        TableError: a file is not in the organisers' format, or their scripts would stop at it or read something else;
            names file and line.
    """
    if task is Task.LESIONS:
        return _check_lesions(path, expected)
    if task is Task.SLIDES:
        found = read_predictions(path)
        doubts = ["all slides have the same probability"] if len(set(found.values())) == 1 < len(found) else []
        doubts += ["probabilities lie outside 0 to 1"] if not all(0 <= p <= 1 for p in found.values()) else []
        return _compared(task, path, found, expected, doubts=doubts)
    table = read_stage_table(path, submission=True)
    if table.unzipped:
        raise TableError(
            path,
            f"names patients without .zip: {listed(table.unzipped)}",
            mend=f"write {table.unzipped[0]}.zip: only rows that end in .zip are compared",
        )
    spelling = {name.lower(): name for name in table.stages}  # of patients that are not CAMELYON's
    for fault in faults_of_stages(path, {f"{spelling.get(_bare(name), _bare(name))}.zip" for name in expected or ()}):
        raise _as_error(path, fault)
    doubts = list(table.warnings)
    for patient, stage in table.stages.items():
        labels = [label for slide, label in table.labels.items() if slide.startswith(f"{patient}_")]
        if len(labels) == 5 and stage_patient(labels) is not stage:
            doubts.append(f"{patient} is {stage.value} but its slides give {stage_patient(labels).value}")
    return _compared(task, path, table.stages, expected, doubts=doubts)


def read_names(path: Path, task: Task = Task.STAGES) -> tuple[str, ...]:
    """Read the names that a submission must have: the first column of a CSV, or the files of a folder.

    Suffixes (.zip, .tif …) are dropped. Of a stage table the rows of patients count for stages, those of slides for
    other tasks; where stages are asked for and only slides are named, their patients.

    Raises:
        TableError: unreadable, or nothing is named.
    """
    if path.is_dir():
        names = [file.name for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    else:
        rows = read_rows(path)
        names = [cells[0] for _, cells in rows]
        if names and names[0].lower() in _HEADERS:
            names = names[1:]
    zipped = [name for name in names if name.lower().endswith(".zip")]
    if task is Task.STAGES:
        names = zipped or [BY_NAME.patient(name) or name for name in names]
    elif len(zipped) < len(names):
        names = [name for name in names if name not in zipped]
    if not names:
        raise TableError(path, "names neither patients nor slides", mend="give one name per line, a table or a folder")
    return tuple(dict.fromkeys(_bare(name) for name in names))


def _check_lesions(folder: Path, expected: Collection[str] | None) -> Submission:
    if not folder.is_dir():
        raise TableError(folder, "is not a folder", mend="the lesion task takes one CSV of detections per slide")
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() == ".csv"]
    if not files:
        raise TableError(
            folder, "contains no CSV", mend="write test_001.csv and so on, empty for slides without detections"
        )
    found: dict[str, Detections] = {}
    for file in files:
        slide = slide_key(file.stem)
        if slide in found:
            raise ConflictError(file, f"is a second table of {slide}", mend=f"keep either this or {found[slide].path}")
        found[slide] = read_detections(file)
    for file in files:
        fault = fault_of_detections(file)
        if fault is not None:
            raise _as_error(file, fault)
    doubts = []
    if not any(one.probability.size for one in found.values()):
        doubts.append("there are no detections on any slide")
    crowded = [slide for slide, one in found.items() if one.probability.size > 1000]
    if crowded:
        doubts.append(f"more than 1,000 detections on {listed(crowded)}: each off a lesion is a false positive")
    corner = [slide for slide, one in found.items() if one.x.size and max(one.x.max(), one.y.max()) < 4000]
    if len(corner) == sum(bool(one.x.size) for one in found.values()) > 1:
        doubts.append("all positions are below 4,000, but must be level-0 px")
    total = int(np.sum([one.probability.size for one in found.values()]))
    return _compared(Task.LESIONS, folder, found, expected, doubts=doubts, detections=total)


def _as_error(path: Path, fault: FormatFault) -> TableError:
    return TableError(path, fault.reason, where=f"line {fault.line}", mend=fault.mend)


def _compared(
    task: Task,
    path: Path,
    found: Iterable[str],
    expected: Collection[str] | None,
    *,
    doubts: Iterable[str],
    detections: int | None = None,
) -> Submission:
    names = {_bare(name) for name in found}
    wanted = names if expected is None else {_bare(name) for name in expected}
    return Submission(
        task=task,
        path=path,
        entries=len(names),
        detections=detections,
        missing=tuple(sorted(wanted - names)),
        beyond=tuple(sorted(names - wanted)),
        doubts=tuple(doubts),
    )


def require_complete(submission: Submission) -> None:
    """Refuse a submission that lacks what was expected.

    Raises:
        MissingPatientError: entries are missing, which it names.
    """
    if submission.missing:
        raise MissingPatientError(
            submission.path,
            f"lacks {listed(submission.missing)}",
            mend="add a row for each patient" if submission.task is Task.STAGES else "add every slide",
        )


def _analyses(run: Path) -> dict[str, dict[str, Any]]:
    """Read what was found on every finished slide of a run, by its name."""
    records = sorted((run / "slides").glob("[!.]*.json")) if (run / "slides").is_dir() else []
    if not records:
        raise CohortError(run, "has no finished slides", mend="name the output of sentinode run")
    found = {}
    for record in records:
        try:
            analysis = read_named(record, "analysis")
            found[str(analysis["slide"])] = {**analysis, "probability": float(analysis["probability"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = error.reason if isinstance(error, ArtefactError) else "is not a slide record"
            raise CohortError(record, reason, mend="run the slide again") from error
    return found


def _left_out(run: Path, task: Task) -> tuple[str, ...]:
    table = run / ("unscored.csv" if task is Task.STAGES else "quarantine.csv")
    if not table.is_file():
        raise CohortError(run, f"has no {table.name}: the run is not finished", mend="call sentinode run again")
    return tuple(cells[0] for _, cells in read_rows(table)[1:])


def _bare(name: str) -> str:
    key = slide_key(name)
    return key.removesuffix(".zip")
