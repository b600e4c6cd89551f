"""One call of ``sentinode train``: rounds of training and of looking for mistakes, and all that is written."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from annotations.errors import FoldError
from annotations.patches.table import read_table
from staging.cohorts.camelyon import find_slides, read_stage_table
from staging.errors import ConfigurationError
from staging.runs.bars import CohortProgress
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe, described
from wsi.cores import usable_cores
from wsi.errors import OutputInUseError
from wsi.lock import OutputLock
from wsi.readers.base import OnBadTile
from wsi.store import json_text, storage

if TYPE_CHECKING:
    from annotations.patches.training_set import TrainingSet
    from wsi.cnn.ranks import Ranks
    from wsi.cnn.training import Epoch, Training
    from wsi.cnn.training_log import TrainingLog

_LEARNING_RATE, _RESNET_LEARNING_RATE = 4e-3, 1e-3
_WRITTEN = r"safetensors|progress|csv|parquet|learning\.png|calibration\.png"
_EASY = 1  # normal patch per slide beside the mistakes: a slide without any still gives one


@dataclass(frozen=True, slots=True, kw_only=True)
class MiningPlan:
    """Where false positives are looked for between the rounds.

    Attributes:
        rounds: how often: after each the network is trained anew on all patches.
        slides: of the training cohort.
        annotations: directory of their contours.
        reference: table that says which are negative.
        hard: patches per slide and round.
        workers: processes.
    """

    rounds: int
    slides: tuple[Path, ...]
    annotations: Path
    reference: Path
    hard: int
    workers: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What is trained and how.

    Attributes:
        patches: stores and tables, joined; what their split calls ``test`` is left out, ``validation`` judges.
        fold: which fold is left out, where patients were split into folds.
        on_bad_tile: whether a tile that cannot be decoded ends the training, or is white and told.
        output: the checkpoint. Beside it lie ``.csv``, ``.learning.png`` and ``.calibration.png``, while training runs
            ``.progress``, and of the rounds of mining ``.round1.safetensors`` and ``.round1.zarr``.
        network: a name among ``wsi.cnn.architectures.NETWORKS``; the start's where there is a start.
        start: checkpoint to go on from.
        epochs, batch, seed, device, learning_rate, held_out: as for ``wsi.cnn.training.train``.
        schedule, average, patience, temperature, precision: as for ``wsi.cnn.method.Method``.
        full_augmentation: all variations, on the device, in place of turns, stains and focus on the CPU.
        compiled: use torch.compile.
        tensorboard: folder for its events.
        mining: rounds of hard negatives; None for none.
    """

    patches: tuple[Path, ...]
    fold: int | None
    on_bad_tile: OnBadTile
    output: Path
    network: str
    start: Path | None
    epochs: int
    batch: int
    seed: int
    device: str
    learning_rate: float | None
    held_out: float
    schedule: Literal["one-cycle", "cosine"]
    average: float
    patience: int | None
    temperature: bool
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    full_augmentation: bool
    compiled: bool
    tensorboard: Path | None
    mining: MiningPlan | None


class TrainingNews(Protocol):
    """Who is told how training goes."""

    def say(self, text: str) -> None:
        """A line for people."""

    def step(self, done: int, total: int) -> None:
        """So many of a pass's patches were learnt from."""


def run_training(plan: TrainingPlan, *, news: TrainingNews) -> dict[str, Any]:
    """Train, look for mistakes, train again; write the checkpoint, the log and the pictures.

    Args:
        plan: what is trained.
        news: hears of each pass; where several processes train, each has its own, and only the first should speak.

    Returns:
        What was made, for JSON.

    Raises:
        ConfigurationError: the patches do not suit the network or the start, are given twice, or lack a class; the
            output is a folder.
        OutputInUseError: another call writes this checkpoint.
        StorageError: the output side refuses.
        PathologyError: training diverges; a store, a slide or the checkpoint to start from is not good.
    """
    from wsi.cnn.ranks import joined  # noqa: PLC0415  (loads torch)

    _check(plan)
    with joined(plan.device) as (ranks, _), ExitStack() as held:
        ranks.first_alone(lambda: held.enter_context(_alone(plan.output)))
        return _Rounds(plan, ranks, news).go()


class _Rounds:
    """Training, and looking for mistakes in between."""

    def __init__(self, plan: TrainingPlan, ranks: Ranks, news: TrainingNews) -> None:
        self._plan, self._ranks, self._news = plan, ranks, news
        self._sources = list(plan.patches)
        self._judges: tuple[str, ...] | None = None  # the patients whom the first round held out

    def go(self) -> dict[str, Any]:
        """All rounds; what was made, for JSON."""
        plan, progress = self._plan, list[Path]()
        rounds = 0 if plan.mining is None else plan.mining.rounds
        for number in range(rounds):
            target = _beside(plan.output, f".round{number + 1}.safetensors")
            progress.append(_beside(target, ".progress"))
            self._news.say(f"round {number + 1} of {rounds + 1}")
            mistakes = target.with_suffix(".parquet")
            if self._ranks.is_first and not progress[-1].exists():
                with storage(mistakes):
                    mistakes.unlink(missing_ok=True)  # of another network, from an earlier call
            found, result = self._train(target)
            self._ranks.first_alone(partial(self._mine, target, mistakes, found, plan.seed + number + 1))
            self._sources.append(mistakes)
            self._judges = result.held_out
        if rounds:
            self._news.say(f"round {rounds + 1} of {rounds + 1}")
        progress.append(_beside(plan.output, ".progress"))
        found, result = self._train(plan.output)
        if self._ranks.is_first:
            for path in progress:
                path.unlink(missing_ok=True)
        best = result.history[result.best]
        return {
            "model": str(plan.output),
            "patches": len(found.patches),
            "streamed": found.is_streamed,
            "mpp": found.mpp,
            "network": plan.network if plan.start is None else None,
            "held_out": list(result.held_out),
            "left_out": sorted(found.left_out),
            "bad_tiles": len(found.bad_tiles),
            "held_out_auc": best.validation_auc,
            "temperature": result.checkpoint.temperature,
        }

    def _train(self, target: Path) -> tuple[TrainingSet, Training]:
        """Train on all sources, write the checkpoint and its pictures."""
        from annotations.patches.training_set import open_training_set  # noqa: PLC0415  (loads torch)
        from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415
        from wsi.cnn.training_log import TrainingLog  # noqa: PLC0415

        log = TrainingLog(_beside(target, ".csv"), tensorboard=self._plan.tensorboard) if self._ranks.is_first else None
        try:
            found = open_training_set(
                self._sources,
                fold=self._plan.fold,
                on_bad_tile=self._plan.on_bad_tile,
                workers=max(1, usable_cores() // self._ranks.on_machine),
            )
        except FoldError as error:
            raise ConfigurationError(error.path, error.reason, mend=error.mend) from error
        where = "read from the slides while the network learns" if found.is_streamed else "held in memory"
        self._news.say(f"{len(found.patches)} patches of {len(np.unique(found.patients))} patients, {where}")
        result = _fit(found, self._plan, target, judges=self._judges, log=log, news=self._news)
        if self._plan.held_out and not result.held_out:
            self._news.say("nobody could be held out: the last pass is kept, and its probabilities are not calibrated")
        for slide, bad in found.bad_tiles:
            self._news.say(
                f"{slide}: level {bad.level}, tile row {bad.row}, column {bad.column} is white: {bad.reason}"
            )
        if self._ranks.is_first:
            save_checkpoint(target, result.checkpoint)
            _draw(target, result)
        return found, result

    def _mine(self, model: Path, output: Path, found: TrainingSet, seed: int) -> None:
        """Places where the network most takes normal tissue for tumour, on slides of patients it has learnt from."""
        from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
        from wsi.cnn.device import shared_out  # noqa: PLC0415

        plan = self._plan.mining
        if plan is None:
            return
        workers, threads = shared_out(self._plan.device, plan.workers)
        learnt = {*found.patients.tolist()} - {*load_checkpoint(model).provenance["held_out"]}
        slides = [slide for slide in find_slides(plan.slides) if (slide.patient or slide.name) in learnt]
        if not slides:
            raise ConfigurationError(
                plan.slides[0],
                "is of no patient whom the network has learnt from",
                mend="give the slides of the patches",
            )
        recipe = PatchRecipe(
            mpp=found.mpp,
            size_px=found.patches.size_px,
            tumour=0,
            normal=_EASY,
            seed=seed,
            hard=plan.hard,
            hard_choice="worst",
            groups=found.groups,
            model=model,
            device=self._plan.device,
            threads=threads,
        )
        if output.exists() and read_table(output).about.get("recipe") == json.loads(json_text(described(recipe))):
            return
        with CohortProgress(len(slides), verb="slides searched", tiles=False) as progress:
            sample_cohort(
                slides,
                plan.annotations,
                read_stage_table(plan.reference),
                output,
                recipe=recipe,
                workers=workers,
                news=progress,
            )


def _fit(
    found: TrainingSet,
    plan: TrainingPlan,
    target: Path,
    *,
    judges: Sequence[str] | None,
    log: TrainingLog | None,
    news: TrainingNews,
) -> Training:
    from wsi.cnn.device_augmentation import Augmentation  # noqa: PLC0415  (loads torch)
    from wsi.cnn.method import Method  # noqa: PLC0415
    from wsi.cnn.network import Architecture  # noqa: PLC0415
    from wsi.cnn.training import train  # noqa: PLC0415

    method = Method(
        schedule=plan.schedule,
        augmentation=Augmentation() if plan.full_augmentation else None,
        average=plan.average,
        patience=plan.patience,
        temperature=plan.temperature,
        precision=plan.precision,
        compiler="inductor" if plan.compiled else None,
    )
    network = _network(plan, found)
    usual = _LEARNING_RATE if isinstance(network["architecture"], Architecture) else _RESNET_LEARNING_RATE

    def note(epoch: Epoch) -> None:
        if log is not None:
            log.note(epoch)
        news.say(str(epoch))

    try:
        return train(
            found.patches,
            mpp=found.mpp,
            groups=found.patients,
            epochs=plan.epochs,
            batch=plan.batch,
            seed=plan.seed,
            device=plan.device,
            **network,
            learning_rate=plan.learning_rate or usual,
            held_out=plan.held_out,
            validation=_validation(found, judges),
            method=method,
            resume=_beside(target, ".progress"),
            on_epoch=note,
            on_step=news.step,
        )
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise ConfigurationError(plan.patches[0], str(error), mend="draw other patches") from error


def _validation(found: TrainingSet, judges: Sequence[str] | None) -> NDArray[np.bool_] | None:
    """Which patches judge: those of the split, or of the first round's held-out patients; None to draw patients."""
    if found.validation.any():
        return found.validation
    return None if judges is None else np.isin(found.patients, judges)


def _network(plan: TrainingPlan, found: TrainingSet) -> dict[str, Any]:
    """Architecture and checkpoint to start from, as train takes them."""
    from wsi.cnn.architectures import NETWORKS  # noqa: PLC0415  (loads torch)
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415

    start = None if plan.start is None else load_checkpoint(plan.start)
    architecture = NETWORKS[plan.network] if start is None else start.architecture
    if start is not None and start.mpp != found.mpp:
        raise ConfigurationError(
            plan.start,
            f"looks at {start.mpp} um/px, the patches have {found.mpp}",
            mend="draw patches with its --mpp, or import it with theirs",
        )
    if found.patches.size_px < architecture.receptive_field_px:
        raise ConfigurationError(
            plan.patches[0],
            f"its patches of {found.patches.size_px} px are smaller than the {architecture.receptive_field_px} px that "
            "one cell of the network sees",
            mend=f"draw them with --size {-(-architecture.receptive_field_px // 64) * 64} or take a smaller network",
        )
    return {"architecture": architecture, "start": start}


def _draw(target: Path, result: Training) -> None:
    from wsi.cnn.curves import calibration_picture, learning_picture  # noqa: PLC0415  (loads torch)
    from wsi.render import save_png  # noqa: PLC0415

    save_png(_beside(target, ".learning.png"), learning_picture(result))
    save_png(_beside(target, ".calibration.png"), calibration_picture(result))


def _check(plan: TrainingPlan) -> None:
    """Find out before hours of training what would end it."""
    if plan.output.is_dir():
        raise ConfigurationError(plan.output, "is a folder", mend="name the checkpoint's file, model.safetensors")
    resolved = [path.resolve() for path in plan.patches]
    twice = next((path for path, real in zip(plan.patches, resolved, strict=True) if resolved.count(real) > 1), None)
    if twice is not None:
        raise ConfigurationError(twice, "is given twice", mend="name each store once")


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Hold the output for this call, and sweep what a killed one left half written; nothing of it stays.

    Other checkpoints of the same directory may be trained at the same time.
    """
    folder = output.with_name(f".{_beside(output, '.training').name}")
    with ExitStack() as held:
        try:
            held.enter_context(OutputLock(folder))
        except OutputInUseError as error:
            raise OutputInUseError(output, error.reason, mend=error.mend) from None
        if not _is_mine(folder):
            raise OutputInUseError(output, "was in use by another run until now", mend="try again")
        try:
            half = re.escape(_beside(output, "").name) + rf"(\.round\d+)?(\.({_WRITTEN}))?"
            for path in output.absolute().parent.iterdir():
                if re.fullmatch(rf"\.{half}\.\d+\.partial", path.name):
                    path.unlink(missing_ok=True)
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_mine(folder: Path) -> bool:
    """Whether the lock that is held still lies in the folder: who held it before takes it away."""
    try:
        return bool(json.loads((folder / ".lock").read_bytes())["pid"] == os.getpid())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name.removesuffix(".safetensors") + ending)
