"""Every kind of slide that OpenSlide knows and that is not read directly: MIRAX, Hamamatsu, Leica, DICOM and others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike, fspath
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideError
from PIL import Image as Pillow

from wsi.errors import SlideFormatError, TileError
from wsi.geometry import Level
from wsi.readers.base import BadTile, OnBadTile, measure_downsample, settle_mpp

_MAX_SIDE_PX = 4_000_000
_DEFAULT_TILE_PX = 256
_ABOUT_THE_FILE = (
    "openslide.vendor",
    "openslide.objective-power",
    "openslide.quickhash-1",
    "openslide.mpp-x",
    "openslide.mpp-y",
)  # Everything else may identify a patient: barcode, comment (Aperio's Title, User, Filename), vendors' own names.


def detect_vendor(path: str | PathLike[str]) -> str | None:
    """OpenSlide's name for the kind of file, None where it does not know it."""
    try:
        vendor: str | None = OpenSlide.detect_format(fspath(path))
    except OpenSlideError:
        return None
    return vendor


class OpenSlideReader:
    """Reads through OpenSlide; see ``wsi.readers.base.Reader``. Safe from many threads.

    On levels whose downsample is no whole number, OpenSlide places a window by level-0 position: pixels may be off
    by up to half a level-0 px.

    Args:
        path: the file.
        on_bad_tile: "raise", or "white": tiles that cannot be read are white and listed in ``bad_tiles``.

    Raises:
        SlideFormatError: OpenSlide does not know the file or refuses it.
    """

    def __init__(self, path: str | PathLike[str], *, on_bad_tile: OnBadTile = "raise") -> None:
        self._path = fspath(path)
        self._on_bad_tile = on_bad_tile
        self._bad: set[BadTile] = set()
        self._lock = Lock()
        self._slide = self._open()
        told = self._slide.properties
        self.levels = _measure_levels(self._slide)
        if max(self.levels[0].shape) > _MAX_SIDE_PX:
            raise SlideFormatError(path, f"claims an image of {self.levels[0].width} x {self.levels[0].height} px")
        self.mpp = settle_mpp(path, _number(told.get("openslide.mpp-x")), _number(told.get("openslide.mpp-y")))
        self.properties: Mapping[str, str] = {
            "sentinode.format": str(told.get("openslide.vendor", "openslide")),
            **{name: str(told[name]) for name in _ABOUT_THE_FILE if name in told},
        }
        self._bounds = _stored_bounds(told, self.levels[0])

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """See ``wsi.readers.base.Reader``."""
        return tuple(sorted(self._bad.copy()))

    def read(self, level: int, *, row: int, column: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window; see ``wsi.readers.base.Reader``. White where nothing is stored.

        Raises:
            TileError: OpenSlide cannot read the window, and bad tiles are to raise.
        """
        size, height, width = self.levels[level], *out.shape[:2]
        out[...] = 255
        top, bottom = max(row, 0), min(row + height, size.height)
        left, right = max(column, 0), min(column + width, size.width)
        if top >= bottom or left >= right:
            return
        inside = out[top - row : bottom - row, left - column : right - column]
        try:
            inside[...] = self._pixels(level, top=top, bottom=bottom, left=left, right=right)
        except TileError:
            if self._on_bad_tile == "raise":
                raise
            self._read_around_bad(size, top=top, left=left, out=inside)

    def _pixels(self, level: int, *, top: int, bottom: int, left: int, right: int) -> NDArray[np.uint8]:
        size, slide = self.levels[level], self._slide
        origin = round(left * size.downsample), round(top * size.downsample)
        try:
            pixels = slide.read_region(origin, level, (right - left, bottom - top))
        except OpenSlideError as error:
            self._reopen(slide)
            raise TileError(
                self._path,
                f"OpenSlide cannot read it: {error}",
                where=f"level {level}, rows {top} to {bottom}, columns {left} to {right}",
                mend="copy the slide again from its source and compare the checksum",
            ) from error
        white = Pillow.new("RGB", pixels.size, (255, 255, 255))
        white.paste(pixels, mask=pixels.getchannel("A"))
        return np.asarray(white)

    def _read_around_bad(self, size: Level, *, top: int, left: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` tile by tile; a tile that OpenSlide cannot read is white and listed."""
        bottom, right = top + out.shape[0], left + out.shape[1]
        for tile_row in range(top // size.tile_height, -(-bottom // size.tile_height)):
            y0, y1 = max(top, tile_row * size.tile_height), min(bottom, (tile_row + 1) * size.tile_height)
            for tile_column in range(left // size.tile_width, -(-right // size.tile_width)):
                x0, x1 = max(left, tile_column * size.tile_width), min(right, (tile_column + 1) * size.tile_width)
                part = out[y0 - top : y1 - top, x0 - left : x1 - left]
                try:
                    part[...] = self._pixels(size.index, top=y0, bottom=y1, left=x0, right=x1)
                except TileError as error:
                    part[...] = 255
                    bad = BadTile(level=size.index, row=tile_row, column=tile_column, reason=error.reason)
                    self._bad.add(bad)

    def has_pixels(self, level: int, *, row: int, column: int, height: int, width: int) -> bool:
        """False where the window lies outside the level, or outside the bounds that the file gives for its pixels."""
        size = self.levels[level]
        left, top, right, bottom = (edge / size.downsample for edge in self._bounds)
        return column < right and column + width > left and row < bottom and row + height > top

    def close(self) -> None:
        """Give the file back."""
        self._slide.close()

    def _open(self) -> OpenSlide:
        try:
            return OpenSlide(self._path)
        except (OpenSlideError, OSError) as error:
            raise SlideFormatError(self._path, f"OpenSlide cannot open it: {error}") from error

    def _reopen(self, failed: OpenSlide) -> None:
        """Replace a handle after an error, which is final for it: every later call on it would fail, too."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()


def _measure_levels(slide: OpenSlide) -> tuple[Level, ...]:
    full = slide.level_dimensions[0]
    return tuple(
        Level(
            index=index,
            width=width,
            height=height,
            tile_width=int(slide.properties.get(f"openslide.level[{index}].tile-width", _DEFAULT_TILE_PX)),
            tile_height=int(slide.properties.get(f"openslide.level[{index}].tile-height", _DEFAULT_TILE_PX)),
            downsample=measure_downsample(full, (width, height), told=downsample) if index else 1.0,
        )
        for index, ((width, height), downsample) in enumerate(
            zip(slide.level_dimensions, slide.level_downsamples, strict=True)
        )
    )


def _stored_bounds(told: Mapping[str, str], full: Level) -> tuple[float, float, float, float]:
    x, y, width, height = (_number(told.get(f"openslide.bounds-{name}")) for name in ("x", "y", "width", "height"))
    if any(math.isnan(value) for value in (x, y, width, height)):
        return 0.0, 0.0, float(full.width), float(full.height)
    return x, y, x + width, y + height


def _number(text: str | None) -> float:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
