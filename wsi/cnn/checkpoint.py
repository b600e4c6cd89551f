"""A trained network on disk: one safetensors file with everything needed to use it. Pickle is never read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wsi.cnn.architectures import read_architecture
from wsi.cnn.network import Architecture, CellGeometry, DenseNetwork, weight_shapes
from wsi.cnn.weights_file import WeightsFile, check_finite
from wsi.errors import CheckpointError
from wsi.store import atomic_bytes

FORMAT = "sentinode checkpoint"
VERSION = 2
"""Version 1 holds only plain stacks of layers without a temperature; whatever fits is still written as version 1."""
TUMOUR = "tumour"

_FIELDS = frozenset(
    {
        "format",
        "version",
        "architecture",
        "mpp",
        "receptive_field_px",
        "stride_px",
        "mean",
        "std",
        "class_names",
        "threshold",
        "provenance",
    }
)
_FILE = WeightsFile(
    format=FORMAT,
    fields={1: _FIELDS, 2: _FIELDS | {"temperature"}},
    largest_gib=2,
    given_as="model",
    owner="the architecture",
    another="train one with sentinode train, or give a checkpoint of this program",
)
_COARSEST_UM = 1000.0  # per px of what any network looks at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A network and how to use it.

    Attributes:
        network: holds architecture, weights, temperature and the input's mean and standard deviation; must not be
            trained further in place.
        mpp: um per input px.
        class_names: one per class, the one called "tumour" among them.
        threshold: lowest probability at which a cell counts as tumour, 0 < threshold < 1.
        provenance: what it was trained on and how; values that JSON can hold, without timestamps.
        path: the file it was loaded from, None for a new one.
    """

    network: DenseNetwork
    mpp: float
    class_names: tuple[str, ...] = ("normal", TUMOUR)
    threshold: float = 0.5
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mpp < _COARSEST_UM:
            raise ValueError(f"a checkpoint needs a positive mpp below {_COARSEST_UM:g}, got {self.mpp}")
        if not 0 < self.threshold < 1:
            raise ValueError(f"a threshold must be between 0 and 1, got {self.threshold}")
        classes = self.architecture.classes
        if len(set(self.class_names)) != classes or len(self.class_names) != classes or TUMOUR not in self.class_names:
            raise ValueError(f"a network of {classes} classes needs that many names, {TUMOUR} among them")
        if not all(math.isfinite(value) for value in self.network.mean):
            raise ValueError(f"the input's mean is not finite: {self.network.mean}")
        if not all(math.isfinite(value) and value > 0 for value in self.network.std):
            raise ValueError(f"the input's standard deviation is not positive: {self.network.std}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"a temperature must be positive, got {self.temperature}")

    @property
    def architecture(self) -> CellGeometry:
        return self.network.architecture

    @property
    def temperature(self) -> float:
        """The divisor of the network's logits that calibrates its probabilities; 1 if uncalibrated."""
        return self.network.temperature

    @property
    def receptive_field_px(self) -> int:
        return self.architecture.receptive_field_px

    @property
    def stride_px(self) -> int:
        return self.architecture.stride_px

    @property
    def cell_um(self) -> float:
        """Side of one output cell in um."""
        return self.stride_px * self.mpp

    @property
    def tumour_class(self) -> int:
        """The index of the class tumour."""
        return self.class_names.index(TUMOUR)

    @property
    def digest(self) -> str:
        """Hex sha256 of the file's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The file's content: equal checkpoints yield equal bytes.

        Raises:
            CheckpointError: a weight is NaN or infinite.
            ValueError, TypeError: the provenance cannot be written as JSON.
        """
        weights = self.network.weights()
        _check_values(self.path, weights)
        is_first = isinstance(self.architecture, Architecture) and self.temperature == 1
        meta = {
            "version": 1 if is_first else VERSION,
            "architecture": self.architecture.to_json(),
            "mpp": self.mpp,
            "receptive_field_px": self.receptive_field_px,
            "stride_px": self.stride_px,
            "mean": list(self.network.mean),
            "std": list(self.network.std),
            "class_names": list(self.class_names),
            "threshold": self.threshold,
            "provenance": dict(self.provenance),
        } | ({} if is_first else {"temperature": self.temperature})
        return _FILE.to_bytes(meta, weights)


def save_checkpoint(path: str | PathLike[str], checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: a weight is NaN or infinite.
        StorageError: the file system refuses.
    """
    atomic_bytes(Path(path), checkpoint.to_bytes())


def load_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint; nothing in the file is ever executed, and no size it claims is allocated unchecked.

    Raises:
        CheckpointError: there is no such file, it is not a sentinode checkpoint (a pickle or .pt is named as such), it
            is damaged, contradicts itself, or holds NaN or infinite weights.
    """
    path = Path(path)
    meta, weights = _FILE.read(path)
    return _assemble(path, meta, weights)


def _assemble(path: Path, meta: Mapping[str, Any], weights: Mapping[str, NDArray[Any]]) -> Checkpoint:
    try:
        architecture = _architecture(meta)
        _FILE.check_shapes(path, weight_shapes(architecture), weights)
        _check_values(path, weights)
        network = architecture.build(
            mean=_three(meta["mean"]),
            std=_three(meta["std"]),
            temperature=_number(meta.get("temperature", 1.0)),
        )
        network.fill(weights)
        return Checkpoint(
            network=network.eval(),
            mpp=_number(meta["mpp"]),
            class_names=tuple(_text(name) for name in meta["class_names"]),
            threshold=_number(meta["threshold"]),
            provenance=dict(meta["provenance"]),
            path=path,
        )
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(path, f"its metadata contradicts itself: {error}", mend=_FILE.another) from error


def _architecture(meta: Mapping[str, Any]) -> CellGeometry:
    architecture = read_architecture(meta["architecture"])
    if (meta["receptive_field_px"], meta["stride_px"]) != (architecture.receptive_field_px, architecture.stride_px):
        raise ValueError("receptive field and stride are not those of the architecture")
    return architecture


def _check_values(path: Path | None, weights: Mapping[str, NDArray[Any]]) -> None:
    check_finite(path, weights)
    for name, values in weights.items():
        if name.endswith("running_var") and values.min() < 0:
            raise CheckpointError(path, "holds a negative variance", where=f"tensor {name}", mend="train again")


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    return float(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value


def _three(values: object) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3:
        raise ValueError("mean and std must be three numbers each")
    return _number(values[0]), _number(values[1]), _number(values[2])
