"""libjpeg-turbo's cropped decoding, if the library is available: only the blocks of a window are transformed.

simplejpeg decodes whole images only. TurboJPEG's third interface also accepts a window: for a patch that lies across
tiles, decoding windows costs about half of decoding the tiles (benchmarks/README.md). The library is the system's
(libjpeg-turbo 3) or the one that the package ``turbojpeg`` carries; without either, whole tiles are decoded.
"""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Window

_DECOMPRESS, _PIXELS_RGB = 1, 0  # TJINIT_DECOMPRESS, TJPF_RGB
_REACH_PX = 4  # reach of the smooth upsampling of colours: one sample, on two or four pixels
# the library's names on Linux, macOS and Windows
_INSTALLED = ("libturbojpeg.so.0", "libturbojpeg.dylib", "turbojpeg.dll")


class _CropRegion(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int))


class Turbo:
    """One loaded TurboJPEG library. Safe from many threads: a decoder is lent to one call at a time.

    Args:
        path: of the shared library.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is older than libjpeg-turbo 3.
    """

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        self._new = _function(library, "tj3Init", [ctypes.c_int], handle)
        self._header = _function(library, "tj3DecompressHeader", [handle, text, size])
        self._crop = _function(library, "tj3SetCroppingRegion", [handle, _CropRegion])
        self._decode = _function(library, "tj3Decompress8", [handle, text, size, handle, ctypes.c_int, ctypes.c_int])
        self._message = _function(library, "tj3GetErrorStr", [handle], text)
        self._destroy = _function(library, "tj3Destroy", [handle], None)
        self._idle: deque[int] = deque()

    def decode(self, stream: bytes, window: Window, *, across: int, unit: int) -> NDArray[np.uint8]:
        """Decode a window of a JPEG.

        Smooth upsampling of the colours uses a pixel's neighbours, and the decoder has none beyond a window's left and
        right edge: a few more columns are decoded there and cut off, so that the pixels are those of the whole.

        Args:
            stream: a complete JPEG stream whose size and components were checked.
            window: all within the image.
            across: width of the whole image in px.
            unit: columns of one unit of blocks: 8 times the largest horizontal sampling factor.

        Returns:
            uint8 (height, width, 3), a view.

        Raises:
            ValueError: the stream is damaged, or the library cannot crop its subsampling.
        """
        first = max(0, window.column - _REACH_PX) // unit * unit
        last = min(across, window.right + _REACH_PX)
        pixels = np.empty((window.height, last - first, 3), dtype=np.uint8)
        handle = self._lend()
        failed = (
            self._header(handle, stream, len(stream))
            or self._crop(handle, _CropRegion(first, window.row, last - first, window.height))
            or self._decode(handle, stream, len(stream), pixels.ctypes.data, 0, _PIXELS_RGB)
        )
        if failed:
            reason = self._message(handle).decode(errors="replace")
            self._destroy(handle)
            raise ValueError(reason)
        self._idle.append(handle)
        return pixels[:, window.column - first : window.right - first]

    def _lend(self) -> int:
        try:
            return self._idle.pop()
        except IndexError:
            handle: int | None = self._new(_DECOMPRESS)
            if handle is None:
                raise MemoryError("libjpeg-turbo provides no decoder") from None
            return handle


@cache
def find_turbo() -> Turbo | None:
    """The TurboJPEG library of this machine, None without version 3."""
    for path in _candidates():
        try:
            return Turbo(path)
        except (OSError, AttributeError):
            continue
    return None


def _candidates() -> list[str]:
    package = find_spec("turbojpeg")
    if package is None or package.origin is None:
        return list(_INSTALLED)
    carried = sorted(Path(package.origin).parent.glob("turbojpeg.libs/libturbojpeg*"))
    return [*_INSTALLED, *(str(path) for path in carried)]


def _function(
    library: ctypes.CDLL, name: str, arguments: list[type], result: type | None = ctypes.c_int
) -> ctypes._NamedFuncPointer:
    function = library[name]
    function.argtypes, function.restype = arguments, result
    return function
