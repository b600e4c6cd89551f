"""``sentinode mask``: annotations to mask pyramids, for one slide or many."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from staging.commands.notices import say
from staging.commands.options import SOURCE, AllowEmpty, Overwrite, SlideMpp, TileSize, Workers
from staging.commands.outputs import Output, guarded
from staging.errors import ConfigurationError
from wsi.outputs import MASK_TIFF, TIFFS, FolderKind

EXIT_FATAL, EXIT_SOME_FAILED = 1, 3


@guarded
def mask(
    annotations: Annotated[
        list[str],
        SOURCE,
        typer.Argument(
            metavar="XML...",
            help="ASAP XML, ImageScope XML, HALO or GeoJSON files, folders of them, or quoted patterns.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        Output(kind=lambda path, given: MASK_TIFF if _is_one(path, given) else FolderKind()),
        typer.Option("--output", "-o", metavar="MASK.tif|FOLDER", help="The mask, or a folder.", show_default=False),
    ],
    slide: Annotated[Path | None, typer.Option(help="The slide that was annotated.", show_default=False)] = None,
    slides: Annotated[
        Path | None, typer.Option(help="A folder with a slide named like each file.", show_default=False)
    ] = None,
    slide_size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="WIDTH HEIGHT", help="Size of level 0 in px, instead of a slide.", show_default=False),
    ] = None,
    slide_mpp: SlideMpp = None,
    mpp: Annotated[
        float | None, typer.Option(help="um per pixel of the mask.", min=0.01, max=1000, show_default="level 0")
    ] = None,
    level: Annotated[int | None, typer.Option(help="Use the grid of this slide level for the mask.", min=0)] = None,
    values: Annotated[
        Literal["0/255", "asap", "0/1"],
        typer.Option(help="Values of background/tumour; asap: 0 background, 1 tumour, 2 cut out of it."),
    ] = "0/255",
    reduce: Annotated[
        Literal["centre", "max"],
        typer.Option(
            help="A coarse pixel is tumour if its centre is (areas are right), or if any of its level-0 px is "
            "(no lesion is lost)."
        ),
    ] = "centre",
    groups: Annotated[
        str | None,
        SOURCE,
        typer.Option(metavar="NAME|FILE.toml", help="What groups mean: camelyon16, camelyon17 or a TOML file."),
    ] = None,
    tile_size: TileSize = 512,
    compression: Annotated[
        Literal["deflate", "lzw", "zstd"], typer.Option(help="Deflate opens everywhere; zstd is the fastest.")
    ] = "deflate",
    workers: Workers = None,
    *,
    allow_empty: AllowEmpty = False,
    overwrite: Overwrite = False,
) -> None:
    """Paint annotations as a pyramidal mask TIFF with the values of CAMELYON16 (0/255), ASAP (0/1/2) or 0/1.

    Prints one line of JSON per mask: size, um per px, tumour in px and mm2. With several files a bad one is reported
    and the others go on; the exit code is then 3.

    Example: sentinode mask 'annotations/*.xml' --slides images -o masks
    """
    from annotations.groups import group_map  # noqa: PLC0415  (slow import)
    from annotations.masks.drawing import MaskRecipe  # noqa: PLC0415
    from staging.bars import CohortProgress  # noqa: PLC0415
    from staging.cohorts.names import slide_key  # noqa: PLC0415
    from staging.runs.masks import draw_masks, mask_jobs  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    _check(slide=slide, slides=slides, size=slide_size, slide_mpp=slide_mpp, mpp=mpp, level=level)
    files = _named(annotations)
    processes = min(workers or usable_cores(), len(files))
    recipe = MaskRecipe(
        size=slide_size,
        slide_mpp=slide_mpp,
        mpp=mpp,
        level=level,
        values=values,
        reduce=reduce,
        tile_size=tile_size,
        compression=compression,
        groups=group_map(groups) if groups is not None else {},
        allows_empty=allow_empty,
        threads=max(1, usable_cores() // processes),
    )
    jobs = mask_jobs(files, output, slide=slide, slides=slides, recipe=recipe, overwrite=overwrite)
    if slide is not None and slide_key(files[0].name) != slide_key(slide.name):
        say(f"{files[0].name} is drawn for {slide.name}, which is named otherwise: check that it is of this slide")
    failures = 0
    with CohortProgress(len(jobs), verb="masks") as progress:
        for job, outcome in draw_masks(jobs, workers=processes, on_tiles=progress.tiles):
            if isinstance(outcome, str):
                failures += 1
                progress.slide(job.annotation_file.name, "failed")
                sys.stderr.write(f"sentinode: error: {outcome}\n")
            else:
                progress.slide(job.annotation_file.name)
                for warning in outcome["warnings"]:
                    say(f"{job.slide or job.annotation_file}: {warning}")
                typer.echo(json.dumps(outcome))
    if failures:
        raise typer.Exit(EXIT_FATAL if failures == len(jobs) else EXIT_SOME_FAILED)


def _is_one(output: Path, given: Mapping[str, Any]) -> bool:
    """Return whether a single mask is meant: also by a name that no mask can have."""
    return is_one_mask(output) or bool(output.suffix and given["slides"] is None and not output.is_dir())


def is_one_mask(output: Path) -> bool:
    """Return whether an output is named like a TIFF, and is not a folder."""
    return output.suffix.lower() in TIFFS and not output.is_dir()


def _check(
    *,
    slide: Path | None,
    slides: Path | None,
    size: tuple[int, int] | None,
    slide_mpp: object,
    mpp: float | None,
    level: int | None,
) -> None:
    """Refuse options that contradict one another.

    Raises:
        ConfigurationError: some do.
    """
    from wsi.writing.convert import MAX_SIDE_PX  # noqa: PLC0415  (slow import)

    if sum(option is not None for option in (slide, slides, size)) != 1:
        raise ConfigurationError(
            None, "a mask needs the size of its slide", mend="give one of --slide, --slides or --slide-size"
        )
    if size is not None and not (min(size) >= 1 and max(size) <= MAX_SIDE_PX):
        raise ConfigurationError(
            None,
            f"--slide-size {size[0]} {size[1]} is not the size of a slide",
            mend=f"give WIDTH HEIGHT in px, each 1 to {MAX_SIDE_PX}",
        )
    if size is not None and slide_mpp is None:
        raise ConfigurationError(None, "--slide-size does not give the size of a pixel", mend="also give --slide-mpp")
    if mpp is not None and level is not None:
        raise ConfigurationError(None, "--mpp and --level exclude each other", mend="give only one")
    if size is not None and level is not None:
        raise ConfigurationError(None, "--level needs a slide with levels", mend="give --slide or --mpp")


def _named(names: Sequence[str]) -> list[Path]:
    """List the named files, each once; a folder stands for its annotations, a pattern for the files it matches.

    Raises:
        ConfigurationError: a pattern matches nothing, or a folder has no annotations.
    """
    from annotations.files.formats import SUFFIXES  # noqa: PLC0415  (slow import)

    files: dict[Path, None] = {}
    for name in names:
        if Path(name).is_dir():
            within = sorted(Path(name).iterdir())
            drawn = [one for one in within if one.suffix.lower() in SUFFIXES and one.name[0] != "." and one.is_file()]
            if not drawn:
                raise ConfigurationError(name, "is a folder without annotations", mend="name their files")
            files |= dict.fromkeys(drawn)
            continue
        if Path(name).exists() or not has_magic(name):
            files[Path(name)] = None
            continue
        fitting = sorted(glob(name, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute patterns)
        if not fitting:
            raise ConfigurationError(name, "no file matches the pattern", mend="check it, and quote it for the shell")
        files |= dict.fromkeys(map(Path, fitting))
    return list(files)
