"""Slides that OpenSlide knows and that are not read directly: MIRAX, Hamamatsu, Leica, DICOM and others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import takewhile
from os import PathLike, fspath
from pathlib import Path
from threading import Lock
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from openslide import OpenSlide, OpenSlideError
from PIL import Image as Pillow
from PIL import ImageCms

from wsi.errors import SlideFormatError, TileError
from wsi.geometry import Level, Window
from wsi.readers.base import BadTile, OnBadTile, Reader, measure_downsample
from wsi.readers.colours import Statement, doubts, page_statements, ycbcr_to_rgb
from wsi.readers.dicom import read_statements, series_files, strangers, unstored
from wsi.readers.levels import has_shape
from wsi.readers.resolution import Resolution, settle
from wsi.readers.scale import measure_mpp, name_format
from wsi.readers.structure import TIFF_MAGICS, check_ndpi, is_ndpi, read_structure

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
    """OpenSlide's name for the kind of file, None if unknown."""
    try:
        vendor: str | None = OpenSlide.detect_format(fspath(path))
    except OpenSlideError:
        return None
    return vendor


def is_vendors_own(path: Path, head: bytes) -> bool:
    """Whether only OpenSlide may read it: NDPI bends TIFF's offsets, and MIRAX begins with a JPEG.

    What a file is follows from its content: a TIFF that is called .mrxs is a TIFF, and is NDPI only with NDPI's tag.
    """
    return is_ndpi(path) if head.startswith(TIFF_MAGICS) else path.suffix.lower() == ".mrxs"


class OpenSlideReader(Reader):
    """Reads through OpenSlide.

    On levels whose downsample is not a whole number, OpenSlide reads a window by level-0 position: pixels may be off by
    up to half a level-0 px.

    Args:
        path: the file.
        on_bad_tile: "raise", or "white": tiles that cannot be read are white and listed in ``bad_tiles``.
        resolution: used instead of OpenSlide's, which takes a missing unit of a plain TIFF for the inch.
        statements: what images of (width, height) px say of their colours: OpenSlide follows the tag, so where the
            stream says YCbCr under a tag of RGB its pixels are converted here.

    Raises:
        SlideFormatError: OpenSlide does not know the file or refuses it; or its colours are RGB under a tag of YCbCr,
            which cannot be restored from what OpenSlide makes of them.
    """

    suffixes = frozenset({".ndpi", ".mrxs", ".scn", ".bif", ".dcm"})

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        on_bad_tile: OnBadTile = "raise",
        resolution: Resolution | None = None,
        statements: Mapping[tuple[int, int], Statement] = MappingProxyType({}),
    ) -> None:
        self._path = fspath(path)
        self._on_bad_tile = on_bad_tile
        self._bad: set[BadTile] = set()
        self._lock = Lock()
        self._slide = self._open()
        stated = self._slide.properties
        self.levels = _measure_levels(self._slide)
        lost = self._slide.level_count - len(self.levels)
        self._profile, doubt = _read_profile(self._slide)
        found = [statements.get((level.width, level.height)) for level in self.levels]
        self._is_ycbcr = tuple(one is not None and one.tag != one.colours == "YCbCr" for one in found)
        if any(one is not None and one.tag != one.colours == "RGB" for one in found):
            raise SlideFormatError(
                path,
                "says that its colours are YCbCr, but its compressed tiles say RGB, and OpenSlide, which reads it, "
                "follows the first",
                mend="correct the file (in DICOM: Photometric Interpretation RGB), or export it anew as TIFF",
            )
        self.warnings = (
            *((f"has {lost} levels of another shape than level 0; they are left out",) if lost else ()),
            *doubts(one for one in found if one is not None),
            *doubt,
        )
        if max(self.levels[0].shape) > _MAX_SIDE_PX:
            raise SlideFormatError(path, f"claims an image of {self.levels[0].width} x {self.levels[0].height} px")
        resolution = resolution or settle(
            _number(stated.get("openslide.mpp-x")), _number(stated.get("openslide.mpp-y"))
        )
        self.mpp, self.mpp_warnings = resolution.mpp, resolution.warnings
        self.properties: Mapping[str, str] = {
            "sentinode.format": str(stated.get("openslide.vendor", "openslide")),
            **{name: str(stated[name]) for name in _ABOUT_THE_FILE if name in stated},
        }
        self._bounds = _stored_bounds(stated, self.levels[0])

    @classmethod
    def open(cls, path: Path, head: bytes, *, on_bad_tile: OnBadTile) -> OpenSlideReader | None:
        """See ``Reader.open``; of a TIFF OpenSlide itself says why it cannot be opened."""
        if not head.startswith(TIFF_MAGICS):
            vendor = detect_vendor(path)
            if vendor is None:
                return None
            if vendor != "dicom":
                return cls(path, on_bad_tile=on_bad_tile)
            _check_series(path)
            reader = cls(path, on_bad_tile=on_bad_tile, statements=read_statements(path))
            part = unstored(path)
            if part is not None:
                doubt = f"stores {part[0]} of {part[1]} tiles of its finest level; the others are taken for glass"
                reader.warnings = (*reader.warnings, doubt)
            return reader
        if is_ndpi(path):
            check_ndpi(path)
            return cls(path, on_bad_tile=on_bad_tile)
        pages = read_structure(path)
        is_plain = name_format(pages[0]) == "tiff"
        return cls(
            path,
            on_bad_tile=on_bad_tile,
            resolution=measure_mpp(path, pages[0]) if is_plain else None,
            statements=page_statements(path, pages),
        )

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """See ``Reader.bad_tiles``."""
        return tuple(sorted(self._bad.copy()))

    def read(self, level: int, window: Window, *, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with a window; see ``Reader.read``.

        Raises:
            TileError: OpenSlide cannot read the window, and bad tiles raise.
        """
        size = self.levels[level]
        out[...] = 255
        inside = window.clipped(size.shape)
        if inside is None:
            return
        target = out[inside.within(window).slices]
        try:
            target[...] = self._pixels(size, inside)
        except TileError:
            if self._on_bad_tile == "raise":
                raise
            self._read_around_bad(size, inside, target)

    def _pixels(self, size: Level, window: Window) -> NDArray[np.uint8]:
        slide, first = self._slide, size.frame.part(window)
        try:
            pixels = slide.read_region((round(first.x), round(first.y)), size.index, (window.width, window.height))
        except OpenSlideError as error:
            self._reopen(slide)
            raise TileError(
                self._path,
                f"OpenSlide cannot read it: {error}",
                where=f"level {size.index}, rows {window.row} to {window.bottom}, "
                f"columns {window.column} to {window.right}",
                mend="copy the slide again from its source and compare the checksum",
            ) from error
        alpha = pixels.getchannel("A")
        if self._is_ycbcr[size.index]:
            pixels = Pillow.fromarray(ycbcr_to_rgb(np.asarray(pixels)[:, :, :3]))
        white = Pillow.new("RGB", pixels.size, (255, 255, 255))
        white.paste(pixels, mask=alpha)
        return np.asarray(white)

    def _read_around_bad(self, size: Level, window: Window, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` tile by tile; a tile that OpenSlide cannot read is white and listed."""
        for (row, column), own, _ in window.cut(size.tile_shape):
            try:
                out[own.slices] = self._pixels(size, own.shifted(window.row, window.column))
            except TileError as error:
                out[own.slices] = 255
                self._bad.add(BadTile(level=size.index, row=row, column=column, reason=error.reason))

    def has_pixels(self, level: int, window: Window) -> bool:
        """False if the window lies outside the level, or outside the bounds that the file states for its pixels."""
        left, top, right, bottom = self._bounds
        rows, columns = self.levels[level].frame.fractions((left, right), (top, bottom))
        return bool(
            window.row < rows[1]
            and window.bottom > rows[0]
            and window.column < columns[1]
            and window.right > columns[0]
        )

    def icc_profile(self, level: int) -> bytes | None:
        """See ``Reader.icc_profile``: one for all levels."""
        del level
        return self._profile

    def close(self) -> None:
        """Close the file."""
        self._slide.close()

    def _open(self) -> OpenSlide:
        try:
            return OpenSlide(self._path)
        except (OpenSlideError, OSError) as error:
            mend = "compare its checksum with the source's; if it is whole, export it anew as TIFF"
            raise SlideFormatError(self._path, f"OpenSlide cannot open it: {error}", mend=mend) from error

    def _reopen(self, failed: OpenSlide) -> None:
        """Replace a handle after an error, which is permanent: every later call on it would fail, too."""
        with self._lock:
            if self._slide is failed:
                self._slide = self._open()


def _measure_levels(slide: OpenSlide) -> tuple[Level, ...]:
    """The levels up to the first that has another shape than level 0."""
    full = slide.level_dimensions[0]
    sound = list(takewhile(lambda size: has_shape(full, size), slide.level_dimensions))
    return tuple(
        Level(
            index=index,
            width=width,
            height=height,
            tile_width=int(slide.properties.get(f"openslide.level[{index}].tile-width", _DEFAULT_TILE_PX)),
            tile_height=int(slide.properties.get(f"openslide.level[{index}].tile-height", _DEFAULT_TILE_PX)),
            downsample=measure_downsample(full, (width, height), stated=downsample) if index else 1.0,
        )
        for index, ((width, height), downsample) in enumerate(zip(sound, slide.level_downsamples, strict=False))
    )


def _read_profile(slide: OpenSlide) -> tuple[bytes | None, tuple[str, ...]]:
    """The slide's ICC profile, as littlecms writes it, and a warning if it is damaged."""
    try:
        profile = slide.color_profile
    except ImageCms.PyCMSError:
        return None, ("has an ICC profile that cannot be read; it is left out: the colours are as stored",)
    return None if profile is None else profile.tobytes(), ()


def _check_series(path: Path) -> None:
    """Refuse a DICOM file whose series holds another slide, too: OpenSlide would take one of them for all.

    Raises:
        SlideFormatError: it does.
    """
    pair = strangers(series_files(path))
    if pair is not None:
        raise SlideFormatError(
            path,
            f"is of a series of which {pair[0].name} and {pair[1].name} are different pictures",
            mend="give each slide its own Series Instance UID, or put them into separate folders",
        )


def _stored_bounds(stated: Mapping[str, str], full: Level) -> tuple[float, float, float, float]:
    x, y, width, height = (_number(stated.get(f"openslide.bounds-{name}")) for name in ("x", "y", "width", "height"))
    if any(math.isnan(value) for value in (x, y, width, height)):
        return 0.0, 0.0, float(full.width), float(full.height)
    return x, y, x + width, y + height


def _number(text: str | None) -> float:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
