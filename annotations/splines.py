"""The curves that ASAP draws through the vertices of a Spline, as polygons.

ASAP (PolyQtAnnotation.cpp, catmullRomToBezier) joins consecutive vertices by cubic Bezier pieces of a centripetal
Catmull-Rom curve, which also depends on the vertex before and the vertex after. Two of its pieces use a mirrored vertex
on one side: the last piece but one, which does not know that the outline closes, and the closing piece. The same is
done here: what counts is what the pathologist saw. (ASAP's own masks ignore the curve and use the polygon through the
vertices.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TOLERANCE_PX = 0.25
"""How far, in level-0 px, a flattened curve may lie from the curve: 0.06 um on the slides of CAMELYON."""

# Guards against hostile files: pieces of 100,000 px and 71,000 vertices (the worst published slide) stay far below.
_MOST_STEPS = 1 << 10
_MOST_POINTS = 1 << 22
_SAME_PX = 1e-6


def flatten(vertices: NDArray[np.float64], tolerance_px: float = TOLERANCE_PX) -> NDArray[np.float64]:
    """The closed curve through vertices as a polygon through every one of them.

    Args:
        vertices: (n, 2) x, y in level-0 px; repeated ones count once.
        tolerance_px: largest distance between curve and polygon; exceeded where that would take more than 1,024 edges
            for one piece or four million in all.

    Returns:
        float64 (m, 2); with fewer than three distinct vertices, just these.
    """
    if not tolerance_px > 0:
        raise ValueError(f"a tolerance must be above 0 px, got {tolerance_px}")
    moved = _length(np.diff(vertices, axis=0)) > _SAME_PX
    points: NDArray[np.float64] = vertices[np.concatenate([np.ones(min(1, len(vertices)), dtype=np.bool_), moved])]
    while len(points) > 1 and _length(points[-1:] - points[:1])[0] <= _SAME_PX:
        points = points[:-1]
    if len(points) < 3:
        return points
    start, end = points, np.roll(points, -1, axis=0)
    before, after = np.roll(points, 1, axis=0), np.roll(points, -2, axis=0)
    after[-2] = 2 * end[-2] - start[-2]
    before[-1] = 2 * start[-1] - end[-1]
    first, second = _handles(before, start, end), _handles(after, end, start)
    steps = _steps(start, first, second, end, tolerance_px)
    piece = np.repeat(np.arange(len(points)), steps)
    step = np.arange(len(piece)) - np.repeat(np.cumsum(steps) - steps, steps)
    t = (step / steps[piece])[:, None]
    s = 1 - t
    curve = s**3 * start[piece] + 3 * s**2 * t * first[piece] + 3 * s * t**2 * second[piece] + t**3 * end[piece]
    curve[step == 0] = points
    return curve


def _handles(before: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """The Bezier control points next to ``start`` for the pieces from ``start`` to ``end``."""
    near, far = _length(start - before)[:, None], _length(end - start)[:, None]
    root = np.sqrt(near * far)
    handle: NDArray[np.float64] = start + (near * (end - start) + far * (start - before)) / (3 * (near + root))
    return handle


def _steps(
    start: NDArray[np.float64],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    end: NDArray[np.float64],
    tolerance_px: float,
) -> NDArray[np.int64]:
    """The number of chords each piece is cut into: n chords miss a curve by at most max |curve''| / (8 n**2)."""
    bend = 6 * np.maximum(_length(start - 2 * first + second), _length(first - 2 * second + end))
    steps = np.clip(np.ceil(np.sqrt(bend / (8 * tolerance_px))), 1, _MOST_STEPS)
    share = min(1.0, _MOST_POINTS / float(steps.sum()))
    counts: NDArray[np.int64] = np.maximum(1, steps * share).astype(np.int64)
    return counts


def _length(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length: NDArray[np.float64] = np.hypot(vectors[:, 0], vectors[:, 1])
    return length
