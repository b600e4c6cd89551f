"""The pages of a TIFF that form its pyramid, and what is wrong with a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from wsi.geometry import Level
from wsi.mask_rules import rule_in
from wsi.readers.base import measure_downsample
from wsi.readers.codec import can_decode
from wsi.readers.ome import is_ome
from wsi.readers.picture import extra_images, find_picture, has_bytes, is_extra, unreadable
from wsi.readers.scale import name_format, read_philips_spacings
from wsi.readers.structure import TiffPage

OVERVIEW_PX = 20_000
"""A slide whose coarsest level has a longer side is read nearly whole for every overview. Aperio's pyramids, the
coarsest, come down by factors of 4 to a few thousand px."""

ROUNDING_PX = 2.0
"""Both sides of a level are rounded to whole px, each by less than one: more is another shape."""

_LARGEST_STEP = 16.5

GREY = "is grey: tissue, stains and heatmaps need colours, so nothing found on it can be trusted; scan it in colour"
"""The warning of a slide with one sample per pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pyramid:
    """The levels of a TIFF, finest first, the page of each, and what a user should know of the other pages."""

    pages: tuple[TiffPage, ...]
    levels: tuple[Level, ...]
    warnings: tuple[str, ...]

    @property
    def has_opacity(self) -> bool:
        """Whether a fourth sample says how much of each pixel is to be seen."""
        return _has_opacity(self.pages[0])


def find_level_pages(pages: tuple[TiffPage, ...]) -> tuple[TiffPage, ...]:
    """The tiled pages that form the pyramid, finest first; empty if no page is tiled.

    The finest is the picture (``find_picture``). A level has its shape within the rounding of its sides, and is smaller
    than the one before it. Philips files store levels padded to whole tiles: there every tiled page not named otherwise
    is a level.
    """
    first = find_picture(pages)
    if first is None:
        return ()
    levels = [_described(first, pages)]
    for page in _candidates(first, pages):
        last = levels[-1]
        fits = page.width <= last.width and page.height <= last.height and has_bytes(page)
        if name_format(first) != "philips":
            fits = (
                fits
                and (page.width, page.height) != (last.width, last.height)
                and has_shape((first.width, first.height), (page.width, page.height))
            )
        if fits:
            levels.append(page)
    return tuple(levels)


def find_readable_pages(pages: tuple[TiffPage, ...]) -> tuple[TiffPage, ...]:
    """The level pages that can be decoded to the colours of the first; empty if the first cannot be decoded."""
    levels = find_level_pages(pages)
    if not levels or not can_decode(levels[0]):
        return ()
    return tuple(page for page in levels if can_decode(page) and (page.samples == 1) == (levels[0].samples == 1))


def measure_pyramid(path: str, pages: tuple[TiffPage, ...]) -> Pyramid:
    """The levels of a TIFF; pages that contradict level 0 are left out, each with a warning.

    Raises:
        SlideFormatError: the finest image is not tiled or cannot be decoded.
    """
    readable = find_readable_pages(pages)
    if not readable:
        raise unreadable(path, pages)
    first = readable[0]
    stated = _stated_downsamples(path, readable)
    kept = [page for page in readable if _stored_whole(first, page, stated.get(page.index))]
    levels = tuple(_level(index, first, page, stated.get(page.index)) for index, page in enumerate(kept))
    others = [*_candidates(first, pages), *_other_images(first, pages)]
    doubts = [_left_out(first, page, is_level=page in readable) for page in others if page not in kept]
    return Pyramid(pages=tuple(kept), levels=levels, warnings=(*doubts, *_colour_warnings(first)))


def _stated_downsamples(path: str, pages: tuple[TiffPage, ...]) -> dict[int, tuple[float, float]]:
    """The downsamples across and down that a Philips description states, by the index of the page."""
    first = pages[0]
    spacings = read_philips_spacings(path, first.description) if name_format(first) == "philips" else []
    if len(spacings) != len(pages):
        return {}
    down, across = spacings[0]
    return {page.index: (x / across, y / down) for page, (y, x) in zip(pages, spacings, strict=True)}


def _stored_whole(first: TiffPage, page: TiffPage, stated: tuple[float, float] | None) -> bool:
    """Whether a page holds what its stated downsamples promise: one factor, and no px fewer (padding is more)."""
    if stated is None:
        return True
    across, down = stated
    width, height = first.width / across, first.height / down
    is_one_factor = abs(across / down - 1) * max(width, height) < ROUNDING_PX
    return is_one_factor and page.width > width - ROUNDING_PX and page.height > height - ROUNDING_PX


def _level(index: int, first: TiffPage, page: TiffPage, stated: tuple[float, float] | None) -> Level:
    full, (width, height) = (first.width, first.height), (page.width, page.height)
    # As in OpenSlide: the mean of both axes' ratios; sizes from it, truncated to whole pixels.
    mean = None if stated is None else (stated[0] + stated[1]) / 2
    downsample = measure_downsample(full, (width, height), stated=mean) if index else 1.0
    if mean is not None and index:
        width, height = min(width, int(full[0] / downsample)), min(height, int(full[1] / downsample))
    return Level(
        index=index,
        width=max(1, width),
        height=max(1, height),
        tile_width=page.tile_width,
        tile_height=page.tile_height,
        downsample=downsample,
    )


def _left_out(first: TiffPage, page: TiffPage, *, is_level: bool) -> str:
    what = f"has a tiled page of {page.width} x {page.height} px"
    if not has_bytes(page):
        kind = (
            f"its samples have {page.bits[0]} bits" if page.bits[0] != 8 else f"it has {page.samples} samples per pixel"
        )
        return f"{what} that is no level: {kind}; it is left out"
    if is_level:
        why = "that its description gives another size"
    elif name_format(first) == "philips" or has_shape((first.width, first.height), (page.width, page.height)):
        why = "that is no level: it repeats a size or has other colours than level 0"
    else:
        across, down = first.width / page.width, first.height / page.height
        why = f"that is no level: smaller than level 0 by {across:.4g} across but by {down:.4g} down"
    return f"{what} {why}; it is left out: check the slide, or make its levels again with sentinode convert"


def _colour_warnings(first: TiffPage) -> tuple[str, ...]:
    if first.samples == 1:
        rule = rule_in(first.description)
        return (GREY if rule is None else f"is a mask of sentinode ({rule}), no slide",)
    if _has_opacity(first):
        return ("has opacity: what it hides is white, and under tissue counts as not looked at",)
    if first.samples == 4:
        return ("has a fourth sample per pixel that is not said to be opacity; it is left out: check the colours",)
    return ()


def _has_opacity(page: TiffPage) -> bool:
    return page.samples == 4 and page.extra_samples[:1] in ((1,), (2,))


def has_shape(full: tuple[int, int], reduced: tuple[int, int]) -> bool:
    """Whether a size (width, height) is the full one scaled down by one factor, within ``ROUNDING_PX``."""
    long, short = (0, 1) if full[0] >= full[1] else (1, 0)
    return abs(full[short] * reduced[long] / full[long] - reduced[short]) < ROUNDING_PX


def missing_levels(levels: Sequence[Level]) -> tuple[str, ...]:
    """A warning if so many levels are missing that overviews read far more pixels than they show."""
    coarsest = levels[-1]
    gaps = [
        f"between {finer.width} x {finer.height} and {coarser.width} x {coarser.height} px"
        for finer, coarser in pairwise(levels)
        if coarser.downsample / finer.downsample > _LARGEST_STEP
    ]
    if max(coarsest.shape) > OVERVIEW_PX:
        gaps.append(f"coarser than {coarsest.width} x {coarsest.height} px")
    mend = "pictures of it are slow; sentinode convert adds the missing levels"
    return (f"has no level {' nor '.join(gaps)}: {mend}",) if gaps else ()


def _described(first: TiffPage, pages: tuple[TiffPage, ...]) -> TiffPage:
    """The picture with the description of the file, which OME-XML gives in the first page only."""
    is_without = first.index > 0 and not first.description and is_ome(pages[0].description)
    return replace(first, description=pages[0].description) if is_without else first


def _candidates(first: TiffPage, pages: tuple[TiffPage, ...]) -> list[TiffPage]:
    """The tiled pages beside the picture that are neither masks nor named as something else, largest first.

    Those of a Philips file stay in its order.
    """
    others = [
        page
        for page in first.sub_pages or [page for page in pages if page.index != first.index]
        if page.is_tiled and not is_extra(page) and (first.sub_pages or page.index not in extra_images(pages))
    ]
    return others if name_format(first) == "philips" else sorted(others, key=lambda page: -page.width * page.height)


def _other_images(first: TiffPage, pages: tuple[TiffPage, ...]) -> list[TiffPage]:
    """The further images of a file whose levels are sub-directories."""
    if not first.sub_pages:
        return []
    extra = extra_images(pages)
    return [
        page
        for page in pages
        if page.index != first.index and page.is_tiled and not is_extra(page) and page.index not in extra
    ]
