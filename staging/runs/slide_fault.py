"""What is wrong with one slide of many, and at which step it showed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from staging.errors import StagingError
from wsi.errors import CheckpointError, PathologyError, StorageError

log = logging.getLogger(__name__)


class SlideFaultError(StagingError):
    """A slide cannot be worked on; ``where`` is the step that failed."""


@contextmanager
def step(name: str, *, slide: str, path: str | Path) -> Iterator[None]:
    """Say at which step a slide failed; failures of the output side and of the model pass unchanged.

    Args:
        name: of the step.
        slide: its name, for the log.
        path: its file.

    Raises:
        SlideFaultError: whatever else went wrong; unexpected errors are named as such, with a traceback in the log.
    """
    try:
        yield
    except (StorageError, CheckpointError):
        raise
    except Exception as error:
        log.debug("%s failed at %s", slide, name, exc_info=True)
        reason = str(error) if isinstance(error, PathologyError) else f"unexpected {type(error).__name__}: {error}"
        raise SlideFaultError(path, reason, where=name) from error
