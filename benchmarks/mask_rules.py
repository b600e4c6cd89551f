"""What a coarse pixel of a mask should stand for: areas and diameters of real outlines by three rules.

A pixel is tumour if the point at its centre is (``centre``), if at least half of it is (``half``), or if any of its
level-0 pixels is (``max``). Every tumour outline of the files is painted alone, on the slide's own grid at 0.25 to 16
um/px, and compared with its polygon: the area (shapely), and the largest distance of two of its points against that of
the mask's pixels, corners included. Small are outlines under 0.5 mm across.

Run: python benchmarks/mask_rules.py FILE.xml ...
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from shapely import MultiPoint
from shapely.geometry import Polygon
from shapely.validation import make_valid

from annotations.annotation import Annotation, Role
from annotations.files.formats import read_annotations
from annotations.painting import Painting
from wsi.geometry import Frame

LEVEL_0_UM = 0.243
FACTORS = (1, 2, 4, 8, 16, 32, 64)
RULES = ("centre", "half", "max")
SMALL_UM = 500.0
_MOST_PX = 3_000


def main() -> None:
    """Print one row per resolution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    found = [*outlines(parser.parse_args().files)]
    print(f"{len(found)} outlines, {sum(across_um(one) < SMALL_UM for one in found)} of them small")
    print("um/px  rule    outlines  lost  area: sum, mean (sd) of small   diameter: mean um (sd) of small")
    for factor in FACTORS:
        rows = [row for one in found if (row := compared(one, factor)) is not None]
        for rule in RULES:
            show(factor, rule, [row[rule] for row in rows])


def outlines(files: Iterable[Path]) -> Iterable[NDArray[np.float64]]:
    """The tumour outlines of all files that have an area."""
    for path in files:
        for one in read_annotations(path):
            if one.role is Role.TUMOUR and (outline := one.outline) is not None and polygon_area(outline) > 0:
                yield outline


def compared(outline: NDArray[np.float64], factor: int) -> dict[str, tuple[float, float, float, float]] | None:
    """(area, polygon's area, diameter, polygon's diameter) in um2 and um by rule; None of one too large to paint."""
    (left, top), (right, bottom) = (np.floor(outline.min(axis=0)), np.ceil(outline.max(axis=0)))
    column, row = (int(value // factor) - 1 for value in (left, top))
    shape = int(bottom // factor) + 2 - row, int(right // factor) + 2 - column
    if max(shape) * factor > _MOST_PX * 8:
        return None
    frame = Frame(x=column * factor, y=row * factor, downsample=factor, shape=shape, mpp=LEVEL_0_UM)
    fine = Frame(x=frame.x, y=frame.y, downsample=1, shape=(shape[0] * factor, shape[1] * factor), mpp=LEVEL_0_UM)
    painting = Painting.of([Annotation(name="", group="", role=Role.TUMOUR, kind="Polygon", vertices=outline)])
    share = painting.mask(fine).array.reshape(shape[0], factor, shape[1], factor).mean(axis=(1, 3))
    masks = {"centre": painting.mask(frame).array, "half": share >= 0.5, "max": share > 0}
    area, across = polygon_area(outline) * LEVEL_0_UM**2, across_um(outline)
    pixel = factor * LEVEL_0_UM
    return {rule: (mask.sum() * pixel**2, area, diameter(mask) * pixel, across) for rule, mask in masks.items()}


def show(factor: int, rule: str, rows: list[tuple[float, float, float, float]]) -> None:
    """Print a row."""
    area, true_area, across, true_across = np.array(rows).T
    small = true_across < SMALL_UM
    ratio, off = (area / true_area)[small], (across - true_across)[small]
    print(
        f"{factor * LEVEL_0_UM:5.2f}  {rule:6s}  {len(rows):8d}  {(area == 0).sum():4d}"
        f"  {area.sum() / true_area.sum():10.4f}, {ratio.mean():.3f} ({ratio.std():.3f})"
        f"  {off.mean():20.2f} ({off.std():.2f})"
    )


def polygon_area(outline: NDArray[np.float64]) -> float:
    """In level-0 px2, self-crossing parts counted once."""
    if len(outline) < 3:
        return 0.0
    return float(make_valid(Polygon(outline)).area)


def across_um(outline: NDArray[np.float64]) -> float:
    """The largest distance of two points of an outline."""
    return diameter_of(outline) * LEVEL_0_UM


def diameter(mask: NDArray[np.bool_]) -> float:
    """The largest distance of two corners of set pixels, in px."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return 0.0
    ends = mask[rows].argmax(axis=1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    rows, columns = np.concatenate([rows, rows]), np.concatenate(ends)
    points = np.stack([columns, rows], axis=1)
    return diameter_of(np.concatenate([points + corner for corner in ((0, 0), (0, 1), (1, 0), (1, 1))]))


def diameter_of(points: NDArray[np.float64]) -> float:
    """The largest distance of two of many points."""
    hull = MultiPoint(np.unique(points, axis=0)).convex_hull
    if hull.geom_type == "Point":
        return 0.0
    corners = np.array(hull.exterior.coords if hull.geom_type == "Polygon" else hull.coords)
    return float(pdist(corners).max()) if len(corners) > 1 else math.nan


if __name__ == "__main__":
    main()
