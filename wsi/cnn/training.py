"""From labelled patches to a Checkpoint: every output cell of a patch is one training example."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.calibration import area_under_curve, balanced_loss, best_temperature, best_threshold
from wsi.cnn.cells import IGNORE
from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.device import lone_threads
from wsi.cnn.learner import DivergedError, Learner, diverged
from wsi.cnn.method import Method
from wsi.cnn.network import SMALL, CellGeometry, DenseNetwork
from wsi.cnn.ranks import Ranks, joined
from wsi.cnn.resuming import Progress, load_progress, save_progress
from wsi.cnn.training_data import Judges, TrainingData
from wsi.cores import usable_cores
from wsi.errors import CheckpointError
from wsi.patches.feeding import TrainingPatches


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Progress after one pass over the training patches.

    Attributes:
        number, epochs: this pass, counted from 1, and the number of passes planned.
        loss: mean over this pass's augmented patches, both classes counting equally.
        judges_loss, judges_auc: on the cells of the judges; None without judges, the AUC also if they show one class
            only. Infinite, and None, if the network's output is not finite.
    """

    number: int
    epochs: int
    loss: float
    judges_loss: float | None
    judges_auc: float | None

    def __str__(self) -> str:
        text = f"epoch {self.number}/{self.epochs}: loss {self.loss:.4f}"
        if self.judges_loss is not None:
            text += f", held-out loss {self.judges_loss:.4f}"
        if self.judges_auc is not None:
            text += f", held-out AUC {self.judges_auc:.4f}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """The result of ``train``.

    Attributes:
        checkpoint: of the best pass.
        history: one Epoch per pass.
        best: index of the best: with the lowest loss of the judges, or the last one without judges.
        judges: names of the judges.
        margins: float64 (m,), of the judges' cells with a class, by the best pass, before any temperature: logit of
            tumour minus logit of normal.
        truth: bool (m,), whether those cells are tumour.
        patches: int64 (m,), the index of each cell's patch.
        class_weights: float64 (2,), of a normal and a tumour cell in the loss.
        begun_loss: the judges' loss of the checkpoint that training started from; None without one, or judges.
    """

    checkpoint: Checkpoint
    history: tuple[Epoch, ...]
    best: int
    judges: tuple[str, ...]
    margins: NDArray[np.float64]
    truth: NDArray[np.bool_]
    patches: NDArray[np.int64]
    class_weights: NDArray[np.float64]
    begun_loss: float | None = None


def train(
    patches: TrainingPatches,
    method: Method | None = None,
    *,
    network: CellGeometry | Checkpoint = SMALL,
    judges: Judges = 0.2,
    device: str = "auto",
    workers: int | None = None,
    resume: Progress | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Training:
    """Train a network. The same arguments on the same kind of CPU yield equal bytes, whatever the number of threads.

    Started by torchrun, the processes divide each batch among them, and all return the same.

    Args:
        patches: HeldPatches or StreamedPatches. A cell has the class of the four pixels around its centre, and is
            ignored if they differ.
        method: how to train; None for the defaults.
        network: an architecture, or a checkpoint with the patches' mpp to start from, which provides architecture,
            weights and normalisation.
        judges: names of the patients who judge the passes, or the share of patients to draw for it; 0 for none.
        device: auto, cpu or cuda.
        workers: threads on a CPU, without influence on the result; None uses this process's share of the usable
            cores.
        resume: resumes a killed training.
        on_epoch: called after each pass; after resuming, at once for the passes made before.
        on_step: called after each batch with the number of patches that this pass has learnt from, and will in all.

    Raises:
        UnfitPatchesError: the patches are too small, or those learnt from lack one of the two classes.
        ValueError: arguments are invalid or do not match.
        CheckpointError: the file to resume from is damaged or from other settings.
        StorageError: the file to resume from cannot be written.
        DivergedError: a loss or weight is not finite; the file to resume from is removed, as it would lead there again.
        PathologyError: the device does not exist, or its memory is too small.
    """
    start = network if isinstance(network, Checkpoint) else None
    architecture = network.architecture if isinstance(network, Checkpoint) else network
    if start is not None and start.mpp != patches.mpp:
        raise ValueError(f"the checkpoint to start from expects {start.mpp} um/px, the patches have {patches.mpp}")
    method = method or Method()
    rng, learning_rate = np.random.default_rng(method.seed), method.learning_rate_of(architecture)
    data = TrainingData.split(patches, judges=judges, architecture=architecture, rng=rng)
    record: dict[str, Any] = {
        "seed": method.seed,
        "epochs": method.epochs,
        "batch": method.batch,
        "learning_rate": learning_rate,
        "start": None if start is None else start.digest,
        "images": len(patches),
        "held_out": list(data.judges),
        **patches.record,
        "torch": str(torch.__version__),
    }
    if method.to_json():
        record["method"] = method.to_json()
    size = min(method.batch, len(data.learning))
    with (
        joined(device) as (ranks, target),
        lone_threads(workers or max(1, usable_cores() // ranks.on_machine), "train") as pool,
    ):
        learner = Learner(
            _begun(data, start, seed=method.seed),
            data,
            method=method,
            device=target,
            pool=pool,
            ranks=ranks,
            steps=method.epochs * (len(data.learning) // size),
        )
        asked = record | {
            "mpp": patches.mpp,
            "architecture": architecture.to_json(),
            "processes": ranks.world,
            "device": target.type,
        }
        begun_loss = None if start is None else _judged(learner, data)[0]
        course = _Course(learner, data, rng, epochs=method.epochs, size=size, rank=ranks.rank)
        progress = _OwnProgress(file=resume, asked=asked, ranks=ranks)
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
        kept = learner.judged
        kept.load_state_dict(course.kept)
        margins = learner.margins(data.shown)
    cells = data.cells[data.shown]
    looked_at = cells != IGNORE
    margins, truth = margins.reshape(cells.shape)[looked_at], cells[looked_at] == 1
    of_cell = np.broadcast_to(data.shown[:, np.newaxis, np.newaxis], cells.shape)[looked_at]
    if method.temperature:
        kept.temperature = best_temperature(truth, margins, data.class_weights)
    best = course.history[course.best]
    scores = {"best_epoch": best.number, "validation_auc": best.judges_auc, "validation_loss": best.judges_loss}
    checkpoint = Checkpoint(
        network=kept.cpu().eval(),
        mpp=patches.mpp,
        threshold=best_threshold(truth, margins / kept.temperature) if method.threshold else 0.5,
        provenance=record | scores,
    )
    return Training(
        checkpoint=checkpoint,
        history=tuple(course.history),
        best=course.best,
        judges=data.judges,
        margins=margins,
        truth=truth,
        patches=of_cell,
        class_weights=data.class_weights,
        begun_loss=begun_loss,
    )


def _judged(learner: Learner, data: TrainingData) -> tuple[float | None, float | None]:
    """Return loss and AUC on the cells of the judges, see Epoch."""
    cells, margins = data.cells[data.shown], learner.margins(data.shown)
    looked_at = cells != IGNORE
    if not looked_at.any():
        return None, None
    truth = cells[looked_at] == 1
    if not np.isfinite(margins[looked_at]).all():
        return math.inf, None
    loss = balanced_loss(truth, margins[looked_at], data.class_weights)
    return loss, area_under_curve(truth, margins[looked_at])


def _begun(data: TrainingData, start: Checkpoint | None, *, seed: int) -> DenseNetwork:
    """The network before its first step."""
    if start is None:
        mean, std = data.moments()
        return data.architecture.build(mean=mean, std=std, seed=seed)
    network = start.architecture.build(mean=start.network.mean, std=start.network.std, seed=seed)
    network.fill(start.network.weights())
    return network


@dataclass(frozen=True, slots=True, kw_only=True)
class _OwnProgress:
    """The file that this training resumes from.

    Attributes:
        file: None for none.
        asked: the settings that the file must have.
        ranks: the first process writes, all read.
    """

    file: Progress | None
    asked: Mapping[str, Any]
    ranks: Ranks

    def load(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        return None if self.file is None else load_progress(self.file.path, self.asked)

    def is_due(self, steps: int) -> bool:
        return self.file is not None and steps % self.file.every == 0

    def save(self, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        if self.file is not None and self.ranks.is_first:
            save_progress(self.file.path, tensors, {"run": dict(self.asked), **record})

    def discard(self) -> None:
        if self.file is not None and self.ranks.is_first:
            self.file.discard()


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
        progress: _OwnProgress,
        patience: int | None,
        on_epoch: Callable[[Epoch], None],
        on_step: Callable[[int, int], None],
    ) -> None:
        """Make all passes, from the saved progress on."""
        self._take(progress)
        for epoch in self.history:
            on_epoch(epoch)
        while len(self.history) < self._epochs and not self._is_over(patience):
            self._learn(progress, on_step)
            epoch = self._judge()
            self.history.append(epoch)
            if epoch.judges_loss is None or len(self.history) == 1 or self._is_better(epoch.judges_loss):
                self.best = len(self.history) - 1
                self.kept = copy.deepcopy(dict(self._learner.judged.state_dict()))
            self._losses = []
            self._save(progress, self._rng.bit_generator.state)
            on_epoch(epoch)
        if self.history[self.best].judges_loss == math.inf:
            raise diverged("the network's output")

    def _learn(self, progress: _OwnProgress, on_step: Callable[[int, int], None]) -> None:
        """Make one pass, without its batches that are done already."""
        began = self._rng.bit_generator.state
        patches, done, size = self._data.patches, len(self._losses), len(self._owners)
        batches = patches.batches(self._data.learning, self._owners, self._rng)
        own = [batch[self._owners == self._rank] for batch in batches[done:]]
        with closing(patches.images(own)) as images:
            for number, (chosen, pixels) in enumerate(zip(batches[done:], images, strict=True), done + 1):
                self._losses.append(self._learner.step(chosen, pixels, len(self.history)))
                on_step(number * size, len(batches) * size)
                if progress.is_due(number) and number < len(batches):
                    self._save(progress, began)
        self._learner.settle()

    def _judge(self) -> Epoch:
        loss, area = _judged(self._learner, self._data)
        return Epoch(
            number=len(self.history) + 1,
            epochs=self._epochs,
            loss=float(np.mean(self._losses)),
            judges_loss=loss,
            judges_auc=area,
        )

    def _is_better(self, loss: float) -> bool:
        before = self.history[self.best].judges_loss
        return before is None or loss < before

    def _is_over(self, patience: int | None) -> bool:
        return patience is not None and len(self.history) - 1 - self.best >= patience

    def _save(self, progress: _OwnProgress, began: Mapping[str, Any]) -> None:
        if progress.file is None:
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

    def _take(self, progress: _OwnProgress) -> None:
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
                None if progress.file is None else progress.file.path,
                "is not the state of this training",
                mend="remove the file to start over",
            ) from error


def _ignore(*_: object) -> None:
    """Nobody listens."""
