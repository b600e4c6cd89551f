"""A picture of what was drawn: examples of every class and kind, to look at before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from annotations.patches.table import PatchTable

_FRAMES = {"tumour": (200, 40, 30), "normal": (40, 120, 60), "unknown": (120, 120, 120)}
_THUMBNAIL_PX = 112
_GAP_PX = 6
_TITLE_PX = 30
_TEXT_PX = 13
_INK = (30, 30, 30)


def pick_examples(table: PatchTable, *, each: int = 12, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Rows to show, by title: up to ``each`` of every class and kind, from as many slides as possible.

    Titles say what they are: ``tumour, drawn as border: 120 patches of 8 slides``.
    """
    rng = np.random.default_rng(seed)
    pairs = sorted(set(zip(table["class"].tolist(), table["kind"].tolist(), strict=True)), reverse=True)
    found = {}
    for label, kind in pairs:
        rows = rng.permutation(np.flatnonzero((table["class"] == label) & (table["kind"] == kind)))
        slides = table["slide"][rows].astype(str)
        # The first patch of every slide precedes the second of any.
        turn = np.zeros(len(rows), np.int64)
        for slide in np.unique(slides):
            own = np.flatnonzero(slides == slide)
            turn[own] = np.arange(len(own))
        title = f"{label}, drawn as {kind}: {len(rows)} patches of {len(np.unique(slides))} slides"
        found[title] = rows[np.argsort(turn, kind="stable")][:each]
    return found


def contact_sheet(
    table: PatchTable, examples: Mapping[str, NDArray[np.int64]], images: Mapping[str, Sequence[NDArray[np.uint8]]]
) -> NDArray[np.uint8]:
    """Draw the examples, a strip for each class and kind; borders are red for tumour, green for normal.

    Args:
        table: all patches.
        examples: as from pick_examples.
        images: by the same titles, uint8 (side, side, 3) for each row; thumbnails suffice.

    Returns:
        uint8 (rows, columns, 3).
    """
    across = max((len(rows) for rows in examples.values()), default=1)
    step = _THUMBNAIL_PX + _GAP_PX
    strip = _TITLE_PX + step + _TEXT_PX + _GAP_PX
    size = max(across * step + _GAP_PX, 600), len(examples) * strip + _TITLE_PX + _GAP_PX
    canvas = Pillow.new("RGB", size, (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=11)
    head = f"{len(table)} patches, {table.size_px} px at {table.mpp:g} um/px; tumour by the rule: {table.rule}"
    draw.text((_GAP_PX, _GAP_PX), head, fill=_INK, font=font)
    for number, (title, rows) in enumerate(examples.items()):
        top = _TITLE_PX + number * strip
        draw.text((_GAP_PX, top + 8), title, fill=_INK, font=font)
        for column, (row, image) in enumerate(zip(rows.tolist(), images[title], strict=True)):
            x, y = _GAP_PX + column * step, top + _TITLE_PX
            canvas.paste(Pillow.fromarray(thumbnail(image)), (x, y))
            colour = _FRAMES[str(table["class"][row])]
            draw.rectangle((x, y, x + _THUMBNAIL_PX - 1, y + _THUMBNAIL_PX - 1), outline=colour, width=2)
            share = _share(float(table["tumour_fraction"][row]))
            draw.text((x, y + _THUMBNAIL_PX + 2), share, fill=_INK, font=small)
    return np.asarray(canvas)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A patch at the size that the sheet shows, so that many large ones need not be kept."""
    small = Pillow.fromarray(image).resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Pillow.Resampling.BOX)
    return np.asarray(small)


def _share(fraction: float) -> str:
    # A few pixels of tumour must not look like none.
    return "< 1% tumour" if 0 < fraction < 0.01 else f"{fraction:.0%} tumour"
