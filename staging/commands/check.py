"""``sentinode check``: whether downloads are what their publishers gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from staging.commands.notices import say
from staging.commands.outputs import Output, always, guarded
from staging.errors import ConfigurationError, listed
from wsi.outputs import table

_SHOWN = 20


@guarded
def check(
    folder: Annotated[Path, typer.Argument(help="The folder in which the listed paths begin.", show_default=False)],
    md5: Annotated[
        Path, typer.Option("--md5", help="A list of MD5 sums, as the organisers' checksums.md5.", show_default=False)
    ],
    record: Annotated[
        Path | None,
        Output(kind=always(table("file", "bytes", "modified_ns", "md5", name="a record of checks")), is_kept=True),
        typer.Option(
            "--record",
            help="CSV of what was found good: what stands there and has not changed since is not read again.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Files read at a time.", min=1, show_default="one per core")
    ] = None,
    *,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Only part of the list was downloaded: exit with 0 all the same.")
    ] = False,
) -> None:
    """Compare files with a list of MD5 sums; exit code 1 if one is broken or missing.

    With --record a killed call goes on where it was, and a later one reads only what is new or has changed.

    Example: sentinode check CAMELYON17 --md5 CAMELYON17/checksums.md5 --record checked.csv
    """
    from staging.bars import CohortProgress  # noqa: PLC0415  (slow import)
    from staging.checksums import check_folder, read_sums  # noqa: PLC0415

    if not folder.is_dir():
        raise ConfigurationError(folder, "is no folder", mend="name the one in which the listed paths begin")
    sums = read_sums(md5)
    with CohortProgress(len(sums), verb="files checked", tiles=False) as progress:
        found = check_folder(folder, sums, record=record, workers=workers, on_file=progress.slide)
    for name, reason in list(found.broken.items())[:_SHOWN]:
        say(f"{name}: {reason}: download it again")
    if len(found.broken) > _SHOWN:
        say(f"and {len(found.broken) - _SHOWN} more are broken")
    if found.missing:
        say(f"{len(found.missing)} of {len(sums)} listed files are not there: {listed(found.missing)}")
    typer.echo(json.dumps(found.to_json()))
    if found.broken or (found.missing and not allow_missing):
        raise typer.Exit(1)
