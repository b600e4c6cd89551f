"""How a run's result is shown: one JSON object for programs, a table for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from staging.runs.cohort import CohortResult


def summary(result: CohortResult, output: Path) -> str:
    """The result of a run as one line of JSON."""
    score = result.score or {}
    return json.dumps(
        {
            "report": str(output / "report.html"),
            "slides": len(result.analyses),
            "quarantined": {failure.slide: str(failure) for failure in result.failures},
            "stages": {patient: stage.value for patient, stage in result.staging.stages.items()},
            "remade": {one.slide: list(one.remade) for one in result.analyses if one.remade},
            "at_least": sorted(result.staging.at_least),
            "unscored": {one.patient: one.reason for one in result.staging.unscored},
            "kappa": score.get("kappa"),
            "interval": score.get("interval"),
        },
        ensure_ascii=False,
    )


def kappa_table(score: Mapping[str, Any]) -> str:
    """Kappa, its interval and the confusion matrix as plain text."""
    stages: Sequence[str] = score["stages"]
    width = max(len(stage) for stage in stages) + 2
    lines = ["reference \\ found".ljust(19) + "".join(stage.rjust(width) for stage in stages)]
    lines += [
        stage.rjust(17) + "  " + "".join((str(count) if count else ".").rjust(width) for count in row)
        for stage, row in zip(stages, score["confusion"], strict=True)
    ]
    kappa, (low, high) = score["kappa"], score["interval"]
    lines.append("")
    lines.append(
        f"quadratic kappa {_number(kappa)}, 95 % interval {_number(low)} to {_number(high)}, "
        f"{score['patients']} patients"
    )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
