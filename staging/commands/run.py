"""``sentinode run``: a directory of slides to pN-stages and a kappa."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from annotations.measures import MERGE_GAP_UM
from staging.commands.everywhere import is_quiet
from staging.commands.notices import EXIT_QUARANTINED, foretold_notice, say, skipped_notice
from staging.commands.options import (
    AllowPartial,
    Device,
    DryRun,
    MergeGap,
    Model,
    Nodes,
    OnBadTile,
    Overwrite,
    Patients,
    Peak,
    SlideMpp,
    Smallest,
    Threshold,
    Tolerance,
    Upsample,
    Workers,
)
from staging.commands.outputs import Output, always, guarded
from staging.errors import listed
from staging.lesions.settings import COVERAGE_TOLERANCE, SMALLEST_UM
from staging.stages.pn import EXPECTED_NODES
from wsi.outputs import FolderKind

if TYPE_CHECKING:
    from staging.runs.cohort import CohortResult


@guarded
def run(
    slides: Annotated[
        list[Path],
        typer.Argument(help="A CAMELYON17-style directory, a folder of slides, or slides.", show_default=False),
    ],
    output: Annotated[
        Path,
        Output(kind=always(FolderKind(record="run.json"))),
        typer.Option("--output", "-o", help="The run's directory.", show_default=False),
    ],
    model: Model,
    reference: Annotated[
        Path | None, typer.Option("--reference", "-r", help="stage_labels.csv to score against.", show_default=False)
    ] = None,
    workers: Workers = None,
    device: Device = "auto",
    threshold: Threshold = None,
    peak: Peak = None,
    merge_gap_um: MergeGap = MERGE_GAP_UM,
    smallest_um: Smallest = SMALLEST_UM,
    nodes: Nodes = EXPECTED_NODES,
    patients: Patients = None,
    slide_mpp: SlideMpp = None,
    on_bad_tile: OnBadTile = "raise",
    max_failures: Annotated[
        float,
        typer.Option(
            help="Give up when more than this share of the slides, and at least ten, have failed.", min=0, max=1
        ),
    ] = 0.10,
    coverage_tolerance: Tolerance = COVERAGE_TOLERANCE,
    *,
    allow_partial: AllowPartial = False,
    overwrite: Overwrite = False,
    upsample: Upsample = False,
    dry_run: DryRun = False,
    verify: Annotated[
        bool | None,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the digests, not only the sizes, of what an earlier call left.",
            show_default="up to 1 GiB",
        ),
    ] = None,
) -> None:
    """Make heatmaps, lesions, labels, stages, a score and a report; a second call resumes where the first ended.

    Slides of earlier calls with the same settings stay in the tables. With --overwrite, what was made with other
    settings is made anew.

    Exit code 0: all slides good; 3: some are quarantined, a patient is not staged, --patients lacks a slide, or there
    is a reference and none could be compared; 2: wrong usage; 74: storage failed; 75: output in use.

    Example: sentinode run CAMELYON17/training -o results --model model.safetensors -r stage_labels.csv
    """
    from staging.bars import CohortProgress  # noqa: PLC0415
    from staging.cohorts.camelyon import list_slides, read_stage_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.patients import nodes_of, with_patients  # noqa: PLC0415
    from staging.cohorts.training_patients import training_patients  # noqa: PLC0415
    from staging.lesions.labels import SizeRule  # noqa: PLC0415
    from staging.lesions.settings import peak_of  # noqa: PLC0415
    from staging.runs.cohort import cannot_be_staged, run_cohort  # noqa: PLC0415
    from staging.runs.config import RunConfig  # noqa: PLC0415
    from wsi.cnn.checkpoint import load_checkpoint  # noqa: PLC0415  (loads torch)
    from wsi.cnn.device import shared_out  # noqa: PLC0415

    checkpoint = load_checkpoint(model)
    table = read_stage_table(reference) if reference is not None else None
    of_slides = nodes_of(patients)
    listing = with_patients(list_slides(slides), of_slides)
    skipped_notice(listing)
    hopeless = cannot_be_staged(listing.slides, output, nodes, of_slides) if reference is not None else {}
    if hopeless:
        reasons = listed(f"{patient} ({reason})" for patient, reason in hopeless.items())
        say(f"will not be staged, nor count for kappa: {reasons}")
    config = RunConfig(
        model=checkpoint.digest,
        threshold=threshold or checkpoint.threshold,
        peak=peak_of(checkpoint.provenance) if peak is None else peak,
        mpp=slide_mpp,
        merge_gap_um=merge_gap_um,
        rule=SizeRule(smallest_um=smallest_um),
        nodes=nodes,
        on_bad_tile=on_bad_tile,
        coverage_tolerance=coverage_tolerance,
        allow_partial=allow_partial,
    )
    processes, threads = shared_out(device, workers)
    if dry_run:
        from staging.runs.cohort import slide_tasks  # noqa: PLC0415
        from staging.runs.config import RECORD, refuse_other_settings  # noqa: PLC0415
        from staging.runs.rehearsal import rehearse  # noqa: PLC0415

        refuse_other_settings(output, config.to_json(), record=RECORD, overwrite=overwrite)
        tasks = slide_tasks(
            listing.slides,
            output,
            model=model,
            config=config,
            device=device,
            threads=threads,
            digests=False,
            upsample=upsample,
        )
        found = rehearse(tasks, checkpoint, workers=processes)
        for name, reason in found.faults.items():
            say(f"{name}: would be quarantined: {reason}")
        foretold_notice(found.to_json(), what=f"{len(found.todo)} slides to analyse, {len(found.done)} are finished")
        typer.echo(json.dumps(found.to_json()))
        if found.faults:
            raise typer.Exit(EXIT_QUARANTINED)
        return
    with CohortProgress(len(listing.slides)) as progress:
        result = run_cohort(
            listing.slides,
            output,
            model=model,
            config=config,
            reference=table,
            workers=processes,
            threads=threads,
            device=device,
            max_failures=max_failures,
            digests=verify,
            skipped=listing.skipped,
            overwrite=overwrite,
            upsample=upsample,
            nodes=of_slides,
            known=training_patients(checkpoint.provenance),
            news=progress,
        )
    _tell(result)
    record = {"report": str(output / "report.html"), **result.to_json()}
    typer.echo(json.dumps(record))
    if not result.is_complete or (patients is not None and _strangers(result)):
        raise typer.Exit(EXIT_QUARANTINED)


def _tell(result: CohortResult) -> None:
    """Say on stderr what a person should know about the results."""
    from staging.cohorts.slide_warnings import warning_lines  # noqa: PLC0415  (slow import)
    from staging.cohorts.training_patients import trained_on_text  # noqa: PLC0415

    if result.earlier:
        say(f"the tables also list {len(result.earlier)} slides of earlier calls")
    if is_quiet():  # else it was said in passing
        for one in result.failures:
            say(f"{one.slide}: quarantined at {one}")
    if strangers := _strangers(result):
        say(f"of no known patient, so not staged: {listed(strangers)} (--patients says whose they are)")
    partial = {one.slide: one.coverage for one in result.analyses if one.is_partial}
    for name, coverage in partial.items():
        say(f"{name}: seen only in part: {coverage}")
    if result.trained_on:
        say(trained_on_text("model", len(result.trained_on), len(result.analyses)))
    for line in warning_lines(result.warnings):
        say(line)
    for line in result.score["warnings"] if result.score else ():
        say(line)


def _strangers(result: CohortResult) -> list[str]:
    """Return the finished slides of no known patient."""
    return sorted({one.slide for one in result.analyses} & {one.patient for one in result.staging.unscored})
