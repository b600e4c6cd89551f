"""``sentinode compare``: ways to label slides, by the same folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.conditions import only_with
from staging.commands.notices import heatmaps_notice, left_out_notice, say, unseen_notice
from staging.commands.options import (
    AllowPartial,
    Device,
    Folds,
    HoldOut,
    LabelReference,
    MadeBy,
    Nodes,
    Patients,
    RunHeatmaps,
    Tolerance,
    Workers,
)
from staging.commands.outputs import Output, guarded
from staging.lesions.settings import COVERAGE_TOLERANCE
from staging.stages.pn import EXPECTED_NODES
from wsi.outputs import OutputKind


def _kind(_: Path, __: object) -> OutputKind:
    from staging.comparison.comparison import OUTPUT  # noqa: PLC0415  (slow import)

    return OUTPUT


@guarded
def compare(
    heatmaps: RunHeatmaps,
    reference: LabelReference,
    output: Annotated[
        Path,
        Output(kind=_kind),
        typer.Option("--output", "-o", help="Folder for the tables.", show_default=False),
    ],
    model: MadeBy = None,
    features: Annotated[Path | None, typer.Option(help="Features of the slides: adds MIL.", show_default=False)] = None,
    epochs: Annotated[
        int, only_with("features"), typer.Option(help="How often a head of MIL sees every slide.", min=1)
    ] = 40,
    device: Annotated[Device, only_with("features")] = "auto",
    loss: Annotated[
        Literal["kappa", "labels"],
        typer.Option(help="What the tuned size rule minimises: 1 - kappa, or the squared error of slide labels."),
    ] = "kappa",
    hold_out: HoldOut = "patients",
    folds: Folds = 5,
    seed: Annotated[int, typer.Option(help="Seed of the folds, the trees and the heads.", min=0)] = 0,
    nodes: Nodes = EXPECTED_NODES,
    patients: Patients = None,
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    workers: Workers = None,
    *,
    allow_partial: AllowPartial = False,
) -> None:
    """Compare the size rule, the tuned size rule, learned labels and MIL on slides that none of them was made from.

    All are judged by the same folds. Every two are compared over patients; p-values are adjusted for their number. Exit
    code 3: heatmaps were left out, because too much of the tissue went unseen.

    Example: sentinode compare results stage_labels.csv -o compared -m model.safetensors --features features
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415  (slow import)
    from staging.comparison.comparison import Features, compare_methods  # noqa: PLC0415
    from staging.lesions.seen import SeenRule  # noqa: PLC0415
    from staging.scores.texts import method_lines  # noqa: PLC0415
    from staging.training.mil_features import usable_features  # noqa: PLC0415
    from staging.tuning.slides import gather_heatmaps  # noqa: PLC0415
    from staging.tuning.tuning import TuningRecipe  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    of_slides = nodes_of(patients)
    skipped = heatmaps_notice([heatmaps])
    rule = SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial)
    slides = gather_heatmaps(
        heatmaps,
        reference,
        model=model,
        nodes=of_slides,
        expected_nodes=nodes,
        seen_rule=rule,
        with_features=None if features is None else usable_features(features, rule),
    )
    left_out_notice(slides.left_out, faults=slides.faults, model=model)
    given = None
    if features is not None:
        from wsi.cnn.encoders.mil_training import MilTraining  # noqa: PLC0415  (loads torch)

        options = MilTraining(rounds=epochs, seed=seed)
        given = Features(folder=features, options=options, device=device, seen_rule=rule)
    record = compare_methods(
        slides,
        output,
        TuningRecipe(loss=loss, folds=folds, held_out=hold_out, seed=seed),
        features=given,
        nodes=of_slides,
        workers=workers or usable_cores(),
    )
    for line in method_lines(record):
        say(line)
    typer.echo(json.dumps({**record, **skipped}))
    unseen_notice(record)
