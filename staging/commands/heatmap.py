"""``sentinode heatmap``: the probability of metastasis across one slide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from staging.commands.notices import say
from staging.commands.options import (
    AllowPartial,
    Device,
    Model,
    OnBadTile,
    Overwrite,
    SlideMpp,
    SlideSource,
    Tolerance,
    Upsample,
)
from staging.commands.outputs import Output, always, guarded
from staging.lesions.settings import COVERAGE_TOLERANCE
from wsi.outputs import HEATMAP_TIFF, HEATMAP_TIFF8, ArtefactKind, picture
from wsi.store import kind_of

_HEATMAP = ArtefactKind(kind="heatmap", is_resumed=True)


def _is_there(_: Path, given: Mapping[str, Any]) -> bool:
    """Return whether the heatmap is: what shows it may then be there, too, which is compared later."""
    return kind_of(given["output"]) == _HEATMAP.kind


@guarded
def heatmap(
    slide: SlideSource,
    output: Annotated[
        Path,
        Output(kind=always(_HEATMAP)),
        typer.Option("--output", "-o", help="The heatmap, a Zarr folder.", show_default=False),
    ],
    model: Model,
    overlay: Annotated[
        Path | None,
        Output(kind=lambda path, _: picture(path), resumes=_is_there),
        typer.Option(help="Also draw it beside the slide: PNG, JPEG, TIFF or PDF.", show_default=False),
    ] = None,
    tiff: Annotated[
        Path | None,
        Output(kind=always(HEATMAP_TIFF), resumes=_is_there),
        typer.Option(help="Also write it as a pyramidal float32 TIFF.", show_default=False),
    ] = None,
    tiff8: Annotated[
        Path | None,
        Output(kind=always(HEATMAP_TIFF8), resumes=_is_there),
        typer.Option(help="The same with 8 bits, 0 to 1 as 0 to 255, which OpenSlide opens.", show_default=False),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Reading threads.", min=1, show_default="one per core")] = None,
    device: Device = "auto",
    slide_mpp: SlideMpp = None,
    on_bad_tile: OnBadTile = "raise",
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    *,
    allow_partial: AllowPartial = False,
    overwrite: Overwrite = False,
    upsample: Upsample = False,
) -> None:
    """Run the network over a slide's tissue and store the heatmap with its position on the slide.

    An existing heatmap of the same slide and model is kept.

    Exit code 3: more tissue went unseen than is allowed.

    Example: sentinode heatmap slide.tif --model model.safetensors -o slide.zarr --overlay slide.png
    """
    from staging.bars import CohortProgress  # noqa: PLC0415  (slow import)
    from staging.runs.single_heatmap import make_heatmap  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    with CohortProgress(1) as progress:
        made = make_heatmap(
            slide,
            output,
            model=model,
            picture=overlay,
            tiff=tiff,
            tiff8=tiff8,
            device=device,
            threads=threads or usable_cores(),
            slide_mpp=slide_mpp,
            on_bad_tile=on_bad_tile,
            overwrite=overwrite,
            upsample=upsample,
            on_tiles=progress.tiles,
        )
        progress.slide(Path(slide).stem)
    if made.was_there:
        say(f"{output} exists already: it is of this slide and model")
    for warning in made.warnings:
        say(f"{slide}: {warning}")
    typer.echo(json.dumps(made.to_json()))
    if not made.coverage.is_whole(coverage_tolerance):
        say(f"{slide}: only {made.coverage}")
        if not allow_partial:
            raise typer.Exit(3)
