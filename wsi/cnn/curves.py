"""Pictures of a training: loss and area under the curve by pass, and how far its probabilities can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi.charts import BLUE, ORANGE, Axis, Curve, Ink, curve_chart, even_ticks, round_up, whole_ticks
from wsi.cnn.calibration import balanced_loss, reliability
from wsi.cnn.training import Training


def learning_picture(training: Training) -> NDArray[np.uint8]:
    """Loss (and held-out loss) on the left, area under the held-out ROC curve on the right, by pass.

    A dot marks the pass that was kept.

    Returns:
        uint8 (rows, columns, 3).
    """
    passes = training.history
    best = training.best
    kept = best + 1
    losses = [_curve("training, augmented", [one.loss for one in passes], kept=kept, ink=ORANGE)]
    if passes[best].judges_loss is not None:
        losses.insert(0, _curve("held out", [one.judges_loss for one in passes], kept=kept))
    finite = [value for curve in losses for value in curve.points[:, 1].tolist() if math.isfinite(value)]
    areas = _curve("held out", [one.judges_auc for one in passes], kept=kept)
    lowest = min(areas.points[:, 1].tolist(), default=0.0)
    x = Axis(name="pass", ticks=whole_ticks(1, max(2, len(passes))))
    left = curve_chart(
        losses,
        title="loss",
        notes=[f"pass {kept} of {len(passes)} was kept"],
        x=x,
        y=_axis("both classes counting equally", 0.0, round_up(max(finite, default=1.0))),
    )
    notes = "of the cells of held-out patients"
    if not len(areas.points):
        notes = "nothing was held out" if passes[best].judges_loss is None else "held-out patients show one class only"
    right = curve_chart(
        [areas],
        title="area under the ROC curve",
        notes=[notes],
        x=x,
        y=_axis("", min(0.5, math.floor(lowest * 10) / 10), 1.0),
    )
    return np.concatenate([left, right], axis=1)


def calibration_picture(training: Training) -> NDArray[np.uint8]:
    """The share of tumour among held-out cells with a given probability, before and after the temperature.

    Both classes count equally, as in training. On the diagonal probabilities are calibrated.

    Returns:
        uint8 (rows, columns, 3).
    """
    temperature = training.checkpoint.temperature
    curves, notes = [], "nothing was held out"
    if training.truth.size:
        weights, truth = training.class_weights, training.truth
        table = reliability(truth, training.margins, weights)[:, :2]
        curves = [Curve(name="as trained", points=table, dots=table, ink=ORANGE)]
        loss = balanced_loss(truth, training.margins, weights)
        notes = f"{truth.size:,} held-out cells; loss {loss:.4f}"
        if temperature != 1:
            cooled = training.margins / temperature
            table = reliability(truth, cooled, weights)[:, :2]
            curves.insert(0, Curve(name=f"temperature {temperature:.3g}", points=table, dots=table))
            notes += f", {balanced_loss(truth, cooled, weights):.4f} with the temperature"
    return curve_chart(
        curves,
        title="calibration",
        notes=[notes],
        x=_axis("probability of tumour", 0.0, 1.0),
        y=_axis("share that is tumour", 0.0, 1.0),
        has_diagonal=True,
    )


def _axis(name: str, low: float, high: float) -> Axis:
    return Axis(name=name, ticks=even_ticks(low, high))


def _curve(name: str, values: Sequence[float | None], *, kept: int, ink: Ink = BLUE) -> Curve:
    """The values of the passes that have one, with a dot at the pass that was kept."""
    held = [(number, value) for number, value in enumerate(values, 1) if value is not None]
    points = np.array(held, dtype=np.float64).reshape(-1, 2)
    return Curve(name=name, points=points, dots=points[points[:, 0] == kept], ink=ink)
