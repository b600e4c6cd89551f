"""The probability that a lesion must reach, learnt from labelled slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.camelyon import SlideFile
from staging.lesions.finding import find_lesions
from staging.lesions.labels import SizeRule
from staging.runs.cluster import TileNews, each
from staging.training.labelled_cohort import WeightedSlide
from wsi.readers.resolution import Mpp
from wsi.slide import Slide
from wsi.tissue import find_tissue

_LOWEST = 0.5
_NEAREST = 1 - 2.0**-24
"""To 1, where log-odds are infinite: the largest float32 below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    slide: SlideFile
    model: Path
    smallest_um: float
    slide_mpp: Mpp | None
    device: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JudgedSlide:
    """The lesions of a labelled slide whatever their probability, and how much the slide counts.

    Attributes:
        truth: rank of the true label, 0 negative to 3 macro.
        weight: for how many slides it stands.
        probabilities: float64 (lesions,), the highest of each.
        ranks: int64 (lesions,), of the label that each alone would give.
    """

    truth: int
    weight: float
    probabilities: NDArray[np.float64]
    ranks: NDArray[np.int64]

    def found(self, peaks: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the rank of the slide's label with each peak: int64 (peaks,)."""
        reached = self.probabilities >= peaks[:, np.newaxis]
        highest: NDArray[np.int64] = np.where(reached, self.ranks, 0).max(axis=1, initial=0)
        return highest


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
    slides: Sequence[WeightedSlide],
    model: Path,
    *,
    smallest_um: float,
    slide_mpp: Mpp | None = None,
    device: str = "cpu",
    workers: int = 1,
    threads: int = 1,
) -> LearntPeak:
    """Find the peak with which the labels of slides are nearest to the true ones, see ``best_peak``.

    Args:
        slides: from the training or a held-out cohort, never from the test set.
        model: the checkpoint.
        smallest_um: shorter lesions are noise and do not count.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        device: where the network runs. (A GPU agrees with the CPU only up to rounding: what is said of the slides holds
            for the kind of device on which the peak was learnt.)
        workers: number of processes.
        threads: number of threads of each.

    Raises:
        PathologyError: a slide or the checkpoint is faulty.
    """
    tasks = [
        _Task(
            slide=one.slide, model=model, smallest_um=smallest_um, slide_mpp=slide_mpp, device=device, threads=threads
        )
        for one in slides
    ]
    lesions: dict[Path, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
    for task, outcome in each(_lesions, tasks, workers=workers):
        if isinstance(outcome, BaseException):
            raise outcome
        lesions[task.slide.path] = outcome
    judged = [
        JudgedSlide(truth=one.label.rank, weight=one.weight, probabilities=probabilities, ranks=ranks)
        for one in slides
        for probabilities, ranks in [lesions[one.slide.path]]
    ]
    value = best_peak(judged)
    marked = [(one.truth > 0, bool(one.found(np.array([value]))[0])) for one in judged]
    return LearntPeak(
        value=value,
        negatives=marked.count((False, True)) + marked.count((False, False)),
        alarms=marked.count((False, True)),
        positives=marked.count((True, True)) + marked.count((True, False)),
        found=marked.count((True, True)),
    )


def best_peak(slides: Sequence[JudgedSlide]) -> float:
    """Choose the peak with the lowest mean squared difference between the ranks of found and true labels.

    The slides are those that the network learnt from: of unseen slides, false lesions are more probable, and true ones
    less. So of the range of peaks that are equally good the middle of its log-odds is taken, the widest range if there
    are several. Where every slide is negative, it is the lowest peak that no lesion reaches: the next float32 above
    the highest.

    Args:
        slides: at least one.

    Returns:
        The peak, 0.5 to 1. It is 1 if a false lesion itself has probability 1.
    """
    # heatmaps are float32, so the comparison is exact in float32 and in float64
    probabilities = np.unique(np.concatenate([one.probabilities for one in slides]).astype(np.float32))
    probabilities = probabilities[probabilities >= _LOWEST]
    lows = np.append(_LOWEST, np.nextafter(probabilities, np.float32(np.inf)).astype(np.float64))
    lows = np.minimum(lows, 1.0)
    highs = np.append(probabilities.astype(np.float64), 1.0)
    if not any(one.truth for one in slides):
        return float(lows[-1])
    costs = np.sum([one.weight * (one.found(lows) - one.truth) ** 2.0 for one in slides], axis=0)
    best = np.flatnonzero(costs <= costs.min() * (1 + 1e-9))
    runs = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    if runs[-1][-1] == len(lows) - 1:  # it has no upper end: no lesion is left
        return float(lows[runs[-1][0]])
    ends = [(_log_odds(lows[run[0]]), _log_odds(highs[run[-1]])) for run in runs]
    low, high = max(ends, key=lambda pair: (pair[1] - pair[0], pair))
    return float(1 / (1 + np.exp(-(low + high) / 2)))


def _log_odds(probability: float) -> float:
    certain = min(float(probability), _NEAREST)
    return float(np.log(certain / (1 - certain)))


def _lesions(task: _Task, _: TileNews) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.inference import infer  # noqa: PLC0415

    checkpoint = load_checkpoint(task.model)
    with Slide.open(task.slide.path, mpp=task.slide_mpp) as slide:
        heatmap = infer(slide, checkpoint, tissue=find_tissue(slide), device=task.device, workers=task.threads)
    lesions, _masks = find_lesions(heatmap, threshold=checkpoint.threshold, smallest_um=task.smallest_um)
    rule = SizeRule(smallest_um=task.smallest_um)
    return (
        np.array([one.probability for one in lesions], dtype=np.float64),
        np.array([rule.label(one.longest_diameter_um).rank for one in lesions], dtype=np.int64),
    )
