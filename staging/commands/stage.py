"""``sentinode stage``: pN-stages from slide labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.notices import say
from staging.commands.options import Nodes, Patients
from staging.commands.outputs import Output, always, guarded
from staging.stages.pn import EXPECTED_NODES
from wsi.outputs import table


@guarded
def stage(
    labels: Annotated[
        Path,
        typer.Argument(
            help="CSV with slide,label rows, or the organisers' table. Optional columns negative, itc, micro and macro "
            "give the probability of each label.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        Output(kind=always(table("patient", "stage", name="a table of stages"))),
        typer.Option("--output", "-o", help="The table in the organisers' format.", show_default=False),
    ],
    nodes: Nodes = EXPECTED_NODES,
    patients: Patients = None,
    sites: Annotated[
        Path | None,
        typer.Option(
            help="CSV slide,site,detection (axillary, internal mammary, infraclavicular or supraclavicular; "
            "sentinel or clinical): adds the full pN category (pN1a, pN2b, ...) of AJCC's TNM to the result.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Stage every patient whose slides are all labelled; list the others with the reason.

    If the table has the probability of each label, the result has the probability of each stage, taking the nodes of
    a patient as independent. The stage is that of the labels: where another is likelier, this is said.

    Example: sentinode stage labels.csv -o stages.csv
    """
    from staging.cohorts.patients import nodes_of  # noqa: PLC0415  (slow import)
    from staging.cohorts.staged import stage_table  # noqa: PLC0415
    from staging.errors import listed  # noqa: PLC0415
    from staging.verifying import refuse_changed_run  # noqa: PLC0415

    refuse_changed_run(labels)
    staged = stage_table(labels, output, expected_nodes=nodes, sites=sites, nodes=nodes_of(patients))
    for patient in sorted(staged.staging.at_least):
        stage_at_least = staged.staging.stages[patient].value
        say(f"at least {stage_at_least}: {patient}: partly seen")
    if staged.without_slides:
        say(f"no slide is labelled of patients in {patients}: {listed(staged.without_slides)}")
    for patient, stage, likelier, share in staged.contradictions():
        say(f"{patient}: {stage.value} by its labels, but {likelier.value} is likelier ({share:.2f}) by probabilities")
    for one in staged.staging.unscored:
        say(f"not staged: {one.patient}: {one.reason}")
    typer.echo(json.dumps(staged.to_json()))
    if staged.staging.unscored:
        raise typer.Exit(3)
