"""A slide: one file or one DICOM series, its levels and its pixels at any resolution."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from wsi.cores import usable_cores
from wsi.errors import ResolutionError, SlideError
from wsi.geometry import Frame, Level, Region, Window
from wsi.lazy import TILES_PER_CHUNK, level_to_dask
from wsi.raster import Image
from wsi.readers.base import BadTile, OnBadTile, Reader, StoredTiles
from wsi.readers.level_pixels import LevelPixels
from wsi.readers.levels import missing_levels
from wsi.readers.opening import name_slide, open_reader, open_source
from wsi.readers.profile import ColourProfile
from wsi.readers.resolution import Mpp, against_given, um_of
from wsi.readers.source import is_url
from wsi.resample import FramePlan
from wsi.windows import Windows

if TYPE_CHECKING:
    import dask.array

_FINGERPRINT_BYTES = 2**20

Colour = Literal["stored", "srgb"]
"""Pixels as the file stores them, or through its ICC profile in sRGB."""

UPSAMPLING = 1.15
"""How many times finer than a slide's own pixels may be asked for without a word: scanners called 40x write 0.226 to
0.252 um per px, and a network of one is run on slides of all; pixels of twice the size hold no nuclei's texture."""


class Slide:
    """One slide. A context manager; usable from many threads; pickles as its path and options.

    The file is opened on first use in each process, so a slide may be sent to workers or survive a fork.
    """

    def __init__(self, path: str | PathLike[str], *, mpp: Mpp | None = None, on_bad_tile: OnBadTile = "raise") -> None:
        if mpp is not None and not (math.isfinite(um_of(mpp)) and um_of(mpp) > 0):
            raise ValueError(f"mpp is um per level-0 px and must be positive, got {mpp}")
        if on_bad_tile not in ("raise", "white"):
            raise ValueError(f"on_bad_tile must be 'raise' or 'white', got {on_bad_tile!r}")
        self.path: Path | str = path if isinstance(path, str) and is_url(path) else Path(path)
        self._given_mpp = mpp
        self._on_bad_tile: OnBadTile = on_bad_tile
        self._lock = Lock()
        self._process = os.getpid()
        self._reader: Reader | None = None
        self._is_closed = False
        self._profiles: dict[int, ColourProfile | None] = {}

    @classmethod
    def open(cls, path: str | PathLike[str], *, mpp: Mpp | None = None, on_bad_tile: OnBadTile = "raise") -> Slide:
        """Open a slide.

        Args:
            path: a tiled TIFF (also SVS, Philips, OME), any other kind that OpenSlide knows, a JPEG or a PNG; the
                folder of a DICOM series; or the URL (s3://, gs://, az://, http://, https://) of a tiled TIFF, which
                needs the extra ``cloud``.
            mpp: um per level-0 px, for a file that states none; OverridingMpp(um) counts even against the file's.
            on_bad_tile: "raise" ends reading at a tile that cannot be decoded; "white" reads it as white and lists it
                in ``bad_tiles``.

        Raises:
            SlideNotFoundError: there is no such file.
            SlideFormatError: the file is damaged or not a slide.
            SlideError: the file may not be read.
            ValueError: mpp is not a positive number.
        """
        slide = cls(path, mpp=mpp, on_bad_tile=on_bad_tile)
        slide._open()
        return slide

    @property
    def name(self) -> str:
        """File name without suffix; of a folder its name."""
        if isinstance(self.path, Path):
            return name_slide(self.path)
        return PurePosixPath(unquote(urlsplit(self.path).path)).stem

    @property
    def levels(self) -> tuple[Level, ...]:
        """Stored resolutions, finest first."""
        return self._open().levels

    @property
    def mpp(self) -> float | None:
        """Um per level-0 px: from the file, else as given on opening; None if neither says."""
        stated, given = self._open().mpp, self._given_mpp
        return stated if given is None else um_of(given, stated)

    @property
    def properties(self) -> Mapping[str, str]:
        """Plain metadata without anything that identifies a patient; ``sentinode.format`` names the kind of file."""
        return self._open().properties

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before trusting sizes or colours, and what to do about it, in one line each.

        Doubts about the file's resolution are settled by a given ``mpp``; that both differ is then said.
        """
        reader = self._open()
        return (*self.mpp_warnings, *reader.warnings, *missing_levels(reader.levels))

    @property
    def mpp_warnings(self) -> tuple[str, ...]:
        """Those of the warnings that are about the resolution."""
        reader, given = self._open(), self._given_mpp
        return reader.mpp_warnings if given is None else against_given(given, reader.mpp)

    @property
    def has_opacity(self) -> bool:
        """Whether the file may hide pixels, which are read as white."""
        return self._open().has_opacity

    def seen_through(self) -> Slide:
        """The same slide with the colours that its opacity hides; tiles that cannot be decoded are white."""
        other = Slide(self.path, mpp=self._given_mpp, on_bad_tile="white")
        found = self._open().seen_through()
        if found is not self._open():
            other._reader = found
        return other

    @property
    def bad_tiles(self) -> tuple[BadTile, ...]:
        """Tiles read as white because they could not be decoded, since the slide was opened in this process."""
        return self._open().bad_tiles

    @property
    def frame(self) -> Frame:
        """Level 0, whole."""
        return self.frame_of(self.levels[0])

    def frame_of(self, level: int | Level) -> Frame:
        """A stored level, whole.

        Raises:
            IndexError: there is no such level.
        """
        stored = level if isinstance(level, Level) else self._level(level)
        return Frame(x=0.0, y=0.0, downsample=stored.downsample, shape=stored.shape, mpp=self.mpp)

    def frame_at(self, mpp: float) -> Frame:
        """The whole slide with pixels of ``mpp`` um; the last row and column may overhang.

        Raises:
            ResolutionError: the slide's own mpp is unknown.
        """
        return self.frame.resampled(mpp / self._known_mpp())

    def check_detail(self, mpp: float) -> None:
        """Refuse pixels finer than the slide has: they would be its own pixels repeated.

        Raises:
            ResolutionError: the slide's pixels are more than ``UPSAMPLING`` times as large as ``mpp`` um, or unknown.
        """
        own = self._known_mpp()
        if own > mpp * UPSAMPLING:
            raise ResolutionError(
                self.path,
                f"has pixels of {own:.4g} um, coarser than the {mpp:.4g} um asked for",
                mend="ask for its own (by --mpp, or with a model of it), or repeat its pixels with --upsample",
            )

    def upsampled(self, mpp: float) -> tuple[str, ...]:
        """Say that pixels of ``mpp`` um are finer than the slide's, if ``check_detail`` refuses them."""
        own = self._known_mpp()
        if own <= mpp * UPSAMPLING:
            return ()
        return (f"has pixels of {own:.4g} um, which are repeated for the {mpp:.4g} um asked for (--upsample)",)

    def level_for(self, downsample: float) -> Level:
        """The level that pixels of this many level-0 px are made of: the coarsest that is not coarser, or level 0."""
        fitting = [level for level in self.levels if level.downsample <= downsample * (1 + 1e-6)]
        return fitting[-1] if fitting else self.levels[0]

    def profile(self, level: int = 0) -> ColourProfile | None:
        """The ICC profile of a stored level; None if it has none.

        Raises:
            SlideError: the file cannot be read.
        """
        if level not in self._profiles:
            try:
                data = self._open().icc_profile(level)
            except OSError as error:
                raise SlideError(self.path, f"cannot be read: {error.strerror or error}") from error
            self._profiles[level] = None if data is None else ColourProfile(path=str(self.path), data=data)
        return self._profiles[level]

    def read(
        self, region: Region, level: int = 0, *, out: NDArray[np.uint8] | None = None, colour: Colour = "stored"
    ) -> Image:
        """Stored pixels of a level under a region, without resampling; white outside the slide and where missing.

        The image starts at the level's pixel that holds the region's top left corner and covers the whole region.

        Args:
            region: in level-0 px.
            level: index.
            out: uint8 (rows, columns, 3) to fill instead of a new array; reusing one saves the system from allocating
                memory.
            colour: "srgb" shows all pixels, also the white ones, through the level's ICC profile in sRGB; without a
                profile they stay as they are. Networks and everything measured here use the stored ones.

        Raises:
            TileError: a tile cannot be decoded.
            SlideFormatError: the profile is damaged.
            ValueError: ``out`` has another shape or type, or ``colour`` is another word.
        """
        if colour not in ("stored", "srgb"):
            raise ValueError(f"colour must be 'stored' or 'srgb', got {colour!r}")
        frame = self.frame_of(level)
        window = frame.window_of(region)
        pixels = self.read_window(level, window, out=out)
        profile = self.profile(level) if colour == "srgb" else None
        if profile is not None:
            pixels[...] = profile.to_srgb(pixels)
        return Image(frame=frame.part(window), array=pixels)

    def read_window(self, level: int, window: Window, *, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Stored pixels of a window of a level: uint8 (height, width, 3), white outside the slide and where missing.

        Raises:
            TileError: a tile cannot be decoded.
            ValueError: ``out`` has another shape or type.
        """
        out = _checked_out(out, (window.height, window.width, 3))
        self._open().read(level, window, out=out)
        return out

    def read_many(
        self,
        regions: Sequence[Region],
        level: int = 0,
        *,
        out: NDArray[np.uint8] | None = None,
        workers: int | None = None,
    ) -> NDArray[np.uint8]:
        """Stored pixels of many equal regions at once, on several threads.

        However the regions overlap and whatever their order, each tile of a tiled TIFF is decoded once for all of them.
        A pass in several calls is fastest with neighbouring regions in each (``geometry.tile_order``).

        Args:
            regions: in level-0 px; of equal size in px of the level.
            level: index.
            out: uint8 (n, rows, columns, 3) to fill instead of a new array.
            workers: threads; by default one per usable core.

        Returns:
            uint8 (n, rows, columns, 3), in the order of the regions, each as from ``read``.

        Raises:
            TileError: a tile cannot be decoded.
            ValueError: there are no regions, their sizes differ, or ``out`` does not fit.
        """
        if not regions:
            raise ValueError("read_many needs at least one region")
        frame = self._level(level).frame
        windows = Windows.of(frame.window_of(region) for region in regions)
        return self.read_windows(level, windows, out=out, workers=workers)

    def read_windows(
        self, level: int, windows: Windows, *, out: NDArray[np.uint8] | None = None, workers: int | None = None
    ) -> NDArray[np.uint8]:
        """``read_many`` for windows of a level, all of one size; they may lie outside."""
        out = _checked_out(out, (len(windows), *windows.shape, 3))
        self._open().read_many(level, windows, out=out, workers=workers or usable_cores())
        return out

    def tile_bytes(self, level: int, row: int, column: int) -> bytes | None:
        """One stored tile as a complete JPEG stream with its tables, which any decoder shows in the right colours.

        Args:
            level: index.
            row: of the tile in the level's tile grid.
            column: of the tile.

        Returns:
            The JPEG, without application markers; None where the tile is missing.

        Raises:
            ValueError: the slide has no JPEG tiles, or there is no such tile.
            TileError: the stored bytes are not a JPEG of the level's kind.
        """
        return self._open().tile_bytes(level, row, column)

    def stored_tiles(self, level: int) -> StoredTiles | None:
        """The tiles of a level as stored, for copying; None if the kind of file has none."""
        return self._open().stored_tiles(level)

    def to_dask(self, level: int = 0, *, tiles_per_chunk: int = TILES_PER_CHUNK) -> dask.array.Array:
        """A stored level as a lazy array, uint8 (rows, columns, 3), in chunks of whole tiles.

        Tasks carry the slide's path and options; each process opens the file once and reads on its own handle.

        Args:
            level: index.
            tiles_per_chunk: along each side of a chunk; small chunks cost more in tasks than in decoding.

        Raises:
            ValueError: tiles_per_chunk < 1.
        """
        self._level(level)
        return level_to_dask(self, level, tiles_per_chunk=tiles_per_chunk)

    def read_frame(self, frame: Frame, *, exact: bool = True) -> Image:
        """Pixels of a frame at any downsample: the mean over the area that each covers, white outside the slide.

        Averaged from the coarsest stored level that is not coarser than the frame; a frame finer than level 0
        averages level 0's pixels as constant squares (each repeats). A pixel depends only on its own position: windows
        of a frame are bit for bit the same as the whole. Memory beyond the result stays near 64 MiB of source pixels
        however large the frame.

        Args:
            frame: the frame to read.
            exact: False lets the decoder reduce JPEG tiles by 2, 4 or 8 if the frame is that much coarser than the
                level, which saves about half of the time. The pixels are then off by up to 1.5 grey levels on average
                and by 6 or less in 99 of 100 (measured on tissue); good enough for pictures.

        Raises:
            TileError: a tile cannot be decoded.
        """
        source = LevelPixels.of(self._open(), self.level_for(frame.downsample), frame, exact=exact)
        return Image(frame=frame, array=source.averaged(frame))

    def read_at(self, mpp: float, region: Region | None = None, *, exact: bool = True) -> Image:
        """Pixels of ``mpp`` um: the whole slide, or the pixels of that whole frame that a region touches.

        Args:
            mpp: um per px of the result.
            region: in level-0 px.
            exact: as for ``read_frame``.

        Raises:
            ResolutionError: the slide's own mpp is unknown.
            TileError: a tile cannot be decoded.
        """
        frame = self.frame_at(mpp)
        return self.read_frame(frame if region is None else frame.part(frame.window_of(region)), exact=exact)

    def is_missing(self, frame: Frame) -> bool:
        """True where no stored pixels lie under the frame, on the level that ``read_frame`` reads or a finer one."""
        level = self.level_for(frame.downsample)
        return not self._open().has_pixels(level.index, FramePlan.of(frame, source=level.downsample).window)

    def fingerprint(self) -> str:
        """Sha256 (hex) over the file's size and its first and last MiB.

        Distinguishes slides and detects truncation and replacement; it is not a checksum of the whole file, and for
        slides of several files (MIRAX, DICOM) it covers only the one opened.

        Raises:
            SlideError: the file cannot be read.
        """
        source = open_source(self.path)
        try:
            digest = hashlib.sha256(f"{source.size}\n".encode())
            digest.update(source.read(0, _FINGERPRINT_BYTES))
            digest.update(source.read(max(0, source.size - _FINGERPRINT_BYTES), _FINGERPRINT_BYTES))
        except OSError as error:
            raise SlideError(self.path, f"cannot be read: {error.strerror or error}") from error
        finally:
            source.close()
        return digest.hexdigest()

    def close(self) -> None:
        """Close the file; reading afterwards raises ValueError."""
        with self._lock:
            reader, self._reader, self._is_closed = self._reader, None, True
        if reader is not None and self._process == os.getpid():
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unopened, (self.path, self._given_mpp, self._on_bad_tile)

    def _open(self) -> Reader:
        if self._process != os.getpid():
            # After a fork neither the parent's handle is ours nor a lock that one of its threads may hold.
            self._lock, self._reader, self._process = Lock(), None, os.getpid()
        with self._lock:
            if self._is_closed:
                raise ValueError(f"{self.path}: the slide is closed")
            if self._reader is None:
                self._reader = open_reader(self.path, self._on_bad_tile)
            return self._reader

    def _level(self, index: int) -> Level:
        if not 0 <= index < len(self.levels):
            raise IndexError(f"{self.name} has levels 0 to {len(self.levels) - 1}, not {index}")
        return self.levels[index]

    def _known_mpp(self) -> float:
        mpp = self.mpp
        if mpp is None:
            raise ResolutionError(self.path, "; ".join(self._open().mpp_warnings) or "states no resolution")
        return mpp


def _unopened(path: Path | str, mpp: Mpp | None, on_bad_tile: OnBadTile) -> Slide:
    return Slide(path, mpp=mpp, on_bad_tile=on_bad_tile)


def _checked_out(out: NDArray[np.uint8] | None, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if out is None:
        return np.empty(shape, dtype=np.uint8)
    if out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"out must be uint8 {shape}, got {out.dtype} {out.shape}")
    return out
