"""A slide: one file, its levels and its pixels at any resolution."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi.errors import ResolutionError, SlideError, SlideFormatError, SlideNotFoundError
from wsi.geometry import Frame, Level, Region
from wsi.raster import Image
from wsi.readers.base import Reader
from wsi.readers.flat import FlatReader
from wsi.readers.openslide import OpenSlideReader, detect_vendor
from wsi.readers.structure import TIFF_MAGICS, read_structure
from wsi.readers.tiff import TiffReader, find_readable_levels
from wsi.resample import average, plan_axis

_BLOCK_BYTES = 64 * 2**20  # source pixels held at a time by read_frame
_FINGERPRINT_BYTES = 2**20
_PICTURE_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
# TIFFs whose levels are plain tiled pages; OpenSlide's other vendors overlap tiles or keep several images in a file.
_DIRECT_VENDORS = (None, "generic-tiff", "aperio", "philips")
_ACCEPTED = "give a tiled TIFF, SVS, DICOM or another kind of slide that OpenSlide opens, or a JPEG or PNG"


class Slide:
    """One slide. A context manager; usable from many threads; pickles as its path and options.

    The file is opened at the first use in each process, so a slide may be sent to workers or survive a fork.
    """

    def __init__(self, path: str | PathLike[str], *, mpp: float | None = None) -> None:
        if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
            raise ValueError(f"mpp is um per level-0 px and must be positive, got {mpp}")
        self.path = Path(path)
        self._given_mpp = mpp
        self._lock = Lock()
        self._process = os.getpid()
        self._reader: Reader | None = None
        self._is_closed = False

    @classmethod
    def open(cls, path: str | PathLike[str], *, mpp: float | None = None) -> Slide:
        """Open a slide.

        Args:
            path: a tiled TIFF (also SVS, Philips, OME), any other kind that OpenSlide knows, a JPEG or a PNG.
            mpp: um per level-0 px, in place of what the file says.

        Raises:
            SlideNotFoundError: there is no such file.
            SlideFormatError: the file is damaged or no slide.
            SlideError: the file may not be read.
            ValueError: mpp is not a positive number.
        """
        slide = cls(path, mpp=mpp)
        slide._open()
        return slide

    @property
    def name(self) -> str:
        """File name without suffix."""
        return self.path.stem

    @property
    def levels(self) -> tuple[Level, ...]:
        """Stored resolutions, finest first."""
        return self._open().levels

    @property
    def mpp(self) -> float | None:
        """Um per level-0 px: as given on opening, else as the file says; None where neither does."""
        return self._given_mpp if self._given_mpp is not None else self._open().mpp

    @property
    def properties(self) -> Mapping[str, str]:
        """Plain metadata without anything that identifies a patient; ``sentinode.format`` names the kind of file."""
        return self._open().properties

    @property
    def frame(self) -> Frame:
        """Level 0, whole."""
        return self.frame_of(self.levels[0])

    def frame_of(self, level: int | Level) -> Frame:
        """A stored level, whole."""
        stored = self.levels[level] if isinstance(level, int) else level
        return Frame(x=0.0, y=0.0, downsample=stored.downsample, shape=stored.shape, mpp=self.mpp)

    def frame_at(self, mpp: float) -> Frame:
        """The whole slide with pixels of ``mpp`` um; the last row and column may overhang.

        Raises:
            ResolutionError: the slide's own mpp is not known.
        """
        downsample = mpp / self._known_mpp()
        full = self.levels[0]
        # A hair less than the quotient: 1000.0000000001 columns are 1000.
        rows, columns = (max(1, math.ceil(side / downsample * (1 - 1e-12))) for side in full.shape)
        return Frame(x=0.0, y=0.0, downsample=downsample, shape=(rows, columns), mpp=self.mpp)

    def read(self, region: Region, level: int = 0) -> Image:
        """Stored pixels of a level under a region, without resampling; white outside the slide and where missing.

        The image starts at the level's pixel that holds the region's top left corner and covers the whole region.

        Raises:
            TileError: a tile cannot be decoded.
        """
        stored = self.levels[level]
        column, row = math.floor(region.x / stored.downsample), math.floor(region.y / stored.downsample)
        width = max(1, math.ceil(region.right / stored.downsample - 1e-9) - column)
        height = max(1, math.ceil(region.bottom / stored.downsample - 1e-9) - row)
        frame = self.frame_of(level).window(row=row, column=column, height=height, width=width)
        array = self._open().read(level, row=row, column=column, height=height, width=width)
        return Image(frame=frame, array=array)

    def read_frame(self, frame: Frame) -> Image:
        """Pixels of a frame at any downsample: the mean over the area that each covers, white outside the slide.

        Averaged from the coarsest stored level that is not coarser than the frame; a frame finer than level 0
        averages level 0's pixels taken as constant squares (each repeats). A pixel depends on its own position only:
        windows of a frame are bit for bit the same as the whole. Memory beside the result stays near 64 MiB of
        source pixels however large the frame.

        Raises:
            TileError: a tile cannot be decoded.
        """
        reader = self._open()
        level = self._level_for(frame.downsample)
        ratio = frame.downsample / level.downsample
        rows, columns = frame.shape
        side = max(1, int(math.sqrt(_BLOCK_BYTES / 3) / ratio))
        if rows * columns <= side * side:
            return Image(frame=frame, array=_read_averaged(reader, level, frame))
        out = np.empty((rows, columns, 3), dtype=np.uint8)
        for row in range(0, rows, side):
            for column in range(0, columns, side):
                block = frame.window(
                    row=row, column=column, height=min(side, rows - row), width=min(side, columns - column)
                )
                out[row : row + side, column : column + side] = _read_averaged(reader, level, block)
        return Image(frame=frame, array=out)

    def read_at(self, mpp: float, region: Region | None = None) -> Image:
        """Pixels of ``mpp`` um: the whole slide, or the pixels of that whole frame that a region touches.

        Raises:
            ResolutionError: the slide's own mpp is not known.
            TileError: a tile cannot be decoded.
        """
        frame = self.frame_at(mpp)
        if region is None:
            return self.read_frame(frame)
        column, row = math.floor(region.x / frame.downsample), math.floor(region.y / frame.downsample)
        width = max(1, math.ceil(region.right / frame.downsample - 1e-9) - column)
        height = max(1, math.ceil(region.bottom / frame.downsample - 1e-9) - row)
        return self.read_frame(frame.window(row=row, column=column, height=height, width=width))

    def is_missing(self, frame: Frame) -> bool:
        """True where no stored pixels lie under the frame, on the level that ``read_frame`` would read."""
        level = self._level_for(frame.downsample)
        ratio = frame.downsample / level.downsample
        rows = plan_axis(origin=frame.y / level.downsample, ratio=ratio, count=frame.shape[0])
        columns = plan_axis(origin=frame.x / level.downsample, ratio=ratio, count=frame.shape[1])
        return not self._open().has_pixels(
            level.index,
            row=rows.start,
            column=columns.start,
            height=rows.stop - rows.start,
            width=columns.stop - columns.start,
        )

    def fingerprint(self) -> str:
        """Sha256 (hex) over the file's size and its first and last MiB.

        Tells one slide from another and notices truncation and replacement; it is no checksum of the whole file, and
        of slides of several files (MIRAX, DICOM) it sees only the one opened.

        Raises:
            SlideError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest = hashlib.sha256(f"{size}\n".encode())
                digest.update(file.read(_FINGERPRINT_BYTES))
                file.seek(max(0, size - _FINGERPRINT_BYTES))
                digest.update(file.read(_FINGERPRINT_BYTES))
        except FileNotFoundError as error:
            raise _not_found(self.path) from error
        except OSError as error:
            raise SlideError(self.path, f"cannot be read: {error.strerror or error}") from error
        return digest.hexdigest()

    def close(self) -> None:
        """Give the file back; reading afterwards is a ValueError."""
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
        return _unopened, (self.path, self._given_mpp)

    def _open(self) -> Reader:
        if self._process != os.getpid():
            # After a fork the parent's handle is not ours, nor is a lock that one of its threads may hold.
            self._lock, self._reader, self._process = Lock(), None, os.getpid()
        with self._lock:
            if self._is_closed:
                raise ValueError(f"{self.path}: the slide is closed")
            if self._reader is None:
                self._reader = _open_reader(self.path)
            return self._reader

    def _known_mpp(self) -> float:
        mpp = self.mpp
        if mpp is None:
            raise ResolutionError(
                self.path, "does not say how large its pixels are", mend="give it with --slide-mpp or mpp="
            )
        return mpp

    def _level_for(self, downsample: float) -> Level:
        """The coarsest level that is not coarser than a frame; level 0 for frames finer than any."""
        fitting = [level for level in self.levels if level.downsample <= downsample * (1 + 1e-6)]
        return fitting[-1] if fitting else self.levels[0]


def _unopened(path: Path, mpp: float | None) -> Slide:
    return Slide(path, mpp=mpp)


def _read_averaged(reader: Reader, level: Level, frame: Frame) -> NDArray[np.uint8]:
    ratio = frame.downsample / level.downsample
    rows = plan_axis(origin=frame.y / level.downsample, ratio=ratio, count=frame.shape[0])
    columns = plan_axis(origin=frame.x / level.downsample, ratio=ratio, count=frame.shape[1])
    source = reader.read(
        level.index,
        row=rows.start,
        column=columns.start,
        height=rows.stop - rows.start,
        width=columns.stop - columns.start,
    )
    return average(source, rows=rows, columns=columns)


def _not_found(path: Path) -> SlideNotFoundError:
    return SlideNotFoundError(path, "there is no such file", mend="check the path")


def _open_reader(path: Path) -> Reader:
    """The reader for a file, by its first bytes."""
    try:
        return _choose_reader(path)
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except OSError as error:
        raise SlideError(path, f"cannot be read: {error.strerror or error}") from error


def _choose_reader(path: Path) -> Reader:
    if path.is_dir():
        raise SlideFormatError(path, "is a directory, not a slide", mend=_ACCEPTED)
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise SlideFormatError(path, "is empty", mend="copy the slide again from its source")
    # NDPI bends TIFF's offsets and MIRAX begins with a JPEG: both are OpenSlide's alone.
    is_vendors_own = path.suffix.lower() in (".ndpi", ".mrxs")
    if head.startswith(TIFF_MAGICS) and not is_vendors_own:
        pages = read_structure(path)
        if find_readable_levels(pages) and detect_vendor(path) in _DIRECT_VENDORS:
            return TiffReader(path, pages)
        return OpenSlideReader(path)
    if head.startswith(_PICTURE_MAGICS) and not is_vendors_own:
        return FlatReader(path)
    if detect_vendor(path) is None:
        raise SlideFormatError(path, "is no slide of a known kind, or damaged at its start", mend=_ACCEPTED)
    return OpenSlideReader(path)
