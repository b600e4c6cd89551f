"""How every network is trained: rounds of training and hard-negative mining, the peak, and the files written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from annotations.errors import FoldError
from staging.cohorts.training_patients import PATIENTS
from staging.errors import CohortError, ConfigurationError, listed
from staging.lesions.settings import SMALLEST_UM, with_peak
from staging.training.doubts import at_its_bound, near_chance
from staging.training.labelled_cohort import LabelledCohort
from staging.training.mining import MiningPlan
from staging.training.peak import calibrate_peak
from staging.training.sources import PatchRecipe
from staging.training.storing import changed_files, is_patch_folder
from wsi.cores import usable_cores
from wsi.errors import OutputInUseError
from wsi.lock import OutputLock
from wsi.readers.base import OnBadTile
from wsi.readers.resolution import Mpp
from wsi.stain_range import PROVENANCE, measure_range
from wsi.store import storage, sweep

if TYPE_CHECKING:
    from annotations.patches.training_set import TrainingSet
    from wsi.cnn.checkpoint import Checkpoint
    from wsi.cnn.method import Method
    from wsi.cnn.network import CellGeometry
    from wsi.cnn.ranks import Ranks
    from wsi.cnn.training import Epoch, Training
    from wsi.cnn.training_log import TrainingLog

_WRITTEN = r"safetensors|progress|csv|(patches\.)?parquet|learning\.png|calibration\.png"
_MADE_FROM = "made_from"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a network is trained on, how it is trained, and what is written.

    Attributes:
        patches: stores and tables, joined; or the recipe by which patches are first drawn from the cohort. Patients of
            the split ``test`` are left out, those of ``validation`` are the judges.
        output: the checkpoint. Beside it are written ``.csv``, ``.learning.png`` and ``.calibration.png``; during
            training ``.progress``; for each round of mining ``.round1.safetensors`` and ``.round1.parquet``; and
            patches drawn first, ``.patches.parquet``.
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


class TrainingNews(Protocol):
    """Receives the progress of training."""

    def say(self, text: str) -> None:
        """Print a line."""

    def step(self, done: int, total: int) -> None:
        """Report the patches done in this pass."""


def run_training(plan: TrainingPlan, *, news: TrainingNews) -> dict[str, Any]:
    """Draw or open patches, train, mine hard negatives, retrain, calibrate, learn the peak, and write the results.

    Args:
        plan: the training plan.
        news: receives progress; when several processes train, each has its own, and only the first should print.

    Returns:
        What was made, for JSON.

    Raises:
        ConfigurationError: the patches do not fit the network or the start, are given twice, or lack a class; the
            output is a folder; no slide of the cohort is of a training patient.
        OutputInUseError: another call is writing this checkpoint.
        StorageError: the output cannot be written.
        PathologyError: training diverges; a store, a slide or the start checkpoint is faulty.
    """
    from wsi.cnn.ranks import joined  # noqa: PLC0415  (loads torch)

    _check(plan)
    with joined(plan.device) as (ranks, _), ExitStack() as held:
        ranks.first_alone(lambda: held.enter_context(_alone(plan.output)))
        if _is_made(plan):
            news.say("the network exists already")
            return {"model": str(plan.output)}
        return _Rounds(plan, ranks, news).go()


class _Rounds:
    """Training, with hard-negative mining in between."""

    def __init__(self, plan: TrainingPlan, ranks: Ranks, news: TrainingNews) -> None:
        self._plan, self._ranks, self._news = plan, ranks, news
        self._drawn = _beside(plan.output, ".patches.parquet")
        self._sources = [self._drawn] if isinstance(plan.patches, PatchRecipe) else [*plan.patches]
        self._judges: tuple[str, ...] | None = None  # those of the first round

    def go(self) -> dict[str, Any]:
        """Run all rounds and return what was made, for JSON."""
        plan, mining = self._plan, self._plan.mining
        rounds, epochs = (range(0), None) if mining is None else (range(1, 1 + mining.rounds), mining.epochs)
        targets = [*(_beside(plan.output, f".round{number}.safetensors") for number in rounds), plan.output]
        self._ranks.first_alone(partial(self._draw, targets[0]))
        for number, target in zip(rounds, targets, strict=False):
            self._news.say(f"round {number} of {len(targets)}")
            mistakes = target.with_suffix(".parquet")
            self._forget(mistakes, target)
            found, result = self._train(target, epochs=epochs)
            self._write(target, result)
            self._ranks.first_alone(partial(self._mine, target, mistakes, found, result, plan.method.seed + number))
            self._sources.append(mistakes)
            self._judges = result.judges
        if rounds:
            self._news.say(f"round {len(targets)} of {len(targets)}")
        found, result = self._train(plan.output)
        about: dict[str, Any] = {} if plan.made_from is None else {_MADE_FROM: plan.made_from}
        measured: dict[str, Any] = {PATIENTS: sorted({*found.patches.patients.tolist()})}
        self._ranks.first_alone(lambda: about.update(self._peak(found, result.checkpoint)))
        self._ranks.first_alone(lambda: measured.update(_stains(found)))
        self._write(plan.output, result, about | measured)
        area = result.history[result.best].judges_auc
        doubts = (*near_chance(area), *at_its_bound(result.checkpoint.temperature))
        for doubt in doubts:
            self._news.say(doubt)
        if self._ranks.is_first:
            for target in targets:
                _beside(target, ".progress").unlink(missing_ok=True)
        return {
            "model": str(plan.output),
            "patches": len(found.patches),
            "streamed": found.is_streamed,
            "mpp": found.patches.mpp,
            "network": plan.network if plan.start is None else None,
            "held_out": list(result.judges),
            "left_out": sorted(found.left_out),
            "bad_tiles": len(found.bad_tiles),
            "held_out_auc": area,
            "temperature": result.checkpoint.temperature,
            "doubts": list(doubts),
            **about,
        }

    def _draw(self, first: Path) -> None:
        """Draw the patches if none are given."""
        plan = self._plan
        if isinstance(plan.patches, PatchRecipe) and plan.cohort is not None:
            self._forget(self._drawn, first)
            self._news.say("drawing labelled patches")
            plan.cohort.draw(self._drawn, plan.patches, workers=plan.workers or usable_cores(), verb="slides sampled")

    def _forget(self, table: Path, target: Path) -> None:
        """Remove an earlier call's patches, unless the training of this target is to be resumed."""
        if self._ranks.is_first and not _beside(target, ".progress").exists():
            with storage(table):
                table.unlink(missing_ok=True)

    def _train(self, target: Path, *, epochs: int | None = None) -> tuple[TrainingSet, Training]:
        """Train on all sources."""
        from annotations.patches.training_set import open_training_set  # noqa: PLC0415  (loads torch)
        from wsi.cnn.training_log import TrainingLog  # noqa: PLC0415

        plan = self._plan
        log = TrainingLog(_beside(target, ".csv"), tensorboard=plan.tensorboard) if self._ranks.is_first else None
        try:
            found = open_training_set(
                self._sources,
                fold=plan.fold,
                on_bad_tile=plan.on_bad_tile,
                workers=max(1, usable_cores() // self._ranks.on_machine),
            )
        except FoldError as error:
            raise ConfigurationError(error.path, error.reason, mend=error.mend) from error
        where = "read from the slides during training" if found.is_streamed else "held in memory"
        patients = len(np.unique(found.patches.patients))
        self._news.say(f"{len(found.patches)} patches of {patients} patients, {where}")
        method = plan.method if epochs is None else replace(plan.method, epochs=epochs)
        result = _fit(found, plan, method, target, judges=self._judges, log=log, news=self._news)
        if plan.held_out and not result.judges:
            self._news.say(
                "no patient could be held out: the last pass is kept, and its probabilities are not calibrated"
            )
        for slide, bad in found.bad_tiles:
            self._news.say(
                f"{slide}: level {bad.level}, tile row {bad.row}, column {bad.column} is white: {bad.reason}"
            )
        return found, result

    def _mine(self, model: Path, output: Path, found: TrainingSet, result: Training, seed: int) -> None:
        plan = self._plan
        if plan.mining is not None and plan.cohort is not None:
            plan.mining.search(
                plan.cohort,
                output,
                model=model,
                found=found,
                judges=result.judges,
                seed=seed,
                slide_mpp=plan.slide_mpp,
                device=plan.device,
                workers=plan.workers,
            )

    def _peak(self, found: TrainingSet, checkpoint: Checkpoint) -> dict[str, Any]:
        """Learn the peak from negative slides of the training set's patients; return its provenance."""
        from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
        from wsi.cnn.device import shared_out  # noqa: PLC0415

        plan = self._plan
        if plan.cohort is None:
            return {}
        negatives = plan.cohort.of({*found.patches.patients.tolist()}).negatives().slides
        if not negatives:
            self._news.say("no slide of these patients is labelled negative: the peak is not learnt")
            return {}
        model = _folder(plan.output) / plan.output.name
        save_checkpoint(model, checkpoint)
        workers, threads = shared_out(plan.device, plan.workers)
        peak = calibrate_peak(
            negatives,
            model,
            smallest_um=plan.smallest_um,
            slide_mpp=plan.slide_mpp,
            device=plan.device,
            workers=workers,
            threads=threads,
        )
        reached = "nothing on" if peak < 1 else "something as certain is on one of"
        self._news.say(f"a lesion must reach {peak:.4f}: {reached} {len(negatives)} negative slides")
        return with_peak({}, peak)

    def _write(self, target: Path, result: Training, about: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint and its pictures."""
        from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
        from wsi.cnn.curves import calibration_picture, learning_picture  # noqa: PLC0415
        from wsi.render import save_png  # noqa: PLC0415

        if self._ranks.is_first:
            checkpoint = result.checkpoint
            save_checkpoint(target, replace(checkpoint, provenance={**checkpoint.provenance, **(about or {})}))
            save_png(_beside(target, ".learning.png"), learning_picture(result))
            save_png(_beside(target, ".calibration.png"), calibration_picture(result))


def _fit(
    found: TrainingSet,
    plan: TrainingPlan,
    method: Method,
    target: Path,
    *,
    judges: Sequence[str] | None,
    log: TrainingLog | None,
    news: TrainingNews,
) -> Training:
    from wsi.cnn.resuming import Progress  # noqa: PLC0415  (loads torch)
    from wsi.cnn.training import train  # noqa: PLC0415
    from wsi.cnn.training_data import UnfitPatchesError  # noqa: PLC0415

    def note(epoch: Epoch) -> None:
        if log is not None:
            log.note(epoch)
        news.say(str(epoch))

    drawn = plan.held_out if judges is None else judges
    try:
        return train(
            found.patches,
            method,
            network=_network(plan, found),
            judges=found.judges or drawn,
            device=plan.device,
            resume=Progress(_beside(target, ".progress")),
            on_epoch=note,
            on_step=news.step,
        )
    except UnfitPatchesError as error:
        raise ConfigurationError(_named(plan), error.reason, mend="draw other patches") from error


def _network(plan: TrainingPlan, found: TrainingSet) -> CellGeometry | Checkpoint:
    """Return the architecture or checkpoint that training starts from."""
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


def _stains(found: TrainingSet) -> dict[str, Any]:
    """Measure the stains of the training set, as provenance."""
    measured = measure_range(found.patches)
    return {} if measured is None else {PROVENANCE: measured.to_json()}


def _named(plan: TrainingPlan) -> Path | None:
    """Return the patches to name in an error."""
    return None if isinstance(plan.patches, PatchRecipe) else plan.patches[0]


def _is_made(plan: TrainingPlan) -> bool:
    """Return whether an earlier call made this checkpoint from the same inputs."""
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    if plan.made_from is None or not plan.output.is_file():
        return False
    return load_checkpoint(plan.output).provenance.get(_MADE_FROM) == plan.made_from


def _check(plan: TrainingPlan) -> None:
    """Refuse at once what would fail after hours of training."""
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


def is_written(name: str, output: Path) -> bool:
    """Return whether a file of this name is written beside a checkpoint or a round's, or is one."""
    stem = re.escape(_beside(output, "").name)
    return re.fullmatch(rf"{stem}(\.round\d+)?(\.({_WRITTEN}))?", name) is not None


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Lock the output for this call, and remove what a killed call left half-written.

    Other checkpoints in the same directory may be trained at the same time.
    """
    folder = _folder(output)
    with ExitStack() as held:
        try:
            held.enter_context(OutputLock(folder))
        except OutputInUseError as error:
            raise OutputInUseError(output, error.reason, mend=error.mend) from None
        if not _is_mine(folder):
            raise OutputInUseError(output, "was in use by another call until now", mend="try again")
        try:
            sweep(output.absolute().parent, lambda name: is_written(name, output))
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(output: Path) -> Path:
    """Return the folder that is locked and written while an output is made."""
    return output.with_name(f".{_beside(output, '.training').name}")


def _is_mine(folder: Path) -> bool:
    """Return whether our lock is still in the folder: its previous holder may have removed it."""
    try:
        return bool(json.loads((folder / ".lock").read_bytes())["pid"] == os.getpid())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name.removesuffix(".safetensors") + ending)
