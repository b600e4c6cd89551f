"""Outlines that a grid misses: no centre of a pixel lies in them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.painting import polygon_mask
from wsi.geometry import Frame

_SURE_PX = math.sqrt(0.5)


def lost_outlines(annotations: Iterable[Annotation], frame: Frame) -> list[Annotation]:
    """The tumour outlines within which no pixel of a grid has its centre, in their order.

    Args:
        annotations: of one slide; those without area and other roles are passed over.
        frame: the grid, taken to go on beyond its borders.
    """
    return [
        one
        for one in annotations
        if one.role is Role.TUMOUR and (outline := one.outline) is not None and _is_lost(outline, frame)
    ]


def _is_lost(outline: NDArray[np.float64], frame: Frame) -> bool:
    columns, rows = ((outline - (frame.x, frame.y)) / frame.downsample).T
    if _is_wide(columns, rows):
        return False
    if any(math.ceil(along.min() - 0.5) > along.max() - 0.5 for along in (columns, rows)):
        return True  # no centre is even within its bounds
    top, left = math.floor(rows.min()), math.floor(columns.min())
    part = Frame(
        x=frame.x + left * frame.downsample,
        y=frame.y + top * frame.downsample,
        downsample=frame.downsample,
        shape=(math.ceil(rows.max()) - top + 1, math.ceil(columns.max()) - left + 1),
        mpp=frame.mpp,
    )
    return not polygon_mask([outline], part).array.any()


def _is_wide(x: NDArray[np.float64], y: NDArray[np.float64]) -> bool:
    """Whether an outline surely holds the centre of a pixel.

    A disc whose radius is half a pixel's diagonal does; and the largest disc within an outline has at least the radius
    area / perimeter.
    """
    across, down = np.roll(x, -1) - x, np.roll(y, -1) - y
    area = abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())) / 2
    return area > _SURE_PX * float(np.hypot(across, down).sum())
