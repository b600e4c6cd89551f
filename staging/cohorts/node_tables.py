"""Tables with more about slides than their labels: the probability of each label, and the site of the node."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from staging.cohorts.names import slide_name
from staging.csv_rows import Entries, decimal, in_line, read_rows
from staging.errors import TableError, UnsupportedStageError
from staging.lesions.labels import SlideLabel
from staging.stages.pn import BY_NAME, SlideNodes
from staging.stages.tnm import Detection, NodeCounts, Site, TnmStage, stage_nodes

PROBABILITY_COLUMNS = tuple(label.value for label in SlideLabel)
SITE_COLUMNS = ("slide", "site", "detection")
_FARTHEST_SUM = 5e-3  # probabilities are written with a few digits


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSite:
    """The site of a slide's node, and how its metastasis was detected (internal mammary nodes only)."""

    site: Site
    detection: Detection | None = None

    def __str__(self) -> str:
        return self.site.value if self.detection is None else f"{self.site.value} ({self.detection.value})"


def read_label_probabilities(path: str | PathLike[str]) -> dict[str, tuple[float, ...]] | None:
    """Read the probability of each label, from a table with the columns slide, negative, itc, micro and macro.

    Returns:
        By slide, probabilities in the order of SlideLabel, scaled to sum to 1; None if the table has no such columns.

    Raises:
        TableError: unreadable, only some of the columns, or a row whose probabilities do not sum to 1.
        ConflictError: two rows of one slide contradict each other.
    """
    path = Path(path)
    rows = read_rows(path)
    header = [cell.lower() for cell in rows[0][1]] if rows else []
    known = [name for name in PROBABILITY_COLUMNS if name in header]
    if header[:1] != ["slide"] or not known:
        return None
    if len(known) < len(PROBABILITY_COLUMNS):
        missing = ", ".join(name for name in PROBABILITY_COLUMNS if name not in header)
        raise TableError(path, f"has probabilities for some labels but not for {missing}", where="line 1")
    columns = [header.index(name) for name in PROBABILITY_COLUMNS]
    found: Entries[tuple[float, ...]] = Entries(path)
    for line, cells in rows[1:]:
        shares = _probabilities(path, line, [cells[at] if at < len(cells) else "" for at in columns])
        found.add(line, slide_name(cells[0]), shares)
    return found.values


def _probabilities(path: Path, line: int, texts: list[str]) -> tuple[float, ...]:
    values = [decimal(text) for text in texts]
    shares = [value for value in values if value is not None and 0 <= value <= 1]
    if len(shares) < len(texts) or abs(math.fsum(shares) - 1) > _FARTHEST_SUM:
        raise TableError(
            path,
            f"{','.join(texts)!r} are not probabilities that sum to 1",
            where=f"line {line}",
            mend=f"give {', '.join(PROBABILITY_COLUMNS)} from 0 to 1",
        )
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def read_node_sites(path: str | PathLike[str]) -> dict[str, NodeSite]:
    """Read node sites from a table ``slide,site,detection``: a Site; sentinel, clinical or none.

    Raises:
        TableError: unreadable, or another header.
        UnknownLabelError: a site or way of detection is unknown.
        ConflictError: two rows of one slide contradict each other.
    """
    path = Path(path)
    rows = read_rows(path)
    if not rows or tuple(cell.lower() for cell in rows[0][1]) not in (SITE_COLUMNS, SITE_COLUMNS[:2]):
        raise TableError(
            path, "is not a table of sites", where="line 1", mend=f"its header is {','.join(SITE_COLUMNS)}"
        )
    found: Entries[NodeSite] = Entries(path)
    for line, cells in rows[1:]:
        site, detection, *_ = [*cells[1:], "", ""]
        with in_line(path, line):
            node = NodeSite(site=Site.parse(site), detection=Detection.parse(detection) if detection else None)
        found.add(line, slide_name(cells[0]), node)
    return found.values


def tnm_stages(
    labels: Mapping[str, SlideLabel], sites: Mapping[str, NodeSite], nodes: SlideNodes = BY_NAME
) -> tuple[dict[str, TnmStage], dict[str, str]]:
    """Return the pN category of each patient by staging.stages.tnm, and the reason for every patient without one.

    Args:
        labels: by slide (``patient_000_node_0``), of patients with all their slides.
        sites: by slide.
        nodes: which patient and node each slide is of.
    """
    patients: dict[str, list[str]] = {}
    for slide in labels:
        patient = nodes.patient(slide)
        if patient is not None:
            patients.setdefault(patient, []).append(slide)
    stages: dict[str, TnmStage] = {}
    reasons: dict[str, str] = {}
    for patient, slides in patients.items():
        unknown = [slide for slide in slides if slide not in sites]
        if unknown:
            reasons[patient] = f"the site of {', '.join(unknown)} is not given"
            continue
        of_nodes: dict[int, list[str]] = {}
        for slide in slides:
            of_nodes.setdefault(nodes.of(slide)[1], []).append(slide)
        divided = [found for found in of_nodes.values() if len({sites[slide] for slide in found}) > 1]
        if divided:
            reasons[patient] = f"{', '.join(divided[0])} are of one node, but their sites differ"
            continue
        try:
            # a node counts once, by the worst of its slides
            worst = {found[0]: max(labels[slide] for slide in found) for found in of_nodes.values()}
            stages[patient] = _tnm_stage(worst, sites)
        except UnsupportedStageError as error:
            reasons[patient] = str(error)
    return stages, reasons


def _tnm_stage(labels: Mapping[str, SlideLabel], sites: Mapping[str, NodeSite]) -> TnmStage:
    """Stage one slide of each node."""
    of_site = {site: [label for slide, label in labels.items() if sites[slide].site is site] for site in Site}
    ways = {
        sites[slide].detection
        for slide, label in labels.items()
        if sites[slide].site is Site.INTERNAL_MAMMARY and label >= SlideLabel.MICRO
    }
    # one clinically detected node makes the site clinically detected
    detection = Detection.CLINICAL if Detection.CLINICAL in ways else None
    if ways == {Detection.SENTINEL}:
        detection = Detection.SENTINEL
    return stage_nodes(
        NodeCounts.of(of_site[Site.AXILLARY]),
        NodeCounts.of(of_site[Site.INTERNAL_MAMMARY]),
        detection=detection,
        infraclavicular=NodeCounts.of(of_site[Site.INFRACLAVICULAR]),
        supraclavicular=NodeCounts.of(of_site[Site.SUPRACLAVICULAR]),
    )
