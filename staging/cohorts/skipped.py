"""What in a folder was not taken for what was looked for: counted and named, so that nothing is left out in silence."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from staging.csv_rows import csv_for_people
from staging.errors import listed
from wsi.errors import plain

_NAMED = 8

HIDDEN, FOLDER, OTHER_KIND = "hidden", "folder named like a file", "another kind of file"
MASK, PHOTOGRAPH, ARCHIVE = "mask or annotations", "photograph beside slides", "unpacked archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Entries of folders that were skipped: (reason, name), by reason and name; folders end in a slash."""

    entries: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, entries: Iterable[tuple[str, str]]) -> Skipped:
        """Sort entries."""
        return cls(entries=tuple(sorted(set(entries))))

    @property
    def by_reason(self) -> dict[str, list[str]]:
        """Return the names by reason."""
        return {reason: [name for _, name in found] for reason, found in groupby(self.entries, lambda one: one[0])}

    def __str__(self) -> str:
        found = self.by_reason.items()
        return "; ".join(f"{reason} ({len(names)}): {plain(listed(names))}" for reason, names in found)

    def to_json(self) -> dict[str, Any]:
        """Return how many were skipped for each reason, and the first names."""
        found = self.by_reason.items()
        return {
            reason: {"count": len(names), "names": [plain(name) for name in names[:_NAMED]]} for reason, names in found
        }

    def table(self) -> str:
        """Format one row per entry."""
        return csv_for_people(("reason", "name"), self.entries)


def skipped_beside(taken: Collection[Path], folder: Path, *, own: Collection[str] = ()) -> Skipped:
    """Return the entries of one folder that were not taken.

    Args:
        taken: those that were.
        folder: where these are.
        own: names of files that the program itself writes there.
    """
    names = {path.name for path in taken}
    return Skipped.of(
        (_reason(entry, names), f"{entry.name}/" if entry.is_dir() else entry.name)
        for entry in folder.iterdir()
        if entry.name not in names and entry.name not in own
    )


def _reason(entry: Path, taken: Collection[str]) -> str:
    if entry.name.startswith("."):
        return HIDDEN
    suffixes = {Path(name).suffix for name in taken}
    return FOLDER if entry.is_dir() and entry.suffix in suffixes else OTHER_KIND
