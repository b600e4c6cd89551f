"""The structure of a TIFF, read and checked in pure Python before any C library sees the file.

Decoders written in C trust directories: a byte count of 2**62 aborts the process, a directory that points back to
itself hangs it. Here every table is measured against the file before it is read, so that a damaged or hostile file
ends in one SlideFormatError within milliseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from wsi.errors import SlideFormatError
from wsi.readers.source import ByteSource, FileSource

TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""The first bytes of classic and big TIFF, in either byte order."""

_NDPI_FLAG = 65420  # as OpenSlide tells NDPI from other TIFFs

MAX_PAGES = 4096
MAX_SIDE_PX = 4_000_000
MAX_TILE_SIDE_PX = 4096
MAX_TAGS = 1024
_MAX_SAMPLES = 64
_SHARED_BYTES = (
    16 * 2**20
)  # read more than once by legitimate pages, such as common JPEG tables; tables of tiles never overlap
_MAX_VALUE_BYTES = 64 * 2**20  # for one text; tables of tiles are bounded by the image's size instead

# TIFF 6.0 field types and BigTIFF's 16 to 18, as numpy codes of one element.
_TYPES = {
    1: "u1",
    2: "u1",
    3: "u2",
    4: "u4",
    5: "u4",
    6: "i1",
    7: "u1",
    8: "i2",
    9: "i4",
    10: "i4",
    11: "f4",
    12: "f8",
    13: "u4",
    16: "u8",
    17: "i8",
    18: "u8",
}
_RATIONALS = (5, 10)
_INTEGERS = (1, 3, 4, 13, 16, 18)
_MEND = "copy the slide again from its source and compare the checksum"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiffPage:
    """One directory of a TIFF; every table has been checked to lie within the file.

    Attributes:
        index: position in the main chain (of the parent, for a sub-directory).
        width, height: image size in px.
        tile_width, tile_height: of a tile in px; 0 if the image is stored in strips.
        offsets, counts: byte position and length per tile (or strip), row by row; a count of 0 is a missing tile.
        bits: per sample. samples: per pixel. planar: 1 if the samples of a pixel lie together.
        extra_samples: meaning of the samples beyond the colours; 1 premultiplied alpha, 2 plain alpha.
        subsampling: of the colours of YCbCr, (across, down); JPEG streams carry their own.
        subfile: bits of NewSubfileType. resolution: pixels per unit along (x, y), nan if not stated.
        resolution_unit: 0 not stated, 1 none, 2 inch, 3 centimetre.
        profile: byte position and length of the ICC profile; a length of 0 is none.
        sub_pages: the directories listed in SubIFDs.
    """

    index: int
    width: int
    height: int
    tile_width: int
    tile_height: int
    offsets: NDArray[np.uint64]
    counts: NDArray[np.uint64]
    bits: tuple[int, ...]
    sample_format: int
    samples: int
    planar: int
    compression: int
    photometric: int
    predictor: int
    fill_order: int
    extra_samples: tuple[int, ...]
    subsampling: tuple[int, int]
    subfile: int
    jpeg_tables: bytes
    description: str
    software: str
    resolution: tuple[float, float]
    resolution_unit: int
    profile: tuple[int, int]
    sub_pages: tuple[TiffPage, ...] = ()

    @property
    def is_tiled(self) -> bool:
        return self.tile_width > 0


def read_structure(path: str | PathLike[str]) -> tuple[TiffPage, ...]:
    """Read and check all directories of a TIFF.

    Args:
        path: a file that begins with one of ``TIFF_MAGICS``.

    Returns:
        The pages of the main chain, in file order.

    Raises:
        SlideFormatError: the file is truncated, its directories contradict themselves or the file, or exceed sane
            bounds (4,000,000 px a side, tiles of at most 4096 px a side, 4096 pages).
        OSError: the file cannot be read.
    """
    source = FileSource(path)
    try:
        return walk_structure(source)
    finally:
        source.close()


def walk_structure(source: ByteSource) -> tuple[TiffPage, ...]:
    """``read_structure`` of a source that is already open."""
    return tuple(_Walker(source).chain())


def is_ndpi(path: str | PathLike[str]) -> bool:
    """Whether a TIFF is Hamamatsu's: a classic one whose first directory holds NDPI's format flag.

    Raises:
        SlideFormatError: its first directory is damaged.
        OSError: the file cannot be read.
    """
    source = FileSource(path)
    try:
        return _Walker(source).is_ndpi()
    finally:
        source.close()


def check_ndpi(path: str | PathLike[str]) -> None:
    """Check the directories of an NDPI file, whose links are of 8 bytes, before OpenSlide sees them.

    Raises:
        SlideFormatError: a directory points back, asks for more than the file holds, or claims an absurd size.
        OSError: the file cannot be read.
    """
    source = FileSource(path)
    try:
        _Walker(source, next_link="Q").check()
    finally:
        source.close()


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    offset: int
    nbytes: int


class _Walker:
    """Walks the directories of one open file."""

    def __init__(self, source: ByteSource, *, next_link: str | None = None) -> None:
        self._next_link = next_link
        self._path = source.name
        self._source = source
        self._size = source.size
        self._seen: set[int] = set()
        self._left = self._size + _SHARED_BYTES
        header = self._bytes(0, 8, "header")
        if header[:4] not in TIFF_MAGICS:
            raise SlideFormatError(self._path, "is not a TIFF")
        self._order = "<" if header[:2] == b"II" else ">"
        self._is_big = 43 in header[2:4]
        if self._is_big:
            header = self._bytes(0, 16, "header")
            if struct.unpack_from(self._order + "HH", header, 4) != (8, 0):
                raise self._error("has a BigTIFF header that contradicts itself", "header")
            self._first = struct.unpack_from(self._order + "Q", header, 8)[0]
        else:
            self._first = struct.unpack_from(self._order + "I", header, 4)[0]

    def chain(self) -> Iterator[TiffPage]:
        offset, index = self._first, 0
        if offset == 0:
            raise self._error("holds no image at all", "header")
        while offset:
            if index >= MAX_PAGES:
                raise self._error(f"has more than {MAX_PAGES} directories", f"directory {index}")
            entries, following = self._directory(offset, f"directory {index}")
            where = f"directory {index}"
            subs = tuple(
                self._page(self._directory(start, f"{where}, sub-directory {number}")[0], index, f"{where}, {number}")
                for number, start in enumerate(self._integers(entries, 330, where, most=64))
                if start
            )
            yield self._page(entries, index, where, subs)
            offset, index = following, index + 1

    def is_ndpi(self) -> bool:
        """Whether the first directory holds NDPI's format flag."""
        return not self._is_big and self._first != 0 and _NDPI_FLAG in self._directory(self._first, "directory 0")[0]

    def check(self) -> None:
        """Follow the chain and measure what C libraries make room for; what the pixels are is left to them."""
        offset, index = self._first, 0
        while offset:
            where = f"directory {index}"
            if index >= MAX_PAGES:
                raise self._error(f"has more than {MAX_PAGES} directories", where)
            entries, offset = self._directory(offset, where)
            width, height = self._integer(entries, 256, where), self._integer(entries, 257, where)
            if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
                raise self._error(f"claims an image of {width} x {height} px", where)
            for count in self._integers(entries, 279, where, most=MAX_SIDE_PX):
                if count > self._size:
                    raise self._error(f"claims a strip of {count} bytes", where)
            index += 1

    def _error(self, reason: str, where: str) -> SlideFormatError:
        return SlideFormatError(self._path, reason, where=where, mend=_MEND)

    def _bytes(self, offset: int, count: int, where: str) -> bytes:
        if offset > self._size - count:
            raise self._error(f"is truncated or damaged: {count} bytes at {offset} of {self._size}", where)
        self._left -= count
        if self._left < 0:
            raise self._error("has directories that need more bytes than the file holds", where)
        data = self._source.read(offset, count)
        if len(data) != count:
            raise self._error("became shorter while being read", where)
        return data

    def _directory(self, offset: int, where: str) -> tuple[dict[int, _Entry], int]:
        """The entries of one directory, by tag, and the offset of the next directory (0: none)."""
        if offset in self._seen:
            raise self._error("has directories that point back to themselves", where)
        self._seen.add(offset)
        head, entry, link = ("Q", "HHQ", "Q") if self._is_big else ("H", "HHI", "I")
        next_link = self._next_link or link
        field = struct.calcsize("=" + link)
        (number,) = struct.unpack(self._order + head, self._bytes(offset, struct.calcsize("=" + head), where))
        if not 1 <= number <= MAX_TAGS:
            raise self._error(f"has a directory of {number} entries", where)
        start = offset + struct.calcsize("=" + head)
        step = struct.calcsize("=" + entry) + field
        data = self._bytes(start, number * step + struct.calcsize("=" + next_link), where)
        entries = {}
        for index in range(number):
            tag, kind, count = struct.unpack_from(self._order + entry, data, index * step)
            if kind not in _TYPES:
                continue  # TIFF 6.0: readers skip fields of unknown type
            nbytes = count * np.dtype(_TYPES[kind]).itemsize * (2 if kind in _RATIONALS else 1)
            inline = start + (index + 1) * step - field
            if nbytes > field:
                inline = struct.unpack_from(self._order + link, data, (index + 1) * step - field)[0]
                if inline > self._size - nbytes:
                    raise self._error(f"is truncated or damaged: tag {tag} needs {nbytes} bytes at {inline}", where)
            entries[tag] = _Entry(kind, count, inline, nbytes)
        return entries, struct.unpack_from(self._order + next_link, data, number * step)[0]

    def _values(self, entry: _Entry, where: str) -> NDArray[np.generic]:
        data = self._bytes(entry.offset, entry.nbytes, where)
        return np.frombuffer(data, dtype=self._order + _TYPES[entry.kind])

    def _integers(self, entries: dict[int, _Entry], tag: int, where: str, *, most: int) -> list[int]:
        entry = entries.get(tag)
        if entry is None:
            return []
        if entry.kind not in _INTEGERS or entry.count > most:
            raise self._error(f"has {entry.count} values of type {entry.kind} in tag {tag}", where)
        return [int(value) for value in self._values(entry, where)]

    def _integer(self, entries: dict[int, _Entry], tag: int, where: str, default: int | None = None) -> int:
        values = self._integers(entries, tag, where, most=64)
        if values:
            return values[0]
        if default is None:
            raise self._error(f"lacks tag {tag}", where)
        return default

    def _text(self, entries: dict[int, _Entry], tag: int, where: str) -> str:
        data = self._raw(entries, tag, where, most=_MAX_VALUE_BYTES)
        return data.split(b"\0", 1)[0].decode("utf-8", errors="replace")

    def _raw(self, entries: dict[int, _Entry], tag: int, where: str, *, most: int) -> bytes:
        entry = entries.get(tag)
        if entry is None:
            return b""
        if entry.kind not in (1, 2, 7) or entry.nbytes > most:
            raise self._error(f"has {entry.nbytes} bytes of type {entry.kind} in tag {tag}", where)
        return self._bytes(entry.offset, entry.nbytes, where)

    def _ratio(self, entries: dict[int, _Entry], tag: int, where: str) -> float:
        entry = entries.get(tag)
        if entry is None or entry.count < 1 or entry.kind not in (5, 11, 12) or entry.count > 4:
            return float("nan")
        values = self._values(entry, where)
        if entry.kind == 5:
            return float(values[0]) / float(values[1]) if values[1] else float("nan")
        return float(values[0])

    def _page(
        self, entries: dict[int, _Entry], index: int, where: str, sub_pages: tuple[TiffPage, ...] = ()
    ) -> TiffPage:
        width, height = self._integer(entries, 256, where), self._integer(entries, 257, where)
        if not (1 <= width <= MAX_SIDE_PX and 1 <= height <= MAX_SIDE_PX):
            raise self._error(f"claims an image of {width} x {height} px", where)
        samples = self._integer(entries, 277, where, 1)
        planar = self._integer(entries, 284, where, 1)
        bits = tuple(self._integers(entries, 258, where, most=64)) or (1,)
        sample_format = self._integer(entries, 339, where, 1)
        tile_width, tile_height = self._tile_size(entries, where)
        if tile_width:
            if not 1 <= samples <= _MAX_SAMPLES or planar not in (1, 2):
                raise self._error(f"claims {samples} samples per pixel, laid out in the way {planar}", where)
            tiles = -(-width // tile_width) * -(-height // tile_height) * (samples if planar == 2 else 1)
            offsets, counts = self._tables(entries, 324, 325, tiles, where)
        else:
            rows = min(max(1, self._integer(entries, 278, where, height)), height)
            strips = -(-height // rows) * (samples if planar == 2 else 1)
            offsets, counts = self._tables(entries, 273, 279, strips, where)
        return TiffPage(
            index=index,
            width=width,
            height=height,
            tile_width=tile_width,
            tile_height=tile_height,
            offsets=offsets,
            counts=counts,
            bits=bits,
            sample_format=sample_format,
            samples=samples,
            planar=planar,
            compression=self._integer(entries, 259, where, 1),
            photometric=self._integer(entries, 262, where, 1),
            predictor=self._integer(entries, 317, where, 1),
            fill_order=self._integer(entries, 266, where, 1),
            extra_samples=tuple(self._integers(entries, 338, where, most=64)),
            subsampling=self._subsampling(entries, where),
            subfile=self._integer(entries, 254, where, 0),
            jpeg_tables=self._raw(entries, 347, where, most=2**16),
            description=self._text(entries, 270, where),
            software=self._text(entries, 305, where),
            resolution=(self._ratio(entries, 282, where), self._ratio(entries, 283, where)),
            resolution_unit=self._integer(entries, 296, where, 0),
            profile=(entries[34675].offset, entries[34675].nbytes) if 34675 in entries else (0, 0),
            sub_pages=sub_pages,
        )

    def _subsampling(self, entries: dict[int, _Entry], where: str) -> tuple[int, int]:
        values = self._integers(entries, 530, where, most=64)
        return (values[0], values[1]) if len(values) == 2 else (2, 2)  # TIFF 6.0's default

    def _tile_size(self, entries: dict[int, _Entry], where: str) -> tuple[int, int]:
        if not entries.keys() & {322, 323, 324}:
            return 0, 0
        width, height = self._integer(entries, 322, where), self._integer(entries, 323, where)
        for side in (width, height):
            if not 16 <= side <= MAX_TILE_SIDE_PX or side % 16:
                raise self._error(f"claims tiles of {width} x {height} px", where)
        return width, height

    def _tables(
        self, entries: dict[int, _Entry], offsets_tag: int, counts_tag: int, wanted: int, where: str
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        tables = []
        for tag in (offsets_tag, counts_tag):
            entry = entries.get(tag)
            if entry is None or entry.kind not in _INTEGERS or entry.count != wanted:
                found = "none" if entry is None else f"{entry.count} of type {entry.kind}"
                raise self._error(f"needs {wanted} values in tag {tag} but has {found}", where)
            tables.append(self._values(entry, where).astype(np.uint64))
        offsets, counts = tables
        stored = counts > 0
        size = np.uint64(self._size)
        fits = (counts <= size) & (offsets <= size - np.minimum(counts, size)) & (offsets >= 8)
        bad = np.flatnonzero(stored & ~fits)
        if bad.size:
            first = int(bad[0])
            raise self._error(
                f"is truncated or damaged: {bad.size} of {wanted} tiles lie outside the {self._size} bytes of the file,"
                f" the first is number {first} with {counts[first]} bytes at {offsets[first]}",
                where,
            )
        return offsets, counts
