"""What is wrong with one slide of many, and the step that failed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from staging.csv_rows import csv_for_people
from staging.errors import StagingError
from wsi.errors import CheckpointError, OutputExistsError, PathologyError, StorageError

log = logging.getLogger(__name__)


class SlideFaultError(StagingError):
    """A slide cannot be processed; ``where`` is the step that failed."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Failure:
    """A quarantined slide: its id, file, the step that failed and the reason."""

    slide: str
    path: str
    step: str
    reason: str

    @classmethod
    def of(cls, slide: str, path: Path, error: BaseException) -> Failure:
        """Make a failure from a worker's exception; one that is not a slide's fault is the worker's own."""
        if isinstance(error, SlideFaultError):
            return cls(slide=slide, path=str(path), step=error.where or "", reason=error.reason)
        return cls(slide=slide, path=str(path), step="worker", reason=str(error) or type(error).__name__)

    def __str__(self) -> str:
        return f"{self.step}: {self.reason}"


def quarantine_table(failures: Iterable[Failure]) -> str:
    """Return quarantine.csv: one row per slide that could not be processed."""
    rows = ((one.slide, one.path, one.step, one.reason) for one in failures)
    return csv_for_people(("slide", "path", "step", "reason"), rows)


@contextmanager
def step(name: str, *, slide: str, path: str | Path) -> Iterator[None]:
    """Name the step at which a slide failed; storage and model errors, and faults of a step within, pass unchanged.

    Args:
        name: of the step.
        slide: name of the slide, for the log.
        path: file of the slide.

    Raises:
        SlideFaultError: anything else went wrong; unexpected errors are marked so, with a traceback in the log.
    """
    try:
        yield
    except (StorageError, CheckpointError, OutputExistsError, SlideFaultError):
        raise
    except Exception as error:
        log.debug("%s failed at %s", slide, name, exc_info=True)
        reason = str(error) if isinstance(error, PathologyError) else f"unexpected {type(error).__name__}: {error}"
        raise SlideFaultError(path, reason, where=name) from error
