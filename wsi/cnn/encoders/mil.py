"""A head that classifies a whole slide by the features of its tiles: gated attention over them, then one decision.

Source: Ilse, Tomczak, Welling: Attention-based deep multiple instance learning, ICML 2018, equations 7 and 9.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsi.cnn.device import lone_threads, pick_device
from wsi.cnn.weights_file import WeightsFile, check_finite
from wsi.errors import CheckpointError, PathologyError
from wsi.store import atomic_bytes

FORMAT = "sentinode attention-MIL head"
VERSION = 1
NEGATIVE = "negative"

_WIDEST = 1 << 16
_FILE = WeightsFile(
    format=FORMAT,
    fields={VERSION: frozenset({"format", "version", "shape", "class_names", "recipe", "provenance"})},
    largest_gib=1,
    given_as="head",
    owner="the head",
    another="train one with sentinode mil train",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The sizes of a head: features per tile, width of the next layer and of the attention, and number of classes."""

    width: int
    hidden: int = 128
    attention: int = 64
    classes: int = 2

    def __post_init__(self) -> None:
        sizes = asdict(self)
        if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes.values()):
            raise ValueError(f"sizes must be whole numbers, got {sizes}")
        if min(sizes.values()) < 1 or max(sizes.values()) > _WIDEST or self.classes < 2:
            raise ValueError(f"a head must have sizes from 1 to {_WIDEST} and at least two classes, got {sizes}")

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight."""
        shapes: dict[str, tuple[int, ...]] = {"mean": (self.width,), "std": (self.width,)}
        for name, inputs, outputs in (
            ("project", self.width, self.hidden),
            ("content", self.hidden, self.attention),
            ("gate", self.hidden, self.attention),
            ("attend", self.attention, 1),
            ("decide", self.hidden, self.classes),
        ):
            shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        return shapes


class GatedAttention(nn.Module):
    """Attention a = softmax(w (tanh(V h) * sigmoid(U h))) over tiles h, and logits of the tiles' mean weighted by a.

    Args:
        shape: the sizes.
        seed: of the initial weights; the same on every machine.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: HeadShape, *, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("std", torch.ones(shape.width))
        skip: Any = nn.utils.skip_init  # it is untyped
        self.project = skip(nn.Linear, shape.width, shape.hidden)
        self.content = skip(nn.Linear, shape.hidden, shape.attention)
        self.gate = skip(nn.Linear, shape.hidden, shape.attention)
        self.attend = skip(nn.Linear, shape.attention, 1)
        self.decide = skip(nn.Linear, shape.hidden, shape.classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim == 2:
                    nn.init.xavier_uniform_(parameter, generator=generator)
                else:
                    parameter.zero_()

    def forward(
        self, features: torch.Tensor, *, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify one slide.

        Args:
            features: float32 (tiles, width), on the device of the weights.
            dropout: the share of a tile's hidden values that is dropped, in training.
            generator: draws them, on the CPU.

        Returns:
            Logits (classes,) and attention (tiles,), which sums to 1.
        """
        hidden = torch.relu(self.project((features - self.mean) / self.std))
        if dropout:
            # drawn on the CPU, so that every device drops the same ones
            kept = torch.rand(hidden.shape, generator=generator) >= dropout
            hidden = hidden * kept.to(hidden.device) / (1 - dropout)
        scores = self.attend(torch.tanh(self.content(hidden)) * torch.sigmoid(self.gate(hidden)))
        attention = scores[:, 0].softmax(dim=0)
        return self.decide(attention @ hidden), attention


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideVerdict:
    """A head's output for a slide.

    Attributes:
        probabilities: float64 (classes,), summing to 1.
        attention: float32 (tiles,), summing to 1: how much each tile counted. It is not a probability.
    """

    probabilities: NDArray[np.float64]
    attention: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MilHead:
    """A trained head and the features it applies to.

    Attributes:
        network: must not be trained further in place.
        shape: its sizes.
        class_names: one per class, "negative" first.
        recipe: how the features were made: the provenance shared by all features of one encoder and geometry.
        provenance: what it was trained on and how.
        path: the file it was loaded from, None for a new one.
    """

    network: GatedAttention
    shape: HeadShape
    class_names: tuple[str, ...]
    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        names = self.class_names
        if len(names) != self.shape.classes or len(set(names)) != len(names) or names[0] != NEGATIVE:
            raise ValueError(f"a head of {self.shape.classes} classes needs that many names, {NEGATIVE} first")

    @property
    def digest(self) -> str:
        """Hex sha256 of the file's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to(self, device: str) -> MilHead:
        """The same head on a device: auto, cpu or cuda.

        Raises:
            PathologyError: the device does not exist.
        """
        return replace(self, network=deepcopy(self.network).to(pick_device(device)))

    def judge(self, features: NDArray[np.float32]) -> SlideVerdict:
        """Classify a slide on the network's device, which holds only this slide.

        On a CPU one thread computes, so that the result always has the same bits on one machine; a GPU agrees with it
        to rounding.

        Args:
            features: float32 (tiles, width), at least one tile.

        Raises:
            CheckpointError: the head returns NaN.
            PathologyError: the GPU's memory is too small for the slide.
            ValueError: the features have another shape.
        """
        if features.ndim != 2 or not len(features) or features.shape[1] != self.shape.width:
            raise ValueError(f"the head expects (tiles, {self.shape.width}), got {features.shape}")
        with lone_threads(1, "mil") as pool:
            return pool.submit(self._judge, features).result()

    def _judge(self, features: NDArray[np.float32]) -> SlideVerdict:
        probabilities, attention = judged(self.network, features)
        if not (np.isfinite(probabilities).all() and np.isfinite(attention).all()):
            raise CheckpointError(self.path, "returns NaN", mend="train again")
        return SlideVerdict(probabilities=probabilities, attention=attention)

    def to_bytes(self) -> bytes:
        """The file's content: equal heads yield equal bytes.

        Raises:
            CheckpointError: a weight is NaN or infinite.
        """
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in self.network.state_dict().items()}
        _check_weights(self.path, self.shape, weights)
        meta = {
            "version": VERSION,
            "shape": asdict(self.shape),
            "class_names": list(self.class_names),
            "recipe": dict(self.recipe),
            "provenance": dict(self.provenance),
        }
        return _FILE.to_bytes(meta, weights)


def judged(network: GatedAttention, features: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """A network's output for a slide, not checked for NaN.

    Args:
        network: on any device.
        features: float32 (tiles, width).

    Returns:
        Probabilities, float64 (classes,), and attention, float32 (tiles,).

    Raises:
        PathologyError: the GPU's memory is too small for the slide.
    """
    with torch.inference_mode(), enough_memory(len(features)):
        there = torch.from_numpy(np.ascontiguousarray(features)).to(network.mean.device)
        logits, attention = network(there)
        return logits.cpu().double().softmax(dim=0).numpy(), attention.cpu().numpy()


@contextmanager
def enough_memory(tiles: int) -> Iterator[None]:
    """Turn a GPU's lack of memory for a slide of ``tiles`` tiles into one error.

    Raises:
        PathologyError: the slide does not fit.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PathologyError(
            None, f"the GPU's memory is too small for {tiles} tiles", mend="free it or use the device cpu"
        ) from error


def save_head(path: str | PathLike[str], head: MilHead) -> None:
    """Write a head atomically.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        StorageError: the file system refuses.
    """
    atomic_bytes(Path(path), head.to_bytes())


def load_head(path: str | PathLike[str]) -> MilHead:
    """Read a head; nothing in the file is ever executed, and no size it claims is allocated unchecked.

    Raises:
        CheckpointError: there is no such file, it is not a head of this program (pickles and archives are not opened),
            it is damaged, contradicts itself, or holds NaN or infinite weights.
    """
    path = Path(path)
    meta, weights = _FILE.read(path)
    try:
        shape = HeadShape(**meta["shape"])
        _check_weights(path, shape, weights)
        network = GatedAttention(shape)
        network.load_state_dict({name: torch.from_numpy(values.copy()) for name, values in weights.items()})
        return MilHead(
            network=network.eval(),
            shape=shape,
            class_names=tuple(str(name) for name in meta["class_names"]),
            recipe=dict(meta["recipe"]),
            provenance=dict(meta["provenance"]),
            path=path,
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(path, f"its metadata contradicts itself: {error}", mend=_FILE.another) from error


def _check_weights(path: Path | None, shape: HeadShape, weights: Mapping[str, NDArray[Any]]) -> None:
    _FILE.check_shapes(path, shape.weights(), weights)
    check_finite(path, weights)
    if not (weights["std"] > 0).all():
        raise CheckpointError(path, "is not positive", where="tensor std", mend="train again")
