"""The report of a run: score, patients, quarantined slides and every slide with its heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from staging.cohorts.camelyon import StageTable
from staging.cohorts.names import CENTRES, centre_of_patient
from staging.runs.analysis import SlideAnalysis
from staging.runs.config import RunConfig
from staging.runs.pages import write_page
from staging.runs.slide_fault import Failure
from staging.stages.pn import BY_NAME, SlideNodes, Staging


def write_report(
    path: Path,
    *,
    analyses: Sequence[SlideAnalysis],
    failures: Sequence[Failure],
    staging: Staging,
    config: RunConfig,
    model: str,
    reference: StageTable | None = None,
    score: Mapping[str, Any] | None = None,
    skipped: str = "",
    nodes: SlideNodes = BY_NAME,
    known: str = "",
) -> None:
    """Write the report as one HTML page that links the overlays beside it; equal results give equal bytes.

    Args:
        path: the page; ``overlays/`` is beside it.
        analyses: the finished slides, in the order shown.
        failures: the quarantined slides.
        staging: stages and unscored patients.
        config: the configuration of the run.
        model: the name of the checkpoint.
        reference: the table the stages were scored against.
        score: the contents of score.json.
        skipped: what was passed over in the folders of the slides, in one line.
        nodes: which patient and node each slide is of.
        known: that the model was trained on some of these slides, in a line.

    Raises:
        StorageError: the page cannot be written.
    """
    names = [analysis.slide for analysis in analyses] + [failure.slide for failure in failures]
    write_page(
        path,
        "report.html.j2",
        slides=[_slide(analysis) for analysis in analyses],
        failures=failures,
        bad_tiles=[(analysis.slide, tile) for analysis in analyses for tile in analysis.bad_tiles],
        warnings=[(analysis.slide, warning) for analysis in analyses for warning in analysis.warnings],
        skipped=skipped,
        known=known,
        peak=config.peak,
        strangers=sorted(name for name in names if nodes.patient(name) is None),
        patients=_patients(analyses, failures, staging, reference, nodes),
        score=score,
        largest=max((count for row in score["confusion"] for count in row), default=1) or 1 if score else 1,
        configuration=list(_flat(config.to_json())),
        model=model,
    )


def _slide(analysis: SlideAnalysis) -> dict[str, Any]:
    return {
        "slide": analysis.slide,
        "label": analysis.label.value,
        "lesions": len(analysis.lesions),
        "largest_um": analysis.largest_um,
        "tissue_mm2": analysis.coverage.tissue_mm2,
        "doubts": len(analysis.warnings),
        "partial": str(analysis.coverage) if analysis.is_partial else None,
    }


def _patients(
    analyses: Sequence[SlideAnalysis],
    failures: Sequence[Failure],
    staging: Staging,
    reference: StageTable | None,
    of_slides: SlideNodes,
) -> list[dict[str, Any]]:
    nodes: dict[str, list[dict[str, Any]]] = {}
    labels = {analysis.slide: analysis.label.value for analysis in analyses}
    labels |= {failure.slide: "failed" for failure in failures}
    for slide, label in sorted(labels.items()):
        patient = of_slides.patient(slide)
        if patient is None:
            continue
        expected = reference.labels.get(slide) if reference else None
        nodes.setdefault(patient, []).append(
            {"slide": slide, "label": label, "reference": expected.value if expected else None}
        )
    reasons = {one.patient: one.reason for one in staging.unscored}
    rows = []
    for patient, found in sorted(nodes.items()):
        stage = staging.stages.get(patient)
        expected_stage = reference.stages.get(patient) if reference else None
        rows.append(
            {
                "name": patient,
                "centre": None if (centre := centre_of_patient(patient)) is None else CENTRES[centre],
                "stage": stage.value if stage else None,
                "at_least": patient in staging.at_least,
                "reason": reasons.get(patient, ""),
                "reference": expected_stage.value if expected_stage else None,
                "nodes": found,
            }
        )
    return rows


def _flat(value: Mapping[str, Any], within: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, item in value.items():
        if isinstance(item, Mapping):
            rows += _flat(item, f"{within}{name}.")
        else:
            rows.append((within + name, str(item)))
    return rows
