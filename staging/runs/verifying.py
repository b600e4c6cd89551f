"""Check whether everything in an output is unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from staging.errors import CohortError
from staging.runs.config import RECORD
from staging.runs.records import FOLDER, broken_tables, read_record
from wsi.errors import ArtefactError
from wsi.store import DONE, verify
from wsi.threads import map_in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """How many artefacts an output has, and what is wrong with which of them."""

    artefacts: int
    broken: dict[str, tuple[str, ...]]


def verify_output(output: Path) -> Verified:
    """Compare size and sha256 of every file of a run, or of all artefacts (heatmaps, features, patches) in a folder.

    Raises:
        CohortError: the folder has neither.
    """
    if (output / RECORD).is_file() and (output / FOLDER).is_dir():
        names = sorted(path.stem for path in (output / FOLDER).glob("[!.]*.json"))
        checked = map_in_order(lambda name: read_record(output, name, None, digests=True).broken, names, name="verify")
        found = {**dict(zip(names, checked, strict=True)), "tables": broken_tables(output)}
        return Verified(artefacts=len(names), broken={name: broken for name, broken in found.items() if broken})
    artefacts = [output] if (output / DONE).is_file() else sorted(path.parent for path in output.glob(f"*/{DONE}"))
    if not artefacts:
        raise CohortError(output, "has no sentinode artefacts", mend="name the output of a command")
    broken: dict[str, tuple[str, ...]] = {}
    for artefact in artefacts:
        try:
            verify(artefact)
        except ArtefactError as error:
            broken[artefact.name] = (f"{Path(error.path or artefact).relative_to(artefact)} {error.reason}",)
    return Verified(artefacts=len(artefacts), broken=broken)
