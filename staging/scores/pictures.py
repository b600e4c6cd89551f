"""Pictures of scores: confusion matrices and curves, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

_INK = (30, 30, 30)
_PALE_INK = (110, 110, 110)
_GRID = (226, 226, 226)
_PAPER = (255, 255, 255)
_DARKEST = (33, 102, 140)
# Okabe and Ito's blue and orange: told apart by the colour-blind, and in print by their brightness.
# The lower line is wider: it shows on both sides where the two agree.
_LINES = (((0, 114, 178), 3), ((230, 159, 0), 8))
_FONT_PX = 17
_SMALL_PX = 14
_TITLE_PX = 20
_DETAIL = 2
"""Drawn this many times larger and averaged down, so that slanted lines are smooth."""
_CELL_PX = 92
_PLOT_PX = 520
_MARGIN_PX = 24
_LINE_PX = 26

_Draw = ImageDraw.ImageDraw


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
    side = _CELL_PX * len(names)
    widest = max(_width(name, _FONT_PX) for name in names)
    left, top = _MARGIN_PX + _LINE_PX + widest + 14, _MARGIN_PX + _LINE_PX * (3 + len(notes))
    width = max(left + side, _head_width(title, notes)) + _MARGIN_PX
    picture, draw = _canvas(width, top + side + _MARGIN_PX)
    _write_head(draw, title, notes)
    _write(draw, (left + side / 2, top - _LINE_PX - 2), "submission", _SMALL_PX, anchor="ms", ink=_PALE_INK)
    _write_upwards(picture, (_MARGIN_PX, top + side / 2), "reference")
    for column, name in enumerate(names):
        _write(draw, (left + (column + 0.5) * _CELL_PX, top - 8), name, _FONT_PX, anchor="ms")
    for row, (name, counts) in enumerate(zip(names, confusion, strict=True)):
        middle = top + (row + 0.5) * _CELL_PX
        _write(draw, (left - 12, middle), name, _FONT_PX, anchor="rm")
        for column, count in enumerate(counts):
            share = count / sum(counts) if sum(counts) else 0.0
            x, y = left + column * _CELL_PX, top + row * _CELL_PX
            _box(draw, (x, y, x + _CELL_PX, y + _CELL_PX), fill=_shade(share))
            if count:
                ink = _PAPER if share > 0.55 else _INK
                _write(draw, (x + _CELL_PX / 2, middle - 6), str(count), _TITLE_PX, anchor="mm", ink=ink)
                _write(draw, (x + _CELL_PX / 2, middle + 18), f"{share:.0%}", _SMALL_PX, anchor="mm", ink=ink)
    return _finished(picture)


def curve_picture(
    curves: Sequence[tuple[str, NDArray[np.float64]]],
    *,
    title: str,
    axes: tuple[str, str],
    x_ticks: Sequence[float],
    notes: Sequence[str] = (),
    diagonal: bool = False,
    marks: Sequence[tuple[float, float]] = (),
) -> NDArray[np.uint8]:
    """One or two curves in a square, the vertical axis from 0 to 1.

    Args:
        curves: name and float64 (n, 2) x, y of each; the first is drawn on top. The last point is prolonged to the
            right edge.
        title: the first line.
        axes: what x and y are.
        x_ticks: positions along x, from the left edge to the right one. From a positive first one on they are spaced
            by their logarithms, and what lies below it is not shown.
        notes: lines below the title.
        diagonal: draw the line of guessing.
        marks: points (x, y) marked on the first curve.

    Returns:
        uint8 (rows, columns, 3).
    """
    left, top = _MARGIN_PX + _LINE_PX + 46, _MARGIN_PX + _LINE_PX * (2 + len(notes))
    height = top + _PLOT_PX + 2 * _LINE_PX + _MARGIN_PX
    picture, draw = _canvas(max(left + _PLOT_PX, _head_width(title, notes)) + _MARGIN_PX, height)
    _write_head(draw, title, notes)
    box = (left, top, left + _PLOT_PX, top + _PLOT_PX)
    for tick in x_ticks:
        x = left + _along(np.array([tick]), x_ticks)[0] * _PLOT_PX
        _line(draw, [(x, top), (x, top + _PLOT_PX)], _GRID, 1)
        _write(draw, (x, top + _PLOT_PX + 8), f"{tick:g}", _SMALL_PX, anchor="mt")
    for tenth in range(0, 11, 2):
        y = top + (1 - tenth / 10) * _PLOT_PX
        _line(draw, [(left, y), (left + _PLOT_PX, y)], _GRID, 1)
        _write(draw, (left - 8, y), f"{tenth / 10:.1f}", _SMALL_PX, anchor="rm")
    if diagonal:
        _line(draw, [(left, top + _PLOT_PX), (left + _PLOT_PX, top)], _PALE_INK, 1)
    for (_, points), (colour, width) in reversed(list(zip(curves, _LINES, strict=False))):
        _line(draw, _on_paper(_shown(points, x_ticks), x_ticks, box), colour, width)
    for point in _on_paper(np.array(marks, dtype=np.float64).reshape(-1, 2), x_ticks, box):
        _dot(draw, point, 5, _LINES[0][0])
    _box(draw, box, outline=_INK)
    _write(draw, (left + _PLOT_PX / 2, top + _PLOT_PX + 2 * _LINE_PX), axes[0], _FONT_PX, anchor="ms")
    _write_upwards(picture, (_MARGIN_PX, top + _PLOT_PX / 2), axes[1], ink=_INK)
    if len(curves) > 1:
        _write_legend(draw, [name for name, _ in curves], right=left + _PLOT_PX - 12, bottom=top + _PLOT_PX - 12)
    return _finished(picture)


def _along(x: NDArray[np.float64], ticks: Sequence[float]) -> NDArray[np.float64]:
    """0 at the first tick, 1 at the last; by logarithms where the first one is positive."""
    first, last = ticks[0], ticks[-1]
    if first <= 0:
        return (x - first) / (last - first)
    return np.asarray(np.log(np.maximum(x, 1e-300) / first) / np.log(last / first))


def _shown(points: NDArray[np.float64], ticks: Sequence[float]) -> NDArray[np.float64]:
    """The part of a curve between the first and the last tick, prolonged to the latter."""
    first, last = ticks[0], ticks[-1]
    inside = points[(points[:, 0] >= first) & (points[:, 0] <= last)]
    # A straight line between two points is bent where x goes by logarithms.
    between = np.geomspace(first, last, 200) if first > 0 else np.array([last], dtype=np.float64)
    bent = np.stack([between, np.interp(between, points[:, 0], points[:, 1])], axis=1)
    shown = np.concatenate([inside, bent])
    return shown[np.lexsort((shown[:, 1], shown[:, 0]))]


def _on_paper(
    points: NDArray[np.float64], ticks: Sequence[float], box: tuple[float, float, float, float]
) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    x = left + _along(points[:, 0], ticks) * (right - left)
    y = bottom - points[:, 1] * (bottom - top)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _shade(share: float) -> tuple[int, int, int]:
    red, green, blue = (
        round(pale + (dark - pale) * share) for pale, dark in zip((250, 251, 252), _DARKEST, strict=True)
    )
    return red, green, blue


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size * _DETAIL)


def _width(text: str, size: int) -> int:
    return round(_font(size).getbbox(text)[2] / _DETAIL)


def _head_width(title: str, notes: Sequence[str]) -> int:
    return _MARGIN_PX + max(_width(title, _TITLE_PX), *(_width(note, _SMALL_PX) for note in notes), 0)


def _canvas(width: float, height: float) -> tuple[Pillow.Image, _Draw]:
    picture = Pillow.new("RGB", (round(width) * _DETAIL, round(height) * _DETAIL), _PAPER)
    return picture, ImageDraw.Draw(picture)


def _finished(picture: Pillow.Image) -> NDArray[np.uint8]:
    return np.array(picture.reduce(_DETAIL))


def _write_head(draw: _Draw, title: str, notes: Sequence[str]) -> None:
    _write(draw, (_MARGIN_PX, _MARGIN_PX), title, _TITLE_PX, anchor="lt")
    for number, note in enumerate(notes, start=1):
        _write(draw, (_MARGIN_PX, _MARGIN_PX + number * _LINE_PX), note, _SMALL_PX, anchor="lt", ink=_PALE_INK)


def _write_legend(draw: _Draw, names: Sequence[str], *, right: float, bottom: float) -> None:
    widest = max(_width(name, _SMALL_PX) for name in names)
    for number, (name, (colour, width)) in enumerate(zip(reversed(names), reversed(_LINES[: len(names)]), strict=True)):
        y = bottom - 10 - number * 22
        _box(draw, (right - widest - 48, y - 11, right, y + 11), fill=_PAPER)
        _line(draw, [(right - widest - 40, y), (right - widest - 12, y)], colour, width)
        _write(draw, (right - widest - 4, y), name, _SMALL_PX, anchor="lm")


def _write(
    draw: _Draw,
    point: tuple[float, float],
    text: str,
    size: int,
    *,
    anchor: str,
    ink: tuple[int, int, int] = _INK,
) -> None:
    draw.text((point[0] * _DETAIL, point[1] * _DETAIL), text, fill=ink, font=_font(size), anchor=anchor)


def _write_upwards(
    picture: Pillow.Image, point: tuple[float, float], text: str, *, ink: tuple[int, int, int] = _PALE_INK
) -> None:
    """Text turned to read upwards; its left edge and vertical middle are at the place."""
    size = _FONT_PX if ink == _INK else _SMALL_PX
    label = Pillow.new("RGB", ((_width(text, size) + 4) * _DETAIL, (size + 8) * _DETAIL), _PAPER)
    ImageDraw.Draw(label).text((2 * _DETAIL, 2 * _DETAIL), text, fill=ink, font=_font(size), anchor="lt")
    turned = label.transpose(Pillow.Transpose.ROTATE_90)
    picture.paste(turned, (round(point[0] * _DETAIL), round(point[1] * _DETAIL - turned.height / 2)))


def _line(draw: _Draw, points: Sequence[tuple[float, float]], ink: tuple[int, int, int], width: int) -> None:
    draw.line([(x * _DETAIL, y * _DETAIL) for x, y in points], fill=ink, width=width * _DETAIL, joint="curve")


def _dot(draw: _Draw, point: tuple[float, float], radius: int, ink: tuple[int, int, int]) -> None:
    x, y = point[0] * _DETAIL, point[1] * _DETAIL
    draw.circle((x, y), radius * _DETAIL, fill=ink, outline=_PAPER, width=_DETAIL)


def _box(
    draw: _Draw,
    box: tuple[float, float, float, float],
    *,
    fill: tuple[int, int, int] | None = None,
    outline: tuple[int, int, int] | None = None,
) -> None:
    left, top, right, bottom = (edge * _DETAIL for edge in box)
    draw.rectangle((left, top, right, bottom), fill=fill, outline=outline or (_PAPER if fill else None), width=_DETAIL)
