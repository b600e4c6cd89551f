"""``sentinode convert``: slides to pyramidal BigTIFF, annotations from one format to another."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from staging.commands.notices import say, slide_notices
from staging.commands.options import SOURCE, AllowEmpty, SlideMpp, TileSize, Upsample
from staging.commands.outputs import Output, guarded
from staging.errors import ConfigurationError
from wsi.outputs import SLIDE_TIFF, OutputKind

_TILE_PX = 512


def _kind(path: Path, given: Mapping[str, Any]) -> OutputKind:
    from annotations.files.formats import SUFFIXES, file_kind  # noqa: PLC0415  (slow import)

    return file_kind(path) if Path(given["source"]).suffix.lower() in SUFFIXES else SLIDE_TIFF


@guarded
def convert(
    source: Annotated[
        str,
        SOURCE,
        typer.Argument(metavar="IN", help="A slide, or annotations (XML, GeoJSON, HALO).", show_default=False),
    ],
    target: Annotated[
        Path,
        Output(kind=_kind),
        typer.Argument(metavar="OUT", help="The file to write; for a slide .tif.", show_default=False),
    ],
    mpp: Annotated[
        float | None,
        typer.Option(help="Resample to this many um per pixel.", min=0.01, max=1000, show_default="the slide's own"),
    ] = None,
    slide_mpp: SlideMpp = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of encoded tiles.", min=1, max=100)] = 80,
    tile_size: TileSize = _TILE_PX,
    *,
    allow_empty: AllowEmpty = False,
    reencode: Annotated[
        bool, typer.Option("--reencode", help="Decode and re-encode JPEG tiles instead of copying them.")
    ] = False,
    upsample: Upsample = False,
    tissue_only: Annotated[
        bool, typer.Option("--tissue-only", help="Keep only the tiles with tissue; everything else reads as white.")
    ] = False,
) -> None:
    """Write any readable slide as a tiled pyramidal BigTIFF, or annotations in another format.

    JPEG tiles are copied without loss. Label, macro and thumbnail images and the vendor's description are left out.
    Prints what was done as JSON.

    Example: sentinode convert slide.svs slide.tif
    """
    from annotations.files.formats import SUFFIXES, convert_annotations  # noqa: PLC0415  (slow import)

    if Path(source).suffix.lower() in SUFFIXES:
        done = convert_annotations(Path(source), target, allows_empty=allow_empty)
        for warning in done["warnings"]:
            say(f"{source}: {warning}")
        typer.echo(json.dumps(done))
        return

    from staging.bars import CohortProgress  # noqa: PLC0415  (slow import)
    from wsi.slide import Slide  # noqa: PLC0415
    from wsi.store import storage  # noqa: PLC0415
    from wsi.tissue import find_tissue  # noqa: PLC0415
    from wsi.writing.convert import convert_slide  # noqa: PLC0415
    from wsi.writing.sparse import tissue_windows, write_sparse  # noqa: PLC0415

    if tissue_only:
        _check_tissue_only(mpp, reencode=reencode, tile_size=tile_size)
    start = time.perf_counter()
    with Slide.open(source, mpp=slide_mpp) as slide, CohortProgress(1, verb="slides converted") as progress:
        notices = slide_notices(slide)
        if mpp is not None and not upsample:
            slide.check_detail(mpp)
        news = partial(progress.tiles, slide.name)
        with storage(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        if tissue_only:
            windows = tissue_windows(slide, find_tissue(slide))
            done = asdict(write_sparse(slide, target, windows, quality=quality, on_tiles=news))
        else:
            done = asdict(
                convert_slide(
                    slide,
                    target,
                    mpp=mpp,
                    tile_size=tile_size,
                    quality=quality,
                    reencode=reencode,
                    on_tiles=news,
                )
            )
        progress.slide(slide.name)
    record = {{"is_exact": "exact", "file_bytes": "bytes"}.get(name, name): value for name, value in done.items()}
    seconds = round(time.perf_counter() - start, 3)
    typer.echo(json.dumps({"output": str(target), **record, **notices, "seconds": seconds}))


def _check_tissue_only(mpp: float | None, *, reencode: bool, tile_size: int) -> None:
    """Refuse options that change the tiles which --tissue-only keeps as they are.

    Raises:
        ConfigurationError: an option would change them.
    """
    if mpp is not None or reencode or tile_size != _TILE_PX:
        option = "--reencode" if reencode else "--mpp" if mpp is not None else "--tile-size"
        raise ConfigurationError(
            None, f"{option} makes new tiles, --tissue-only keeps the stored ones", mend="convert in two steps"
        )
