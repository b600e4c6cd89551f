"""``sentinode stage``: pN-stages from slide labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def stage(
    labels: Annotated[
        Path, typer.Argument(help="CSV with slide,label rows, or the organisers' table.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table in the organisers' format.", show_default=False)
    ],
    nodes: Annotated[int, typer.Option(help="Slides a patient must have to be staged.", min=1)] = 5,
) -> None:
    """Stage every patient whose slides are all labelled; name the others and why they are not staged.

    Example: sentinode stage labels.csv -o stages.csv
    """
    from staging.camelyon import read_label_table, write_stage_table  # noqa: PLC0415  (slow import)
    from staging.pn import stage_patients  # noqa: PLC0415

    table = read_label_table(labels)
    staging = stage_patients(table, expected_nodes=nodes)
    write_stage_table(output, staging.stages, table)
    for one in staging.unscored:
        typer.echo(f"sentinode: not staged: {one.patient}: {one.reason}", err=True)
    typer.echo(
        json.dumps(
            {
                "stages": str(output),
                "patients": len(staging.stages),
                "unscored": {one.patient: one.reason for one in staging.unscored},
            }
        )
    )
    if staging.unscored:
        raise typer.Exit(3)
