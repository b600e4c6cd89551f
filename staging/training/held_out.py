"""How well a network does on each held-out slide and centre, and why that may say little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.names import centre_name
from staging.csv_rows import csv_text

if TYPE_CHECKING:
    from wsi.cnn.training import Training

COLUMNS = ("slide", "centre", "patches", "cells", "tumour_cells", "auc", "recall", "specificity")
FEWEST_SLIDES = 10
"""Fewer held-out slides say little about others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutPart:
    """The held-out patches of a slide, or of a centre.

    Attributes:
        name: of the slide or centre.
        slides, patches: how many.
        cells: output cells with a class.
        tumour_cells: those of tumour.
        auc: area under the ROC curve of the cells; None if they are of one class.
        recall: share of the tumour cells that reach the checkpoint's threshold; None without any.
        specificity: share of the normal cells that do not; None without any.
    """

    name: str
    slides: int
    patches: int
    cells: int
    tumour_cells: int
    auc: float | None
    recall: float | None
    specificity: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutReport:
    """The held-out patches, slide by slide and centre by centre; centres only where slide names give them."""

    slides: tuple[HeldOutPart, ...]
    centres: tuple[HeldOutPart, ...]

    @classmethod
    def of(cls, result: Training, slides: NDArray[np.str_]) -> HeldOutReport:
        """Divide what the best pass says of the judges.

        Args:
            result: of the training.
            slides: text (n,), the slide of each patch.
        """
        of_cell = slides[result.patches].astype(str)
        names = np.unique(of_cell).tolist()
        centres: dict[str, list[str]] = {}
        for name in names:
            if (centre := centre_name(name)) is not None:
                centres.setdefault(centre, []).append(name)
        return cls(
            slides=tuple(_part(name, result, of_cell, [name]) for name in names),
            centres=tuple(_part(centre, result, of_cell, centres[centre]) for centre in sorted(centres)),
        )

    def table(self) -> str:
        """Format a row for each slide."""
        rows = (
            (
                one.name,
                centre_name(one.name) or "",
                one.patches,
                one.cells,
                one.tumour_cells,
                *("" if share is None else f"{share:.4f}" for share in (one.auc, one.recall, one.specificity)),
            )
            for one in self.slides
        )
        return csv_text(COLUMNS, rows)

    def lines(self) -> Iterator[str]:
        """Say in a line each how well the network does on the slides and on each centre."""
        known = [one.auc for one in self.slides if one.auc is not None]
        if known:
            low, middle, high = min(known), float(np.median(known)), max(known)
            yield f"AUC within each of {len(known)} held-out slides: {low:.3f} to {high:.3f}, median {middle:.3f}"
        if len(self.centres) > 1:
            yield "AUC of each centre: " + ", ".join(
                f"{one.name} {'of one class' if one.auc is None else f'{one.auc:.3f}'} ({one.slides} slides)"
                for one in self.centres
            )

    def doubts(self) -> Iterator[str]:
        """Say why the held-out patients say little about others."""
        if self.slides and len(self.slides) < FEWEST_SLIDES:
            yield f"the held-out patients have {len(self.slides)} slides: that says little about others"
        for what, counts in (
            ("tumour", [one.tumour_cells for one in self.slides]),
            ("normal tissue", [one.cells - one.tumour_cells for one in self.slides]),
        ):
            holders = [one.name for one, count in zip(self.slides, counts, strict=True) if count]
            if len(holders) == 1 and len(self.slides) > 1:
                yield f"all held-out {what} is of one slide, {holders[0]}: the AUC may tell slides apart, not tissue"


def _part(name: str, result: Training, of_cell: NDArray[np.str_], slides: Iterable[str]) -> HeldOutPart:
    from wsi.cnn.calibration import area_under_curve  # noqa: PLC0415  (loads torch)

    slides = list(slides)
    chosen = np.isin(of_cell, slides)
    margins, truth = result.margins[chosen], result.truth[chosen]
    checkpoint = result.checkpoint
    # logit of the threshold, so that no probability is rounded to 0 or 1
    limit = np.log(checkpoint.threshold / (1 - checkpoint.threshold)) * checkpoint.temperature
    reached = margins >= limit
    return HeldOutPart(
        name=name,
        slides=len(slides),
        patches=len(np.unique(result.patches[chosen])),
        cells=len(truth),
        tumour_cells=int(truth.sum()),
        auc=area_under_curve(truth, margins),
        recall=float(reached[truth].mean()) if truth.any() else None,
        specificity=float(1 - reached[~truth].mean()) if (~truth).any() else None,
    )
