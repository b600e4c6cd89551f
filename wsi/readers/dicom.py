"""Which DICOM files belong together: the levels of one slide are files of one series."""

from __future__ import annotations

import re
from pathlib import Path

from wsi.inputs import open_regular

_HEADER_BYTES = 2**17
# (0020,000E) SeriesInstanceUID in little-endian transfer syntax with its type written out, as slides are stored
_SERIES = re.compile(rb"\x20\x00\x0e\x00UI(..)", re.DOTALL)


def read_series(path: Path) -> str | None:
    """The series that a DICOM file belongs to; None if the file does not say, is not DICOM, or cannot be read."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEADER_BYTES)
    except OSError:
        return None
    found = _SERIES.search(head) if head[128:132] == b"DICM" else None
    if found is None:
        return None
    text = head[found.end() : found.end() + int.from_bytes(found[1], "little")]
    return text.rstrip(b"\0 ").decode("ascii", errors="replace") or None
