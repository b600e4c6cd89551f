"""The curves of a tuning as a picture."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from staging.tuning.choosing import Chosen
from staging.tuning.grid import NAMES, SettingGrid
from staging.tuning.losses import LossName
from wsi.charts import Axis, Curve, curve_chart, even_ticks, round_up

_UNITS = {"merge_gap_um": "merge gap, um", "smallest_um": "smallest size, um", "peak": "1 - peak"}
_NOTES = ("line: held-out loss, with the other settings chosen anew", "dot: what is chosen on all patients together")
_LOSSES: dict[LossName, str] = {"kappa": "1 - kappa, held-out patients", "labels": "label cost, held-out patients"}


def curve_picture(
    grid: SettingGrid, chosen: Chosen, settings: Mapping[str, float], *, loss: LossName
) -> NDArray[np.uint8]:
    """Draw the loss over each setting in a square of four charts; a dot marks the value chosen on all slides.

    Peaks crowd below 1, so their axis is the logarithm of 1 - peak.

    Args:
        grid: the values.
        chosen: with the curves.
        settings: those chosen.
        loss: its name.

    Returns:
        uint8 (rows, columns, 3).
    """
    highest = round_up(max(float(curve.max()) for curve in chosen.curves.values()) or 1.0)
    y = Axis(name=_LOSSES[loss], ticks=even_ticks(0.0, highest))
    charts = [_chart(grid, chosen, name, settings[name], y) for name in NAMES]
    rows = [np.concatenate(charts[at : at + 2], axis=1) for at in (0, 2)]
    return np.concatenate(rows, axis=0)


def _chart(grid: SettingGrid, chosen: Chosen, name: str, value: float, y: Axis) -> NDArray[np.uint8]:
    values = np.array(grid.values[name])
    at = int(np.flatnonzero(values == value)[0])
    if name == "peak":
        values = np.maximum(1 - values, 1e-5)
        x = Axis(name=_UNITS[name], ticks=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0), is_log=True)
    else:
        x = Axis(name=_UNITS.get(name, name), ticks=even_ticks(0.0, round_up(float(values.max()))))
    points = np.stack([values, chosen.curves[name]], axis=1)
    curve = Curve(points=points, dots=points[at : at + 1])
    title = "peak" if name == "peak" else x.name
    return curve_chart([curve], title=f"{title}: {value:.6g} chosen", notes=_NOTES, x=x, y=y)
