"""A heatmap as a pyramidal TIFF, for viewers: float32 as it is, or 8 bits for those that open no floats."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi.outputs import EIGHT_BIT_HEATMAP
from wsi.raster import Heatmap
from wsi.writing.pyramid import write_float, write_mask

TILE_PX = 256
_MOST = 255


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
    rows, columns = heatmap.array.shape
    mpp = _mpp_of(heatmap)
    write_float(Path(path), width=columns, height=rows, mpp=mpp, tiles=_tiles(heatmap.array), tile_size=TILE_PX)


def write_eight_bit_heatmap(path: str | PathLike[str], heatmap: Heatmap) -> None:
    """Write the probabilities 0 to 1 as grey values 0 to 255, rounded, for OpenSlide and viewers that build on it.

    A pixel of a coarser level is the highest of the four below it, so that no lesion is lost from afar; else as
    write_heatmap_tiff, with the same errors.
    """
    rows, columns = heatmap.array.shape
    mpp = _mpp_of(heatmap)
    values = np.rint(heatmap.array * _MOST).astype(np.uint8)
    write_mask(
        Path(path),
        width=columns,
        height=rows,
        mpp=mpp,
        tiles=_tiles(values),
        tile_size=TILE_PX,
        description=EIGHT_BIT_HEATMAP,
    )


def _mpp_of(heatmap: Heatmap) -> float:
    if (heatmap.frame.x, heatmap.frame.y) != (0, 0):
        raise ValueError(f"a heatmap file must begin at the slide's corner, got {heatmap.frame.x}, {heatmap.frame.y}")
    return heatmap.frame.pixel_um


def _tiles(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows, columns = values.shape
    padded = np.pad(values, ((0, -rows % TILE_PX), (0, -columns % TILE_PX)))
    for row in range(0, rows, TILE_PX):
        for column in range(0, columns, TILE_PX):
            yield padded[row : row + TILE_PX, column : column + TILE_PX]
