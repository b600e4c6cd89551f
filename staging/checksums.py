"""Downloads against a list of MD5 sums, as the organisers publish one (``checksums.md5``).

MD5 finds damaged and unfinished copies; it does not protect from anybody who wants to deceive.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from staging.csv_rows import csv_text, read_rows
from staging.errors import TableError
from wsi.errors import plain
from wsi.inputs import open_regular, read_text
from wsi.store import atomic_text
from wsi.threads import map_in_order

_LINE = re.compile(r"(\\?)([0-9a-fA-F]{32}) [ *](.+)")
_ESCAPED = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
_CHUNK = 4 << 20
_COLUMNS = ("file", "bytes", "modified_ns", "md5")
_EVERY = 20  # files after which the record is written again


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What a list says of a folder.

    Attributes:
        good: number of files whose sum is right.
        known: number of these that an earlier call had checked and that have not changed since.
        broken: the others that are there, and why.
        missing: those that are not there.
        unlisted: number of files in the folder that the list does not have.
    """

    good: int
    known: int
    broken: Mapping[str, str]
    missing: tuple[str, ...]
    unlisted: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {
            "good": self.good,
            "checked_before": self.known,
            "broken": dict(self.broken),
            "missing": list(self.missing),
            "unlisted": self.unlisted,
        }


def read_sums(path: Path) -> dict[str, str]:
    """Read a list as md5sum writes it: by the path of each file, below a folder, its sum in lower case.

    Raises:
        TableError: it cannot be read, a line is none of such a list, a file is listed twice differently, or a path
            leads out of the folder.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TableError(path, f"cannot be read: {reason}", mend="check the path of the sums") from error
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        where = f"line {number}"
        if match is None:
            raise TableError(
                path, f"{plain(line)[:60]!r} is no MD5 sum and a file", where=where, mend="take the list of md5sum"
            )
        name = match[3]
        if match[1]:
            name = re.sub(r"\\.", lambda one: _ESCAPED.get(one[0], one[0]), name)
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise TableError(path, f"{plain(name)[:60]!r} leads out of the folder", where=where)
        if found.setdefault(str(inside), match[2].lower()) != match[2].lower():
            raise TableError(path, f"{plain(name)[:60]} is listed twice differently", where=where)
    if not found:
        raise TableError(path, "lists no file", mend="take the list of md5sum")
    return found


def check_folder(
    folder: Path,
    sums: Mapping[str, str],
    *,
    record: Path | None = None,
    workers: int | None = None,
    on_file: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Compare every listed file below a folder with its sum.

    Args:
        folder: where the listed paths begin.
        sums: from read_sums.
        record: a table of what was found good; what stands there and has neither another size nor another time of
            change is not read again. Written while the work goes on, so that a killed call loses little.
        workers: files read at a time; None for one per core.
        on_file: called with every listed file once it is done.

    Raises:
        TableError: the record is no such table.
        StorageError: the record cannot be written.
    """
    good = _read_record(record)
    known = {name for name, row in good.items() if sums.get(name) == row[2] and _state(folder / name) == row[:2]}
    good = {name: row for name, row in good.items() if name in known or name not in sums}  # of other lists, too
    broken: dict[str, str] = {}
    missing: list[str] = []
    todo = [name for name in sums if name not in known]
    for name in sums.keys() & known:
        on_file(name)
    new = 0
    for name, state, found in map_in_order(lambda one: _sum(folder, one), todo, workers=workers, name="md5"):
        if state is None:
            missing.append(name)
        elif found == sums[name]:
            good[name] = (*state, found)
            new += 1
            if record is not None and new % _EVERY == 0:
                _write_record(record, good)
        else:
            broken[name] = found if " " in found else f"its sum is {found} and not {sums[name]}"
        on_file(name)
    if record is not None:
        _write_record(record, good)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return Checked(
        good=len(good.keys() & sums.keys()),
        known=len(known & sums.keys()),
        broken=broken,
        missing=tuple(missing),
        unlisted=len(there - sums.keys()),
    )


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None if there is no such file."""
    try:
        about = path.stat()
    except (OSError, ValueError):  # a name may hold what no file's can
        return None
    return about.st_size, about.st_mtime_ns


def _sum(folder: Path, name: str) -> tuple[str, tuple[int, int] | None, str]:
    """The file's state before it was read, and its sum, or in words why there is none."""
    state = _state(folder / name)
    if state is None:
        return name, None, ""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open_regular(folder / name) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        return name, state, f"it cannot be read: {error.strerror or error}"
    if _state(folder / name) != state:
        return name, state, "it changed while it was read"
    return name, state, digest.hexdigest()


def _read_record(record: Path | None) -> dict[str, tuple[int, int, str]]:
    if record is None or not record.exists():
        return {}
    rows = read_rows(record)
    if not rows or rows[0][1] != _COLUMNS:
        raise TableError(record, "is no record of sentinode check", mend="name another file")
    found = {}
    for line, cells in rows[1:]:
        try:
            name, size, modified, digest = cells
            found[name] = (int(size), int(modified), digest)
        except ValueError as error:
            raise TableError(record, "is no record of sentinode check", where=f"line {line}") from error
    return found


def _write_record(record: Path, good: Mapping[str, tuple[int, int, str]]) -> None:
    # a name that a table would not give back as it is, is read again
    names = [name for name in sorted(good) if name == plain(name).strip()]
    atomic_text(record, csv_text(_COLUMNS, ((name, *good[name]) for name in names)))
