"""The main job on a synthetic cohort: train on some patients, run on others of another seed, score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.phantom import generate_cohort
from staging.runs.bars import CohortProgress
from staging.runs.cohort import CohortResult, run_cohort
from staging.training.fitting import FitRecipe, LabelledCohort, fit, run_configuration

TRAINING_CENTRES = (0, 1, 2, 3)
TEST_CENTRES = (0, 1, 2, 3, 4)


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
    say("1/4 drawing the training patients")
    _cohort(training, plan.training_patients, TRAINING_CENTRES, plan.seed, plan)
    say("2/4 drawing the test patients: another seed, and one centre that training never sees")
    _cohort(test, plan.test_patients, TEST_CENTRES, plan.seed + 1_000_003, plan)
    say("3/4 making the network")
    cohort = LabelledCohort(
        slides=find_slides([training / "images"]),
        annotations=training / "annotations",
        reference=read_stage_table(training / "stage_labels.csv"),
    )
    recipe = FitRecipe(seed=plan.seed, first_epochs=plan.first_epochs, epochs=plan.epochs)
    model = fit(cohort, output, recipe, workers=plan.workers, say=lambda text: say(f"    {text}"))
    say("4/4 running the test patients")
    slides = find_slides([test / "images"])
    with CohortProgress(len(slides)) as progress:
        return run_cohort(
            slides,
            output / "results",
            model=model,
            config=run_configuration(model, recipe),
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
