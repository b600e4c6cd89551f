"""One annotation file to its mask pyramid, on the requested grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from annotations.annotation import Annotation, Role
from annotations.files.formats import read_annotation_set
from annotations.groups import require_role
from annotations.masks.lost import lost_outlines
from annotations.masks.mask_file import write_annotation_mask
from annotations.polygons import check_within, tumour_area
from wsi.errors import SlideError, SlideNotFoundError
from wsi.geometry import Frame
from wsi.readers.resolution import Mpp, um_of
from wsi.slide import Slide

_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskRecipe:
    """How every mask of a call is drawn.

    Attributes:
        size: (width, height) of level 0 in px where there is no slide.
        slide_mpp: um per level-0 px, where the slide states none, and for mpp where there is no slide.
        mpp: um per pixel of the mask; None with ``level`` None is level 0.
        level: the level of the slide whose grid the mask has.
        values: see write_annotation_mask, as for the following ones.
        reduce: how coarse pixels are derived from level 0.
        tile_size: side of a tile in px.
        compression: of the tiles.
        groups: roles of further groups.
        allows_empty: a mask without tumour is not an error.
        threads: per slide.
    """

    size: tuple[int, int] | None
    slide_mpp: Mpp | None
    mpp: float | None
    level: int | None
    values: Literal["0/255", "asap", "0/1"]
    reduce: Literal["max", "centre"]
    tile_size: int
    compression: Literal["deflate", "lzw", "zstd"]
    groups: dict[str, Role]
    allows_empty: bool
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskJob:
    """One mask to be drawn; ``slides`` is where the slide of that name was looked for."""

    annotation_file: Path
    slide: Path | None
    slides: Path | None
    target: Path
    recipe: MaskRecipe


def draw_mask(job: MaskJob, on_tiles: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Draw one mask; ``on_tiles`` is called with (the file's name, tiles done, tiles in all).

    Returns:
        ``mask`` and ``annotations`` (paths), ``size`` (width, height in px) and ``mpp`` (um per px or None) of the
        mask's finest level, ``values``, ``reduce``, ``tumour_px`` (pixels of that level that are tumour),
        ``tumour_mm2`` (of the outlines; None without mpp). ``warnings``: what is doubtful about the slide or odd about
        the annotations.

    Raises:
        AnnotationError: the file is missing or bad, has no tumour, an unknown group, or does not fit the slide; or the
            mask would be blank.
        SlideError: the slide is bad, or its resolution is needed and unknown.
        SlideNotFoundError: there is no slide of that name.
        StorageError: the mask cannot be written.
    """
    recipe = job.recipe
    whole = read_annotation_set(job.annotation_file, recipe.groups)
    drawn = whole.annotations
    if not recipe.allows_empty:
        require_role(drawn, Role.TUMOUR, job.annotation_file)
    (width, height), frame, warnings = _grid(job)
    check_within(drawn, width, height, path=job.annotation_file)
    done = write_annotation_mask(
        job.target,
        drawn,
        frame,
        values=recipe.values,
        reduce=recipe.reduce,
        tile_size=recipe.tile_size,
        compression=recipe.compression,
        workers=recipe.threads,
        allows_blank=recipe.allows_empty,
        on_tiles=lambda done, total: on_tiles(job.annotation_file.stem, done, total),
    )
    pixel_um = None if frame.mpp is None else frame.pixel_um
    lost = _lost_warnings(lost_outlines(drawn, _looked_at(frame, recipe.reduce)), recipe.reduce)
    return {
        "mask": str(job.target),
        "annotations": str(job.annotation_file),
        "size": [frame.shape[1], frame.shape[0]],
        "mpp": pixel_um,
        "values": recipe.values,
        "reduce": recipe.reduce,
        "tumour_px": done.tumour_px,
        "tumour_mm2": None if frame.mpp is None else round(tumour_area(drawn).area * frame.mpp**2 / 1e6, 6),
        "warnings": [
            *warnings,
            *(f"{job.annotation_file.name}: {warning}" for warning in (*whole.warnings, *lost)),
        ],
    }


def _looked_at(frame: Frame, reduce: Literal["centre", "max"]) -> Frame:
    """The grid whose pixel centres decide what is tumour."""
    return replace(frame, downsample=1.0) if reduce == "max" and frame.downsample > 1 else frame


def _lost_warnings(lost: Sequence[Annotation], reduce: Literal["centre", "max"]) -> list[str]:
    if not lost:
        return []
    names = ", ".join(sorted({one.name for one in lost})[:_NAMED])
    finer = "draw the mask finer, or with --reduce max"
    mend = "they are smaller than a pixel of level 0" if reduce == "max" else finer
    return [f"{len(lost)} of its outlines hold no pixel's centre and are not in the mask ({names}): {mend}"]


def _grid(job: MaskJob) -> tuple[tuple[int, int], Frame, tuple[str, ...]]:
    """(width, height) of level 0 in px, the grid of the mask, and what is doubtful about the slide."""
    recipe = job.recipe
    if recipe.size is not None:
        width, height = recipe.size
        whole = Frame(
            x=0.0,
            y=0.0,
            downsample=1.0,
            shape=(height, width),
            mpp=None if recipe.slide_mpp is None else um_of(recipe.slide_mpp),
        )
        if recipe.mpp is None or recipe.slide_mpp is None:
            return recipe.size, whole, ()
        return recipe.size, whole.resampled(recipe.mpp / um_of(recipe.slide_mpp)), ()
    if job.slide is None:
        raise SlideNotFoundError(
            job.annotation_file,
            f"there is no slide {job.annotation_file.stem} in {job.slides}",
            mend="rename either, or name the slide with --slide",
        )
    with Slide.open(job.slide, mpp=recipe.slide_mpp) as slide:
        rows, columns = slide.frame.shape
        if recipe.mpp is not None:
            return (columns, rows), slide.frame_at(recipe.mpp), slide.warnings
        level = recipe.level or 0
        if level >= len(slide.levels):
            last = len(slide.levels) - 1
            raise SlideError(slide.path, f"has no level {level}", mend=f"--level must be 0 to {last}")
        return (columns, rows), slide.frame_of(level), slide.warnings
