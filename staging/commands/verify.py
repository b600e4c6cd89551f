"""``sentinode verify``: whether published files are unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.notices import say
from staging.commands.outputs import guarded


@guarded
def verify(
    output: Annotated[
        Path, typer.Argument(help="An output of run, features, patches, lesions or heatmap.", show_default=False)
    ],
) -> None:
    """Compare every file of an output with the size and sha256 recorded when it was made; changes nothing.

    Exit code 0: every file is unchanged; 1: some are not; a second call of run makes them again.

    Example: sentinode verify results
    """
    from staging.verifying import verify_output  # noqa: PLC0415  (slow import)

    found = verify_output(output)
    for name, reasons in found.broken.items():
        say(f"{name}: {'; '.join(reasons)}")
    typer.echo(json.dumps({"artefacts": found.artefacts, "broken": found.broken}))
    if found.broken:
        raise typer.Exit(1)
