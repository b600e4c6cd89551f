"""The probability a lesion must reach, learnt from slides that are known to hold none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from staging.cohorts.camelyon import SlideFile
from staging.lesions.finding import find_lesions
from staging.runs.cluster import TileNews, each
from wsi.slide import Slide
from wsi.tissue import find_tissue


@dataclass(frozen=True, slots=True, kw_only=True)
class _Negative:
    slide: SlideFile
    model: Path
    smallest_um: float
    slide_mpp: float | None


def calibrate_peak(
    slides: Sequence[SlideFile], model: Path, *, smallest_um: float, workers: int, slide_mpp: float | None = None
) -> float:
    """The highest probability that a network gives to any false lesion on slides without tumour.

    Args:
        slides: negative ones, from the training or a held-out cohort, never from the test.
        model: the checkpoint.
        smallest_um: shorter lesions are noise and do not count.
        workers: processes.
        slide_mpp: um per level-0 px in place of what the files say.

    Returns:
        0.5 to 1.

    Raises:
        PathologyError: whatever is wrong with a slide or the checkpoint.
    """
    highest = 0.5
    tasks = [_Negative(slide=slide, model=model, smallest_um=smallest_um, slide_mpp=slide_mpp) for slide in slides]
    for _, outcome in each(_highest, tasks, workers=workers, on_tiles=_ignore):
        if isinstance(outcome, BaseException):
            raise outcome
        highest = max(highest, outcome)
    return round(highest, 6)


def _highest(task: _Negative, _: TileNews) -> float:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.inference import infer  # noqa: PLC0415

    checkpoint = load_checkpoint(task.model)
    with Slide.open(task.slide.path, mpp=task.slide_mpp) as slide:
        heatmap = infer(slide, checkpoint, tissue=find_tissue(slide), device="cpu", workers=1)
    lesions, _masks = find_lesions(heatmap, threshold=checkpoint.threshold, smallest_um=task.smallest_um)
    return max((lesion.probability for lesion in lesions), default=0.0)


def _ignore(_slide: str, _done: int, _total: int) -> None:
    """Nobody watches the tiles."""
