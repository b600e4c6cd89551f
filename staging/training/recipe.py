"""How the demonstration and the cross-validation make a network from a labelled cohort alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from staging.cohorts.names import slide_key
from staging.errors import CohortError
from staging.lesions.labels import SizeRule
from staging.lesions.settings import SMALLEST_UM, peak_of
from staging.runs.config import RunConfig
from staging.training.labelled_cohort import LabelledCohort
from staging.training.mining import HARD, MiningPlan
from staging.training.plan import TrainingPlan
from staging.training.sources import PatchRecipe, annotation_files
from wsi.readers.resolution import Mpp
from wsi.stain import StainJitter
from wsi.store import digest_of

_STAINS = StainJitter(sigma=0.15, strength=0.25, hue=0.1, bias=0.04, exposure=0.03)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortRecipe:
    """A first network, hard negatives where it errs on negative slides, and the final network.

    Attributes:
        seed: of the patches, the weights and their order.
        mpp: um per pixel of the network's input.
        size_px: side of the patches.
        tumour, normal: patches per slide.
        hard: hard-negative patches per negative slide, where the first network finds tumour.
        first_epochs: epochs of the first network.
        epochs: epochs of the final network.
        smallest_um: shorter lesions are noise.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        device: where networks are trained and run.
        upsample: use slides coarser than the network's input, too.
    """

    seed: int = 0
    mpp: float = 2.0
    size_px: int = 192
    tumour: int = 28
    normal: int = 16
    hard: int = HARD
    first_epochs: int = 3
    epochs: int = 11
    smallest_um: float = SMALLEST_UM
    slide_mpp: Mpp | None = None
    device: str = "auto"
    upsample: bool = False

    def plan(self, cohort: LabelledCohort, output: Path, *, workers: int) -> TrainingPlan:
        """Plan the training on a cohort.

        Args:
            cohort: the training set; no patients are held out as judges.
            output: the checkpoint; an existing one made from the same inputs is kept.
            workers: number of processes that read slides.

        Raises:
            CohortError: there is no negative slide, or no slide with annotations.
        """
        from wsi.cnn.augmentation import Augmentation, Focus, Stain, Turns  # noqa: PLC0415  (loads torch)
        from wsi.cnn.method import Method  # noqa: PLC0415

        if not cohort.negatives().slides:
            raise CohortError(cohort.annotations, "has no slide labelled negative", mend="add some")
        drawn = annotation_files(cohort.annotations)
        if not any(slide_key(slide.name) in drawn for slide in cohort.slides):
            raise CohortError(
                cohort.annotations,
                f"has annotations for none of the {len(cohort.slides)} training slides",
                mend="annotate slides with tumour, or use fewer folds",
            )
        recipe = {name: value for name, value in asdict(self).items() if name != "upsample"}
        return TrainingPlan(
            patches=PatchRecipe(
                mpp=self.mpp,
                size_px=self.size_px,
                tumour=self.tumour,
                normal=self.normal,
                seed=self.seed,
                slide_mpp=self.slide_mpp,
                upsample=self.upsample,
            ),
            cohort=cohort,
            output=output,
            method=Method(
                epochs=self.epochs,
                seed=self.seed,
                augmentation=Augmentation((Turns(), Stain(_STAINS), Focus())),
            ),
            held_out=0,
            mining=MiningPlan(epochs=self.first_epochs, hard=self.hard, only_negatives=True),
            smallest_um=self.smallest_um,
            slide_mpp=self.slide_mpp,
            device=self.device,
            workers=workers,
            made_from=digest_of({"recipe": recipe, "slides": [slide.name for slide in cohort.slides]}),
        )

    def run_configuration(self, model: Path, *, nodes: int = 5) -> RunConfig:
        """Return the configuration for running a checkpoint of this recipe.

        Raises:
            CheckpointError: the model is not a checkpoint.
        """
        from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

        checkpoint = load_checkpoint(model)
        return RunConfig(
            model=checkpoint.digest,
            threshold=checkpoint.threshold,
            peak=peak_of(checkpoint.provenance),
            mpp=self.slide_mpp,
            rule=SizeRule(smallest_um=self.smallest_um),
            nodes=nodes,
        )
