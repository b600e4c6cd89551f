"""Draw each augmentation of training patches.

Run: python examples/augmentations.py SLIDE FOLDER [MPP]

Each picture in FOLDER shows a patch of the slide unchanged and with six variations; MPP is um per pixel.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi import Slide, Window, find_tissue, save_png
from wsi.cnn.augmentation import FULL, Augmentation, Blur, Brightness, Focus, Jpeg, Macenko, Stain, Turns, Variation

SIDE_PX = 192
VARIED = 6
GAP_PX = 4

# stronger than training has them, so that they can be seen
PICTURES: tuple[Variation, ...] = (
    Turns(),
    Stain(),
    Macenko(share=1.0),
    Focus(),
    Brightness(limit=0.3),
    Blur(most=2.0),
    Jpeg(share=1.0, quality=(5, 40)),
)


def main(path: Path, folder: Path, mpp: float) -> None:
    """Write a picture of each augmentation, and one of all together, as in training."""
    patch = densest_patch(path, mpp)
    variations = {one.name: Augmentation((one,)) for one in PICTURES}
    for name, augmentation in {**variations, "everything": FULL}.items():
        save_png(folder / f"{name}.png", strip(patch, augmentation))
        print(f"{name}: {folder / name}.png")


def densest_patch(path: Path, mpp: float) -> NDArray[np.uint8]:
    """Read the pixels around the middle of the slide's tissue, (192, 192, 3)."""
    with Slide.open(path) as slide:
        tissue, frame = find_tissue(slide), slide.frame_at(mpp)
        rows, columns = np.nonzero(tissue.array)
        middle = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        x, y = tissue.frame.centres(rows[middle], columns[middle])
        row, column = (int(at) - SIDE_PX // 2 for at in frame.fractions(x, y))
        return slide.read_frame(frame.part(Window(row=row, column=column, height=SIDE_PX, width=SIDE_PX))).array


def strip(patch: NDArray[np.uint8], augmentation: Augmentation) -> NDArray[np.uint8]:
    """Put the patch and its variations side by side."""
    seeds = np.stack([np.zeros(VARIED), np.arange(VARIED)], axis=1).astype(np.int64)
    copies = torch.from_numpy(np.stack([patch] * VARIED))
    pixels, _ = augmentation(copies, np.zeros(copies.shape[:3], np.uint8), seeds)
    varied = pixels.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    gap = np.full((SIDE_PX, GAP_PX, 3), 255, np.uint8)
    return np.concatenate([patch, *(part for image in varied for part in (gap, image))], axis=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 2.0)
