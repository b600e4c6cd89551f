"""Several comparisons at once: p-values adjusted for their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

ADJUSTED = "Holm"
"""Source: S. Holm, Scandinavian Journal of Statistics 6 (1979) 65-70."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false positive among them is at most that of one test.

    The smallest is multiplied by their number, the next by one less, and so on; none becomes smaller than one before it
    or larger than 1. Those that are nan stay so, and do not count.
    """
    known = sorted((at for at, value in enumerate(p_values) if not math.isnan(value)), key=lambda at: p_values[at])
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for done, at in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - done) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def with_adjusted(comparisons: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add ``p_adjusted`` and ``comparisons``, their number, to records of comparisons with a ``p_value`` each."""
    known = [math.nan if one["p_value"] is None else float(one["p_value"]) for one in comparisons]
    return [
        {**one, "p_adjusted": None if math.isnan(adjusted) else adjusted, "comparisons": len(known)}
        for one, adjusted in zip(comparisons, holm(known), strict=True)
    ]
