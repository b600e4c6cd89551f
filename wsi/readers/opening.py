"""Which reader a file gets, by its first bytes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from wsi.errors import SlideError, SlideFormatError, SlideNotFoundError
from wsi.readers.base import OnBadTile, Reader
from wsi.readers.flat import FlatReader
from wsi.readers.openslide import OpenSlideReader, detect_vendor
from wsi.readers.remote import RemoteSource
from wsi.readers.scale import name_format
from wsi.readers.source import ByteSource, FileSource
from wsi.readers.structure import TIFF_MAGICS, read_structure, walk_structure
from wsi.readers.tiff import TiffReader, find_readable_levels

_PICTURE_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# TIFFs whose levels are plain tiled pages; OpenSlide's other vendors overlap tiles or keep several images in a file.
_DIRECT_VENDORS = (None, "generic-tiff", "aperio", "philips")
_DIRECT_KINDS = ("tiff", "ome-tiff", "aperio", "philips")
_ACCEPTED = "give a tiled TIFF, SVS, DICOM or another kind of slide that OpenSlide opens, or a JPEG or PNG"


def open_source(path: Path | str) -> ByteSource:
    """Open the bytes of a slide.

    Raises:
        SlideError: they cannot be reached.
    """
    if isinstance(path, str):
        return RemoteSource(path)
    try:
        return FileSource(path)
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read: {error.strerror or error}") from error


def open_reader(path: Path | str, on_bad_tile: OnBadTile = "raise") -> Reader:
    """Open a slide with the reader for its kind.

    Args:
        path: a file, or a URL as text.
        on_bad_tile: what a tile does that cannot be decoded.

    Raises:
        SlideNotFoundError: there is no such file.
        SlideFormatError: the file is damaged or no slide.
        SlideError: the file may not be read or not be reached.
    """
    try:
        if isinstance(path, str):
            return _open_remote(path, on_bad_tile)
        return _choose_reader(path, on_bad_tile)
    except SlideError:
        raise
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read: {error.strerror or error}") from error


def _choose_reader(path: Path, on_bad_tile: OnBadTile) -> Reader:
    if path.is_dir():
        raise SlideFormatError(path, "is a directory, not a slide", mend=_ACCEPTED)
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise SlideFormatError(path, "is empty", mend="copy the slide again from its source")
    # NDPI bends TIFF's offsets and MIRAX begins with a JPEG: both are OpenSlide's alone.
    is_vendors_own = path.suffix.lower() in (".ndpi", ".mrxs")
    if head.startswith(TIFF_MAGICS) and not is_vendors_own:
        pages = read_structure(path)
        if find_readable_levels(pages) and detect_vendor(path) in _DIRECT_VENDORS:
            return TiffReader(path, pages, on_bad_tile=on_bad_tile)
        return OpenSlideReader(path, on_bad_tile=on_bad_tile)
    if head.startswith(_PICTURE_MAGICS) and not is_vendors_own:
        return FlatReader(path)
    if detect_vendor(path) is None:
        raise SlideFormatError(path, "is no slide of a known kind, or damaged at its start", mend=_ACCEPTED)
    return OpenSlideReader(path, on_bad_tile=on_bad_tile)


def _open_remote(url: str, on_bad_tile: OnBadTile) -> Reader:
    source = RemoteSource(url)
    if not source.read(0, 4).startswith(TIFF_MAGICS):
        raise SlideFormatError(url, "is no TIFF", mend="copy it here first: only tiled TIFFs are read remotely")
    pages = walk_structure(source)
    kind = name_format(pages[0])
    if kind not in _DIRECT_KINDS or urlsplit(url).path.lower().endswith(".ndpi"):
        raise SlideFormatError(url, f"is a {kind} file", mend="copy it here first: OpenSlide reads it from a disk only")
    return TiffReader(source, pages, on_bad_tile=on_bad_tile)


def _not_found(path: Path | str) -> SlideNotFoundError:
    return SlideNotFoundError(path, "there is no such file", mend="check the path")
