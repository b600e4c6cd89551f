"""Paint ASAP annotations as a mask on the grid of a slide, and compare the areas.

Run: python examples/mask_from_contours.py SLIDE XML
"""

from __future__ import annotations

import sys
from pathlib import Path

from annotations import rasterize, read_annotations, tumour_area
from wsi import Slide


def main(slide_path: Path, xml: Path) -> None:
    """Print the tumour area by polygons and by pixels."""
    annotations = read_annotations(xml)
    with Slide.open(slide_path) as slide:
        frame = slide.frame_at(4.0)
        mask = rasterize(annotations, frame)
        by_pixels = mask.array.sum() * frame.pixel_um**2
        by_polygons = tumour_area(annotations).area * (slide.mpp or 1.0) ** 2
    print(f"{len(annotations)} annotations; tumour {by_polygons / 1e6:.4f} mm2, as pixels {by_pixels / 1e6:.4f} mm2")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
