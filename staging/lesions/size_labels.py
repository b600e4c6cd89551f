"""Label slides by the sizes of the lesions in a table, and write the applied rule beside the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from staging.errors import CohortError, TableError
from staging.lesions.cell_counts import count_cells
from staging.lesions.labels import SizeRule
from staging.lesions.seen import UNKNOWN, Seen, SeenRule, heatmaps_folder, look_through, seen_json
from staging.lesions.settings import NUCLEUS_UM
from staging.lesions.tables import label_table, read_lesion_table, read_seen
from wsi.inputs import read_json
from wsi.readers.resolution import Mpp
from wsi.store import atomic_text, differs, json_text


def label_by_size(
    table: Path,
    output: Path,
    *,
    rule: SizeRule,
    heatmaps: Path | None = None,
    seen_rule: SeenRule | None = None,
    slides: Mapping[str, Path] | None = None,
    nucleus_um: float = NUCLEUS_UM,
    mpp: Mpp | None = None,
) -> dict[str, Any]:
    """Write the label of every slide of a lesions.csv, and beside it ``.rule.json`` with the applied rule.

    Slides without lesions have no row in the table: they are listed in the file beside it, lesions.json of ``lesions``
    or labels.csv of ``run``, or by their heatmaps.

    Args:
        table: lesions.csv.
        output: labels.csv.
        rule: the limits between the labels.
        heatmaps: folder of heatmaps: of tables with nothing beside them that lists the slides without lesions.
        seen_rule: which of these heatmaps are set aside because too much tissue went unseen; None for SeenRule().
        slides: the slide files by name; if given, the nuclei of small lesions are counted.
        nucleus_um: typical diameter of a nucleus.
        mpp: um per level-0 px, for slides that do not state it.

    Returns:
        What was done, for JSON.

    Raises:
        TableError: the table is not a table of lesions.
        CohortError: there are no heatmaps.
        PathologyError: as for count_cells.
        StorageError: a file cannot be written.
    """
    _refuse_changed(table)
    seen = _slides_beside(table)
    faults = _set_aside(table)
    if heatmaps is not None:
        paths = sorted(heatmaps_folder(heatmaps).glob("[!.]*.zarr"))
        if not paths:
            raise CohortError(
                heatmaps, "is no folder with heatmaps, which end in .zarr", mend="give the heatmaps of the slides"
            )
        used, unseen = look_through(paths, seen_rule or SeenRule())
        faults |= unseen
        seen |= {path.stem: one for path, one in used.items()}
    lesions = read_lesion_table(table)
    found = {name: lesions.get(name, []) for name in (*seen, *lesions) if name not in faults}
    if not (found or faults):
        raise CohortError(
            table, "has no lesions, and nothing beside it lists slides without any", mend="name their --heatmaps"
        )
    known = {name: seen.get(name, UNKNOWN) for name in found} if seen else None
    applied = {"size": "longest diameter", **asdict(rule), "lesions": _settings_beside(table)}
    atomic_text(output.with_suffix(".rule.json"), json_text(applied))
    record: dict[str, Any] = {"labels": str(output), "slides": len(found), "rule": applied}
    record |= seen_json(known or {}, faults)
    if slides is None:
        atomic_text(output, label_table(found, rule, seen=known))
        return record
    counts = count_cells(found, table, slides, rule=rule, nucleus_um=nucleus_um, mpp=mpp)
    atomic_text(output, label_table(found, rule, cell_counts=counts, seen=known))
    return record | {"cells": counts, "nucleus_um": nucleus_um}


def _slides_beside(table: Path) -> dict[str, Seen]:
    """Read the slides that were measured for a table, and how much of each was seen, if a file beside it lists them.

    Raises:
        TableError: there is such a file, but it cannot be understood.
    """
    record, labels = table.with_name("lesions.json"), table.with_name("labels.csv")
    if record.is_file():
        try:
            found = read_json(record)
            # 0.1.0 wrote neither; a call that was killed wrote outlines and perhaps a table, but no slides
            slides = found["slides"] if "outlines" in found else {}
            return {name: Seen.from_json(one) for name, one in slides.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise TableError(
                record, "does not list the slides that were measured: lesions did not finish", mend="call it again"
            ) from error
    is_of_run = table.with_name("run.json").is_file()
    return read_seen(labels) if is_of_run and labels.is_file() else {}


def _refuse_changed(table: Path) -> None:
    """Refuse a table that is not as ``lesions`` wrote it: a slide whose rows were lost would be negative.

    Raises:
        TableError: it is one.
    """
    record = table.with_name("lesions.json")
    try:
        expected = read_json(record)["files"][table.name]
        fault = differs(table, expected)
    except (OSError, ValueError, LookupError, TypeError):
        return  # without a record, or of another version, or a table of another name
    if fault is not None:
        raise TableError(table, f"{fault} since {record.name} was written", mend="call lesions again")


def _set_aside(table: Path) -> dict[str, str]:
    """Read the slides that ``lesions`` set aside when it made a table, and why."""
    try:
        found = read_json(table.with_name("lesions.json")).get("quarantined", {})
    except (OSError, ValueError, AttributeError):  # without it, or not of lesions: said where its slides are read
        return {}
    if not isinstance(found, dict):
        record = table.with_name("lesions.json")
        raise TableError(record, "does not list the slides that were set aside", mend="call lesions again")
    return {str(name): str(reason) for name, reason in found.items()}


def _settings_beside(table: Path) -> Any:  # noqa: ANN401  (what a JSON file holds)
    """Read the settings with which the lesions of a table were found, if a file beside it has them."""
    for name, key in (("lesions.json", "settings"), ("run.json", None)):
        try:
            record = read_json(table.parent / name)
            return record[key] if key else {one: record[one] for one in ("threshold", "peak", "merge_gap_um", "rule")}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
