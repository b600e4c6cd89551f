"""What the organisers' own scripts cannot read, where this project reads more leniently.

Sources: CAMELYON16's Evaluation_FROC.py (``readCSVContent``: each line is stripped on the right, split at commas, and
read by float, int and int) and CAMELYON17's evaluate.py (``pandas.read_csv``, so that the first line is a header;
patients are the rows whose first cell ends in .zip in any case, by that very text; stages are compared in lower case).
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from os import PathLike

from staging.stages.pn import PatientStage
from wsi.inputs import read_bytes

_STAGES = frozenset(stage.value.lower() for stage in PatientStage)
_MARK = "\ufeff"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatFault:
    """Where an official script stops or reads something else.

    Attributes:
        line: from 1.
        reason: what is there, and what the script makes of it.
        mend: what to do.
    """

    line: int
    reason: str
    mend: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


def fault_of_detections(path: str | PathLike[str]) -> FormatFault | None:
    """Return the first line of a table of detections at which CAMELYON16's script stops; None if it reads all.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    for number, line in enumerate(_lines(path), start=1):
        cells = line.rstrip().split(",")
        reason = _fault_of_row(cells)
        if reason is not None:
            mend = "write probability,x,y without header or blank line, x and y as whole numbers"
            return FormatFault(line=number, reason=f"{line.strip()[:60]!r} {reason}", mend=mend)
    return None


def _fault_of_row(cells: list[str]) -> str | None:
    if len(cells) < 3:
        return "is not probability,x,y: the organisers' script stops there"
    try:
        float(cells[0])
    except ValueError:
        return f"begins with {cells[0][:20]!r}, which the organisers' script cannot read as a number"
    for name, cell in zip("xy", cells[1:3], strict=True):
        try:
            position = int(cell)
        except ValueError:
            return f"has {name} {cell[:20]!r}, and the organisers' script reads whole numbers only"
        if position < 0:
            return f"has a negative {name}, which the organisers' script takes for a position from the other side"
    return None


def faults_of_stages(path: str | PathLike[str], patients: Collection[str] = ()) -> Iterator[FormatFault]:
    """Yield the lines of a table of stages that CAMELYON17's script does not read as meant.

    Args:
        path: the table.
        patients: names that the script looks for, with .zip; known are also those of CAMELYON17.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    rows = csv.reader(f"{line}\n" for line in _lines(path))  # a quoted cell may have a line break
    width = 0
    for cells in rows:
        if not cells:
            continue
        if not width:
            width, reason = len(cells), _fault_of_header(cells)
        else:
            reason = _fault_of_width(cells, width) or _fault_of_stage(cells, {*patients})
        if reason is not None:
            yield FormatFault(line=rows.line_num, reason=reason[0], mend=reason[1])


def _fault_of_header(cells: list[str]) -> tuple[str, str] | None:
    if len(cells) < 2:
        return f"{cells[0][:60]!r} has one column: the organisers' script separates at commas", "write patient,stage"
    if cells[0].strip(_MARK).lower().endswith(".zip"):
        return f"{cells[0][:60]} is taken for a header and lost", "begin with the line patient,stage"
    return None


def _fault_of_width(cells: list[str], width: int) -> tuple[str, str] | None:
    """Pandas takes the first cell for an index where every row has one more than the header, and else stops."""
    if len(cells) <= width:
        return None
    reason = f"{','.join(cells)[:60]!r} has more cells than the header: the organisers' script misreads it, or stops"
    return reason, "write patient,stage without further commas"


def _fault_of_stage(cells: list[str], patients: set[str]) -> tuple[str, str] | None:
    name, stage = cells[0], cells[1] if len(cells) > 1 else ""
    if not name.strip().lower().endswith(".zip"):
        return None
    bare = name.strip().lower()
    if any(character.isspace() for character in name.strip()) and name not in patients:
        return f"{name[:60]!r} has a space or a line break within", "write it as the organisers do"
    if not name.isascii() and name not in patients:
        return f"{name[:60]!r} has characters that no name of CAMELYON has", "write it as the organisers do"
    if name != bare and name not in patients:
        return f"{name[:60]!r} is not {bare}: the organisers' script compares names letter by letter", f"write {bare}"
    if stage.lower() not in _STAGES:
        mend = f"write one of {', '.join(one.value for one in PatientStage)} without spaces"
        return f"{name[:60]} has the stage {stage[:20]!r}, which the organisers' script does not know", mend
    return None


def _lines(path: str | PathLike[str]) -> list[str]:
    """Lines as Python's own readlines finds them, a byte order mark kept."""
    text = read_bytes(path).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n").split("\n") if text else []
