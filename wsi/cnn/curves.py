"""Pictures of a training: how loss and area under the curve went, and how far probabilities can be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from wsi.cnn.calibration import balanced_loss, reliability
from wsi.cnn.training import Training

_INK, _PALE_INK, _GRID, _PAPER = (30, 30, 30), (110, 110, 110), (226, 226, 226), (255, 255, 255)
# Okabe and Ito's blue and orange: told apart by the colour-blind, and in print by their brightness.
_BLUE, _ORANGE = (0, 114, 178), (230, 159, 0)
_PLOT_PX = 420
_LEFT_PX, _TOP_PX, _BOTTOM_PX, _RIGHT_PX = 64, 84, 60, 28
_TITLE_PX, _FONT_PX, _SMALL_PX = 18, 15, 13
_DETAIL = 2
"""Drawn this many times larger and averaged down, so that slanted lines are smooth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    """Points (n, 2) joined by a line."""

    name: str
    points: NDArray[np.float64]
    ink: tuple[int, int, int]
    has_dots: bool = False


def learning_picture(training: Training) -> NDArray[np.uint8]:
    """Loss (and held-out loss) on the left, area under the held-out ROC curve on the right, over the passes.

    A dot marks the pass that was kept.

    Returns:
        uint8 (rows, columns, 3).
    """
    passes = training.history
    best = training.best
    losses = [_Curve(name="training, augmented", points=_points([one.loss for one in passes]), ink=_ORANGE)]
    if passes[best].judges_loss is not None:
        held_out = _points([one.judges_loss for one in passes])
        losses.insert(0, _Curve(name="held out", points=held_out, ink=_BLUE))
    finite = [value for curve in losses for value in curve.points[:, 1].tolist() if math.isfinite(value)]
    highest = _nice(max(finite, default=1.0))
    areas = [_Curve(name="held out", points=_points([one.judges_auc for one in passes]), ink=_BLUE)]
    lowest = min((float(value) for value in areas[0].points[:, 1]), default=0.0)
    left = _plot(
        losses,
        title="loss",
        notes=f"pass {best + 1} of {len(passes)} was kept",
        x=(1.0, float(max(2, len(passes)))),
        y=(0.0, highest),
        names=("pass", "both classes counting equally"),
        mark=best + 1,
    )
    notes = "of the cells of held-out patients"
    if not len(areas[0].points):
        notes = "nothing was held out" if passes[best].judges_loss is None else "held-out patients show one class only"
    right = _plot(
        areas,
        title="area under the ROC curve",
        notes=notes,
        x=(1.0, float(max(2, len(passes)))),
        y=(min(0.5, math.floor(lowest * 10) / 10), 1.0),
        names=("pass", ""),
        mark=best + 1,
    )
    return np.concatenate([left, right], axis=1)


def calibration_picture(training: Training) -> NDArray[np.uint8]:
    """What share of the held-out cells that get a probability are tumour, before and after the temperature.

    Both classes count equally, as in training. On the diagonal a probability can be taken at its word.

    Returns:
        uint8 (rows, columns, 3).
    """
    temperature = training.checkpoint.temperature
    curves, notes = [], "nothing was held out"
    if training.truth.size:
        weights, truth = training.class_weights, training.truth
        table = reliability(truth, training.margins, weights)
        curves = [_Curve(name="as trained", points=table[:, :2], ink=_ORANGE, has_dots=True)]
        loss = balanced_loss(truth, training.margins, weights)
        notes = f"{truth.size:,} held-out cells; loss {loss:.4f}"
        if temperature != 1:
            cooled = training.margins / temperature
            table = reliability(truth, cooled, weights)
            name = f"temperature {temperature:.3g}"
            curves.insert(0, _Curve(name=name, points=table[:, :2], ink=_BLUE, has_dots=True))
            notes += f", {balanced_loss(truth, cooled, weights):.4f} with the temperature"
    return _plot(
        curves,
        title="calibration",
        notes=notes,
        x=(0.0, 1.0),
        y=(0.0, 1.0),
        names=("probability of tumour", "share that is tumour"),
        has_diagonal=True,
    )


def _points(values: Sequence[float | None]) -> NDArray[np.float64]:
    """(pass, value) of the passes that have one."""
    held = [(number, value) for number, value in enumerate(values, 1) if value is not None]
    return np.array(held, dtype=np.float64).reshape(-1, 2)


def _nice(highest: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(highest, 1e-6)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= highest)


def _plot(
    curves: Sequence[_Curve],
    *,
    title: str,
    notes: str,
    x: tuple[float, float],
    y: tuple[float, float],
    names: tuple[str, str],
    mark: int | None = None,
    has_diagonal: bool = False,
) -> NDArray[np.uint8]:
    size = (_LEFT_PX + _PLOT_PX + _RIGHT_PX) * _DETAIL, (_TOP_PX + _PLOT_PX + _BOTTOM_PX) * _DETAIL
    picture = Pillow.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    _write(draw, (_LEFT_PX, 14), title, _TITLE_PX, anchor="lt")
    _write(draw, (_LEFT_PX, 42), notes, _SMALL_PX, anchor="lt", ink=_PALE_INK)
    _write(draw, (_LEFT_PX, 64), names[1], _SMALL_PX, anchor="lt")
    for across in np.unique(np.linspace(*x, 6).round(0 if x[1] > 1 else 9)).tolist():
        column, _ = _to_px((across, y[0]), x, y)
        _line(draw, [(column, _TOP_PX), (column, _TOP_PX + _PLOT_PX)], _GRID, 1)
        _write(draw, (column, _TOP_PX + _PLOT_PX + 8), f"{across:g}", _SMALL_PX, anchor="mt")
    for up in np.linspace(*y, 6).tolist():
        _, row = _to_px((x[0], up), x, y)
        _line(draw, [(_LEFT_PX, row), (_LEFT_PX + _PLOT_PX, row)], _GRID, 1)
        _write(draw, (_LEFT_PX - 8, row), f"{up:.3g}", _SMALL_PX, anchor="rm")
    _write(draw, (_LEFT_PX + _PLOT_PX / 2, _TOP_PX + _PLOT_PX + 34), names[0], _FONT_PX, anchor="mt")
    if has_diagonal:
        _line(draw, [_to_px((x[0], y[0]), x, y), _to_px((x[1], y[1]), x, y)], _PALE_INK, 1)
    for curve in reversed(curves):
        points = [_to_px((across, up), x, y) for across, up in curve.points.tolist() if math.isfinite(up)]
        _line(draw, points, curve.ink, 3)
        marked = curve.points[:, 0] == mark
        dots = points if curve.has_dots else [_to_px((a, b), x, y) for a, b in curve.points[marked].tolist()]
        for across, up in dots if mark is None or all(map(math.isfinite, curve.points[marked].ravel())) else []:
            draw.circle((across * _DETAIL, up * _DETAIL), 4 * _DETAIL, fill=curve.ink)
    if len(curves) > 1:
        _legend(draw, curves)
    return np.array(picture.reduce(_DETAIL))


def _legend(draw: ImageDraw.ImageDraw, curves: Sequence[_Curve]) -> None:
    right = float(_LEFT_PX + _PLOT_PX)
    for curve in reversed(curves):
        left = right - _font(_SMALL_PX).getbbox(curve.name)[2] / _DETAIL
        _line(draw, [(left - 32, 22), (left - 8, 22)], curve.ink, 3)
        _write(draw, (left, 22), curve.name, _SMALL_PX, anchor="lm")
        right = left - 48


def _to_px(point: tuple[float, float], x: tuple[float, float], y: tuple[float, float]) -> tuple[float, float]:
    """A point of the plot in px of the picture; what lies beyond an edge lies on it."""
    across, up = (point[0] - x[0]) / (x[1] - x[0]), (point[1] - y[0]) / (y[1] - y[0])
    return _LEFT_PX + min(1.0, max(0.0, across)) * _PLOT_PX, _TOP_PX + (1 - min(1.0, max(0.0, up))) * _PLOT_PX


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _DETAIL)


def _write(
    draw: ImageDraw.ImageDraw,
    point: tuple[float, float],
    text: str,
    size: int,
    *,
    anchor: str,
    ink: tuple[int, int, int] = _INK,
) -> None:
    draw.text((point[0] * _DETAIL, point[1] * _DETAIL), text, fill=ink, font=_font(size), anchor=anchor)


def _line(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], ink: tuple[int, int, int], width: int
) -> None:
    if len(points) > 1:
        draw.line([(x * _DETAIL, y * _DETAIL) for x, y in points], fill=ink, width=width * _DETAIL, joint="curve")
