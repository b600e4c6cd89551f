"""The source of a slide's bytes: a local file, or an object that supports range requests."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Sequence
from os import PathLike, fspath
from typing import Protocol
from urllib.parse import urlsplit

from wsi.errors import SlideNotFoundError
from wsi.inputs import open_regular

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


class ByteSource(Protocol):
    """Bytes read by offset, from many threads at once.

    Attributes:
        name: the path or URL, for messages.
        size: in bytes.
    """

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read(self, offset: int, count: int) -> bytes:
        """The bytes from offset on; fewer than count only at the end of the source.

        Raises:
            OSError: the source cannot be read.
        """
        ...

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of several (offset, count), in order; a remote source joins neighbours into one request.

        Raises:
            OSError: the source cannot be read.
        """
        ...

    def close(self) -> None:
        """Close the source; it cannot be used afterwards."""
        ...


class FileSource:
    """A local file with positioned reads: no shared offset, and no mapping that a truncation turns into SIGBUS.

    Args:
        path: the file.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.name = fspath(path)
        with open_regular(path) as file:
            self._fd = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, self._fd)
        self.size = os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """See ``ByteSource``."""
        return os.pread(self._fd, count, offset)

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """See ``ByteSource``."""
        return [os.pread(self._fd, count, offset) for offset, count in ranges]

    def close(self) -> None:
        """See ``ByteSource``."""
        self._close()
        self._fd = -1


def is_url(location: str | PathLike[str]) -> bool:
    """Whether a slide is named by a URL (``s3://``, ``https://`` ...) and not by a path.

    Raises:
        SlideNotFoundError: it begins like one, but is none.
    """
    if not isinstance(location, str) or _URL.match(location) is None:
        return False
    try:
        urlsplit(location)
    except ValueError as error:
        raise SlideNotFoundError(location, f"is not a URL: {error}", mend="check how it is written") from error
    return True
