"""Which page of a TIFF is the picture: the largest; and by what name a file is refused that has none."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wsi.errors import SlideFormatError
from wsi.readers.ome import OmeImage, is_ome, read_images
from wsi.readers.structure import TiffPage

_NOT_PICTURES = ("label", "macro", "thumbnail", "overview")
_MASK_BIT = 4
_BITS, _MOST_SAMPLES = 8, 4
_FORMATS = (1, 4)  # unsigned, and "undefined", which some writers use for plain unsigned bytes
_GREY = (0, 1)  # white or black is zero
_COMPRESSIONS = {
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    6: "old-style JPEG, which TIFF has withdrawn (Technical Note 2),",
    22_610: "JPEG XR",
    33_004: "a kind of JPEG 2000 that is not public",
    34_887: "LERC",
    34_892: "JPEG-LS",
    34_925: "LZMA",
    34_933: "PNG",
    34_934: "JPEG XR",
    50_001: "WebP",
    50_002: "JPEG XL",
    52_546: "JPEG XL",
}
"""Names of the compressions that no reader here decodes."""

_IMAGEJ = re.compile(r"^(images|channels|slices|frames)=(\d{1,9})\s*$", re.MULTILINE | re.ASCII)
_AKOYA = "<PerkinElmer-QPI-ImageDescription"
_AS_RGB = "write it with all colours of a pixel in one page (RGB)"
_RGB_NAMES = ({"red", "green", "blue"}, {"r", "g", "b"})


def find_picture(pages: Sequence[TiffPage]) -> TiffPage | None:
    """The largest tiled page, of equally large ones the first in colours; None if no page is tiled.

    Masks and what is named as a label, macro or thumbnail are none.
    """
    tiled = [page for page in pages if page.is_tiled and not is_extra(page)]
    return max(tiled, key=lambda page: (page.width * page.height, page.samples >= 3), default=None)


def is_extra(page: TiffPage) -> bool:
    """Whether a page is a mask, or named as a label, macro or thumbnail."""
    return bool(page.subfile & _MASK_BIT) or page.description.strip().lower().startswith(_NOT_PICTURES)


def extra_images(pages: Sequence[TiffPage]) -> frozenset[int]:
    """The indices of the pages that OME-XML calls a label, macro or thumbnail, if it has an image for each page."""
    images = _ome_images(pages)
    if len(images) != len(pages):
        return frozenset()
    return frozenset(
        page.index
        for page, image in zip(pages, images, strict=True)
        if any(word in image.name.lower() for word in _NOT_PICTURES)
    )


def has_bytes(page: TiffPage) -> bool:
    """Whether samples are of 8 bits, one to four for each pixel."""
    return set(page.bits) == {_BITS} and page.sample_format in _FORMATS and 1 <= page.samples <= _MOST_SAMPLES


def check_picture(path: str, pages: Sequence[TiffPage]) -> None:
    """Refuse a file of which only a part would be seen, or whose pixels are of another kind, by the name of that.

    What has no tiles passes: another reader may know it.

    Raises:
        SlideFormatError: fluorescence, a stack of focal planes, a series in time, colours in pages of their own, grey
            with opacity, samples of other than 8 bits, or a compression that no reader knows.
    """
    first = find_picture(pages)
    if first is None:
        return
    _refuse_series(path, first, pages)
    where = f"directory {first.index}"
    if set(first.bits) != {_BITS} or first.sample_format not in _FORMATS:
        kind = f"samples of {first.bits[0]} bits and format {first.sample_format}"
        raise SlideFormatError(path, f"has {kind}, not 8-bit colours", where=where, mend="export it with 8 bits")
    if first.samples > _MOST_SAMPLES or first.samples == 2:
        raise SlideFormatError(
            path, f"has {first.samples} samples per pixel, not grey or RGB", where=where, mend=_AS_RGB
        )
    if first.compression in _COMPRESSIONS:
        raise unreadable(path, pages)


def _why_unreadable(pages: Sequence[TiffPage]) -> str:
    """Why no page can be read: strips, a compression, or the kind of its samples."""
    page = find_picture(pages)
    if page is None:
        largest = max(pages, key=lambda page: page.width * page.height)
        return f"stores its image of {largest.width} x {largest.height} px in strips, not in tiles"
    if page.compression in _COMPRESSIONS:
        return f"has tiles in {_COMPRESSIONS[page.compression]} (compression {page.compression})"
    return (
        "has no tiled image of a kind that can be decoded: "
        f"compression {page.compression}, photometric {page.photometric}, {page.samples} samples per pixel"
    )


def unreadable(path: str, pages: Sequence[TiffPage]) -> SlideFormatError:
    """The refusal of a TIFF that no reader knows, by its reason."""
    return SlideFormatError(
        path, _why_unreadable(pages), mend="export it as a tiled pyramidal TIFF with JPEG (compression 7)"
    )


def _refuse_series(path: str, first: TiffPage, pages: Sequence[TiffPage]) -> None:
    size = first.width, first.height
    images = _ome_images(pages)
    image = next((one for one in images if one.size == size), images[0] if len(images) == 1 else None)
    told = dict(_IMAGEJ.findall(pages[0].description)) if pages[0].description.startswith("ImageJ=") else {}
    planes = image.planes if image else int(told.get("slices", 1))
    times = image.times if image else int(told.get("frames", 1))
    if planes > 1:
        mend = "export one focal plane, or a projection of all"
        raise SlideFormatError(path, f"is a stack of {planes} focal planes (z)", mend=mend)
    if times > 1:
        raise SlideFormatError(path, f"is a series of {times} points in time", mend="export one of them")
    if first.photometric not in _GREY:
        return
    alike = sum(page.samples for page in pages if _is_grey(page) and (page.width, page.height) == size)
    if (image is not None and image.is_fluorescent) or _AKOYA in first.description:
        names = ", ".join(name for name in image.channels if name) if image else ""
        raise SlideFormatError(
            path,
            f"is a fluorescence image of {alike} channel{'s' if alike > 1 else ''}{f' ({names})' if names else ''}",
            mend="only slides in the colours of H&E or other transmitted light can be read",
        )
    if first.samples > 1 and first.samples != 2:
        kind = f"{first.samples} samples per pixel that are not said to be red, green and blue"
        raise SlideFormatError(path, f"has {kind}", mend=_AS_RGB)
    if first.samples == 1 and alike > 1:
        is_rgb = alike == 3 and (image is None or _can_be_rgb(image))
        kind = " (red, green and blue, or channels of fluorescence)" if is_rgb else " (channels, or a stack)"
        raise SlideFormatError(path, f"is spread over {alike} grey pages of one size{kind}", mend=_AS_RGB)


def _is_grey(page: TiffPage) -> bool:
    return page.is_tiled and page.photometric in _GREY


def _can_be_rgb(image: OmeImage) -> bool:
    names = {name.strip().lower() for name in image.channels}
    return names <= {""} or names in _RGB_NAMES


def _ome_images(pages: Sequence[TiffPage]) -> list[OmeImage]:
    return read_images(pages[0].description) if is_ome(pages[0].description) else []
