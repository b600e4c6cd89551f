"""What a run found on one slide."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from staging.lesions.finding import Lesion
from staging.lesions.labels import SlideLabel
from wsi.coverage import Coverage
from wsi.geometry import Region
from wsi.readers.base import BadTile


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideAnalysis:
    """What a run found on one slide.

    Attributes:
        slide: the slide's id.
        label: the slide's label, by the largest lesion.
        lesions: largest first.
        probability: the maximum of the heatmap.
        coverage: the tissue, and how much of it was looked at.
        is_partial: more of it went unseen than is allowed; the label holds for what was seen.
        mpp: the um per level-0 px that were used.
        bad_tiles: tiles that could not be decoded and were read as white.
        warnings: what is doubtful about the slide, in one line each.
        remade: what an earlier call left broken; not part of the record.
    """

    slide: str
    label: SlideLabel
    lesions: tuple[Lesion, ...]
    probability: float
    coverage: Coverage
    is_partial: bool
    mpp: float
    bad_tiles: tuple[BadTile, ...] = ()
    warnings: tuple[str, ...] = ()
    remade: tuple[str, ...] = ()

    @property
    def largest_um(self) -> float:
        """Longest diameter of the largest lesion; 0 without lesions."""
        return max((lesion.longest_diameter_um for lesion in self.lesions), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which from_json makes the same analysis."""
        values = {name: value for name, value in asdict(self).items() if name != "remade"}
        return {**values, "label": self.label.value, "coverage": self.coverage.to_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> SlideAnalysis:
        """Read what to_json wrote."""
        lesions = tuple(
            Lesion(**{**lesion, "centroid": tuple(lesion["centroid"]), "region": Region(**lesion["region"])})
            for lesion in record["lesions"]
        )
        coverage = Coverage.from_json(record["coverage"])
        bad = tuple(BadTile(**tile) for tile in record["bad_tiles"])
        return cls(
            **{
                **record,
                "label": SlideLabel.parse(record["label"]),
                "lesions": lesions,
                "bad_tiles": bad,
                "warnings": tuple(record.get("warnings", ())),
                "coverage": coverage,
            }
        )
