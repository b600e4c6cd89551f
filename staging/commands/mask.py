"""``sentinode mask``: contours to mask pyramids, for one slide or many."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from staging.commands.options import Workers

if TYPE_CHECKING:
    from annotations.masks.drawing import MaskJob

_FILES = (".tif", ".tiff", ".btf")
EXIT_FATAL, EXIT_SOME_FAILED = 1, 3


def mask(
    contours: Annotated[
        list[str],
        typer.Argument(
            metavar="XML...", help="ASAP XML, ImageScope XML or GeoJSON; also quoted patterns.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="MASK.tif|FOLDER", help="The mask, or a folder.", show_default=False),
    ],
    slide: Annotated[Path | None, typer.Option(help="The slide of the contours.", show_default=False)] = None,
    slides: Annotated[
        Path | None, typer.Option(help="A folder that holds a slide of each file's name.", show_default=False)
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="WIDTH HEIGHT", help="Level 0 in px, in place of a slide.", show_default=False),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="um per level-0 px: with --size, or for slides that do not say it.", min=0.01, max=100),
    ] = None,
    out_mpp: Annotated[
        float | None, typer.Option(help="um per pixel of the mask.", min=0.01, max=1000, show_default="level 0")
    ] = None,
    out_level: Annotated[
        int | None, typer.Option(help="Let the mask have the grid of this level of the slide.", min=0)
    ] = None,
    values: Annotated[
        Literal["0/255", "asap", "0/1"],
        typer.Option(help="Background/tumour; asap: 0 background, 1 tumour, 2 cut out of it."),
    ] = "0/255",
    reduce: Annotated[
        Literal["max", "centre"],
        typer.Option(help="A coarse pixel is tumour where any level-0 px is, or where its centre is."),
    ] = "max",
    groups: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE.toml", help="What groups mean: camelyon16, camelyon17 or a TOML file."),
    ] = None,
    tile_size: Annotated[int, typer.Option(help="Side of the tiles, a multiple of 16.", min=16)] = 512,
    compression: Annotated[
        Literal["deflate", "lzw", "zstd"], typer.Option(help="Deflate opens everywhere; zstd is the quickest.")
    ] = "deflate",
    workers: Workers = None,
    *,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="No outline of tumour is no error.")] = False,
) -> None:
    """Paint contours as a pyramidal mask TIFF with the values of CAMELYON16 (0/255), of ASAP (0/1/2) or 0/1.

    One line of JSON per mask: its size, um per px, tumour in px and mm2. With several files a bad one is named and the
    others go on; the exit code is then 3.

    Example: sentinode mask 'annotations/*.xml' --slides images -o masks
    """
    from annotations.groups import group_map  # noqa: PLC0415  (slow import)
    from annotations.masks.drawing import MaskJob, MaskRecipe  # noqa: PLC0415
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from wsi.cores import usable_cores  # noqa: PLC0415

    _check(slide=slide, slides=slides, size=size, mpp=mpp, out_mpp=out_mpp, out_level=out_level, tile_size=tile_size)
    files = _named(contours)
    targets = _targets(files, output)
    if slide is not None and len(files) > 1:
        raise ConfigurationError(None, f"--slide is one and the files are {len(files)}", mend="use --slides FOLDER")
    workers = min(workers or usable_cores(), len(files))
    recipe = MaskRecipe(
        size=size,
        slide_mpp=mpp,
        mpp=out_mpp,
        level=out_level,
        values=values,
        reduce=reduce,
        tile_size=tile_size,
        compression=compression,
        groups=group_map(groups) if groups is not None else {},
        allows_empty=allow_empty,
        threads=max(1, usable_cores() // workers),
    )
    found = _slides_by_name(slides)
    jobs = [
        MaskJob(
            annotation_file=file,
            slide=slide or found.get(file.stem.lower()),
            slides=slides,
            target=target,
            recipe=recipe,
        )
        for file, target in zip(files, targets, strict=True)
    ]
    _refuse_overwriting(jobs)
    failures = _draw_all(jobs, workers)
    if failures:
        raise typer.Exit(EXIT_FATAL if failures == len(jobs) else EXIT_SOME_FAILED)


def _draw_all(jobs: Sequence[MaskJob], workers: int) -> int:
    """Make all masks, print what came of each and return how many failed.

    Raises:
        PathologyError: the only mask failed.
        StorageError: the output side failed.
    """
    from annotations.masks.drawing import draw_mask  # noqa: PLC0415
    from staging.runs.bars import CohortProgress  # noqa: PLC0415
    from staging.runs.cluster import each  # noqa: PLC0415  (slow import)
    from wsi.errors import StorageError  # noqa: PLC0415

    for folder in {job.target.parent for job in jobs}:
        _make(folder)
    failures = 0
    with CohortProgress(len(jobs), verb="masks") as progress:
        for job, outcome in each(draw_mask, jobs, workers=workers, on_tiles=progress.tiles):
            if isinstance(outcome, StorageError) or (isinstance(outcome, BaseException) and len(jobs) == 1):
                raise outcome
            if isinstance(outcome, BaseException):
                failures += 1
                progress.slide(job.annotation_file.name, "failed")
                sys.stderr.write(f"sentinode: error: {_line(job, outcome)}\n")
            else:
                progress.slide(job.annotation_file.name)
                typer.echo(json.dumps(outcome, ensure_ascii=False))
    return failures


def _check(
    *,
    slide: Path | None,
    slides: Path | None,
    size: tuple[int, int] | None,
    mpp: float | None,
    out_mpp: float | None,
    out_level: int | None,
    tile_size: int,
) -> None:
    """Refuse options that contradict one another.

    Raises:
        ConfigurationError: they do.
    """
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from wsi.writing.convert import MAX_SIDE_PX  # noqa: PLC0415  (slow import)

    if sum(option is not None for option in (slide, slides, size)) != 1:
        raise ConfigurationError(
            None, "a mask needs the size of its slide", mend="give one of --slide, --slides and --size"
        )
    if size is not None and not (min(size) >= 1 and max(size) <= MAX_SIDE_PX):
        raise ConfigurationError(
            None, f"--size {size[0]} {size[1]} is no slide", mend=f"give WIDTH HEIGHT in px, each 1 to {MAX_SIDE_PX}"
        )
    if size is not None and mpp is None:
        raise ConfigurationError(None, "--size does not say how large a pixel is", mend="give --mpp, too")
    if out_mpp is not None and out_level is not None:
        raise ConfigurationError(None, "--out-mpp and --out-level exclude each other", mend="give one of them")
    if size is not None and out_level is not None:
        raise ConfigurationError(None, "--out-level needs a slide that has levels", mend="give --slide or --out-mpp")
    if tile_size % 16 or tile_size > 4096:
        raise ConfigurationError(
            None, f"--tile-size {tile_size} is no multiple of 16 up to 4096", mend="take 256, 512 or 1024"
        )


def _named(contours: Sequence[str]) -> list[Path]:
    """The files that were named, each once; patterns stand for the files they fit.

    Raises:
        ConfigurationError: a pattern fits nothing.
    """
    from staging.errors import ConfigurationError  # noqa: PLC0415

    files: dict[Path, None] = {}
    for name in contours:
        if Path(name).exists() or not has_magic(name):
            files[Path(name)] = None
            continue
        fitting = sorted(glob(name, recursive=True))  # noqa: PTH207  (Path.glob takes no absolute patterns)
        if not fitting:
            raise ConfigurationError(name, "no file fits the pattern", mend="check it, and that the shell leaves it")
        files |= dict.fromkeys(map(Path, fitting))
    return list(files)


def _targets(files: Sequence[Path], output: Path) -> list[Path]:
    """Where each mask goes: OUTPUT, where that is a TIFF's name; ``OUTPUT/<name>_mask.tif`` otherwise.

    Raises:
        ConfigurationError: several masks would have the same name.
    """
    from staging.errors import ConfigurationError  # noqa: PLC0415

    if output.suffix.lower() in _FILES and not output.is_dir():
        if len(files) > 1:
            raise ConfigurationError(output, f"is one file and the masks are {len(files)}", mend="name a folder")
        return [output]
    if output.is_file():
        raise ConfigurationError(
            output, "is neither a folder nor the name of a TIFF", mend=f"use a folder or one of {', '.join(_FILES)}"
        )
    seen: dict[str, Path] = {}
    for file in files:
        twin = seen.setdefault(file.stem.lower(), file)
        if twin is not file:
            raise ConfigurationError(file, f"its mask would have the name of that of {twin}", mend="rename one of them")
    return [output / f"{file.stem}_mask.tif" for file in files]


def _slides_by_name(folder: Path | None) -> dict[str, Path]:
    from staging.cohorts.camelyon import find_slides  # noqa: PLC0415  (slow import)

    return {} if folder is None else {slide.name.lower(): slide.path for slide in find_slides(folder)}


def _refuse_overwriting(jobs: Sequence[MaskJob]) -> None:
    from staging.errors import ConfigurationError  # noqa: PLC0415
    from wsi.writing.convert import is_same_file  # noqa: PLC0415  (slow import)

    for job in jobs:
        for source in (job.annotation_file, job.slide):
            if source is not None and is_same_file(source, job.target):
                raise ConfigurationError(job.target, "is read for the mask", mend="name another output")


def _make(folder: Path) -> None:
    from wsi.errors import StorageError  # noqa: PLC0415

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            folder, f"cannot be made: {error.strerror or error}", mend="choose another output"
        ) from error


def _line(job: MaskJob, error: BaseException) -> str:
    """An error in one line that names the file."""
    from wsi.errors import PathologyError  # noqa: PLC0415

    text = (
        str(error) if isinstance(error, PathologyError) else f"{job.annotation_file}: {type(error).__name__}: {error}"
    )
    return " ".join(text.split())
