"""How fast phantom slides are drawn, compared with pure JPEG encoding of the same tiles, and their memory.

Usage: python benchmarks/phantom.py [--quick]
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import simplejpeg

from staging.lesions.labels import SlideLabel
from staging.phantom import SlidePlan, plan_cohort, render_slide
from staging.phantom.atlas import atlases
from staging.phantom.cohort import lay_out
from staging.phantom.section import TILE_PX
from staging.phantom.stain import CENTRES


def a_slide(mpp: float, size_um: tuple[float, float], label: SlideLabel) -> SlidePlan:
    """Return the first slide with this label of a small cohort of centre 0, without pen or fold."""
    planned = plan_cohort(patients=5, centres=(0,), seed=1, mpp=mpp, size_um=size_um)
    slides = [slide for patient in planned for slide in patient.slides]
    return replace(next(slide for slide in slides if slide.label is label), pen=False, fold=False)


def measure_speed(mpp: float, size_um: tuple[float, float], label: SlideLabel, *, every: int) -> None:
    """Print MP/s of drawing and of encoding over every ``every``-th row of tiles."""
    plan = a_slide(mpp, size_um, label)
    start = time.perf_counter()
    atlases(CENTRES[plan.centre], plan.mpp, TILE_PX, plan.difficulty)
    textures = time.perf_counter() - start
    start = time.perf_counter()
    section = lay_out(plan).section
    layout = time.perf_counter() - start
    rows, columns = section.grid
    drawing = encoding = 0.0
    tiles = 0
    for row in range(0, rows, every):
        for column in range(columns):
            start = time.perf_counter()
            tile = section.tile(row, column)
            drawn = time.perf_counter()
            if tile is not None:
                simplejpeg.encode_jpeg(tile, quality=80, colorspace="RGB", colorsubsampling="420", fastdct=False)
            encoding += time.perf_counter() - drawn
            drawing += drawn - start
            tiles += 1
    megapixels = tiles * TILE_PX**2 / 1e6
    print(
        f"mpp {mpp}, {label}: drawing {megapixels / drawing:.0f} MP/s, JPEG encoding {megapixels / encoding:.0f} MP/s, "
        f"ratio {encoding / drawing:.2f} ({tiles} tiles; textures once {textures:.2f} s, layout {layout:.2f} s)"
    )


def print_peak(mpp: float, width_um: float) -> None:
    """Draw one slide and print this process's peak memory."""
    plan = a_slide(mpp, (width_um, 0.78 * width_um), SlideLabel.MACRO)
    with TemporaryDirectory() as folder:
        render_slide(plan, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{plan.width_um / plan.mpp:.0f} x {plan.height_um / plan.mpp:.0f} px: peak memory {peak:.0f} MiB")


def main() -> None:
    """Run all measurements; each memory figure in a process of its own."""
    if sys.argv[1:2] == ["--peak"]:
        print_peak(float(sys.argv[2]), float(sys.argv[3]))
        return
    quick = "--quick" in sys.argv
    for label in (SlideLabel.NEGATIVE, SlideLabel.MACRO):  # two slides of three are negative
        measure_speed(1.0, (11000.0, 8600.0), label, every=1)
        measure_speed(0.25, (11000.0, 8600.0), label, every=12 if quick else 4)
    for width_um in (5000, 7000 if quick else 14000):
        subprocess.run([sys.executable, __file__, "--peak", "0.5", str(width_um)], check=True)


if __name__ == "__main__":
    main()
