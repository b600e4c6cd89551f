"""Train the small network on real CAMELYON16 and synthetic patches, and evaluate it on an unseen slide.

Run: python examples/train_on_real_patches.py PATCHES [PASSES]

PATCHES has tumor/ and normal/ with PNG patches of 256 px at 0.243 um/px, named SLIDE_X_Y.png. All patches of one slide
are held out and evaluated; then those of the other. A tumour patch counts as tumour all over. With so few patches the
areas show that learning works, but little about how well: another seed gives other areas.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from annotations.patches.zarr_store import PatchSet, read_patches
from staging import StageTable, find_slides
from staging.bars import CohortProgress
from staging.phantom import plan_cohort, render_slide
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe
from wsi.cnn.calibration import area_under_curve
from wsi.cnn.method import Method
from wsi.cnn.training import train
from wsi.patches.feeding import HeldPatches

MPP = 0.486
SIDE_PX = 128
PASSES = 6
REAL_TIMES = 4  # how often a pass shows each real patch


def main(folder: Path, passes: int = PASSES) -> None:
    """Print the area under the ROC curve on each held-out slide."""
    images, is_tumour, slides = real_patches(folder)
    with TemporaryDirectory() as work:
        drawn = phantom_patches(Path(work))
    print(f"{len(images)} real patches of {len(set(slides.tolist()))} slides, {len(drawn.images)} synthetic ones")
    for name in sorted(set(slides.tolist())):
        shown = slides == name
        judge = fit(drawn, images[~shown], is_tumour[~shown], passes)
        report(f"{name} held out", judge, images[shown], is_tumour[shown])


def real_patches(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.str_]]:
    """Read pixels (n, 128, 128, 3) at 0.486 um/px, whether each is tumour, and its slide."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]).astype(np.float64)
    halved = pixels.reshape(len(paths), SIDE_PX, 2, SIDE_PX, 2, 3).mean(axis=(2, 4))
    is_tumour = np.array([path.parent.name == "tumor" for path in paths])
    return np.rint(halved).astype(np.uint8), is_tumour, np.array([path.stem.rsplit("_", 2)[0] for path in paths])


def phantom_patches(work: Path) -> PatchSet:
    """Sample patches of one synthetic patient, at the resolution of the real ones."""
    (patient,) = plan_cohort(patients=1, centres=(3,), seed=1, mpp=MPP, size_um=(4500.0, 3500.0))
    for slide in patient.slides:
        render_slide(slide, work)
    slides = find_slides([work / "images"])
    recipe = PatchRecipe(mpp=MPP, size_px=SIDE_PX, tumour=60, normal=30, seed=0)
    with CohortProgress(len(slides), verb="slides sampled", tiles=False) as progress:
        sample_cohort(
            slides,
            work / "annotations",
            StageTable(labels={slide.name: slide.label for slide in patient.slides}),
            work / "patches.zarr",
            recipe=recipe,
            workers=2,
            news=progress,
        )
    return read_patches(work / "patches.zarr")


def fit(drawn: PatchSet, images: NDArray[np.uint8], is_tumour: NDArray[np.bool_], passes: int) -> torch.nn.Module:
    """Train a network on synthetic and real patches, the real ones shown several times."""
    targets = np.broadcast_to(is_tumour[:, None, None].astype(np.uint8), images.shape[:3])
    patches = HeldPatches(
        np.concatenate([drawn.images, *[images] * REAL_TIMES]),
        np.concatenate([drawn.targets, *[targets] * REAL_TIMES]),
        mpp=MPP,
    )
    return train(patches, Method(epochs=passes), judges=0, device="cpu").checkpoint.network


def report(what: str, network: torch.nn.Module, images: NDArray[np.uint8], is_tumour: NDArray[np.bool_]) -> None:
    """Print how well the mean probability of a patch's cells separates tumour from normal patches."""
    with torch.inference_mode():
        cells = network(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(dim=1)[:, 1]
    area = area_under_curve(is_tumour, cells.mean(dim=(1, 2)).numpy())
    print(f"{what}: AUC {area:.3f} on {is_tumour.sum()} tumour and {(~is_tumour).sum()} normal patches")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
