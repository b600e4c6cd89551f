"""The main job on a synthetic cohort: train on some patients, run on others of a different seed, score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from staging.bars import CohortProgress
from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.phantom import forget_cohort, generate_cohort
from staging.runs.cohort import CohortResult, run_cohort
from staging.runs.earlier import forget_slides
from staging.training.labelled_cohort import LabelledCohort
from staging.training.recipe import CohortRecipe
from staging.training.rounds import TrainingNews, is_written, run_training
from wsi.store import storage

TRAINING_CENTRES = (0, 1, 2, 3)
UNSEEN_CENTRE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """How large the demonstration is.

    Attributes:
        seed: of everything; the test cohort has a seed derived from it.
        training_patients, test_patients: of five slides each.
        test_centres: of the test patients, in turn; UNSEEN_CENTRE is not among those of the training patients.
        mpp: um per pixel of the synthetic slides.
        workers: number of processes.
    """

    seed: int = 0
    training_patients: int = 12
    test_patients: int = 10
    test_centres: tuple[int, ...] = (*TRAINING_CENTRES, UNSEEN_CENTRE)
    mpp: float = 2.0
    workers: int = 2


def run_demo(output: Path, plan: DemoPlan, *, news: TrainingNews) -> CohortResult:
    """Make both cohorts, the patches, the checkpoint and the run in ``output``.

    The run sees only the test slides; their truth is used for the score and nowhere else.

    Raises:
        PathologyError: a step failed.
    """
    training, test = output / "training", output / "test"
    news.say("1/4 drawing the training patients")
    _cohort(training, plan.training_patients, TRAINING_CENTRES, plan.seed, plan)
    news.say("2/4 drawing the test patients: a different seed, and one centre never seen in training")
    _cohort(test, plan.test_patients, plan.test_centres, plan.seed + 1_000_003, plan)
    news.say("3/4 training the network: a first one, hard negatives where it errs, and the final one")
    cohort = LabelledCohort(
        slides=find_slides([training / "images"]),
        annotations=training / "annotations",
        reference=read_stage_table(training / "stage_labels.csv"),
    )
    recipe, model = CohortRecipe(seed=plan.seed, device="cpu"), output / "model.safetensors"
    run_training(recipe.plan(cohort, model, workers=plan.workers), news=news)
    news.say("4/4 running the test patients")
    slides = find_slides([test / "images"])
    with CohortProgress(len(slides)) as progress:
        return run_cohort(
            slides,
            output / "results",
            model=model,
            config=recipe.run_configuration(model),
            reference=read_stage_table(test / "stage_labels.csv"),
            workers=plan.workers,
            device="cpu",
            overwrite=True,
            news=progress,
        )


def forget_demo(output: Path) -> None:
    """Remove what an earlier demonstration made in ``output``; everything else stays.

    Raises:
        StorageError: the file system refuses.
    """
    for name in ("training", "test"):
        forget_cohort(output / name, is_own=True)
    for path in output.glob("model*"):
        if is_written(path.name, output / "model.safetensors") and path.is_file():
            with storage(path):
                path.unlink()
    forget_slides(output / "results")


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
