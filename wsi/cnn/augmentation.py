"""How training patches are varied, and the label of each of their cells."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from wsi.cnn.network import CellGeometry
from wsi.stain import StainJitter

IGNORE = 255
_SHARPEST, _SOFTEST = -0.5, 1.0


def cell_targets(targets: NDArray[np.uint8], architecture: CellGeometry) -> NDArray[np.uint8]:
    """The label of each output cell: uint8 (n, side, side) to (n, i, j).

    Taken from the pixels next to the cell's centre (four if the receptive field is even, as the centre is then a corner
    of pixels); 255 where they differ.
    """
    count = architecture.cells(targets.shape[1])
    low = int(np.floor(architecture.centre_px))
    high = int(np.ceil(architecture.centre_px))
    stop = (count - 1) * architecture.stride_px + 1
    views = [
        targets[:, row : row + stop : architecture.stride_px, column : column + stop : architecture.stride_px]
        for row in (low, high)
        for column in (low, high)
    ]
    same = np.logical_and.reduce([view == views[0] for view in views])
    return np.where(same, views[0], IGNORE).astype(np.uint8)


def augment(
    images: NDArray[np.uint8],
    targets: NDArray[np.uint8],
    architecture: CellGeometry,
    jitter: StainJitter,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, NDArray[np.uint8]]:
    """Turn, stain and focus each image independently.

    Args:
        images: uint8 (n, side, side, 3).
        targets: uint8 (n, side, side).
        architecture: of the network being trained.
        jitter: how far stains are shifted.
        rng: the only source of randomness.

    Returns:
        Float32 (n, 3, side, side) on the 0..255 scale, and the targets of the cells, uint8 (n, i, j).
    """
    turns = rng.integers(0, 8, len(images))
    laid = np.stack([turned(image, turn) for image, turn in zip(images, turns, strict=True)])
    labels = np.stack([turned(target, turn) for target, turn in zip(targets, turns, strict=True)])
    stained = jitter(laid, rng)
    softness = rng.uniform(_SHARPEST, _SOFTEST, len(images)).astype(np.float32)
    pixels = to_tensor(stained)
    pixels.lerp_(_softened(pixels), torch.from_numpy(softness).view(-1, 1, 1, 1))
    return pixels.clamp_(0, 255), cell_targets(labels, architecture)


def turned(array: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """One of the eight orientations of a square (side, side, ...): quarter turns, from 4 on also mirrored."""
    result = np.rot90(array, turn % 4)
    return result[:, ::-1] if turn >= 4 else result


def to_tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Float32 (n, 3, rows, columns), channels last in memory."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()


def _softened(pixels: torch.Tensor) -> torch.Tensor:
    """Blurred by (1, 2, 1) / 4 along rows and columns; the border repeats. Channels last in, channels last out."""
    rows = pixels.permute(0, 2, 3, 1)
    down = rows * 2
    down[:, 1:] += rows[:, :-1]
    down[:, :-1] += rows[:, 1:]
    down[:, 0] += rows[:, 0]
    down[:, -1] += rows[:, -1]
    both = down * 2
    both[:, :, 1:] += down[:, :, :-1]
    both[:, :, :-1] += down[:, :, 1:]
    both[:, :, 0] += down[:, :, 0]
    both[:, :, -1] += down[:, :, -1]
    return both.mul_(1 / 16).permute(0, 3, 1, 2)
