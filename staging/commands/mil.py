"""``sentinode mil``: slides judged whole, by a head that learns from slide labels alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.options import Device

EXIT_QUARANTINED = 3

app = typer.Typer(help="Judge whole slides by attention over the features of their tiles.", no_args_is_help=True)

Features = Annotated[
    list[Path], typer.Argument(help="Directories of features, as sentinode features writes.", show_default=False)
]


@app.callback()
def mil() -> None:
    """Judge whole slides by attention over the features of their tiles; one JSON object on stdout."""


@app.command()
def train(
    features: Features,
    reference: Annotated[
        Path,
        typer.Argument(help="CAMELYON16's reference.csv, stage_labels.csv or a CSV slide,label.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The head, .safetensors.", show_default=False)],
    *,
    classes: Annotated[
        Literal["2", "4"], typer.Option(help="negative or positive; or negative, itc, micro, macro.")
    ] = "2",
    patients: Annotated[
        Path | None,
        typer.Option(help="CSV slide,patient where names do not tell the patient.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(help="How often every slide is seen.", min=1)] = 40,
    folds: Annotated[int, typer.Option(help="Parts of the patients, each judged by a head without it.", min=2)] = 5,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal heads.", min=0)] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Folds trained at a time; the result does not depend on it.", min=1, show_default="one per core"
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train an attention head on slide labels alone, and judge it on patients that it has not seen.

    Beside the head stands HEAD.unseen.csv: for each slide what a head says that has not seen the patient; it goes into
    sentinode score auc, and with 4 classes into sentinode stage. Slides whose name does not tell the patient count as
    patients of their own; the JSON says how many do.

    Example: sentinode mil train features stage_labels.csv -o head.safetensors
    """
    from staging.training.mil import train_mil  # noqa: PLC0415  (slow import)
    from wsi.cnn.encoders.mil_training import MilTraining  # noqa: PLC0415  (loads torch)

    made = train_mil(
        features,
        reference,
        output,
        classes=2 if classes == "2" else 4,
        patients=patients,
        options=MilTraining(rounds=rounds, folds=folds, seed=seed),
        device=device,
        workers=workers,
        on_round=_tell,
    )
    typer.echo(json.dumps(made.to_json()))
    if made.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


@app.command()
def apply(
    head: Annotated[Path, typer.Argument(help="A head, as mil train writes it.", show_default=False)],
    features: Features,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Directory: probabilities.csv and attention per slide.", show_default=False
        ),
    ],
    device: Device = "auto",
) -> None:
    """Judge slides: their probability of metastasis, and where the head looked (attention, which is no probability).

    probabilities.csv goes into sentinode score auc, and that of a head of 4 classes into sentinode stage. Exit code 0:
    all slides good; 3: some features could not be used.

    Example: sentinode mil apply head.safetensors features -o judged
    """
    from staging.training.mil import judge_slides  # noqa: PLC0415  (slow import)

    judged = judge_slides(head, features, output, device=device)
    if judged.trained_on:
        typer.echo(
            f"sentinode: the head was trained on {judged.trained_on} of these {judged.slides} slides: how well it does "
            "on slides that it has not seen stands in the table that mil train wrote beside it",
            err=True,
        )
    typer.echo(json.dumps(judged.to_json()))
    if judged.quarantined:
        raise typer.Exit(EXIT_QUARANTINED)


def _tell(done: int, total: int) -> None:
    """Say on stderr whenever another tenth of the training is done."""
    if done * 10 // total > (done - 1) * 10 // total:
        typer.echo(f"training: {done} of {total} rounds", err=True)
