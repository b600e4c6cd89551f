"""The configuration of a run: everything that decides its result."""

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
from wsi.readers.resolution import Mpp
from wsi.store import digest_of

FORMAT = 1
RECORD = "run.json"
"""File with the configuration in the output of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The configuration of a run; equal configurations and equal slides give equal bytes.

    Attributes:
        model: sha256 of the checkpoint file.
        mpp: um per level-0 px of slides that state none, or for all.
        threshold: the probability at which a lesion is outlined.
        peak: the probability that its highest cell must reach. Two thresholds (hysteresis), since a network trained on
            as much tumour as normal tissue finds too much of a slide faintly suspicious.
        merge_gap_um: deposits closer than this are one lesion.
        rule: the size limits of ITC, micro and macro, and of noise.
        on_bad_tile: whether a tile that cannot be decoded fails its slide ("raise") or is read as white and reported
            ("white").
        coverage_tolerance: the share of a slide's tissue that may go unseen.
        allow_partial: label slides of which more went unseen, and mark them, instead of quarantining them.
        nodes: number of slides a patient needs to be staged.
    """

    model: str
    threshold: float
    peak: float
    mpp: Mpp | None = None
    merge_gap_um: float = MERGE_GAP_UM
    rule: SizeRule = field(default_factory=lambda: SizeRule(smallest_um=SMALLEST_UM))
    nodes: int = EXPECTED_NODES
    on_bad_tile: OnBadTile = "raise"
    coverage_tolerance: float = COVERAGE_TOLERANCE
    allow_partial: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with every setting."""
        return {"format": FORMAT, **asdict(self)}

    @property
    def digest(self) -> str:
        """Return the hex sha256 of the configuration."""
        return digest_of(self.to_json())


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, within: str = "") -> list[str]:
    """List every setting in which two configurations differ, as ``setting: theirs -> ours``."""
    found = []
    for name in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, dict) and isinstance(other, dict):
            found += differences(mine, other, within=f"{within}{name}.")
        elif mine != other:
            found.append(f"{within}{name}: {_short(other)} -> {_short(mine)}")
    return found


def refuse_other_settings(
    output: Path, settings: Mapping[str, Any], *, record: str, overwrite: bool | None = None
) -> bool:
    """Refuse an output made with other settings, or by another program; nothing is touched.

    Args:
        output: a directory, which need not exist.
        settings: what decides the contents of the output; JSON values.
        record: the file in it with the settings it was made with.
        overwrite: accept one with other settings; None if the command does not offer that.

    Returns:
        Whether it was made with other settings, which only ``overwrite`` allows.

    Raises:
        ConfigurationError: it was made with other settings, which are listed, or is not an output.
    """
    if not output.exists():
        return False
    if not output.is_dir():
        raise ConfigurationError(output, "is a file", mend="name a directory")
    path = output / record
    if not path.exists():
        strangers = [entry.name for entry in output.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise ConfigurationError(
                output, f"contains {strangers[0]} but no {record}", mend="name a new or empty directory"
            )
        return False
    try:
        theirs = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(path, f"cannot be read: {error}", mend="choose another output") from error
    if not isinstance(theirs, dict):
        raise ConfigurationError(path, "contains no settings", mend="choose another output")
    if 2 * len(settings.keys() & theirs.keys()) < len(settings):
        raise ConfigurationError(path, "has settings of something else", mend="choose another output")
    # round trip through JSON, so that tuples equal lists
    found = differences(json.loads(json.dumps(settings)), theirs)
    if found and not overwrite:
        mend = "choose another output, or the same settings" + ("" if overwrite is None else ", or give --overwrite")
        raise ConfigurationError(
            output, f"was made with other settings: {'; '.join(found)}", mend=f"{mend}; nothing was touched"
        )
    return bool(found)


def slide_provenance(fingerprint: str, config: RunConfig) -> dict[str, str]:
    """Return the provenance of one slide's artefacts."""
    return {"slide": fingerprint, "configuration": config.digest}


def model_name(path: Path) -> str:
    """Return the name of a model for a report."""
    return path.stem


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 32 else text
