"""The rows of a small CSV with their line numbers, and numbers as plain decimals."""

from __future__ import annotations

import csv
import re
from os import PathLike
from pathlib import Path

from staging.errors import TableError
from wsi.inputs import MOST_BYTES, read_text

# float() takes '1_00', Arabic digits, 'nan' and 'infinity'; a table means plain decimals.
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")

Row = tuple[int, tuple[str, ...]]


def read_rows(path: str | PathLike[str]) -> tuple[Row, ...]:
    """Read a CSV: (line number from 1, cells without spaces around them) of every row that is not blank.

    LF, CRLF or CR ends a line; a byte order mark is skipped.

    Raises:
        TableError: missing, unreadable, no UTF-8 text or no CSV.
    """
    path = Path(path)
    lines = _text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    reader = csv.reader(lines, strict=True)
    # a quoted cell may be as long as the file
    csv.field_size_limit(MOST_BYTES)
    try:
        return tuple((reader.line_num, cells) for row in reader if any(cells := tuple(cell.strip() for cell in row)))
    except csv.Error as error:
        raise TableError(
            path, f"is no CSV: {error}", where=f"line {reader.line_num}", mend="save it as CSV with commas"
        ) from error


def decimal(text: str) -> float | None:
    """The number that a plain decimal writes; None where the text is no such number or too large for one."""
    if not _DECIMAL.fullmatch(text):
        return None
    value = float(text)
    return value if abs(value) != float("inf") else None


def _text_of(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise TableError(path, "there is no such file", mend="check the path of the table") from error
    except OSError as error:
        raise TableError(path, f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TableError(path, "is not UTF-8 text", mend="save it as CSV in UTF-8") from error
