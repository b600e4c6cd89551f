"""How well a network does on slides of a scanner and a stain that it has not seen, by how its patches were varied.

Two studies: synthetic patients with one centre left out at a time, and real patches of two slides of CAMELYON16 with
one slide left out at a time, learnt from alone or together with synthetic patches. Patches are turned; besides, their
stain is moved (jitter), or normalised by Macenko's method in training and in use, or both. Nothing is chosen on what
is left out: every network makes the same number of passes, and cells count as tumour from probability 0.5 on.

Run: python benchmarks/domain_shift.py [--patches FOLDER] [--seeds 3]

FOLDER has tumor/ and normal/ with PNG patches of 256 px at 0.243 um/px, named SLIDE_X_Y.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from annotations.patches.zarr_store import PatchSet, read_patches
from staging import StageTable, find_slides
from staging.bars import CohortProgress
from staging.cohorts.names import CENTRES
from staging.phantom import plan_cohort, render_slide
from staging.training.sampling import sample_cohort
from staging.training.sources import PatchRecipe
from wsi.cnn.augmentation import Augmentation, Macenko, Stain, Turns
from wsi.cnn.calibration import area_under_curve
from wsi.cnn.method import Method
from wsi.cnn.training import train
from wsi.patches.feeding import HeldPatches

WAYS: dict[str, Augmentation] = {
    "turned only": Augmentation((Turns(),)),
    "jitter": Augmentation((Turns(), Stain())),
    "Macenko": Augmentation((Turns(), Macenko(share=1.0))),
    "Macenko and jitter": Augmentation((Turns(), Macenko(share=1.0), Stain())),
}
SIDE_PX, REAL_MPP, PHANTOM_MPP = 128, 0.486, 2.0
REAL_PASSES, PHANTOM_PASSES = 24, 6
_MOSTLY = 0.8  # of a patch that counts as tumour
REAL_TIMES = 4  # how often a pass shows each real patch beside synthetic ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Patches:
    """Pixels uint8 (n, side, side, 3), the class of each, whether a patch shows tumour, and its slide or centre."""

    pixels: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    is_tumour: NDArray[np.bool_]
    group: NDArray[np.str_]

    def part(self, chosen: NDArray[np.bool_]) -> Patches:
        """Select some."""
        return Patches(
            pixels=self.pixels[chosen],
            targets=self.targets[chosen],
            is_tumour=self.is_tumour[chosen],
            group=self.group[chosen],
        )


def main() -> None:
    """Print a table of each study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    begun = time.perf_counter()
    with TemporaryDirectory() as work:
        cohort = phantom(Path(work), mpp=PHANTOM_MPP, patients=10, centres=(0, 1, 2, 3, 4), each=20)
    study("synthetic, a centre left out", cohort, None, passes=PHANTOM_PASSES, seeds=range(asked.seeds))
    if asked.patches is not None:
        with TemporaryDirectory() as work:
            synthetic = phantom(Path(work), mpp=REAL_MPP, patients=1, centres=(3,), each=30)
        found = real(asked.patches)
        study("real, a slide left out", found, None, passes=REAL_PASSES, seeds=range(asked.seeds))
        study(
            "real and synthetic, a real slide left out",
            found,
            synthetic,
            passes=REAL_PASSES // REAL_TIMES,
            seeds=range(asked.seeds),
        )
    print(f"{time.perf_counter() - begun:.0f} s")


def study(title: str, patches: Patches, beside: Patches | None, *, passes: int, seeds: Iterable[int]) -> None:
    """Leave out each group in turn, by every way; print a line for each way and group, over all seeds."""
    groups = sorted(set(patches.group.tolist()))
    print(f"{title}: {len(patches.pixels)} patches, {0 if beside is None else len(beside.pixels)} beside")
    for way, augmentation in WAYS.items():
        pooled = []
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for seed in seeds:
            scores = np.zeros(len(patches.pixels))
            for group in groups:
                shown = patches.group == group
                learnt = patches.part(~shown)
                method = Method(epochs=passes, seed=seed, augmentation=augmentation, temperature=False)
                network = fit(learnt, beside, method)
                scores[shown] = judge(network, patches.pixels[shown], is_normalised="Macenko" in way)
                lines.setdefault(group, []).append(measures(patches.is_tumour[shown], scores[shown]))
            pooled.append(measures(patches.is_tumour, scores))
        for group, found in {**lines, "all": pooled}.items():
            area, recall, specificity = np.nanmean(found, axis=0)
            low, high = np.nanmin([one[0] for one in found]), np.nanmax([one[0] for one in found])
            print(
                f"  {way:20s}{group:12s} AUC {area:.3f} ({low:.3f} to {high:.3f}), recall {recall:.2f}, "
                f"specificity {specificity:.2f}",
                flush=True,
            )


def measures(is_tumour: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[float, float, float]:
    """AUC, recall and specificity at 0.5."""
    reached = scores >= 0.5
    area = area_under_curve(is_tumour, scores)
    return (
        np.nan if area is None else area,
        float(reached[is_tumour].mean()) if is_tumour.any() else np.nan,
        float(1 - reached[~is_tumour].mean()) if (~is_tumour).any() else np.nan,
    )


def fit(learnt: Patches, beside: Patches | None, method: Method) -> torch.nn.Module:
    """Train on patches, and on others beside them, the former shown several times then."""
    pixels, targets = [learnt.pixels], [learnt.targets]
    if beside is not None:
        pixels, targets = [*pixels * REAL_TIMES, beside.pixels], [*targets * REAL_TIMES, beside.targets]
    patches = HeldPatches(np.concatenate(pixels), np.concatenate(targets), mpp=1.0)
    return train(patches, method, judges=0, device="cpu").checkpoint.network


def judge(network: torch.nn.Module, pixels: NDArray[np.uint8], *, is_normalised: bool) -> NDArray[np.float64]:
    """The probability of each patch: the mean of its cells."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(pixels), 64):
            batch = torch.from_numpy(pixels[start : start + 64]).permute(0, 3, 1, 2).float()
            if is_normalised:
                batch = Macenko(share=1.0)(batch, np.zeros((len(batch), 1)))
            found.append(network(batch).softmax(dim=1)[:, 1].mean(dim=(1, 2)).double().numpy())
    return np.concatenate(found)


def real(folder: Path) -> Patches:
    """Real patches at 0.486 um/px; a tumour patch counts as tumour all over."""
    paths = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]).astype(np.float64)
    halved = pixels.reshape(len(paths), SIDE_PX, 2, SIDE_PX, 2, 3).mean(axis=(2, 4))
    is_tumour = np.array([path.parent.name == "tumor" for path in paths])
    return Patches(
        pixels=np.rint(halved).astype(np.uint8),
        targets=np.repeat(is_tumour.astype(np.uint8), SIDE_PX**2).reshape(-1, SIDE_PX, SIDE_PX),
        is_tumour=is_tumour,
        group=np.array([path.stem.rsplit("_", 2)[0] for path in paths]),
    )


def phantom(work: Path, *, mpp: float, patients: int, centres: tuple[int, ...], each: int) -> Patches:
    """Synthetic patches, mostly tumour or without any, with their centres."""
    plan = plan_cohort(patients=patients, centres=centres, seed=1, mpp=mpp, size_um=(4500.0, 3500.0))
    drawn = [slide for patient in plan for slide in patient.slides]
    for slide in drawn:
        render_slide(slide, work)
    slides = find_slides([work / "images"])
    recipe = PatchRecipe(mpp=mpp, size_px=SIDE_PX, tumour=2 * each, normal=each, seed=0)
    with CohortProgress(len(slides), verb="slides sampled", tiles=False) as progress:
        sample_cohort(
            slides,
            work / "annotations",
            StageTable(labels={slide.name: slide.label for slide in drawn}),
            work / "patches.zarr",
            recipe=recipe,
            workers=2,
            news=progress,
        )
    found: PatchSet = read_patches(work / "patches.zarr")
    share = (found.targets == 1).mean(axis=(1, 2))
    whole = Patches(
        pixels=found.images,
        targets=found.targets,
        is_tumour=share > 0,
        group=np.array([CENTRES[int(centre)] for centre in found.table["centre"]]),
    )
    return whole.part((share == 0) | (share > _MOSTLY))


if __name__ == "__main__":
    main()
