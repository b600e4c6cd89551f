"""The pathologic N category of breast cancer, for more than CAMELYON17 asks: node site, clinical detection, more nodes.

Source: S. B. Edge et al. (eds.), AJCC Cancer Staging Manual, 7th edition, 2010, chapter 32 (Breast), and M. B. Amin
et al. (eds.), 8th edition, 2017, chapter 48 (Breast), section "Pathological (pN)". Both editions agree on every
combination that is staged here. Where they differ, or neither names the combination, an error is raised instead of
guessing; molecular findings are not supported. docs/tnm.md has a row for every combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from staging.errors import UnsupportedStageError
from staging.lesions.labels import Ranked, SlideLabel

_MOST_N1, _MOST_N2 = 3, 9


class TnmStage(Ranked):
    """The pN categories, in the order of the manuals."""

    PN0 = "pN0"
    PN0_I_PLUS = "pN0(i+)"
    PN1MI = "pN1mi"
    PN1A = "pN1a"
    PN1B = "pN1b"
    PN1C = "pN1c"
    PN2A = "pN2a"
    PN2B = "pN2b"
    PN3A = "pN3a"
    PN3B = "pN3b"
    PN3C = "pN3c"

    @classmethod
    def _noun(cls) -> str:
        return "stage"


class Site(Ranked):
    """The site of a node, on the side of the tumour."""

    AXILLARY = "axillary"
    INTERNAL_MAMMARY = "internal mammary"
    INFRACLAVICULAR = "infraclavicular"
    SUPRACLAVICULAR = "supraclavicular"

    @classmethod
    def _noun(cls) -> str:
        return "site of a node"


class Detection(Ranked):
    """How metastases in internal mammary nodes were found.

    SENTINEL: by sentinel node biopsy, and not clinically. CLINICAL: by imaging (without lymphoscintigraphy) or clinical
    examination.
    """

    SENTINEL = "sentinel"
    CLINICAL = "clinical"

    @classmethod
    def _noun(cls) -> str:
        return "way of detection"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCounts:
    """The examined nodes of one site.

    Attributes:
        macro: nodes whose largest metastasis is larger than 2 mm.
        micro: larger than 0.2 mm (or more than 200 cells), none larger than 2 mm.
        itc: isolated tumour cells only; such nodes are not positive.
        examined: all nodes, the negative ones included.
    """

    macro: int = 0
    micro: int = 0
    itc: int = 0
    examined: int = 0

    def __post_init__(self) -> None:
        if min(self.macro, self.micro, self.itc) < 0 or self.examined < self.macro + self.micro + self.itc:
            raise ValueError(f"counts of nodes must be at least 0 and at most those examined, got {self}")

    @classmethod
    def of(cls, labels: list[SlideLabel]) -> NodeCounts:
        """Count nodes with these labels."""
        return cls(
            macro=labels.count(SlideLabel.MACRO),
            micro=labels.count(SlideLabel.MICRO),
            itc=labels.count(SlideLabel.ITC),
            examined=len(labels),
        )

    @property
    def positive(self) -> int:
        """Nodes with a micro- or macro-metastasis."""
        return self.macro + self.micro


class _Axilla(Enum):
    NEGATIVE = 0
    MICRO = 1
    N1 = 2
    N2 = 3
    N3 = 4


def stage_nodes(
    axillary: NodeCounts,
    internal_mammary: NodeCounts | None = None,
    *,
    detection: Detection | None = None,
    infraclavicular: NodeCounts | None = None,
    supraclavicular: NodeCounts | None = None,
) -> TnmStage:
    """Return the pN category of a patient.

    Axillary nodes alone: a macro-metastasis and 1-3 positive nodes are pN1a, 4-9 pN2a, 10 or more pN3a;
    micro-metastases alone pN1mi, isolated tumour cells alone pN0(i+), else pN0. Internal mammary nodes with a micro-
    or macro-metastasis that only the sentinel biopsy found: pN1b without positive axillary nodes, pN1c with pN1a, pN3b
    with pN2a. Clinically detected: pN2b without positive axillary nodes, pN3b with pN1a or pN2a. A macro-metastasis in
    a supraclavicular node is pN3c whatever else there is, one in an infraclavicular node (axillary level III) pN3a.

    Args:
        axillary: nodes of levels I and II, including sentinel nodes.
        internal_mammary: nodes beside the sternum, if any were examined.
        detection: of their metastases; needed where they have any.
        infraclavicular: axillary nodes of level III, if any were examined.
        supraclavicular: nodes above the clavicle, if any were examined.

    Raises:
        UnsupportedStageError: the manuals name no category, two of them, or different ones; or the way of detection is
            missing or contradicts the counts.
        ValueError: no node was examined.
    """
    inner, below, above = (one or NodeCounts() for one in (internal_mammary, infraclavicular, supraclavicular))
    if axillary.examined + inner.examined + below.examined + above.examined == 0:
        raise ValueError("a patient without examined nodes has no stage")
    if above.macro:
        return TnmStage.PN3C
    for site, one in ((Site.SUPRACLAVICULAR, above), (Site.INFRACLAVICULAR, below)):
        if one.positive and not one.macro:
            reason = f"micro-metastases alone in {site.value} nodes are named by neither edition"
            raise UnsupportedStageError(None, reason, mend="stage this patient by hand")
    if below.macro:
        return _below_the_clavicle(axillary, inner)
    if not inner.positive:
        if detection is Detection.CLINICAL:
            raise UnsupportedStageError(
                None,
                "internal mammary metastases were detected clinically, but no examined node has one",
                mend="give the labels of the internal mammary nodes",
            )
        return _axillary_stage(axillary, has_itc=axillary.itc + inner.itc + below.itc + above.itc > 0)
    if detection is None:
        raise UnsupportedStageError(
            None,
            "internal mammary nodes are positive, but it is not known how they were detected",
            mend="say sentinel or clinical",
        )
    axilla = _axilla(axillary)
    stage = {
        (Detection.SENTINEL, _Axilla.NEGATIVE): TnmStage.PN1B,
        (Detection.SENTINEL, _Axilla.N1): TnmStage.PN1C,
        (Detection.SENTINEL, _Axilla.N2): TnmStage.PN3B,
        (Detection.CLINICAL, _Axilla.NEGATIVE): TnmStage.PN2B,
        (Detection.CLINICAL, _Axilla.N1): TnmStage.PN3B,
        (Detection.CLINICAL, _Axilla.N2): TnmStage.PN3B,
    }.get((detection, axilla))
    if stage is None:
        why = (
            "axillary micro-metastases alone beside internal mammary metastases are staged differently by the editions"
            if axilla is _Axilla.MICRO
            else "ten positive axillary nodes beside internal mammary metastases are both pN3a and pN3b"
        )
        raise UnsupportedStageError(None, why, mend="stage this patient by hand")
    return stage


def _below_the_clavicle(axillary: NodeCounts, inner: NodeCounts) -> TnmStage:
    """Return pN3a, which infraclavicular metastases are, unless pN3b may be meant, too."""
    if inner.positive and axillary.positive:
        raise UnsupportedStageError(
            None,
            "infraclavicular beside axillary and internal mammary metastases are both pN3a and pN3b",
            mend="stage this patient by hand",
        )
    return TnmStage.PN3A


def _axilla(nodes: NodeCounts) -> _Axilla:
    if not nodes.positive:
        return _Axilla.NEGATIVE
    if not nodes.macro:
        return _Axilla.MICRO
    if nodes.positive <= _MOST_N1:
        return _Axilla.N1
    return _Axilla.N2 if nodes.positive <= _MOST_N2 else _Axilla.N3


def _axillary_stage(nodes: NodeCounts, *, has_itc: bool) -> TnmStage:
    return {
        _Axilla.NEGATIVE: TnmStage.PN0_I_PLUS if has_itc else TnmStage.PN0,
        _Axilla.MICRO: TnmStage.PN1MI,
        _Axilla.N1: TnmStage.PN1A,
        _Axilla.N2: TnmStage.PN2A,
        _Axilla.N3: TnmStage.PN3A,
    }[_axilla(nodes)]
