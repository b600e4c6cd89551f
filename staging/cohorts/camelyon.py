"""The CAMELYON datasets on disk: stage tables, slide names and folder layouts.

The file formats are those of camelyon17.grand-challenge.org (Data, Evaluation) and of Litjens et al., GigaScience 2018;
the same slides come in archives by centre and, flat, in the public object store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path

from staging.cohorts.names import slide_key, slide_name
from staging.cohorts.skipped import Skipped
from staging.csv_rows import Entries, csv_text, header_error, in_line, read_rows, refuse_repeated
from staging.errors import (
    DuplicateSlideError,
    NoSlidesError,
    PackedSlidesError,
    SlideNameError,
    TableError,
    listed,
)
from staging.lesions.labels import SlideLabel
from staging.stages.pn import BY_NAME, PatientStage, SlideNodes, parse_slide_name, patient_order
from wsi.readers.dicom import read_series, strangers
from wsi.readers.opening import name_slide, photograph_suffixes, slide_suffixes
from wsi.store import atomic_text

__all__ = [
    "SlideFile",
    "SlideListing",
    "StageTable",
    "find_slides",
    "list_slides",
    "read_label_table",
    "read_stage_table",
    "write_stage_table",
]


_NOT_SLIDES = frozenset(
    {"mask", "masks", "annotations", "lesion_annotations", "ground_truth", "background_tissue", "evaluation"}
)
_CALLED_A_SLIDE = "folder with the name of a slide"


_URL = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # a path has one of its slashes


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTable:
    """The stages of patients and the labels of slides, as in the organisers' stage_labels.csv.

    Attributes:
        stages: stage by patient (``patient_000``), from the rows that end in .zip.
        labels: label by slide (``patient_000_node_0``), from all other rows.
        unzipped: patients whose rows have a stage but no .zip: the organisers' score ignores them.
        path: the file it was read from.
        warnings: patients with several rows, and which of them counts, a line each.
    """

    stages: Mapping[str, PatientStage] = field(default_factory=dict)
    labels: Mapping[str, SlideLabel] = field(default_factory=dict)
    unzipped: tuple[str, ...] = ()
    path: Path | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideFile:
    """A slide of a cohort, before it is opened.

    Attributes:
        path: the file.
        name: its file name without suffix: the slide's id in every table.
        patient: ``patient_000``; None if the name does not give it.
        node: 0 to 4; None if the name does not give it.
    """

    path: Path
    name: str
    patient: str | None = None
    node: int | None = None


def read_stage_table(path: str | PathLike[str], *, submission: bool = False) -> StageTable:
    """Read a table in the organisers' format: header ``patient,stage``, rows ``patient_000.zip,pN0`` and
    ``patient_000_node_0.tif,negative``.

    LF or CRLF, a byte order mark, spaces, blank lines and any case are accepted; slides with or without suffix.

    Args:
        path: the CSV.
        submission: the last of several rows for a patient wins, as in the organisers' score, and ``warnings`` names
            them; otherwise the table is a reference, and contradictory rows are an error.

    Raises:
        TableError: it cannot be read, has another header, or a row does not have two columns.
        UnknownLabelError: a stage or slide label is unknown.
        ConflictError: a reference says two things about one patient or slide.
    """  # noqa: D205  (the two kinds of rows do not fit one line)
    path = Path(path)
    rows = _Rows(path)
    if rows.header[:2] != ["patient", "stage"]:
        raise header_error(path, rows.header, "the header patient,stage", mend="begin with patient,stage")
    stages: Entries[PatientStage] = Entries(path)
    labels: Entries[SlideLabel] = Entries(path)
    unzipped: list[str] = []
    for line, name, text in rows.pairs(exact=True):
        patient = _zipped(name)
        with in_line(path, line):
            if patient is not None:
                stages.add(line, patient, PatientStage.parse(text), last_wins=submission)
            elif _is_patient(name):
                unzipped.append(name.lower())
            else:
                labels.add(line, slide_name(name), SlideLabel.parse(text), last_wins=submission)
    repeated = tuple(
        f"{patient} has rows in lines {', '.join(map(str, lines))}: the last counts ({stages.values[patient].value})"
        for patient, lines in stages.repeated()
    )
    return StageTable(
        stages=stages.values, labels=labels.values, unzipped=tuple(unzipped), path=path, warnings=repeated
    )


def read_label_table(path: str | PathLike[str]) -> dict[str, SlideLabel]:
    """Read slide labels: the slide rows of the organisers' table, or a CSV with header ``slide,label[,...]``.

    Returns:
        Labels by slide name without suffix, in the order of the rows.

    Raises:
        TableError: it cannot be read, has neither header, or has no slide.
        UnknownLabelError: a label is unknown.
        ConflictError: two rows of one slide contradict each other.
    """
    path = Path(path)
    rows = _Rows(path)
    if rows.header[:2] == ["patient", "stage"]:
        labels = dict(read_stage_table(path).labels)
    elif rows.header[:2] == ["slide", "label"]:
        entries: Entries[SlideLabel] = Entries(path)
        for line, name, text in rows.pairs(exact=False):
            with in_line(path, line):
                entries.add(line, slide_name(name), SlideLabel.parse(text))
        labels = entries.values
    else:
        raise header_error(
            path, rows.header, "the header slide,label or patient,stage", mend="begin with slide,label or patient,stage"
        )
    if not labels:
        raise TableError(path, "has no row for a slide", mend="rows are like patient_000_node_0.tif,negative")
    return labels


def write_stage_table(
    path: str | PathLike[str],
    stages: Mapping[str, PatientStage],
    labels: Mapping[str, SlideLabel] | None = None,
    nodes: SlideNodes = BY_NAME,
) -> None:
    """Write a table in the organisers' format: each patient's row, then the rows of the patient's slides.

    Slides of a patient without a stage come in the same order, without a row for the patient; slides with other names
    come last, by their bare names. The file is complete or absent.

    Args:
        path: the CSV.
        stages: stage by patient (``patient_000``).
        labels: label by slide (``patient_000_node_0``, with or without suffix).
        nodes: which patient and node each slide is of.

    Raises:
        StorageError: it cannot be written.
    """
    rows: list[tuple[tuple[int, int, str], int, str, str]] = []
    for patient, stage in stages.items():
        name = patient.lower() if _is_patient(patient) else patient
        rows.append((patient_order(name), -1, f"{name}.zip", stage.value))
    for slide, label in (labels or {}).items():
        try:
            patient, node = nodes.of(slide)
        except SlideNameError:
            rows.append(((2, 0, slide), 0, slide, label.value))
            continue
        is_camelyon = _is_slide(slide)
        rows.append((patient_order(patient), node, f"{slide_name(slide)}.tif" if is_camelyon else slide, label.value))
    atomic_text(Path(path), csv_text(("patient", "stage"), ((name, value) for *_, name, value in sorted(rows))))


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideListing:
    """The slides of a cohort, sorted by name, and what was passed over in its folders."""

    slides: tuple[SlideFile, ...]
    skipped: tuple[Skipped, ...] = ()


def find_slides(paths: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[SlideFile]:
    """Find the slides of a cohort as list_slides does, without what was passed over."""
    return list(list_slides(paths).slides)


def list_slides(paths: str | PathLike[str] | Iterable[str | PathLike[str]]) -> SlideListing:
    """List the slides of a cohort: in folders of any depth (every CAMELYON layout is one), or named one by one.

    In folders, files are found by suffix; masks, annotations and hidden files are skipped, and photographs (JPEG, PNG)
    count only if there is nothing else. A file named itself always counts: its reader decides. A DICOM series, whose
    files are the levels of one slide, is represented by its folder if there is no other slide in it, else by its first
    file by name.

    Args:
        paths: one or more folders and files.

    Returns:
        Sorted by name, at least one slide.

    Raises:
        NoSlidesError: a path does not exist, or there is no slide.
        PackedSlidesError: slides are in zip archives and not unpacked beside them.
        DuplicateSlideError: two slides have the same name.
    """
    asked = [Path(paths)] if isinstance(paths, str | PathLike) else [Path(path) for path in paths]
    found: dict[Path, SlideFile] = {}
    skipped: list[Skipped] = []
    for path in asked:
        if not path.exists():
            if _URL.match(str(path)):
                raise NoSlidesError(None, "a URL was named: cohorts are read from disk", mend="copy the slides here")
            raise NoSlidesError(path, "does not exist", mend="name slides or their folder")
        files = _slides_below(path, skipped) if path.is_dir() else [path]
        if not path.is_dir() and path.suffix.lower() == ".zip":
            raise _packed(path, [path])
        found |= {file.absolute(): _slide_file(file) for file in files}
    if not found:
        raise NoSlidesError(None, "no slides were named", mend="name slides or their folder")
    slides = sorted(found.values(), key=lambda slide: (slide_key(slide.name), str(slide.path)))
    for one, other in pairwise(slides):
        if slide_key(one.name) == slide_key(other.name):
            raise DuplicateSlideError(
                other.path,
                f"has the same name as {one.path}",
                mend="rename one of them: results are kept by slide name",
            )
    left = {one.path: one for one in skipped if one.path.absolute() not in found}
    return SlideListing(slides=tuple(slides), skipped=tuple(left[path] for path in sorted(left)))


class _Rows:
    """The rows of a small CSV with their line numbers; ``header`` is lower case without spaces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        header, *self._rows = read_rows(path) or ((0, ()),)
        self.header = [cell.lower() for cell in header[1]]
        refuse_repeated(path, self.header, header[0])

    def pairs(self, *, exact: bool) -> Iterator[tuple[int, str, str]]:
        """Yield (line, first cell, second cell) of every non-blank row; ``exact`` refuses further cells."""
        for line, row in self._rows:
            filled = len(row) if exact else min(len(row), 2)
            while filled > 2 and not row[filled - 1]:
                filled -= 1
            if filled != 2 or not row[0]:
                raise TableError(
                    self.path,
                    f"the row {','.join(row)!r} is not a name and a label",
                    where=f"line {line}",
                    mend="write one name, a comma and one label per row",
                )
            yield line, row[0], row[1]


def _zipped(name: str) -> str | None:
    """Return the patient of a row that the organisers' score reads, or None."""
    if not name.lower().endswith(".zip"):
        return None
    patient = name[: -len(".zip")].strip()
    return patient.lower() if _is_patient(patient) else patient


def _is_patient(name: str) -> bool:
    head, _, number = name.lower().partition("_")
    return head == "patient" and number.isascii() and number.isdigit()


def _is_slide(name: str) -> bool:
    try:
        parse_slide_name(name)
    except SlideNameError:
        return False
    return True


def _slide_file(path: Path) -> SlideFile:
    name = name_slide(path)
    try:
        patient, node = parse_slide_name(name)
    except SlideNameError:
        return SlideFile(path=path, name=name)
    return SlideFile(path=path, name=name, patient=patient, node=node)


def _slides_below(folder: Path, skipped: list[Skipped]) -> list[Path]:
    files = list(_files_below(folder, skipped))
    series, files = _split_series(files)
    slides = series + [file for file in files if file.suffix.lower() in slide_suffixes()]
    photographs = [file for file in files if file.suffix.lower() in photograph_suffixes()]
    if slides:
        skipped += (Skipped(path=file, reason="photograph beside slides") for file in photographs)
    slides = slides or photographs
    archives = [file for file in files if file.suffix.lower() == ".zip"]
    unpacked = {_slide_file(slide).patient for slide in slides} | {slide.parent.name.lower() for slide in slides}
    packed = [file for file in archives if file.stem.lower() not in unpacked]
    if slides:
        packed = [file for file in packed if _is_patient(file.stem)]
    if packed:
        raise _packed(folder, packed)
    known = slide_suffixes() | photograph_suffixes()
    if not slides:
        raise NoSlidesError(folder, "contains no slides", mend=f"known suffixes are {' '.join(sorted(known))}")
    skipped += (Skipped(path=file, reason="archive") for file in archives)
    own = {slide.with_suffix("") for slide in slides if slide.suffix.lower() == ".mrxs"}  # folders of MIRAX's data
    strangers = (file for file in files if file.suffix.lower() not in known | {".zip"} and file.parent not in own)
    skipped += (Skipped(path=file, reason="of unknown suffix") for file in strangers)
    within = {parent for slide in slides for parent in slide.parents}
    skipped[:] = [one for one in skipped if one.path not in within]
    return slides


def _split_series(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Return what stands for slides of several DICOM files, and the other files.

    A folder whose only slide is such a series stands for it; of a series beside other slides the first file does. Files
    that are different pictures in spite of one series stay as they are; none of them can be opened.
    """
    slides: list[Path] = []
    taken: set[Path] = set()
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    for folder, within in folders.items():
        series: dict[str, list[Path]] = {}
        for file in filter(_may_be_dicom, within):
            name = read_series(file)
            if name is not None:
                series.setdefault(name, []).append(file)
        several = [one for one in series.values() if len(one) > 1 and strangers(one) is None]
        taken.update(file for one in several for file in one)
        others = [file for file in within if file.suffix.lower() in slide_suffixes() and file not in taken]
        is_alone = len(several) == len(series) == 1 and not others
        slides += [folder] if is_alone else [one[0] for one in several]
    return slides, [file for file in files if file not in taken]


def _may_be_dicom(file: Path) -> bool:
    """Whether a file is called like DICOM's: .dcm, or no suffix, or the last number of an identifier as one."""
    suffix = file.suffix.lower()
    return suffix in ("", ".dcm") or suffix[1:].isdigit()


def _files_below(folder: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield files in a folder and below that may be slides or archives; links to folders are followed once."""
    entered: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        reasons = {name: _folder_reason(name) for name in folders}
        skipped += (Skipped(path=Path(root, name), reason=reason) for name, reason in reasons.items() if reason)
        folders[:] = sorted(name for name, reason in reasons.items() if not reason or reason == _CALLED_A_SLIDE)
        for name in sorted(files):
            reason = _file_reason(name)
            if reason:
                skipped.append(Skipped(path=Path(root, name), reason=reason))
            else:
                yield Path(root, name)


def _folder_reason(name: str) -> str:
    """Return why a folder is no part of the cohort; empty if it is. One called like a slide is, if it holds slides."""
    if name.startswith("."):
        return "hidden"
    if name.lower() in _NOT_SLIDES:
        return "folder of masks or annotations"
    suffix = Path(name).suffix.lower()
    if suffix == ".zarr":
        return "Zarr folder"
    return _CALLED_A_SLIDE if suffix in slide_suffixes() | photograph_suffixes() else ""


def _file_reason(name: str) -> str:
    """Return why a file cannot be a slide whatever its suffix; empty if it can."""
    if name.startswith("."):
        return "hidden"
    stem = Path(name).stem.lower()
    return "mask or annotations" if stem.endswith("_mask") or "annotations" in stem else ""


def _packed(path: Path, archives: list[Path]) -> PackedSlidesError:
    names = listed([archive.name for archive in archives])
    return PackedSlidesError(
        path, f"slides are still packed in {names}", mend="unpack them (unzip NAME.zip), or name the unpacked slides"
    )
