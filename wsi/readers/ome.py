"""OME-XML: what a description says of the images in its file (OME schema 2016-06)."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wsi.readers.resolution import read_number

if TYPE_CHECKING:
    from lxml import etree

_UM_PER_UNIT = {
    "pm": 1e-6,
    "\u00c5": 1e-4,
    "nm": 1e-3,
    "\u03bcm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "thou": 25.4,
    "mil": 25.4,
    "pt": 25_400 / 72,
    "in": 25_400.0,
    "inch": 25_400.0,
    "ft": 304_800.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OmeImage:
    """One image of a file.

    Attributes:
        name: as given; may identify a patient.
        size: (width, height) in px.
        um: (x, y) um per px; nan if not stated, or in a unit that is no length.
        planes: in focus (z). times: points in time.
        channels: their names, empty where not given; one channel may hold the three samples of RGB.
        is_fluorescent: a channel states what light it emits, its dye, or fluorescence as its contrast.
    """

    name: str
    size: tuple[int, int]
    um: tuple[float, float]
    planes: int
    times: int
    channels: tuple[str, ...]
    is_fluorescent: bool


def is_ome(description: str) -> bool:
    """Whether a description is OME-XML."""
    head = description[:4096]
    return "<OME" in head and "openmicroscopy.org" in head


def read_images(description: str) -> list[OmeImage]:
    """The images that an OME-XML description lists, in its order; none if it is no valid XML."""
    root = parse_xml(description)
    found = [] if root is None else root.findall(".//{*}Image")
    return [_image(image, pixels) for image in found for pixels in image.findall("{*}Pixels")[:1]]


def parse_xml(text: str) -> etree._Element | None:
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


def _image(image: etree._Element, pixels: etree._Element) -> OmeImage:
    channels = pixels.findall("{*}Channel")
    return OmeImage(
        name=image.get("Name") or "",
        size=(_count(pixels, "SizeX"), _count(pixels, "SizeY")),
        um=(_um(pixels, "X"), _um(pixels, "Y")),
        planes=_count(pixels, "SizeZ"),
        times=_count(pixels, "SizeT"),
        channels=tuple(channel.get("Name") or "" for channel in channels),
        is_fluorescent=any(
            channel.get("EmissionWavelength") or channel.get("Fluor") or channel.get("ContrastMethod") == "Fluorescence"
            for channel in channels
        ),
    )


def _count(pixels: etree._Element, name: str) -> int:
    value = read_number(pixels.get(name) or "")
    return 1 if math.isnan(value) else int(value)


def _um(pixels: etree._Element, axis: str) -> float:
    # one sign for both that Unicode has of the angstrom and of micro
    unit = unicodedata.normalize("NFKC", pixels.get(f"PhysicalSize{axis}Unit") or "um")
    return read_number(pixels.get(f"PhysicalSize{axis}") or "") * _UM_PER_UNIT.get(unit, math.nan)
