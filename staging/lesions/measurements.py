"""The lesions of many files, measured alike and written as two tables, with outlines per heatmap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annotations.files.formats import SUFFIXES
from staging.errors import CohortError, DuplicateSlideError
from staging.lesions.files import (
    MeasuredFile,
    measure_drawing,
    measure_heatmap_file,
    measure_mask_file,
    shape_table,
)
from staging.lesions.finding import as_lesion
from staging.lesions.measured_folder import (
    LESION_TABLE,
    RECORD,
    SHAPE_TABLE,
    forget_outlines,
    outline_names,
    own_outlines,
)
from staging.lesions.outlines import write_outlines
from staging.lesions.seen import UNKNOWN, Seen, SeenRule, heatmaps_folder, look_through, seen_json
from staging.lesions.settings import LesionSettings, refuse_different, settings_of
from staging.lesions.tables import lesion_table
from wsi.readers.resolution import Mpp
from wsi.store import atomic_text, check_kept, json_text, name_fault
from wsi.store import measured as facts_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """The lesions of slides.

    Attributes:
        files: by slide name, in the order given.
        seen: how much of each slide was looked at; unknown for masks and annotations.
        faults: heatmaps that were set aside, by slide name, and why.
        settings: the settings they were found with; those of the heatmaps if there are any.
        of_heatmaps: whether there are heatmaps.
        with_holes_filled: whether holes of heatmaps and masks counted as tumour.
    """

    files: Mapping[str, MeasuredFile]
    seen: Mapping[str, Seen]
    faults: Mapping[str, str]
    settings: LesionSettings
    of_heatmaps: bool
    with_holes_filled: bool

    def to_json(self) -> dict[str, Any]:
        """Return lesions per slide and the settings, as plain values for json.dumps."""
        of_heatmaps = {name: self.seen[name] for name, one in self.files.items() if one.masks is not None}
        rules = {name: one.reduce for name, one in self.files.items() if one.tumour_value is not None}
        values = {name: one.tumour_value for name, one in self.files.items() if one.tumour_value is not None}
        return {
            "slides": len(self.files),
            "lesions": {name: len(one.shapes) for name, one in self.files.items()},
            "settings": self.settings_json(),
            "warnings": {name: list(one.warnings) for name, one in self.files.items() if one.warnings},
            **seen_json(of_heatmaps, self.faults),
            **({"tumour_value": values, "reduce": rules} if values else {}),
        }

    def settings_json(self) -> dict[str, Any]:
        """Return each setting and its source."""
        return self.settings.to_json(of_heatmap=self.of_heatmaps) | {"fill_holes": self.with_holes_filled}


def measure_files(
    paths: Sequence[Path],
    *,
    options: Mapping[str, float | None],
    model: Path | None = None,
    value: int | None = None,
    level: int = 0,
    mpp: Mpp | None = None,
    with_holes_filled: bool = False,
    seen_rule: SeenRule | None = None,
    allows_empty: bool = False,
) -> Measurements:
    """Find and measure the lesions of heatmaps, masks and annotation files.

    Args:
        paths: the files; a folder stands for its heatmaps.
        options: as for settings_of.
        model: the checkpoint that made the heatmaps.
        value: value of tumour pixels in masks; detected by default.
        level: pyramid level of masks.
        mpp: um per level-0 px of masks and annotations that do not state it.
        with_holes_filled: count holes of heatmaps and masks as tumour.
        seen_rule: which heatmaps are set aside because too much tissue went unseen; None for SeenRule().
        allows_empty: masks and annotations without tumour are not an error.

    Raises:
        CohortError: a folder has no heatmaps.
        DuplicateSlideError: two files have the same name.
        ConfigurationError: the heatmaps come from runs with different settings, or from another model.
        PathologyError: a file cannot be measured.
    """
    files = [one for path in paths for one in _within(path)]
    heatmaps = [path for path in files if _is_heatmap(path)]
    applied = {path: settings_of(path, options=options, model=model) for path in files}
    refuse_different([applied[path] for path in heatmaps])
    names: set[str] = set()
    for path in files:
        if path.stem in names:
            raise DuplicateSlideError(path, "has the same name as another file", mend="measure them one by one")
        names.add(path.stem)
    seen, faults = look_through(heatmaps, seen_rule or SeenRule())
    faults |= {name: fault for name in sorted(names) if (fault := name_fault(name)) is not None}
    found: dict[str, MeasuredFile] = {}
    for path in files:
        if path.stem in faults:
            continue
        settings = applied[path]
        gap, smallest = settings.merge_gap_um.value, settings.smallest_um.value
        if _is_heatmap(path):
            found[path.stem] = measure_heatmap_file(path, settings, with_holes_filled=with_holes_filled)
        elif path.suffix.lower() in SUFFIXES:
            found[path.stem] = measure_drawing(
                path, mpp=mpp, merge_gap_um=gap, smallest_um=smallest, allows_empty=allows_empty
            )
        else:
            found[path.stem] = measure_mask_file(
                path,
                mpp=mpp,
                value=value,
                level=level,
                merge_gap_um=gap,
                smallest_um=smallest,
                with_holes_filled=with_holes_filled,
                allows_empty=allows_empty,
            )
    return Measurements(
        files=found,
        seen={path.stem: seen.get(path, UNKNOWN) for path in files if path.stem in found},
        faults=faults,
        settings=applied[(heatmaps or files)[0]],
        of_heatmaps=bool(heatmaps),
        with_holes_filled=with_holes_filled,
    )


def write_measurements(output: Path, measured: Measurements) -> None:
    """Write lesions.csv, lesion_features.csv and lesions.json, and for each heatmap its outlines.

    lesions.json has the settings, every slide that was measured, with or without lesions, with how much of it was
    looked at, and those that were set aside.

    Raises:
        StorageError: a file cannot be written.
    """
    rule = measured.settings.rule
    shapes = {name: one.shapes for name, one in measured.files.items()}
    lesions = {name: [as_lesion(shape) for shape in found] for name, found in shapes.items()}
    earlier = own_outlines(output)
    drawn = outline_names(name for name, one in measured.files.items() if one.masks is not None)
    record = {"settings": measured.settings_json()}  # without slides: label refuses it until the tables are complete
    atomic_text(output / RECORD, json_text(record | {"outlines": sorted(earlier.union(drawn))}))
    for name, one in measured.files.items():
        if one.masks is not None:
            write_outlines(output, name, lesions[name], one.masks, rule)
    atomic_text(output / LESION_TABLE, lesion_table(lesions, rule))
    atomic_text(output / SHAPE_TABLE, shape_table(shapes, rule))
    forget_outlines(output, earlier.difference(drawn))
    check_kept([output / name for name in drawn] + [output / LESION_TABLE, output / SHAPE_TABLE])
    slides = {name: one.to_json() for name, one in measured.seen.items()}
    about = {"slides": slides, "quarantined": dict(measured.faults), "outlines": sorted(drawn)}
    about["files"] = {name: facts_of(output / name) for name in (LESION_TABLE, SHAPE_TABLE, *sorted(drawn))}
    atomic_text(output / RECORD, json_text(record | about))


def heatmaps_among(paths: Sequence[Path]) -> list[str]:
    """Return the names of the slides whose heatmaps are given, alone or in folders."""
    folders = [heatmaps_folder(path) for path in paths if path.is_dir()]
    within = [path for folder in folders for path in folder.glob("[!.]*.zarr")]
    return [path.stem for path in (*paths, *within) if _is_heatmap(path)]


def _is_heatmap(path: Path) -> bool:
    return path.suffix.lower() == ".zarr"


def _within(path: Path) -> list[Path]:
    """Return a path itself, or the heatmaps in a folder."""
    if not path.is_dir() or _is_heatmap(path):
        return [path]
    heatmaps = sorted(heatmaps_folder(path).glob("[!.]*.zarr"))
    if not heatmaps:
        raise CohortError(
            path, "is a folder without heatmaps, which end in .zarr", mend="give heatmaps, masks or annotations"
        )
    return heatmaps
