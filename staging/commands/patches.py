"""``sentinode patches``: labelled training patches from slides and their contours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.options import SlideMpp, Workers


def patches(
    slides: Annotated[list[Path], typer.Argument(help="A directory of slides, or slides.", show_default=False)],
    annotations: Annotated[
        Path, typer.Option("--annotations", "-a", help="Directory of ASAP XML, one per slide with tumour.")
    ],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", help="stage_labels.csv: which slides are negative.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The patch store (Zarr).", show_default=False)],
    mpp: Annotated[float, typer.Option(help="um per pixel of the patches.", min=0.1, max=16)] = 2.0,
    size: Annotated[int, typer.Option(help="Side of a patch in px.", min=32, max=1024)] = 192,
    tumour: Annotated[int, typer.Option(help="Patches with tumour per slide that has some.", min=0)] = 64,
    normal: Annotated[int, typer.Option(help="Patches without tumour per slide.", min=0)] = 32,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal patches.", min=0)] = 0,
    slide_mpp: SlideMpp = None,
    workers: Workers = None,
) -> None:
    """Draw patches with a class for every pixel; a slide without contours counts as normal only when labelled negative.

    Example: sentinode patches cohort/images -a cohort/annotations -r cohort/stage_labels.csv -o patches.zarr
    """
    from staging.camelyon import find_slides, read_stage_table  # noqa: PLC0415  (slow import)
    from staging.progress import CohortProgress  # noqa: PLC0415
    from staging.sampling import PatchRecipe, sample_cohort  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    found = find_slides(slides)
    recipe = PatchRecipe(mpp=mpp, size_px=size, tumour=tumour, normal=normal, seed=seed, slide_mpp=slide_mpp)
    with CohortProgress(len(found), verb="slides sampled", tiles=False) as progress:
        counts = sample_cohort(
            found,
            annotations,
            read_stage_table(reference),
            output,
            recipe=recipe,
            workers=workers or usable_cores(),
            news=progress,
        )
    typer.echo(json.dumps({"patches": str(output), **counts}))
