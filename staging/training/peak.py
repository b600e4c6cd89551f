"""The probability that a lesion must reach, learnt from negative slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from staging.cohorts.camelyon import SlideFile
from staging.lesions.finding import find_lesions
from staging.runs.cluster import TileNews, each
from wsi.readers.resolution import Mpp
from wsi.slide import Slide
from wsi.tissue import find_tissue

_LOWEST = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Negative:
    slide: SlideFile
    model: Path
    smallest_um: float
    slide_mpp: Mpp | None
    device: str
    threads: int


def calibrate_peak(
    slides: Sequence[SlideFile],
    model: Path,
    *,
    smallest_um: float,
    slide_mpp: Mpp | None = None,
    device: str = "cpu",
    workers: int = 1,
    threads: int = 1,
) -> float:
    """Find the lowest peak at which no false lesion remains on slides without tumour.

    At this peak a run on the same slides finds no lesion: it is the next float32 above the highest probability of any.
    (A GPU agrees with the CPU only up to rounding: this holds for the kind of device on which the peak was learnt.)

    Args:
        slides: negative slides from the training or a held-out cohort, never from the test set.
        model: the checkpoint.
        smallest_um: shorter lesions are noise and do not count.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        device: where the network runs.
        workers: number of processes.
        threads: number of threads of each.

    Returns:
        0.5 to 1. It is 1 if a false lesion itself has probability 1: then no peak that lets tumour through excludes
        that lesion.

    Raises:
        PathologyError: a slide or the checkpoint is faulty.
    """
    highest = 0.0
    tasks = [
        _Negative(
            slide=slide, model=model, smallest_um=smallest_um, slide_mpp=slide_mpp, device=device, threads=threads
        )
        for slide in slides
    ]
    for _, outcome in each(_highest, tasks, workers=workers):
        if isinstance(outcome, BaseException):
            raise outcome
        highest = max(highest, outcome)
    # heatmaps are float32, so the comparison is exact in float32 and in float64
    above = float(np.nextafter(np.float32(highest), np.float32(np.inf)))
    return min(1.0, max(_LOWEST, above))


def _highest(task: _Negative, _: TileNews) -> float:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.inference import infer  # noqa: PLC0415

    checkpoint = load_checkpoint(task.model)
    with Slide.open(task.slide.path, mpp=task.slide_mpp) as slide:
        heatmap = infer(slide, checkpoint, tissue=find_tissue(slide), device=task.device, workers=task.threads)
    lesions, _masks = find_lesions(heatmap, threshold=checkpoint.threshold, smallest_um=task.smallest_um)
    return max((lesion.probability for lesion in lesions), default=0.0)
