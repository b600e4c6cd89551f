"""A heatmap as a pyramidal float32 TIFF, for viewers that open such files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from wsi.raster import Heatmap
from wsi.writing.pyramid import write_float

TILE_PX = 256


def write_heatmap_tiff(path: str | PathLike[str], heatmap: Heatmap) -> None:
    """Write the probabilities, one pixel per cell; its resolution tags align it with the slide by physical size.

    Args:
        path: the file to write; an existing one is replaced.
        heatmap: its first cell begins at the slide's top left corner.

    Raises:
        ResolutionError: mpp is unknown.
        ValueError: the heatmap begins elsewhere on the slide, which a TIFF cannot express.
        StorageError: the file cannot be written.
    """
    if (heatmap.frame.x, heatmap.frame.y) != (0, 0):
        raise ValueError(f"a heatmap file must begin at the slide's corner, got {heatmap.frame.x}, {heatmap.frame.y}")
    rows, columns = heatmap.array.shape
    padded = np.pad(heatmap.array, ((0, -rows % TILE_PX), (0, -columns % TILE_PX)))
    tiles = (
        padded[row : row + TILE_PX, column : column + TILE_PX]
        for row in range(0, rows, TILE_PX)
        for column in range(0, columns, TILE_PX)
    )
    write_float(Path(path), width=columns, height=rows, mpp=heatmap.frame.pixel_um, tiles=tiles, tile_size=TILE_PX)
