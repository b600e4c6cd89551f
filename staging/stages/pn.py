"""The pN-stage of a patient from the labels of the five slides, by the rule of CAMELYON17."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from staging.errors import SlideNameError, listed
from staging.lesions.labels import Ranked, SlideLabel

EXPECTED_NODES = 5
"""Slides of a CAMELYON17 patient: one per lymph node, node_0 to node_4."""

_PN2_NODES = 4
_FARTHEST_SUM = 1e-6
_SLIDE_NAME = re.compile(r"(patient_[0-9]+)_node_([0-9]+)(?:\.[a-z]+)*", re.IGNORECASE)


class PatientStage(Ranked):
    """The pathologic stage of the lymph nodes; PN0 < PN0_I_PLUS < PN1MI < PN1 < PN2, as kappa ranks them."""

    PN0 = "pN0"
    PN0_I_PLUS = "pN0(i+)"
    PN1MI = "pN1mi"
    PN1 = "pN1"
    PN2 = "pN2"

    @classmethod
    def _noun(cls) -> str:
        return "stage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unscored:
    """A patient without a stage, and why."""

    patient: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The stages of a cohort: every patient is either staged or unscored.

    Attributes:
        stages: stages by patient (``patient_000``), in order of patient number.
        unscored: the patients that cannot be staged, in the same order.
        at_least: staged patients with a slide that was seen only in part: their stage is a lower bound.
    """

    stages: dict[str, PatientStage] = field(default_factory=dict)
    unscored: tuple[Unscored, ...] = ()
    at_least: frozenset[str] = frozenset()


def parse_slide_name(name: str) -> tuple[str, int]:
    """Parse (patient, node) from a CAMELYON17 slide name: ``patient_000_node_0``, with or without suffixes, any case.

    Raises:
        SlideNameError: the name is of another form.
    """
    match = _SLIDE_NAME.fullmatch(name.strip())
    if match is None:
        raise SlideNameError(
            None,
            f"the slide name {name.strip()!r} does not give patient and node",
            mend="name slides like patient_000_node_0, or give a table of patients",
        )
    return match.group(1).lower(), int(match.group(2))


def stage_patient(labels: Iterable[SlideLabel]) -> PatientStage:
    """Return the stage of a patient with these slide labels, one per node.

    CAMELYON17 (camelyon17.grand-challenge.org/Evaluation): a macro-metastasis and four or more positive nodes are pN2,
    a macro-metastasis pN1, a micro-metastasis pN1mi, isolated tumour cells pN0(i+), else pN0. Nodes with only isolated
    tumour cells are not positive.

    Raises:
        ValueError: no labels: a patient without slides has no stage.
    """
    nodes = tuple(labels)
    if not nodes:
        raise ValueError("a patient without slide labels has no stage")
    if SlideLabel.MACRO in nodes:
        positive = sum(node >= SlideLabel.MICRO for node in nodes)
        return PatientStage.PN2 if positive >= _PN2_NODES else PatientStage.PN1
    if SlideLabel.MICRO in nodes:
        return PatientStage.PN1MI
    return PatientStage.PN0_I_PLUS if SlideLabel.ITC in nodes else PatientStage.PN0


def stage_probabilities(nodes: Iterable[Sequence[float]]) -> dict[PatientStage, float]:
    """Compute the probability of each stage of a patient from label probabilities of each node.

    Exact for independent nodes: the nodes are added one by one to the joint distribution of everything that the rule of
    stage_patient uses (any macro-metastasis, any isolated tumour cells, and the number of positive nodes up to four),
    so the time is proportional to the number of nodes.

    Args:
        nodes: for each node the probability of every SlideLabel, in order.

    Returns:
        The probability of every stage; they sum to 1.

    Raises:
        ValueError: no nodes, or a node's numbers are not probabilities that sum to 1.
    """
    states: dict[tuple[bool, bool, int], float] = {(False, False, 0): 1.0}
    count = 0
    for node in nodes:
        _check_probabilities(node)
        count += 1
        after: defaultdict[tuple[bool, bool, int], list[float]] = defaultdict(list)
        for (macro, itc, positive), weight in states.items():
            for label, share in zip(SlideLabel, node, strict=True):
                state = (
                    macro or label is SlideLabel.MACRO,
                    itc or label is SlideLabel.ITC,
                    min(_PN2_NODES, positive + (label >= SlideLabel.MICRO)),
                )
                after[state].append(weight * share)
        states = {state: math.fsum(shares) for state, shares in after.items()}
    if not count:
        raise ValueError("a patient without slide labels has no stage")
    found: dict[PatientStage, list[float]] = {stage: [] for stage in PatientStage}
    for state, weight in states.items():
        found[_stage_of(*state)].append(weight)
    total = math.fsum(states.values())
    return {stage: math.fsum(weights) / total for stage, weights in found.items()}


def _stage_of(macro: bool, itc: bool, positive: int) -> PatientStage:  # noqa: FBT001  (a state, not options)
    """Return the stage of a patient from these facts alone."""
    nodes = [SlideLabel.MACRO] * macro + [SlideLabel.MICRO] * (positive - macro) + [SlideLabel.ITC] * itc
    return stage_patient([*nodes, SlideLabel.NEGATIVE])


def _check_probabilities(node: Sequence[float]) -> None:
    if len(node) != len(SlideLabel) or not all(0 <= share <= 1 for share in node):
        raise ValueError(
            f"a node needs a probability from 0 to 1 for each of {len(SlideLabel)} labels, got {list(node)}"
        )
    if abs(math.fsum(node) - 1) > _FARTHEST_SUM:
        raise ValueError(f"a node's probabilities must sum to 1, got {math.fsum(node)}")


class SlideNodes:
    """Which patient and lymph node a slide is of: what CAMELYON17's names say, a slide per node."""

    def of(self, slide: str) -> tuple[str, int]:
        """Return (patient, node) of a slide by its name, with or without suffix.

        Raises:
            SlideNameError: it is not known.
        """
        return parse_slide_name(slide)

    def patient(self, slide: str) -> str | None:
        """Return the patient of a slide, None if it is not known."""
        try:
            return self.of(slide)[0]
        except SlideNameError:
            return None

    def obstacles(self, patient: str, slides: Mapping[str, int], count: int) -> list[str]:  # noqa: ARG002
        """Return what speaks against staging a patient with these slides, given with their nodes.

        Args:
            patient: as ``of`` returns it.
            slides: the node of each slide that is labelled or has failed.
            count: expected nodes, numbered from 0.
        """
        nodes = set(slides.values())
        missing, unexpected = sorted(set(range(count)) - nodes), sorted(nodes - set(range(count)))
        found = [f"missing {_listed(missing)}"] if missing else []
        return [*found, f"more than {count} nodes: {_listed(unexpected)}"] if unexpected else found

    def without(self, slides: Iterable[str]) -> tuple[str, ...]:  # noqa: ARG002
        """Return patients that are known to exist but have none of these slides."""
        return ()

    def disputed(self, labels: Mapping[int, set[SlideLabel]]) -> str | None:
        """Return what is wrong with the labels of each node of a patient, or None."""
        nodes = sorted(node for node, found in labels.items() if len(found) > 1)
        return f"conflicting labels for {_listed(nodes)}" if nodes else None


BY_NAME = SlideNodes()


def stage_patients(
    labels: Mapping[str, SlideLabel],
    *,
    failed: Mapping[str, str] | None = None,
    partial: Collection[str] = (),
    expected_nodes: int = EXPECTED_NODES,
    nodes: SlideNodes = BY_NAME,
) -> Staging:
    """Stage every patient with all slides; give the reason for every other.

    Args:
        labels: labels by slide name (``patient_000_node_0``, with or without a suffix).
        failed: reasons by slide name, for slides without a label. A slide in both counts as failed.
        partial: slides, among those with a label, that were seen only in part.
        expected_nodes: slides per patient, numbered from 0, where names give the node.
        nodes: which patient and node each slide is of.

    Returns:
        Stages and unscored patients. A slide whose patient is not known is among the unscored by its own name.
    """
    failed = failed or {}
    slides: defaultdict[str, dict[str, int]] = defaultdict(dict)
    strangers: list[Unscored] = []
    for name in dict.fromkeys([*labels, *failed]):
        try:
            patient, node = nodes.of(name)
        except SlideNameError as error:
            strangers.append(Unscored(patient=name, reason=error.reason))
            continue
        slides[patient][name] = node

    stages: dict[str, PatientStage] = {}
    unscored: list[Unscored] = []
    for patient in sorted(slides, key=patient_order):
        found = slides[patient]
        reasons = [*nodes.obstacles(patient, found, expected_nodes), *_failures(found, failed)]
        of_nodes: defaultdict[int, set[SlideLabel]] = defaultdict(set)
        for name, node in found.items():
            if name not in failed:
                of_nodes[node].add(labels[name])
        dispute = nodes.disputed(of_nodes)
        if reasons or dispute:
            unscored.append(Unscored(patient=patient, reason="; ".join([*reasons, *([dispute] if dispute else [])])))
        else:
            stages[patient] = stage_patient(max(of_node) for of_node in of_nodes.values())
    partly = {nodes.patient(name) for name in partial}  # which may be written otherwise than among the labels
    return Staging(
        stages=stages,
        unscored=(*unscored, *sorted(strangers, key=lambda one: one.patient)),
        at_least=frozenset(stages.keys() & partly),
    )


def patient_order(patient: str) -> tuple[int, int, str]:
    """Sort key of patients: ``patient_000`` by number, then others by name."""
    number = patient.removeprefix("patient_")
    return (0, int(number), patient) if number.isascii() and number.isdigit() else (1, 0, patient)


def _failures(slides: Mapping[str, int], failed: Mapping[str, str]) -> list[str]:
    texts = [f"node_{node} ({failed[name]})" for name, node in sorted(slides.items(), key=_node) if name in failed]
    return ["failed " + "; ".join(texts)] if texts else []


def _node(slide: tuple[str, int]) -> tuple[int, str]:
    return slide[1], slide[0]


def _listed(nodes: Iterable[int]) -> str:
    return listed([f"node_{node}" for node in nodes])
