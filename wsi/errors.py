"""Errors of one slide or artefact: each names the file, the reason and the mend."""

from __future__ import annotations

import re
import unicodedata
from os import PathLike, fspath
from typing import Any

_URL = re.compile(r"([a-z][a-z0-9+.-]+:/{1,2})(?:[^/@\s]*@)?([^\s?#]*)(?:[?#]\S*?(?=[:,.;)]*(?:\s|$)))?", re.IGNORECASE)


_MOST_CHARACTERS = 4000
"""Of a message: more than any list of names that ``listed`` makes."""


def without_secrets(text: str) -> str:
    """Text whose URLs are without user, password, query (signatures) and fragment."""
    return _URL.sub(r"\1\2", text) if ":/" in text else text


def plain(text: str) -> str:
    """Text that can be shown and logged: control characters and bytes that are not UTF-8 are written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        one
        if one.isprintable() or unicodedata.category(one) == "Zs"
        else one.encode("unicode_escape", "surrogatepass").decode("ascii")
        for one in text
    )


def shortened(text: str) -> str:
    """The beginning of a text that is longer than any list of names: a cell of a table may be as long as the table."""
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"


class PathologyError(Exception):
    """Root of every error that sentinode raises on purpose.

    Args:
        path: the file (or table, or directory) at fault; None if no file is.
        reason: what is wrong, one clause without a full stop.
        where: where in the file (``level 0, tile row 3, column 7``; ``line 12``).
        mend: what the user can do about it, one clause.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None,
        reason: str,
        *,
        where: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__()
        self.path = None if path is None else fspath(path)
        self.reason = reason
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.path, self.where) if part)
        text = shortened(f"{where}: {self.reason}" if where else self.reason)
        mend = self.mend if self.mend is None else self.mend[:_MOST_CHARACTERS]
        return plain(without_secrets(f"{text} ({mend})" if mend else text))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.path, self.reason, self.where, self.mend)


def _rebuild(
    kind: type[PathologyError], path: str | None, reason: str, where: str | None, mend: str | None
) -> PathologyError:
    return kind(path, reason, where=where, mend=mend)


class SlideError(PathologyError):
    """Something is wrong with a slide file."""


class SlideNotFoundError(SlideError, FileNotFoundError):
    """There is no file at the path."""


class SlideFormatError(SlideError, ValueError):
    """The file cannot be read as a slide: damaged, truncated or of an unknown kind."""


class TileError(SlideError, ValueError):
    """One tile of a slide cannot be decoded; ``where`` names level, row and column."""


class ResolutionError(SlideError, ValueError):
    """Neither the slide nor the caller says how large a pixel is."""


class NoTissueError(SlideError, ValueError):
    """No tissue was found: the slide is blank, or the detector does not fit it."""


class CheckpointError(PathologyError, ValueError):
    """A file given as a model is not a sentinode checkpoint, or holds unusable weights."""


class ArtefactError(PathologyError, ValueError):
    """A stored artefact is incomplete, damaged or made from something else."""


class StorageError(PathologyError, OSError):
    """The output side failed (disk full, stale handle): no slide is to blame."""


class OutputExistsError(PathologyError, FileExistsError):
    """Something that this command did not make is at the output: it is never replaced."""


class OutputNameError(PathologyError, ValueError):
    """An output's suffix promises another kind of file than is written."""


class OutputInUseError(PathologyError, RuntimeError):
    """Another process holds the output directory."""
