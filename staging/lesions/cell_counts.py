"""Count the cells of small lesions on the slide, for the 200-cell rule."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from annotations.annotation import Annotation, Role
from staging.errors import CohortError
from staging.lesions.finding import Lesion
from staging.lesions.labels import SizeRule
from staging.lesions.nuclei import find_nuclei
from staging.lesions.settings import NUCLEUS_UM
from wsi.errors import ResolutionError
from wsi.geometry import Window
from wsi.readers.resolution import Mpp
from wsi.slide import Slide

READ_UM = 0.5
"""um per px at which nuclei are detected; coarser slides are read at their own resolution."""

_MARGIN_UM = 20.0  # around a lesion, so that nuclei at its border keep their surroundings
_NUMBER = re.compile(r"lesion ([0-9]+)\b")


def count_cells(
    lesions: Mapping[str, Sequence[Lesion]],
    table: Path,
    slides: Mapping[str, Path],
    *,
    rule: SizeRule,
    nucleus_um: float = NUCLEUS_UM,
    mpp: Mpp | None = None,
) -> dict[str, list[int | None]]:
    """Count the nuclei of every lesion small enough to be ITC; the others need no count.

    Args:
        lesions: of each slide, as in the table.
        table: lesions.csv; the outlines written with it are beside it or in the folder ``lesions`` there.
        slides: the slide files by name.
        rule: the limits to apply.
        nucleus_um: typical diameter of a nucleus.
        mpp: um per level-0 px, for slides that do not state it.

    Returns:
        Counts by slide, in the order of its lesions; None for lesions longer than ITC.

    Raises:
        CohortError: the slide file or the outline of a lesion to count is missing.
        ResolutionError: a slide's mpp is unknown, or too coarse to see nuclei.
        PathologyError: a slide or its outlines cannot be read.
    """
    counts: dict[str, list[int | None]] = {}
    for name, found in lesions.items():
        small = [number for number, one in enumerate(found) if one.longest_diameter_um <= rule.itc_max_um]
        counts[name] = [None] * len(found)
        if not small:
            continue
        if name not in slides:
            raise CohortError(table, f"there is no slide {name}", mend="name the folder that contains it")
        outlines = _outlines(table, name)
        with Slide.open(slides[name], mpp=mpp) as slide:
            for number in small:
                if number + 1 not in outlines:
                    raise CohortError(table, f"lesion {number + 1} of {name} has no outline", mend="run lesions again")
                counts[name][number] = _count(slide, outlines[number + 1], nucleus_um)
    return counts


def _outlines(table: Path, slide: str) -> dict[int, list[Annotation]]:
    """Read the outlines of each lesion, by its number; a hole follows its outline."""
    from annotations.files.geojson import read_geojson  # noqa: PLC0415  (slow import)

    candidates = (table.parent / f"{slide}.geojson", table.parent / "lesions" / f"{slide}.geojson")
    path = next((where for where in candidates if where.is_file()), None)
    if path is None:
        raise CohortError(
            candidates[0], "is missing, which has the outlines of the lesions", mend="keep them beside lesions.csv"
        )
    outlines: dict[int, list[Annotation]] = {}
    number = 0
    for one in read_geojson(path):
        match = _NUMBER.match(one.name)
        number = int(match[1]) if match and one.role is Role.TUMOUR else number
        outlines.setdefault(number, []).append(one)
    return outlines


def _count(slide: Slide, outlines: Sequence[Annotation], nucleus_um: float) -> int:
    from annotations.painting import rasterize  # noqa: PLC0415  (slow import)

    if slide.mpp is None:
        raise ResolutionError(slide.path, "does not state its pixel size", mend="give it with --slide-mpp")
    frame = slide.frame_at(max(READ_UM, slide.mpp))
    points = np.concatenate([one.vertices for one in outlines])
    rows, columns = frame.fractions(points[:, 0], points[:, 1])
    window = Window.between(
        row=math.floor(rows.min()),
        column=math.floor(columns.min()),
        bottom=math.ceil(rows.max()),
        right=math.ceil(columns.max()),
    )
    around = frame.part(window.grown(math.ceil(_MARGIN_UM / frame.pixel_um)))
    return len(find_nuclei(slide.read_frame(around), within=rasterize(outlines, around), nucleus_um=nucleus_um))
