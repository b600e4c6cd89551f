"""A checkpoint from a labelled cohort: patches, a first network, the places where it errs, the final one, its peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from staging.cohorts.camelyon import SlideFile, StageTable
from staging.errors import CohortError
from staging.lesions.labels import SizeRule, SlideLabel
from staging.lesions.settings import SMALLEST_UM, peak_of, with_peak
from staging.runs.bars import CohortProgress
from staging.runs.config import RunConfig
from staging.training.peak import calibrate_peak
from staging.training.sampling import PatchRecipe, sample_cohort
from wsi.patches.feeding import HeldPatches
from wsi.stain import StainJitter
from wsi.store import digest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledCohort:
    """What a network is trained on.

    Attributes:
        slides: all with a label or contours.
        annotations: directory of ``<slide>.xml``.
        reference: the slides' labels.
    """

    slides: Sequence[SlideFile]
    annotations: Path
    reference: StageTable

    def negatives(self, most: int) -> list[SlideFile]:
        """At most so many of the slides without tumour, of every patient alike."""
        labels = self.reference.labels
        found = [slide for slide in self.slides if labels.get(slide.name) is SlideLabel.NEGATIVE]
        return found[:: max(1, len(found) // most)][:most]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRecipe:
    """How a checkpoint is made.

    Attributes:
        seed: of the patches, the weights and their order.
        mpp: um per pixel at which the network looks.
        size_px: side of the patches.
        tumour, normal: patches per slide.
        hard: patches per negative slide where the first network takes normal tissue for tumour.
        first_epochs: passes of the first network.
        epochs: passes of the final one.
        negatives: slides without tumour on which mistakes are looked for and the peak is learnt.
        smallest_um: shorter lesions are noise.
        slide_mpp: um per level-0 px in place of what the files say.
        device: where the network is trained.
    """

    seed: int = 0
    mpp: float = 2.0
    size_px: int = 192
    tumour: int = 28
    normal: int = 16
    hard: int = 24
    first_epochs: int = 3
    epochs: int = 11
    negatives: int = 24
    smallest_um: float = SMALLEST_UM
    slide_mpp: float | None = None
    device: str = "cpu"

    def digest(self, slides: Sequence[SlideFile]) -> str:
        """Of the recipe and the names of the slides it is applied to."""
        return digest_of({"recipe": asdict(self), "slides": [slide.name for slide in slides]})


def fit(cohort: LabelledCohort, output: Path, recipe: FitRecipe, *, workers: int, say: Callable[[str], None]) -> Path:
    """Make ``model.safetensors`` below ``output``; one that is there and was made from the same is kept.

    Args:
        cohort: what to train on.
        output: a folder.
        recipe: how.
        workers: processes that read slides.
        say: hears of each step.

    Returns:
        The checkpoint, which knows the probability a lesion must reach.

    Raises:
        CohortError: there is no negative slide, or none with contours.
        PathologyError: a step failed.
    """
    model = output / "model.safetensors"
    made_from = recipe.digest(cohort.slides)
    if model.is_file() and _made_from(model) == made_from:
        say("the network is there already")
        return model
    negatives = cohort.negatives(recipe.negatives)
    if not negatives:
        raise CohortError(cohort.annotations, "goes with no slide that is labelled negative", mend="add some")
    if not any((cohort.annotations / f"{slide.name}.xml").is_file() for slide in cohort.slides):
        raise CohortError(
            cohort.annotations,
            f"has contours for none of the {len(cohort.slides)} slides to train on",
            mend="give the contours of slides with tumour, or take fewer folds",
        )
    say("sampling labelled patches")
    patches, mistakes, first = output / "patches.zarr", output / "mistakes.zarr", output / "first.safetensors"
    drawn = PatchRecipe(
        mpp=recipe.mpp,
        size_px=recipe.size_px,
        tumour=recipe.tumour,
        normal=recipe.normal,
        seed=recipe.seed,
        slide_mpp=recipe.slide_mpp,
    )
    _sample(cohort, cohort.slides, patches, drawn, workers=workers)
    say("training the network: a first one, the places where it errs, and the final one")
    _train([patches], first, recipe, epochs=recipe.first_epochs, provenance={}, say=say)
    hard = replace(drawn, tumour=0, normal=2, hard=recipe.hard, model=first)
    _sample(cohort, negatives, mistakes, hard, workers=workers)
    final = output / "final.safetensors"
    _train([patches, mistakes], final, recipe, epochs=recipe.epochs, provenance={"fit": made_from}, say=say)
    peak = calibrate_peak(negatives, final, smallest_um=recipe.smallest_um, workers=workers, slide_mpp=recipe.slide_mpp)
    say(f"a lesion must reach {peak:.4f}: nothing on the training's negative slides does")
    _learn_peak(final, model, peak)
    return model


def run_configuration(model: Path, recipe: FitRecipe, *, nodes: int = 5) -> RunConfig:
    """The configuration with which a checkpoint of this recipe is run.

    Raises:
        CheckpointError: it is none.
    """
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    checkpoint = load_checkpoint(model)
    return RunConfig(
        model=checkpoint.digest,
        threshold=checkpoint.threshold,
        peak=peak_of(checkpoint.provenance),
        mpp=recipe.slide_mpp,
        rule=SizeRule(smallest_um=recipe.smallest_um),
        nodes=nodes,
    )


def _sample(
    cohort: LabelledCohort, slides: Sequence[SlideFile], output: Path, recipe: PatchRecipe, *, workers: int
) -> None:
    with CohortProgress(len(slides), verb="slides sampled", tiles=False) as progress:
        sample_cohort(
            slides, cohort.annotations, cohort.reference, output, recipe=recipe, workers=workers, news=progress
        )


def _train(
    stores: Sequence[Path],
    model: Path,
    recipe: FitRecipe,
    *,
    epochs: int,
    provenance: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    from annotations.patches.zarr_store import join_patches, read_patches  # noqa: PLC0415  (slow import)
    from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.training import train  # noqa: PLC0415

    found = join_patches([read_patches(store) for store in stores])
    result = train(
        HeldPatches(found.images, found.targets),
        mpp=found.mpp,
        groups=found.table["patient"],
        epochs=epochs,
        held_out=0,
        jitter=StainJitter(sigma=0.15, strength=0.25, hue=0.1, bias=0.04, exposure=0.03),
        seed=recipe.seed,
        device=recipe.device,
        on_epoch=lambda epoch: say(f"    {epoch}"),
    )
    checkpoint = result.checkpoint
    save_checkpoint(model, replace(checkpoint, provenance={**checkpoint.provenance, **provenance}))


def _learn_peak(source: Path, target: Path, peak: float) -> None:
    from wsi.cnn.checkpoint import load_checkpoint, save_checkpoint  # noqa: PLC0415  (loads torch)

    checkpoint = load_checkpoint(source)
    save_checkpoint(target, replace(checkpoint, provenance=with_peak(checkpoint.provenance, peak)))


def _made_from(model: Path) -> str | None:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    return str(load_checkpoint(model).provenance.get("fit"))
