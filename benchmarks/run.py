"""Time and peak memory of `sentinode run` on slides of growing size.

Draws one synthetic slide of 20,000 x 20,000 px and one of 60,000 x 60,000 px at 0.25 um/px, runs each in a process of
its own with a network at 2 um/px and prints seconds and peak resident memory, and the ratios between the two.

Run: python benchmarks/run.py [--quick] [--model MODEL.safetensors]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from staging.lesions.labels import SlideLabel
from staging.phantom import SlidePlan, plan_cohort, render_slide
from wsi.cnn.checkpoint import Checkpoint, save_checkpoint
from wsi.cnn.network import Network

MPP = 0.25


def main() -> None:
    """Print one row per slide."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--quick", action="store_true", help="20,000 and 30,000 px only")
    arguments.add_argument("--model", type=Path, help="a checkpoint; random weights where none is given")
    options = arguments.parse_args()
    sides = (20_000, 30_000) if options.quick else (20_000, 60_000)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("side_px  drawing_s  run_s  peak_MiB  slide_MP/s")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "random.safetensors"
        if options.model is None:
            save_checkpoint(model, Checkpoint(network=Network(seed=0), mpp=2.0))
        for side in sides:
            drawing, running, peak = measure(Path(folder), side, model)
            rows.append((side, running, peak))
            print(f"{side:>7}  {drawing:>9.1f}  {running:>5.1f}  {peak:>8.0f}  {side * side / 1e6 / running:>10.0f}")
    (small, quick, low), (large, slow, high) = rows
    print(
        f"{(large / small) ** 2:.1f} times the pixels: {slow / quick:.1f} times the time, {high / low:.2f} the memory"
    )


def measure(folder: Path, side: int, model: Path) -> tuple[float, float, float]:
    """Return seconds of drawing, seconds of the run, and its peak resident memory in MiB."""
    slides = folder / str(side)
    start = time.perf_counter()
    render_slide(macro_slide(side), slides)
    drawing = time.perf_counter() - start
    command = [sys.executable, "-m", "staging", "run", str(slides / "images"), "-o", str(folder / f"out{side}")]
    command += ["--model", str(model), "--workers", "1", "--device", "cpu"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"the run on {side} px failed with {child.returncode}")
    return drawing, time.perf_counter() - start, usage.ru_maxrss / 1024


def macro_slide(side: int) -> SlidePlan:
    """Plan a slide of this side in px with a macro-metastasis."""
    size = (side * MPP, side * MPP)
    plans = plan_cohort(patients=5, centres=(4,), seed=1, mpp=MPP, size_um=size)
    return next(slide for patient in plans for slide in patient.slides if slide.label is SlideLabel.MACRO)


if __name__ == "__main__":
    main()
