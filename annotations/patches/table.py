"""Which patches a network learns from: a small Parquet table; the pixels stay in the slides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Role
from annotations.errors import PatchStoreError
from annotations.patches.batch import KINDS, DrawnPatch
from annotations.patches.labels import CLASSES, LabelRule
from wsi.patches.reading import PatchPositions
from wsi.readers.source import is_url
from wsi.store import atomic_bytes

_KEY = b"sentinode"
_VERSION = 1
NO_CENTRE = NO_LESION = -1

COLUMNS: Mapping[str, type] = {
    "slide": str,
    "patient": str,
    "centre": np.int32,
    "class": str,
    "kind": str,
    "lesion": np.int32,
    "tumour_fraction": np.float64,
    "x": np.float64,
    "y": np.float64,
    "level": np.int32,
    "mpp": np.float64,
    "downsample": np.float64,
    "size_px": np.int32,
    "split": str,
}
"""The table's columns and their types."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchTable:
    """Patches of many slides, one per row.

    Attributes:
        columns: by name, each (n,): ``slide``, ``patient``, ``split`` (text); ``class`` (tumour, normal or unknown, by
            the rule); ``kind`` (what was sampled for: tumour, border, normal, near, background, hard); ``centre`` and
            ``lesion`` (-1 if none or unknown); ``tumour_fraction`` of the pixels; ``x`` and ``y`` (level-0 px of the
            outer corner of pixel (0, 0)); ``level`` (the stored one that is read); ``mpp`` (um per px) and
            ``downsample`` (level-0 px per px) of the patch; ``size_px`` (its side).
        rule: when a patch is tumour.
        files: the slides' files by name: paths, relative ones to the table's own folder, or URLs.
        about: how the patches were drawn; values that JSON can hold.
        groups: roles of further groups that the annotation files were read with.
    """

    columns: Mapping[str, NDArray[Any]]
    rule: LabelRule
    files: Mapping[str, str]
    about: Mapping[str, Any]
    groups: Mapping[str, Role] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.columns.keys() != COLUMNS.keys():
            raise ValueError(f"a patch table must have the columns {list(COLUMNS)}, got {list(self.columns)}")
        if len({column.shape for column in self.columns.values()}) != 1 or self.columns["slide"].ndim != 1:
            raise ValueError("the columns of a patch table must have the same length")
        missing = sorted(set(self.columns["slide"].tolist()) - self.files.keys())
        if missing:
            raise ValueError(f"a patch table needs the files of all its slides; missing: {missing[:3]}")

    def __len__(self) -> int:
        return len(self.columns["slide"])

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    @property
    def size_px(self) -> int:
        """Side of the patches.

        Raises:
            PatchStoreError: there are no patches, or they differ in it.
        """
        return int(self._only("size_px"))

    @property
    def mpp(self) -> float:
        """Um per pixel of the patches.

        Raises:
            PatchStoreError: there are no patches, or they differ in it.
        """
        return float(self._only("mpp"))

    @property
    def labels(self) -> NDArray[np.int64]:
        """The classes as numbers, int64 (n,): 0 normal, 1 tumour, 255 unknown."""
        numbers = {"normal": 0, "tumour": 1, "unknown": 255}
        return np.array([numbers[label] for label in self.columns["class"].tolist()], np.int64)

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.integer]) -> PatchTable:
        """A selection of rows, by a mask or by their indices."""
        return replace(self, columns={name: column[chosen] for name, column in self.columns.items()})

    def with_split(self, split: NDArray[Any]) -> PatchTable:
        """The same patches with other values in the column ``split``."""
        return replace(self, columns={**self.columns, "split": split.astype(object)})

    def positions(self, folder: str | Path = ".") -> PatchPositions:
        """Where the pixels are read: for ``wsi.patches.reading`` and the datasets of ``wsi.cnn.patch_loading``.

        Args:
            folder: the table's own, to which slides' paths are relative.
        """
        names, numbers = np.unique(self.columns["slide"].astype(str), return_inverse=True)
        return PatchPositions(
            slides=tuple(located(self.files[name], folder) for name in names.tolist()),
            slide=numbers.astype(np.int32),
            x=self.columns["x"],
            y=self.columns["y"],
            downsample=self.columns["downsample"],
            size_px=self.size_px,
        )

    def counts(self, *by: str) -> dict[str, int]:
        """The number of patches for each combination of values in the given columns."""
        keys = ["/".join(str(value) for value in row) for row in zip(*(self.columns[name] for name in by), strict=True)]
        names, counts = np.unique(keys, return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def _only(self, name: str) -> float:
        values = np.unique(self.columns[name])
        if len(values) != 1:
            found = ", ".join(f"{value:g}" for value in values.tolist()) or "none"
            raise PatchStoreError(None, f"patches must have the same {name}, found {found}", mend="select rows")
        return float(values[0])


def located(file: str, folder: str | Path) -> str:
    """The path or URL of a slide in a table that was read from a folder."""
    return file if is_url(file) else str(Path(folder) / file)


def table_of(
    positions: Iterable[DrawnPatch],
    *,
    slide: str,
    file: str,
    level: int,
    mpp: float,
    rule: LabelRule,
    patient: str | None = None,
    centre: int | None = None,
    about: Mapping[str, Any] | None = None,
    groups: Mapping[str, Role] | None = None,
) -> PatchTable:
    """One slide's patches as rows; all are in the split ``train``.

    Args:
        positions: as drawn; their pixel targets are not kept.
        slide: its name.
        file: its path or URL.
        level: the stored level that the patches are read from.
        mpp: um per px of the patches.
        rule: by which they were labelled.
        patient: whose it is; None for the slide's name.
        centre: number of the medical centre.
        about: how they were drawn.
        groups: see PatchTable.
    """
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for where in positions:
        row = {
            "slide": slide,
            "patient": patient or slide,
            "centre": NO_CENTRE if centre is None else centre,
            "class": where.label,
            "kind": where.kind,
            "lesion": NO_LESION if where.lesion is None else where.lesion,
            "tumour_fraction": float((where.target == 1).mean()),
            "x": where.frame.x,
            "y": where.frame.y,
            "level": level,
            "mpp": mpp,
            "downsample": where.frame.downsample,
            "size_px": where.frame.shape[0],
            "split": "train",
        }
        for name, value in row.items():
            columns[name].append(value)
    return PatchTable(
        columns=_typed(columns), rule=rule, files={slide: file}, about=dict(about or {}), groups=dict(groups or {})
    )


def join_tables(tables: Sequence[PatchTable]) -> PatchTable:
    """Several tables as one, in the given order.

    Raises:
        PatchStoreError: there are none, they label by different rules, or one name stands for two slides.
    """
    rules = {table.rule for table in tables}
    if len(rules) != 1:
        found = ", ".join(sorted(str(rule) for rule in rules)) or "none"
        raise PatchStoreError(None, f"tables must share one labelling rule, found {found}", mend="draw all by one rule")
    files: dict[str, str] = {}
    for table in tables:
        for name, file in table.files.items():
            if files.setdefault(name, file) != file:
                raise PatchStoreError(
                    None, f"the slide {name} has two files: {files[name]} and {file}", mend="rename one of them"
                )
    columns = {name: np.concatenate([table.columns[name] for table in tables]) for name in COLUMNS}
    return replace(tables[0], columns=columns, files=files)


def write_patch_table(path: str | Path, table: PatchTable) -> None:
    """Write a table as Parquet, atomically; equal tables yield equal bytes.

    Raises:
        StorageError: the file system refuses.
    """
    atomic_bytes(Path(path), table_bytes(table))


def table_bytes(table: PatchTable) -> bytes:
    """A table as a Parquet file; rule, files and ``about`` are JSON in its schema's metadata, under ``sentinode``."""
    import pyarrow as pa  # noqa: PLC0415  (slow import)
    from pyarrow import parquet  # noqa: PLC0415

    about = {
        "kind": "sentinode patch table",
        "version": _VERSION,
        "rule": str(table.rule),
        "files": dict(table.files),
        "about": dict(table.about),
        "groups": {name: role.value for name, role in table.groups.items()},
    }
    arrays = [
        pa.array(table.columns[name].tolist(), pa.string()) if kind is str else pa.array(table.columns[name])
        for name, kind in COLUMNS.items()
    ]
    metadata = {_KEY: json.dumps(about, sort_keys=True).encode()}
    data = BytesIO()
    parquet.write_table(
        pa.table(arrays, names=list(COLUMNS)).replace_schema_metadata(metadata), data, compression="zstd"
    )
    return data.getvalue()


def read_patch_table(path: str | Path) -> PatchTable:
    """Read a table written by write_patch_table.

    Raises:
        PatchStoreError: there is none, or it is damaged or something else.
    """
    import pyarrow as pa  # noqa: PLC0415  (slow import)
    from pyarrow import parquet  # noqa: PLC0415

    path = Path(path)
    if not path.is_file():
        raise PatchStoreError(path, "there is no such table", mend="make it with sentinode patches")
    try:
        # One thread and no memory mapping: nothing remains for a fork to inherit.
        found = parquet.read_table(path, use_threads=False, memory_map=False)
        about = json.loads((found.schema.metadata or {})[_KEY])
        if about["version"] != _VERSION:
            raise PatchStoreError(path, f"has the unknown version {about['version']}", mend="update sentinode")
        columns = _typed({name: found.column(name).to_pylist() for name in COLUMNS})
        table = PatchTable(
            columns=columns,
            rule=LabelRule.parse(about["rule"]),
            files=about["files"],
            about=about["about"],
            groups={name: Role(role) for name, role in about.get("groups", {}).items()},
        )
    except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
        raise PatchStoreError(path, f"is not a readable patch table: {error}", mend="make it again") from error
    unknown = {*table["class"].tolist()} - {*CLASSES} | {*table["kind"].tolist()} - {*KINDS}
    if unknown:
        raise PatchStoreError(path, f"names an unknown class or kind: {min(unknown)}", mend="make it again")
    return table


def _typed(columns: Mapping[str, Sequence[Any]]) -> dict[str, NDArray[Any]]:
    return {
        name: np.array(columns[name], dtype=object if kind is str else kind).reshape(len(columns[name]))
        for name, kind in COLUMNS.items()
    }
