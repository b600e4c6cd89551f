"""Choosing a file's reader: the first that accepts it, by its first bytes."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from wsi.errors import SlideError, SlideFormatError, SlideNotFoundError
from wsi.inputs import open_regular
from wsi.readers.base import OnBadTile, Reader
from wsi.readers.dicom import find_series
from wsi.readers.flat import FlatReader
from wsi.readers.openslide import OpenSlideReader
from wsi.readers.remote import RemoteSource
from wsi.readers.scale import name_format
from wsi.readers.source import ByteSource, FileSource
from wsi.readers.structure import TIFF_MAGICS, walk_structure
from wsi.readers.tiff import TiffReader

READERS: tuple[type[Reader], ...] = (TiffReader, FlatReader, OpenSlideReader)
"""The kinds of slides, in the order in which they are tried: a new one is a file in this folder and its class here."""

_DIRECT_KINDS = ("tiff", "ome-tiff", "aperio", "philips")
_ACCEPTED = (
    "use a tiled TIFF, SVS, DICOM (a file, or the folder of its series) or another kind of slide that OpenSlide opens, "
    "or a JPEG or PNG"
)


def slide_suffixes() -> frozenset[str]:
    """Suffixes of slides, in lower case with the dot, without those of photographs."""
    return frozenset(suffix for kind in READERS if not kind.is_photograph for suffix in kind.suffixes)


def photograph_suffixes() -> frozenset[str]:
    """Suffixes of pictures that are slides only in a folder without others."""
    return frozenset(suffix for kind in READERS if kind.is_photograph for suffix in kind.suffixes)


def name_slide(path: Path) -> str:
    """The name of a slide: of its file without suffix, of a folder as it is unless it ends in the suffix of a slide."""
    return path.name if path.suffix.lower() not in slide_suffixes() and path.is_dir() else path.stem


def open_source(path: Path | str) -> ByteSource:
    """Open the bytes of a slide.

    Raises:
        SlideError: they cannot be reached.
    """
    if isinstance(path, str):
        return RemoteSource(path)
    try:
        return FileSource(_file_of(path))
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read: {error.strerror or error}") from error


def open_reader(path: Path | str, on_bad_tile: OnBadTile = "raise") -> Reader:
    """Open a slide with the reader for its kind.

    Args:
        path: a file, a folder of one DICOM series, or a URL as text.
        on_bad_tile: what a tile does that cannot be decoded.

    Raises:
        SlideNotFoundError: there is no such file.
        SlideFormatError: the file is damaged or not a slide.
        SlideError: the file may not be read or cannot be reached.
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
        mend = "try again; if it stays so, copy it here first" if isinstance(path, str) else None
        raise SlideError(path, f"cannot be read: {error.strerror or error}", mend=mend) from error


def _choose_reader(path: Path, on_bad_tile: OnBadTile) -> Reader:
    path = _file_of(path)
    with open_regular(path) as file:
        head = file.read(16)
    if not head:
        raise SlideFormatError(path, "is empty", mend="copy the slide again from its source")
    for kind in READERS:
        reader = kind.open(path, head, on_bad_tile=on_bad_tile)
        if reader is not None:
            return reader
    raise SlideFormatError(path, "is not a slide of a known kind, or is damaged at its start", mend=_ACCEPTED)


def _file_of(path: Path) -> Path:
    """The path itself, or of a folder the first file of its DICOM series, by which OpenSlide finds the others.

    Raises:
        SlideFormatError: the folder holds no series, or more than one.
        OSError: the folder cannot be read.
    """
    if not path.is_dir():
        return path
    series = list(find_series(path).values())
    if not series:
        raise SlideFormatError(path, "is a directory without DICOM files, not a slide", mend=_ACCEPTED)
    if len(series) > 1:
        names = ", ".join(files[0].name for files in series[:5])
        raise SlideFormatError(
            path, f"is a directory of {len(series)} DICOM series", mend=f"name a file of the one wanted: {names}"
        )
    return series[0][0]


def _open_remote(url: str, on_bad_tile: OnBadTile) -> Reader:
    source = RemoteSource(url)
    if not source.read(0, 4).startswith(TIFF_MAGICS):
        raise SlideFormatError(url, "is not a TIFF", mend="copy it here first: only tiled TIFFs are read remotely")
    pages = walk_structure(source)
    kind = name_format(pages[0])
    if kind not in _DIRECT_KINDS or urlsplit(url).path.lower().endswith(".ndpi"):
        raise SlideFormatError(url, f"is a {kind} file", mend="copy it here first: OpenSlide reads it only from disk")
    return TiffReader(source, pages, on_bad_tile=on_bad_tile)


def _not_found(path: Path | str) -> SlideNotFoundError:
    return SlideNotFoundError(path, "there is no such file", mend="check the path")
