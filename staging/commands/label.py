"""``sentinode label``: slide labels from lesion sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def label(
    lesions: Annotated[Path, typer.Argument(help="lesions.csv, as lesions or run write it.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="labels.csv: slide,label.", show_default=False)],
    slides: Annotated[
        Path | None,
        typer.Option(help="Directory of heatmaps: slides without a lesion are labelled negative.", show_default=False),
    ] = None,
    smallest_um: Annotated[float, typer.Option(help="Shorter lesions count as noise.", min=0)] = 0.0,
) -> None:
    """Label every slide by its largest lesion: over 2 mm macro, over 0.2 mm micro, else itc.

    A slide without lesions has no row in lesions.csv; name the heatmaps so that it is not forgotten.

    Example: sentinode label lesions/lesions.csv --slides results/heatmaps -o labels.csv
    """
    from staging.labels import SizeRule  # noqa: PLC0415  (slow import)
    from staging.tables import label_table, read_lesion_table  # noqa: PLC0415
    from wsi.store import atomic_text  # noqa: PLC0415

    found = read_lesion_table(lesions)
    if slides is not None:
        found = {path.stem: [] for path in sorted(slides.glob("*.zarr"))} | found
    atomic_text(output, label_table(found, SizeRule(min_um=smallest_um)))
    typer.echo(json.dumps({"labels": str(output), "slides": len(found)}))
