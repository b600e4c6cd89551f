"""What a run keeps of a finished slide, and whether it is still true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staging.runs.analysis import SlideAnalysis
from wsi.errors import ArtefactError
from wsi.inputs import read_json
from wsi.store import atomic_text, differs, digest_of, json_text, measured, provenance_of, verify

FOLDER = "slides"
_CHEAP_BYTES = 2**30
"""Digests of so much are compared at every resume (about a second); of more only sizes, unless asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What an earlier call left of a slide.

    Attributes:
        analysis: what it found, where all of it is still as it was made; else None.
        broken: what is not, each with the reason.
    """

    analysis: SlideAnalysis | None = None
    broken: tuple[str, ...] = ()


def record_path(output: Path, slide: str) -> Path:
    """The record of a slide."""
    return output / FOLDER / f"{slide}.json"


def heatmap_path(output: Path, slide: str) -> Path:
    """The heatmap of a slide."""
    return output / "heatmaps" / f"{slide}.zarr"


def artefact_paths(output: Path, slide: str) -> tuple[Path, ...]:
    """The single files that are made of a slide: overlay and outlines."""
    lesions = output / "lesions"
    return output / "overlays" / f"{slide}.png", lesions / f"{slide}.geojson", lesions / f"{slide}.xml"


def write_record(output: Path, analysis: SlideAnalysis, made_from: Mapping[str, Any]) -> None:
    """Say that a slide is finished, and what its files are.

    Raises:
        StorageError: it cannot be written, or a file of the slide is gone.
    """
    files = {str(path.relative_to(output)): measured(path) for path in artefact_paths(output, analysis.slide)}
    record = {"made_from": dict(made_from), "analysis": analysis.to_json(), "files": files}
    atomic_text(record_path(output, analysis.slide), json_text(record | {"digest": digest_of(record)}))


def read_record(output: Path, slide: str, made_from: Mapping[str, Any] | None, *, digests: bool) -> Recorded:
    """What is kept of a slide.

    Args:
        output: the run's directory.
        slide: the slide's id.
        made_from: what it has to be made from; None takes whatever it says.
        digests: compare digests, too, and not only sizes.

    Returns:
        Neither analysis nor anything broken where there is no record, or one of another slide or configuration.
    """
    path = record_path(output, slide)
    if not path.exists():
        return Recorded()
    try:
        record = read_json(path)
        if record.pop("digest") != digest_of(record):
            return Recorded(broken=(f"{FOLDER}/{path.name} was changed",))
        if made_from is not None and record["made_from"] != dict(made_from):
            return Recorded()
        analysis = SlideAnalysis.from_json(record["analysis"])
        files = record["files"]
        names = [str(one.relative_to(output)) for one in artefact_paths(output, slide)]
        broken = [f"{name} {why}" for name in names if (why := differs(output / name, files[name], digests=digests))]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return Recorded(broken=(f"{FOLDER}/{path.name} is malformed",))
    broken += _broken_heatmap(heatmap_path(output, slide), record["made_from"], digests=digests)
    return Recorded(broken=tuple(broken)) if broken else Recorded(analysis=analysis)


def is_cheap(paths: Iterable[Path]) -> bool:
    """Whether digests of all files below some folders are quickly compared."""
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
    return [] if provenance_of(path) == dict(made_from) else [f"heatmaps/{path.name} is of something else"]
