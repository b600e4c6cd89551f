"""The state from which a killed training resumes as if uninterrupted: one safetensors file; pickle is never read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from wsi.errors import CheckpointError
from wsi.store import atomic_bytes, storage

_KEY = "sentinode training"
_MEND = "remove the file to start over"


@dataclass(frozen=True, slots=True)
class Progress:
    """The file that a killed training resumes from, bit for bit on the CPU.

    Attributes:
        path: written during training; if it exists at the start, training resumes from it.
        every: steps between two writes; every pass ends with one, too.
    """

    path: Path
    every: int = 100

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"there must be at least one step between two writes, got {self.every}")

    def discard(self) -> None:
        """Remove the file.

        Raises:
            StorageError: the file system refuses.
        """
        with storage(self.path):
            self.path.unlink(missing_ok=True)


def save_progress(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write the state of a training, atomically.

    Args:
        path: the file.
        tensors: by name.
        record: values that JSON can hold, ``run`` (the settings, see load_progress) among them.

    Raises:
        StorageError: the file system refuses.
    """
    text = json.dumps(record, sort_keys=True)
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    atomic_bytes(path, safetensors.torch.save(held, metadata={_KEY: text}))


def load_progress(path: Path, asked: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The state that save_progress wrote, or None without a file.

    Args:
        path: the file.
        asked: every setting that determines the result; the file must have the same.

    Raises:
        CheckpointError: the file is damaged, something else, or from a training with other settings, which are named.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        before = record["run"]
        differing = [name for name in sorted({*before, *asked}) if before.get(name) != asked.get(name)]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(path, "is not a readable state of a training", mend=_MEND) from error
    if differing:
        reason = f"was left by a training with other settings: {', '.join(differing)}"
        raise CheckpointError(path, reason, mend=f"use the same settings, or {_MEND}")
    return tensors, record
