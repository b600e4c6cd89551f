"""Zarr groups read without trust: version 3, known codecs, arrays of a bounded size.

Zarr also reads version 2, whose filters may be pickles that run code (numcodecs up to 0.16.5), and makes arrays of any
shape that a file states. Here everything is checked before it is opened.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wsi.inputs import read_json

CODECS = frozenset({"bytes", "vlen-utf8", "transpose", "zstd", "gzip", "blosc", "crc32c", "sharding_indexed"})
"""Codecs allowed between stored bytes and values; all are plain compression, checksums and layout."""

MOST_CHUNK_ITEMS = 2**28
"""Values of a chunk, which is held whole: without a limit a few bytes on disk could fill the memory."""

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError)
"""The errors that zarr raises on damaged groups."""

_MOST_BYTES = 2**20  # of a zarr.json
_LEVELS = 3  # a group, a group in it, their arrays


def open_group(path: Path, *, most_items: int = 2**36) -> Any:  # noqa: ANN401  (zarr's groups are not typed)
    """Open a Zarr v3 group for reading.

    Args:
        path: its folder.
        most_items: most values of an array.

    Raises:
        ValueError: it has version 2, names an unknown codec, holds too large an array, or its zarr.json is damaged.
        OSError: it cannot be read.
    """
    import zarr  # noqa: PLC0415  (slow import)

    _check_node(path, most_items, _LEVELS)
    return zarr.open_group(path, mode="r", zarr_format=3)


def _check_node(path: Path, most_items: int, levels: int) -> None:
    record = _record(path)
    kind = record.get("node_type")
    if kind == "array":
        _check_array(path, record, most_items)
    elif kind != "group" or not levels:
        raise ValueError(f"{path.name} is neither a group nor an array")
    elif record.get("consolidated_metadata") is not None:
        raise ValueError(f"{path.name} repeats the metadata of its arrays, which may contradict them")
    else:
        for member in sorted(path.iterdir()):
            if (member / "zarr.json").exists():
                _check_node(member, most_items, levels - 1)


def _record(path: Path) -> dict[str, Any]:
    file = path / "zarr.json"
    if not file.is_file():
        is_old = (path / ".zgroup").exists() or (path / ".zarray").exists()
        raise ValueError("it is Zarr version 2, which is not read" if is_old else f"{path.name} has no zarr.json")
    try:
        record = read_json(file, most=_MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"the zarr.json of {path.name} is damaged: {error}") from error
    if not isinstance(record, dict) or record.get("zarr_format") != 3:
        raise ValueError(f"the zarr.json of {path.name} does not have version 3")
    return record


def _check_array(path: Path, record: dict[str, Any], most_items: int) -> None:
    shape, chunk = record["shape"], record["chunk_grid"]["configuration"]["chunk_shape"]
    if record["chunk_grid"]["name"] != "regular":
        raise ValueError(f"the chunks of {path.name} differ in size")
    for sizes, most in ((shape, most_items), (chunk, MOST_CHUNK_ITEMS)):
        if not all(type(size) is int and size >= 0 for size in sizes) or math.prod(sizes) > most:
            raise ValueError(f"{path.name} claims {' x '.join(map(str, sizes))} values")
    if record.get("storage_transformers"):
        raise ValueError(f"{path.name} names a storage transformer, which is not read")
    _check_codecs(path, record["codecs"])


def _check_codecs(path: Path, codecs: list[dict[str, Any]]) -> None:
    for codec in codecs:
        if codec["name"] not in CODECS:
            raise ValueError(f"{path.name} names the codec {codec['name']!r:.60}, which is not read")
        if codec["name"] == "sharding_indexed":
            _check_codecs(path, codec["configuration"]["codecs"])
            _check_codecs(path, codec["configuration"]["index_codecs"])
