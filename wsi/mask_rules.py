"""What a coarse pixel of a mask stands for, as a mask file says it in its ImageDescription."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

MaskReduction: TypeAlias = Literal["centre", "max", "corner"]
"""A pixel larger than a level-0 px is tumour if the point at its centre is, if any of its level-0 px is, or if its
upper left level-0 px is."""

MASK_RULE = "sentinode.mask_rule"
"""The property of a slide in which its reader gives the rule."""

_SAID = re.compile(r"reduce=(centre|max|corner), downsample=(\d{1,9}(?:\.\d{1,9})?)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRule:
    """How a mask was reduced.

    Attributes:
        reduce: what a pixel larger than a level-0 px stands for.
        downsample: level-0 px per px of the file's finest level.
    """

    reduce: MaskReduction
    downsample: float

    def __str__(self) -> str:
        return f"reduce={self.reduce}, downsample={self.downsample:.9g}"


def grown_warnings(rule: MaskRule | None, downsample: float) -> tuple[str, ...]:
    """Return that areas are too large on a level ``downsample`` times as coarse as the finest, if they are."""
    if rule is None or rule.reduce != "max" or rule.downsample * downsample <= 1:
        return ()
    pixel = f"{rule.downsample * downsample:.4g} level-0 px"
    grown = "so that lesions are larger and fewer than their outlines"
    return (f"was drawn by max: a pixel of {pixel} is tumour where any of these is, {grown}",)


def rule_in(description: str) -> MaskRule | None:
    """Return the rule that an ImageDescription states; None if it states none."""
    found = _SAID.search(description[:1000])
    if found is None:
        return None
    reduce: MaskReduction = found[1]  # type: ignore[assignment]  # one of the pattern's
    return MaskRule(reduce=reduce, downsample=float(found[2]))
