"""Train the small network on real CAMELYON16 patches, and evaluate it on an unseen slide.

Run: python examples/train_on_real_patches.py PATCHES [PASSES]

PATCHES has tumor/ and normal/ with PNG patches of 256 px at 0.243 um/px, named SLIDE_X_Y.png. All patches of one slide
are held out and evaluated; then those of the other. A tumour patch counts as tumour all over. With so few patches the
areas show that learning works, but little about how well: another seed gives other areas, and the probability at which
a slide's tumour begins is another on each of the two slides, as the recall says. Synthetic patches beside the real ones
did not help (benchmarks/domain_shift.py); moving the stain of the patches did.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wsi.cnn.calibration import area_under_curve
from wsi.cnn.method import Method
from wsi.cnn.training import train
from wsi.patches.feeding import HeldPatches

MPP = 0.486
SIDE_PX = 128
PASSES = 24


def main(folder: Path, passes: int = PASSES) -> None:
    """Print the area under the ROC curve, recall and specificity on each held-out slide."""
    images, is_tumour, slides = real_patches(folder)
    print(f"{len(images)} real patches of {len(set(slides.tolist()))} slides")
    for name in sorted(set(slides.tolist())):
        shown = slides == name
        judge = fit(images[~shown], is_tumour[~shown], passes)
        report(f"{name} held out", judge, images[shown], is_tumour[shown])


def real_patches(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.str_]]:
    """Read pixels (n, 128, 128, 3) at 0.486 um/px, whether each is tumour, and its slide."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]).astype(np.float64)
    halved = pixels.reshape(len(paths), SIDE_PX, 2, SIDE_PX, 2, 3).mean(axis=(2, 4))
    is_tumour = np.array([path.parent.name == "tumor" for path in paths])
    return np.rint(halved).astype(np.uint8), is_tumour, np.array([path.stem.rsplit("_", 2)[0] for path in paths])


def fit(images: NDArray[np.uint8], is_tumour: NDArray[np.bool_], passes: int) -> torch.nn.Module:
    """Train a network; by default patches are turned, and their stain and focus are moved."""
    targets = np.repeat(is_tumour.astype(np.uint8), SIDE_PX**2).reshape(-1, SIDE_PX, SIDE_PX)
    patches = HeldPatches(images, targets, mpp=MPP)
    return train(patches, Method(epochs=passes), judges=0, device="cpu").checkpoint.network


def report(what: str, network: torch.nn.Module, images: NDArray[np.uint8], is_tumour: NDArray[np.bool_]) -> None:
    """Print how well the mean probability of a patch's cells separates tumour from normal patches; 0.5 is tumour."""
    with torch.inference_mode():
        cells = network(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(dim=1)[:, 1]
    scores = cells.mean(dim=(1, 2)).numpy()
    area, reached = area_under_curve(is_tumour, scores), scores >= 0.5
    counts = f"{is_tumour.sum()} tumour and {(~is_tumour).sum()} normal patches"
    shares = f"recall {reached[is_tumour].mean():.2f}, specificity {1 - reached[~is_tumour].mean():.2f}"
    print(f"{what}: AUC {area:.3f} on {counts}, {shares}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
