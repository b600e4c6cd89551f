"""What decides the result of a run: nothing else may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from annotations.measures import MERGE_GAP_UM
from staging.errors import ConfigurationError
from staging.lesions.labels import SizeRule
from staging.lesions.settings import COVERAGE_TOLERANCE, SMALLEST_UM
from staging.stages.pn import EXPECTED_NODES
from wsi.inputs import read_json
from wsi.readers.base import OnBadTile
from wsi.store import digest_of

FORMAT = 1
RECORD = "run.json"
"""Holds the configuration in the output of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The whole configuration of a run; equal configurations and equal slides give equal bytes.

    Attributes:
        model: sha256 of the checkpoint file.
        mpp: um per level-0 px taken for every slide in place of what its file says, or None.
        threshold: a lesion is outlined at this probability.
        peak: and counts as a lesion when its highest probability reaches this one. Two thresholds (hysteresis), since a
            network that is trained on as much tumour as normal tissue calls too much of a slide faintly suspicious.
        merge_gap_um: deposits closer than this are one lesion.
        rule: the size limits of ITC, micro and macro, and of what is noise.
        on_bad_tile: whether a tile that cannot be decoded ends its slide ("raise") or is white and reported ("white").
        coverage_tolerance: the share of a slide's tissue that may go unseen.
        allow_partial: label slides of which more went unseen, and say so, in place of quarantining them.
        nodes: how many slides a patient must have to be staged.
    """

    model: str
    threshold: float
    peak: float
    mpp: float | None = None
    merge_gap_um: float = MERGE_GAP_UM
    rule: SizeRule = field(default_factory=lambda: SizeRule(smallest_um=SMALLEST_UM))
    nodes: int = EXPECTED_NODES
    on_bad_tile: OnBadTile = "raise"
    coverage_tolerance: float = COVERAGE_TOLERANCE
    allow_partial: bool = False

    def to_json(self) -> dict[str, Any]:
        """A JSON object that holds every setting."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def digest(self) -> str:
        """Hex sha256 of the configuration."""
        return digest_of(self.to_json())


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, within: str = "") -> list[str]:
    """Name every setting in which two configurations differ, as ``setting: theirs -> ours``."""
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, dict) and isinstance(other, dict):
            found += differences(mine, other, within=f"{within}{name}.")
        elif mine != other:
            found.append(f"{within}{name}: {_short(other)} -> {_short(mine)}")
    return found


def refuse_other_settings(output: Path, settings: Mapping[str, Any], *, record: str) -> None:
    """Refuse an output that was made with other settings, or by somebody else; nothing is touched.

    Args:
        output: a directory, which need not exist.
        settings: what decides what is written there; values that JSON can hold.
        record: the file in it that holds the settings it was made with.

    Raises:
        ConfigurationError: it is none of these settings; what differs is named.
    """
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigurationError(output, "is a file", mend="name a directory")
    path = output / record
    if not path.exists():
        strangers = [entry.name for entry in output.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise ConfigurationError(
                output, f"holds {strangers[0]} but no {record}", mend="name a new or empty directory"
            )
        return
    try:
        theirs = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(path, f"cannot be read: {error}", mend="choose another output") from error
    if not isinstance(theirs, dict):
        raise ConfigurationError(path, "holds no settings", mend="choose another output")
    # as JSON reads it, so that tuples and lists are alike
    found = differences(json.loads(json.dumps(settings)), theirs)
    if found:
        raise ConfigurationError(
            output,
            f"was made with other settings: {'; '.join(found)}",
            mend="choose another output, or the same settings; nothing was touched",
        )


def slide_provenance(fingerprint: str, config: RunConfig) -> dict[str, str]:
    """What the artefacts of one slide are made from."""
    return {"slide": fingerprint, "configuration": config.digest}


def model_name(path: Path) -> str:
    """How a report names a model."""
    return path.stem


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 32 else text
