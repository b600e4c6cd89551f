"""A TIFF's scale: um per pixel, by vendor."""

from __future__ import annotations

import math
import re
from os import PathLike
from typing import TYPE_CHECKING

from wsi.errors import SlideFormatError
from wsi.readers.resolution import Resolution, compare, settle, settle_tags
from wsi.readers.structure import TiffPage

if TYPE_CHECKING:
    from lxml import etree

_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
_APERIO_MPP = re.compile(rf"\|\s*MPP\s*=\s*({_NUMBER})\s*(?:\||$)", re.ASCII)
_UM_PER_UNIT = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6}
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
    return "ome-tiff" if "<OME" in head and "openmicroscopy.org" in head else "tiff"


def measure_mpp(path: str | PathLike[str], page: TiffPage) -> Resolution:
    """Um per px of the first page: from the vendor's description if it states them, else from the resolution tags.

    Raises:
        SlideFormatError: a Philips description is not valid XML.
    """
    tags = settle_tags(page.resolution, page.resolution_unit)
    x_um, y_um = _described_um(path, page)
    return tags if math.isnan(x_um) or math.isnan(y_um) else compare(settle(x_um, y_um), tags)


def _described_um(path: str | PathLike[str], page: TiffPage) -> tuple[float, float]:
    """(x, y) um per px by the description; nan if it does not state them."""
    kind = name_format(page)
    if kind == "philips":
        spacings = read_philips_spacings(path, page.description)
        return (spacings[0][1], spacings[0][0]) if spacings else (math.nan, math.nan)
    if kind == "ome-tiff":
        return _ome_um(page.description)
    found = _APERIO_MPP.search(page.description)  # other programs copy it along with Aperio's pixels
    um = float(found[1]) if found else math.nan
    return um, um


def read_philips_spacings(path: str | PathLike[str], description: str) -> list[tuple[float, float]]:
    """(row, column) spacing of each level in um, from DICOM_PIXEL_SPACING in a Philips description (there in mm).

    Raises:
        SlideFormatError: the description is not valid XML or has a spacing that is not a pair of positive numbers.
    """
    root = _parse(description)
    if root is None:
        raise SlideFormatError(path, "has a Philips description that is not valid XML", where="ImageDescription")
    spacings = []
    for text in root.xpath(_PHILIPS_LEVELS):
        parts = str(text).replace('"', " ").split()
        if len(parts) != 2 or not all(re.fullmatch(_NUMBER, part, re.ASCII) and float(part) > 0 for part in parts):
            raise SlideFormatError(path, f"has a pixel spacing of {text!s:.60}", where="ImageDescription")
        spacings.append((float(parts[0]) * 1e3, float(parts[1]) * 1e3))
    return spacings


def _ome_um(description: str) -> tuple[float, float]:
    """(x, y) um per px of the first image of an OME-XML description; nan if not stated."""
    root = _parse(description)
    pixels = None if root is None else root.find(".//{*}Pixels")
    if pixels is None:
        return math.nan, math.nan

    def read(axis: str) -> float:
        value = pixels.get(f"PhysicalSize{axis}") or ""
        unit = _UM_PER_UNIT.get(pixels.get(f"PhysicalSize{axis}Unit") or "µm", math.nan)
        return float(value) * unit if re.fullmatch(_NUMBER, value, re.ASCII) else math.nan

    return read("X"), read("Y")


def _parse(text: str) -> etree._Element | None:
    """The root of an XML text; None if it is invalid or has a document type (which could define entities)."""
    from lxml import etree  # noqa: PLC0415  (slow import)

    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False, recover=False
    )
    try:
        root = etree.fromstring(text.strip().encode(), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None
    return None if root.getroottree().docinfo.doctype else root
