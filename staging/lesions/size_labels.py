"""Label slides by the sizes of the lesions in a table, and write the applied rule beside the labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from staging.lesions.cell_counts import count_cells
from staging.lesions.labels import SizeRule
from staging.lesions.settings import NUCLEUS_UM
from staging.lesions.tables import label_table, read_lesion_table
from wsi.inputs import read_json
from wsi.store import atomic_text, json_text


def label_by_size(
    table: Path,
    output: Path,
    *,
    rule: SizeRule,
    heatmaps: Path | None = None,
    slides: Mapping[str, Path] | None = None,
    nucleus_um: float = NUCLEUS_UM,
    mpp: float | None = None,
) -> dict[str, Any]:
    """Write the label of every slide of a lesions.csv, and beside it ``.rule.json`` with the applied rule.

    Args:
        table: lesions.csv.
        output: labels.csv.
        rule: the limits between the labels.
        heatmaps: folder of heatmaps: slides without lesions have no row in the table and are labelled negative.
        slides: the slide files by name; if given, the nuclei of small lesions are counted.
        nucleus_um: typical diameter of a nucleus.
        mpp: um per level-0 px, for slides that do not state it.

    Returns:
        What was done, for JSON.

    Raises:
        TableError: the table is not a table of lesions.
        PathologyError: as for count_cells.
        StorageError: a file cannot be written.
    """
    found = read_lesion_table(table)
    if heatmaps is not None:
        found = {path.stem: [] for path in sorted(heatmaps.glob("*.zarr"))} | found
    applied = {"size": "longest diameter", **asdict(rule), "lesions": _settings_beside(table)}
    atomic_text(output.with_suffix(".rule.json"), json_text(applied))
    record: dict[str, Any] = {"labels": str(output), "slides": len(found), "rule": applied}
    if slides is None:
        atomic_text(output, label_table(found, rule))
        return record
    counts = count_cells(found, table, slides, rule=rule, nucleus_um=nucleus_um, mpp=mpp)
    atomic_text(output, label_table(found, rule, cell_counts=counts))
    return record | {"cells": counts, "nucleus_um": nucleus_um}


def _settings_beside(table: Path) -> Any:  # noqa: ANN401  (what a JSON file holds)
    """Read the settings with which the lesions of a table were found, if a file beside it has them."""
    for name, key in (("lesions.json", "settings"), ("run.json", None)):
        try:
            record = read_json(table.parent / name)
            return record[key] if key else {one: record[one] for one in ("threshold", "peak", "merge_gap_um", "rule")}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
