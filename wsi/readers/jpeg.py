"""The JPEG tiles of a TIFF: abbreviated streams completed, checked and decoded."""

from __future__ import annotations

import struct

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.geometry import Window
from wsi.readers.colours import START_OF_SCAN, STARTS_OF_FRAME, YCBCR, jpeg_segments
from wsi.readers.structure import TiffPage
from wsi.readers.turbo import find_turbo

_WHITE_IS_ZERO = 0
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive: the kinds that occur in tiles
_LARGE_SHARE = 0.75  # from this share of a tile on, decoding only the window saves nothing


class JpegTiles:
    """The JPEG tiles of one page. Holds no state between tiles.

    Args:
        page: its tiles are 8-bit JPEG, grey or of three colours, and its Photometric is theirs
            (``colours.settle_pages``).
    """

    def __init__(self, page: TiffPage) -> None:
        self._page = page
        self._shape = (page.tile_height, page.tile_width, page.samples)
        # What says the colours is in the tile, its tables or the tags: one Adobe marker says it to every decoder.
        transform = b"\1" if page.photometric == YCBCR else b"\0"
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + transform if page.samples == 3 else b""
        self._start = b"\xff\xd8" + adobe + _table_segments(page.jpeg_tables)

    def stream(self, data: bytes) -> bytes:
        """The complete JPEG of a stored tile, which any decoder shows in the right colours.

        Shared tables are inserted and application markers removed, which may contain data on the patient.

        Raises:
            ValueError: the bytes are not a JPEG of the page's tile size and samples.
        """
        return self._complete(data)[0]

    def decode(self, data: bytes, out: NDArray[np.uint8]) -> None:
        """Decode one tile.

        Args:
            data: as stored.
            out: uint8 (tile_height, tile_width, 3), contiguous.

        Raises:
            ValueError: the bytes are not a valid tile.
        """
        simplejpeg.decode_jpeg(self.stream(data), colorspace="RGB", buffer=out)
        self._invert(out)

    def decode_window(self, data: bytes, window: Window) -> NDArray[np.uint8] | None:
        """Decode a window of one tile if that costs less than the whole tile, else return None.

        Returns:
            uint8 (height, width, 3), the same pixels as of the whole tile; damage below the window goes undetected.

        Raises:
            ValueError: the bytes are not a tile of the page.
        """
        if window.height * window.width > _LARGE_SHARE * self._shape[0] * self._shape[1]:
            return None
        turbo = find_turbo()
        if turbo is None:
            return None
        stream, unit = self._complete(data)
        try:
            pixels = turbo.decode(stream, window, across=self._shape[1], unit=unit)
        except ValueError:
            return None  # damaged or of a rare subsampling: decoding the whole tile will show
        self._invert(pixels)
        return pixels

    def decode_reduced(self, data: bytes, factor: int) -> NDArray[np.uint8]:
        """Decode one tile at half, a quarter or an eighth of its size, within the JPEG's transform.

        Returns:
            uint8 (tile_height // factor, tile_width // factor, 3).

        Raises:
            ValueError: the bytes are not a valid tile.
        """
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            self.stream(data),
            colorspace="RGB",
            min_height=self._shape[0] // factor,
            min_width=self._shape[1] // factor,
            min_factor=factor,
        )
        wanted = (self._shape[0] // factor, self._shape[1] // factor, 3)
        if pixels.shape != wanted:
            raise ValueError(f"reduced to {pixels.shape} instead of {wanted}")
        self._invert(pixels)
        return pixels

    def _invert(self, pixels: NDArray[np.uint8]) -> None:
        if self._page.photometric == _WHITE_IS_ZERO:
            np.subtract(255, pixels, out=pixels)

    def _complete(self, data: bytes) -> tuple[bytes, int]:
        """The complete stream and the width of its MCUs (units of blocks) in px."""
        parts, unit, marker = [self._start], 0, 0
        for marker, segment in jpeg_segments(data):
            if marker in STARTS_OF_FRAME:
                unit = self._check_frame(marker, segment[4:])
            if _is_coded(marker):
                parts.append(segment)
        if marker != START_OF_SCAN:
            raise ValueError("no JPEG data")
        if not unit:
            raise ValueError("JPEG data without a header")
        return b"".join(parts), unit

    def _check_frame(self, marker: int, header: bytes) -> int:
        if len(header) < 6 + 3 * self._shape[2]:
            raise ValueError("JPEG data end within their header")
        precision, height, width, samples = struct.unpack_from(">BHHB", header)
        if (height, width, samples) != self._shape or precision != 8 or marker not in _DECODED_FRAMES:
            raise ValueError(f"JPEG of {width} x {height} px, {samples} samples of {precision} bits, kind {marker:#x}")
        return 8 * max(header[7 + 3 * sample] >> 4 for sample in range(samples))


def _table_segments(tables: bytes) -> bytes:
    """The segments of a JPEGTables stream without its start, end and application markers."""
    return b"".join(segment for marker, segment in jpeg_segments(tables) if _is_coded(marker))


def _is_coded(marker: int) -> bool:
    """Whether a segment is needed for decoding: neither an application's nor a comment."""
    return not 0xE0 <= marker <= 0xEF and marker != 0xFE
