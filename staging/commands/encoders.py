"""``sentinode encoders``: the public encoders whose weights ``features`` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from staging.commands.outputs import guarded

if TYPE_CHECKING:
    from wsi.cnn.encoders.description import Description


@guarded
def encoders(
    *, as_json: Annotated[bool, typer.Option("--json", help="Print the fields of their descriptions as JSON.")] = False
) -> None:
    """List the public encoders by name, with their tiles, features, licence, and whether commercial use is allowed.

    Their weights are not part of sentinode: the source has them, and the licence that counts. Any other plain vision
    transformer with timm's names works with a TOML file of the fields that --json prints, and weights = "PATH".

    Example: sentinode encoders --json
    """
    from wsi.cnn.encoders.description import known_encoders  # noqa: PLC0415  (slow import)

    known = known_encoders()
    if as_json:
        typer.echo(json.dumps({name: _fields(one) for name, one in known.items()}))
        return
    header = ("name", "tile px", "um/px", "features", "commercial", "licence", "source")
    rows = [
        (name, f"{one.size_px}", f"{one.mpp:g}", f"{one.features}", one.commercial, one.licence, one.source)
        for name, one in known.items()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _fields(described: Description) -> dict[str, Any]:
    """What a TOML file of it would hold."""
    return {key: value for key, value in asdict(described).items() if key != "name" and value is not None}
