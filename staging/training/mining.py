"""Hard-negative mining: where a network takes normal tissue for tumour, on slides of its training patients."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from annotations.patches.training_set import TrainingSet
from staging.errors import ConfigurationError
from staging.training.labelled_cohort import LabelledCohort
from staging.training.sources import PatchRecipe
from wsi.readers.resolution import Mpp

HARD = 24
"""False positives of a slide that become patches in a round."""

_EASY = 1  # normal patch per slide besides the false positives: a slide without any still gives one


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningPlan:
    """How false positives are mined between trainings.

    Attributes:
        rounds: number of rounds; after each the network is retrained on all patches.
        epochs: passes of the trainings before the last; None for as many as the last.
        hard: patches per slide and round.
        only_negatives: use some of the negative slides instead of all slides.
    """

    rounds: int = 1
    epochs: int | None = None
    hard: int = HARD
    only_negatives: bool = False

    def search(
        self,
        cohort: LabelledCohort,
        output: Path,
        *,
        model: Path,
        found: TrainingSet,
        judges: Collection[str],
        seed: int,
        slide_mpp: Mpp | None,
        device: str,
        workers: int | None,
    ) -> None:
        """Write a table of the patches where a network is most wrong about normal tissue.

        Args:
            cohort: labelled slides; only those of training patients are used.
            output: the table; an existing one of the same recipe is kept.
            model: the checkpoint.
            found: its training set; the new patches have the same size and resolution.
            judges: patients who judge the network, whose slides are not mined.
            seed: of the patches that are not false positives.
            slide_mpp: um per level-0 px of slides that state none, or for all.
            device: where the network runs.
            workers: number of processes.

        Raises:
            ConfigurationError: no slide is of a training patient.
            PathologyError: a slide or the checkpoint is faulty.
        """
        from wsi.cnn.device import shared_out  # noqa: PLC0415  (loads torch)

        processes, threads = shared_out(device, workers)
        searched = cohort.of({*found.patches.patients.tolist()} - {*judges})
        if not searched.slides:
            raise ConfigurationError(
                cohort.slides[0].path,
                "is not of a patient in the training set",
                mend="give the slides of the patches",
            )
        if self.only_negatives:
            searched = searched.negatives()
        recipe = PatchRecipe(
            mpp=found.patches.mpp,
            size_px=found.patches.size_px,
            tumour=0,
            normal=_EASY,
            seed=seed,
            hard=self.hard,
            groups=found.groups,
            model=model,
            slide_mpp=slide_mpp,
            device=device,
            threads=threads,
            upsample=True,  # whoever drew the training set has decided
            allows_empty=True,
        )
        searched.draw(output, recipe, workers=processes, verb="slides searched")
