"""Scores as plain text for people: confusion matrices and the list of lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    """A number and its interval in words."""
    low, high = interval
    shown = "undefined" if value is None else f"{value:.4f}"
    return shown if low is None or high is None else f"{shown} (95 % interval {low:.4f} to {high:.4f})"


def confusion_text(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: rows reference, columns submission; a point stands for 0."""
    width = max(len(name) for name in names) + 2
    lines = ["reference \\ found".ljust(19) + "".join(name.rjust(width) for name in names)]
    lines += [
        name.rjust(17) + "  " + "".join((str(count) if count else ".").rjust(width) for count in row)
        for name, row in zip(names, confusion, strict=True)
    ]
    return "\n".join(lines)


def centre_text(kappas: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per centre: kappa, interval, patients."""
    return "\n".join(
        f"{name:>6}  {with_interval(score['kappa'], score['interval'])}, {score['patients']} patients"
        for name, score in kappas.items()
    )


def comparison_text(comparison: Mapping[str, Any], name: str) -> str:
    """Two submissions in one line."""
    p_value = comparison["p_value"]
    shown = "undefined" if p_value is None else f"{p_value:.4g}"
    return f"minus the kappa of {name}: {with_interval(comparison['difference'], comparison['interval'])}, p {shown}"


def froc_text(record: Mapping[str, Any]) -> str:
    """The FROC score at its six rates and one line per lesion."""
    rates = "".join(f"{rate:>8g}" for rate in record["rates"])
    rows = [
        "false positives per slide  " + rates,
        "sensitivity, official      " + _fractions(record["sensitivities"]),
        "sensitivity, corrected     " + _fractions(record["corrected"]["sensitivities"]),
        "",
        f"{'slide':<24}{'lesion':>6}  {'status':<7}{'probability':>12}{'major axis um':>15}{'x':>9}{'y':>9}",
    ]
    for lesion in record["lesion_table"]:
        probability = "-" if lesion["probability"] is None else f"{lesion['probability']:.4f}"
        rows.append(
            f"{lesion['slide']:<24}{lesion['lesion']:>6}  {lesion['status']:<7}{probability:>12}"
            f"{lesion['major_axis_um']:>15.0f}{lesion['x']:>9.0f}{lesion['y']:>9.0f}"
        )
    left_out = [f"left out: {slide} ({why})" for slide, why in record["excluded"].items()]
    return "\n".join(rows + ["" for _ in left_out[:1]] + left_out)


def _fractions(values: Sequence[float]) -> str:
    return "".join(f"{value:>8.4f}" for value in values)
