"""How a network is trained: what may be chosen, and what it is by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from wsi.cnn.device_augmentation import Augmentation
from wsi.cnn.schedule import ScheduleName

Precision: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a network is trained.

    Attributes:
        schedule: of the learning rate, see ``schedule.pace``.
        warm_up: share of the steps in which the cosine schedule rises.
        weight_decay: of AdamW.
        augmentation: how patches are varied, on the device; None turns, stains and focuses them on the CPU.
        average: the weights that are judged and kept are a running mean of those of all steps, of which so much is
            kept in a step (0.999; less in the first steps); 0 keeps the last ones.
        patience: training ends when so many passes in a row were not better on the held-out groups; None never ends it.
        temperature: divide the logits by what makes the held-out probabilities likeliest.
        precision: of the convolutions: ``auto`` is bf16 on a GPU that has it (Ampere and later), else fp32. fp16 scales
            its loss.
        compiler: backend of ``torch.compile`` (``inductor``), None for none. It pays on a GPU with many steps; on a
            CPU it was found to be no faster.
    """

    schedule: ScheduleName = "one-cycle"
    warm_up: float = 0.05
    weight_decay: float = 1e-2
    augmentation: Augmentation | None = None
    average: float = 0.0
    patience: int | None = None
    temperature: bool = False
    precision: Precision = "auto"
    compiler: str | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("one-cycle", "cosine"):
            raise ValueError(f"a schedule is one-cycle or cosine, got {self.schedule!r:.40}")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"a precision is auto, fp32, bf16 or fp16, got {self.precision!r:.40}")
        if not (0 <= self.warm_up < 1 and 0 <= self.average < 1 and self.weight_decay >= 0):
            raise ValueError(f"warm-up and average lie in 0..1, weight decay is not negative: {self}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is at least one pass, got {self.patience}")

    def to_json(self) -> dict[str, Any]:
        """For the provenance: what differs from the defaults, as text."""
        usual = Method()
        return {
            name: str(getattr(self, name)) for name in self.__slots__ if getattr(self, name) != getattr(usual, name)
        }
