"""The tables that a run writes besides the organisers': lesions.csv, labels.csv, quarantine.csv, unscored.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from staging.csv_rows import csv_text, decimal, read_rows, refuse_repeated
from staging.errors import TableError
from staging.lesions.finding import Lesion
from staging.lesions.labels import SizeRule, slide_label
from staging.lesions.seen import SEEN_COLUMNS, Seen

LESION_COLUMNS = ("slide", "lesion", "class", "longest_diameter_um", "area_um2", "x", "y", "probability")
LABEL_COLUMNS = ("slide", "label", "largest_um", "lesions", "lesion_probability")


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
    seen: Mapping[str, Seen] | None = None,
    probabilities: Mapping[str, float] | None = None,
) -> str:
    """Format one row per slide: its label, the length of the largest lesion, which decided it, how many there are, and
    the highest probability in one, 0 without.

    If cells were counted, one more column has the most in a lesion, empty for slides without a count. With ``seen``
    (of each slide) the SEEN_COLUMNS follow; with ``probabilities``, the maximum of each heatmap, ``probability``.
    """  # noqa: D205  (one sentence)
    header = (*LABEL_COLUMNS, *(("most_cells",) if cell_counts is not None else ()))
    header += SEEN_COLUMNS if seen is not None else ()
    header += ("probability",) if probabilities is not None else ()
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
        if seen is not None:
            row += seen[slide].cells
        if probabilities is not None:
            row += (f"{probabilities[slide]:.6f}",)
        rows.append(row)
    return csv_text(header, rows)


def read_seen(path: Path) -> dict[str, Seen]:
    """Read how much of each slide was seen from a label table, by the slide's name there; empty if it does not say.

    Raises:
        TableError: it cannot be read, or a row says something else; it names the line.
    """
    (first, header), *rows = read_rows(path) or ((0, ()),)
    names = [cell.lower() for cell in header]
    refuse_repeated(path, names, first)
    if not {"slide", "seen"} <= set(names):
        return {}
    found: dict[str, Seen] = {}
    for line, cells in rows:
        row = dict(zip(names, cells, strict=False))
        areas = {name: row.get(name) or None for name in ("tissue_mm2", "looked_mm2")}
        try:
            seen = Seen.from_json({**areas, "seen": row.get("seen", "nothing").lower() or "unknown"})
        except ValueError as error:
            raise TableError(
                path,
                f"does not say how much of {row['slide']} was seen: {error}",
                where=f"line {line}",
                mend="write whole, partial or unknown",
            ) from error
        if row["slide"] not in found or seen.seen == "partial":  # of several rows the least counts
            found[row["slide"]] = seen
    return found


def read_lesion_table(path: Path) -> dict[str, list[Lesion]]:
    """Read the lesions of a lesions.csv by slide; regions are not in the table, so they are one pixel at the centroid.

    Raises:
        TableError: missing, another header, or an invalid number; it names the line.
    """
    from wsi.geometry import Region  # noqa: PLC0415

    (_, header), *rows = read_rows(path) or ((0, ()),)
    if header != LESION_COLUMNS:
        raise TableError(
            path, "is not a lesion table", where="line 1", mend=f"its header is {','.join(LESION_COLUMNS)}"
        )
    lesions: dict[str, list[Lesion]] = {}
    for line, cells in rows:
        numbers = [number for text in cells[3:] if (number := decimal(text)) is not None]
        if len(cells) != len(LESION_COLUMNS) or len(numbers) != len(LESION_COLUMNS) - 3:
            raise TableError(path, f"is not a lesion: {','.join(cells):.100}", where=f"line {line}")
        longest, area, x, y, probability = numbers
        if min(longest, area) < 0:
            raise TableError(path, f"has an impossible size, {cells[3]} um", where=f"line {line}")
        lesions.setdefault(cells[0], []).append(
            Lesion(
                longest_diameter_um=longest,
                area_um2=area,
                centroid=(x, y),
                probability=probability,
                region=Region(x=math.floor(x), y=math.floor(y), width=1, height=1),
            )
        )
    return lesions
