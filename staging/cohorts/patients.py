"""Which patient and lymph node slides of any name are of: a table says it."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from staging.cohorts.camelyon import SlideFile, SlideListing
from staging.cohorts.names import slide_key
from staging.csv_rows import Entries, Row, read_rows, refuse_repeated
from staging.errors import SlideNameError, TableError, listed
from staging.lesions.labels import SlideLabel
from staging.stages.pn import BY_NAME, SlideNodes, parse_slide_name

_OF_CAMELYON = re.compile(r"patient_[0-9]+", re.IGNORECASE)
_HEADER = ("slide", "patient", "node")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientTable(SlideNodes):
    """The patient and node of slides by a table; of others by their CAMELYON17 names.

    A patient of the table can be staged once all slides that it lists are labelled; the largest label of a node counts.

    Attributes:
        nodes: (patient, node) by slide_key.
        path: the file it was read from.
        spelling: each slide_key as the file writes it.
    """

    nodes: Mapping[str, tuple[str, int]]
    path: Path
    spelling: Mapping[str, str] = field(default_factory=dict)

    def of(self, slide: str) -> tuple[str, int]:
        """Return (patient, node) of a slide.

        Raises:
            SlideNameError: neither the table nor the name says it.
        """
        found = self.nodes.get(slide_key(slide))
        if found is not None:
            return found
        try:
            return parse_slide_name(slide)
        except SlideNameError as error:
            reason = f"has no row for the slide {slide.strip()!r}, whose name does not give its patient"
            raise SlideNameError(self.path, reason, mend="add it") from error

    def obstacles(self, patient: str, slides: Mapping[str, int], count: int) -> list[str]:
        """Return which slides of the table are missing; of patients that it does not list, which nodes."""
        wanted = {slide for slide, (other, _) in self.nodes.items() if other == patient}
        if not wanted:
            return SlideNodes.obstacles(self, patient, slides, count)
        given = {slide_key(name) for name in slides}
        missing = [self.spelling.get(name, name) for name in sorted(wanted - given)]
        beyond = sorted(name for name in slides if slide_key(name) not in wanted)
        found = [f"missing {listed(missing)}"] if missing else []
        return [*found, f"the table lists some of its slides, but not {listed(beyond)}"] if beyond else found

    def without(self, slides: Iterable[str]) -> tuple[str, ...]:
        """Return the patients of the table none of whose slides are among these, in the table's order."""
        there = {slide_key(name) for name in slides}
        shown = {patient for slide, (patient, _) in self.nodes.items() if slide in there}
        return tuple(dict.fromkeys(patient for patient, _ in self.nodes.values() if patient not in shown))

    def disputed(self, labels: Mapping[int, set[SlideLabel]]) -> str | None:  # noqa: ARG002
        """Return None: a node may have several slides."""
        return None

    def applied(self, listing: SlideListing) -> SlideListing:
        """The slides of a cohort with their patients and nodes."""
        return replace(listing, slides=tuple(self._applied(slide) for slide in listing.slides))

    def _applied(self, slide: SlideFile) -> SlideFile:
        patient, node = self.nodes.get(slide_key(slide.name), (slide.patient, slide.node))
        return replace(slide, patient=patient, node=node)


def read_patients(path: str | PathLike[str]) -> PatientTable:
    """Read the patient of each slide: rows ``slide,patient[,node]``, or a header with these columns among others.

    Without nodes, a patient's slides are nodes of their own. Nodes may be numbers or any text. Patients written in
    another case are one.

    Raises:
        TableError: unreadable, no rows, a row of another form, or a header without slide or patient.
        ConflictError: a slide has two patients or nodes.
    """
    path = Path(path)
    rows = read_rows(path)
    columns = _columns(path, rows[0]) if rows else None
    slides: Entries[tuple[str, str]] = Entries(path)
    spelling: dict[str, str] = {}
    slide_spelling: dict[str, str] = {}
    for line, cells in rows if columns is None else rows[1:]:
        slide, patient, node = _cells(path, line, cells, columns)
        name = slide_key(slide)
        slide_spelling.setdefault(name, slide)
        patient = unicodedata.normalize("NFC", patient)
        if _OF_CAMELYON.fullmatch(patient):
            patient = patient.lower()
        slides.add(line, name, (spelling.setdefault(patient.casefold(), patient), node or name))
    if not slides.values:
        raise TableError(path, "has no row for a slide", mend="rows are like S21-1234_A1.tif,S21-1234,1")
    number: defaultdict[str, dict[str, int]] = defaultdict(dict)
    nodes = {}
    for name, (patient, node) in slides.values.items():
        nodes[name] = patient, number[patient].setdefault(node, len(number[patient]))
    return PatientTable(nodes=nodes, path=path, spelling=slide_spelling)


def _columns(path: Path, first: Row) -> tuple[int, int, int | None] | None:
    """Return where slide, patient and node stand, if the first row is a header."""
    line, cells = first
    names = [cell.lower() for cell in cells]
    if not {"slide", "patient"} & set(names):
        return None
    refuse_repeated(path, names, line)
    lacking = [name for name in _HEADER[:2] if name not in names]
    if lacking:
        mend = "name the columns slide, patient and, if there is one, node"
        raise TableError(path, f"its header has no column {lacking[0]}", where=f"line {line}", mend=mend)
    return names.index("slide"), names.index("patient"), names.index("node") if "node" in names else None


def _cells(
    path: Path, line: int, cells: tuple[str, ...], columns: tuple[int, int, int | None] | None
) -> tuple[str, str, str]:
    """Return slide, patient and node of a row; the node is empty if it gives none."""
    at = (0, 1, 2) if columns is None else columns
    slide, patient, node = ("" if one is None or one >= len(cells) else cells[one] for one in at)
    if not (slide and patient) or (columns is None and any(cells[3:])):
        raise TableError(
            path,
            f"the row {','.join(cells)[:60]!r} is not a slide's name and its patient",
            where=f"line {line}",
            mend="write slide,patient or slide,patient,node; further columns need a header",
        )
    return slide, patient, node


def nodes_of(path: Path | None) -> SlideNodes:
    """Return what a table says if there is one, else what names say.

    Raises:
        TableError, ConflictError: as read_patients.
    """
    return BY_NAME if path is None else read_patients(path)


def with_patients(listing: SlideListing, nodes: SlideNodes) -> SlideListing:
    """Return the slides of a cohort with the patients and nodes that a table says."""
    return nodes.applied(listing) if isinstance(nodes, PatientTable) else listing
