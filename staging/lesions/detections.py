"""Detected lesions as points with a probability: the CSV files of CAMELYON16's lesion task, and points of a heatmap."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from staging.csv_rows import decimal, header_error, read_rows
from staging.errors import TableError
from wsi.outputs import FileKind, FolderKind
from wsi.raster import Heatmap
from wsi.store import atomic_text

RADIUS_UM = 12 * 0.243 * 64
"""Radius cleared around a detection: 12 cells of 64 level-0 px, as CAMELYON16's teams did."""

# The organisers' own example has this first line, although their score cannot read it.
_FILE = FileKind(
    name="a list of detections",
    suffixes=(".csv",),
    is_one=lambda file: all(re.fullmatch(rb"[^,]+,[^,]+,[^,]+\n", line) for line in file),
)
_HEADERS = frozenset({"p", "probability", "prob", "confidence", "score"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detections:
    """What was found on one slide.

    Attributes:
        probability: float64 (n,), in the order of the file.
        x, y: float64 (n,), level-0 px.
        path: the file they were read from.
        lines: the line of each in that file; empty without a file.
    """

    probability: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    path: Path | None = None
    lines: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        shapes = {self.probability.shape, self.x.shape, self.y.shape}
        if len(shapes) != 1 or self.probability.ndim != 1:
            raise ValueError(f"detections are three columns of one length, got shapes {sorted(shapes)}")
        if not all(np.isfinite(column).all() for column in (self.probability, self.x, self.y)):
            raise ValueError("detections are finite numbers")
        if self.probability.size and not 0 <= self.probability.min() <= self.probability.max() <= 1:
            raise ValueError("detections have probabilities from 0 to 1")

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float, float]]) -> Detections:
        """Make detections from rows (probability, x, y)."""
        table = np.asarray(rows, dtype=np.float64).reshape(-1, 3)
        return cls(probability=table[:, 0], x=table[:, 1], y=table[:, 2])

    def where(self, index: int) -> str | None:
        """Return the line of a detection in its file, for errors."""
        return f"line {self.lines[index]}" if self.lines else None


def read_detections(path: str | PathLike[str]) -> Detections:
    """Read one slide's detections: rows ``probability,x,y`` in level-0 px, no header; an empty file has none.

    A first line ``p,x,y`` is skipped; CRLF, a byte order mark, blank lines, spaces and extra columns are accepted.

    Raises:
        TableError: unreadable, another header, or a row that is not a probability from 0 to 1 and two numbers; it
            names the line.
    """
    path = Path(path)
    rows = read_rows(path)
    if rows and _is_header(path, rows[0][1]):
        rows = rows[1:]
    found = [_detection(path, line, cells) for line, cells in rows]
    table = np.array(found, dtype=np.float64).reshape(-1, 3)
    return Detections(
        probability=table[:, 0],
        x=table[:, 1],
        y=table[:, 2],
        path=path,
        lines=tuple(line for line, _ in rows),
    )


class DetectionFolder(FolderKind):
    """A folder of which every CSV is a list of detections."""

    def refuse_others(self, path: Path, *, overwrite: bool) -> None:
        """Also refuse tables of any other kind: the organisers would take them for detections.

        Raises:
            OutputExistsError: something that is not to be replaced is there.
        """
        FolderKind.refuse_others(self, path, overwrite=overwrite)
        for file in sorted(path.glob("*.csv")):
            _FILE.refuse_others(file, overwrite=overwrite)


def write_detections(path: str | PathLike[str], detections: Detections) -> None:
    """Write rows ``probability,x,y`` as the organisers read them; the file is complete or absent.

    They read x and y as integers, so that of a point the pixel is written that holds it; the probability has enough
    decimals to restore the same float64. Without detections the file is empty.

    Raises:
        StorageError: it cannot be written.
    """
    columns = (detections.probability.tolist(), detections.x.tolist(), detections.y.tolist())
    rows = (f"{_text(p)},{math.floor(x)},{math.floor(y)}\n" for p, x, y in zip(*columns, strict=True))
    atomic_text(Path(path), "".join(rows))


def detections_of(heatmap: Heatmap, *, threshold: float = 0.5, radius_um: float = RADIUS_UM) -> Detections:
    """Extract points from a heatmap as CAMELYON16's teams did.

    Repeatedly, the highest cell above the threshold is emitted, at its centre in level-0 px, and the disc around it is
    cleared; of equally high cells the first by row and then column is taken.

    Args:
        heatmap: its frame must know its mpp.
        threshold: cells at or below it are never emitted, 0 to 1.
        radius_um: cells whose centres lie at most this far from an emitted one's are cleared.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the threshold or the radius is out of range.
    """
    if not 0 <= threshold <= 1 or not radius_um >= 0:
        raise ValueError(f"the threshold must be 0 to 1 and the radius at least 0, got {threshold} and {radius_um}")
    # 12 cells' worth of um must not come out as 11.99 cells.
    radius = radius_um / heatmap.frame.pixel_um + 1e-9
    reach = int(radius)
    offsets = np.arange(-reach, reach + 1)
    is_near = np.hypot(offsets[:, np.newaxis], offsets) <= radius
    left = heatmap.array > threshold
    height, width = left.shape
    emitted = []
    # One pass from the highest cell down emits the same points as searching for the maximum each time.
    rows, columns = np.nonzero(left)
    order = np.argsort(-heatmap.array[rows, columns], kind="stable")
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if left[row, column]:
            emitted.append((row, column))
            top, first = max(0, row - reach), max(0, column - reach)
            window = left[top : min(height, row + reach + 1), first : min(width, column + reach + 1)]
            begin, aside = top - row + reach, first - column + reach
            window &= ~is_near[begin : begin + window.shape[0], aside : aside + window.shape[1]]
    row_of, column_of = np.array(emitted, dtype=np.int64).reshape(-1, 2).T
    x, y = heatmap.frame.centres(row_of, column_of)
    return Detections(probability=heatmap.array[row_of, column_of].astype(np.float64), x=x, y=y)


def _is_header(path: Path, cells: tuple[str, ...]) -> bool:
    """Return whether the first row is ``p,x,y``; refuse any other row of words."""
    if any(decimal(cell) is not None for cell in cells):
        return False
    names = [cell.lower() for cell in cells]
    if names[0] in _HEADERS and names[1:3] == ["x", "y"]:
        return True
    raise header_error(path, cells, "a detection", mend="write rows probability,x,y without a header")


def _detection(path: Path, line: int, cells: tuple[str, ...]) -> tuple[float, float, float]:
    numbers = [decimal(cell) for cell in cells[:3]]
    if len(numbers) < 3 or None in numbers:
        reason, mend = "is not a probability and two numbers", "write probability,x,y with decimal points"
    elif not 0 <= (numbers[0] or 0.0) <= 1:
        reason, mend = "does not begin with a probability from 0 to 1", "the order is probability,x,y"
    else:
        probability, x, y = (number or 0.0 for number in numbers)
        return probability, x, y
    raise TableError(path, f"the row {','.join(cells)[:60]!r} {reason}", where=f"line {line}", mend=mend)


def _text(value: float) -> str:
    return np.format_float_positional(value, trim="-")
