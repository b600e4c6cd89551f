"""The kinds of tiles in a written pyramid: how each is encoded, halved and described.

Three kinds: colour (JPEG, as in CAMELYON's slides), masks (a value per pixel, lossless), heatmaps (float32, lossless).
"""

from __future__ import annotations

import struct
from typing import Any, Literal, Protocol

import imagecodecs
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from wsi.readers.base import StoredTiles
from wsi.readers.colours import YCBCR
from wsi.writing.bigtiff import Tags, opaque, rationals, shorts

Compression = Literal["deflate", "lzw", "zstd"]
Reduction = Literal["max", "majority", "nearest"]

COMPRESSION_TAGS = {"deflate": 8, "lzw": 5, "zstd": 50_000}
"""TIFF codes of the lossless compressions."""

JPEG_TAG = 7
FULL_RANGE = rationals((0, 1), (255, 1), (128, 1), (255, 1), (128, 1), (255, 1))
"""ReferenceBlackWhite of YCbCr as in JPEG."""

_SUBSAMPLINGS = {(1, 1): "444", (2, 1): "422", (2, 2): "420"}
_DEFLATE_LEVEL, _ZSTD_LEVEL = 6, 3
_FLOAT_PREDICTOR = 3


class TileKind(Protocol):
    """One kind of tile; stateless, used from many threads.

    Attributes:
        shape: of a tile's array.
        dtype: of a tile's array.
        fill: value of a missing tile next to stored ones.
        blank: the encoded tile that stands for missing ones, if readers disagree on those; None if missing tiles are
            left out of the file.
        repeats_edge: whether pixels beyond the image's edge are replaced by those at the edge before halving.
        tags: the part of a directory that depends on the kind.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: int
    blank: bytes | None
    repeats_edge: bool
    tags: Tags

    def encode(self, tile: NDArray[Any]) -> bytes:
        """The bytes of one tile."""
        ...

    def halve(self, tile: NDArray[Any]) -> NDArray[Any]:
        """The tile at half the size."""
        ...


class ColourTiles:
    """RGB as baseline JPEG: YCbCr 4:2:0, tables shared by all tiles; halved by the mean, halves rounded up.

    Args:
        tile_size: side of a tile in px.
        quality: 1 to 100.
    """

    def __init__(self, *, tile_size: int, quality: int) -> None:
        self.shape: tuple[int, ...] = (tile_size, tile_size, 3)
        self.dtype = np.dtype(np.uint8)
        self.fill = 255
        self.blank: bytes | None = None
        self.repeats_edge = False
        self.quality = quality
        # The encoder writes the same headers for every tile of one size: split once, they yield the shared tables and
        # the short header that each stored tile begins with.
        white = np.full(self.shape, self.fill, dtype=np.uint8)
        self._header, tables, self._short_header = _split_header(self._complete(white))
        self.tags: Tags = {
            258: shorts(8, 8, 8),
            259: shorts(JPEG_TAG),
            262: shorts(6),  # YCbCr
            277: shorts(3),
            347: opaque(tables),
            530: shorts(2, 2),
            532: FULL_RANGE,
        }

    def encode(self, tile: NDArray[Any]) -> bytes:
        """The tile as a JPEG stream without tables."""
        encoded = self._complete(tile)
        if not encoded.startswith(self._header):
            raise RuntimeError("the JPEG encoder changed its tables between two tiles")
        return self._short_header + encoded[len(self._header) :]

    def halve(self, tile: NDArray[Any]) -> NDArray[Any]:
        """The mean of 2 x 2 px each."""
        return halve_colour(tile)

    def _complete(self, tile: NDArray[np.uint8]) -> bytes:
        encoded: bytes = simplejpeg.encode_jpeg(
            tile, quality=self.quality, colorspace="RGB", colorsubsampling="420", fastdct=False
        )
        return encoded


def encode_like(stored: StoredTiles, tile: NDArray[np.uint8], *, quality: int) -> bytes:
    """A tile as a JPEG with its own tables, in the colours and subsampling of a level's other tiles.

    Args:
        stored: JPEG tiles of three colours.
        tile: uint8 (tile_height, tile_width, 3) RGB.
        quality: 1 to 100.
    """
    is_ycbcr = stored.photometric == YCBCR
    subsampling = _SUBSAMPLINGS.get(stored.subsampling, "444") if is_ycbcr else "444"
    return bytes(
        imagecodecs.jpeg8_encode(
            tile,
            level=quality,
            colorspace="rgb",
            outcolorspace="ycbcr" if is_ycbcr else "rgb",
            subsampling=subsampling,
        )
    )


class MaskTiles:
    """One value of 8 bits per pixel, lossless; missing tiles are 0.

    Args:
        tile_size: side of a tile in px.
        compression: deflate opens in every viewer, lzw even in the oldest, zstd is the smallest and fastest.
        reduction: how 2 x 2 px become one: the largest of them, the most frequent (of equally frequent ones the
            largest), or the upper left.
    """

    def __init__(self, *, tile_size: int, compression: Compression, reduction: Reduction) -> None:
        if reduction not in ("max", "majority", "nearest"):
            raise ValueError(f"masks must be halved by max, majority or nearest, got {reduction!r}")
        self.shape: tuple[int, ...] = (tile_size, tile_size)
        self.dtype = np.dtype(np.uint8)
        self.fill = 0
        self.repeats_edge = True
        self._compression = compression
        self._reduction = reduction
        self.tags: Tags = {
            258: shorts(8),
            259: shorts(_compression_tag(compression)),
            262: shorts(1),  # black is zero
            277: shorts(1),
            339: shorts(1),  # unsigned
        }
        # A tile left out would read as background here, as transparent in OpenSlide and as white in slide readers.
        self.blank: bytes | None = self.encode(np.zeros(self.shape, dtype=np.uint8))

    def encode(self, tile: NDArray[Any]) -> bytes:
        """The compressed tile."""
        return _compress(tile.tobytes(), self._compression)

    def halve(self, tile: NDArray[Any]) -> NDArray[Any]:
        """Reduce 2 x 2 px to one by the chosen rule."""
        if self._reduction == "nearest":
            return tile[0::2, 0::2].copy()
        if self._reduction == "majority":
            return halve_by_majority(tile)
        return np.asarray(np.maximum(np.maximum(tile[0::2, 0::2], tile[0::2, 1::2]), _lower_maximum(tile)))


class FloatTiles:
    """One float32 per cell, lossless; missing tiles are 0.

    Args:
        tile_size: side of a tile in cells.
        compression: as for masks.
        has_predictor: store the differences of the floats' bytes (TIFF's predictor 3), which compress better.
    """

    def __init__(self, *, tile_size: int, compression: Compression, has_predictor: bool) -> None:
        self.shape: tuple[int, ...] = (tile_size, tile_size)
        self.dtype = np.dtype(np.float32)
        self.fill = 0
        self.repeats_edge = True
        self._compression = compression
        self._has_predictor = has_predictor
        self.tags: Tags = {
            258: shorts(32),
            259: shorts(_compression_tag(compression)),
            262: shorts(1),
            277: shorts(1),
            317: shorts(_FLOAT_PREDICTOR if has_predictor else 1),
            339: shorts(3),  # IEEE floating point
        }
        self.blank: bytes | None = self.encode(np.zeros(self.shape, dtype=np.float32))

    def encode(self, tile: NDArray[Any]) -> bytes:
        """The compressed tile."""
        little = np.ascontiguousarray(tile, dtype="<f4")
        if self._has_predictor:
            little = np.asarray(imagecodecs.floatpred_encode(little, axis=-1))
        return _compress(little.tobytes(), self._compression)

    def halve(self, tile: NDArray[Any]) -> NDArray[Any]:
        """The mean of the finite among 2 x 2 cells; NaN if none is."""
        return halve_finite(tile)


def halve_colour(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Average 2 x 2 px, halves rounded up: uint8 (2h, 2w, 3) to (h, w, 3)."""
    # Flat rows with one strided sum per channel: several times faster than numpy's loops over a last axis of 3.
    height, width, _ = tile.shape
    sums = np.add(tile[0::2], tile[1::2], dtype=np.uint16).reshape(height // 2, width * 3)
    blocks = np.empty((height // 2, width // 2 * 3), dtype=np.uint16)
    for channel in range(3):
        np.add(sums[:, channel::6], sums[:, channel + 3 :: 6], out=blocks[:, channel::3])
    blocks += 2
    blocks >>= 2
    return blocks.astype(np.uint8).reshape(height // 2, width // 2, 3)


def halve_by_majority(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The most frequent of 2 x 2 px, of equally frequent ones the largest: uint8 (2h, 2w) to (h, w)."""
    four = np.stack([tile[0::2, 0::2], tile[0::2, 1::2], tile[1::2, 0::2], tile[1::2, 1::2]])
    four.sort(axis=0)
    lowest, low, high, highest = four
    # Sorted, equal values are adjacent: a pair in the middle cannot be outvoted, one at the top wins a tie.
    pair_at_bottom = np.where((lowest == low) & (high != highest), lowest, highest)
    return np.asarray(np.where(low == high, low, pair_at_bottom))


def halve_finite(tile: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the finite among 2 x 2 cells, NaN if none is: float32 (2h, 2w) to (h, w)."""
    finite = np.isfinite(tile)
    # In double precision no sum of four float32 overflows.
    sums = _sum_of_four(np.where(finite, tile, 0).astype(np.float64))
    counts = _sum_of_four(finite.astype(np.float64))
    mean = np.full(sums.shape, np.nan, dtype=np.float64)
    np.divide(sums, counts, out=mean, where=counts > 0)
    return mean.astype(np.float32)


def _sum_of_four(tile: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((tile[0::2, 0::2] + tile[0::2, 1::2]) + (tile[1::2, 0::2] + tile[1::2, 1::2]))


def _lower_maximum(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(np.maximum(tile[1::2, 0::2], tile[1::2, 1::2]))


def _compression_tag(compression: str) -> int:
    if compression not in COMPRESSION_TAGS:
        raise ValueError(f"lossless tiles must be compressed by {', '.join(COMPRESSION_TAGS)}, got {compression!r}")
    return COMPRESSION_TAGS[compression]


def _compress(data: bytes, compression: Compression) -> bytes:
    if compression == "lzw":
        return bytes(imagecodecs.lzw_encode(data))
    if compression == "zstd":
        return bytes(imagecodecs.zstd_encode(data, level=_ZSTD_LEVEL))
    return bytes(imagecodecs.deflate_encode(data, level=_DEFLATE_LEVEL))


def _split_header(encoded: bytes) -> tuple[bytes, bytes, bytes]:
    """Split a JPEG's header: (everything up to the coded data, a table-only stream, the header without tables).

    An abbreviated stream in the sense of TIFF Technical Note 2: quantisation and Huffman tables move to JPEGTables,
    application markers are dropped.
    """
    tables, kept = b"", b""
    position = 2
    while True:
        marker, size = struct.unpack_from(">HH", encoded, position)
        segment = encoded[position : position + 2 + size]
        position += 2 + size
        if marker in (0xFFDB, 0xFFC4):
            tables += segment
        elif not 0xFFE0 <= marker <= 0xFFEF:
            kept += segment
        if marker == 0xFFDA:
            return encoded[:position], b"\xff\xd8" + tables + b"\xff\xd9", b"\xff\xd8" + kept
