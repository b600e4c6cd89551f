"""Which patient and lymph node slides of any name are of: a table says it."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from staging.cohorts.camelyon import SlideFile, SlideListing
from staging.cohorts.names import slide_key
from staging.csv_rows import Entries, read_rows
from staging.errors import SlideNameError, TableError, listed
from staging.lesions.labels import SlideLabel
from staging.stages.pn import BY_NAME, SlideNodes, parse_slide_name

_HEADER = ("slide", "patient", "node")


@dataclass(frozen=True, slots=True, kw_only=True)
class PatientTable(SlideNodes):
    """The patient and node of slides by a table; of others by their CAMELYON17 names.

    A patient of the table can be staged once all slides that it lists are labelled; the largest label of a node counts.

    Attributes:
        nodes: (patient, node) by slide_key.
        path: the file it was read from.
    """

    nodes: Mapping[str, tuple[str, int]]
    path: Path

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
        wanted = [slide for slide, (other, _) in self.nodes.items() if other == patient]
        if not wanted:
            return SlideNodes.obstacles(self, patient, slides, count)
        missing = sorted(set(wanted) - {slide_key(name) for name in slides})
        return [f"missing {listed(missing)}"] if missing else []

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
    """Read the patient of each slide, from rows ``slide,patient[,node]`` with or without this header.

    Without the column, a patient's slides are nodes of their own. Nodes may be numbers or any text.

    Raises:
        TableError: unreadable, no rows, or a row of another form.
        ConflictError: a slide has two patients or nodes.
    """
    path = Path(path)
    rows = read_rows(path)
    if rows and tuple(cell.lower() for cell in rows[0][1][:2]) == _HEADER[:2]:
        rows = rows[1:]
    slides: Entries[tuple[str, str]] = Entries(path)
    for line, cells in rows:
        if len(cells) < 2 or not all(cells[:2]):
            raise TableError(
                path,
                f"the row {','.join(cells)[:60]!r} is not a slide's name and its patient",
                where=f"line {line}",
                mend="write slide,patient or slide,patient,node",
            )
        name = slide_key(cells[0])
        patient = unicodedata.normalize("NFC", cells[1])
        slides.add(line, name, (patient, cells[2] if len(cells) > 2 and cells[2] else name))
    if not slides.values:
        raise TableError(path, "has no row for a slide", mend="rows are like S21-1234_A1.tif,S21-1234,1")
    number: defaultdict[str, dict[str, int]] = defaultdict(dict)
    nodes = {}
    for name, (patient, node) in slides.values.items():
        nodes[name] = patient, number[patient].setdefault(node, len(number[patient]))
    return PatientTable(nodes=nodes, path=path)


def nodes_of(path: Path | None) -> SlideNodes:
    """Return what a table says if there is one, else what names say.

    Raises:
        TableError, ConflictError: as read_patients.
    """
    return BY_NAME if path is None else read_patients(path)


def with_patients(listing: SlideListing, nodes: SlideNodes) -> SlideListing:
    """Return the slides of a cohort with the patients and nodes that a table says."""
    return nodes.applied(listing) if isinstance(nodes, PatientTable) else listing
