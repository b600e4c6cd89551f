"""The main job on a synthetic cohort: train on some patients, run on others of another seed, score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from staging.camelyon import SlideFile, find_slides, read_stage_table
from staging.cohort import CohortResult, run_cohort
from staging.config import RunConfig
from staging.labels import SizeRule, SlideLabel
from staging.operating_point import calibrate_peak, peak_of, with_peak
from staging.phantom import generate_cohort
from staging.progress import CohortProgress
from staging.sampling import PatchRecipe, sample_cohort
from wsi.stain import StainJitter

TRAINING_CENTRES = (0, 1, 2, 3)
TEST_CENTRES = (0, 1, 2, 3, 4)
MODEL_MPP = 2.0
PATCH_PX = 192
NEGATIVES = 24
SMALLEST_UM = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """How large the demonstration is.

    Attributes:
        seed: of everything; the test cohort has another one derived from it.
        training_patients, test_patients: of five slides each; centre 4 is in the test only.
        mpp: um per pixel of the synthetic slides.
        first_epochs: passes of the first network, whose mistakes become training patches.
        epochs: passes of the final one.
        workers: processes.
    """

    seed: int = 0
    training_patients: int = 12
    test_patients: int = 10
    mpp: float = 2.0
    first_epochs: int = 3
    epochs: int = 11
    workers: int = 2


def run_demo(output: Path, plan: DemoPlan, *, say: Callable[[str], None]) -> CohortResult:
    """Make both cohorts, the patches, the checkpoint and the run below ``output``.

    The run sees the test slides only; their truth enters in the score and nowhere else.

    Raises:
        PathologyError: a step failed.
    """
    training, test = output / "training", output / "test"
    say("1/5 drawing the training patients")
    _cohort(training, plan.training_patients, TRAINING_CENTRES, plan.seed, plan)
    say("2/5 drawing the test patients: another seed, and one centre that training never sees")
    _cohort(test, plan.test_patients, TEST_CENTRES, plan.seed + 1_000_003, plan)
    say("3/5 sampling labelled patches")
    patches, mistakes = output / "patches.zarr", output / "mistakes.zarr"
    recipe = PatchRecipe(mpp=MODEL_MPP, size_px=PATCH_PX, tumour=28, normal=16, seed=plan.seed)
    _sample(training, patches, recipe, plan)
    say("4/5 training the network: a first one, the places where it errs, and the final one")
    first, model = output / "first.safetensors", output / "model.safetensors"
    _train([patches], first, plan.first_epochs, plan, say)
    _sample(training, mistakes, replace(recipe, tumour=0, normal=2, hard=24, model=first), plan, negative=True)
    _train([patches, mistakes], model, plan.epochs, plan, say)
    peak = _calibrate(training, model, plan)
    say(f"    a lesion must reach {peak:.4f}: nothing on the training's negative slides does")
    say("5/5 running the test patients")
    slides = find_slides([test / "images"])
    with CohortProgress(len(slides)) as progress:
        return run_cohort(
            slides,
            output / "results",
            model=model,
            config=_configuration(model),
            reference=read_stage_table(test / "stage_labels.csv"),
            workers=plan.workers,
            device="cpu",
            news=progress,
        )


def _cohort(output: Path, patients: int, centres: tuple[int, ...], seed: int, plan: DemoPlan) -> None:
    with CohortProgress(patients * 5, verb="slides drawn", tiles=False) as progress:
        generate_cohort(
            output,
            patients=patients,
            centres=centres,
            seed=seed,
            mpp=plan.mpp,
            workers=plan.workers,
            on_slide=progress.slide,
        )


def _sample(cohort: Path, output: Path, recipe: PatchRecipe, plan: DemoPlan, *, negative: bool = False) -> None:
    reference = read_stage_table(cohort / "stage_labels.csv")
    found = find_slides([cohort / "images"])
    if negative:
        found = _negatives(cohort)
    with CohortProgress(len(found), verb="slides sampled", tiles=False) as progress:
        sample_cohort(
            found,
            cohort / "annotations",
            reference,
            output,
            recipe=recipe,
            workers=plan.workers,
            news=progress,
        )


def _train(
    stores: list[Path],
    model: Path,
    epochs: int,
    plan: DemoPlan,
    say: Callable[[str], None],
) -> None:
    from annotations.patch_store import join_patches, read_patches  # noqa: PLC0415  (slow import)
    from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.training import train  # noqa: PLC0415

    found = join_patches([read_patches(store) for store in stores])
    result = train(
        found.images,
        found.targets,
        mpp=found.mpp,
        groups=found.table["patient"],
        epochs=epochs,
        held_out=0,
        jitter=StainJitter(sigma=0.15, strength=0.25, hue=0.1, bias=0.04, exposure=0.03),
        seed=plan.seed,
        device="cpu",
        on_epoch=lambda epoch: say(f"    {epoch}"),
    )
    save_checkpoint(model, result.checkpoint)


def _configuration(model: Path) -> RunConfig:
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    checkpoint = load_checkpoint(model)
    return RunConfig(
        model=checkpoint.digest,
        threshold=checkpoint.threshold,
        peak=peak_of(checkpoint.provenance),
        rule=SizeRule(min_um=SMALLEST_UM),
    )


def _calibrate(cohort: Path, model: Path, plan: DemoPlan) -> float:
    from wsi.cnn.checkpoint import load_checkpoint, save_checkpoint  # noqa: PLC0415  (loads torch)

    peak = calibrate_peak(_negatives(cohort), model, smallest_um=SMALLEST_UM, workers=plan.workers)
    checkpoint = load_checkpoint(model)
    save_checkpoint(model, replace(checkpoint, provenance=with_peak(checkpoint.provenance, peak)))
    return peak


def _negatives(cohort: Path) -> list[SlideFile]:
    """Some of the cohort's slides without tumour, of every patient alike."""
    labels = read_stage_table(cohort / "stage_labels.csv").labels
    found = [slide for slide in find_slides([cohort / "images"]) if labels[slide.name] is SlideLabel.NEGATIVE]
    return found[:: max(1, len(found) // NEGATIVES)][:NEGATIVES]
