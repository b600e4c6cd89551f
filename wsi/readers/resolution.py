"""What a file says about the size of its pixels, and what of it is believed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MPP_RANGE_UM = (0.1, 20.0)
"""Values below are finer than any scanner's pixels, values above coarser than any level 0: screen resolutions, or
inches taken for centimetres of a phantom. Whoever gives a value by hand may go beyond."""

_EQUAL = 0.01
_ABOUT_EQUAL = 0.1
_MEND = "give the right value with --slide-mpp (mpp= in Python)"
OVERRIDE = "give the right value with --override-mpp (mpp=OverridingMpp(um) in Python)"
_NUMBER = re.compile(r"\s*[0-9]+(?:[.,][0-9]*)?(?:[eE][+-]?[0-9]+)?\s*", re.ASCII)
_UM_PER_TIFF_UNIT = {2: 25_400.0, 3: 10_000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Um per level-0 px, None if a file states nothing that can be believed; and what is doubtful about it."""

    mpp: float | None = None
    warnings: tuple[str, ...] = ()


UNSTATED = Resolution(warnings=(f"does not say how large its pixels are; {_MEND}",))
"""Of a file without a statement."""


def read_number(text: str) -> float:
    """A plain number not below 0, with a decimal point or, as some countries' scanners write it, comma; nan if none."""
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.nan


def settle(x_um: float, y_um: float) -> Resolution:
    """What is believed of a file's values for both axes.

    Args:
        x_um: um per px along x; nan if the file does not say.
        y_um: the same along y.

    Returns:
        The mean of both. With a warning if they differ by more than 1 %: sizes are then off by up to half of the
        difference. Unknown, with a warning, if they differ by more than 10 %, are not within ``MPP_RANGE_UM``, or are
        not stated at all.
    """
    if math.isnan(x_um) or math.isnan(y_um):
        return UNSTATED
    both = f"states {x_um:.4g} um per px"
    if x_um != y_um:
        both += f" along x and {y_um:.4g} along y"
    if not (is_believable(x_um) and is_believable(y_um)):
        low, high = MPP_RANGE_UM
        return Resolution(warnings=(f"{both}, not within {low:g} to {high:g}, so it is ignored; {_MEND}",))
    apart = abs(x_um - y_um) / max(x_um, y_um)
    if apart > _ABOUT_EQUAL:
        return Resolution(warnings=(f"{both}, which differ by more than 10 %, so both are ignored; {_MEND}",))
    doubts = (f"{both}; their mean is used, or {OVERRIDE}",) if apart > _EQUAL else ()
    return Resolution(mpp=(x_um + y_um) / 2, warnings=doubts)


def settle_tags(resolution: tuple[float, float], unit: int) -> Resolution:
    """What is believed of a TIFF's resolution tags.

    The default of TIFF 6.0 for a missing unit, inch, is not assumed: a program that drops the unit has dropped
    centimetres as often, and every size would be 2.54 times as long.

    Args:
        resolution: px per unit along (x, y); nan if not stated.
        unit: the tag ResolutionUnit; 0 if there is none.
    """
    if unit in _UM_PER_TIFF_UNIT:
        x_um, y_um = (_UM_PER_TIFF_UNIT[unit] / value if value > 0 else math.nan for value in resolution)
        return settle(x_um, y_um)
    if not (resolution[0] > 0 and resolution[1] > 0):
        return UNSTATED
    cm, inch = (_UM_PER_TIFF_UNIT[code] / resolution[0] for code in (3, 2))
    if not (is_believable(cm) or is_believable(inch)):
        return UNSTATED  # 1 px per no unit is how writers say that they know no resolution
    doubt = (
        f"states {resolution[0]:g} px per unit but not the unit: {cm:.4g} um per px if it is the centimetre, "
        f"{inch:.4g} if it is the inch; {_MEND}"
    )
    return Resolution(warnings=(doubt,))


def compare(stated: Resolution, tags: Resolution) -> Resolution:
    """The vendor's own statement, with a warning if the tags believably say otherwise."""
    if stated.mpp is None or tags.mpp is None or math.isclose(stated.mpp, tags.mpp, rel_tol=_EQUAL):
        return stated
    doubt = (
        f"states {stated.mpp:.4g} um per px in its description but {tags.mpp:.4g} in its resolution tags; "
        f"the first is used, or {OVERRIDE}"
    )
    return Resolution(mpp=stated.mpp, warnings=(*stated.warnings, doubt))


@dataclass(frozen=True, slots=True)
class OverridingMpp:
    """Um per level-0 px that replace what a file states; a plain number only fills in where it states none."""

    um: float


Mpp = float | OverridingMpp
"""Um per level-0 px, as a user gives them."""


def um_of(given: Mpp, stated: float | None = None) -> float:
    """The um per px that count, given what a file states."""
    if isinstance(given, OverridingMpp):
        return given.um
    return given if stated is None else stated


def mpp_json(given: Mpp | None) -> float | dict[str, float] | None:
    """For records: one that overrides is not the same as one that fills in."""
    return {"overrides": given.um} if isinstance(given, OverridingMpp) else given


def against_given(given: Mpp, stated: float | None) -> tuple[str, ...]:
    """A warning if a value given by hand is not what the file states."""
    um = given.um if isinstance(given, OverridingMpp) else given
    if stated is None or math.isclose(um, stated, rel_tol=_EQUAL):
        return ()
    if isinstance(given, OverridingMpp):
        return (f"states {stated:.4g} um per px; the given {um:.4g} are used instead",)
    return (f"states {stated:.4g} um per px, which are used; the given {um:.4g} are not (--override-mpp would)",)


def is_believable(um: float) -> bool:
    """Whether a file's um per px can be those of a slide's finest level."""
    low, high = MPP_RANGE_UM
    return low <= um <= high
