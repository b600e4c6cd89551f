"""The record of a finished slide, and whether its files still match it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staging.errors import listed
from staging.runs.analysis import SlideAnalysis
from wsi.errors import ArtefactError
from wsi.inputs import read_json
from wsi.store import atomic_text, differs, json_text, measured, provenance_of, read_sealed, sealed, storage, verify

FOLDER = "slides"
TABLES = (
    "run.json",
    "lesions.csv",
    "labels.csv",
    "stages.csv",
    "at_least.csv",
    "unscored.csv",
    "quarantine.csv",
    "warnings.csv",
    "skipped.csv",
    "bad_tiles.csv",
    "score.json",
    "report.html",
)
_EARLY = ("run.json", "skipped.csv")
_TABLES_RECORD = "tables.json"
_CHEAP_BYTES = 2**30
"""Up to this size digests are compared at every resume (about a second); beyond it only sizes, unless requested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What an earlier call left of a slide.

    Attributes:
        analysis: what it found, if every file is unchanged; else None.
        broken: the changed files, each with the reason.
    """

    analysis: SlideAnalysis | None = None
    broken: tuple[str, ...] = ()


def record_path(output: Path, slide: str) -> Path:
    """Return the path of a slide's record."""
    return output / FOLDER / f"{slide}.json"


def heatmap_path(output: Path, slide: str) -> Path:
    """Return the path of a slide's heatmap."""
    return output / "heatmaps" / f"{slide}.zarr"


def artefact_paths(output: Path, slide: str) -> tuple[Path, ...]:
    """Return the single files made for a slide: overlay and outlines."""
    lesions = output / "lesions"
    return output / "overlays" / f"{slide}.png", lesions / f"{slide}.geojson", lesions / f"{slide}.xml"


def write_record(output: Path, analysis: SlideAnalysis, made_from: Mapping[str, Any]) -> None:
    """Record that a slide is finished, with the sizes and digests of its files.

    Raises:
        StorageError: it cannot be written, or a file of the slide is missing.
    """
    files = {str(path.relative_to(output)): measured(path) for path in artefact_paths(output, analysis.slide)}
    record = {"made_from": dict(made_from), "analysis": analysis.to_json(), "files": files}
    atomic_text(record_path(output, analysis.slide), json_text(sealed(record)))


def read_record(output: Path, slide: str, made_from: Mapping[str, Any] | None, *, digests: bool) -> Recorded:
    """Read the record of a slide and compare its files with it.

    Args:
        output: the directory of the run.
        slide: the slide's id.
        made_from: the provenance it must have; None accepts any.
        digests: compare digests, not only sizes.

    Returns:
        Neither an analysis nor anything broken if there is no record, or one of another slide or configuration.
    """
    path = record_path(output, slide)
    if not path.exists():
        return Recorded()
    try:
        record = read_sealed(path)
        if made_from is not None and record["made_from"] != dict(made_from):
            is_other = record["made_from"].get("slide") != made_from.get("slide")
            return Recorded(broken=(f"{FOLDER}/{path.name} is of another file of this name",) if is_other else ())
        analysis = SlideAnalysis.from_json(record["analysis"])
        if analysis.slide != slide:
            return Recorded(broken=(f"{FOLDER}/{path.name} is of another slide",))
        files = record["files"]
        names = [str(one.relative_to(output)) for one in artefact_paths(output, slide)]
        broken = [f"{name} {why}" for name in names if (why := differs(output / name, files[name], digests=digests))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = error.reason if isinstance(error, ArtefactError) else "is malformed"
        return Recorded(broken=(f"{FOLDER}/{path.name} {reason}",))
    broken += _broken_heatmap(heatmap_path(output, slide), record["made_from"], digests=digests)
    return Recorded(broken=tuple(broken)) if broken else Recorded(analysis=analysis)


def write_tables_record(output: Path) -> None:
    """Record size and sha256 of the tables and the report of a run.

    Raises:
        StorageError: it cannot be written.
    """
    files = {name: measured(output / name) for name in TABLES if (output / name).is_file()}
    atomic_text(output / _TABLES_RECORD, json_text(files))


def forget_tables_record(output: Path) -> None:
    """Remove the record before tables are written again: a call that is killed leaves none, rather than a wrong one.

    Raises:
        StorageError: the file system refuses.
    """
    with storage(output):
        (output / _TABLES_RECORD).unlink(missing_ok=True)


def broken_tables(output: Path) -> tuple[str, ...]:
    """Return the tables that changed since the run wrote them, each with the reason; none if there are no tables."""
    path = output / _TABLES_RECORD
    # the settings and what was skipped stand there before a first call has any table
    written = [name for name in TABLES if name not in _EARLY and (output / name).is_file()]
    if not path.exists():
        return (f"{path.name} is missing, so that {listed(written)} cannot be checked",) if written else ()
    try:
        files = read_json(path)
        found = {name: differs(output / name, files[name]) for name in TABLES if name in files}
        found |= {name: f"is not in {path.name}" for name in written if name not in files}
    except (OSError, ValueError, LookupError, TypeError):
        return (f"{path.name} is malformed",)
    return tuple(f"{name} {reason}" for name, reason in found.items() if reason is not None)


def is_cheap(paths: Iterable[Path]) -> bool:
    """Return whether the digests of all files below some folders can be compared quickly."""
    total = 0
    for folder in paths:
        for path in folder.rglob("*") if folder.is_dir() else ():
            total += path.lstat().st_size
            if total > _CHEAP_BYTES:
                return False
    return True


def _broken_heatmap(path: Path, made_from: Mapping[str, Any], *, digests: bool) -> list[str]:
    try:
        verify(path, digests=digests)
    except ArtefactError as error:
        return [f"{Path(error.path or path).relative_to(path.parents[1])} {error.reason}"]
    return [] if provenance_of(path) == dict(made_from) else [f"heatmaps/{path.name} has another provenance"]
