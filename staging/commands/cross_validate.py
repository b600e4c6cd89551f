"""``sentinode cross-validate``: train, run and score on parts of a cohort that training did not see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.notices import cohort_notices
from staging.commands.options import (
    Device,
    FoldsOfPatients,
    LeaveOneCentreOut,
    Nodes,
    Patients,
    SlideMpp,
    Smallest,
    Upsample,
    Workers,
)
from staging.commands.outputs import Output, always, guarded
from staging.lesions.settings import SMALLEST_UM
from staging.stages.pn import EXPECTED_NODES
from wsi.outputs import FolderKind

EXIT_QUARANTINED = 3


@guarded
def cross_validate(
    slides: Annotated[list[Path], typer.Argument(help="A directory of slides, or slides.", show_default=False)],
    annotations: Annotated[
        Path,
        typer.Option("--annotations", "-a", help="Directory of XML, one per slide with tumour.", show_default=False),
    ],
    reference: Annotated[
        Path, typer.Option("--reference", "-r", help="stage_labels.csv of all patients.", show_default=False)
    ],
    output: Annotated[
        Path,
        Output(kind=always(FolderKind(record="cross_validation.json")), is_kept=True),
        typer.Option("--output", "-o", help="A folder per fold is made here.", show_default=False),
    ],
    *,
    leave_one_centre_out: LeaveOneCentreOut = False,  # noqa: ARG001  (the default; it refuses --folds)
    folds: FoldsOfPatients = None,
    mpp: Annotated[float, typer.Option(help="um per pixel of the network's input.", min=0.1, max=16)] = 2.0,
    size: Annotated[int, typer.Option(help="Side of a training patch in px.", min=32, max=1024)] = 192,
    epochs: Annotated[int, typer.Option(help="Epochs of the final network.", min=1)] = 11,
    first_epochs: Annotated[
        int, typer.Option(help="Epochs of the first network, which finds the hard patches.", min=1)
    ] = 3,
    seed: Annotated[int, typer.Option(help="Seed of patches, weights and order.", min=0)] = 0,
    smallest_um: Smallest = SMALLEST_UM,
    nodes: Nodes = EXPECTED_NODES,
    slide_mpp: SlideMpp = None,
    patients: Patients = None,
    device: Device = "auto",
    workers: Workers = None,
    upsample: Upsample = False,
) -> None:
    """Train on all centres but one, run and score the one left out, for each in turn; a second call resumes.

    Prints kappa over all patients and per fold as JSON; the table goes to stderr.

    Example: sentinode cross-validate images -a annotations -r stage_labels.csv -o folds --leave-one-centre-out
    """
    from staging.cohorts.camelyon import list_slides, read_stage_table  # noqa: PLC0415  (slow import)
    from staging.cohorts.patients import nodes_of, with_patients  # noqa: PLC0415
    from staging.cross_validation import cross_validate as validate  # noqa: PLC0415
    from staging.cross_validation import folds_by_centre, folds_by_patient  # noqa: PLC0415
    from staging.errors import CohortError  # noqa: PLC0415
    from staging.scores.texts import stage_text  # noqa: PLC0415
    from staging.training.labelled_cohort import LabelledCohort  # noqa: PLC0415
    from staging.training.recipe import CohortRecipe  # noqa: PLC0415
    from staging.training.training_progress import TrainingProgress  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    if not annotations.is_dir():
        raise CohortError(annotations, "there is no such directory of annotations", mend="check --annotations")
    of_slides = nodes_of(patients)
    listing = with_patients(list_slides(slides), of_slides)
    found = listing.slides
    recipe = CohortRecipe(
        seed=seed,
        mpp=mpp,
        size_px=size,
        first_epochs=first_epochs,
        epochs=epochs,
        smallest_um=smallest_um,
        slide_mpp=slide_mpp,
        device=device,
        upsample=upsample,
    )
    cohort = LabelledCohort(
        slides=found, annotations=annotations, reference=read_stage_table(reference), nodes=of_slides
    )
    parts = folds_by_centre(found) if folds is None else folds_by_patient(found, folds)
    notices = cohort_notices(listing, mpp=slide_mpp, annotations=annotations)
    with TrainingProgress() as progress:
        record = validate(
            cohort, parts, output, recipe=recipe, workers=workers or usable_cores(), nodes=nodes, news=progress
        )
    if record["patients"]:
        typer.echo(stage_text(record), err=True)
    typer.echo(json.dumps({"score": str(output / "score.json"), **record, **notices}))
    if record["quarantined"]:
        raise typer.Exit(EXIT_QUARANTINED)
