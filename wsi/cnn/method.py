"""How a network is trained: the options and their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wsi.cnn.augmentation import LIGHT, Augmentation
from wsi.cnn.network import Architecture, CellGeometry
from wsi.cnn.schedule import ScheduleName

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]

_LEARNING_RATE, _RESNET_LEARNING_RATE = 4e-3, 1e-3
_RECORDED_APART = frozenset({"seed", "epochs", "batch", "learning_rate"})  # stated on their own in a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a network is trained.

    Attributes:
        epochs: passes over the patches; the only limit besides patience, so that a faster machine yields the same
            network.
        batch: patches per step, over all processes.
        seed: of the weights, the judges, the order and the augmentation.
        learning_rate: the highest of the schedule; None uses 0.004 for plain stacks of layers, 0.001 for residual
            networks.
        schedule: of the learning rate, see ``schedule.pace``.
        warm_up: share of the steps in which the cosine schedule rises.
        weight_decay: of AdamW.
        augmentation: how patches are varied, where the network is computed.
        average: the weights that are judged and kept are a running mean of those of all steps, of which so much is
            kept in a step (0.999; less in the first steps); 0 keeps the last ones.
        patience: training ends when so many passes in a row were not better by the judges; None never ends it.
        temperature: divide the logits by what makes the probabilities of the judges' cells likeliest.
        threshold: choose the threshold (0.30 to 0.80) with the highest Dice on the judges' cells, unless 0.5 is within
            0.005 of it; otherwise the threshold is 0.5.
        precision: of the convolutions: ``auto`` is bf16 on a GPU that has it (Ampere and later), else fp32. fp16 scales
            its loss.
        compiler: backend of ``torch.compile`` (``inductor``), None for none. It pays off on a GPU with many steps; on
            a CPU it was no faster.
    """

    epochs: int = 12
    batch: int = 16
    seed: int = 0
    learning_rate: float | None = None
    schedule: ScheduleName = "one-cycle"
    warm_up: float = 0.05
    weight_decay: float = 1e-2
    augmentation: Augmentation = LIGHT
    average: float = 0.0
    patience: int | None = None
    temperature: bool = True
    threshold: bool = False
    precision: Precision = "auto"
    compiler: str | None = None

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1:
            raise ValueError(f"training needs at least one epoch and one patch per step: {self.epochs}, {self.batch}")
        if self.schedule not in ("one-cycle", "cosine"):
            raise ValueError(f"a schedule must be one-cycle or cosine, got {self.schedule!r:.40}")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision must be auto, fp32, bf16 or fp16, got {self.precision!r:.40}")
        if not (0 <= self.warm_up < 1 and 0 <= self.average < 1 and self.weight_decay >= 0):
            raise ValueError(f"warm-up and average must be in 0..1, weight decay not negative: {self}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least one pass, got {self.patience}")

    def learning_rate_of(self, architecture: CellGeometry) -> float:
        """The highest learning rate: as given, or the architecture's default."""
        usual = _LEARNING_RATE if isinstance(architecture, Architecture) else _RESNET_LEARNING_RATE
        return self.learning_rate or usual

    def to_json(self) -> dict[str, Any]:
        """For the provenance: the values that differ from the defaults, as text."""
        usual = Method()
        names = [name for name in self.__slots__ if name not in _RECORDED_APART]
        return {name: str(getattr(self, name)) for name in names if getattr(self, name) != getattr(usual, name)}
