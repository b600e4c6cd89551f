"""``sentinode stage``: pN-stages from slide labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def stage(
    labels: Annotated[
        Path,
        typer.Argument(
            help="CSV with slide,label rows, or the organisers' table. Columns negative, itc, micro and macro hold the "
            "probability of each label.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table in the organisers' format.", show_default=False)
    ],
    nodes: Annotated[int, typer.Option(help="Slides a patient must have to be staged.", min=1)] = 5,
    sites: Annotated[
        Path | None,
        typer.Option(
            help="CSV slide,site,detection (axillary or internal mammary; sentinel or clinical): adds the full pN "
            "category (pN1a, pN2b, ...) of AJCC's TNM to the result.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Stage every patient whose slides are all labelled; name the others and why they are not staged.

    Where the table holds the probability of each label, the result holds that of each stage.

    Example: sentinode stage labels.csv -o stages.csv
    """
    from staging.cohorts.camelyon import read_label_table, write_stage_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.names import patient_of  # noqa: PLC0415  (slow import)
    from staging.cohorts.node_tables import read_label_probabilities, read_node_sites, tnm_stages  # noqa: PLC0415
    from staging.lesions.tables import read_partial  # noqa: PLC0415
    from staging.stages.pn import parse_slide_name, stage_patients, stage_probabilities  # noqa: PLC0415

    table = read_label_table(labels)
    partial = read_partial(labels)
    staging = stage_patients(table, partial=partial, expected_nodes=nodes)
    staged = {name: label for name, label in table.items() if patient_of(name) in staging.stages}
    record: dict[str, Any] = {
        "stages": str(output),
        "patients": len(staging.stages),
        "at_least": sorted(staging.at_least),
        "unscored": {one.patient: one.reason for one in staging.unscored},
    }
    shares = read_label_probabilities(labels)
    if shares is not None:
        of_patient: dict[str, list[tuple[float, ...]]] = {}
        for name in staged:
            of_patient.setdefault(parse_slide_name(name)[0], []).append(shares[name])
        record["probabilities"] = {
            patient: {stage.value: round(share, 9) for stage, share in stage_probabilities(found).items()}
            for patient, found in of_patient.items()
        }
    if sites is not None:
        tnm, reasons = tnm_stages(staged, read_node_sites(sites))
        record |= {"tnm": {patient: stage.value for patient, stage in tnm.items()}, "tnm_unsupported": reasons}
    write_stage_table(output, staging.stages, table)
    for patient in sorted(staging.at_least):
        typer.echo(f"sentinode: at least {staging.stages[patient].value}: {patient}: seen in part", err=True)
    for one in staging.unscored:
        typer.echo(f"sentinode: not staged: {one.patient}: {one.reason}", err=True)
    typer.echo(json.dumps(record))
    if staging.unscored:
        raise typer.Exit(3)
