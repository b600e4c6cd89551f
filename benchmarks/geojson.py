"""GeoJSON of cells as QuPath exports them: time and peak memory of reading, ours and json.load of the whole file.

Each reader runs in a process of its own, after its imports.

Run: python benchmarks/geojson.py [--gigabytes N]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from annotations.files.geojson import read_geojson

READERS = ("sentinode", "json.load")
CORNERS = 28
MEASURES = ("Nucleus: Area", "Nucleus: Perimeter", "Nucleus: Circularity", "Nucleus: Hematoxylin OD mean", "Cell: Area")


def write_cells(path: Path, size: int) -> int:
    """Write cells until the file has ``size`` bytes; return how many."""
    rng = np.random.default_rng(0)
    angle = np.arange(CORNERS) * (2 * np.pi / CORNERS)
    ring = 12 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    count = written = 0
    with path.open("w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        while written < size:
            outline = (ring + rng.uniform(0, 90_000, 2) + rng.uniform(0, 1, (CORNERS, 2))).round(2).tolist()
            feature = {
                "type": "Feature",
                "id": f"{count:036x}",
                "geometry": {"type": "Polygon", "coordinates": [[*outline, outline[0]]]},
                "properties": {
                    "objectType": "cell",
                    "classification": {"name": "Tumor", "color": [200, 0, 0]},
                    "measurements": dict(zip(MEASURES, rng.uniform(0, 99, len(MEASURES)).round(4), strict=True)),
                },
            }
            written += file.write((",\n" if count else "") + json.dumps(feature))
            count += 1
        file.write("]}\n")
    return count


def peak_mib() -> float:
    """The most memory this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def read(path: Path, reader: str) -> None:
    """Read the file and print what it took."""
    before, start = peak_mib(), time.process_time()
    if reader == "sentinode":
        kept: object = read_geojson(path)
    else:
        with path.open() as file:
            kept = json.load(file)
    print(f"  {reader}: {time.process_time() - start:.1f} s of processor time, {peak_mib() - before:,.0f} MiB at most")
    del kept


def main() -> None:
    """Write the file and have it read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.2, help="size of the file")
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(Path(arguments.read[0]), arguments.read[1])
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.geojson"
        count = write_cells(path, round(arguments.gigabytes * 1e9))
        print(f"{count:,} cells, {path.stat().st_size:,} bytes", flush=True)
        for reader in READERS:
            subprocess.run([sys.executable, __file__, "--read", str(path), reader], check=True)


if __name__ == "__main__":
    main()
