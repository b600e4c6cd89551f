"""Peak resident memory of `sentinode train` on patches read from a slide during training.

Patches of 256 px anywhere on a slide of 10,240 px, of ten made-up patients; one pass on the CPU, decoding and the steps
of the small network together.

Run: python benchmarks/train.py [--slide FILE] [--patches N]; needs psutil.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from patches import table_of_corners  # the neighbouring script

from annotations.annotation import Annotation, AnnotationSet, Role
from annotations.files.formats import write_annotations
from annotations.patches.table import write_patch_table
from wsi.slide import Slide

PATIENTS = 10


def table(path: Path, count: int, folder: Path) -> Path:
    """Write a table of random patches, on a slide with a triangle of tumour."""
    outline = np.array([(1000, 1000), (5000, 1500), (6000, 8000)], np.float64)
    tumour = Annotation(name="a", group="metastases", role=Role.TUMOUR, kind="Polygon", vertices=outline)
    contours = folder / "contours.xml"
    write_annotations(contours, AnnotationSet(annotations=(tumour,)))
    with Slide.open(path) as slide:
        side = min(slide.frame.shape)
        corners = np.random.default_rng(0).integers(0, side - 256, (count, 2))
        found = table_of_corners(slide, corners, 256)
        source = {
            "fingerprint": slide.fingerprint(),
            "contours": str(contours),
            "contours_sha256": hashlib.sha256(contours.read_bytes()).hexdigest(),
        }
        patients = np.array([f"p{number % PATIENTS}" for number in range(count)], dtype=object)
        columns = {**found.columns, "patient": patients}
        write_patch_table(
            folder / "patches.parquet", replace(found, columns=columns, about={"sources": {slide.name: source}})
        )
    return folder / "patches.parquet"


def main() -> None:
    """Train once and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--slide", type=Path, help="a square slide without missing tiles instead of a synthetic one")
    parser.add_argument("--patches", type=int, default=4000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.slide or folder / "slide.tif"
        if options.slide is None:
            subprocess.run([sys.executable, Path(__file__).with_name("read.py"), "--draw", path], check=True)
        command = [sys.executable, "-m", "staging", "train", str(table(path, options.patches, folder))]
        start = time.perf_counter()
        subprocess.run([*command, "-o", str(folder / "m.safetensors"), "--epochs", "1", "--device", "cpu"], check=True)
        taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{options.patches} patches: {taken:.0f} s, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
