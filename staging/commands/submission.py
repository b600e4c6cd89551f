"""``sentinode submission``: submissions to the CAMELYON challenges, made from a run and checked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from staging.commands.conditions import OnlyIf
from staging.commands.help_texts import Group
from staging.commands.notices import say
from staging.commands.outputs import Output, guarded
from wsi.outputs import FileKind, OutputKind, table

app = typer.Typer(cls=Group, help="Make and check submissions to the CAMELYON challenges.", no_args_is_help=True)

_Task = Annotated[
    Literal["stages", "lesions", "slides"],
    typer.Argument(
        help="stages: CAMELYON17's table; lesions: CAMELYON16's folder of detections; slides: its probabilities.",
        show_default=False,
    ),
]


@app.callback()
def submission() -> None:
    """Make and check submissions to the CAMELYON challenges."""


_LESIONS = OnlyIf(lambda given: given["task"] == "lesions", "for other tasks than lesions")


def _kind(_: Path, given: Mapping[str, Any]) -> OutputKind:
    if given["task"] == "stages":
        return table("patient", "stage", name="a table of stages")
    if given["task"] == "slides":
        return FileKind(name="a table of probabilities", suffixes=(".csv",), is_one=_has_probabilities)
    from staging.lesions.detections import DetectionFolder  # noqa: PLC0415  (slow import)

    return DetectionFolder()


def _has_probabilities(file: BufferedReader) -> bool:
    return all(re.fullmatch(rb"[^,]+,[01]\.\d{6}\n", line) for line in file)


@app.command()
@guarded
def write(
    task: _Task,
    run: Annotated[Path, typer.Argument(help="The output of sentinode run.", show_default=False)],
    output: Annotated[
        Path,
        Output(kind=_kind),
        typer.Option("--output", "-o", help="The table, or the folder of the lesion task.", show_default=False),
    ],
    threshold: Annotated[
        float, _LESIONS, typer.Option(help="Detections must exceed this probability (lesions).", min=0, max=1)
    ] = 0.5,
    radius_um: Annotated[
        float | None,
        _LESIONS,
        typer.Option(
            help="Minimum distance in um between detections on a slide (lesions).",
            min=0,
            show_default="187: 12 cells of 64 px",
        ),
    ] = None,
    *,
    allow_incomplete: Annotated[
        bool, typer.Option("--allow-incomplete", help="Write it even if slides failed or patients are not staged.")
    ] = False,
) -> None:
    """Write a submission from the results of a run.

    Example: sentinode submission write stages results -o submission.csv
    """
    from staging.cohorts.submission import Task, write_submission  # noqa: PLC0415
    from staging.lesions.detections import RADIUS_UM  # noqa: PLC0415  (slow import)
    from staging.verifying import refuse_changed  # noqa: PLC0415

    refuse_changed(run)
    done = write_submission(
        Task(task),
        run,
        output,
        threshold=threshold,
        radius_um=RADIUS_UM if radius_um is None else radius_um,
        allow_incomplete=allow_incomplete,
    )
    for doubt in done.doubts:
        say(doubt)
    typer.echo(json.dumps(done.to_json()))


@app.command()
@guarded
def check(
    task: _Task,
    path: Annotated[Path, typer.Argument(help="The table, or the folder of the lesion task.", show_default=False)],
    expected: Annotated[
        Path | None,
        typer.Option(
            "--expect",
            help="What it must contain: a list, a table (stage_labels.csv, reference.csv) or a folder of slides.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Read a submission as the organisers do; missing entries are an error, suspicious ones are listed.

    Example: sentinode submission check lesions detections --expect reference.csv
    """
    from staging.cohorts.submission import Task, check_submission, read_names, require_complete  # noqa: PLC0415  (slow import)

    names = None if expected is None else read_names(expected, Task(task))
    found = check_submission(Task(task), path, expected=names)
    require_complete(found)
    typer.echo(json.dumps(found.to_json()))
