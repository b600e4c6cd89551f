"""The tables that a run writes besides the organisers': lesions.csv, labels.csv, quarantine.csv, unscored.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from staging.csv_rows import csv_text, read_rows
from staging.errors import TableError
from staging.lesions.finding import Lesion
from staging.lesions.labels import SizeRule, slide_label
from wsi.coverage import Coverage
from wsi.inputs import read_text

LESION_COLUMNS = ("slide", "lesion", "class", "longest_diameter_um", "area_um2", "x", "y", "probability")
LABEL_COLUMNS = ("slide", "label", "largest_um", "lesions", "probability")
COVERAGE_COLUMNS = ("tissue_mm2", "looked_mm2", "seen")
"""How much of the tissue was looked at; ``seen`` is whole or partial."""


def lesion_table(lesions: Mapping[str, Sequence[Lesion]], rule: SizeRule) -> str:
    """Format one row per lesion: sizes in um, centroid in level-0 px; a slide without lesions has no row."""
    rows = (
        (
            slide,
            number,
            rule.label(lesion.longest_diameter_um).value,
            f"{lesion.longest_diameter_um:.1f}",
            f"{lesion.area_um2:.0f}",
            f"{lesion.centroid[0]:.1f}",
            f"{lesion.centroid[1]:.1f}",
            f"{lesion.probability:.4f}",
        )
        for slide, found in lesions.items()
        for number, lesion in enumerate(found, start=1)
    )
    return csv_text(LESION_COLUMNS, rows)


def label_table(
    lesions: Mapping[str, Sequence[Lesion]],
    rule: SizeRule,
    *,
    cell_counts: Mapping[str, Sequence[int | None]] | None = None,
    coverages: Mapping[str, tuple[Coverage, bool]] | None = None,
) -> str:
    """Format one row per slide: its label, and the largest lesion, which decided it.

    If cells were counted, one more column has the most in a lesion, empty for slides without a count. With
    ``coverages`` (each slide's, and whether it was seen only in part) the COVERAGE_COLUMNS follow.
    """
    header = (*LABEL_COLUMNS, *(("most_cells",) if cell_counts is not None else ()))
    header += COVERAGE_COLUMNS if coverages is not None else ()
    rows = []
    for slide, found in lesions.items():
        counts = None if cell_counts is None else cell_counts[slide]
        row: tuple[object, ...] = (
            slide,
            slide_label(found, rule, cell_counts=counts).value,
            f"{max((lesion.longest_diameter_um for lesion in found), default=0.0):.1f}",
            len(found),
            f"{max((lesion.probability for lesion in found), default=0.0):.4f}",
        )
        if counts is not None:
            row += (max((count for count in counts if count is not None), default=""),)
        if coverages is not None:
            coverage, is_partial = coverages[slide]
            seen = "partial" if is_partial else "whole"
            row += (f"{coverage.tissue_mm2:.3f}", f"{coverage.looked_mm2:.3f}", seen)
        rows.append(row)
    return csv_text(header, rows)


def read_partial(path: Path) -> frozenset[str]:
    """Return the slides of a label table that were seen only in part, as it names them; none if it does not say.

    Raises:
        TableError: it cannot be read.
    """
    (_, header), *rows = read_rows(path) or ((0, ()),)
    names = [cell.lower() for cell in header]
    if not {"slide", "seen"} <= set(names):
        return frozenset()
    slide, seen = names.index("slide"), names.index("seen")
    return frozenset(cells[slide] for _, cells in rows if len(cells) > seen and cells[seen].lower() == "partial")


def read_lesion_table(path: Path) -> dict[str, list[Lesion]]:
    """Read the lesions of a lesions.csv by slide; regions are not in the table, so they are one pixel at the centroid.

    Raises:
        TableError: missing, another header, or an invalid number; it names the line.
    """
    from wsi.geometry import Region  # noqa: PLC0415

    try:
        lines = list(csv.reader(io.StringIO(read_text(path))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(path, f"cannot be read: {error}", mend="give the lesions.csv of a run") from error
    if not lines or tuple(lines[0]) != LESION_COLUMNS:
        raise TableError(
            path, "is not a lesion table", where="line 1", mend=f"its header is {','.join(LESION_COLUMNS)}"
        )
    lesions: dict[str, list[Lesion]] = {}
    for number, row in enumerate(lines[1:], start=2):
        if not row:
            continue
        try:
            slide, _, _, *texts = row
            longest, area, x, y, probability = (float(text) for text in texts)
        except ValueError as error:
            raise TableError(path, f"is not a lesion: {error}", where=f"line {number}") from error
        if not (0 <= longest < math.inf and 0 <= area < math.inf):
            raise TableError(path, f"has an impossible size, {texts[0]} um", where=f"line {number}")
        lesions.setdefault(slide, []).append(
            Lesion(
                longest_diameter_um=longest,
                area_um2=area,
                centroid=(x, y),
                probability=probability,
                region=Region(x=math.floor(x), y=math.floor(y), width=1, height=1),
            )
        )
    return lesions
