"""Scores as plain text: one line each, confusion matrices and the list of lesions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    """Format a number and its interval."""
    low, high = interval
    shown = "undefined" if value is None else f"{value:.4f}"
    return shown if low is None or high is None else f"{shown} (95 % interval {low:.4f} to {high:.4f})"


def confusion_text(names: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Format a confusion matrix: rows reference, columns submission; a dot stands for 0."""
    width = max(len(name) for name in names) + 2
    lines = ["reference \\ found".ljust(19) + "".join(name.rjust(width) for name in names)]
    lines += [
        name.rjust(17) + "  " + "".join((str(count) if count else ".").rjust(width) for count in row)
        for name, row in zip(names, confusion, strict=True)
    ]
    return "\n".join(lines)


def stage_line(record: Mapping[str, Any]) -> str:
    """Format the kappa of stages, its interval and the number of patients."""
    return f"quadratic kappa {with_interval(record['kappa'], record['interval'])}, {record['patients']} patients"


def label_line(record: Mapping[str, Any]) -> str:
    """Format the accuracy of labels, its interval and the number of slides."""
    return f"accuracy {with_interval(record['accuracy'], record['accuracy_interval'])}, {record['slides']} slides"


def roc_line(record: Mapping[str, Any]) -> str:
    """Format the area under a ROC curve, its interval and the numbers of slides."""
    return (
        f"area {with_interval(record['auc'], record['interval'])}, {record['positives']} positive and "
        f"{record['negatives']} negative slides"
    )


def froc_line(record: Mapping[str, Any]) -> str:
    """Format the FROC score, its interval, the corrected score and the numbers of lesions and slides."""
    return (
        f"score {with_interval(record['froc_score'], record['interval'])}, corrected "
        f"{record['corrected']['froc_score']:.4f}; {record['lesions']} lesions, {record['slides']} slides"
    )


def stage_text(record: Mapping[str, Any]) -> str:
    """Format the confusion matrix of stages and their kappa; if scored, also each centre's.

    Args:
        record: the result of a score's to_json.
    """
    lines = [confusion_text(record["stages"], record["confusion"]), "", stage_line(record)]
    if "centres" in record:
        lines.append(centre_text(record["centres"]))
    return "\n".join(lines)


def label_text(record: Mapping[str, Any]) -> str:
    """Format the confusion matrix of labels and their accuracy."""
    return f"{confusion_text(record['labels'], record['confusion'])}\n\n{label_line(record)}"


def centre_text(kappas: Mapping[str, Mapping[str, Any]]) -> str:
    """Format one line per centre: kappa, interval, patients."""
    return "\n".join(
        f"{name:>6}  {with_interval(score['kappa'], score['interval'])}, {score['patients']} patients"
        for name, score in kappas.items()
    )


def difference_lines(against: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format a line for each comparison with another submission."""
    lines = []
    for one in against:
        shown = "undefined" if one["p_value"] is None else f"{one['p_value']:.4g}"
        if one["comparisons"] > 1 and one["p_adjusted"] is not None:
            shown += f", adjusted for {one['comparisons']} comparisons {one['p_adjusted']:.4g} (Holm)"
        difference = with_interval(one["difference"], one["interval"])
        lines.append(
            f"minus {one['submission']}: difference of {one['score'].replace('_', ' ')} {difference}, p {shown}"
        )
    return lines


def froc_text(record: Mapping[str, Any]) -> str:
    """Format the FROC score at its six rates and one line per lesion."""
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


def method_lines(record: Mapping[str, Any]) -> list[str]:
    """Format a line for each method of a comparison, then one for each difference whose adjusted p is below 0.05."""
    lines = []
    for name, scores in record["methods"].items():
        parts = [] if scores["stages"] is None else [stage_line(scores["stages"])]
        parts += [label_line(scores["labels"])]
        parts += [] if scores["auc"] is None else [roc_line(scores["auc"])]
        lines.append(f"{name}: {'; '.join(parts)}")
    sure = [one for one in record["differences"] if one["p_adjusted"] is not None and one["p_adjusted"] < 0.05]
    lines += [
        f"{one['score']}: {one['of']} minus {one['minus']} {with_interval(one['difference'], one['interval'])}, "
        f"p {one['p_adjusted']:.3g}"
        for one in sure
    ]
    count = len(record["differences"])
    return [*lines, f"{len(sure)} of {count} differences have p below 0.05, adjusted for their number (Holm)"]
