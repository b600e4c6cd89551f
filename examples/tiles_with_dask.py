"""Compute a number for every tile of tissue, on worker processes through Dask.

Run: python examples/tiles_with_dask.py SLIDE [MPP]

MPP is um per pixel. docs/dask.md explains when this pays and what is sent where.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from wsi import Slide, TilePlan, find_tissue, plan_to_dask


def main(path: Path, mpp: float) -> None:
    """Print how dark the tissue is, and where it is darkest."""
    with (
        Slide.open(path) as slide,
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        plan = TilePlan.over(slide.frame_at(mpp), core_px=128, mask=find_tissue(slide))
        tiles: Any = plan_to_dask(slide, plan)  # nothing is read yet
        means = tiles.mean(axis=(1, 2, 3)).compute()  # only the mean of each tile comes back
        darkest = plan[int(means.argmin())].frame
        print(f"{len(plan)} tiles of {128 * mpp:g} um on {len(client.ncores())} processes: mean {means.mean():.1f}")
        print(f"the darkest lies at x {darkest.x:.0f}, y {darkest.y:.0f}: mean {means.min():.1f}")


if __name__ == "__main__":  # worker processes import this file
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
