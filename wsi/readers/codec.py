"""From the stored bytes of a TIFF tile to RGB pixels."""

from __future__ import annotations

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi.readers.colours import JPEG, JPEG2000_KINDS, RGB, YCBCR, Codestream, ycbcr_to_rgb
from wsi.readers.jpeg import JpegTiles
from wsi.readers.structure import TiffPage

_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _ZSTD = 1, 5, 8, 32946, 50000
COMPRESSIONS = {
    _NONE: "none",
    _LZW: "lzw",
    JPEG: "jpeg",
    _DEFLATE: "deflate",
    _OLD_DEFLATE: "deflate",
    _ZSTD: "zstd",
    **dict.fromkeys(JPEG2000_KINDS, "jpeg2000"),
}
"""Names of the TIFF compressions that can be decoded."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_PREMULTIPLIED_ALPHA, _ALPHA = 1, 2


def can_decode(page: TiffPage) -> bool:
    """Whether ``TileCodec`` supports this kind of tile: 8-bit grey, RGB, RGBA or YCbCr JPEG, samples together."""
    if page.compression not in COMPRESSIONS or page.planar != 1 or page.fill_order != 1:
        return False
    allowed: dict[int, tuple[int, ...]]
    if page.compression == JPEG:
        allowed = {1: (_WHITE_IS_ZERO, _BLACK_IS_ZERO), 3: (RGB, YCBCR)}
    elif page.compression in JPEG2000_KINDS:
        allowed = {1: (_BLACK_IS_ZERO,), 3: (RGB, YCBCR)}
    else:
        grey = (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
        allowed = {1: grey, 3: (RGB,), 4: (RGB,)}
    has_predictor = page.compression in (_LZW, _DEFLATE, _OLD_DEFLATE, _ZSTD)
    predictors = (1, 2) if has_predictor else (1, 2, 3)  # the tag is meaningless for the other compressions
    return page.photometric in allowed.get(page.samples, ()) and page.predictor in predictors


class TileCodec:
    """Decodes the tiles of one page; holds no state between tiles.

    Args:
        page: one for which ``can_decode`` holds, its Photometric that of its tiles (``colours.settle_pages``).
    """

    def __init__(self, page: TiffPage) -> None:
        self._page = page
        self._shape = (page.tile_height, page.tile_width, page.samples)
        self.jpeg = JpegTiles(page) if page.compression == JPEG else None

    def decode(self, data: bytes, out: NDArray[np.uint8]) -> None:
        """Decode one tile.

        Args:
            data: as stored.
            out: uint8 (tile_height, tile_width, 3), contiguous; grey is written three times.

        Raises:
            ValueError, RuntimeError: the bytes are not a valid tile.
        """
        if self.jpeg is not None:
            self.jpeg.decode(data, out)
        elif self._page.compression in JPEG2000_KINDS:
            out[...] = self._jpeg2000(data)
        else:
            out[...] = self._plain(data)

    def _jpeg2000(self, data: bytes) -> NDArray[np.uint8]:
        # The size in the codestream's header is checked first: the decoder allocates memory accordingly.
        header = Codestream.of(data)
        if (header.height, header.width) != self._shape[:2]:
            raise ValueError(f"JPEG 2000 of {header.width} x {header.height} px")
        # Without its boxes: the decoder would act on their colour space, too.
        tile = np.asarray(imagecodecs.jpeg2k_decode(data[header.start :]))
        if tile.dtype != np.uint8 or tile.shape not in (self._shape, self._shape[:2]):
            raise ValueError(f"JPEG 2000 with {tile.dtype} pixels of shape {tile.shape}")
        tile = tile.reshape(self._shape)
        # The decoder takes subsampled components for YCbCr and converts them as it brings them to one size.
        return ycbcr_to_rgb(tile) if self._page.photometric == YCBCR and not header.is_subsampled else tile

    def _plain(self, data: bytes) -> NDArray[np.uint8]:
        size = self._shape[0] * self._shape[1] * self._shape[2]
        if self._page.compression == _NONE:
            flat = np.frombuffer(data, dtype=np.uint8)
        elif self._page.compression == _LZW:
            flat = np.frombuffer(imagecodecs.lzw_decode(data, out=size), dtype=np.uint8)
        elif self._page.compression == _ZSTD:
            flat = np.frombuffer(imagecodecs.zstd_decode(data, out=size), dtype=np.uint8)
        else:
            flat = np.frombuffer(imagecodecs.zlib_decode(data, out=size), dtype=np.uint8)
        if flat.size != size:
            raise ValueError(f"{flat.size} bytes of pixels instead of {size}")
        tile = flat.reshape(self._shape)
        if self._page.predictor == 2 and self._page.compression != _NONE:
            tile = np.asarray(imagecodecs.delta_decode(tile, axis=1), dtype=np.uint8)
        if self._page.samples == 4:
            return _over_white(tile, self._page.extra_samples[:1])
        return _grey(tile, self._page) if self._page.samples == 1 else tile


def _grey(tile: NDArray[np.uint8], page: TiffPage) -> NDArray[np.uint8]:
    tile = tile.reshape(page.tile_height, page.tile_width, 1)
    return 255 - tile if page.photometric == _WHITE_IS_ZERO else tile


def _over_white(tile: NDArray[np.uint8], extra_samples: tuple[int, ...]) -> NDArray[np.uint8]:
    colour, alpha = tile[:, :, :3], tile[:, :, 3:]
    if extra_samples == (_PREMULTIPLIED_ALPHA,):
        return np.asarray(np.minimum(colour + (255 - alpha).astype(np.uint16), 255), dtype=np.uint8)
    if extra_samples == (_ALPHA,):
        over = colour * alpha.astype(np.uint16) + 255 * (255 - alpha).astype(np.uint16)
        return np.asarray((over + 127) // 255, dtype=np.uint8)
    return np.ascontiguousarray(colour)
