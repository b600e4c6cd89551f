"""A head that judges a whole slide from the features of its tiles: gated attention over the tiles, then one decision.

Source: Ilse, Tomczak, Welling: Attention-based deep multiple instance learning, ICML 2018, equations 7 and 9.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import nn

from wsi.cnn.device import lone_threads
from wsi.errors import CheckpointError
from wsi.store import atomic_bytes

FORMAT = "sentinode attention-MIL head"
VERSION = 1
NEGATIVE = "negative"

_KEY = "sentinode"
_FIELDS = frozenset({"format", "version", "shape", "class_names", "recipe", "provenance"})
_LARGEST_FILE = 1 << 30
_LARGEST_HEADER = 1 << 20
_WIDEST = 1 << 16
_ANOTHER = "train one with sentinode mil train"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """The sizes of a head: features per tile, of the layer after them, of the attention, and the number of classes."""

    width: int
    hidden: int = 128
    attention: int = 64
    classes: int = 2

    def __post_init__(self) -> None:
        sizes = asdict(self)
        if any(isinstance(size, bool) or not isinstance(size, int) for size in sizes.values()):
            raise ValueError(f"sizes are whole numbers, got {sizes}")
        if min(sizes.values()) < 1 or max(sizes.values()) > _WIDEST or self.classes < 2:
            raise ValueError(f"a head has sizes from 1 to {_WIDEST} and two classes at least, got {sizes}")

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
        seed: of the first weights; the same on every machine.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, shape: HeadShape, *, seed: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape.width))
        self.register_buffer("std", torch.ones(shape.width))
        skip: Any = nn.utils.skip_init  # it carries no types
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
        """Judge one slide.

        Args:
            features: float32 (tiles, width).
            dropout: the share of a tile's hidden values that is left out, in training.
            generator: draws which.

        Returns:
            Logits (classes,) and attention (tiles,), which sums to 1.
        """
        hidden = torch.relu(self.project((features - self.mean) / self.std))
        if dropout:
            kept = torch.rand(hidden.shape, generator=generator) >= dropout
            hidden = hidden * kept / (1 - dropout)
        scores = self.attend(torch.tanh(self.content(hidden)) * torch.sigmoid(self.gate(hidden)))
        attention = scores[:, 0].softmax(dim=0)
        return self.decide(attention @ hidden), attention


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideVerdict:
    """What a head says of a slide.

    Attributes:
        probabilities: float64 (classes,), summing to 1.
        attention: float32 (tiles,), summing to 1: how much each tile counted. No probability of anything.
    """

    probabilities: NDArray[np.float64]
    attention: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MilHead:
    """A trained head and what it may be used on.

    Attributes:
        network: not to be trained further in place.
        shape: its sizes.
        class_names: one per class, "negative" first.
        recipe: how the features were made: the provenance that all features of one encoder and geometry share.
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

    def judge(self, features: NDArray[np.float32]) -> SlideVerdict:
        """Judge a slide on one thread, so that the result has the same bits everywhere on one machine.

        Args:
            features: float32 (tiles, width), at least one tile.

        Raises:
            CheckpointError: the head gives NaN.
            ValueError: the features have another shape.
        """
        if features.ndim != 2 or not len(features) or features.shape[1] != self.shape.width:
            raise ValueError(f"the head takes (tiles, {self.shape.width}), got {features.shape}")
        with lone_threads(1, "mil") as pool:
            return pool.submit(self._judge, features).result()

    def _judge(self, features: NDArray[np.float32]) -> SlideVerdict:
        with torch.inference_mode():
            logits, attention = self.network(torch.from_numpy(np.ascontiguousarray(features)))
            probabilities = logits.double().softmax(dim=0).numpy()
        if not (np.isfinite(probabilities).all() and torch.isfinite(attention).all()):
            raise CheckpointError(self.path, "gives NaN", mend="train again")
        return SlideVerdict(probabilities=probabilities, attention=attention.numpy())

    def to_bytes(self) -> bytes:
        """The file: equal heads give equal bytes.

        Raises:
            CheckpointError: a weight is NaN or infinite.
        """
        weights = {name: tensor.detach().numpy() for name, tensor in self.network.state_dict().items()}
        _check_weights(self.path, self.shape, weights)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "shape": asdict(self.shape),
            "class_names": list(self.class_names),
            "recipe": dict(self.recipe),
            "provenance": dict(self.provenance),
        }
        # one metadata entry only: safetensors writes several in no fixed order
        text = json.dumps(meta, sort_keys=True, allow_nan=False, separators=(",", ":"))
        return safetensors.numpy.save(weights, metadata={_KEY: text})


def positive_probability(head: MilHead, verdict: SlideVerdict) -> float:
    """The probability that a slide is anything but negative."""
    is_positive = [name != NEGATIVE for name in head.class_names]
    return float(verdict.probabilities[is_positive].sum())


def save_head(path: str | PathLike[str], head: MilHead) -> None:
    """Write a head; the file is either whole or absent.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        StorageError: the file system refuses.
    """
    atomic_bytes(Path(path), head.to_bytes())


def load_head(path: str | PathLike[str]) -> MilHead:
    """Read a head; nothing in the file is ever executed, and nothing is allocated on its word alone.

    Raises:
        CheckpointError: there is no such file, it is no head of this program (pickles and archives are not opened), it
            is damaged, contradicts itself, or holds NaN or infinite weights.
    """
    path = Path(path)
    data = _read(path)
    meta = _meta(path, data)
    try:
        weights = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(path, f"is a damaged safetensors file: {error}", mend=_ANOTHER) from error
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
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"its metadata contradicts itself: {error}", mend=_ANOTHER) from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            start, size = file.read(16), path.stat().st_size
            length = int.from_bytes(start[:8], "little")
            if start[8:9] != b"{" or length > min(_LARGEST_HEADER, size - 8) or size > _LARGEST_FILE:
                is_code = start.startswith((b"PK\x03\x04", b"\x80"))
                what = "holds pickled code: it was not opened" if is_code else "is no whole safetensors file"
                raise CheckpointError(path, what, mend=_ANOTHER)
            return start + file.read(_LARGEST_FILE)
    except FileNotFoundError as error:
        raise CheckpointError(path, "there is no such file", mend="check the path given as the head") from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error


def _meta(path: Path, data: bytes) -> dict[str, Any]:
    """Our own metadata, with exactly the fields of this version."""
    header = _parsed(path, data[8 : 8 + int.from_bytes(data[:8], "little")])
    entries = header.get("__metadata__")
    text = entries.get(_KEY) if isinstance(entries, dict) else None
    if not isinstance(text, str):
        raise CheckpointError(path, "is a safetensors file of another program", mend=_ANOTHER)
    meta = _parsed(path, text.encode(errors="replace"))
    if meta.get("format") != FORMAT:
        raise CheckpointError(path, f"is no {FORMAT}", mend=_ANOTHER)
    if meta.get("version") != VERSION:
        reason = f"is of version {meta.get('version')!r:.20}, this program reads version {VERSION}"
        raise CheckpointError(path, reason, mend="use the program that wrote it")
    if set(meta) != _FIELDS:
        odd = ", ".join(sorted(set(meta) ^ _FIELDS))
        raise CheckpointError(path, f"its metadata lacks or adds: {odd:.200}", mend=_ANOTHER)
    return meta


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"its header is no JSON: {error}", mend=_ANOTHER) from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "its header is no JSON object", mend=_ANOTHER)
    return value


def _check_weights(path: Path | None, shape: HeadShape, weights: Mapping[str, NDArray[Any]]) -> None:
    expected = shape.weights()
    for name in sorted(expected.keys() | weights.keys()):
        place = f"tensor {name:.80}"
        if name not in weights or name not in expected:
            what = "is missing" if name in expected else "does not belong to a head"
            raise CheckpointError(path, what, place=place, mend=_ANOTHER)
        found = weights[name]
        if found.shape != expected[name] or found.dtype != np.float32:
            reason = f"is {found.dtype} {found.shape}, the head needs float32 {expected[name]}"
            raise CheckpointError(path, reason, place=place, mend=_ANOTHER)
        if not np.isfinite(found).all() or (name == "std" and not (found > 0).all()):
            raise CheckpointError(path, "holds NaN, infinity or no positive std", place=place, mend="train again")
