"""Plain pictures as slides of one level: JPEG and PNG, photographs and cut-out fields of view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike, fspath
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import SlideFormatError, TileError
from wsi.geometry import Level
from wsi.readers.base import MPP_RANGE_UM, BadTile

MAX_PIXELS = 170_000_000
"""A larger picture is refused: it is decoded whole, at 3 bytes per px."""

_MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "1")
_UM_PER_INCH = 25_400.0


class FlatReader:
    """Reads one JPEG or PNG as one level; decoded whole at the first read. Safe from many threads.

    Args:
        path: the file.

    Raises:
        SlideFormatError: no JPEG or PNG, damaged in its header, more than 8 bits a sample or more than MAX_PIXELS.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = fspath(path)
        self._lock = Lock()
        self._pixels: NDArray[np.uint8] | None = None
        try:
            with self._open() as picture:
                width, height, mode, kind = *picture.size, picture.mode, str(picture.format).lower()
                dpi = picture.info.get("dpi")
        except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise SlideFormatError(path, f"is no picture that can be opened: {error}") from error
        if width * height > MAX_PIXELS:
            raise SlideFormatError(path, f"claims {width} x {height} px, more than a plain picture may have here")
        if mode not in _MODES:
            raise SlideFormatError(path, f"has pixels of the kind {mode}, not 8-bit colours")
        self.levels = (
            Level(index=0, width=width, height=height, tile_width=width, tile_height=height, downsample=1.0),
        )
        self.mpp = _believable_mpp(dpi)
        self.properties: Mapping[str, str] = {"sentinode.format": kind}

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """None: a picture is read whole or not at all."""
        return ()

    def read(self, level: int, *, row: int, column: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window; see ``wsi.readers.base.Reader``.

        Raises:
            TileError: the picture cannot be decoded.
        """
        size, height, width = self.levels[level], *out.shape[:2]
        out[...] = 255
        top, bottom = max(row, 0), min(row + height, size.height)
        left, right = max(column, 0), min(column + width, size.width)
        if top < bottom and left < right:
            inside = self._decoded()[top:bottom, left:right]
            out[top - row : bottom - row, left - column : right - column] = inside

    def has_pixels(self, level: int, *, row: int, column: int, height: int, width: int) -> bool:
        """False where the window lies outside the picture."""
        size = self.levels[level]
        return row < size.height and row + height > 0 and column < size.width and column + width > 0

    def close(self) -> None:
        """Let go of the decoded pixels."""
        self._pixels = None

    def _open(self) -> Pillow.Image:
        return Pillow.open(self._path, formats=("JPEG", "PNG"))

    def _decoded(self) -> NDArray[np.uint8]:
        with self._lock:
            if self._pixels is None:
                try:
                    with self._open() as picture:
                        self._pixels = _rgb(picture)
                except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
                    raise TileError(
                        self._path,
                        f"the picture cannot be decoded: {error}",
                        where="level 0",
                        mend="copy the file again from its source",
                    ) from error
            return self._pixels


def _rgb(picture: Pillow.Image) -> NDArray[np.uint8]:
    """Uint8 (rows, columns, 3); transparency laid over white."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        return np.asarray(white)
    return np.asarray(picture.convert("RGB"))


def _believable_mpp(dpi: tuple[float, float] | None) -> float | None:
    """Dots per inch as um per px; cameras and editors write 72 or 96 dpi unasked, so absurd values are no warning."""
    if dpi is None or min(dpi) <= 0:
        return None
    x_um, y_um = _UM_PER_INCH / float(dpi[0]), _UM_PER_INCH / float(dpi[1])
    low, high = MPP_RANGE_UM
    return x_um if low <= x_um <= high and math.isclose(x_um, y_um, rel_tol=0.01) else None
