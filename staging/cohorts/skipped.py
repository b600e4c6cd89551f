"""What was passed over in a folder, counted and named: a slide that is missed silently is a patient not staged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staging.csv_rows import csv_for_people
from staging.errors import listed
from wsi.errors import plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file or folder that was passed over, and why: ``hidden``, ``unknown suffix`` and others."""

    path: Path
    reason: str


def skipped_beside(taken: Collection[Path], folder: Path) -> tuple[Skipped, ...]:
    """Return what was not taken of the entries of one folder; the program's own lock is none."""
    suffixes = {path.suffix for path in taken}
    return tuple(
        Skipped(path=entry, reason=_reason(entry, suffixes))
        for entry in sorted(folder.iterdir())
        if entry not in taken and entry.name != ".lock"
    )


def skipped_heatmaps(folder: Path) -> tuple[Skipped, ...]:
    """Return what in a folder is no heatmap."""
    return skipped_beside(list(folder.glob("*.zarr")), folder)


def _reason(entry: Path, suffixes: Collection[str]) -> str:
    if entry.name.startswith("."):
        return "hidden"
    return "folder with the name of a file" if entry.is_dir() and entry.suffix in suffixes else "of unknown suffix"


def skipped_text(skipped: Sequence[Skipped]) -> str:
    """Return one line: the first names and the number of each reason; empty if nothing was skipped."""
    if not skipped:
        return ""
    parts = (f"{len(names)} {reason} ({listed(names)})" for reason, names in _by_reason(skipped).items())
    return f"skipped: {'; '.join(parts)}"


def skipped_json(skipped: Sequence[Skipped]) -> dict[str, Any]:
    """Return count and first names by reason, for json.dumps."""
    return {reason: {"count": len(names), "names": listed(names)} for reason, names in _by_reason(skipped).items()}


def skipped_table(skipped: Iterable[Skipped]) -> str:
    """Return skipped.csv: one row per file or folder."""
    return csv_for_people(("path", "reason"), ((plain(str(one.path)), one.reason) for one in skipped))


def _by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        reasons.setdefault(one.reason, []).append(plain(one.path.name))
    return dict(sorted(reasons.items()))
