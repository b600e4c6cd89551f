"""Heatmaps on disk: published Zarr v3 groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi.coverage import Coverage
from wsi.errors import ArtefactError
from wsi.geometry import Frame
from wsi.raster import Heatmap
from wsi.store import DONE, publish, verify
from wsi.zarr_groups import UNREADABLE, open_group

KIND = "heatmap"
"""As DONE.json calls it."""

_CHUNK_PX = 512
_DIMENSIONS = ("y", "x")
MOST_CELLS = 2**28
"""Far more than any slide has (10 gigapixels at a stride of 8 px have 1.6e8); a larger array is a bomb."""

_FARTHEST = 1e9


def write_heatmap(
    path: Path,
    heatmap: Heatmap,
    provenance: Mapping[str, Any],
    *,
    coverage: Coverage | None = None,
    is_own: bool = False,
    since: tuple[int, int] | Literal["now"] | None = "now",
) -> None:
    """Publish a Heatmap as a Zarr v3 group: ``probability`` and ``tissue`` (rows, columns), the frame as attributes.

    Both arrays are OME-Zarr images (0.5), so that viewers show them at the slide's um.

    ``coverage`` is stored with them; ``is_own`` and ``since`` as for publish. Chunks carry a CRC32C; empty chunks are
    written and the fill value is NaN: a lost chunk never reads as no tumour.

    Raises:
        StorageError: the file system refuses.
    """
    import zarr  # noqa: PLC0415  (slow import)
    from zarr.codecs import Crc32cCodec, ZstdCodec  # noqa: PLC0415

    frame = heatmap.frame
    with publish(path, provenance, kind=KIND, is_own=is_own, since=since) as work:
        group = zarr.open_group(work, mode="w", zarr_format=3)
        group.attrs.update(
            {
                "kind": "sentinode heatmap",
                "frame": {"x": frame.x, "y": frame.y, "downsample": frame.downsample, "mpp": frame.mpp},
                "provenance": dict(provenance),
                "coverage": None if coverage is None else coverage.to_json(),
                "ome": _ome(frame, ("probability", "tissue")),
            }
        )
        for name, data, fill in (
            ("probability", heatmap.array, math.nan),
            ("tissue", heatmap.tissue.astype(np.uint8), 255),
        ):
            array = group.create_array(
                name,
                shape=data.shape,
                dtype=data.dtype,
                chunks=(min(_CHUNK_PX, data.shape[0]), min(_CHUNK_PX, data.shape[1])),
                fill_value=fill,
                dimension_names=_DIMENSIONS,
                compressors=(ZstdCodec(level=3), Crc32cCodec()),
                config={"write_empty_chunks": True},
            )
            array[...] = data


def _ome(frame: Frame, names: Iterable[str]) -> dict[str, Any]:
    """Metadata of OME-Zarr 0.5 (ngff.openmicroscopy.org/0.5): an image of one resolution each.

    What a translation gives is the centre of the first cell. Without mpp the unit is the level-0 px, which has no name.
    """
    um = 1.0 if frame.mpp is None else frame.mpp
    unit = {} if frame.mpp is None else {"unit": "micrometer"}
    scale = [frame.downsample * um] * len(_DIMENSIONS)
    first = [(frame.y + frame.downsample / 2) * um, (frame.x + frame.downsample / 2) * um]
    transformations = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": first}]
    axes = [{"name": name, "type": "space", **unit} for name in _DIMENSIONS]
    return {
        "version": "0.5",
        "multiscales": [
            {"name": name, "axes": axes, "datasets": [{"path": name, "coordinateTransformations": transformations}]}
            for name in names
        ],
    }


def read_coverage(path: Path) -> Coverage | None:
    """How much of the tissue a published Heatmap covers; None if it does not say.

    Raises:
        ArtefactError: there is no heatmap, or it is damaged.
    """
    try:
        record = open_group(path, most_items=MOST_CELLS).attrs.get("coverage")
        return None if record is None else Coverage.from_json(record)
    except UNREADABLE as error:
        raise ArtefactError(path, f"is not a readable heatmap: {error}", mend="make it again") from error


def read_heatmap(path: Path) -> Heatmap:
    """Read a published Heatmap.

    Raises:
        ArtefactError: there is none, it is incomplete or damaged.
    """
    if not (path / DONE).is_file():
        raise ArtefactError(path, f"is not a complete heatmap (no {DONE})", mend="make it with sentinode heatmap")
    verify(path)
    try:
        group = open_group(path, most_items=MOST_CELLS)
        frame: Any = group.attrs["frame"]
        values = [frame[name] for name in ("x", "y", "downsample")] + ([] if frame["mpp"] is None else [frame["mpp"]])
        if not all(isinstance(value, int | float) and abs(value) < _FARTHEST for value in values):
            raise ValueError("its position or resolution is none of a slide")
        probability = np.asarray(group["probability"][...], dtype=np.float32)
        tissue = np.asarray(group["tissue"][...])
        return Heatmap(
            frame=Frame(
                x=frame["x"], y=frame["y"], downsample=frame["downsample"], mpp=frame["mpp"], shape=probability.shape
            ),
            array=probability,
            tissue=tissue == 1,
        )
    except UNREADABLE as error:
        raise ArtefactError(path, f"is not a readable heatmap: {error}", mend="make it again") from error
