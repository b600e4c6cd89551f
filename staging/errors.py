"""What goes wrong between lesions and kappa: tables, labels and the layout of a cohort."""

from __future__ import annotations

from collections.abc import Iterable

from wsi.errors import PathologyError

_MOST_NAMED = 8


def listed(names: Iterable[str]) -> str:
    """Names for a message: of many the first eight, and how many more there are."""
    every = list(names)
    rest = len(every) - _MOST_NAMED
    return ", ".join(every[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")


class StagingError(PathologyError):
    """Something is wrong with a table, a label or a cohort."""


class TableError(StagingError, ValueError):
    """A CSV table cannot be read as what it is given for; ``place`` names the line."""


class UnknownLabelError(TableError):
    """A text is none of the known slide labels or patient stages; the mend lists them."""


class ConflictError(TableError):
    """A table says two different things of one patient or slide; ``place`` names both lines."""


class MissingPatientError(TableError):
    """A submission has no stage for patients of the reference."""


class SlideNameError(StagingError, ValueError):
    """The name of a slide does not say which patient and node it is."""


class CohortError(StagingError):
    """The slides of a cohort cannot be told from where they lie."""


class NoSlidesError(CohortError, FileNotFoundError):
    """There is no slide where slides were to be."""


class PackedSlidesError(CohortError, ValueError):
    """Slides are still packed in zip archives."""


class DuplicateSlideError(CohortError, ValueError):
    """Two slides of a cohort have the same name, so that their results would overwrite each other."""


class ConfigurationError(StagingError, ValueError):
    """What was asked for contradicts itself, the cohort or an output made earlier: wrong usage, nothing was touched."""


class TooManyFailuresError(StagingError, RuntimeError):
    """So many slides failed that the fault lies elsewhere than in single slides."""


class UnsupportedStageError(StagingError, ValueError):
    """The staging rules name no single category for what is known of a patient."""
