"""The output folder of ``sentinode lesions``: which outlines in it are its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from staging.lesions.files import SHAPE_COLUMNS
from staging.lesions.tables import LESION_COLUMNS
from wsi.errors import OutputExistsError
from wsi.inputs import read_json
from wsi.outputs import FileKind, FolderKind, json_file, table
from wsi.store import differs, storage

LESION_TABLE, SHAPE_TABLE, RECORD = "lesions.csv", "lesion_features.csv", "lesions.json"

_OUTLINES = (".geojson", ".xml")
_FILES: dict[str, FileKind] = {
    LESION_TABLE: table(*LESION_COLUMNS, name="a table of lesions"),
    SHAPE_TABLE: table(*SHAPE_COLUMNS, name="a table of measurements"),
    RECORD: json_file("a record of sentinode lesions", '"outlines"', '"settings"'),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredFolder(FolderKind):
    """The folder, and the slides of whose heatmaps outlines will be written."""

    files: dict[str, FileKind] = field(default_factory=lambda: _FILES)
    slides: Sequence[str]

    def refuse_others(self, path: Path, *, overwrite: bool) -> None:
        """Also refuse outlines that an earlier call did not make: someone may have drawn them.

        Raises:
            OutputExistsError: something that is not to be replaced is there.
        """
        FolderKind.refuse_others(self, path, overwrite=overwrite)
        own = own_outlines(path)
        for name in outline_names(self.slides):
            if name not in own and ((path / name).exists() or (path / name).is_symlink()):
                reason = "was not made by an earlier call, and is never replaced"
                raise OutputExistsError(path / name, reason, mend="choose another output")


def outline_names(slides: Iterable[str]) -> list[str]:
    """Return the names of the files of outlines of some slides."""
    return [f"{slide}{suffix}" for slide in slides for suffix in _OUTLINES]


def own_outlines(folder: Path) -> frozenset[str]:
    """Return the names of the outlines that earlier calls made in a folder, as its record says."""
    try:
        names = read_json(folder / RECORD)["outlines"]
        return frozenset(str(name) for name in names if Path(name).name == name and Path(name).suffix in _OUTLINES)
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()


def is_unfinished(folder: Path) -> bool:
    """Whether a call that measured was killed while it wrote there: its record lists no slides yet."""
    try:
        record = read_json(folder / RECORD)
        return _FILES[RECORD].is_at(folder / RECORD) and "slides" not in record
    except (OSError, ValueError, TypeError):
        return False


def broken_files(folder: Path) -> dict[str, tuple[str, ...]] | None:
    """Return how each file of a folder differs from what was written; None if it is no such folder."""
    if not _FILES[RECORD].is_at(folder / RECORD):
        return None
    try:
        files = read_json(folder / RECORD)["files"]
        found = {str(name): differs(folder / Path(name).name, facts) for name, facts in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {RECORD: ("lists no files: lesions did not finish",)}
    return {name: () if fault is None else (fault,) for name, fault in found.items()}


def forget_outlines(folder: Path, names: Iterable[str]) -> None:
    """Remove outlines of slides that the tables no longer list.

    Raises:
        StorageError: the file system refuses.
    """
    for name in names:
        with storage(folder / name):
            (folder / name).unlink(missing_ok=True)
