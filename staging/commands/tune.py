"""``sentinode tune``: the settings of lesions, learnt from labelled slides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.notices import heatmaps_notice, left_out_notice, say, unseen_notice
from staging.commands.options import (
    AllowPartial,
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
from staging.errors import listed
from staging.lesions.settings import COVERAGE_TOLERANCE
from staging.stages.pn import EXPECTED_NODES
from wsi.outputs import OutputKind


def _kind(_: Path, __: object) -> OutputKind:
    from staging.tuning.tuning import OUTPUT  # noqa: PLC0415  (slow import)

    return OUTPUT


@guarded
def tune(
    heatmaps: RunHeatmaps,
    reference: LabelReference,
    output: Annotated[
        Path,
        Output(kind=_kind),
        typer.Option("--output", "-o", help="Folder for settings.toml and the result.", show_default=False),
    ],
    model: MadeBy = None,
    loss: Annotated[
        Literal["kappa", "labels"],
        typer.Option(help="What is minimised: 1 - kappa of patients, or the squared error of slide labels."),
    ] = "kappa",
    hold_out: HoldOut = "patients",
    folds: Folds = 5,
    seed: Annotated[int, typer.Option(help="Seed of the folds.", min=0)] = 0,
    nodes: Nodes = EXPECTED_NODES,
    patients: Patients = None,
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    workers: Workers = None,
    *,
    allow_partial: AllowPartial = False,
) -> None:
    """Learn threshold, peak, smallest size and merge gap from labelled slides that the network has not seen.

    The result is that of held-out patients, each staged with settings chosen without its fold; settings.toml has those
    chosen on all patients, for --config of run and lesions. Exit code 3: heatmaps were left out, because too much of
    the tissue went unseen.

    Example: sentinode tune results stage_labels.csv -o tuned -m model.safetensors
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415  (slow import)
    from staging.lesions.seen import SeenRule  # noqa: PLC0415
    from staging.scores.texts import label_line, stage_line  # noqa: PLC0415
    from staging.tuning.slides import gather_heatmaps  # noqa: PLC0415
    from staging.tuning.tuning import SETTINGS, TuningRecipe, tune_heatmaps  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    of_slides = nodes_of(patients)
    skipped = heatmaps_notice([heatmaps])
    slides = gather_heatmaps(
        heatmaps,
        reference,
        model=model,
        nodes=of_slides,
        expected_nodes=nodes,
        seen_rule=SeenRule(tolerance=coverage_tolerance, allow_partial=allow_partial),
    )
    left_out_notice(slides.left_out, faults=slides.faults, model=model)
    recipe = TuningRecipe(loss=loss, folds=folds, held_out=hold_out, seed=seed)
    record = tune_heatmaps(slides, output, recipe, nodes=of_slides, workers=workers or usable_cores())
    if record["at_bound"]:
        say(f"chosen at the end of what is tried: {listed(record['at_bound'])}; a better value may lie beyond")
    found = record["out_of_fold"]
    if found["stages"] is not None:
        say(f"on held-out {hold_out}: {stage_line(found['stages'])}")
        for warning in found["stages"]["warnings"]:
            say(warning)
    say(f"on held-out {hold_out}: {label_line(found['labels'])}")
    typer.echo(json.dumps({"settings_file": str(output / SETTINGS), **record, **skipped}))
    unseen_notice(record)
