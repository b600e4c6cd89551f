"""How every network is trained: rounds of training and hard-negative mining, the peak, and the files written."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from staging.cohorts.training_patients import PATIENTS
from staging.lesions.labels import SlideLabel
from staging.lesions.settings import PEAK, with_peak
from staging.training.doubts import at_its_bound, best_at_the_end, near_chance, worse_than_begun
from staging.training.held_out import HeldOutReport
from staging.training.peak import calibrate_peak
from staging.training.plan import TrainingPlan, check_plan, network_of, open_sources, unfit
from staging.training.sources import PatchRecipe
from wsi.cores import usable_cores
from wsi.errors import OutputExistsError, OutputInUseError
from wsi.lock import OutputLock
from wsi.stain_range import PROVENANCE, measure_range
from wsi.store import atomic_text, is_unfinished, storage, sweep

if TYPE_CHECKING:
    from annotations.patches.training_set import TrainingSet
    from wsi.cnn.checkpoint import Checkpoint
    from wsi.cnn.method import Method
    from wsi.cnn.ranks import Ranks
    from wsi.cnn.training import Epoch, Training
    from wsi.cnn.training_log import TrainingLog

_WRITTEN = r"safetensors|progress|(held_out\.)?csv|(patches\.)?parquet|learning\.png|calibration\.png"
_MADE_FROM = "made_from"


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

    check_plan(plan)
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
        report = HeldOutReport.of(result, found.slides)
        doubts = (
            *near_chance(area),
            *at_its_bound(result.checkpoint.temperature),
            *worse_than_begun(result.begun_loss, result.history[result.best].judges_loss),
            *(best_at_the_end(result.best, len(result.history)) if result.judges else ()),
            *report.doubts(),
        )
        for text in (*report.lines(), *doubts):
            self._news.say(text)
        if self._ranks.is_first:
            if report.slides:
                atomic_text(_beside(plan.output, ".held_out.csv"), report.table())
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
            "held_out_slides": {one.name: one.to_json() for one in report.slides},
            "held_out_centres": {one.name: one.to_json() for one in report.centres},
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
        from wsi.cnn.training_log import TrainingLog  # noqa: PLC0415  (loads torch)

        plan = self._plan
        log = TrainingLog(_beside(target, ".csv"), tensorboard=plan.tensorboard) if self._ranks.is_first else None
        found = open_sources(plan, self._sources, workers=max(1, usable_cores() // self._ranks.on_machine))
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
        """Learn the peak from labelled slides of the training set's patients; return its provenance."""
        from wsi.cnn.checkpoint import save_checkpoint  # noqa: PLC0415  (loads torch)
        from wsi.cnn.device import shared_out  # noqa: PLC0415

        plan = self._plan
        if plan.cohort is None:
            self._news.say(f"without --slides and -r the peak is not learnt: commands take {PEAK:g}")
            return {}
        cohort = plan.cohort.of({*found.patches.patients.tolist()})
        slides = cohort.weighted()
        if not any(one.label is SlideLabel.NEGATIVE for one in slides):
            self._news.say("no slide of these patients is labelled negative: the peak is not learnt")
            return {}
        model = _folder(plan.output) / plan.output.name
        save_checkpoint(model, checkpoint)
        workers, threads = shared_out(plan.device, plan.workers)
        peak = calibrate_peak(
            slides,
            model,
            smallest_um=plan.smallest_um,
            slide_mpp=plan.slide_mpp,
            device=plan.device,
            workers=workers,
            threads=threads,
        )
        self._news.say(str(peak))
        return with_peak({}, peak.value)

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


class _Passes:
    """Says of every pass how it went, and how long the rest takes; passes of an earlier call come without steps."""

    def __init__(self, news: TrainingNews, log: TrainingLog | None) -> None:
        self._news, self._log = news, log
        self._began = time.perf_counter()
        self._made = 0
        self._has_steps = False

    def step(self, done: int, total: int) -> None:
        """Take the patches done in this pass."""
        self._has_steps = True
        self._news.step(done, total)

    def note(self, epoch: Epoch) -> None:
        """Take the end of a pass."""
        if self._log is not None:
            self._log.note(epoch)
        if not self._has_steps:
            self._news.say(f"{epoch} (by an earlier call)")
            return
        self._has_steps = False
        self._made += 1
        left = (time.perf_counter() - self._began) / self._made * (epoch.epochs - epoch.number)
        self._news.say(f"{epoch}, about {timedelta(seconds=max(1, round(left)))} left" if left else str(epoch))


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

    passes = _Passes(news, log)
    drawn = plan.held_out if judges is None else judges
    try:
        return train(
            found.patches,
            method,
            network=network_of(plan, found),
            judges=found.judges or drawn,
            device=plan.device,
            resume=Progress(_beside(target, ".progress")),
            on_epoch=passes.note,
            on_step=passes.step,
        )
    except UnfitPatchesError as error:
        raise unfit(plan, error) from error


def _stains(found: TrainingSet) -> dict[str, Any]:
    """Measure the stains of the training set, as provenance."""
    measured = measure_range(found.patches)
    return {} if measured is None else {PROVENANCE: measured.to_json()}


def _is_made(plan: TrainingPlan) -> bool:
    """Return whether an earlier call made this checkpoint from the same inputs."""
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)

    if plan.made_from is None or not plan.output.is_file():
        return False
    return load_checkpoint(plan.output).provenance.get(_MADE_FROM) == plan.made_from


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
    _refuse_strange(folder, output.name)
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
            sweep(folder)
            with suppress(OSError):
                (folder / output.name).unlink(missing_ok=True)
                (folder / ".lock").unlink(missing_ok=True)
                folder.rmdir()


def _refuse_strange(folder: Path, own: str) -> None:
    """Refuse a folder in the place of ours that holds something else, or a link: nothing of others is removed.

    Raises:
        OutputExistsError: it is one.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputExistsError(folder, "is no folder of sentinode train", mend="rename it, or choose another output")
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    strange = sorted(name for name in names - {".lock", own} if not is_unfinished(name))
    if strange:
        reason = f"holds {strange[0]}, which is not of sentinode train"
        raise OutputExistsError(folder, reason, mend="rename it, or choose another output")


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
