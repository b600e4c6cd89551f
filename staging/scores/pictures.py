"""Pictures of scores: confusion matrices, ROC and FROC curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from staging.scores.lesion_task import FrocScore
from staging.scores.patients import StageScore
from staging.scores.slides import LabelScore, SlideRocScore
from staging.scores.texts import froc_line, label_line, roc_line, stage_line
from wsi import charts
from wsi.charts import Axis, Canvas, Curve

_DARKEST = (33, 102, 140)
_CELL_PX = 92
_SHARES = charts.even_ticks(0, 1)
_LOWEST_RATE = 0.125
"""Start of the false-positive axis: half of the lowest rate that is scored."""
_BENDS = 200


def stage_picture(score: StageScore) -> NDArray[np.uint8]:
    """Draw the confusion matrix of stages: uint8 (rows, columns, 3)."""
    record = score.to_json()
    return confusion_picture(record["confusion"], record["stages"], title="pN-stage", notes=[stage_line(record)])


def label_picture(score: LabelScore) -> NDArray[np.uint8]:
    """Draw the confusion matrix of slide labels: uint8 (rows, columns, 3)."""
    record = score.to_json()
    return confusion_picture(record["confusion"], record["labels"], title="slide label", notes=[label_line(record)])


def confusion_picture(
    confusion: Sequence[Sequence[int]], names: Sequence[str], *, title: str, notes: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """Draw a confusion matrix: rows reference, columns submission; darker cells have a larger share of their row.

    Args:
        confusion: counts, as many rows as columns.
        names: of the classes.
        title: the first line.
        notes: lines below it.

    Returns:
        uint8 (rows, columns, 3).
    """
    head_right, head_bottom = charts.head_size(title, notes)
    side = _CELL_PX * len(names)
    left = charts.MARGIN_PX + charts.LINE_PX + max(charts.text_width(name, charts.FONT_PX) for name in names) + 14
    top = head_bottom + 2 * charts.LINE_PX
    canvas = Canvas(max(left + side, head_right) + charts.MARGIN_PX, top + side + charts.MARGIN_PX)
    canvas.head(title, notes)
    above = left + side / 2, top - charts.LINE_PX - 2
    canvas.write(above, "submission", charts.SMALL_PX, anchor="ms", ink=charts.PALE_INK)
    canvas.write_upwards((charts.MARGIN_PX, top + side / 2), "reference", charts.SMALL_PX, ink=charts.PALE_INK)
    for column, name in enumerate(names):
        canvas.write((left + (column + 0.5) * _CELL_PX, top - 8), name, charts.FONT_PX, anchor="ms")
    for row, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        canvas.write((left - 12, top + (row + 0.5) * _CELL_PX), name, charts.FONT_PX, anchor="rm")
        for column, count in enumerate(counts):
            share = count / sum(counts) if sum(counts) else 0.0
            _draw_cell(canvas, (left + column * _CELL_PX, top + row * _CELL_PX), count, share)
    return canvas.finished()


def roc_picture(score: SlideRocScore) -> NDArray[np.uint8]:
    """Draw the ROC curve of slides and the chance line: uint8 (rows, columns, 3)."""
    return charts.curve_chart(
        [Curve(points=score.whole.curve)],
        title="Slides with metastasis: ROC curve",
        notes=[roc_line(score.to_json())],
        x=Axis(name="false positive rate", ticks=_SHARES),
        y=Axis(name="true positive rate", ticks=_SHARES),
        has_diagonal=True,
    )


def froc_picture(score: FrocScore) -> NDArray[np.uint8]:
    """Draw both FROC curves over the logarithm of false positives per slide, with dots at the scored rates.

    The curves are extended to the highest rate.

    Returns:
        uint8 (rows, columns, 3).
    """
    record = score.to_json()
    rates = record["rates"]
    ticks = (_LOWEST_RATE, *rates)
    dots = np.stack([np.array(rates), np.array(record["sensitivities"])], axis=1)
    return charts.curve_chart(
        [
            Curve(points=_bent(score.official.points(), ticks), name="official", dots=dots),
            # wider, so that it shows on both sides where the two agree
            Curve(points=_bent(score.corrected.points(), ticks), name="corrected", ink=charts.ORANGE, width=8),
        ],
        title="Lesions: FROC curve",
        notes=[froc_line(record)],
        x=Axis(name="false positives per slide", ticks=ticks, is_log=True),
        y=Axis(name="sensitivity", ticks=_SHARES),
    )


def _bent(points: NDArray[np.float64], ticks: Sequence[float]) -> NDArray[np.float64]:
    """Cut a curve to the ticks, and resample its straight lines so that they are drawn curved over log x."""
    first, last = ticks[0], ticks[-1]
    inside = points[(points[:, 0] >= first) & (points[:, 0] <= last)]
    between = np.geomspace(first, last, _BENDS)
    bent = np.stack([between, np.interp(between, points[:, 0], points[:, 1])], axis=1)
    shown = np.concatenate([inside, bent])
    return shown[np.lexsort((shown[:, 1], shown[:, 0]))]


def _draw_cell(canvas: Canvas, corner: tuple[float, float], count: int, share: float) -> None:
    x, y = corner
    canvas.box((x, y, x + _CELL_PX, y + _CELL_PX), fill=_shade(share), outline=charts.PAPER)
    if count:
        ink = charts.PAPER if share > 0.55 else charts.INK
        middle = x + _CELL_PX / 2, y + _CELL_PX / 2
        canvas.write((middle[0], middle[1] - 6), str(count), charts.TITLE_PX, anchor="mm", ink=ink)
        canvas.write((middle[0], middle[1] + 18), f"{share:.0%}", charts.SMALL_PX, anchor="mm", ink=ink)


def _shade(share: float) -> charts.Ink:
    red, green, blue = (
        round(pale + (dark - pale) * share) for pale, dark in zip((250, 251, 252), _DARKEST, strict=True)
    )
    return red, green, blue
