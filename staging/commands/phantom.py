"""``sentinode phantom``: a synthetic CAMELYON17 cohort with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.options import Overwrite, Workers
from staging.commands.outputs import Output, always, guarded
from staging.errors import ConfigurationError
from wsi.outputs import FolderKind


@guarded
def phantom(
    output: Annotated[
        Path,
        Output(kind=always(FolderKind())),
        typer.Argument(help="A new or empty directory, or an earlier cohort with --overwrite.", show_default=False),
    ],
    patient_count: Annotated[int, typer.Option(help="Number of patients, each with five slides.", min=1, max=200)] = 5,
    first_patient: Annotated[
        int, typer.Option(help="How many patients to pass over: other patients of an equal cohort.", min=0)
    ] = 0,
    centres: Annotated[str, typer.Option(help="Centres 0 to 4, separated by commas.")] = "0,1,2,3,4",
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.", min=0)] = 0,
    mpp: Annotated[float, typer.Option(help="um per pixel of the finest level.", min=0.2, max=8)] = 1.0,
    size_um: Annotated[
        tuple[float, float] | None,
        typer.Option(help="Width and height of every slide in um: --size-um 5000 4000.", show_default="drawn"),
    ] = None,
    difficulty: Annotated[
        Literal["easy", "real"],
        typer.Option(help="real: tumour is told by its nuclei alone; easy: it also stains darker."),
    ] = "real",
    workers: Workers = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Make a synthetic cohort: slides, ASAP XML, stage_labels.csv and the exact truth.

    Example: sentinode phantom cohort --patient-count 10 --centres 0,1,2,3,4 --seed 7 --mpp 1.0
    """
    import json  # noqa: PLC0415

    from staging.bars import CohortProgress  # noqa: PLC0415
    from staging.phantom import drawn_slides, forget_cohort, generate_cohort, plan_cohort  # noqa: PLC0415  (slow import)
    from wsi.cores import usable_cores  # noqa: PLC0415
    from wsi.lock import OutputLock  # noqa: PLC0415

    chosen = parse_centres(centres)
    is_cohort = drawn_slides(output) is not None
    if output.exists() and any(path.name != ".lock" for path in output.iterdir()) and not (overwrite and is_cohort):
        mend = "name a new one, or give --overwrite" if is_cohort else "name a new one"
        raise ConfigurationError(output, "is not an empty directory", mend=f"{mend}; nothing was touched")
    try:
        plan_cohort(
            patients=patient_count, centres=chosen, seed=seed, mpp=mpp, size_um=size_um, first_patient=first_patient
        )
    except ValueError as error:
        raise ConfigurationError(
            None, str(error), mend="change --patient-count, --first-patient, --centres or --size-um"
        ) from error
    with OutputLock(output):
        forget_cohort(output)
        with CohortProgress(patient_count * 5, verb="slides drawn", tiles=False) as progress:
            truth = generate_cohort(
                output,
                patients=patient_count,
                centres=chosen,
                seed=seed,
                mpp=mpp,
                size_um=size_um,
                first_patient=first_patient,
                difficulty=difficulty,
                workers=workers or usable_cores(),
                on_slide=progress.slide,
            )
    typer.echo(json.dumps({"cohort": str(output), "slides": len(truth.slides), "patients": patient_count}))


def parse_centres(text: str) -> tuple[int, ...]:
    """Parse a comma-separated list of centres.

    Raises:
        ConfigurationError: something other than centres 0 to 4.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part in {"0", "1", "2", "3", "4"} for part in parts):
        raise ConfigurationError(
            None, f"--centres {text!r} is not a list of centres", mend="give numbers from 0 to 4, as 0,1,2"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))
