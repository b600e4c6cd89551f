"""``sentinode lesions``: lesions and their sizes from heatmaps, masks and annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from annotations.measures import MERGE_GAP_UM
from staging.commands.options import SlideMpp
from staging.lesions.settings import PEAK, SMALLEST_UM, THRESHOLD

_ELSE = "the run's, else"


def lesions(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Heatmaps of run or heatmap (.zarr), masks (TIFF, PNG), annotations (.xml, .geojson).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory for the tables and the outlines.", show_default=False)
    ],
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Lesions of a heatmap are outlined at this probability.",
            min=0.01,
            max=0.99,
            show_default=f"{_ELSE} {THRESHOLD:g}",
        ),
    ] = None,
    peak: Annotated[
        float | None,
        typer.Option(
            help="A lesion's highest probability in a heatmap must reach this.",
            min=0,
            max=1,
            show_default=f"{_ELSE} {PEAK:g}",
        ),
    ] = None,
    merge_gap_um: Annotated[
        float | None,
        typer.Option(
            help="Deposits closer than this many um are one lesion.", min=0, show_default=f"{_ELSE} {MERGE_GAP_UM:g}"
        ),
    ] = None,
    smallest_um: Annotated[
        float | None,
        typer.Option(
            help="Lesions shorter than this many um count as noise.", min=0, show_default=f"{_ELSE} {SMALLEST_UM:g}"
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", help="The checkpoint that made the heatmaps: its threshold and peak.", show_default=False
        ),
    ] = None,
    value: Annotated[
        int | None,
        typer.Option(help="Of a mask's tumour pixels.", min=1, max=255, show_default="255 or 1 where no other occurs"),
    ] = None,
    level: Annotated[int, typer.Option(help="Of a mask's pyramid.", min=0)] = 0,
    slide_mpp: SlideMpp = None,
    *,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Holes in heatmaps and masks count as tumour.")
    ] = False,
) -> None:
    """Find lesions, measure them in um and write two tables, and GeoJSON and ASAP XML outlines per heatmap.

    lesions.csv is what label takes; lesion_features.csv has all measures. A heatmap below the run that made it takes
    that run's settings; the result tells each setting and its source.

    Example: sentinode lesions results/heatmaps -o lesions
    """
    from staging.lesions.measurements import (  # noqa: PLC0415  (slow import)
        LESION_TABLE,
        SHAPE_TABLE,
        measure_files,
        write_measurements,
    )

    measured = measure_files(
        files,
        options={"threshold": threshold, "peak": peak, "merge_gap_um": merge_gap_um, "smallest_um": smallest_um},
        model=model,
        value=value,
        level=level,
        mpp=slide_mpp,
        with_holes_filled=fill_holes,
    )
    write_measurements(output, measured)
    tables = {"table": str(output / LESION_TABLE), "features": str(output / SHAPE_TABLE)}
    typer.echo(json.dumps(tables | measured.to_json()))
