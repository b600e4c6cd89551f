"""The probability that a lesion must reach, learnt from labelled slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.camelyon import SlideFile
from staging.lesions.finding import find_lesions
from staging.runs.cluster import TileNews, each
from wsi.readers.resolution import Mpp
from wsi.slide import Slide
from wsi.tissue import find_tissue

_LOWEST = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Labelled:
    slide: SlideFile
    model: Path
    smallest_um: float
    slide_mpp: Mpp | None
    device: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearntPeak:
    """A peak, and the slides that it was learnt from.

    Attributes:
        value: 0.5 to 1.
        negatives, positives: number of slides without and with tumour.
        alarms: negative slides with a lesion that reaches it.
        found: positive slides with one.
    """

    value: float
    negatives: int
    alarms: int
    positives: int
    found: int

    def __str__(self) -> str:
        on_negatives = f"{self.alarms} of {self.negatives} negative slides have one that does"
        on_positives = f", {self.found} of {self.positives} positive ones" if self.positives else ""
        return f"a lesion must reach {self.value:.4f}: {on_negatives}{on_positives}"


def calibrate_peak(
    negatives: Sequence[SlideFile],
    model: Path,
    *,
    positives: Sequence[SlideFile] = (),
    smallest_um: float,
    slide_mpp: Mpp | None = None,
    device: str = "cpu",
    workers: int = 1,
    threads: int = 1,
) -> LearntPeak:
    """Find the peak that tells slides with tumour from those without best.

    Each candidate lies just above the highest probability of any lesion on a negative slide: it is the next float32.
    Of these, and of 0.5, the one with the highest mean of sensitivity and specificity over the slides is taken, the
    highest of equally good ones. So one certain mistake on one negative slide does not hide every small metastasis; and
    where the network errs on no slide, as without positives, no lesion of a negative slide reaches it. (A GPU agrees
    with the CPU only up to rounding: this holds for the kind of device on which the peak was learnt.)

    Args:
        negatives: slides from the training or a held-out cohort, never from the test set.
        model: the checkpoint.
        positives: slides of the same kind with tumour of any size; none keeps every lesion of the negatives out.
        smallest_um: shorter lesions are noise and do not count.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        device: where the network runs.
        workers: number of processes.
        threads: number of threads of each.

    Returns:
        The peak, 0.5 to 1. It is 1 if a false lesion itself has probability 1: then no peak that lets tumour through
        excludes that lesion.

    Raises:
        PathologyError: a slide or the checkpoint is faulty.
    """
    tasks = [
        _Labelled(
            slide=slide, model=model, smallest_um=smallest_um, slide_mpp=slide_mpp, device=device, threads=threads
        )
        for slide in (*negatives, *positives)
    ]
    highest: dict[Path, float] = {}
    for task, outcome in each(_highest, tasks, workers=workers):
        if isinstance(outcome, BaseException):
            raise outcome
        highest[task.slide.path] = outcome
    without, with_tumour = (np.array([highest[one.path] for one in slides]) for slides in (negatives, positives))
    value = best_peak(without, with_tumour)
    return LearntPeak(
        value=value,
        negatives=len(without),
        alarms=int((without >= value).sum()),
        positives=len(with_tumour),
        found=int((with_tumour >= value).sum()),
    )


def best_peak(negatives: NDArray[np.float64], positives: NDArray[np.float64]) -> float:
    """Choose the peak by the highest probability of a lesion on each slide, see calibrate_peak."""
    # heatmaps are float32, so the comparison is exact in float32 and in float64
    above = np.nextafter(negatives.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    candidates = np.unique(np.clip(np.append(above, _LOWEST), _LOWEST, 1.0))
    specificity = (negatives < candidates[:, np.newaxis]).mean(axis=1)
    if not positives.size:
        return float(candidates[-1])
    balance = specificity + (positives >= candidates[:, np.newaxis]).mean(axis=1)
    return float(candidates[np.flatnonzero(balance == balance.max())[-1]])


def _highest(task: _Labelled, _: TileNews) -> float:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.inference import infer  # noqa: PLC0415

    checkpoint = load_checkpoint(task.model)
    with Slide.open(task.slide.path, mpp=task.slide_mpp) as slide:
        heatmap = infer(slide, checkpoint, tissue=find_tissue(slide), device=task.device, workers=task.threads)
    lesions, _masks = find_lesions(heatmap, threshold=checkpoint.threshold, smallest_um=task.smallest_um)
    return max((lesion.probability for lesion in lesions), default=0.0)
