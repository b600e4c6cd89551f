"""The size of an output of patches, and whether the disk has space for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from staging.training.outputs import PatchOutput, SlidePart
from staging.training.storing import is_stored
from wsi.errors import StorageError
from wsi.store import storage

_RESERVE_BYTES = 64 * 2**20
_BYTES_PER_ROW, _BYTES_PER_SLIDE, _BYTES_OF_TABLE = 40, 300, 4096


def expected_bytes(output: PatchOutput, parts: Sequence[SlidePart]) -> int:
    """Estimate the size of the output, for stained tissue."""
    patches = sum(len(part.rows) for part in parts)
    table = patches * _BYTES_PER_ROW + len(parts) * _BYTES_PER_SLIDE + _BYTES_OF_TABLE
    return table + output.form.pixel_bytes(output, parts)


def room_bytes(output: PatchOutput, parts: Sequence[SlidePart]) -> int:
    """Estimate the disk space needed beyond what earlier calls have written."""
    left = [part for part in parts if not is_stored(part)]
    return output.form.room_bytes(expected_bytes(output, left), left, parts)


def check_room(path: Path, needed: int) -> None:
    """Refuse to start if the disk is too small.

    Raises:
        StorageError: there is too little space.
    """
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    with storage(path):
        free = shutil.disk_usage(folder).free
    if needed + _RESERVE_BYTES > free:
        raise StorageError(
            path,
            f"needs {decimal(needed)}, and {decimal(_RESERVE_BYTES)} to spare, but only {decimal(free)} are free",
            mend="free some space, choose another output, or draw fewer patches",
        )
