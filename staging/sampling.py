"""Training patches of a whole cohort: which slides give which classes, and the store they end in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from annotations.asap import read_asap
from annotations.patch_store import write_patches
from annotations.patches import PatchBatch, sample_patches
from staging.camelyon import SlideFile, StageTable, centre_of
from staging.cluster import TileNews, each
from staging.errata import is_partly_annotated
from staging.errors import CohortError
from staging.labels import SlideLabel
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide
from wsi.tissue import find_tissue


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRecipe:
    """How patches are drawn from every slide.

    Attributes:
        mpp: um per pixel of the patches.
        size_px: their side in pixels.
        tumour: patches with tumour per slide that has contours.
        normal: patches without, per slide.
        seed: equal seeds give equal patches on any number of workers.
        hard: patches per slide where ``model`` takes normal tissue for tumour.
        model: the checkpoint whose mistakes are looked for.
        slide_mpp: um per level-0 px in place of what the files say.
    """

    mpp: float
    size_px: int
    tumour: int
    normal: int
    seed: int
    hard: int = 0
    model: Path | None = None
    slide_mpp: float | None = None


class SamplingNews(Protocol):
    """Who is told how the sampling goes."""

    def slide(self, name: str, outcome: str = "") -> None:
        """A slide has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    slide: SlideFile
    contours: Path | None
    recipe: PatchRecipe


def sample_cohort(
    slides: Sequence[SlideFile],
    annotations: Path,
    reference: StageTable,
    output: Path,
    *,
    recipe: PatchRecipe,
    workers: int,
    news: SamplingNews,
) -> dict[str, Any]:
    """Draw patches from every usable slide and publish them as one store.

    A slide with an XML of its name gives both classes; one without gives normal patches only when the reference labels
    it negative. Any other is left out and counted: a missing XML never means "no tumour".

    Args:
        slides: what find_slides found.
        annotations: directory of ``<slide>.xml``.
        reference: labels of the slides.
        output: the patch store to publish.
        recipe: what to draw.
        workers: processes.
        news: hears of progress.

    Returns:
        Counts: slides, left_out, patches.

    Raises:
        CohortError: no slide is usable.
        PathologyError: whatever is wrong with a slide or an XML; training data is not drawn around errors.
    """
    if not annotations.is_dir():
        raise CohortError(annotations, "there is no such directory of contours", mend="check --annotations")
    sources, left_out = [], []
    for slide in slides:
        contours = annotations / f"{slide.name}.xml"
        if contours.is_file():
            sources.append(_Source(slide=slide, contours=contours, recipe=recipe))
        elif reference.labels.get(slide.name) is SlideLabel.NEGATIVE:
            sources.append(_Source(slide=slide, contours=None, recipe=recipe))
        else:
            left_out.append(slide.name)
    if not sources:
        raise CohortError(
            annotations, "has contours for none of the slides, and none is labelled negative", mend="name its directory"
        )
    batches = {}
    for source, outcome in each(_sample, sources, workers=workers, on_tiles=_ignore):
        if isinstance(outcome, BaseException):
            raise outcome
        batches[source.slide.name] = outcome
        news.slide(source.slide.name, f"{len(outcome.kinds)} patches")
    ordered = [batches[name] for name in sorted(batches)]
    write_patches(output, ordered)
    return {
        "slides": len(ordered),
        "left_out": left_out,
        "count": sum(len(batch.kinds) for batch in ordered),
    }


def _sample(source: _Source, _: TileNews) -> PatchBatch:
    recipe, patient = source.recipe, source.slide.patient
    with Slide.open(source.slide.path, mpp=recipe.slide_mpp) as slide:
        tissue = find_tissue(slide)
        partly = is_partly_annotated(source.slide.name)
        return sample_patches(
            slide,
            read_asap(source.contours) if source.contours else None,
            tissue,
            mpp=recipe.mpp,
            size_px=recipe.size_px,
            count_tumour=recipe.tumour if source.contours else 0,
            count_normal=0 if partly else recipe.normal,
            seed=recipe.seed,
            negative=source.contours is None,
            mistakes=_mistakes(slide, tissue, recipe.model) if recipe.model and recipe.hard else None,
            count_hard=0 if partly else recipe.hard,
            partly_annotated=partly,
            patient=patient or source.slide.name,
            centre=centre_of(int(patient.removeprefix("patient_"))) if patient else None,
        )


def _mistakes(slide: Slide, tissue: Mask, model: Path) -> Heatmap:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.inference import infer  # noqa: PLC0415

    return infer(slide, load_checkpoint(model), tissue=tissue, device="cpu", workers=1)


def _ignore(_slide: str, _done: int, _total: int) -> None:
    """Sampling reports slides only."""
