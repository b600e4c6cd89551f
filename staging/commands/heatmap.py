"""``sentinode heatmap``: the probability of metastasis all over one slide."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.options import AllowPartial, Device, Model, OnBadTile, SlideMpp, SlideSource, Tolerance
from staging.lesions.settings import COVERAGE_TOLERANCE


def heatmap(
    slide: SlideSource,
    output: Annotated[Path, typer.Option("--output", "-o", help="The heatmap, a Zarr folder.", show_default=False)],
    model: Model,
    overlay: Annotated[
        Path | None, typer.Option(help="Also draw it over the slide, as PNG.", show_default=False)
    ] = None,
    tiff: Annotated[
        Path | None, typer.Option(help="Also write it as a pyramidal float32 TIFF.", show_default=False)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Reading threads.", min=1, show_default="one per core")] = None,
    device: Device = "auto",
    slide_mpp: SlideMpp = None,
    on_bad_tile: OnBadTile = "raise",
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    *,
    allow_partial: AllowPartial = False,
) -> None:
    """Run the network over a slide's tissue and store the heatmap with its position on the slide.

    Exit code 3: more of the tissue went unseen than may.

    Example: sentinode heatmap slide.tif --model model.safetensors -o slide.zarr --overlay slide.png
    """
    from staging.runs.bars import CohortProgress  # noqa: PLC0415
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.looking import look  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415
    from wsi.heatmap_store import write_heatmap  # noqa: PLC0415
    from wsi.render import overlay as draw  # noqa: PLC0415  (slow import)
    from wsi.render import save_png, thumbnail  # noqa: PLC0415
    from wsi.slide import Slide  # noqa: PLC0415
    from wsi.tissue import find_tissue  # noqa: PLC0415
    from wsi.writing.heatmap_file import write_heatmap_tiff  # noqa: PLC0415

    checkpoint = load_checkpoint(model)
    with Slide.open(slide, mpp=slide_mpp, on_bad_tile=on_bad_tile) as opened, CohortProgress(1) as progress:
        found, coverage = look(
            opened,
            checkpoint,
            tissue=find_tissue(opened),
            device=device,
            workers=threads or usable_cores(),
            on_tiles=lambda done, total: progress.tiles(opened.name, done, total),
        )
        made_from = {"slide": opened.fingerprint(), "model": checkpoint.digest}
        write_heatmap(output, found, made_from, coverage=coverage)
        if tiff is not None:
            write_heatmap_tiff(tiff, found)
        if overlay is not None:
            save_png(overlay, draw(thumbnail(opened), found, threshold=checkpoint.threshold))
        progress.slide(opened.name)
        bad = opened.bad_tiles
    typer.echo(
        json.dumps(
            {
                "heatmap": str(output),
                "rows": found.frame.shape[0],
                "columns": found.frame.shape[1],
                "um_per_cell": found.frame.pixel_um,
                "maximum": round(float(found.array.max()), 4),
                "bad_tiles": [asdict(tile) for tile in bad],
                "coverage": coverage.to_json(),
            }
        )
    )
    if not coverage.is_whole(coverage_tolerance):
        typer.echo(f"sentinode: {slide}: only {coverage}", err=True)
        if not allow_partial:
            raise typer.Exit(3)
