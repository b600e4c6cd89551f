"""What goes wrong between lesions and kappa: tables, labels and the layout of a cohort."""

from __future__ import annotations

from collections.abc import Iterable

from wsi.errors import PathologyError

_MOST_NAMED = 8


def listed(names: Iterable[str]) -> str:
    """List names for a message: the first eight, and how many more there are."""
    every = list(names)
    rest = len(every) - _MOST_NAMED
    return ", ".join(every[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


class StagingError(PathologyError):
    """Something is wrong with a table, a label or a cohort."""


class TableError(StagingError, ValueError):
    """A CSV table is not of the expected form; ``where`` is the line."""


class UnknownLabelError(TableError):
    """A text is not a known slide label or patient stage; the mend lists the known ones."""


class ConflictError(TableError):
    """A table says two different things about one patient or slide; ``where`` names both lines."""


class MissingPatientError(TableError):
    """A submission has no stage for patients of the reference."""


class SlideNameError(StagingError, ValueError):
    """The name of a slide does not give its patient and node."""


class CohortError(StagingError):
    """The files of a cohort are missing, duplicated or do not belong together."""


class NoSlidesError(CohortError, FileNotFoundError):
    """There are no slides where slides were expected."""


class PackedSlidesError(CohortError, ValueError):
    """Slides are still packed in zip archives."""


class DuplicateSlideError(CohortError, ValueError):
    """Two slides of a cohort have the same name: their results would overwrite each other."""


class ConfigurationError(StagingError, ValueError):
    """A request contradicts itself, the cohort or an earlier output: wrong usage, nothing was touched."""


class TooManyFailuresError(StagingError, RuntimeError):
    """So many slides failed that single slides cannot be the cause."""


class UnsupportedStageError(StagingError, ValueError):
    """The staging rules give no single category for what is known about a patient."""
