"""What tables say of slides beyond their labels: the probability of each label, and where the node lay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from staging.cohorts.names import slide_key
from staging.csv_rows import Row, decimal, read_rows
from staging.errors import ConflictError, SlideNameError, TableError, UnknownLabelError, UnsupportedStageError
from staging.lesions.labels import SlideLabel
from staging.stages.pn import parse_slide_name
from staging.stages.tnm import Detection, NodeCounts, Site, TnmStage, stage_nodes

PROBABILITY_COLUMNS = tuple(label.value for label in SlideLabel)
SITE_COLUMNS = ("slide", "site", "detection")
_FARTHEST_SUM = 5e-3  # probabilities are written with a few digits


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSite:
    """Where the node of a slide lay, and how its metastasis was found (internal mammary nodes only)."""

    site: Site
    detection: Detection | None = None


def read_label_probabilities(path: str | PathLike[str]) -> dict[str, tuple[float, ...]] | None:
    """The probability of each label, from a table with the columns slide, negative, itc, micro and macro.

    Returns:
        Probabilities in the order of SlideLabel by slide, scaled to sum to 1; None where the table has no such columns.

    Raises:
        TableError: unreadable, some of the columns only, or a row without probabilities that sum to 1.
        ConflictError: a slide has two rows.
    """
    path = Path(path)
    rows = read_rows(path)
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    known = [name for name in PROBABILITY_COLUMNS if name in header]
    if header[:1] != ["slide"] or not known:
        return None
    if len(known) < len(PROBABILITY_COLUMNS):
        missing = ", ".join(name for name in PROBABILITY_COLUMNS if name not in header)
        raise TableError(path, f"has probabilities of some labels but not of {missing}", where="line 1")
    columns = [header.index(name) for name in PROBABILITY_COLUMNS]
    found: dict[str, tuple[float, ...]] = {}
    lines: dict[str, int] = {}
    for line, cells in rows[1:]:
        slide = _slide(cells[0])
        _refuse_second(path, slide, line, lines)
        found[slide] = _probabilities(path, line, [cells[at] if at < len(cells) else "" for at in columns])
    return found


def _probabilities(path: Path, line: int, texts: list[str]) -> tuple[float, ...]:
    values = [decimal(text) for text in texts]
    shares = [value for value in values if value is not None and 0 <= value <= 1]
    if len(shares) < len(texts) or abs(math.fsum(shares) - 1) > _FARTHEST_SUM:
        raise TableError(
            path,
            f"{','.join(texts)!r} are no probabilities that sum to 1",
            where=f"line {line}",
            mend=f"give {', '.join(PROBABILITY_COLUMNS)} from 0 to 1",
        )
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def read_node_sites(path: str | PathLike[str]) -> dict[str, NodeSite]:
    """Where nodes lay, from a table ``slide,site,detection``: axillary or internal mammary; sentinel, clinical or none.

    Raises:
        TableError: unreadable, or another header.
        UnknownLabelError: a site or way of detection is none of the known ones.
        ConflictError: a slide has two rows.
    """
    path = Path(path)
    rows = read_rows(path)
    if not rows or tuple(cell.lower() for cell in rows[0][1]) not in (SITE_COLUMNS, SITE_COLUMNS[:2]):
        raise TableError(path, "is no table of sites", where="line 1", mend=f"its header is {','.join(SITE_COLUMNS)}")
    found: dict[str, NodeSite] = {}
    lines: dict[str, int] = {}
    for row in rows[1:]:
        slide = _slide(row[1][0])
        _refuse_second(path, slide, row[0], lines)
        found[slide] = _site(path, row)
    return found


def _site(path: Path, row: Row) -> NodeSite:
    line, cells = row
    texts = [*cells[1:], "", ""]
    try:
        return NodeSite(site=Site.parse(texts[0]), detection=Detection.parse(texts[1]) if texts[1] else None)
    except UnknownLabelError as error:
        raise UnknownLabelError(path, error.reason, where=f"line {line}", mend=error.mend) from None


def _slide(name: str) -> str:
    """A slide's name as the tables of labels have it."""
    try:
        patient, node = parse_slide_name(name)
    except SlideNameError:
        return slide_key(name)
    return f"{patient}_node_{node}"


def _refuse_second(path: Path, slide: str, line: int, lines: dict[str, int]) -> None:
    if slide in lines:
        raise ConflictError(
            path, f"has two rows of {slide}", where=f"lines {lines[slide]} and {line}", mend="keep one of the rows"
        )
    lines[slide] = line


def tnm_stages(
    labels: Mapping[str, SlideLabel], sites: Mapping[str, NodeSite]
) -> tuple[dict[str, TnmStage], dict[str, str]]:
    """The pN category of each patient by staging.stages.tnm, and the reason of every patient that has none.

    Args:
        labels: by slide (``patient_000_node_0``), of patients whose slides are all there.
        sites: by slide.
    """
    patients: dict[str, list[str]] = {}
    for slide in labels:
        try:
            patients.setdefault(parse_slide_name(slide)[0], []).append(slide)
        except SlideNameError:
            continue
    stages: dict[str, TnmStage] = {}
    reasons: dict[str, str] = {}
    for patient, slides in patients.items():
        unknown = [slide for slide in slides if slide not in sites]
        if unknown:
            reasons[patient] = f"the site of {', '.join(unknown)} is not given"
            continue
        try:
            stages[patient] = _tnm_stage({slide: labels[slide] for slide in slides}, sites)
        except UnsupportedStageError as error:
            reasons[patient] = str(error)
    return stages, reasons


def _tnm_stage(labels: Mapping[str, SlideLabel], sites: Mapping[str, NodeSite]) -> TnmStage:
    of_site = {site: [label for slide, label in labels.items() if sites[slide].site is site] for site in Site}
    ways = {
        sites[slide].detection
        for slide, label in labels.items()
        if sites[slide].site is Site.INTERNAL_MAMMARY and label >= SlideLabel.MICRO
    }
    # one node that was found clinically makes the site clinically detected
    detection = Detection.CLINICAL if Detection.CLINICAL in ways else None
    if ways == {Detection.SENTINEL}:
        detection = Detection.SENTINEL
    return stage_nodes(
        NodeCounts.of(of_site[Site.AXILLARY]),
        NodeCounts.of(of_site[Site.INTERNAL_MAMMARY]),
        detection=detection,
    )
