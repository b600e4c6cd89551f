"""The settings with which lesions are found, and the source of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from annotations.measures import MERGE_GAP_UM
from staging.errors import ConfigurationError
from staging.lesions.labels import ITC_MAX_UM, MICRO_MAX_UM, SizeRule
from wsi.inputs import read_json
from wsi.store import digest_of, provenance_of

THRESHOLD = 0.5
"""For a heatmap whose checkpoint is unknown."""
PEAK = 0.9
"""For a checkpoint that does not store its own."""
SMALLEST_UM = 60.0
"""Shorter lesions are noise."""
COVERAGE_TOLERANCE = 0.005
"""Share of the tissue that may go unseen: at the edge of stored tiles, a pixel of the overview is partly tissue."""
NUCLEUS_UM = 6.5
"""In sections: lymphocytes have nuclei of 5 um, metastases of 7 to 9 um (seen on level 0 of CAMELYON slides)."""

_KEY = "peak"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One number and its source: "option", "default", or a file."""

    value: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionSettings:
    """The settings with which lesions are found and labelled.

    Attributes:
        threshold: cells of at least this probability are tumour.
        peak: the probability that a lesion's highest cell must reach.
        merge_gap_um: deposits this close are one lesion.
        smallest_um: lesions with a shorter longest diameter are noise.
        itc_max_um, micro_max_um: the longest diameters of ITC and micro-metastases.
    """

    threshold: Setting
    peak: Setting
    merge_gap_um: Setting
    smallest_um: Setting
    itc_max_um: Setting
    micro_max_um: Setting

    def to_json(self, *, of_heatmap: bool = True) -> dict[str, dict[str, Any]]:
        """Return plain values for json.dumps; masks and annotations have neither threshold nor peak."""
        names = [one.name for one in fields(self) if of_heatmap or one.name not in ("threshold", "peak")]
        return {name: {"value": getattr(self, name).value, "source": getattr(self, name).source} for name in names}

    @property
    def values(self) -> tuple[float, ...]:
        """Return the numbers without their sources."""
        return tuple(getattr(self, one.name).value for one in fields(self))

    @property
    def rule(self) -> SizeRule:
        """Return the rule that labels the lesions found, which no longer include those too short."""
        return SizeRule(itc_max_um=self.itc_max_um.value, micro_max_um=self.micro_max_um.value)


def refuse_different(settings: Sequence[LesionSettings]) -> None:
    """Refuse to measure heatmaps together with different settings.

    Raises:
        ConfigurationError: the settings differ.
    """
    if len({one.values for one in settings}) > 1:
        raise ConfigurationError(
            None,
            "the heatmaps come from runs with different settings",
            mend="give --threshold, --peak, --merge-gap-um and --smallest-um, or name the heatmaps of one run",
        )


def settings_of(heatmap: Path, *, options: Mapping[str, float | None], model: Path | None = None) -> LesionSettings:
    """Find the settings for a heatmap: an option comes first, then its run or checkpoint, then the default.

    Args:
        heatmap: a published heatmap. If it is inside the output of the run that made it (``run.json`` above its folder,
            with the configuration that the heatmap names), that run's settings are known.
        options: by the names of LesionSettings; None if not given.
        model: the checkpoint that made the heatmap; its threshold and peak come before those of the run.

    Raises:
        ConfigurationError: the heatmap was made by another checkpoint.
        CheckpointError: the model is not a checkpoint.
    """
    defaults = {
        "threshold": THRESHOLD,
        "peak": PEAK,
        "merge_gap_um": MERGE_GAP_UM,
        "smallest_um": SMALLEST_UM,
        "itc_max_um": ITC_MAX_UM,
        "micro_max_um": MICRO_MAX_UM,
    }
    known = {name: Setting(value=value, source="default") for name, value in defaults.items()}
    provenance = provenance_of(heatmap) or {}
    known |= _of_heatmap(heatmap, provenance)
    known |= _of_run(heatmap, provenance)
    if model is not None:
        known |= _of_model(heatmap, provenance, model)
    known |= {name: Setting(value=value, source="option") for name, value in options.items() if value is not None}
    return LesionSettings(**known)


def peak_of(provenance: Mapping[str, Any]) -> float:
    """Return the peak stored with a checkpoint, or PEAK."""
    return float(provenance.get(_KEY, PEAK))


def with_peak(provenance: Mapping[str, Any], peak: float) -> dict[str, Any]:
    """Return the provenance with a peak added."""
    return {**provenance, _KEY: peak}


def unknown_settings(heatmap: Path, settings: LesionSettings) -> tuple[str, ...]:
    """Say that a network's heatmap is measured by defaults, as neither its run nor its checkpoint is at hand."""
    guessed = [
        f"{name} {one.value:g}"
        for name in ("threshold", "peak")
        if (one := getattr(settings, name)).source == "default"
    ]
    if not guessed or not provenance_of(heatmap):
        return ()
    return (f"is measured with {' and '.join(guessed)}, defaults: give --model, the checkpoint that made it",)


def _of_heatmap(heatmap: Path, provenance: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the threshold and peak of its checkpoint, if ``sentinode heatmap`` made it."""
    found = {name: provenance.get(name) for name in ("threshold", "peak")}
    return {
        name: Setting(value=float(value), source=str(heatmap))
        for name, value in found.items()
        if isinstance(value, int | float) and 0 <= value <= 1
    }


def _of_run(heatmap: Path, provenance: Mapping[str, Any]) -> dict[str, Setting]:
    """Return the settings of the run whose output the heatmap is in; empty if another run made it."""
    record = heatmap.absolute().parent.parent / "run.json"
    try:
        config = read_json(record)
        if digest_of(config) != provenance.get("configuration"):
            return {}
        values = {name: float(config[name]) for name in ("threshold", "peak", "merge_gap_um")}
        values |= {name: float(config["rule"][name]) for name in ("smallest_um", "itc_max_um", "micro_max_um")}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if "configuration" not in provenance:
            return {}
        mend = "call sentinode run again"
        raise ConfigurationError(
            record, "does not say the settings of the run that made the heatmap", mend=mend
        ) from error
    return {name: Setting(value=value, source=str(record)) for name, value in values.items()}


def _of_model(heatmap: Path, provenance: Mapping[str, Any], model: Path) -> dict[str, Setting]:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    checkpoint = load_checkpoint(model)
    if provenance.get("model", checkpoint.digest) != checkpoint.digest:
        raise ConfigurationError(heatmap, f"was not made by {model}", mend="name the checkpoint that made it")
    return {
        "threshold": Setting(value=checkpoint.threshold, source=str(model)),
        "peak": Setting(value=peak_of(checkpoint.provenance), source=str(model)),
    }
