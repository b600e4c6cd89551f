"""What was passed over in a folder, counted and named: a slide that is missed silently is a patient not staged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staging.cohorts.names import slide_key
from staging.csv_rows import csv_for_people
from staging.errors import listed
from wsi.errors import plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A file or folder that was passed over, and why: ``hidden``, ``unknown suffix`` and others."""

    path: Path
    reason: str


def skipped_files(folder: Path, *, suffixes: Collection[str], names: Collection[str] | None = None) -> list[Skipped]:
    """List what is passed over in a folder of files that belong to slides: annotations, heatmaps, masks.

    Args:
        folder: not searched deeper; one that is not there has nothing.
        suffixes: of the files that are read, in lower case with the dot.
        names: of the slides, by slide_key: a file of another name belongs to none of them; None if not known.
    """
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            found.append(Skipped(path=path, reason="hidden"))
        elif path.suffix.lower() not in suffixes:
            found.append(Skipped(path=path, reason="of unknown suffix"))
        elif path.is_dir() and path.suffix.lower() != ".zarr":
            found.append(Skipped(path=path, reason="folder with the name of a file"))
        elif names is not None and slide_key(path.name) not in names:
            found.append(Skipped(path=path, reason="of no slide here"))
    return found


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
