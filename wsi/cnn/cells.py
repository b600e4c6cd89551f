"""Which class each output cell of a training patch has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsi.cnn.network import CellGeometry

IGNORE = 255


def cell_targets(targets: NDArray[np.uint8], architecture: CellGeometry) -> NDArray[np.uint8]:
    """The label of each output cell: uint8 (n, side, side) to (n, i, j).

    Taken from the pixels next to the cell's centre (four, as the centre is a corner of pixels where the receptive field
    is even); 255 where they differ.
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
