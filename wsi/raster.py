"""Arrays that know where they lie: an array plus its Frame on the slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """Colour pixels: uint8 (rows, columns, 3), RGB."""

    frame: Frame
    array: NDArray[np.uint8]

    def __post_init__(self) -> None:
        _check(self.frame, self.array.shape[:2])
        if self.array.dtype != np.uint8 or self.array.shape[2:] != (3,):
            raise ValueError(f"an image must be uint8 (rows, columns, 3), got {self.array.dtype} {self.array.shape}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """A yes or no for every pixel: bool (rows, columns)."""

    frame: Frame
    array: NDArray[np.bool_]

    def __post_init__(self) -> None:
        _check(self.frame, self.array.shape)
        if self.array.dtype != np.bool_:
            raise ValueError(f"a mask must be bool, got {self.array.dtype}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heatmap:
    """The probability of metastasis: float32 (rows, columns) in 0..1, exactly 0 outside the tissue.

    Attributes:
        tissue: bool, the same shape: the cells that the network looked at.
    """

    frame: Frame
    array: NDArray[np.float32]
    tissue: NDArray[np.bool_]

    def __post_init__(self) -> None:
        _check(self.frame, self.array.shape)
        _check(self.frame, self.tissue.shape)
        if self.array.dtype != np.float32 or self.tissue.dtype != np.bool_:
            raise ValueError(f"a heatmap must be float32 with bool tissue, got {self.array.dtype}, {self.tissue.dtype}")
        if not (self.array.size == 0 or (self.array.min() >= 0 and self.array.max() <= 1)):
            raise ValueError("a heatmap must hold probabilities from 0 to 1, without NaN or infinity")
        if self.array[~self.tissue].any():
            raise ValueError("a heatmap must be 0 outside its tissue")


def _check(frame: Frame, shape: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(frame.shape):
        raise ValueError(f"the array has shape {tuple(shape)}, its frame {frame.shape}")
