"""What a user should know of the slides of a cohort before trusting what is measured on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from staging.cohorts.camelyon import SlideFile
from staging.csv_rows import csv_for_people
from staging.errors import listed
from wsi.errors import SlideError
from wsi.readers.resolution import Mpp
from wsi.slide import Slide

SlideWarnings = Mapping[str, Sequence[str]]
"""The warnings of each slide that has any, by its name."""

_AT_A_TIME = 8  # opening waits for the file system, not for a core


def find_warnings(slides: Sequence[SlideFile], *, mpp: Mpp | None = None) -> dict[str, list[str]]:
    """Open every slide and return the warnings of those that have any; one that does not open is left to its work.

    Args:
        slides: what find_slides found.
        mpp: um per level-0 px of slides that state none, or for all.
    """

    def read(slide: SlideFile) -> list[str]:
        try:
            with Slide.open(slide.path, mpp=mpp) as opened:
                return list(opened.warnings)
        except SlideError:
            return []

    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="warnings") as threads:
        found = zip(slides, threads.map(read, slides), strict=True)
        return {slide.name: doubts for slide, doubts in found if doubts}


def warning_lines(warnings: SlideWarnings) -> list[str]:
    """Return one line for each warning, with the slides that have it."""
    slides: dict[str, list[str]] = {}
    for slide, doubts in sorted(warnings.items()):
        for doubt in doubts:
            slides.setdefault(doubt, []).append(slide)
    return [f"{listed(names)}: {doubt}" for doubt, names in slides.items()]


def warning_table(warnings: SlideWarnings) -> str:
    """Return warnings.csv: one row per slide and warning."""
    rows = ((slide, doubt) for slide, doubts in sorted(warnings.items()) for doubt in doubts)
    return csv_for_people(("slide", "warning"), rows)
