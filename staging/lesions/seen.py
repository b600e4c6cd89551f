"""Whether the tissue of a slide was seen: what was not looked at is never called negative."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from staging.lesions.settings import COVERAGE_TOLERANCE
from wsi.coverage import Coverage
from wsi.heatmap_store import read_coverage

SEEN_COLUMNS = ("tissue_mm2", "looked_mm2", "seen")
"""Of tables of slides: how much of the tissue was looked at; ``seen`` is whole, partial or unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """How much of a slide's tissue was looked at.

    Attributes:
        seen: whole, partial (more went unseen than is tolerated), or unknown.
        tissue_mm2: area of the tissue; None if unknown.
        looked_mm2: area of the part that was looked at; None if unknown.
    """

    seen: Literal["whole", "partial", "unknown"]
    tissue_mm2: float | None = None
    looked_mm2: float | None = None

    @property
    def cells(self) -> tuple[str, str, str]:
        """Format the SEEN_COLUMNS of a table."""
        tissue, looked = ("" if area is None else f"{area:.3f}" for area in (self.tissue_mm2, self.looked_mm2))
        return tissue, looked, self.seen

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {"tissue_mm2": self.tissue_mm2, "looked_mm2": self.looked_mm2, "seen": self.seen}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Seen:
        """Read what to_json wrote.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        areas = [None if record[name] is None else float(record[name]) for name in ("tissue_mm2", "looked_mm2")]
        for area in areas:
            if area is not None and not 0 <= area < float("inf"):
                raise ValueError(f"an area is {area} mm2")
        if record["seen"] not in {"whole", "partial", "unknown"}:
            raise ValueError(f"seen is {record['seen']!r:.40}")
        return cls(seen=record["seen"], tissue_mm2=areas[0], looked_mm2=areas[1])


UNKNOWN = Seen(seen="unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRule:
    """How much of a slide's tissue may go unseen, and what happens to slides of which more did.

    Attributes:
        tolerance: share of the tissue that may go unseen.
        allow_partial: use and mark the others, instead of setting them aside.
    """

    tolerance: float = COVERAGE_TOLERANCE
    allow_partial: bool = False

    def judge(self, coverage: Coverage | None) -> Seen:
        """Judge a slide; one whose coverage was not recorded is unknown."""
        if coverage is None:
            return UNKNOWN
        return Seen(
            seen="whole" if coverage.is_whole(self.tolerance) else "partial",
            tissue_mm2=coverage.tissue_mm2,
            looked_mm2=coverage.looked_mm2,
        )

    def fault(self, coverage: Coverage | None) -> str | None:
        """Return why a slide is set aside, or None."""
        if coverage is None or self.allow_partial or coverage.is_whole(self.tolerance):
            return None
        return f"only {coverage}; --allow-partial uses what was seen"


def heatmaps_folder(path: Path) -> Path:
    """Return the folder of the heatmaps in the output of a run; any other path is itself."""
    return path / "heatmaps" if (path / "run.json").is_file() and (path / "heatmaps").is_dir() else path


def look_through(heatmaps: Iterable[Path], rule: SeenRule) -> tuple[dict[Path, Seen], dict[str, str]]:
    """Split heatmaps into those that are used, with how much of the slide they saw, and those set aside.

    Returns:
        The used ones in the given order, and why the others are not, by the slide's name.

    Raises:
        ArtefactError: one is damaged, or is no heatmap.
    """
    used: dict[Path, Seen] = {}
    faults: dict[str, str] = {}
    for path in heatmaps:
        coverage = read_coverage(path)
        fault = rule.fault(coverage)
        if fault is None:
            used[path] = rule.judge(coverage)
        else:
            faults[path.stem] = fault
    return used, faults


def seen_json(seen: Mapping[str, Seen], faults: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON in which a command reports what was not, or not known to be, seen."""
    return {
        "quarantined": dict(faults),
        "partial": [name for name, one in seen.items() if one.seen == "partial"],
        "unknown": [name for name, one in seen.items() if one.seen == "unknown"],
    }
