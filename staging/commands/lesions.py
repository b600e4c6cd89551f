"""``sentinode lesions``: lesions and their sizes from a heatmap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.options import MergeGap, Smallest


def lesions(
    heatmaps: Annotated[list[Path], typer.Argument(help="Heatmaps written by run or heatmap.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory for lesions.csv and the contours.", show_default=False),
    ],
    threshold: Annotated[
        float, typer.Option(help="Lesions are outlined at this probability.", min=0.01, max=0.99)
    ] = 0.5,
    peak: Annotated[float, typer.Option(help="A lesion's highest probability must reach this.", min=0, max=1)] = 0.9,
    merge_gap_um: MergeGap = 75.0,
    smallest_um: Smallest = 60.0,
) -> None:
    """Find lesions, measure them in um and write a table, and GeoJSON and ASAP XML contours per slide.

    Example: sentinode lesions results/heatmaps/*.zarr -o lesions --threshold 0.5
    """
    from staging.contours import write_contours  # noqa: PLC0415  (slow import)
    from staging.lesions import find_lesions  # noqa: PLC0415
    from staging.tables import lesion_table  # noqa: PLC0415
    from wsi.store import atomic_text, read_heatmap  # noqa: PLC0415

    found = {}
    for path in heatmaps:
        heatmap = read_heatmap(path)
        found[path.stem], masks = find_lesions(
            heatmap, threshold=threshold, merge_gap_um=merge_gap_um, min_diameter_um=smallest_um, min_probability=peak
        )
        write_contours(output, path.stem, found[path.stem], masks)
    atomic_text(output / "lesions.csv", lesion_table(found))
    typer.echo(
        json.dumps(
            {
                "table": str(output / "lesions.csv"),
                "slides": len(found),
                "lesions": {slide: len(each) for slide, each in found.items()},
            }
        )
    )
