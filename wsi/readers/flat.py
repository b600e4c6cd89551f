"""Plain pictures as slides of one level: JPEG and PNG, photographs and cut-out fields of view."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.errors import SlideFormatError, TileError
from wsi.geometry import Level, Window
from wsi.readers.base import OnBadTile, Reader
from wsi.readers.levels import GREY
from wsi.readers.openslide import is_vendors_own
from wsi.readers.resolution import UNSTATED, Resolution, is_believable, settle

MAX_PIXELS = 170_000_000
"""Larger pictures are refused: they are decoded whole, at 3 bytes per px."""

_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "1")
_GREY_MODES = ("L", "LA", "1")
_UM_PER_INCH = 25_400.0


class FlatReader(Reader):
    """Reads one JPEG or PNG as one level; decoded whole at the first read.

    Args:
        path: the file.

    Raises:
        SlideFormatError: not a JPEG or PNG, a damaged header, more than 8 bits per sample or more than MAX_PIXELS.
    """

    suffixes = frozenset({".jpg", ".jpeg", ".png"})
    is_photograph = True

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = fspath(path)
        self._lock = Lock()
        self._pixels: NDArray[np.uint8] | None = None
        try:
            with self._open() as picture:
                width, height, mode, kind = *picture.size, picture.mode, str(picture.format).lower()
                dpi, self._profile = picture.info.get("dpi"), picture.info.get("icc_profile") or None
        except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise SlideFormatError(path, f"cannot be opened as a picture: {error}") from error
        if width * height > MAX_PIXELS:
            raise SlideFormatError(path, f"claims {width} x {height} px, more than a plain picture may have")
        if mode not in _MODES:
            raise SlideFormatError(path, f"has pixels of the kind {mode}, not 8-bit colours")
        self.levels = (
            Level(index=0, width=width, height=height, tile_width=width, tile_height=height, downsample=1.0),
        )
        resolution = _resolution(dpi)
        self.mpp, self.mpp_warnings = resolution.mpp, resolution.warnings
        self.warnings = (GREY,) if mode in _GREY_MODES else ()
        self.properties: Mapping[str, str] = {"sentinode.format": kind}

    @classmethod
    def open(cls, path: Path, head: bytes, *, on_bad_tile: OnBadTile) -> FlatReader | None:
        """See ``Reader.open``; a picture is read whole or not at all, whatever ``on_bad_tile`` is."""
        del on_bad_tile
        return cls(path) if head.startswith(_MAGICS) and not is_vendors_own(path, head) else None

    def read(self, level: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window; see ``Reader.read``.

        Raises:
            TileError: the picture cannot be decoded.
        """
        out[...] = 255
        inside = window.clipped(self.levels[level].shape)
        if inside is not None:
            out[inside.within(window).slices] = self._decoded()[inside.slices]

    def icc_profile(self, level: int) -> bytes | None:
        """See ``Reader.icc_profile``."""
        del level
        return self._profile

    def close(self) -> None:
        """Release the decoded pixels."""
        self._pixels = None

    def _open(self) -> Pillow.Image:
        return Pillow.open(self._path, formats=("JPEG", "PNG"))

    def _decoded(self) -> NDArray[np.uint8]:
        with self._lock:
            if self._pixels is None:
                try:
                    with self._open() as picture:
                        picture.verify()  # a PNG's checksums, which decoding ignores; it ends this handle
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
    """Uint8 (rows, columns, 3); transparency blended over white."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        return np.asarray(white)
    return np.asarray(picture.convert("RGB"))


def _resolution(dpi: tuple[float, float] | None) -> Resolution:
    """Dots per inch as um per px; cameras and editors write 72, 96 or 300 by default, which states nothing."""
    if dpi is None or min(dpi) <= 0 or not is_believable(_UM_PER_INCH / float(dpi[0])):
        return UNSTATED
    return settle(_UM_PER_INCH / float(dpi[0]), _UM_PER_INCH / float(dpi[1]))
