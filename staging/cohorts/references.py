"""Tables of truth and predictions for slides, normal slides and patients."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TypeVar

from staging.cohorts.camelyon import read_label_table
from staging.cohorts.names import slide_key
from staging.csv_rows import Entries, Row, decimal, header_error, read_rows, refuse_repeated
from staging.errors import TableError, UnknownLabelError
from staging.lesions.labels import SlideLabel

_KINDS = {"tumor": True, "tumour": True, "normal": False, "1": True, "0": False} | {
    label.value: label is not SlideLabel.NEGATIVE for label in SlideLabel
}
_NAME_COLUMNS = frozenset({"slide", "name", "image", "file", "filename", "case"})
_PROBABILITY_COLUMNS = ("probability", "p", "prob", "score", "confidence", "prediction")


_Value = TypeVar("_Value")


def read_truth(path: str | PathLike[str]) -> dict[str, bool]:
    """Read which slides have a metastasis.

    Accepts CAMELYON16's reference.csv (no header; name, Tumor or Normal, and more), the organisers' stage_labels.csv of
    CAMELYON17 and a CSV with header ``slide,label``. Labels are Tumor and Normal, 1 and 0, or negative, itc, micro and
    macro, of which the last three count as a metastasis.

    Returns:
        True for a metastasis, by slide_key, in the order of the rows.

    Raises:
        TableError: unreadable, no rows, or a row of another form.
        UnknownLabelError: a label is unknown.
        ConflictError: two rows of one slide contradict each other.
    """
    path = Path(path)
    rows = read_rows(path)
    if rows and [cell.lower() for cell in rows[0][1][:2]] == ["patient", "stage"]:
        return {slide_key(slide): _KINDS[label.value] for slide, label in read_label_table(path).items()}
    if rows and _is_header(rows[0]) and rows[0][1][1:2] and rows[0][1][1].lower() not in _KINDS:
        rows = rows[1:]
    slides: Entries[bool] = Entries(path)
    for line, cells in rows:
        if len(cells) < 2 or not cells[0]:
            raise _row_error(path, line, cells, "a slide's name and its label")
        if cells[1].lower() not in _KINDS:
            raise UnknownLabelError(
                path,
                f"unknown label {cells[1][:60]!r}",
                where=f"line {line}",
                mend="use one of Tumor, Normal, negative, itc, micro, macro, 1, 0",
            )
        slides.add(line, slide_key(cells[0]), _KINDS[cells[1].lower()])
    return _some(path, slides, "test_001,Tumor")


def read_predictions(path: str | PathLike[str]) -> dict[str, float]:
    """Read the probability of metastasis of each slide: rows ``name,probability``, or a CSV with named columns.

    labels.csv of a run is accepted. The numbers may be any finite ones: only their order counts.

    Returns:
        Probabilities by slide_key.

    Raises:
        TableError: unreadable, another header, no rows, or a row without a number.
        ConflictError: two rows of one slide contradict each other.
    """
    path = Path(path)
    rows = read_rows(path)
    column, has_header = 1, False
    if rows and (_is_header(rows[0]) or all(decimal(cell) is None for cell in rows[0][1])):
        column, rows, has_header = _probability_column(path, rows[0]), rows[1:], True
    slides: Entries[float] = Entries(path)
    for line, cells in rows:
        if column == 1 and len([cell for cell in cells if cell]) > 2 and not has_header:
            raise _row_error(path, line, cells, "a slide's name and one probability, and no header names more columns")
        value = decimal(cells[column]) if len(cells) > column else None
        if value is None or not cells[0]:
            raise _row_error(path, line, cells, "a slide's name and a probability")
        slides.add(line, slide_key(cells[0]), value)
    return _some(path, slides, "test_001,0.87")


def read_normal_slides(path: str | PathLike[str]) -> frozenset[str]:
    """Read the normal slides in a file: one name per line, or a table that read_truth accepts.

    Raises:
        TableError: unreadable, or as for read_truth.
    """
    rows = read_rows(path)
    if all(len(cells) == 1 for _, cells in rows):
        return frozenset(slide_key(cells[0]) for _, cells in rows)
    return frozenset(slide for slide, is_tumour in read_truth(path).items() if not is_tumour)


def _some(path: Path, slides: Entries[_Value], example: str) -> dict[str, _Value]:
    """Return the entries of a table; refuse an empty one."""
    if not slides.values:
        raise TableError(path, "has no row for a slide", mend=f"rows are like {example}")
    return slides.values


def _is_header(row: Row) -> bool:
    return row[1][0].lower() in _NAME_COLUMNS


def _probability_column(path: Path, header: Row) -> int:
    line, cells = header
    names = [cell.lower() for cell in cells]
    refuse_repeated(path, names, line)
    known = [name for name in _PROBABILITY_COLUMNS if name in names]
    if names[0] not in _NAME_COLUMNS or not known:
        raise header_error(path, cells, "slide,probability", line=line, mend="name these columns, or write no header")
    return names.index(known[0])


def _row_error(path: Path, line: int, cells: tuple[str, ...], wanted: str) -> TableError:
    return TableError(
        path,
        f"the row {','.join(cells)[:60]!r} is not {wanted}",
        where=f"line {line}",
        mend="separate them by a comma, with decimal points",
    )
