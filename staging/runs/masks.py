"""Masks of many annotation files, each with its slide; a bad file is reported and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from annotations.masks.drawing import MaskJob, MaskRecipe, draw_mask
from staging.cohorts.camelyon import find_slides
from staging.cohorts.names import bare_name, slide_key
from staging.errors import ConfigurationError
from staging.runs.cluster import TileNews, each
from wsi.errors import PathologyError, StorageError
from wsi.outputs import MASK_TIFF, TIFFS, check_output
from wsi.store import storage


def mask_jobs(
    files: Sequence[Path],
    output: Path,
    *,
    slide: Path | None = None,
    slides: Path | None = None,
    recipe: MaskRecipe,
    overwrite: bool = False,
) -> list[MaskJob]:
    """List the masks to draw; nothing is read or written yet.

    Args:
        files: annotation files.
        output: the mask, or a folder of ``NAME_mask.tif``.
        slide: the slide of the only file.
        slides: a folder with a slide named like each file.
        recipe: how every mask is made.
        overwrite: replace earlier masks.

    Raises:
        ConfigurationError: two masks would have the same name.
        OutputExistsError: a mask would replace an input or another file.
        CohortError: the folder has no slides.
    """
    if slide is not None and len(files) > 1:
        raise ConfigurationError(None, f"--slide names one slide for {len(files)} files", mend="use --slides FOLDER")
    targets = _targets(files, output)
    named = {} if slides is None else {slide_key(found.name): found.path for found in find_slides(slides)}
    jobs = [
        MaskJob(
            annotation_file=file,
            slide=slide or named.get(slide_key(file.name)),
            slides=slides,
            target=target,
            recipe=recipe,
        )
        for file, target in zip(files, targets, strict=True)
    ]
    inputs = {*files, *(job.slide for job in jobs if job.slide is not None)}
    for job in jobs:
        check_output(job.target, MASK_TIFF, inputs=inputs, overwrite=overwrite)
    return jobs


def draw_masks(
    jobs: Sequence[MaskJob], *, workers: int, on_tiles: TileNews
) -> Iterator[tuple[MaskJob, dict[str, Any] | str]]:
    """Draw all masks and yield each as it finishes, with the result of draw_mask or the error as one line.

    Args:
        jobs: what to draw.
        workers: number of processes.
        on_tiles: called with (file name, tiles done, total tiles).

    Raises:
        PathologyError: the only mask failed.
        StorageError: a mask cannot be written.
    """
    for folder in {job.target.parent for job in jobs}:
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
    for job, outcome in each(draw_mask, jobs, workers=workers, on_tiles=on_tiles):
        if isinstance(outcome, StorageError) or (isinstance(outcome, BaseException) and len(jobs) == 1):
            raise outcome
        yield job, _line(job, outcome) if isinstance(outcome, BaseException) else outcome


def _line(job: MaskJob, error: BaseException) -> str:
    known = isinstance(error, PathologyError)
    text = str(error) if known else f"{job.annotation_file}: {type(error).__name__}: {error}"
    return " ".join(text.split())


def _targets(files: Sequence[Path], output: Path) -> list[Path]:
    """Return the target of each mask: OUTPUT if it is named like a TIFF, else ``OUTPUT/<name>_mask.tif``."""
    if output.suffix.lower() in TIFFS and not output.is_dir():
        if len(files) > 1:
            raise ConfigurationError(output, f"is one file for {len(files)} masks", mend="name a folder")
        return [output]
    if output.is_file():
        known = ", ".join(TIFFS)
        raise ConfigurationError(
            output, "is neither a folder nor the name of a TIFF", mend=f"use a folder or a suffix among {known}"
        )
    seen: dict[str, Path] = {}
    for file in files:
        twin = seen.setdefault(slide_key(file.name), file)
        if twin is not file:
            raise ConfigurationError(
                file, f"its mask would have the same name as that of {twin}", mend="rename one of them"
            )
    return [output / f"{bare_name(file.name)}_mask.tif" for file in files]
