"""A TIFF's scale: um per pixel, by vendor."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from os import PathLike

from wsi.errors import SlideFormatError
from wsi.readers.ome import is_ome, parse_xml, read_images
from wsi.readers.resolution import OVERRIDE, Resolution, compare, read_number, settle, settle_tags
from wsi.readers.structure import TiffPage

_FARTHEST_RATIO = 1.1
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=([^|]*)", re.ASCII)
_PHILIPS_LEVELS = (
    "/DataObject/Attribute[@Name='PIM_DP_SCANNED_IMAGES']/Array/DataObject[@ObjectType='DPScannedImage']"
    "[Attribute[@Name='PIM_DP_IMAGE_TYPE'][text()='WSI']]"
    "/Attribute[@Name='PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE']/Array"
    "/DataObject[@ObjectType='PixelDataRepresentation']/Attribute[@Name='DICOM_PIXEL_SPACING']/text()"
)


def name_format(page: TiffPage) -> str:
    """The kind of TIFF by a page's tags: philips, aperio, leica, ventana, trestle, ome-tiff or tiff."""
    if page.software.startswith("Philips") and "DPUfsImport" in page.description:
        return "philips"
    if page.description.startswith("Aperio"):
        return "aperio"
    head = page.description[:4096]
    if "leica-microsystems.com/scn" in head:
        return "leica"
    if head.startswith(("level=", "Label Image", "Label_Image", "Probability_Image")):
        return "ventana"
    if page.software.startswith("MedScan"):
        return "trestle"
    return "ome-tiff" if is_ome(head) else "tiff"


def measure_mpp(path: str | PathLike[str], page: TiffPage) -> Resolution:
    """Um per px of the first page: from the vendor's description if it states them, else from the resolution tags.

    Raises:
        SlideFormatError: a Philips description is not valid XML.
    """
    tags = settle_tags(page.resolution, page.resolution_unit)
    x_um, y_um = _described_um(path, page)
    return tags if math.isnan(x_um) or math.isnan(y_um) else compare(settle(x_um, y_um), tags)


def contradicting_levels(levels: Sequence[TiffPage], mpp: float | None) -> tuple[str, ...]:
    """Say that the resolution of a coarser level does not fit its size, if it states one of its own.

    Many programs write that of level 0 into all levels, which says nothing.

    Args:
        levels: finest first.
        mpp: um per px of level 0; None if it is not known.
    """
    finest = levels[0]
    by_tags = settle_tags(finest.resolution, finest.resolution_unit).mpp
    if mpp is None or by_tags is None or max(by_tags / mpp, mpp / by_tags) > _FARTHEST_RATIO:
        return ()  # the tags of this file are not about its pixels
    for number, page in enumerate(levels[1:], start=1):
        stated = settle_tags(page.resolution, page.resolution_unit).mpp
        if stated is None or page.resolution == finest.resolution:
            continue
        expected = mpp * finest.width / page.width
        if max(stated / expected, expected / stated) > _FARTHEST_RATIO:
            of_level = f"its level {number} {stated:.4g} um/px, which is {expected:.4g} by its size"
            return (f"states {mpp:.4g} um/px, but {of_level}; {OVERRIDE}",)
    return ()


def _described_um(path: str | PathLike[str], page: TiffPage) -> tuple[float, float]:
    """(x, y) um per px by the description; nan if it does not state them."""
    kind = name_format(page)
    if kind == "philips":
        spacings = read_philips_spacings(path, page.description)
        return (spacings[0][1], spacings[0][0]) if spacings else (math.nan, math.nan)
    if kind == "ome-tiff":
        return _ome_um(page)
    found = _APERIO_MPP.search(page.description)  # other programs copy it along with Aperio's pixels
    um = read_number(found[1]) if found else math.nan
    return um, um


def read_philips_spacings(path: str | PathLike[str], description: str) -> list[tuple[float, float]]:
    """(row, column) spacing of each level in um, from DICOM_PIXEL_SPACING in a Philips description (there in mm).

    Raises:
        SlideFormatError: the description is not valid XML or has a spacing that is not a pair of positive numbers.
    """
    root = parse_xml(description)
    if root is None:
        raise SlideFormatError(path, "has a Philips description that is not valid XML", where="ImageDescription")
    spacings = []
    for text in root.xpath(_PHILIPS_LEVELS):
        parts = str(text).replace('"', " ").split()
        values = [read_number(part) for part in parts]
        if len(values) != 2 or not all(value > 0 for value in values):
            raise SlideFormatError(path, f"has a pixel spacing of {text!s:.60}", where="ImageDescription")
        spacings.append((values[0] * 1e3, values[1] * 1e3))
    return spacings


def _ome_um(page: TiffPage) -> tuple[float, float]:
    """(x, y) um per px of the image of the page's size, else of the first, by OME-XML; nan if not stated."""
    images = read_images(page.description)
    own = [image for image in images if image.size == (page.width, page.height)]
    return next((image.um for image in own or images), (math.nan, math.nan))
