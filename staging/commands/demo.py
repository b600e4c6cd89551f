"""``sentinode demo``: the whole pipeline on synthetic slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from staging.commands.options import Overwrite, Workers
from staging.commands.outputs import Output, always, guarded
from wsi.outputs import FolderKind

MARK = ".sentinode-demo"


@guarded
def demo(
    output: Annotated[
        Path,
        Output(kind=always(FolderKind())),
        typer.Option("--output", "-o", help="A new directory, or an earlier demo with --overwrite."),
    ] = Path("demo"),
    seed: Annotated[int, typer.Option(help="A different seed gives different patients.", min=0)] = 0,
    workers: Workers = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Train on synthetic patients, run on others, score: slides to heatmaps, labels, stages and a kappa.

    Example: sentinode demo --output demo --seed 0
    """
    from staging.demo import DemoPlan, forget_demo, run_demo  # noqa: PLC0415
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from staging.scores.texts import stage_text  # noqa: PLC0415
    from staging.training.training_progress import TrainingProgress  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415  (slow import)
    from wsi.store import storage  # noqa: PLC0415

    if output.exists() and any(output.iterdir()):
        if not (output / MARK).is_file():
            raise ConfigurationError(output, "holds something other than a demo", mend="name a new directory")
        if not overwrite:
            raise ConfigurationError(output, "holds an earlier demo", mend="name a new directory, or give --overwrite")
        forget_demo(output)
    with storage(output):
        output.mkdir(parents=True, exist_ok=True)
        (output / MARK).touch()
    plan = DemoPlan(seed=seed, workers=workers or usable_cores())
    with TrainingProgress() as progress:
        result = run_demo(output, plan, news=progress)
    if result.score is not None:
        typer.echo(stage_text(result.score))
    typer.echo(f"report: {output / 'results' / 'report.html'}")
    if result.failures:
        raise typer.Exit(3)
