"""What a network is trained on and how, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from annotations.errors import FoldError
from staging.errors import CohortError, ConfigurationError, listed
from staging.lesions.settings import SMALLEST_UM
from staging.training.labelled_cohort import LabelledCohort
from staging.training.mining import MiningPlan
from staging.training.sources import PatchRecipe
from staging.training.storing import changed_files, is_patch_folder
from wsi.errors import PathologyError
from wsi.readers.base import OnBadTile
from wsi.readers.resolution import Mpp

if TYPE_CHECKING:
    from annotations.patches.training_set import TrainingSet
    from wsi.cnn.checkpoint import Checkpoint
    from wsi.cnn.method import Method
    from wsi.cnn.network import CellGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a network is trained on, how it is trained, and what is written.

    Attributes:
        patches: stores and tables, joined; or the recipe by which patches are first drawn from the cohort. Patients of
            the split ``test`` are left out, those of ``validation`` are the judges.
        output: the checkpoint. Beside it are written ``.csv``, ``.held_out.csv``, ``.learning.png`` and
            ``.calibration.png``; during training ``.progress``; for each round of mining ``.round1.safetensors`` and
            ``.round1.parquet``; and patches drawn first, ``.patches.parquet``.
        method: how the network is trained.
        held_out: share of the patients who are judges, unless a split names them.
        network: a name in ``wsi.cnn.architectures.NETWORKS``; ignored if ``start`` is given.
        start: checkpoint to start from.
        cohort: labelled slides: patches are drawn and hard negatives mined on them, and the peak is learnt from the
            negative ones. None to do without.
        mining: rounds of hard-negative mining; None for none.
        fold: the fold to leave out, if patients were split into folds.
        on_bad_tile: whether a tile that cannot be decoded ends the training, or is read as white and reported.
        smallest_um: shorter lesions do not count for the peak.
        slide_mpp: um per level-0 px of slides that state none, or for all.
        device: where the network is trained.
        workers: number of processes that read the cohort's slides; None chooses.
        tensorboard: folder for TensorBoard events.
        made_from: what the checkpoint is made from, if given: an existing checkpoint that records the same is kept.
    """

    patches: tuple[Path, ...] | PatchRecipe
    output: Path
    method: Method
    held_out: float
    network: str = "small"
    start: Path | None = None
    cohort: LabelledCohort | None = None
    mining: MiningPlan | None = None
    fold: int | None = None
    on_bad_tile: OnBadTile = "raise"
    smallest_um: float = SMALLEST_UM
    slide_mpp: Mpp | None = None
    device: str = "auto"
    workers: int | None = None
    tensorboard: Path | None = None
    made_from: str | None = None

    def __post_init__(self) -> None:
        if self.cohort is None and (self.mining is not None or isinstance(self.patches, PatchRecipe)):
            raise ValueError("patches are drawn from a cohort, and mistakes are looked for on one: none is given")


def check_plan(plan: TrainingPlan) -> None:
    """Refuse at once what would fail after hours of training.

    Raises:
        ConfigurationError: the output is a folder, or patches are given twice.
        CohortError: stored patches have changed.
        CheckpointError: the start is damaged.
        PathologyError: TensorBoard is asked for and not installed.
    """
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    if plan.start is not None:
        load_checkpoint(plan.start)
    if plan.output.is_dir():
        raise ConfigurationError(plan.output, "is a folder", mend="name the checkpoint's file, model.safetensors")
    given = () if isinstance(plan.patches, PatchRecipe) else plan.patches
    resolved = [path.resolve() for path in given]
    twice = next((path for path, real in zip(given, resolved, strict=True) if resolved.count(real) > 1), None)
    if twice is not None:
        raise ConfigurationError(twice, "is given twice", mend="name each store once")
    for path in given:
        changed = changed_files(path) if is_patch_folder(path) else []
        if changed:
            raise CohortError(path, f"is not what was stored: {listed(changed)}", mend="call sentinode patches again")
    if plan.tensorboard is not None:
        from wsi.cnn.training_log import load_summary_writer  # noqa: PLC0415  (loads torch)

        load_summary_writer()


def open_sources(plan: TrainingPlan, sources: Sequence[Path], *, workers: int | None = None) -> TrainingSet:
    """Open the patches that a network may learn from and is judged on.

    Raises:
        ConfigurationError: the fold does not match the folds.
        PathologyError: a store, a slide or its annotations are faulty.
    """
    from annotations.patches.training_set import open_training_set  # noqa: PLC0415  (loads torch)

    try:
        return open_training_set(sources, fold=plan.fold, on_bad_tile=plan.on_bad_tile, workers=workers)
    except FoldError as error:
        raise ConfigurationError(error.path, error.reason, mend=error.mend) from error


def unfit(plan: TrainingPlan, error: PathologyError) -> ConfigurationError:
    """Return that nothing can be learnt from the patches of a plan."""
    return ConfigurationError(_named(plan), error.reason, mend="draw other patches")


def network_of(plan: TrainingPlan, found: TrainingSet) -> CellGeometry | Checkpoint:
    """Return the architecture or checkpoint that training starts from.

    Raises:
        ConfigurationError: it does not fit the patches.
        CheckpointError: the start is damaged.
    """
    from wsi.cnn.architectures import NETWORKS  # noqa: PLC0415  (loads torch)
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415

    start = None if plan.start is None else load_checkpoint(plan.start)
    architecture = NETWORKS[plan.network] if start is None else start.architecture
    if start is not None and start.mpp != found.patches.mpp:
        raise ConfigurationError(
            plan.start,
            f"takes {start.mpp} um/px, but the patches have {found.patches.mpp}",
            mend="draw patches with that --mpp, or import the checkpoint with theirs",
        )
    if architecture.classes != 2:
        raise ConfigurationError(
            plan.start,
            f"has {architecture.classes} classes, but training needs two: normal and tumour",
            mend="give a checkpoint with two classes",
        )
    if found.patches.size_px < architecture.receptive_field_px:
        raise ConfigurationError(
            _named(plan),
            f"its patches of {found.patches.size_px} px are smaller than the {architecture.receptive_field_px} px that "
            "one cell of the network sees",
            mend=f"draw them with --size {-(-architecture.receptive_field_px // 64) * 64} or use a smaller network",
        )
    return architecture if start is None else start


def _named(plan: TrainingPlan) -> Path | None:
    """Return the patches to name in an error."""
    return None if isinstance(plan.patches, PatchRecipe) else plan.patches[0]
