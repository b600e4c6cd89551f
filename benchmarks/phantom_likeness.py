"""How alike synthetic and real patches are: statistics of their texture and colour, and a sheet of both to look at.

For every statistic: mean and standard deviation of normal and tumour patches, the AUC of tumour against normal by it
alone, real and synthetic, and how far the synthetic means are from the real ones in pooled standard deviations.
Targets: within 0.5 of them, AUC within 0.1 of the real one.

The real patches are few and of two slides, whose stains differ: most tumour is of one. Absolute densities and their AUC
carry that difference.

Run: python benchmarks/phantom_likeness.py PATCHES CENTRES [--each 60] [--seed 5] [--sheet sheet.png]

PATCHES has tumor/ and normal/ with PNG patches of 256 px at 0.243 um/px, named SLIDE_X_Y.png; CENTRES has one field of
normal tissue of each centre, centre_N_*.jpeg.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from staging.lesions.labels import SlideLabel
from staging.lesions.nuclei import find_nuclei
from staging.phantom import plan_cohort
from staging.phantom.cohort import lay_out
from staging.phantom.section import TILE_PX, Section
from staging.phantom.texture import Tissue
from wsi.geometry import Frame
from wsi.raster import Image
from wsi.stain import rgb_to_od, separate

Pixels = NDArray[np.uint8]
_PX, _MPP = 256, 0.243
_KINDS = ("normal", "tumor")
_WHITE = 200
_SMALLEST_UM2 = 8.0
_ACROSS = 8
_MOSTLY = 0.8


def statistics(pixels: Pixels) -> dict[str, float]:
    """The numbers of one patch, uint8 (256, 256, 3)."""
    haematoxylin, eosin = separate(pixels)
    frame = Frame(x=0, y=0, downsample=1.0, shape=pixels.shape[:2], mpp=_MPP)
    areas = _nuclear_areas(haematoxylin)
    return {
        "haematoxylin": float(haematoxylin.mean()),
        "eosin": float(eosin.mean()),
        "sd of eosin": float(eosin.std()),
        "optical density": float(rgb_to_od(pixels).mean()),
        "white share": float((pixels.min(axis=2) > _WHITE).mean()),
        "spectral slope": _slope(pixels.mean(axis=2)),
        "nuclear area um2": float(np.median(areas)) if len(areas) else 0.0,
        "nuclei per mm2": len(find_nuclei(Image(frame=frame, array=pixels))) / (_PX * _MPP / 1000) ** 2,
    }


def real_patches(folder: Path, centres: Path) -> dict[str, list[Pixels]]:
    """Both kinds of patches of a folder, and six of each centre's field, which is normal."""
    found = {kind: [_opened(path) for path in sorted((folder / kind).glob("*.png"))] for kind in _KINDS}
    for path in sorted(centres.glob("centre_*.jpeg")):
        field = _opened(path)
        step = field.shape[0] // 3
        found["normal"] += [field[row:, column:][:_PX, :_PX] for row in (0, step) for column in (0, step, 2 * step)]
    return found


def _opened(path: Path) -> Pixels:
    with Pillow.open(path) as picture:
        return np.array(picture.convert("RGB"))


def synthetic_patches(each: int, seed: int) -> dict[str, list[Pixels]]:
    """As many patches of both kinds, of slides of all centres."""
    rng = np.random.default_rng(seed)
    planned = plan_cohort(patients=40, centres=range(5), seed=seed, mpp=_MPP)
    slides = [slide for patient in planned for slide in patient.slides if slide.label is SlideLabel.MACRO]
    chosen = [slides[at] for at in rng.permutation(len(slides))[: max(1, each // 6)]]
    found: dict[str, list[Pixels]] = {kind: [] for kind in _KINDS}
    for slide in sorted(chosen, key=lambda slide: (slide.mpp, slide.centre)):
        section = lay_out(slide).section
        for kind in _KINDS:
            found[kind] += _drawn(section, kind, -(-each // len(chosen)), rng)
    return found


def _drawn(section: Section, kind: str, count: int, rng: np.random.Generator) -> list[Pixels]:
    """Patches of one kind from one section."""
    found: list[Pixels] = []
    rows, columns = section.grid
    outline = section.tumours[0]
    low, high = outline.min(axis=0), outline.max(axis=0)
    for _ in range(5_000):
        if len(found) == count:
            break
        if kind == "tumor":
            column, row = (int(one) for one in rng.uniform(low, high) // TILE_PX)
        else:
            row, column = int(rng.integers(rows)), int(rng.integers(columns))
        if not (0 <= row < rows and 0 <= column < columns):
            continue
        top, left = rng.integers(0, TILE_PX - _PX + 1, 2)
        window = slice(top, top + _PX), slice(left, left + _PX)
        mask = section.tumour_mask(row, column)
        share = 0.0 if mask is None else float(mask[window].mean())
        if share < _MOSTLY if kind == "tumor" else share > 0:
            continue
        if kind == "normal" and (section.classes(row, column)[window] <= Tissue.FAT).mean() > 1 - _MOSTLY:
            continue
        tile = section.tile(row, column)
        if tile is not None:
            found.append(tile[window].copy())
    return found


def _slope(grey: NDArray[np.float64]) -> float:
    """The slope of the power spectrum over spatial frequency, both logarithmic."""
    taper = np.hanning(len(grey))
    power = np.abs(np.fft.fft2((grey - grey.mean()) * taper[:, None] * taper)) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(len(grey)), np.fft.fftfreq(len(grey))))
    points: list[tuple[float, float]] = []
    for low, high in pairwise(np.geomspace(0.01, 0.5, 20)):
        ring = (frequency >= low) & (frequency < high)
        if ring.any():
            points.append((float(np.log(low * high)) / 2, float(np.log(power[ring].mean() + 1e-12))))
    across, up = np.array(points).T
    return float(np.polyfit(across, up, 1)[0])


def _nuclear_areas(haematoxylin: NDArray[np.float32]) -> NDArray[np.float64]:
    """The areas of what is darkest in haematoxylin, in um2."""
    smooth = ndimage.gaussian_filter(haematoxylin, 2)
    labels, _ = ndimage.label(smooth > _otsu(smooth))
    areas = np.bincount(labels.ravel())[1:].astype(np.float64) * _MPP**2
    return areas[areas > _SMALLEST_UM2]


def _otsu(values: NDArray[np.floating]) -> float:
    """Otsu's threshold."""
    counts, edges = np.histogram(values, 256)
    share, middle = np.cumsum(counts) / counts.sum(), (edges[1:] + edges[:-1]) / 2
    moment = np.cumsum(counts * middle) / counts.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * share - moment) ** 2 / (share * (1 - share))
    return float(middle[np.nanargmax(between)])


def table(real: Mapping[str, Sequence[Pixels]], drawn: Mapping[str, Sequence[Pixels]]) -> list[str]:
    """One line of Markdown per statistic."""
    numbers = [{kind: [statistics(one) for one in part[kind]] for kind in _KINDS} for part in (real, drawn)]
    lines = [
        "| statistic | real normal | real tumour | AUC | phantom normal | phantom tumour | AUC | off by sd |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in numbers[0]["normal"][0]:
        cells = []
        values = [[np.array([one[name] for one in part[kind]]) for kind in _KINDS] for part in numbers]
        for normal, tumour in values:
            classes = [0] * len(normal) + [1] * len(tumour)
            cells += [_spread(normal), _spread(tumour)]
            cells.append(f"{roc_auc_score(classes, np.concatenate([normal, tumour])):.2f}")
        off = [
            (drawn_one.mean() - real_one.mean()) / np.sqrt((drawn_one.var() + real_one.var()) / 2)
            for real_one, drawn_one in zip(*values, strict=True)
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " | " + ", ".join(f"{one:+.1f}" for one in off) + " |")
    return lines


def _spread(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3g} ± {values.std():.2g}"


def sheet(real: Mapping[str, Sequence[Pixels]], drawn: Mapping[str, Sequence[Pixels]], seed: int) -> Pixels:
    """64 patches: normal in the upper half, tumour in the lower, of each the first half real."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in _KINDS:
        for part in (real, drawn):
            chosen = [part[kind][at] for at in rng.permutation(len(part[kind]))[: 2 * _ACROSS]]
            rows += [np.concatenate(chosen[start : start + _ACROSS], axis=1) for start in (0, _ACROSS)]
    return np.concatenate(rows)


def main() -> None:
    """Print the table, and write the sheet if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("centres", type=Path)
    parser.add_argument("--each", type=int, default=60)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--sheet", type=Path)
    chosen = parser.parse_args()
    real, drawn = real_patches(chosen.patches, chosen.centres), synthetic_patches(chosen.each, chosen.seed)
    print("\n".join(table(real, drawn)))
    if chosen.sheet is not None:
        Pillow.fromarray(sheet(real, drawn, chosen.seed)).save(chosen.sheet)


if __name__ == "__main__":
    main()
