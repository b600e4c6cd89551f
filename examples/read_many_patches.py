"""Read many overlapping patches at once, a level as a lazy array, and one tile as the JPEG stored in the file.

Run: python examples/read_many_patches.py SLIDE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from wsi import Region, Slide, tile_order


def main(path: Path) -> None:
    """Print what was read."""
    with Slide.open(path) as slide:
        level = slide.levels[0]
        corners = np.random.default_rng(0).integers(0, (level.width - 96, level.height - 96), (200, 2)).tolist()
        regions = [Region(x=x, y=y, width=96, height=96) for x, y in corners]
        in_order = [regions[index] for index in tile_order(regions, level)]  # neighbours share their tiles
        patches = slide.read_many(in_order)  # every tile is decoded once
        print(f"{len(patches)} patches, mean {patches.mean():.1f}")
        lazy: Any = slide.to_dask(1)  # nothing is read yet
        print(f"level 1: {lazy.shape}, darkest value {int(lazy.min().compute())}")
        tiles = np.ndindex(-(-level.height // level.tile_height), -(-level.width // level.tile_width))
        stream = next(tile for row, column in tiles if (tile := slide.tile_bytes(0, row, column)) is not None)
        print(f"the first stored tile is a JPEG of {len(stream)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
