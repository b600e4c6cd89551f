"""The importances of a classifier's predictors as a picture of bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi.charts import Bar, bar_chart


def importance_picture(
    names: Sequence[str], importances: Sequence[float], *, title: str, most: int = 20
) -> NDArray[np.uint8]:
    """Draw bars of the most important predictors, the longest on top.

    Args:
        names: of the predictors, as they are shown.
        importances: of the predictors, summing to 1.
        title: the first line.
        most: number of bars; the last bar sums up the rest.

    Returns:
        uint8 (rows, columns, 3).
    """
    order = sorted(range(len(names)), key=lambda at: (-importances[at], at))
    bars = [_bar(names[at], importances[at]) for at in order[:most]]
    rest = order[most:]
    if rest:
        bars.append(_bar(f"the other {len(rest)} together", sum(importances[at] for at in rest), is_pale=True))
    return bar_chart(bars, title=title)


def _bar(name: str, share: float, *, is_pale: bool = False) -> Bar:
    return Bar(name=name, value=share, label=f"{share:.1%}", is_pale=is_pale)
