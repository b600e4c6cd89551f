"""Training an attention head on slide labels alone, evaluated on patients that it has not seen.

Folds never divide a patient. Every fold is trained for the same number of rounds, fixed beforehand, so that nothing is
chosen on the slides used to evaluate it; the final head is trained on all slides in the same way.

A device holds one slide at a time for each fold that is trained on it. On a CPU every fold has one thread, and equal
arguments yield equal bits; a GPU draws the same tiles, drops the same values and agrees to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.device import lone_threads, pick_device
from wsi.cnn.encoders.mil import GatedAttention, HeadShape, MilHead, enough_memory, judged
from wsi.cores import usable_cores
from wsi.errors import PathologyError

_FEWEST_FOLDS = 2
_SMALLEST_STD = 1e-6
_TILES_FOR_SCALE = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bag:
    """A slide as the training sees it.

    Attributes:
        slide: its name.
        patient: its slides are never divided between folds.
        label: index of its class.
        load: returns its features, float32 (tiles, width); called when they are first needed.
    """

    slide: str
    patient: str
    label: int
    load: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MilTraining:
    """How a head is trained.

    Attributes:
        rounds: how often every slide is seen.
        learning_rate: at the start; it falls along half a cosine to 0.
        weight_decay: of AdamW.
        dropout: share of each tile's hidden values that is dropped.
        most_tiles: per slide; from more, a new sample is drawn in each round.
        hidden: width of the layer after the features.
        attention: width of the attention's layer.
        folds: of patients; fewer if a class has fewer patients.
        seed: equal seeds yield equal heads.
        cache_bytes: features kept in memory; the rest is read again in each round.
    """

    rounds: int = 40
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    dropout: float = 0.25
    most_tiles: int = 4096
    hidden: int = 128
    attention: int = 64
    folds: int = 5
    seed: int = 0
    cache_bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if min(self.rounds, self.most_tiles, self.hidden, self.attention) < 1 or self.folds < _FEWEST_FOLDS:
            raise ValueError("rounds, tiles and widths must be positive, and folds at least 2")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.dropout < 1:
            raise ValueError("the learning rate must be positive, weight decay and dropout not negative")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MilResult:
    """A trained head and its predictions for unseen patients.

    Attributes:
        head: trained on all slides.
        folds: the fold of each slide, by name.
        unseen: for each slide the probabilities (classes,) by the head of the fold that has not seen its patient.
    """

    head: MilHead
    folds: Mapping[str, int]
    unseen: Mapping[str, NDArray[np.float64]]


def patient_folds(bags: Sequence[Bag], *, folds: int, seed: int) -> dict[str, int]:
    """Assign patients to folds, each class as evenly as possible; a patient counts as the highest of their labels.

    Returns:
        Fold by patient, 0 to at most folds - 1. Every class of more than one patient is in at least two folds.

    Raises:
        PathologyError: negative or positive slides come from fewer than two patients.
    """
    highest: dict[str, int] = {}
    for bag in bags:
        highest[bag.patient] = max(bag.label, highest.get(bag.patient, 0))
    negative = sorted(patient for patient, label in highest.items() if label == 0)
    positive = sorted(patient for patient, label in highest.items() if label > 0)
    count = min(folds, len(negative), len(positive))
    if count < _FEWEST_FOLDS:
        raise PathologyError(
            None,
            f"{len(negative)} patients are negative throughout and {len(positive)} are not",
            mend="provide at least two of each, so that some can be held out",
        )
    generator = np.random.default_rng(seed)
    dealt: dict[str, int] = {}
    for group in (negative, positive):
        shuffled = [group[index] for index in generator.permutation(len(group))]
        shuffled.sort(key=highest.__getitem__)
        dealt |= {patient: (len(dealt) + index) % count for index, patient in enumerate(shuffled)}
    return dealt


def train_head(
    bags: Sequence[Bag],
    *,
    class_names: Sequence[str],
    recipe: Mapping[str, Any],
    options: MilTraining | None = None,
    dealt: Mapping[str, int] | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> MilResult:
    """Train a head on all slides, and one without each fold.

    Slides are weighted so that every class that occurs counts the same.

    Args:
        bags: the slides.
        class_names: "negative" first; labels are indices of these.
        recipe: how the features were made.
        options: how to train.
        dealt: the fold of each patient, 0 to folds - 1; None for patient_folds.
        device: auto, cpu or cuda; the returned head is on the CPU.
        workers: folds trained at a time, without influence on the result; None uses the usable cores, or 1 on a GPU.
        on_round: called with (rounds done, rounds in all), from several threads.

    Raises:
        PathologyError: the device does not exist, or its memory is too small for a slide; too few patients of a kind;
            or the training yields NaN.
        ArtefactError: features cannot be read.
        ValueError: no slides, two of one name, or a label without a name.
    """
    options, target = options or MilTraining(), pick_device(device)
    if not bags or len({bag.slide for bag in bags}) != len(bags):
        raise ValueError("training needs slides with different names")
    if not all(0 <= bag.label < len(class_names) for bag in bags):
        raise ValueError(f"labels must be 0 to {len(class_names) - 1}")
    ordered = sorted(bags, key=lambda bag: bag.slide)
    dealt = dealt or patient_folds(ordered, folds=options.folds, seed=options.seed)
    store = _Store(options.cache_bytes)
    shape = HeadShape(
        width=store.features(ordered[0]).shape[1],
        hidden=options.hidden,
        attention=options.attention,
        classes=len(class_names),
    )
    count = max(dealt.values()) + 1
    rounds = iter(range(1, (count + 1) * options.rounds + 1))

    def report() -> None:
        done = next(rounds)
        if on_round is not None:
            on_round(done, (count + 1) * options.rounds)

    def without(fold: int) -> tuple[GatedAttention, dict[str, NDArray[np.float64]]]:
        seen = [bag for bag in ordered if dealt[bag.patient] != fold]
        network = _trained(seen, shape, store, options, report, target)
        unseen = [bag for bag in ordered if dealt[bag.patient] == fold]
        found = {bag.slide: judged(network, store.features(bag))[0] for bag in unseen}
        return network.cpu(), found

    with lone_threads(workers or (1 if target.type == "cuda" else usable_cores()), "mil") as pool:
        # the last of them leaves nobody out: the head itself
        trained = list(pool.map(without, range(count + 1)))
    provenance = {
        "training": {name: value for name, value in asdict(options).items() if name != "cache_bytes"},
        "folds": count,
        "slides": {bag.slide: class_names[bag.label] for bag in ordered},
        "patients": len(dealt),
    }
    head = MilHead(
        network=trained[-1][0], shape=shape, class_names=tuple(class_names), recipe=dict(recipe), provenance=provenance
    )
    unseen = {slide: values for _, found in trained[:-1] for slide, values in found.items()}
    return MilResult(head=head, folds={bag.slide: dealt[bag.patient] for bag in ordered}, unseen=unseen)


class _Store:
    """Features by slide, kept while they fit and read again otherwise; safe from several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self._lock = Lock()
        self._kept: dict[str, NDArray[np.float32]] = {}

    def features(self, bag: Bag) -> NDArray[np.float32]:
        """The features of a slide."""
        found = self._kept.get(bag.slide)
        if found is None:
            found = bag.load()
            with self._lock:
                if bag.slide not in self._kept and found.nbytes <= self._left:
                    self._left -= found.nbytes
                    self._kept[bag.slide] = found
        return found


def _trained(  # noqa: PLR0917  (the arguments of train_head, settled)
    bags: Sequence[Bag],
    shape: HeadShape,
    store: _Store,
    options: MilTraining,
    report: Callable[[], None],
    device: torch.device,
) -> GatedAttention:
    network = GatedAttention(shape, seed=options.seed)
    _set_scale(network, bags, store, options)
    network.to(device)
    counts = np.bincount([bag.label for bag in bags], minlength=shape.classes)
    weights = len(bags) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    loss = torch.nn.CrossEntropyLoss(weight=torch.from_numpy(weights).float().to(device), reduction="sum")
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.rounds)
    draws = np.random.default_rng((options.seed, 1))
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.rounds):
        for index in draws.permutation(len(bags)):
            features = _drawn(store.features(bags[index]), options.most_tiles, draws)
            with enough_memory(len(features)):
                there = torch.from_numpy(features).to(device)
                logits, _ = network(there, dropout=options.dropout, generator=generator)
                optimiser.zero_grad()
                error = loss(logits[None], torch.tensor([bags[index].label], device=device))
                error.backward()
                optimiser.step()
        schedule.step()
        if not torch.isfinite(error):
            raise PathologyError(None, "the training of the head yields NaN", mend="lower the learning rate")
        report()
    return network.eval()


def _set_scale(network: GatedAttention, bags: Sequence[Bag], store: _Store, options: MilTraining) -> None:
    """Scale each feature to mean 0 and standard deviation 1 over the training tiles, all slides weighing the same."""
    draws = np.random.default_rng((options.seed, 2))
    sums = squares = np.zeros(network.mean.shape[0])
    for bag in bags:
        sample = _drawn(store.features(bag), _TILES_FOR_SCALE, draws).astype(np.float64)
        sums = sums + sample.mean(axis=0) / len(bags)
        squares = squares + (sample**2).mean(axis=0) / len(bags)
    std = np.sqrt(np.maximum(squares - sums**2, 0))
    network.mean.copy_(torch.from_numpy(sums))
    # a constant feature carries no information, whatever its scale
    network.std.copy_(torch.from_numpy(np.where(std > _SMALLEST_STD, std, 1.0)))


def _drawn(features: NDArray[np.float32], most: int, draws: np.random.Generator) -> NDArray[np.float32]:
    if len(features) <= most:
        return features
    return features[np.sort(draws.choice(len(features), most, replace=False))]
