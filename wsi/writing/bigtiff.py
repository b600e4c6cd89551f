"""The container of written slides: a BigTIFF that only grows, pixels first, directories last.

Only the link to the directories is ever overwritten, so tiles are written as soon as they are encoded. The file has a
hidden name until it is complete, and gets its own in one step.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from wsi.store import check_target, storage, unfinished_name

Value = tuple[int, int, bytes]
"""One tag's value: field type, number of values, their bytes."""

Tags = dict[int, Value]
"""One directory: values by tag code."""

_ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED, _LONG8 = 2, 3, 4, 5, 7, 16
ICC_PROFILE = 34_675
_SHARED = (347, ICC_PROFILE)  # JPEG tables and profiles of colours
_FIRST_LINK = 8  # where a BigTIFF's header keeps the offset of its first directory


class BigTiff:
    """A file being written; see ``new_bigtiff``."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        with storage(path):
            file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        self._end = file.tell()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._end

    def append(self, *parts: bytes | memoryview, align: int = 1) -> int:
        """Append bytes on the next multiple of ``align``.

        Returns:
            Their offset in the file.

        Raises:
            StorageError: the file system refuses.
        """
        with storage(self._path):
            start = self._end + -self._end % align
            self._file.write(bytes(start - self._end))
            self._end = start
            for part in parts:
                self._file.write(part)
                self._end += len(part)
        return start

    def write_directories(self, pages: Iterable[Tags]) -> None:
        """Append all directories, each with its values before it, and link them into one chain from the header.

        JPEG tables and profiles shared by several directories are stored once.

        Raises:
            StorageError: the file system refuses.
        """
        pages = list(pages)
        distinct = dict.fromkeys(tags[code][2] for code in _SHARED for tags in pages if code in tags)
        shared = {data: self.append(data, align=8) for data in distinct}
        link = _FIRST_LINK
        for tags in pages:
            entries = []
            for code, (kind, count, data) in sorted(tags.items()):
                if len(data) <= 8:
                    value = data.ljust(8, b"\0")
                else:
                    value = struct.pack("<Q", shared[data] if code in _SHARED else self.append(data, align=8))
                entries.append(struct.pack("<HHQ", code, kind, count) + value)
            start = self.append(struct.pack("<Q", len(entries)), *entries, bytes(8), align=8)
            with storage(self._path):
                self._file.seek(link)
                self._file.write(struct.pack("<Q", start))
                self._file.seek(self._end)
            link = self._end - 8


@contextmanager
def new_bigtiff(path: str | PathLike[str]) -> Iterator[BigTiff]:
    """A hidden file beside ``path`` that gets its name when the block ends without an error, else is removed.

    An older file of that name stays untouched until then.

    Raises:
        OutputExistsError: a folder, a link or a device is there.
        StorageError: the file system refuses (disk full, no such folder).
    """
    path = Path(path)
    check_target(path)
    work = unfinished_name(path, "partial")
    with storage(path):
        file = work.open("xb")
    try:
        try:
            yield BigTiff(path, file)
            with storage(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with storage(path):
                file.close()
        with storage(path):
            work.replace(path)
    finally:
        with suppress(OSError):
            work.unlink(missing_ok=True)


def shorts(*values: int) -> Value:
    """Values of 16 bits."""
    return _SHORT, len(values), struct.pack(f"<{len(values)}H", *values)


def longs(*values: int) -> Value:
    """Values of 32 bits."""
    return _LONG, len(values), struct.pack(f"<{len(values)}I", *values)


def long_table(data: bytes) -> Value:
    """A table of little-endian values of 32 bits, as bytes."""
    return _LONG, len(data) // 4, data


def long8_table(data: bytes) -> Value:
    """A table of little-endian values of 64 bits, as bytes."""
    return _LONG8, len(data) // 8, data


def text(value: str) -> Value:
    """ASCII.

    Raises:
        UnicodeEncodeError: a character is not ASCII.
    """
    data = value.encode("ascii") + b"\0"
    return _ASCII, len(data), data


def opaque(data: bytes) -> Value:
    """Bytes without a type (TIFF's UNDEFINED)."""
    return _UNDEFINED, len(data), data


def rationals(*values: tuple[int, int]) -> Value:
    """Fractions as (numerator, denominator)."""
    return _RATIONAL, len(values), b"".join(struct.pack("<2I", *value) for value in values)


def rational(value: float) -> Value:
    """The fraction of two 32-bit numbers closest to a positive value."""
    largest = 2**32 - 1
    fraction = Fraction(value).limit_denominator(max(1, min(largest, int(largest / value) - 1)))
    return rationals((fraction.numerator, fraction.denominator))
