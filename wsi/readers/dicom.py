"""DICOM files as OpenSlide takes them: which belong together, and what they say of their colours.

The levels of one slide are files of one series. Headers are searched for the few elements that are needed, in little
endian with types written out, as slides are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from wsi.inputs import open_regular
from wsi.readers.colours import HEADER_BYTES, Colours, Statement, jpeg_colours

_START_BYTES = 132  # up to the word DICM
_HEADER_BYTES = 2**17
_MOST_BYTES = 2**26  # of elements before the pixels: tables of frames and a profile of colours
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI(..)", re.DOTALL)  # (0020,000E) SeriesInstanceUID
_COLOURS = re.compile(rb"\x28\x00\x04\x00CS(..)", re.DOTALL)  # (0028,0004) PhotometricInterpretation
_WIDTH = re.compile(rb"\x48\x00\x06\x00UL\x04\x00(....)", re.DOTALL)  # (0048,0006) TotalPixelMatrixColumns
_HEIGHT = re.compile(rb"\x48\x00\x07\x00UL\x04\x00(....)", re.DOTALL)  # (0048,0007) TotalPixelMatrixRows
_KIND = re.compile(rb"\x08\x00\x08\x00CS(..)", re.DOTALL)  # (0008,0008) ImageType
_FRAMES = re.compile(rb"\x28\x00\x08\x00IS(..)", re.DOTALL)  # (0028,0008) NumberOfFrames
_ROWS = re.compile(rb"\x28\x00\x10\x00US\x02\x00(..)", re.DOTALL)  # (0028,0010) Rows
_COLUMNS = re.compile(rb"\x28\x00\x11\x00US\x02\x00(..)", re.DOTALL)  # (0028,0011) Columns
_PIXELS = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0"  # (7FE0,0010), frames as items, the first item
_TAGS: Mapping[str, Colours] = {"RGB": "RGB", "YBR_FULL_422": "YCbCr", "YBR_FULL": "YCbCr"}


def read_series(path: Path) -> str | None:
    """The series that a DICOM file belongs to; None if the file does not say, is not DICOM, or cannot be read."""
    try:
        with open_regular(path) as file:
            start = file.read(_START_BYTES)  # most files of a folder may be of other kinds
            return _series(start + file.read(_HEADER_BYTES)) if start.endswith(b"DICM") else None
    except OSError:
        return None


def series_files(path: Path) -> list[Path]:
    """The DICOM files of the same series as one of them and in its folder, by name."""
    series = read_series(path)
    return [other for other in _files(path.parent) if series and read_series(other) == series]


def find_series(folder: Path) -> dict[str, list[Path]]:
    """The DICOM files of a folder by series, each by name; whatever their suffix.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        series = read_series(path)
        if series is not None:
            found.setdefault(series, []).append(path)
    return found


def strangers(files: Sequence[Path]) -> tuple[Path, Path] | None:
    """Two files of one series that cannot be levels of one picture, as their sizes say; None if all can.

    Copies and programs that replace identifiers give different slides one series. Only whole pictures are compared, not
    labels and overviews, nor files that cannot be read: whoever opens them says so.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    for path in files:
        try:
            with open_regular(path) as file:
                head, _ = _split(file)
        except OSError:
            continue
        width, height, kind = (element.search(head) for element in (_WIDTH, _HEIGHT, _KIND))
        if width and height and kind and "VOLUME" in _text(head, kind):
            size = int.from_bytes(width[1], "little"), int.from_bytes(height[1], "little")
            for other, (columns, rows) in sizes.items():
                if size == (columns, rows) or not _is_alike(size, (columns, rows)):
                    return other, path
            sizes[path] = size
    return None


def _is_alike(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a picture of one size may be the other, made smaller: sides are rounded to whole pixels, up or down."""
    (width, height), (small_width, small_height) = max(one, other), min(one, other)
    if not small_width or not small_height:
        return False
    low = max((width - 1) / (small_width + 1), (height - 1) / (small_height + 1))
    high = min((width + 1) / max(small_width - 1, 0.5), (height + 1) / max(small_height - 1, 0.5))
    return low <= high


def unstored(path: Path) -> tuple[int, int] | None:
    """(frames stored, tiles in all) of the finest level, where frames are stored for some of its tiles only.

    Raises:
        OSError: a file cannot be read.
    """
    finest: tuple[int, int, int] | None = None
    for one in series_files(path):
        with open_regular(one) as file:
            head, _ = _split(file)
        found = [element.search(head) for element in (_WIDTH, _HEIGHT, _FRAMES, _ROWS, _COLUMNS)]
        width, height, frames, rows, columns = found
        if width and height and frames and rows and columns:
            sides = [int.from_bytes(side[1], "little") for side in (width, height, columns, rows)]
            digits = _text(head, frames).strip()
            if all(sides) and digits.isdigit():
                tiles = -(-sides[0] // sides[2]) * -(-sides[1] // sides[3])
                finest = max(finest or (0, 0, 0), (sides[0] * sides[1], int(digits), tiles))
    return finest[1:] if finest is not None and finest[1] < finest[2] else None


def read_statements(path: Path) -> dict[tuple[int, int], Statement]:
    """What the JPEG images of a slide say of their colours, by their (width, height) in px.

    Of JPEG 2000 nothing: there OpenSlide follows the stream alone.

    Args:
        path: one of the slide's files.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for one in series_files(path):
        with open_regular(one) as file:
            head, frame = _split(file)
        width, height, tag = (kind.search(head) for kind in (_WIDTH, _HEIGHT, _COLOURS))
        named = _TAGS.get(_text(head, tag)) if tag else None
        if width and height and named:
            try:
                stream = jpeg_colours(frame)
            except ValueError:
                continue
            found[int.from_bytes(width[1], "little"), int.from_bytes(height[1], "little")] = Statement(stream, named)
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())


def _series(head: bytes) -> str | None:
    found = _SERIES.search(head)
    return _text(head, found) or None if found else None


def _text(head: bytes, found: re.Match[bytes]) -> str:
    value = head[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return value.rstrip(b"\0 ").decode("ascii", errors="replace")


def _split(file: BinaryIO) -> tuple[bytes, bytes]:
    """What precedes the pixels, and the beginning of the first frame; empty if frames are not items of bytes."""
    head = b""
    while (at := head.find(_PIXELS)) < 0 and len(head) < _MOST_BYTES:
        more = file.read(max(_HEADER_BYTES, len(head)))
        if not more:
            return head, b""
        head += more
    if at < 0:
        return head, b""
    # the first item is a table of offsets
    file.seek(at + len(_PIXELS))
    file.seek(int.from_bytes(file.read(4), "little"), 1)
    return head[:at], file.read(8 + HEADER_BYTES)[8:]
