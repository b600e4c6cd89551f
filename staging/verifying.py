"""Check whether everything in an output is unchanged."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from staging.csv_rows import read_rows
from staging.errors import CohortError, TableError, listed
from staging.lesions.measured_folder import broken_files
from staging.runs.config import RECORD
from staging.runs.records import FOLDER, TABLES, broken_tables, read_record
from staging.training.storing import broken_parts, is_patch_folder
from wsi.errors import ArtefactError
from wsi.store import DONE, verify
from wsi.threads import map_in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """How many artefacts an output has, and what is wrong with which of them."""

    artefacts: int
    broken: dict[str, tuple[str, ...]]


def refuse_changed(run: Path) -> None:
    """Refuse a run whose tables were changed, or that lost the record of a slide.

    Raises:
        CohortError: it is one; all are named.
    """
    broken = [*broken_tables(run), *(f"{name} has no record" for name in _lost(run))]
    if broken:
        raise CohortError(run, f"was changed since it was made: {listed(broken)}", mend="call sentinode run again")


def refuse_changed_run(table: Path) -> None:
    """Refuse a table of a run that was changed; tables elsewhere are not looked at.

    Raises:
        CohortError: it is one.
    """
    if _is_run(table.parent) and table.name in TABLES:
        refuse_changed(table.parent)


def verify_output(output: Path) -> Verified:
    """Compare size and sha256 of every file of a run, of patches, of measured lesions, or of all artefacts in a folder.

    Raises:
        CohortError: the folder has none of these.
    """
    if _is_run(output) or is_patch_folder(output):
        found = _broken_run(output) if _is_run(output) else broken_parts(output)
        broken = {name: reasons for name, reasons in found.items() if reasons}
        return Verified(artefacts=len(found) - 1, broken=broken)  # besides the tables
    measured = broken_files(output)
    if measured is not None:
        return Verified(artefacts=len(measured), broken={name: faults for name, faults in measured.items() if faults})
    artefacts = [output] if (output / DONE).is_file() else sorted(path.parent for path in output.glob(f"*/{DONE}"))
    if not output.exists():
        raise CohortError(output, "does not exist", mend="name the output of a command")
    if not artefacts:
        raise CohortError(output, "has no sentinode artefacts", mend="name the output of a command")
    broken = {}
    for artefact in artefacts:
        try:
            verify(artefact)
        except ArtefactError as error:
            broken[artefact.name] = (f"{Path(error.path or artefact).relative_to(artefact)} {error.reason}",)
    return Verified(artefacts=len(artefacts), broken=broken)


def _is_run(output: Path) -> bool:
    return (output / RECORD).is_file() and (output / FOLDER).is_dir()


def _broken_run(run: Path) -> dict[str, tuple[str, ...]]:
    """Return what is wrong with each slide of a run, and with its tables; all are listed."""
    names = sorted(path.stem for path in (run / FOLDER).glob("[!.]*.json"))
    checked = map_in_order(lambda name: read_record(run, name, None, digests=True).broken, names, name="verify")
    found = {**dict(zip(names, checked, strict=True)), "tables": broken_tables(run)}
    return dict.fromkeys(_lost(run), ("has no record",)) | found


def _lost(run: Path) -> list[str]:
    """Return slides that the table of labels lists, or that have a heatmap, but of which there is no record."""
    names = {path.stem for path in (run / "heatmaps").glob("[!.]*.zarr")}
    with suppress(TableError):  # it is one of the tables, which are verified for themselves
        names |= {cells[0] for _, cells in read_rows(run / "labels.csv")[1:]}
    return sorted(name for name in names if not (run / FOLDER / f"{name}.json").is_file())
