"""``sentinode info``: facts about a slide file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from staging.commands.notices import EXIT_FATAL, EXIT_QUARANTINED, say, slide_notices
from staging.commands.options import SOURCE
from staging.commands.outputs import guarded
from wsi.errors import SlideError, plain, without_secrets

if TYPE_CHECKING:
    from wsi.slide import Slide


@guarded
def info(
    slides: Annotated[
        list[str],
        SOURCE,
        typer.Argument(metavar="SLIDE...", help="Slide files or their URLs (s3://, https://).", show_default=False),
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per slide instead of a table.")
    ] = False,
) -> None:
    """Show a slide's format, size, resolution, ICC profile and levels.

    Exit code 3: some slides cannot be read, 1: none can.

    Example: sentinode info patient_000_node_0.tif --json
    """
    from wsi.slide import Slide  # noqa: PLC0415  (slow import)

    failed = 0
    for path in slides:
        try:
            with Slide.open(path) as slide:
                facts = {**_facts(slide), **slide_notices(slide)}
        except SlideError as error:
            say(f"error: {error}")
            failed += 1
            continue
        typer.echo(json.dumps(facts) if as_json else _table(facts))
    if failed:
        raise typer.Exit(EXIT_FATAL if failed == len(slides) else EXIT_QUARANTINED)


def _facts(slide: Slide) -> dict[str, Any]:
    profile = slide.profile()
    return {
        "path": without_secrets(str(slide.path)),
        "format": slide.properties.get("sentinode.format"),
        "width": slide.levels[0].width,
        "height": slide.levels[0].height,
        "mpp": slide.mpp,
        "colour_profile": None if profile is None else {"name": plain(profile.name), "bytes": len(profile.data)},
        "levels": [
            {
                "width": level.width,
                "height": level.height,
                "downsample": level.downsample,
                "tile_width": level.tile_width,
                "tile_height": level.tile_height,
            }
            for level in slide.levels
        ],
    }


def _table(facts: dict[str, Any]) -> str:
    mpp, profile = facts["mpp"], facts["colour_profile"]
    colours = f"ICC profile: {profile['name']} ({profile['bytes']} bytes)" if profile else "no ICC profile"
    size = f"{facts['width']} x {facts['height']} px"
    if mpp:
        size += f", {facts['width'] * mpp / 1000:.2f} x {facts['height'] * mpp / 1000:.2f} mm"
    lines = [
        plain(facts["path"]),
        f"  format      {facts['format']}",
        f"  size        {size}",
        f"  resolution  {f'{mpp:.4f} um/px' if mpp else 'unknown: give it with --slide-mpp where a command asks'}",
        f"  colours     {colours}",
        "  level       width   height  downsample  tile",
    ]
    lines += [
        f"  {index:>5}  {level['width']:>10}  {level['height']:>7}  {level['downsample']:>10.4f}  "
        f"{level['tile_width']} x {level['tile_height']}"
        for index, level in enumerate(facts["levels"])
    ]
    return "\n".join(lines)
