"""Open a slide, read it at any resolution, find its tissue.

Run: python examples/read_a_slide.py SLIDE
"""

from __future__ import annotations

import sys
from pathlib import Path

from wsi import Slide, find_tissue, tissue_area_um2


def main(path: Path) -> None:
    """Print facts about a slide."""
    with Slide.open(path) as slide:
        print(f"{slide.name}: {len(slide.levels)} levels, {slide.mpp} um/px")
        overview = slide.read_at(16.0)
        print(f"overview {overview.array.shape}, one pixel is {overview.frame.pixel_um:.1f} um")
        tissue = find_tissue(slide)
        print(f"tissue {tissue_area_um2(tissue) / 1e6:.1f} mm2")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
