"""From labelled patches to a Checkpoint: every output cell of a patch is one training example."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.augmentation import IGNORE
from wsi.cnn.calibration import area_under_curve, balanced_loss, best_temperature, best_threshold
from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.device import lone_threads
from wsi.cnn.learner import DivergedError, Learner, diverged
from wsi.cnn.method import Method
from wsi.cnn.network import SMALL, CellGeometry
from wsi.cnn.ranks import Ranks, joined
from wsi.cnn.resuming import load_progress, save_progress
from wsi.cnn.training_data import TrainingData
from wsi.cores import usable_cores
from wsi.errors import CheckpointError
from wsi.patches.feeding import TrainingPatches
from wsi.stain import StainJitter
from wsi.store import storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """How far training is after one pass over the training patches.

    Attributes:
        number, epochs: this pass, counted from 1, and how many there will be.
        loss: mean over this pass's augmented patches, both classes counting equally.
        validation_loss, validation_auc: on the cells of held-out groups; None where nothing is held out, the AUC also
            where they show one class only. Infinite, and None, where the network says what is no finite number.
    """

    number: int
    epochs: int
    loss: float
    validation_loss: float | None
    validation_auc: float | None

    def __str__(self) -> str:
        text = f"epoch {self.number}/{self.epochs}: loss {self.loss:.4f}"
        if self.validation_loss is not None:
            text += f", held-out loss {self.validation_loss:.4f}"
        if self.validation_auc is not None:
            text += f", held-out AUC {self.validation_auc:.4f}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """What train gives.

    Attributes:
        checkpoint: of the best pass.
        history: one Epoch per pass.
        best: which of them: the lowest validation loss, the last one where nothing was held out.
        held_out: names of the groups held out for validation.
        margins: float64 (m,), of the held-out cells that were looked at, by the best pass, before any temperature:
            logit of tumour minus logit of normal.
        truth: bool (m,), whether those cells are tumour.
        class_weights: float64 (2,), of a normal and a tumour cell in the loss.
    """

    checkpoint: Checkpoint
    history: tuple[Epoch, ...]
    best: int
    held_out: tuple[str, ...]
    margins: NDArray[np.float64]
    truth: NDArray[np.bool_]
    class_weights: NDArray[np.float64]


def train(
    patches: TrainingPatches,
    *,
    mpp: float,
    groups: NDArray[Any] | None = None,
    epochs: int = 12,
    batch: int = 16,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    architecture: CellGeometry = SMALL,
    start: Checkpoint | None = None,
    learning_rate: float = 4e-3,
    jitter: StainJitter | None = None,
    held_out: float = 0.2,
    validation: NDArray[np.bool_] | None = None,
    calibrate: bool = False,
    method: Method | None = None,
    resume: Path | None = None,
    resume_every: int = 100,
    provenance: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Training:
    """Train a network. The same arguments on the same kind of CPU give equal bytes, whatever the number of threads.

    Started by torchrun, the processes share each batch out, and each of them returns the same.

    Args:
        patches: HeldPatches or StreamedPatches. A cell takes the class of the four pixels around its centre, and is not
            looked at where they differ.
        mpp: um per pixel of the patches.
        groups: (n,) the patient of each image: a patient is either trained on or validated on. None: each image is
            its own group.
        epochs: passes over the training patches; but for the method's patience the only limit, so that a faster
            machine gives no other network.
        batch: images per step, of all processes together.
        seed: of the weights, the split, the order and the augmentation.
        device: auto, cpu or cuda.
        workers: threads on a CPU, without influence on the result; None takes this process's share of the
            usable cores.
        architecture: of the network.
        start: a checkpoint to go on from, of the same architecture and mpp; its weights and normalisation are taken.
        learning_rate: the highest of the schedule.
        jitter: how far stains are moved; None takes StainJitter's defaults. An augmentation of ``method`` has its own.
        held_out: share of the groups that is validated on; 0 for none.
        validation: bool (n,), which patches are validated on, in place of a share; whole groups.
        calibrate: choose the threshold (0.30 to 0.80) with the highest Dice on the held-out cells, unless 0.5 is
            within 0.005 of it; otherwise the threshold is 0.5.
        method: schedule, augmentation, averaging, early end, precision; None takes the defaults.
        resume: a file that is written while training goes on. Where it is there already, training goes on from it,
            and on the CPU ends with the same bytes as if it had never been killed.
        resume_every: steps between two writings; every pass ends with one, too.
        provenance: added to the checkpoint's; values that JSON can hold.
        on_epoch: called after each pass; for those made before a resumption at once.
        on_step: called after each batch with the patches that this pass has learnt from and those of the whole pass.

    Raises:
        ValueError: shapes or values do not fit, or the training groups lack one of the two classes.
        CheckpointError: the file to resume from is damaged or of other settings.
        StorageError: the file to resume from cannot be written.
        DivergedError: a loss or a weight is not finite; the file to resume from is gone, as it would lead there again.
        PathologyError: the device is not there, or its memory is too small.
    """
    if min(epochs, batch, resume_every) < 1:
        raise ValueError(f"training needs at least one epoch and one image per step, got {epochs}, {batch}")
    if start is not None and (start.architecture, start.mpp) != (architecture, mpp):
        raise ValueError("the checkpoint to go on from has another architecture or mpp")
    method, rng = method or Method(), np.random.default_rng(seed)
    data = TrainingData.split(
        patches,
        groups=groups,
        share=held_out,
        validation=validation,
        architecture=architecture,
        jitter=jitter or StainJitter(),
        seed=seed,
        rng=rng,
    )
    mean, std = data.moments() if start is None else (start.network.mean, start.network.std)
    network = architecture.build(mean=mean, std=std, seed=seed)
    if start is not None:
        network.fill(start.network.weights())
    record: dict[str, Any] = {
        "seed": seed,
        "epochs": epochs,
        "batch": batch,
        "learning_rate": learning_rate,
        "start": None if start is None else start.digest,
        "images": len(patches),
        "held_out": list(data.held_out),
        **patches.record,
        "torch": str(torch.__version__),
    }
    if method != Method():
        record["method"] = method.to_json()
    size = min(batch, len(data.learning))
    with (
        joined(device) as (ranks, target),
        lone_threads(workers or max(1, usable_cores() // ranks.on_machine), "train") as pool,
    ):
        learner = Learner(
            network,
            data,
            method=method,
            device=target,
            pool=pool,
            ranks=ranks,
            steps=epochs * (len(data.learning) // size),
            learning_rate=learning_rate,
        )
        asked = record | {
            "mpp": mpp,
            "architecture": architecture.to_json(),
            "jitter": asdict(data.jitter),
            "processes": ranks.world,
            "device": target.type,
        }
        course = _Course(learner, data, rng, epochs=epochs, size=size, rank=ranks.rank)
        progress = _Progress(path=resume, every=resume_every, asked=asked, ranks=ranks)
        try:
            course.go(
                progress=progress,
                patience=method.patience,
                on_epoch=on_epoch or _ignore,
                on_step=on_step or _ignore,
            )
        except DivergedError:
            progress.discard()
            raise
        network = learner.judged
        network.load_state_dict(course.kept)
        margins = learner.margins(data.shown)
    cells = data.cells[data.shown]
    looked_at = cells != IGNORE
    margins, truth = margins.reshape(cells.shape)[looked_at], cells[looked_at] == 1
    if method.temperature:
        network.temperature = best_temperature(truth, margins, data.class_weights)
    chosen = course.history[course.best]
    told = {"best_epoch": course.best + 1, "validation_auc": chosen.validation_auc}
    checkpoint = Checkpoint(
        network=network.cpu().eval(),
        mpp=mpp,
        threshold=best_threshold(truth, margins / network.temperature) if calibrate else 0.5,
        provenance=record | told | {"validation_loss": chosen.validation_loss} | dict(provenance or {}),
    )
    return Training(
        checkpoint=checkpoint,
        history=tuple(course.history),
        best=course.best,
        held_out=data.held_out,
        margins=margins,
        truth=truth,
        class_weights=data.class_weights,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """The file that a killed training goes on from.

    Attributes:
        path: None for none.
        every: steps between two writings.
        asked: what the file has to be of.
        ranks: the first process writes, all of them read.
    """

    path: Path | None
    every: int
    asked: Mapping[str, Any]
    ranks: Ranks

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        return None if self.path is None else load_progress(self.path, self.asked)

    def save(self, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        if self.path is not None and self.ranks.is_first:
            save_progress(self.path, tensors, {"run": dict(self.asked), **record})

    def discard(self) -> None:
        if self.path is not None and self.ranks.is_first:
            with storage(self.path):
                self.path.unlink(missing_ok=True)


class _Course:
    """The passes of a training, and which of them is best so far."""

    def __init__(
        self, learner: Learner, data: TrainingData, rng: np.random.Generator, *, epochs: int, size: int, rank: int
    ) -> None:
        self._learner, self._data, self._rng = learner, data, rng
        self._epochs, self._owners, self._rank = epochs, learner.owners(size), rank
        self._losses: list[float] = []
        self.history: list[Epoch] = []
        self.best = 0
        self.kept: dict[str, torch.Tensor] = {}

    def go(
        self,
        *,
        progress: _Progress,
        patience: int | None,
        on_epoch: Callable[[Epoch], None],
        on_step: Callable[[int, int], None],
    ) -> None:
        """Make all passes, from where the progress was left."""
        self._take(progress)
        for epoch in self.history:
            on_epoch(epoch)
        while len(self.history) < self._epochs and not self._is_over(patience):
            self._learn(progress, on_step)
            epoch = self._judge()
            self.history.append(epoch)
            if epoch.validation_loss is None or len(self.history) == 1 or self._is_better(epoch.validation_loss):
                self.best = len(self.history) - 1
                self.kept = copy.deepcopy(dict(self._learner.judged.state_dict()))
            self._losses = []
            self._save(progress, self._rng.bit_generator.state)
            on_epoch(epoch)
        if self.history[self.best].validation_loss == math.inf:
            raise diverged("what the network says")

    def _learn(self, progress: _Progress, on_step: Callable[[int, int], None]) -> None:
        """One pass, but for the batches of it that are done already."""
        began = self._rng.bit_generator.state
        seeds = iter(lambda: int(self._rng.integers(2**63)), -1)
        patches, done, size = self._data.patches, len(self._losses), len(self._owners)
        batches = patches.batches(self._data.learning, self._owners, self._rng)
        list(itertools.islice(seeds, done * len(self._learner.shards(size))))
        own = [batch[self._owners == self._rank] for batch in batches[done:]]
        with closing(patches.images(own)) as images:
            for number, (chosen, pixels) in enumerate(zip(batches[done:], images, strict=True), done + 1):
                self._losses.append(self._learner.step(chosen, pixels, seeds, len(self.history)))
                on_step(number * size, len(batches) * size)
                if number % progress.every == 0 and number < len(batches):
                    self._save(progress, began)
        self._learner.settle()

    def _judge(self) -> Epoch:
        cells = self._data.cells[self._data.shown]
        margins = self._learner.margins(self._data.shown)
        looked_at = cells != IGNORE
        loss: float | None = None
        area: float | None = None
        if looked_at.any():
            truth, loss = cells[looked_at] == 1, math.inf
            if np.isfinite(margins[looked_at]).all():
                loss = balanced_loss(truth, margins[looked_at], self._data.class_weights)
                area = area_under_curve(truth, margins[looked_at])
        return Epoch(
            number=len(self.history) + 1,
            epochs=self._epochs,
            loss=float(np.mean(self._losses)),
            validation_loss=loss,
            validation_auc=area,
        )

    def _is_better(self, loss: float) -> bool:
        before = self.history[self.best].validation_loss
        return before is None or loss < before

    def _is_over(self, patience: int | None) -> bool:
        return patience is not None and len(self.history) - 1 - self.best >= patience

    def _save(self, progress: _Progress, began: Mapping[str, Any]) -> None:
        if progress.path is None:
            return
        tensors, learner = self._learner.state()
        record = {
            "learner": learner,
            "rng": dict(began),
            "losses": self._losses,
            "history": [asdict(epoch) for epoch in self.history],
            "best": self.best,
        }
        progress.save(tensors | {f"best/{name}": value for name, value in self.kept.items()}, record)

    def _take(self, progress: _Progress) -> None:
        found = progress.load()
        if found is None:
            return
        tensors, record = found
        try:
            self._learner.restore(tensors, record["learner"])
            self._rng.bit_generator.state = record["rng"]
            self._losses = [float(loss) for loss in record["losses"]]
            self.history = [Epoch(**epoch) for epoch in record["history"]]
            self.best = int(record["best"])
            self.kept = {
                name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")
            }
        except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
            raise CheckpointError(
                progress.path, "is no progress of this training", mend="remove the file to begin anew"
            ) from error


def _ignore(*_: object) -> None:
    """Nobody listens."""
