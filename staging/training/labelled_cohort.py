"""Labelled slides: the source of patches, hard negatives and the peak."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from annotations.patches.table import read_patch_table
from staging.bars import CohortProgress
from staging.cohorts.camelyon import SlideFile, StageTable
from staging.cohorts.errata import EXCLUDED
from staging.cohorts.names import slide_key
from staging.cohorts.slide_warnings import warning_lines
from staging.lesions.labels import SlideLabel
from staging.stages.pn import BY_NAME, SlideNodes
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe, described
from wsi.store import json_text

_One = TypeVar("_One")

MOST = 24
"""Maximum number of slides of a kind that are used: each costs an inference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedSlide:
    """A labelled slide that stands for others of its kind.

    Attributes:
        slide: the slide file.
        label: its true label.
        weight: for how many slides of the cohort it stands, at least 1.
    """

    slide: SlideFile
    label: SlideLabel
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCohort:
    """Slides with their annotations and labels.

    Attributes:
        slides: the slide files.
        annotations: directory of their annotations, of any format, named like the slides.
        reference: their labels.
        nodes: which patient and node each slide is of.
    """

    slides: Sequence[SlideFile]
    annotations: Path
    reference: StageTable
    nodes: SlideNodes = BY_NAME

    def of(self, patients: Collection[str]) -> Self:
        """Select the slides of some patients; a slide whose name gives no patient is its own patient."""
        return replace(self, slides=[slide for slide in self.slides if (slide.patient or slide.name) in patients])

    def negatives(self) -> Self:
        """Select at most MOST slides labelled negative, spread over the patients.

        Slides known to be wrong are left out.
        """
        return replace(self, slides=[slide for slide, _ in _spread(self._labelled({SlideLabel.NEGATIVE}))])

    def weighted(self) -> list[WeightedSlide]:
        """Return at most MOST slides with tumour and as many negative ones, each with the number it stands for."""
        kinds = ({SlideLabel.NEGATIVE}, {*SlideLabel} - {SlideLabel.NEGATIVE})
        return [
            WeightedSlide(slide=slide, label=label, weight=len(found) / len(_spread(found)))
            for found in map(self._labelled, kinds)
            for slide, label in _spread(found)
        ]

    def _labelled(self, wanted: Collection[SlideLabel]) -> list[tuple[SlideFile, SlideLabel]]:
        labels = {slide_key(name): label for name, label in self.reference.labels.items()}
        known = [slide for slide in self.slides if slide_key(slide.name) not in EXCLUDED]
        return [
            (slide, label)
            for slide in known
            if (label := labels.get(slide_key(slide.name))) is not None and label in wanted
        ]

    def draw(self, output: Path, recipe: PatchRecipe, *, workers: int, verb: str) -> None:
        """Draw patches as a table; an existing table drawn with the same recipe is kept.

        Args:
            output: the table, ``.parquet``.
            recipe: what to draw.
            workers: number of processes.
            verb: what is done to the slides, shown in the bar.

        Raises:
            PathologyError: see ``sample_cohort``.
        """
        if output.exists() and read_patch_table(output).about.get("recipe") == json.loads(json_text(described(recipe))):
            return
        known = sum(slide_key(slide.name) not in EXCLUDED for slide in self.slides)
        with CohortProgress(known, verb=verb, tiles=False) as progress:
            counts = sample_cohort(
                self.slides, self.annotations, self.reference, output, recipe=recipe, workers=workers, news=progress
            )
            for line in warning_lines(counts["warnings"]):
                progress.say(line)


def _spread(found: Sequence[_One]) -> Sequence[_One]:
    """Select at most MOST, evenly."""
    return found[:: max(1, len(found) // MOST)][:MOST]
