"""Charts as pictures, drawn with Pillow: curves over axes, and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

Ink = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

INK, PALE_INK, GREY, GRID, PAPER = (30, 30, 30), (110, 110, 110), (190, 190, 190), (226, 226, 226), (255, 255, 255)
# Okabe and Ito's blue and orange: distinct to the colour-blind, and in print by their brightness.
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)
TITLE_PX, FONT_PX, SMALL_PX = 20, 16, 14
MARGIN_PX, LINE_PX = 24, 26

_PLOT_PX = 480
_TICKS = 6
_TICKS_PX = 46  # left of the plot, for the numbers
_BARS_PX, _BAR_PX = 420, 14
_DETAIL = 2
"""Drawn this many times larger and averaged down, so that slanted lines are smooth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a plot.

    Attributes:
        name: its label; may be empty.
        ticks: ascending; the plot extends from the first to the last.
        is_log: logarithmic; the first tick must then be positive.
    """

    name: str
    ticks: Sequence[float]
    is_log: bool = False

    def along(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """0 at the first tick, 1 at the last; values beyond an end are clamped to it."""
        first, last = self.ticks[0], self.ticks[-1]
        if self.is_log:
            share = np.log(np.maximum(values, first) / first) / np.log(last / first)
        else:
            share = (values - first) / (last - first)
        return np.asarray(share, dtype=np.float64).clip(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Points joined by a line.

    Attributes:
        points: float64 (n, 2), x and y; those that are not finite are left out.
        name: in the legend, if it has one and there are points.
        ink: its colour.
        width: of the line in px.
        dots: float64 (n, 2), points to mark on it.
    """

    points: NDArray[np.float64]
    name: str = ""
    ink: Ink = BLUE
    width: int = 3
    dots: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A value with its name; ``label`` is the value as text, ``is_pale`` marks one that counts less."""

    name: str
    value: float
    label: str
    is_pale: bool = False


class Canvas:
    """White paper to write and draw on; all measures are in px of the finished picture."""

    def __init__(self, width: float, height: float) -> None:
        self._picture = Pillow.new("RGB", (round(width) * _DETAIL, round(height) * _DETAIL), PAPER)
        self._draw = ImageDraw.Draw(self._picture)

    def finished(self) -> NDArray[np.uint8]:
        """uint8 (rows, columns, 3)."""
        return np.array(self._picture.reduce(_DETAIL))

    def head(self, title: str, notes: Sequence[str]) -> None:
        """Write a title and lines below it; see head_size."""
        self.write((MARGIN_PX, MARGIN_PX), title, TITLE_PX, anchor="lt")
        for number, note in enumerate(notes, start=1):
            self.write((MARGIN_PX, MARGIN_PX + number * LINE_PX), note, SMALL_PX, anchor="lt", ink=PALE_INK)

    def write(self, point: Point, text: str, size: int, *, anchor: str, ink: Ink = INK) -> None:
        """Write text with Pillow's anchor at a point."""
        self._draw.text((point[0] * _DETAIL, point[1] * _DETAIL), text, fill=ink, font=_font(size), anchor=anchor)

    def write_upwards(self, point: Point, text: str, size: int, *, ink: Ink = INK) -> None:
        """Write text rotated to read upwards; its left edge and vertical middle are at the point."""
        label = Pillow.new("RGB", (round(text_width(text, size) + 4) * _DETAIL, (size + 8) * _DETAIL), PAPER)
        ImageDraw.Draw(label).text((2 * _DETAIL, 2 * _DETAIL), text, fill=ink, font=_font(size), anchor="lt")
        turned = label.transpose(Pillow.Transpose.ROTATE_90)
        self._picture.paste(turned, (round(point[0] * _DETAIL), round(point[1] * _DETAIL - turned.height / 2)))

    def line(self, points: Sequence[Point], ink: Ink, width: int = 1) -> None:
        """Draw a line through points; nothing for fewer than two."""
        if len(points) > 1:
            self._draw.line(
                [(x * _DETAIL, y * _DETAIL) for x, y in points], fill=ink, width=width * _DETAIL, joint="curve"
            )

    def dot(self, point: Point, ink: Ink, radius: int = 5) -> None:
        """Draw a dot with a white rim."""
        centre = point[0] * _DETAIL, point[1] * _DETAIL
        self._draw.circle(centre, radius * _DETAIL, fill=ink, outline=PAPER, width=_DETAIL)

    def box(self, box: Box, *, fill: Ink | None = None, outline: Ink | None = None) -> None:
        """Draw a rectangle."""
        left, top, right, bottom = (edge * _DETAIL for edge in box)
        self._draw.rectangle((left, top, right, bottom), fill=fill, outline=outline, width=_DETAIL)


def head_size(title: str, notes: Sequence[str]) -> tuple[float, float]:
    """(right, bottom) of the text that Canvas.head writes, in px."""
    widths = (text_width(title, TITLE_PX), *(text_width(note, SMALL_PX) for note in notes))
    return MARGIN_PX + max(widths), MARGIN_PX + LINE_PX * (len(notes) + 1)


def text_width(text: str, size: int) -> float:
    """The width of text in px."""
    return float(_font(size).getbbox(text)[2]) / _DETAIL


def curve_chart(
    curves: Sequence[Curve], *, title: str, notes: Sequence[str] = (), x: Axis, y: Axis, has_diagonal: bool = False
) -> NDArray[np.uint8]:
    """Draw curves in a square, the first one on top.

    Args:
        curves: the curves.
        title: the first line.
        notes: lines below it.
        x: the axis at the bottom.
        y: the axis on the left.
        has_diagonal: draw the line from corner to corner.

    Returns:
        uint8 (rows, columns, 3); charts with equally many notes have the same height.
    """
    right, top = head_size(title, notes)
    left, top = MARGIN_PX + LINE_PX + _TICKS_PX, top + LINE_PX
    plot: Box = (left, top, left + _PLOT_PX, top + _PLOT_PX)
    canvas = Canvas(max(plot[2], right) + MARGIN_PX, plot[3] + 2 * LINE_PX + MARGIN_PX)
    canvas.head(title, notes)
    _draw_axes(canvas, plot, x, y)
    if has_diagonal:
        canvas.line([(plot[0], plot[3]), (plot[2], plot[1])], PALE_INK)
    for curve in reversed(curves):
        canvas.line(_on_paper(curve.points, plot, x, y), curve.ink, curve.width)
        for point in _on_paper(curve.dots, plot, x, y):
            canvas.dot(point, curve.ink)
    _write_legend(canvas, curves, right=plot[2], middle=top - LINE_PX / 2)
    return canvas.finished()


def bar_chart(bars: Sequence[Bar], *, title: str) -> NDArray[np.uint8]:
    """Draw horizontal bars below each other; the longest fills the width.

    Args:
        bars: at least one, none below 0.
        title: the first line.

    Returns:
        uint8 (rows, columns, 3).
    """
    right, head = head_size(title, ())
    top = head + LINE_PX / 2
    left = MARGIN_PX + max(text_width(bar.name, SMALL_PX) for bar in bars) + 12
    bottom = top + LINE_PX * len(bars)
    widest = max(text_width(bar.label, SMALL_PX) for bar in bars) + 8
    canvas = Canvas(max(left + _BARS_PX + widest, right) + MARGIN_PX, bottom + MARGIN_PX)
    canvas.head(title, ())
    longest = max(1e-9, *(bar.value for bar in bars))
    for number, bar in enumerate(bars):
        middle = top + (number + 0.5) * LINE_PX
        end = left + bar.value / longest * _BARS_PX
        canvas.write((left - 12, middle), bar.name, SMALL_PX, anchor="rm", ink=PALE_INK if bar.is_pale else INK)
        canvas.box((left, middle - _BAR_PX / 2, end, middle + _BAR_PX / 2), fill=GREY if bar.is_pale else BLUE)
        canvas.write((end + 8, middle), bar.label, SMALL_PX, anchor="lm", ink=PALE_INK)
    canvas.line([(left, top), (left, bottom)], INK)
    return canvas.finished()


def even_ticks(low: float, high: float) -> tuple[float, ...]:
    """Six ticks from low to high."""
    return tuple(np.linspace(low, high, _TICKS).tolist())


def whole_ticks(low: int, high: int) -> tuple[float, ...]:
    """At most six ticks, equally far apart, integers, from low to high or a little beyond."""
    step = max(1, math.ceil((high - low) / (_TICKS - 1)))
    return tuple(float(tick) for tick in range(low, high + step, step))


def round_up(value: float) -> float:
    """The next larger 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-6)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _draw_axes(canvas: Canvas, plot: Box, x: Axis, y: Axis) -> None:
    left, top, right, bottom = plot
    for tick, share in zip(x.ticks, x.along(np.array(x.ticks)).tolist(), strict=True):
        across = left + share * (right - left)
        canvas.line([(across, top), (across, bottom)], GRID)
        canvas.write((across, bottom + 8), f"{tick:.4g}", SMALL_PX, anchor="mt")
    for tick, share in zip(y.ticks, y.along(np.array(y.ticks)).tolist(), strict=True):
        up = bottom - share * (bottom - top)
        canvas.line([(left, up), (right, up)], GRID)
        canvas.write((left - 8, up), f"{tick:.4g}", SMALL_PX, anchor="rm")
    canvas.box(plot, outline=INK)
    canvas.write(((left + right) / 2, bottom + 2 * LINE_PX), x.name, FONT_PX, anchor="ms")
    if y.name:
        canvas.write_upwards((MARGIN_PX, (top + bottom) / 2), y.name, FONT_PX)


def _on_paper(points: NDArray[np.float64], plot: Box, x: Axis, y: Axis) -> list[Point]:
    left, top, right, bottom = plot
    held = points[np.isfinite(points).all(axis=1)]
    across = left + x.along(held[:, 0]) * (right - left)
    up = bottom - y.along(held[:, 1]) * (bottom - top)
    return list(zip(across.tolist(), up.tolist(), strict=True))


def _write_legend(canvas: Canvas, curves: Sequence[Curve], *, right: float, middle: float) -> None:
    for curve in reversed([curve for curve in curves if curve.name and len(curve.points)]):
        left = right - text_width(curve.name, SMALL_PX)
        canvas.line([(left - 34, middle), (left - 8, middle)], curve.ink, curve.width)
        canvas.write((left, middle), curve.name, SMALL_PX, anchor="lm")
        right = left - 50


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _DETAIL)
