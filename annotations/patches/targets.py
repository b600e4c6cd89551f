"""Classes of all pixels of many patches, kept compact: a patch of one class is stored as that class alone."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_QUICKEST = 1


@dataclass(slots=True, kw_only=True, eq=False)
class PatchTargets:
    """A compact uint8 (n, side, side), any rows of which can be retrieved.

    Attributes:
        size_px: side of the patches.
        held: the only class of each patch, or all its classes compressed.
    """

    size_px: int
    held: list[int | bytes]

    @classmethod
    def normal(cls, count: int, size_px: int) -> PatchTargets:
        """``count`` patches of class 0."""
        return cls(size_px=size_px, held=[0] * count)

    @classmethod
    def joined(cls, parts: Iterable[PatchTargets]) -> PatchTargets:
        """Concatenate several, in order.

        Raises:
            ValueError: they differ in size, or there are none.
        """
        parts = list(parts)
        (side,) = {part.size_px for part in parts}
        return cls(size_px=side, held=[held for part in parts for held in part.held])

    def __len__(self) -> int:
        return len(self.held)

    def put(self, chosen: NDArray[np.integer], targets: NDArray[np.uint8]) -> None:
        """Set the targets of the chosen patches.

        Args:
            chosen: int (n,), their indices.
            targets: uint8 (n, side, side).

        Raises:
            ValueError: the targets have another shape.
        """
        expected = (len(chosen), self.size_px, self.size_px)
        if targets.dtype != np.uint8 or targets.shape != expected:
            raise ValueError(f"targets must be uint8 {expected}, got {targets.dtype} {targets.shape}")
        for number, target in zip(chosen.tolist(), targets, strict=True):
            first = int(target.flat[0])
            is_one = bool((target == first).all())
            self.held[number] = first if is_one else zlib.compress(target.tobytes(), _QUICKEST)

    def __call__(self, chosen: NDArray[np.integer]) -> NDArray[np.uint8]:
        """Uint8 (n, side, side) of the patches at the chosen indices."""
        found = np.empty((len(chosen), self.size_px, self.size_px), np.uint8)
        for target, number in zip(found, chosen.tolist(), strict=True):
            held = self.held[number]
            target[...] = held if isinstance(held, int) else _unpacked(held, self.size_px)
        return found


def _unpacked(held: bytes, side: int) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(held), np.uint8).reshape(side, side)
