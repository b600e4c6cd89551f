"""Mistakes of a network: where it takes normal tissue for tumour, on slides of patients it has learnt from."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from annotations.patches.training_set import TrainingSet
from staging.errors import ConfigurationError
from staging.training.labelled_cohort import LabelledCohort
from staging.training.sources import PatchRecipe

_EASY = 1  # normal patch per slide beside the mistakes: a slide without any still gives one


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningPlan:
    """How mistakes are looked for between trainings.

    Attributes:
        rounds: how often; after each the network is trained anew on all patches.
        epochs: passes of the trainings before the last; None makes as many as there.
        hard: patches per slide and round.
        only_negatives: look at some of the negative slides in place of all slides.
    """

    rounds: int = 1
    epochs: int | None = None
    hard: int = 24
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
        slide_mpp: float | None,
        device: str,
        workers: int | None,
    ) -> None:
        """Write a table of patches where a network most takes normal tissue for tumour.

        Args:
            cohort: slides; only those of patients it has learnt from are looked at.
            output: the table; one of the same recipe is kept.
            model: the checkpoint.
            found: what it has learnt from; the patches are of the same kind.
            judges: patients who judge it, on whose slides no mistakes are looked for.
            seed: of the patches that are no mistakes.
            slide_mpp: um per level-0 px in place of what the files say.
            device: where it runs.
            workers: processes.

        Raises:
            ConfigurationError: no slide is of a patient it has learnt from.
            PathologyError: whatever is wrong with a slide or the checkpoint.
        """
        from wsi.cnn.device import shared_out  # noqa: PLC0415  (loads torch)

        processes, threads = shared_out(device, workers)
        searched = cohort.of({*found.patches.patients.tolist()} - {*judges})
        if not searched.slides:
            raise ConfigurationError(
                cohort.slides[0].path,
                "is of no patient whom the network has learnt from",
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
        )
        searched.draw(output, recipe, workers=processes, verb="slides searched")
