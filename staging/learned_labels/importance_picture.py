"""The importances of a classifier's predictors as a picture of bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

_INK = (30, 30, 30)
_PALE_INK = (110, 110, 110)
_BAR = (0, 114, 178)
_LINE_PX = 24
_BARS_PX = 420
_MARGIN_PX = 24
_FONT_PX = 15
_TITLE_PX = 20


def importance_picture(
    names: Sequence[str], importances: Sequence[float], *, title: str, most: int = 20
) -> NDArray[np.uint8]:
    """Bars of the most important predictors, the longest on top.

    Args:
        names: of the predictors.
        importances: of each, summing to 1.
        title: the first line.
        most: how many are shown; the last line sums up the rest.

    Returns:
        uint8 (rows, columns, 3).
    """
    order = sorted(range(len(names)), key=lambda at: (-importances[at], at))
    shown = [(names[at].replace("_", " "), importances[at]) for at in order[:most]]
    rest = order[most:]
    if rest:
        shown.append((f"the other {len(rest)}", sum(importances[at] for at in rest)))
    font, large = ImageFont.load_default(size=_FONT_PX), ImageFont.load_default(size=_TITLE_PX)
    widest = max(int(font.getlength(name)) for name, _ in shown)
    left, top = _MARGIN_PX + widest + 12, _MARGIN_PX + 2 * _LINE_PX
    width = max(left + _BARS_PX + 64, int(large.getlength(title)) + _MARGIN_PX) + _MARGIN_PX
    picture = Pillow.new("RGB", (width, top + _LINE_PX * len(shown) + _MARGIN_PX), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, fill=_INK, font=large)
    longest = max(1e-9, *(share for _, share in shown))
    for number, (name, share) in enumerate(shown):
        middle = top + (number + 0.5) * _LINE_PX
        is_rest = bool(rest) and number == len(shown) - 1
        draw.text((left - 12, middle), name, fill=_PALE_INK if is_rest else _INK, font=font, anchor="rm")
        end = left + share / longest * _BARS_PX
        draw.rectangle((left, middle - 7, end, middle + 7), fill=(190, 190, 190) if is_rest else _BAR)
        draw.text((end + 8, middle), f"{share:.1%}", fill=_PALE_INK, font=font, anchor="lm")
    draw.line((left, top, left, top + _LINE_PX * len(shown)), fill=_INK)
    return np.array(picture)
