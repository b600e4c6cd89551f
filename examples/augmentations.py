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

from wsi import Slide, StainJitter, Window, find_tissue, save_png
from wsi.cnn.device_augmentation import Augmentation

SIDE_PX = 192
VARIED = 6
GAP_PX = 4

STILL = {"turns": False, "macenko": 0.0, "stain": None, "brightness": 0.0, "blur": 0.0, "jpeg": 0.0}
PICTURES: dict[str, dict[str, object]] = {
    "turns": {"turns": True},
    "stain": {"stain": StainJitter()},
    "macenko": {"macenko": 1.0},
    "brightness": {"brightness": 0.3},
    "blur": {"blur": 2.0},
    "jpeg": {"jpeg": 1.0, "quality": (5, 40)},
}


def main(path: Path, folder: Path, mpp: float) -> None:
    """Write a picture of each augmentation, and one of all together, as in training."""
    patch = densest_patch(path, mpp)
    variations = {name: Augmentation(**(STILL | changes)) for name, changes in PICTURES.items()}  # type: ignore[arg-type]
    for name, augmentation in {**variations, "everything": Augmentation()}.items():
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
    varied = augmentation(copies, augmentation.draw(seeds)).permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    gap = np.full((SIDE_PX, GAP_PX, 3), 255, np.uint8)
    return np.concatenate([patch, *(part for image in varied for part in (gap, image))], axis=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 2.0)
