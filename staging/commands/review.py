"""``sentinode review``: the slides on which a run and the reference differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.conditions import only_with
from staging.commands.notices import cohort_notices, say
from staging.commands.options import SlideMpp
from staging.commands.outputs import Output, always, guarded
from wsi.outputs import FileKind, FolderKind, begins, table

_PAGE = FileKind(name="a page", suffixes=(".html",), is_one=begins(b"<!doctype html>", b"<!DOCTYPE html>"))
_LIST = table("slide", "reference", "found", name="a review")


@guarded
def review(
    run: Annotated[Path, typer.Argument(help="The output of sentinode run.", show_default=False)],
    reference: Annotated[
        Path, typer.Argument(help="stage_labels.csv, or a table slide,label; also as -r.", show_default=False)
    ],
    output: Annotated[
        Path,
        Output(kind=always(FolderKind(files={"review.html": _PAGE, "review.csv": _LIST}, sole=("pictures",)))),
        typer.Option("--output", "-o", help="Folder for the page.", show_default=False),
    ],
    slides: Annotated[
        list[Path] | None,
        typer.Option(help="Directory of the slides, for close-ups of lesions.", show_default="overlays only"),
    ] = None,
    slide_mpp: Annotated[SlideMpp, only_with("slides")] = None,
    most: Annotated[int | None, typer.Option(help="Maximum number to show.", min=1, show_default="all")] = None,
) -> None:
    """List the slides on which model and reference differ, most certain first, with pictures.

    Example: sentinode review results stage_labels.csv -o review --slides CAMELYON17/training
    """
    from staging.cohorts.camelyon import list_slides, read_label_table  # noqa: PLC0415  (slow import)
    from staging.runs.review import find_disagreements, write_review  # noqa: PLC0415
    from staging.verifying import refuse_changed  # noqa: PLC0415

    listing = list_slides(slides) if slides else None
    files = None if listing is None else {slide.name: slide.path for slide in listing.slides}
    notices = {} if listing is None else cohort_notices(listing, mpp=slide_mpp)
    refuse_changed(run)
    found, compared = find_disagreements(run, read_label_table(reference))
    shown = found[:most]
    if files is not None and shown and not any(one.slide in files for one in shown):
        say(f"none of the slides that differ is in {', '.join(map(str, slides or ()))}: there are no close-ups")
    write_review(output, shown, compared=compared, run=run, slides=files, slide_mpp=slide_mpp)
    typer.echo(
        json.dumps(
            {
                "review": str(output / "review.html"),
                "compared": compared,
                "differ": len(found),
                "kinds": {kind: sum(one.kind == kind for one in found) for kind in ("missed", "false alarm", "size")},
                **notices,
            }
        )
    )
