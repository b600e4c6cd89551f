"""Small slide files for tests, and what other libraries see in them."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image as Pillow

from wsi.errors import TileError
from wsi.geometry import Frame, Window
from wsi.raster import Image
from wsi.readers.base import Reader
from wsi.stain import STAIN_VECTORS, od_to_rgb
from wsi.windows import Windows

RNG = np.random.default_rng(3)


def picture(height: int = 200, width: int = 300) -> NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=-1)
    noisy = image[height // 5 : height // 2, width // 5 : width // 2]
    noisy[...] = RNG.integers(0, 256, noisy.shape)
    return image.astype(np.uint8)


def write_tiff(path: Path, image: NDArray[np.uint8], **options: Any) -> Path:
    settings_ = {"tile": (64, 64), "photometric": "rgb", "metadata": None} | options
    tifffile.imwrite(path, image, **settings_)
    return path


def forget_tiles(path: Path, *, page: int = 0, only: int | None = None) -> None:
    """Make a tile, or all of a level, missing, as CAMELYON's scanners leave out background: offset and byte count 0."""
    with tifffile.TiffFile(path) as file:
        found = file.pages[page]
        assert isinstance(found, tifffile.TiffPage)
        tags = [found.tags[name] for name in ("TileOffsets", "TileByteCounts")]
        tables = [(tag.valueoffset, tag.count, {4: 4, 16: 8}[int(tag.dtype)]) for tag in tags]
    data = bytearray(path.read_bytes())
    for at, count, size in tables:
        for tile in range(count) if only is None else (only,):
            data[at + tile * size : at + (tile + 1) * size] = bytes(size)
    path.write_bytes(data)


def drop_tag(path: Path, name: str) -> None:
    """Take a tag from the first page: its entry gets a number that no reader knows."""
    with tifffile.TiffFile(path) as file:
        found, order = file.pages.first.tags[name], file.byteorder
    data = bytearray(path.read_bytes())
    data[found.offset : found.offset + 2] = struct.pack(order + "H", 65_001)
    path.write_bytes(data)


def through_openslide(path: Path, level: int = 0) -> NDArray[np.uint8]:
    """A level as OpenSlide reads it, laid over white."""
    with OpenSlide(str(path)) as slide:
        pixels = slide.read_region((0, 0), level, slide.level_dimensions[level])
    white = Pillow.new("RGB", pixels.size, (255, 255, 255))
    white.paste(pixels, mask=pixels.getchannel("A"))
    return np.asarray(white)


def stained(haematoxylin: NDArray[np.floating], eosin: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The colours of two stains laid over each other: floating (...) twice to uint8 (..., 3)."""
    unit = STAIN_VECTORS / np.linalg.norm(STAIN_VECTORS, axis=1, keepdims=True)
    return od_to_rgb(np.stack([haematoxylin, eosin], axis=-1).astype(np.float32) @ unit[:2].astype(np.float32))


def pixels(reader: Reader, level: int, window: Window) -> NDArray[np.uint8]:
    out = RNG.integers(0, 256, (*window.shape, 3), dtype=np.uint8)  # what is not filled shows
    reader.read(level, window, out=out)
    return out


def whole(reader: Reader, level: int = 0) -> NDArray[np.uint8]:
    return pixels(reader, level, Window.whole(reader.levels[level].shape))


def windows(*sides: tuple[int, int, int, int]) -> Windows:
    """From (row, column, height, width) each."""
    return Windows.of(Window(row=one[0], column=one[1], height=one[2], width=one[3]) for one in sides)


class ArraySlide:
    """An array as a slide at 2 um/px; tiles of 32 px named as missing are white and not stored."""

    def __init__(self, array: np.ndarray, missing: Sequence[tuple[int, int]] = (), *, fails: bool = False) -> None:
        self.array = array.copy()
        self.fails = fails
        self.stored = np.ones((-(-array.shape[0] // 32), -(-array.shape[1] // 32)), bool)
        for row, column in missing:
            self.stored[row, column] = False
            self.array[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32] = 255

    def frame_at(self, mpp: float) -> Frame:
        assert mpp == 2.0
        return Frame(x=0, y=0, downsample=4, shape=(self.array.shape[0], self.array.shape[1]), mpp=0.5)

    def read_frame(self, frame: Frame) -> Image:
        if self.fails:
            raise TileError("slide.tif", "cannot be decoded")
        out = np.full((*frame.shape, 3), 255, np.uint8)
        top, left = round(frame.y / 4), round(frame.x / 4)
        rows, columns = self.array.shape[:2]
        low_row, low_column = max(0, top), max(0, left)
        part = self.array[low_row : min(top + frame.shape[0], rows), low_column : min(left + frame.shape[1], columns)]
        out[low_row - top :, low_column - left :][: part.shape[0], : part.shape[1]] = part
        return Image(frame=frame, array=out)

    def is_missing(self, frame: Frame) -> bool:
        top, left = max(0, math.floor(frame.y / 128)), max(0, math.floor(frame.x / 128))
        bottom = math.ceil((frame.y + frame.shape[0] * frame.downsample) / 128)
        right = math.ceil((frame.x + frame.shape[1] * frame.downsample) / 128)
        return not self.stored[top : max(0, bottom), left : max(0, right)].any()
