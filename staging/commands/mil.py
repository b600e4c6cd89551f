"""``sentinode mil``: whole slides classified by a head that learns from slide labels alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.everywhere import is_quiet
from staging.commands.help_texts import Group
from staging.commands.notices import say, unseen_notice
from staging.commands.options import (
    AllowPartial,
    Device,
    FoldsOfPatients,
    LeaveOneCentreOut,
    Nodes,
    Patients,
    Tolerance,
)
from staging.commands.outputs import Output, always, guarded
from staging.commands.reference_option import TakesReference
from staging.csv_rows import read_rows
from staging.errors import listed
from staging.lesions.settings import COVERAGE_TOLERANCE
from staging.stages.pn import EXPECTED_NODES
from wsi.errors import PathologyError
from wsi.outputs import FolderKind, OutputKind, table, weights

_HEAD = weights("an attention head", "sentinode attention-MIL head")
_UNSEEN = table("slide", "label", "probability", name="a table of predictions")

app = typer.Typer(
    cls=Group, help="Classify whole slides by attention over the features of their tiles.", no_args_is_help=True
)

Features = Annotated[
    list[Path], typer.Argument(help="Directories of features from sentinode features.", show_default=False)
]


def _of_folds(_: Path, __: object) -> OutputKind:
    from staging.training.mil_folds import OUTPUT  # noqa: PLC0415  (slow import)

    return OUTPUT


@app.callback()
def mil() -> None:
    """Classify whole slides by attention over the features of their tiles; one JSON object on stdout."""


@app.command(cls=TakesReference)
@guarded
def train(
    features: Features,
    reference: Annotated[
        Path,
        typer.Argument(
            help="CAMELYON16's reference.csv, stage_labels.csv or a CSV slide,label; also as -r.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        Output(kind=always(_HEAD), beside=lambda path, _: [(path.with_suffix(".unseen.csv"), _UNSEEN)]),
        typer.Option("--output", "-o", help="The head, .safetensors.", show_default=False),
    ],
    *,
    classes: Annotated[
        Literal["2", "4"], typer.Option(help="2: negative, positive; 4: negative, itc, micro, macro.")
    ] = "2",
    patients: Patients = None,
    epochs: Annotated[int, typer.Option(help="Passes over the slides.", min=1)] = 40,
    folds: Annotated[
        int, typer.Option(help="Number of folds of patients, each predicted by a head trained on the others.", min=2)
    ] = 5,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal heads.", min=0)] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Folds trained at a time; the result does not depend on it.", min=1, show_default="one per core"
        ),
    ] = None,
    device: Device = "auto",
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    allow_partial: AllowPartial = False,
) -> None:
    """Train an attention head on slide labels alone, and cross-validate it over patients.

    HEAD.unseen.csv beside the head has, for each slide, the prediction of a head that was not trained on the patient.
    sentinode score auc takes it, and with 4 classes sentinode stage. Slides whose name does not give the patient count
    as patients of their own; the JSON says how many do.

    Example: sentinode mil train features stage_labels.csv -o head.safetensors
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415  (slow import)
    from staging.lesions.seen import SeenRule  # noqa: PLC0415  (slow import)
    from staging.training.doubts import near_chance  # noqa: PLC0415
    from staging.training.mil import train_mil  # noqa: PLC0415
    from wsi.cnn.encoders.mil_training import MilTraining  # noqa: PLC0415  (loads torch)

    made = train_mil(
        features,
        reference,
        output,
        classes=2 if classes == "2" else 4,
        nodes=nodes_of(patients),
        options=MilTraining(rounds=epochs, folds=folds, seed=seed),
        device=device,
        workers=workers,
        seen_rule=SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial),
        on_round=_tell,
    )
    doubts = near_chance(made.auc_unseen)
    for doubt in doubts:
        say(doubt)
    typer.echo(json.dumps({**made.to_json(), "doubts": list(doubts)}))
    unseen_notice(made.to_json())


@app.command("cross-validate", cls=TakesReference)
@guarded
def cross_validate(
    features: Features,
    reference: Annotated[
        Path, typer.Argument(help="stage_labels.csv, or a CSV slide,label; also as -r.", show_default=False)
    ],
    output: Annotated[
        Path,
        Output(kind=_of_folds),
        typer.Option("--output", "-o", help="Folder for labels, stages and scores.", show_default=False),
    ],
    *,
    leave_one_centre_out: LeaveOneCentreOut = False,  # noqa: ARG001  (the default; it refuses --folds)
    folds: FoldsOfPatients = None,
    epochs: Annotated[int, typer.Option(help="Passes over the slides.", min=1)] = 40,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal heads.", min=0)] = 0,
    nodes: Nodes = EXPECTED_NODES,
    patients: Patients = None,
    device: Device = "auto",
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    allow_partial: AllowPartial = False,
) -> None:
    """From features to kappa: heads of four classes, each judged on the centre (or fold) that it did not see.

    A slide's likeliest label counts, and the labels of a patient's slides give the stage. Exit code 0: all features
    good; 3: some could not be used.

    Example: sentinode mil cross-validate features stage_labels.csv -o folds --leave-one-centre-out
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415  (slow import)
    from staging.lesions.seen import SeenRule  # noqa: PLC0415
    from staging.scores.texts import label_line, roc_line, stage_text  # noqa: PLC0415
    from staging.training.mil_folds import MilFolds, cross_validate_mil  # noqa: PLC0415
    from wsi.cnn.encoders.mil_training import MilTraining  # noqa: PLC0415  (loads torch)

    plan = MilFolds(
        options=MilTraining(rounds=epochs, seed=seed),
        held_out="centres" if folds is None else "patients",
        folds=folds or 5,
        nodes=nodes_of(patients),
        expected_nodes=nodes,
        seen_rule=SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial),
        device=device,
    )
    record = cross_validate_mil(features, reference, output, plan, on_round=_tell)
    for patient, reason in record["unstaged"].items():
        say(f"{patient}: not staged: {reason}")
    if record["stages"] is not None:
        for warning in record["stages"]["warnings"]:
            say(warning)
        typer.echo(stage_text(record["stages"]), err=True)
    say(label_line(record["labels"]))
    if record["auc"] is not None:
        say(roc_line(record["auc"]))
    typer.echo(json.dumps({"folder": str(output), **record}))
    unseen_notice(record)


@app.command()
@guarded
def apply(
    head: Annotated[Path, typer.Argument(help="A head from mil train.", show_default=False)],
    features: Features,
    output: Annotated[
        Path,
        Output(kind=always(FolderKind(record="mil.json")), is_kept=True),
        typer.Option(
            "--output", "-o", help="Directory: probabilities.csv and attention per slide.", show_default=False
        ),
    ],
    device: Device = "auto",
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    *,
    allow_partial: AllowPartial = False,
) -> None:
    """Classify slides: the probability of metastasis, and where the head looked (attention is not a probability).

    sentinode score auc takes probabilities.csv, and sentinode stage takes that of a head of 4 classes. Exit code 0:
    all slides good; 3: some features could not be used.

    Example: sentinode mil apply head.safetensors features -o judged
    """
    from staging.lesions.seen import SeenRule  # noqa: PLC0415  (slow import)
    from staging.training.mil import judge_slides  # noqa: PLC0415

    seen_rule = SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial)
    before = _slides_of(output / "probabilities.csv")
    judged = judge_slides(head, features, output, device=device, seen_rule=seen_rule)
    if judged.trained_on:
        say(
            f"the head was trained on {judged.trained_on} of these {judged.slides} slides: how well it does "
            "on unseen slides is in the table that mil train wrote beside it"
        )
    gone = before - _slides_of(judged.table)
    if gone:
        say(f"of the earlier table {listed(sorted(gone))} {'is' if len(gone) == 1 else 'are'} no longer there")
    typer.echo(json.dumps(judged.to_json()))
    unseen_notice(judged.to_json())


def _slides_of(table: Path) -> set[str]:
    """The slides of an earlier table of probabilities; none if there is none, or it cannot be read."""
    try:
        return {cells[0] for _, cells in read_rows(table)[1:]} if table.exists() else set()
    except PathologyError:
        return set()


def _tell(done: int, total: int) -> None:
    """Report every tenth of the training on stderr."""
    if not is_quiet() and done * 10 // total > (done - 1) * 10 // total:
        typer.echo(f"training: {done} of {total} epochs", err=True)
