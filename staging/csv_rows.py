"""The rows of a small CSV: read with their line numbers, written, and numbers as plain decimals."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Generic, TypeVar

from staging.errors import ConflictError, TableError, UnknownLabelError
from wsi.errors import plain
from wsi.inputs import MOST_BYTES, read_bytes

# float() takes '1_00', Arabic digits, 'nan' and 'infinity'; a table means plain decimals.
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]{1,3})?")

_SEPARATOR = re.compile(r"sep=([,;\t])")  # Excel's own first line

Row = tuple[int, tuple[str, ...]]

_Value = TypeVar("_Value")


def read_rows(path: str | PathLike[str]) -> tuple[Row, ...]:
    """Read a CSV: (line number from 1, cells without surrounding spaces) of every row that is not blank.

    LF, CRLF or CR ends a line; a byte order mark and Excel's first line ``sep=;`` are skipped. Semicolons between
    cells, and then decimal commas in numbers, are read as spreadsheets write them where the comma is the decimal sign,
    and tabs as they copy cells.

    Raises:
        TableError: missing, unreadable, not UTF-8 text (nor UTF-16 with its mark) or not CSV.
    """
    path = Path(path)
    lines = _text_of(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    said = _SEPARATOR.fullmatch(lines[0])
    if said:
        lines[0] = ""
    delimiter = said[1] if said else ";" if _has_semicolons(lines) else "\t" if _has_tabs(lines) else ","
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    # a quoted cell may be as long as the file
    csv.field_size_limit(MOST_BYTES)
    try:
        rows = ((reader.line_num, tuple(cell.strip() for cell in row)) for row in reader)
        found = tuple((line, cells) for line, cells in rows if any(cells))
    except csv.Error as error:
        raise TableError(
            path, f"is not a CSV: {error}", where=f"line {reader.line_num}", mend="save it as CSV with commas"
        ) from error
    return found if delimiter != ";" else tuple((line, tuple(map(_with_point, cells))) for line, cells in found)


def header_error(path: Path, cells: Sequence[str], wanted: str, *, mend: str, line: int = 1) -> TableError:
    """The error of a table that does not begin as it should; it says so if semicolons were not read as separators."""
    got = f"begins with {','.join(cells)[:60]!r}, not with {wanted}" if cells else "is empty"
    if any(";" in cell for cell in cells):
        mend = f"semicolons separate cells only if every line has equally many, and this one has not; {mend}"
    return TableError(path, got, where=f"line {line}", mend=mend)


def refuse_repeated(path: Path, names: Sequence[str], line: int) -> None:
    """Refuse a header in which a column occurs twice: which of them is meant is not known.

    Raises:
        TableError: there is one.
    """
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise TableError(path, f"has two columns {twice[:60]!r}", where=f"line {line}", mend="keep one of them")


def _has_semicolons(lines: Sequence[str]) -> bool:
    """Return whether semicolons, not commas, separate cells: equally many in every line, commas only in numbers."""
    filled = [line for line in lines if line.strip()]
    counts = {line.count(";") for line in filled}
    if len(counts) != 1 or counts == {0}:
        return False
    cells = (cell.strip() for line in filled for cell in line.split(";"))
    return all("," not in cell or _DECIMAL_COMMA.fullmatch(cell) or cell.startswith('"') for cell in cells)


def _has_tabs(lines: Sequence[str]) -> bool:
    """Return whether tabs separate cells: equally many in every line, and no commas."""
    filled = [line for line in lines if line.strip()]
    counts = {line.count("\t") for line in filled}
    return len(counts) == 1 and counts != {0} and not any("," in line for line in filled)


def _with_point(cell: str) -> str:
    """Return a number with a decimal comma with a point, any other cell unchanged."""
    return cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a CSV with a header and LF line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def csv_for_people(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV that is opened in a spreadsheet: no text begins a formula, and none holds a control character."""
    return csv_text(header, ([_harmless(cell) if isinstance(cell, str) else cell for cell in row] for row in rows))


def _harmless(cell: str) -> str:
    shown = plain(cell)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


class Entries(Generic[_Value]):
    """The value of each name in a table, with the line it came from."""

    def __init__(self, path: Path) -> None:
        self.values: dict[str, _Value] = {}
        self._path = path
        self._lines: dict[str, list[int]] = {}

    def add(self, line: int, name: str, value: _Value, *, last_wins: bool = False) -> None:
        """Add a row; if rows of one name differ, the last one wins or they are an error.

        Raises:
            ConflictError: an earlier row has a different value.
        """
        earlier = self.values.get(name, value)
        if earlier != value and not last_wins:
            raise ConflictError(
                self._path,
                f"{name} is {_shown(earlier)} and then {_shown(value)}",
                where=f"lines {self._lines[name][-1]} and {line}",
                mend="keep one of the rows",
            )
        self.values[name] = value
        self._lines.setdefault(name, []).append(line)

    def repeated(self) -> list[tuple[str, list[int]]]:
        """Return the names with several rows, and their lines."""
        return [(name, lines) for name, lines in self._lines.items() if len(lines) > 1]


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextmanager
def in_line(path: Path, line: int) -> Iterator[None]:
    """Name the line of a table that has an unknown label."""
    try:
        yield
    except UnknownLabelError as error:
        raise UnknownLabelError(path, error.reason, where=f"line {line}", mend=error.mend) from None


def decimal(text: str) -> float | None:
    """Parse a plain decimal; None if the text is not one or is too large."""
    if not _DECIMAL.fullmatch(text):
        return None
    value = float(text)
    return value if abs(value) != float("inf") else None


def _text_of(path: Path) -> str:
    try:
        content = read_bytes(path)
        # Excel's "Unicode text"
        is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except FileNotFoundError as error:
        raise TableError(path, "there is no such file", mend="check the path of the table") from error
    except OSError as error:
        raise TableError(path, f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        mend = 'save it as "CSV UTF-8", not in the code page of a country'
        raise TableError(path, f"is not {error.encoding.upper()} text", mend=mend) from error
