"""Scores and lesions at challenge size: FROC of 130 slides, kappa's bootstrap, components of 10 gigapixels.

Masks and detections are drawn: 130 slides of 7,000 x 3,000 px at level 5, each with ten lesions and a hundred
detections; masks of up to 10 gigapixels come in bands and are never whole in memory or on disk. One has some 5,000
deposits far apart; in two others, of 1 and 10 gigapixels, deposits are so close that most are one lesion.

Run: python benchmarks/scores.py [--slides N]
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from staging.lesions.detections import Detections, write_detections
from staging.lesions.finding import measure_mask
from staging.scores.kappa import score
from staging.scores.lesion_task import score_folders
from wsi.geometry import Frame
from wsi.writing.pyramid import write_mask

ROWS, COLUMNS, LEVEL = 3000, 7000, 5
SIDE, BAND = 100_000, 1024


def discs(rows: int, columns: int, count: int, radius: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw discs of random radii: uint8 (rows, columns), 255 inside."""
    mask = np.zeros((rows, columns), np.uint8)
    for y, x in random.uniform(0, (rows, columns), (count, 2)):
        size = random.uniform(0.1, 1) * radius
        top, left = max(0, int(y - size)), max(0, int(x - size))
        down, along = np.ogrid[top : int(y + size) + 1, left : int(x + size) + 1]
        window = mask[top : int(y + size) + 1, left : int(x + size) + 1]
        window[((down - y) ** 2 + (along - x) ** 2 <= size**2)[: window.shape[0], : window.shape[1]]] = 255
    return mask


def draw(folder: Path, slides: int) -> None:
    """Draw a mask and a table of detections per slide."""
    for number in range(slides):
        random = np.random.default_rng(number)
        mask = np.pad(discs(ROWS, COLUMNS, 10, 150.0, random), ((0, -ROWS % 512), (0, -COLUMNS % 512)))
        tiles = (mask[y : y + 512, x : x + 512] for y in range(0, ROWS, 512) for x in range(0, COLUMNS, 512))
        mpp = 0.243 * 2**LEVEL
        write_mask(folder / "masks" / f"s_{number:03}.tif", width=COLUMNS, height=ROWS, mpp=mpp, tiles=tiles, levels=1)
        points = random.uniform(0, (1, COLUMNS * 2**LEVEL - 1, ROWS * 2**LEVEL - 1), (100, 3))
        write_detections(folder / "detections" / f"s_{number:03}.csv", Detections.of([tuple(row) for row in points]))


def bands(side: int, deposits: int) -> Iterator[NDArray[np.bool_]]:
    """Yield side x side px with this many deposits of radii up to 30 um, in bands of rows."""
    random = np.random.default_rng(0)
    for start in range(0, side, BAND):
        yield discs(min(BAND, side - start), side, deposits * BAND // side, 120.0, random) > 0


def measure(side: int, deposits: int) -> None:
    """Print how long the lesions of one mask take."""
    frame = Frame(x=0.0, y=0.0, downsample=1.0, shape=(side, side), mpp=0.25)
    start = time.perf_counter()
    for _ in bands(side, deposits):
        pass
    drawing = time.perf_counter() - start
    start = time.perf_counter()
    lesions = measure_mask(bands(side, deposits), frame, with_holes_filled=True)
    took = time.perf_counter() - start - drawing
    largest, found = max(one.deposits for one in lesions), sum(one.deposits for one in lesions)
    print(f"{deposits} discs on {side**2 / 1e9:.0f} gigapixels: {len(lesions)} lesions, {largest} of {found} deposits")
    print(f"in one, {took:.1f} s beyond drawing them, peak so far {peak():.0f} MiB", flush=True)


def peak() -> float:
    """Return this process's peak memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=130)
    slides = parser.parse_args().slides
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")

    random = np.random.default_rng(0)
    reference, submission = random.integers(0, 5, 100), random.integers(0, 5, 100)
    start = time.perf_counter()
    score(reference, submission, stages=["a", "b", "c", "d", "e"], resamples=10_000)
    print(f"kappa, 100 patients, 10,000 resamples: {time.perf_counter() - start:.3f} s")

    # the smallest first: the peak includes everything before
    measure(31_623, 10_000)
    measure(SIDE, 4_900)
    measure(SIDE, 100_000)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "masks").mkdir()
        (folder / "detections").mkdir()
        draw(folder, slides)
        start = time.perf_counter()
        found = score_folders(folder / "masks", folder / "detections")
        took = time.perf_counter() - start
        print(f"FROC of {slides} slides, all with lesions: {took:.1f} s, score {found.to_json()['froc_score']:.4f}")


if __name__ == "__main__":
    main()
