"""Small slides of many kinds, and random damage to them; ``damage.py`` reads the damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi.writing.pyramid import write_pyramid

HEIGHT, WIDTH, TILE = 192, 256, 64
_APERIO = "Aperio Image Library v10.0.51\r\n256x192 [0,0 256x192] (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990"
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


def draw_originals(folder: Path) -> dict[str, Path]:
    """Write one undamaged slide of each kind and return their paths."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([x * 255 / WIDTH, y * 255 / HEIGHT, (x + y) * 255 / (WIDTH + HEIGHT)], axis=-1).astype(np.uint8)
    image[40:100, 50:130] = np.random.default_rng(3).integers(0, 256, (60, 80, 3))
    jpeg: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 90}}
    found = {
        "generic TIFF, JPEG": _tiff(folder / "generic.tif", image, levels=2, **jpeg),
        "Aperio SVS": _tiff(folder / "aperio.svs", image, levels=2, description=_APERIO, **jpeg),
        "Philips, missing tiles": _pyramid(folder / "philips.tif", image, philips=True),
        "BigTIFF, JPEG": _pyramid(folder / "big.tif", image, philips=False),
        "BigTIFF, big-endian, LZW": _tiff(
            folder / "lzw.tif", image, compression="lzw", predictor=True, bigtiff=True, byteorder=">"
        ),
        "deflate": _tiff(folder / "deflate.tif", image, levels=2, compression="deflate", predictor=True),
        "zstd": _tiff(folder / "zstd.tif", image, compression="zstd"),
        "JPEG 2000": _tiff(folder / "jpeg2000.tif", image, levels=2, compression="jpeg2000"),
        "Trestle, by OpenSlide": _tiff(folder / "trestle.tif", image, software="MedScan", **jpeg),
        "NDPI skeleton": _ndpi(folder / "skeleton.ndpi"),
    }
    for kind, suffix in (("flat PNG", ".png"), ("flat JPEG", ".jpg")):
        found[kind] = folder / f"flat{suffix}"
        Pillow.fromarray(image).save(found[kind])
    return found


def damaged(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """Return the name of a random kind of damage, and the bytes with it."""
    name = str(random.choice(list(_DAMAGES)))
    changed = bytearray(data)
    return name, bytes(_DAMAGES[name](changed, random))


def _flip(data: bytearray, random: np.random.Generator) -> bytearray:
    for at in random.integers(0, len(data), random.integers(1, 9)):
        data[at] ^= 1 << int(random.integers(8))
    return data


def _overwrite(data: bytearray, random: np.random.Generator) -> bytearray:
    """Replace bytes near the start, where headers are, or near the end, where many directories are."""
    for at in random.integers(0, min(len(data), 600), random.integers(1, 5)):
        odd = (0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256)))
        data[at if random.random() < 0.5 else -1 - at] = odd[random.integers(len(odd))]
    return data


def _cut(data: bytearray, random: np.random.Generator) -> bytearray:
    return data[: random.integers(0, len(data))]


def _swap(data: bytearray, random: np.random.Generator) -> bytearray:
    size = int(random.integers(4, min(512, len(data) // 3)))
    first, second = (int(at) for at in random.integers(0, len(data) - size, 2))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )
    return data[: len(data)]


def _tag(data: bytearray, random: np.random.Generator) -> bytearray:
    """Change type, count or value (or offset) of a TIFF tag."""
    fields = _tiff_fields(data)
    if not fields:
        return _overwrite(data, random)
    at, code, _, _ = fields[random.integers(len(fields))]
    order, count_code = code
    field = ("H", count_code, count_code)[(which := int(random.integers(3)))]
    offset = at + (2, 4, 4 + struct.calcsize(order + count_code))[which]
    _odd(data, offset, order + field, random)
    return data


def _table(data: bytearray, random: np.random.Generator) -> bytearray:
    """Change one number of a table that a tag points to: tile offsets and byte counts above all."""
    tables = [one for one in _tiff_fields(data) if one[3] > 1]
    if not tables:
        return _overwrite(data, random)
    _, (order, _), start, count = tables[random.integers(len(tables))]
    width = "Q" if order == ">" or data[2] == 43 else "I"
    offset = start + int(random.integers(count)) * struct.calcsize(order + width)
    _odd(data, offset, order + width, random)
    return data


def _odd(data: bytearray, offset: int, code: str, random: np.random.Generator) -> None:
    """Overwrite a number by one that programs stumble over."""
    if not 0 <= offset <= len(data) - struct.calcsize(code):
        return
    (old,) = struct.unpack_from(code, data, offset)
    most = 2 ** (8 * struct.calcsize(code))
    odd = (0, 1, 2, 3, 7, 16, 64, 255, 4096, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, most - 1)
    near = (old + 1, old - 1, old * 2, old // 2, old + 16, len(data), len(data) - 1, int(random.integers(2**31)))
    struct.pack_into(code, data, offset, int(random.choice(np.array(odd + near, dtype=object))) % most)


def _tiff_fields(data: bytearray) -> list[tuple[int, tuple[str, str], int, int]]:
    """List the fields of all directories: offset, (byte order, code of counts), offset of values, number of values."""
    order, big = ("<" if data[:2] == b"II" else ">"), 43 in data[2:4]
    if not data.startswith((b"II", b"MM")):
        return []
    head, code, start, step = ("Q", "Q", 8, 20) if big else ("H", "I", 4, 12)
    (directory,) = struct.unpack_from(order + code, data, start)
    fields: list[tuple[int, tuple[str, str], int, int]] = []
    while 0 < directory < len(data) - 8 and len(fields) < 500:
        (number,) = struct.unpack_from(order + head, data, directory)
        first = directory + struct.calcsize(order + head)
        for at in range(first, first + number * step, step):
            kind, count, value = struct.unpack_from(order + "H" + code + code, data, at + 2)
            is_inline = count * _SIZES.get(kind, 1) <= struct.calcsize(order + code)
            fields.append((at, (order, code), at if is_inline else value, 1 if is_inline else count))
        (directory,) = struct.unpack_from(order + code, data, first + number * step)
    return fields


_DAMAGES: dict[str, Callable[[bytearray, np.random.Generator], bytearray]] = {
    "flipped bits": _flip,
    "overwritten bytes": _overwrite,
    "cut off": _cut,
    "swapped blocks": _swap,
    "changed tag": _tag,
    "changed table": _table,
}


def _tiff(path: Path, image: NDArray[np.uint8], *, levels: int = 1, **options: Any) -> Path:  # noqa: ANN401  (tifffile's)
    settings: dict[str, Any] = {"tile": (TILE, TILE), "photometric": "rgb", "metadata": None}
    file = {name: options.pop(name) for name in ("bigtiff", "byteorder") if name in options}
    about = {name: options.pop(name) for name in ("description", "software") if name in options}
    with tifffile.TiffWriter(path, **file) as writer:
        writer.write(image, **settings, **options, **about, resolution=(20000, 20000), resolutionunit="CENTIMETER")
        for level in range(1, levels):
            small = np.ascontiguousarray(image[:: 2**level, :: 2**level])
            writer.write(small, **settings, **options, subfiletype=1, **about)
    return path


def _pyramid(path: Path, image: NDArray[np.uint8], *, philips: bool) -> Path:
    squares = [(y, x) for y in range(0, HEIGHT, TILE) for x in range(0, WIDTH, TILE)]
    tiles = [None if philips and y == x else image[y : y + TILE, x : x + TILE] for y, x in squares]
    write_pyramid(path, width=WIDTH, height=HEIGHT, mpp=0.25, tile_size=TILE, tiles=tiles, philips=philips)
    return path


def _ndpi(path: Path) -> Path:
    """Write the directory of a Hamamatsu file: classic TIFF, links of 8 bytes, NDPI's flag; it has no pixels."""
    entries = [
        *((256, 4, 1, 64), (257, 4, 1, 64), (259, 3, 1, 7), (273, 4, 1, 1000), (279, 4, 1, 100)),
        *((65420, 4, 1, 1), (65421, 11, 1, 0x41A00000)),
    ]
    data = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(8)
    path.write_bytes(data.ljust(2000, b"\0"))
    return path
