"""What earlier calls of a run found on slides that this call was not given, and how it is forgotten."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from staging.csv_rows import read_rows
from staging.errors import TableError
from staging.runs.analysis import SlideAnalysis
from staging.runs.records import FOLDER, artefact_paths, heatmap_path, read_record, record_path
from staging.runs.slide_fault import Failure
from wsi.heatmap_store import KIND
from wsi.store import kind_of, storage

log = logging.getLogger(__name__)
QUARANTINE = "quarantine.csv"
_FORMULA = ("'=", "'+", "'-", "'@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Slides of earlier calls: those that are done, and those that are quarantined."""

    analyses: tuple[SlideAnalysis, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def slides(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(sorted([*(one.slide for one in self.analyses), *(one.slide for one in self.failures)]))


def earlier_slides(output: Path, given: Collection[str]) -> list[str]:
    """Return the names of the slides with a record that are not given to this call."""
    return sorted({path.stem for path in (output / FOLDER).glob("[!.]*.json")}.difference(given))


def earlier_results(output: Path, given: Collection[str], *, digests: bool) -> Earlier:
    """Read what earlier calls with the same settings found on slides that are not given to this one.

    A quarantined slide whose file is gone is dropped, so that a bad slide can be taken out of a cohort.

    Args:
        output: the directory of the run.
        given: names of the slides that this call works on.
        digests: compare digests, not only sizes, of what was left.
    """
    analyses, failures = [], []
    names = earlier_slides(output, given)
    for name in names:
        recorded = read_record(output, name, None, digests=digests)
        if recorded.analysis is not None:
            analyses.append(recorded.analysis)
        else:
            reason = f"{'; '.join(recorded.broken)}; give the slide again to make it again"
            failures.append(Failure(slide=name, path=str(record_path(output, name)), step="record", reason=reason))
    known = {*given, *names}
    for failure in _quarantined(output / QUARANTINE):
        if failure.slide in known or failure.step == "record":
            continue
        if Path(failure.path).exists():
            failures.append(failure)
        else:
            log.warning("%s: was quarantined and its file is gone: it is dropped", failure.slide)
    return Earlier(analyses=tuple(analyses), failures=tuple(failures))


def forget_slides(output: Path) -> None:
    """Remove what earlier calls made of their slides; files of others stay.

    Raises:
        StorageError: the file system refuses.
    """
    for name in earlier_slides(output, ()):
        heatmap = heatmap_path(output, name)
        with storage(heatmap):
            if not heatmap.is_symlink() and kind_of(heatmap) == KIND:
                shutil.rmtree(heatmap)
        for path in (*artefact_paths(output, name), record_path(output, name)):
            with storage(path):
                path.unlink(missing_ok=True)
    with storage(output / QUARANTINE):
        (output / QUARANTINE).unlink(missing_ok=True)


def _quarantined(table: Path) -> list[Failure]:
    """Read an earlier quarantine.csv; rows that it did not write are passed over."""
    try:
        rows = read_rows(table)[1:] if table.exists() else ()
    except TableError as error:
        log.warning("%s", error)
        return []
    cells = ([cell[1:] if cell.startswith(_FORMULA) else cell for cell in row] for _, row in rows if len(row) == 4)
    return [Failure(slide=slide, path=path, step=step, reason=reason) for slide, path, step, reason in cells]
