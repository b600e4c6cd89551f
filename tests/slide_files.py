"""Small slide files for tests, and what other libraries see in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from openslide import OpenSlide
from PIL import Image as Pillow

from wsi.readers.base import Reader

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


def through_openslide(path: Path, level: int = 0) -> NDArray[np.uint8]:
    """A level as OpenSlide reads it, laid over white."""
    with OpenSlide(str(path)) as slide:
        pixels = slide.read_region((0, 0), level, slide.level_dimensions[level])
    white = Pillow.new("RGB", pixels.size, (255, 255, 255))
    white.paste(pixels, mask=pixels.getchannel("A"))
    return np.asarray(white)


def window(reader: Reader, level: int = 0, *, row: int, column: int, height: int, width: int) -> NDArray[np.uint8]:
    out = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)  # what is not filled shows
    reader.read(level, row=row, column=column, out=out)
    return out


def whole(reader: Reader, level: int = 0) -> NDArray[np.uint8]:
    size = reader.levels[level]
    return window(reader, level, row=0, column=0, height=size.height, width=size.width)
