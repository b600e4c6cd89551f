"""Pictures of scores: confusion matrices, ROC and FROC curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi import charts
from wsi.charts import Axis, Canvas, Curve

_DARKEST = (33, 102, 140)
_CELL_PX = 92
_SHARES = charts.even_ticks(0, 1)
_LOWEST_RATE = 0.125
"""Where the axis of false positives begins: half of the lowest rate that is scored."""
_BENDS = 200


def confusion_picture(
    confusion: Sequence[Sequence[int]], names: Sequence[str], *, title: str, notes: Sequence[str] = ()
) -> NDArray[np.uint8]:
    """A confusion matrix: rows reference, columns submission; the darker, the larger the share of its row.

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


def roc_picture(curve: NDArray[np.float64], *, notes: Sequence[str] = ()) -> NDArray[np.uint8]:
    """A ROC curve and the line of guessing.

    Args:
        curve: float64 (n, 2), false and true positive rate.
        notes: lines below the title.

    Returns:
        uint8 (rows, columns, 3).
    """
    return charts.curve_chart(
        [Curve(points=curve)],
        title="Slides with metastasis: ROC curve",
        notes=notes,
        x=Axis(name="false positive rate", ticks=_SHARES),
        y=Axis(name="true positive rate", ticks=_SHARES),
        has_diagonal=True,
    )


def froc_picture(
    official: NDArray[np.float64],
    corrected: NDArray[np.float64],
    *,
    rates: Sequence[float],
    sensitivities: Sequence[float],
    notes: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """Two FROC curves over the logarithm of false positives per slide, with dots where the score is read off.

    Args:
        official: float64 (n, 2), false positives per slide and sensitivity; prolonged to the highest rate.
        corrected: likewise.
        rates: at which the score is read off, rising.
        sensitivities: of the official curve there.
        notes: lines below the title.

    Returns:
        uint8 (rows, columns, 3).
    """
    ticks = (_LOWEST_RATE, *rates)
    dots = np.stack([np.array(rates), np.array(sensitivities)], axis=1)
    return charts.curve_chart(
        [
            Curve(points=_bent(official, ticks), name="official", dots=dots),
            # wider: it shows on both sides where the two agree
            Curve(points=_bent(corrected, ticks), name="corrected", ink=charts.ORANGE, width=8),
        ],
        title="Lesions: FROC curve",
        notes=notes,
        x=Axis(name="false positives per slide", ticks=ticks, is_log=True),
        y=Axis(name="sensitivity", ticks=_SHARES),
    )


def _bent(points: NDArray[np.float64], ticks: Sequence[float]) -> NDArray[np.float64]:
    """The part of a curve between the first and the last tick, its straight lines bent as logarithms of x bend them."""
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
