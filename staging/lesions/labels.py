"""The label of a slide: what its largest metastasis is by size (TNM 7th edition, as CAMELYON17 uses it)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Self

from staging.errors import UnknownLabelError

if TYPE_CHECKING:
    from staging.lesions.finding import Lesion

ITC_MAX_UM = 200.0
"""The longest isolated tumour cells (CAMELYON's data paper, Litjens et al., GigaScience 2018, Table 1)."""
MICRO_MAX_UM = 2000.0
"""The longest micro-metastasis (ibid.)."""
ITC_MAX_CELLS = 200
"""More tumour cells than this are at least a micro-metastasis, whatever their size (ibid.)."""


class Ranked(Enum):
    """An enumeration whose declaration order is its rank and whose values are the texts in CSV tables."""

    @property
    def rank(self) -> int:
        """Return 0 for the first declared."""
        return list(type(self)).index(self)

    def __lt__(self, other: object) -> bool:
        return self.rank < other.rank if isinstance(other, type(self)) else NotImplemented

    def __le__(self, other: object) -> bool:
        return self.rank <= other.rank if isinstance(other, type(self)) else NotImplemented

    def __gt__(self, other: object) -> bool:
        return self.rank > other.rank if isinstance(other, type(self)) else NotImplemented

    def __ge__(self, other: object) -> bool:
        return self.rank >= other.rank if isinstance(other, type(self)) else NotImplemented

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the member that a table's text names, in any case and with surrounding spaces.

        Raises:
            UnknownLabelError: the text names no member; the mend lists the known ones.
        """
        wanted = text.strip().lower()
        for member in cls:
            if str(member.value).lower() == wanted:
                return member
        known = ", ".join(str(member.value) for member in cls)
        raise UnknownLabelError(None, f"unknown {cls._noun()} {text.strip()[:60]!r}", mend=f"use one of {known}")

    @classmethod
    def _noun(cls) -> str:
        return "label"


class SlideLabel(Ranked):
    """What the largest metastasis on a slide is; NEGATIVE < ITC < MICRO < MACRO."""

    NEGATIVE = "negative"
    ITC = "itc"
    MICRO = "micro"
    MACRO = "macro"

    @classmethod
    def _noun(cls) -> str:
        return "slide label"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """Where one label ends and the next begins.

    The defaults are CAMELYON's, and every lesion counts.

    Attributes:
        smallest_um: lesions with a smaller longest diameter do not count.
        itc_max_um: the longest diameter up to which a lesion is ITC, inclusive.
        micro_max_um: the longest diameter up to which a lesion is micro, inclusive.
        itc_max_cells: the number of cells up to which a lesion may be ITC, inclusive.
    """

    smallest_um: float = 0.0
    itc_max_um: float = ITC_MAX_UM
    micro_max_um: float = MICRO_MAX_UM
    itc_max_cells: int = ITC_MAX_CELLS

    def __post_init__(self) -> None:
        if not 0 <= self.smallest_um <= self.itc_max_um < self.micro_max_um:
            raise ValueError(
                f"a size rule needs 0 <= smallest_um <= itc_max_um < micro_max_um, got {self.smallest_um}, "
                f"{self.itc_max_um}, {self.micro_max_um}"
            )
        if self.itc_max_cells < 1:
            raise ValueError(f"a size rule needs itc_max_cells of at least 1, got {self.itc_max_cells}")

    def label(self, longest_diameter_um: float, *, cell_count: int | None = None) -> SlideLabel:
        """Return the label of a slide whose only lesion has this longest diameter in um.

        Args:
            longest_diameter_um: largest distance between two points of the lesion, um.
            cell_count: tumour cells in the lesion; None if not counted.

        Raises:
            ValueError: the diameter is not finite or negative, or the count is negative.
        """
        if not 0 <= longest_diameter_um < float("inf"):
            raise ValueError(f"a lesion needs a finite diameter of at least 0 um, got {longest_diameter_um}")
        if cell_count is not None and cell_count < 0:
            raise ValueError(f"a lesion needs a cell count of at least 0, got {cell_count}")
        if longest_diameter_um > self.micro_max_um:
            return SlideLabel.MACRO
        if cell_count is not None and cell_count > self.itc_max_cells:
            return SlideLabel.MICRO
        if longest_diameter_um > self.itc_max_um:
            return SlideLabel.MICRO
        return SlideLabel.ITC if longest_diameter_um >= self.smallest_um else SlideLabel.NEGATIVE


def slide_label(
    lesions: Iterable[Lesion],
    rule: SizeRule | None = None,
    *,
    cell_counts: Sequence[int | None] | None = None,
) -> SlideLabel:
    """Return the label of a slide with these lesions: the largest decides, sizes are never summed.

    Args:
        lesions: from find_lesions; without any the slide is negative.
        rule: the limits; SizeRule() by default.
        cell_counts: tumour cells of each lesion, in the same order; None if not counted.

    Raises:
        ValueError: there is not one count per lesion.
    """
    rule = rule or SizeRule()
    found = tuple(lesions)
    counts = cell_counts if cell_counts is not None else [None] * len(found)
    labels = (
        rule.label(lesion.longest_diameter_um, cell_count=count) for lesion, count in zip(found, counts, strict=True)
    )
    return max(labels, default=SlideLabel.NEGATIVE)
