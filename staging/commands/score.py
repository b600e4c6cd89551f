"""``sentinode score``: how well a submission agrees with a reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Score a submission against a reference; one JSON object on stdout.", no_args_is_help=True)


@app.callback()
def score() -> None:
    """Score a submission against a reference; one JSON object on stdout."""


@app.command()
def kappa(
    reference: Annotated[Path, typer.Argument(help="The organisers' stage_labels.csv.", show_default=False)],
    submission: Annotated[Path, typer.Argument(help="A table of the same form.", show_default=False)],
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples over patients.", min=0)] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
) -> None:
    """Quadratic weighted kappa of pN-stages (CAMELYON17) with its bootstrap interval and confusion matrix.

    Example: sentinode score kappa stage_labels.csv stages.csv
    """
    from staging.camelyon import read_stage_table, score_kappa  # noqa: PLC0415  (slow import)

    result = score_kappa(
        read_stage_table(reference), read_stage_table(submission, submission=True), resamples=resamples, seed=seed
    )
    typer.echo(json.dumps(result.to_json()))
