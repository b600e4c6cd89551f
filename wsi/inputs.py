"""Input files: regular ones only, and of bounded size.

A FIFO or a device instead of a file would block forever or never end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from os import PathLike, fspath
from typing import Any

MOST_BYTES = 2**28
"""Of a table or a record: 256 MiB, some five million rows."""


def open_regular(path: str | PathLike[str]) -> BufferedReader:
    """Open a regular file for reading, without waiting for the writer of a FIFO.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, and a file is wanted", fspath(path))
    raise OSError(errno.EINVAL, "it is not a regular file", fspath(path))


def read_bytes(path: str | PathLike[str], *, most: int = MOST_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file, or holds more than ``most`` bytes.
    """
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most:,} bytes", fspath(path))
    return data


def read_text(path: str | PathLike[str], *, most: int = MOST_BYTES) -> str:
    """A regular file as UTF-8, with or without a byte order mark.

    Raises:
        OSError: as read_bytes.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most=most).decode("utf-8-sig")


def read_json(path: str | PathLike[str], *, most: int = MOST_BYTES) -> Any:  # noqa: ANN401  (whatever JSON can hold)
    """The content of a JSON file.

    Raises:
        OSError: as read_bytes.
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_text(path, most=most))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
