"""``sentinode demo``: the whole pipeline on synthetic slides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.options import Workers

MARK = ".sentinode-demo"


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory; an earlier demo in it is replaced.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="A different seed gives different patients.", min=0)] = 0,
    workers: Workers = None,
) -> None:
    """Train on synthetic patients, run on others, score: slides to heatmaps, labels, stages and a kappa.

    Example: sentinode demo --output demo --seed 0
    """
    from staging.demo import DemoPlan, run_demo  # noqa: PLC0415
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from staging.scores.texts import stage_text  # noqa: PLC0415
    from staging.training.training_progress import TrainingProgress  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415  (slow import)

    if output.exists():
        if any(output.iterdir()) and not (output / MARK).exists():
            raise ConfigurationError(output, "holds something other than a demo", mend="name a new directory")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    (output / MARK).touch()
    plan = DemoPlan(seed=seed, workers=workers or usable_cores())
    with TrainingProgress() as progress:
        result = run_demo(output, plan, news=progress)
    if result.score is not None:
        typer.echo(stage_text(result.score))
    typer.echo(f"report: {output / 'results' / 'report.html'}")
    if result.failures:
        raise typer.Exit(3)
