"""From labelled patches to a Checkpoint: every output cell of a patch is one training example."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsi.cnn.augmentation import IGNORE, augment, cell_targets, to_tensor
from wsi.cnn.checkpoint import Checkpoint
from wsi.cnn.device import lone_threads, pick_device
from wsi.cnn.network import SMALL, Architecture, Network
from wsi.cores import usable_cores
from wsi.stain import StainJitter

_SHARD = 8
_THRESHOLDS = np.round(np.arange(0.30, 0.801, 0.01), 2)
_WORTH_A_CHANGE = 0.005  # of Dice: less is noise of the validation patients


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """How far training is after one pass over the training patches.

    Attributes:
        number, epochs: this pass, counted from 1, and how many there will be.
        loss: mean over this pass's augmented patches, both classes counting equally.
        validation_loss, validation_auc: on the cells of held-out groups; None where nothing is held out, the AUC also
            where they show one class only.
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
    """

    checkpoint: Checkpoint
    history: tuple[Epoch, ...]
    best: int
    held_out: tuple[str, ...]


def train(
    images: NDArray[np.uint8],
    targets: NDArray[np.uint8],
    *,
    mpp: float,
    groups: NDArray[Any] | None = None,
    epochs: int = 12,
    batch: int = 16,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    architecture: Architecture = SMALL,
    start: Checkpoint | None = None,
    learning_rate: float = 4e-3,
    jitter: StainJitter | None = None,
    held_out: float = 0.2,
    calibrate: bool = False,
    provenance: Mapping[str, Any] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Train a network. The same arguments on the same kind of CPU give equal bytes, whatever the number of threads.

    Args:
        images: uint8 (n, side, side, 3), RGB at mpp.
        targets: uint8 (n, side, side): 0 normal, 1 tumour, 255 not looked at. A cell takes the value of the four
            pixels around its centre, and is not looked at where they differ.
        mpp: um per pixel of the images.
        groups: (n,) the patient of each image: a patient is either trained on or validated on. None: each image is
            its own group.
        epochs: passes over the training patches; the only limit, so that a faster machine gives no other network.
        batch: images per step.
        seed: of the weights, the split, the order and the augmentation.
        device: auto, cpu or cuda; mixed precision on cuda only.
        workers: threads on a CPU, without influence on the result; None takes the usable cores.
        architecture: of the network.
        start: a checkpoint to go on from, of the same architecture and mpp; its weights and normalisation are taken.
        learning_rate: the highest of the one-cycle schedule.
        jitter: how far stains are moved; None takes StainJitter's defaults.
        held_out: share of the groups that is validated on; 0 for none.
        calibrate: choose the threshold (0.30 to 0.80) with the highest Dice on the held-out cells, unless 0.5 is
            within 0.005 of it; otherwise the threshold is 0.5.
        provenance: added to the checkpoint's; values that JSON can hold.
        on_epoch: called after each pass.

    Raises:
        ValueError: shapes or values do not fit, or the training groups lack one of the two classes.
        PathologyError: the device is not there.
    """
    cells = _checked(images, targets, architecture)
    names = np.arange(len(images)).astype(str) if groups is None else np.asarray(groups).astype(str)
    if names.shape != (len(images),):
        raise ValueError(f"groups need shape ({len(images)},), got {names.shape}")
    if epochs < 1 or batch < 1:
        raise ValueError(f"training needs at least one epoch and one image per step, got {epochs}, {batch}")
    rng = np.random.default_rng(seed)
    validation = _held_out(names, cells, held_out, rng)
    learning, shown = np.flatnonzero(~validation), np.flatnonzero(validation)
    weights = _class_weights(cells[learning])
    if start is not None and (start.architecture, start.mpp) != (architecture, mpp):
        raise ValueError("the checkpoint to go on from has another architecture or mpp")
    mean, std = _moments(images[learning]) if start is None else (start.network.mean, start.network.std)
    network = Network(architecture, mean=mean, std=std, seed=seed)
    if start is not None:
        network.fill(start.network.weights())
    size = min(batch, len(learning))
    data = _Data(
        images=images,
        targets=targets,
        cells=cells,
        class_weights=weights,
        architecture=architecture,
        jitter=jitter or StainJitter(),
    )

    history: list[Epoch] = []
    best = 0
    kept: dict[str, torch.Tensor] = {}
    outputs = np.zeros(0)
    chosen_device = pick_device(device)
    with lone_threads(workers or usable_cores(), "train") as pool:
        run = _Run(network, chosen_device, data, pool)
        optimiser = _Optimiser(network, steps=epochs * (len(learning) // size), learning_rate=learning_rate)
        seeds = iter(lambda: int(rng.integers(2**63)), -1)
        for number in range(1, epochs + 1):
            loss = run.one_pass(optimiser, list(_batches(learning, size, rng)), seeds)
            margins = run.margins(images[shown])
            epoch = _judged(
                number=number,
                epochs=epochs,
                training_loss=loss,
                margins=margins,
                cells=cells[shown],
                class_weights=weights,
            )
            history.append(epoch)
            if number == 1 or epoch.validation_loss is None or epoch.validation_loss < _loss_of(history[best]):
                best, kept, outputs = number - 1, copy.deepcopy(network.state_dict()), margins
            if on_epoch is not None:
                on_epoch(epoch)

    network.load_state_dict(kept)
    held = tuple(np.unique(names[validation]).tolist())
    record = {
        "seed": seed,
        "epochs": epochs,
        "best_epoch": best + 1,
        "batch": batch,
        "learning_rate": learning_rate,
        "start": None if start is None else start.digest,
        "images": len(images),
        "held_out": list(held),
        "validation_auc": history[best].validation_auc,
        "validation_loss": history[best].validation_loss,
        "images_sha256": _sha256(images),
        "targets_sha256": _sha256(targets),
        "torch": str(torch.__version__),
    }
    checkpoint = Checkpoint(
        network=network.cpu().eval(),
        mpp=mpp,
        threshold=_calibrated(outputs, cells[shown]) if calibrate else 0.5,
        provenance=record | dict(provenance or {}),
    )
    return Training(checkpoint=checkpoint, history=tuple(history), best=best, held_out=held)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Data:
    """What is learned from: patches, the targets of their cells (before augmentation), and how patches are varied."""

    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    cells: NDArray[np.uint8]
    class_weights: NDArray[np.float64]
    architecture: Architecture
    jitter: StainJitter


def area_under_curve(scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, ties counting half; None where truth is all true or all false."""
    positive = int(np.count_nonzero(truth))
    negative = truth.size - positive
    if not positive or not negative:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


class _Run:
    """Network, optimiser and schedule.

    On a CPU a batch is cut into shards of equal size, each with its own copy of the normalisation's statistics. Threads
    take shards, and the gradients are added in the order of the shards: the result does not depend on the threads.
    """

    def __init__(self, network: Network, device: torch.device, data: _Data, pool: ThreadPoolExecutor) -> None:
        network.to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network.eval()
        self._device = device
        self._data = data
        self._pool = pool
        self._weights = torch.tensor(data.class_weights, dtype=torch.float32, device=device)
        self._copies: list[Network] = []

    def one_pass(self, optimiser: _Optimiser, batches: Iterable[NDArray[np.intp]], seeds: Iterator[int]) -> float:
        """All batches once; the mean loss."""
        losses = [self._step(optimiser, chosen, seeds) for chosen in batches]
        self._settle()
        return float(np.mean(losses))

    def _step(self, optimiser: _Optimiser, chosen: NDArray[np.intp], seeds: Iterator[int]) -> float:
        size = len(chosen) if self._device.type == "cuda" else _SHARD
        shards = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        while len(self._copies) < len(shards):
            self._copies.append(self._copy())
        looked_at = int(np.count_nonzero(self._data.cells[chosen] != IGNORE))
        share = 1 / max(1, looked_at)
        jobs = zip(self._copies, shards, [next(seeds) for _ in shards], strict=False)
        results = list(self._pool.map(lambda job: self._gradients(*job, share=share), jobs))
        for index, parameter in enumerate(self._network.parameters()):
            parameter.grad = sum((gradients[index] for _, gradients in results[1:]), results[0][1][index])
        optimiser.step()
        return sum(loss for loss, _ in results)

    def _copy(self) -> Network:
        """The same weights (shared), its own statistics."""
        shared = {id(parameter): parameter for parameter in self._network.parameters()}
        return copy.deepcopy(self._network, shared).train()

    def _gradients(
        self, network: Network, chosen: NDArray[np.intp], seed: int, *, share: float
    ) -> tuple[float, tuple[torch.Tensor, ...]]:
        """Augment a shard; its part of the batch's loss and gradients."""
        data = self._data
        rng = np.random.default_rng(seed)
        images, cells = augment(data.images[chosen], data.targets[chosen], data.architecture, data.jitter, rng)
        truth = torch.from_numpy(cells.astype(np.int64)).to(self._device)
        with torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            logits = self._forward(network, images)
            loss = share * functional.cross_entropy(
                logits, truth, weight=self._weights, ignore_index=IGNORE, reduction="sum"
            )
            gradients = torch.autograd.grad(loss, list(network.parameters()))
        return float(loss.detach()), gradients

    def _settle(self) -> None:
        """Give the network the mean of its copies' statistics."""
        kept = [dict(network.named_buffers()) for network in self._copies]
        for name, buffer in self._network.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.stack([buffers[name] for buffers in kept]).mean(dim=0))

    def margins(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Logit of tumour minus logit of normal of each cell: uint8 (n, side, side, 3) to float64 (n, i, j)."""

        def judge(start: int) -> NDArray[np.float64]:
            with torch.inference_mode():
                logits = self._forward(self._network, to_tensor(images[start : start + _SHARD])).cpu().double()
            return np.asarray(logits[:, 1] - logits[:, 0])

        found = list(self._pool.map(judge, range(0, len(images), _SHARD)))
        return np.concatenate(found) if found else np.zeros((0, 1, 1))

    def _forward(self, network: Network, images: torch.Tensor) -> torch.Tensor:
        is_mixed = self._device.type == "cuda"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=is_mixed):
            logits: torch.Tensor = network(images.to(self._device))
        return logits.float()


class _Optimiser:
    """AdamW on a one-cycle schedule."""

    def __init__(self, network: Network, *, steps: int, learning_rate: float) -> None:
        self._adam = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-2)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._adam, max_lr=learning_rate, total_steps=steps + 1, pct_start=0.2
        )

    def step(self) -> None:
        self._adam.step()
        self._schedule.step()


def _checked(images: NDArray[np.uint8], targets: NDArray[np.uint8], architecture: Architecture) -> NDArray[np.uint8]:
    """The cells' targets, uint8 (n, i, j)."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise ValueError(f"images are uint8 (n, side, side, 3), got {images.dtype} {images.shape}")
    if targets.dtype != np.uint8 or targets.shape != images.shape[:3]:
        raise ValueError(f"targets are uint8 {images.shape[:3]}, got {targets.dtype} {targets.shape}")
    if images.shape[1] < architecture.receptive_field_px:
        raise ValueError(f"images of {images.shape[1]} px are smaller than the receptive field")
    if architecture.classes != 2:
        raise ValueError(f"training tells normal from tumour: two classes, not {architecture.classes}")
    odd = np.setdiff1d(np.unique(targets), (0, 1, IGNORE))
    if odd.size:
        raise ValueError(f"targets are 0, 1 or {IGNORE}, got {odd.tolist()}")
    return cell_targets(targets, architecture)


def _held_out(
    names: NDArray[np.str_], cells: NDArray[np.uint8], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Which images are validated on: bool (n,). Groups with and without tumour are drawn apart, in the same share."""
    if not 0 <= share < 1:
        raise ValueError(f"the held-out share lies in 0..1, got {share}")
    sick = np.unique(names[(cells == 1).any(axis=(1, 2))])
    chosen: list[NDArray[np.str_]] = []
    for stratum in (sick, np.setdiff1d(np.unique(names), sick)):
        count = min(max(1, round(share * len(stratum))), len(stratum) - 1) if share else 0
        chosen.append(rng.permutation(stratum)[: max(0, count)])
    return np.isin(names, np.concatenate(chosen))


def _class_weights(cells: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Weights with which both classes count half of the whole."""
    counts = np.array([np.count_nonzero(cells == 0), np.count_nonzero(cells == 1)])
    if not counts.all():
        missing = "normal" if not counts[0] else "tumour"
        raise ValueError(f"the training patches hold no {missing} cell")
    weights: NDArray[np.float64] = counts.sum() / (2 * counts)
    return weights


def _moments(images: NDArray[np.uint8]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel."""
    grey = np.arange(256)
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)]
    means = [float((count * grey).sum() / count.sum()) for count in counts]
    squares = [float((count * grey**2).sum() / count.sum()) for count in counts]
    stds = [max(1.0, square - mean**2) ** 0.5 for mean, square in zip(means, squares, strict=True)]
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _batches(chosen: NDArray[np.intp], size: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """One pass in random order, in full batches; what is left over waits for another pass."""
    order = rng.permutation(chosen)
    for start in range(0, len(order) - size + 1, size):
        yield order[start : start + size]


def _judged(
    *,
    number: int,
    epochs: int,
    training_loss: float,
    margins: NDArray[np.float64],
    cells: NDArray[np.uint8],
    class_weights: NDArray[np.float64],
) -> Epoch:
    looked_at = cells != IGNORE
    loss: float | None = None
    area: float | None = None
    if looked_at.any():
        truth = cells[looked_at] == 1
        margin = margins[looked_at]
        penalty = np.logaddexp(0, np.where(truth, -margin, margin))
        weight = np.where(truth, class_weights[1], class_weights[0])
        loss = float((penalty * weight).sum() / weight.sum())
        area = area_under_curve(margin, truth)
    return Epoch(number=number, epochs=epochs, loss=training_loss, validation_loss=loss, validation_auc=area)


def _loss_of(epoch: Epoch) -> float:
    return np.inf if epoch.validation_loss is None else epoch.validation_loss


def _calibrated(margins: NDArray[np.float64], cells: NDArray[np.uint8]) -> float:
    """The threshold with the highest Dice; the middle one of equals; 0.5 unless another is clearly better."""
    looked_at = cells != IGNORE
    truth = cells[looked_at] == 1
    if not truth.any():
        return 0.5
    score = margins[looked_at]
    dice = np.array([_dice(score > np.log(level / (1 - level)), truth) for level in _THRESHOLDS])
    if dice.max() <= dice[np.searchsorted(_THRESHOLDS, 0.5)] + _WORTH_A_CHANGE:
        return 0.5
    best = np.flatnonzero(dice == dice.max())
    return float(_THRESHOLDS[best[len(best) // 2]])


def _dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return 2 * float(np.count_nonzero(found & truth)) / float(np.count_nonzero(found) + np.count_nonzero(truth))


def _sha256(array: NDArray[np.uint8]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()
