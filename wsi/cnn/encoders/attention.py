"""Where a head looked: the attention of a slide's tiles as a Zarr group and a picture. It is not a probability."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont, PngImagePlugin

from wsi.cnn.encoders.features import SlideFeatures
from wsi.errors import ArtefactError
from wsi.geometry import Frame
from wsi.heatmap_store import MOST_CELLS
from wsi.legends import draw_scale
from wsi.store import DONE, atomic_bytes, publish, verify
from wsi.zarr_groups import UNREADABLE, open_group

KIND = "sentinode attention"
MEANING = "attention of a slide's tiles, summing to 1: how much each tile counted, not a probability of metastasis"

_CAPTION = "attention, rank among the tiles: not a probability"
# pale grey to purple, unlike the colours of a probability
_RAMP = np.array([(232, 232, 236), (203, 182, 222), (160, 116, 196), (112, 48, 160), (60, 10, 95)], dtype=np.float64)
_GLASS = 255
_INK = (40, 40, 40)
_LONGEST_PX = 1000
_NARROWEST_PX = 560
_STRIP_PX = 64
_MARGIN_PX = 14
_RAMP_PX = 140
_FONT_PX = 15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionMap:
    """The attention of a slide's tiles in their grid.

    Attributes:
        frame: one px per stride of the tiles.
        array: float32 (rows, columns), NaN where no tile was judged; the rest sums to 1.
    """

    frame: Frame
    array: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.array.shape != tuple(self.frame.shape) or self.array.dtype != np.float32:
            raise ValueError(f"attention must be float32 in its frame's shape: {self.array.dtype} {self.array.shape}")
        known = self.array[~np.isnan(self.array)]
        if not known.size or known.min() < 0 or not math.isclose(float(known.sum(dtype=np.float64)), 1, abs_tol=1e-3):
            raise ValueError("attention must not be negative and must sum to 1")

    @classmethod
    def of(cls, features: SlideFeatures, attention: NDArray[np.float32]) -> AttentionMap:
        """Arrange the attention of the tiles, float32 (tiles,), on their grid."""
        array = np.full(features.grid.shape, np.nan, np.float32)
        array[features.cells[:, 0], features.cells[:, 1]] = attention
        return cls(frame=features.grid, array=array)

    def ranks(self) -> NDArray[np.float64]:
        """The share of tiles with less attention, 0 to 1, the same for ties; NaN where no tile was judged."""
        known = ~np.isnan(self.array)
        values, inverse = np.unique(self.array[known], return_inverse=True)
        below = np.concatenate([[0], np.cumsum(np.bincount(inverse))[:-1]])
        ranks = np.full(self.array.shape, np.nan)
        ranks[known] = below[inverse] / max(1, known.sum() - 1) if len(values) > 1 else 0.0
        return ranks


def write_attention(path: Path, attention: AttentionMap, provenance: Mapping[str, Any]) -> None:
    """Publish a Zarr v3 group: ``attention`` (rows, columns), NaN without a tile, and its meaning as an attribute.

    Raises:
        StorageError: the file system refuses.
    """
    import zarr  # noqa: PLC0415  (slow import)
    from zarr.codecs import Crc32cCodec, ZstdCodec  # noqa: PLC0415

    frame = attention.frame
    with publish(path, provenance, kind="attention map") as work:
        group = zarr.open_group(work, mode="w", zarr_format=3)
        group.attrs.update(
            {
                "kind": KIND,
                "meaning": MEANING,
                "frame": {"x": frame.x, "y": frame.y, "downsample": frame.downsample, "mpp": frame.mpp},
                "provenance": dict(provenance),
            }
        )
        array = group.create_array(
            "attention",
            shape=attention.array.shape,
            dtype=attention.array.dtype,
            chunks=attention.array.shape,
            fill_value=math.nan,
            compressors=(ZstdCodec(level=3), Crc32cCodec()),
            config={"write_empty_chunks": True},
        )
        array[...] = attention.array


def read_attention(path: Path) -> AttentionMap:
    """Read published attention.

    Raises:
        ArtefactError: there is none, it is incomplete, damaged, or something else (a heatmap).
    """
    if not (path / DONE).is_file():
        raise ArtefactError(path, f"has no complete attention map (no {DONE})", mend="make it with sentinode mil apply")
    verify(path)
    try:
        group = open_group(path, most_items=MOST_CELLS)
        frame: Any = group.attrs["frame"] if group.attrs["kind"] == KIND else None
        array = np.asarray(group["attention"][...], dtype=np.float32)
        return AttentionMap(
            frame=Frame(
                x=frame["x"], y=frame["y"], downsample=frame["downsample"], mpp=frame["mpp"], shape=array.shape
            ),
            array=array,
        )
    except UNREADABLE as error:
        raise ArtefactError(path, f"has no readable attention map: {error}", mend="make it again") from error


def draw_attention(attention: AttentionMap) -> NDArray[np.uint8]:
    """A picture of the ranks, with a legend that says what they are, and a scale bar.

    Returns:
        uint8 (rows, columns, 3), each tile a square of whole px, the longer side of the map at most about 1,000 px;
        white where no tile was judged.
    """
    ranks = attention.ranks()
    rows, columns = ranks.shape
    scale = max(1, _LONGEST_PX // max(rows, columns))
    step = max(1, -(-max(rows, columns) // _LONGEST_PX))
    small = _highest(ranks, step)
    colours = np.where(np.isnan(small)[..., None], _GLASS, _coloured(np.nan_to_num(small)))
    picture = np.rint(colours).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    canvas = np.full((picture.shape[0] + _STRIP_PX, max(picture.shape[1], _NARROWEST_PX), 3), _GLASS, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    tile = attention.frame
    seen = replace(tile, downsample=tile.downsample * step / scale, shape=picture.shape[:2])
    return _with_legend(canvas, seen)


def save_attention_png(path: Path, attention: AttentionMap) -> None:
    """Write the picture atomically; its text chunk says that it is attention.

    Raises:
        StorageError: it cannot be written.
    """
    data, text = BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("Description", MEANING)
    Pillow.fromarray(draw_attention(attention)).save(data, format="PNG", pnginfo=text)
    atomic_bytes(path, data.getvalue())


def _highest(ranks: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """The highest rank of each step x step cells, NaN where there is none, so that no tile is lost."""
    rows, columns = ranks.shape
    padded = np.full((-(-rows // step) * step, -(-columns // step) * step), -1.0)
    padded[:rows, :columns] = np.nan_to_num(ranks, nan=-1.0)
    highest = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).max(axis=(1, 3))
    return np.where(highest < 0, np.nan, highest)


def _coloured(share: NDArray[np.float64]) -> NDArray[np.float64]:
    steps = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(share, steps, channel) for channel in _RAMP.T], axis=-1)


def _with_legend(canvas: NDArray[np.uint8], frame: Frame) -> NDArray[np.uint8]:
    picture = Pillow.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=_FONT_PX)
    middle = canvas.shape[0] - 3 * _STRIP_PX // 4
    shades = np.rint(_coloured(np.linspace(0, 1, _RAMP_PX))).astype(int).tolist()
    for offset, shade in enumerate(shades):
        at = _MARGIN_PX + offset
        draw.line((at, middle - 7, at, middle + 7), fill=tuple(shade))
    draw.text((_MARGIN_PX + _RAMP_PX + 10, middle), _CAPTION, fill=_INK, font=font, anchor="lm")
    below = canvas.shape[0] - _STRIP_PX // 4
    draw_scale(draw, frame, left=_MARGIN_PX, middle=below, em=_FONT_PX, most_px=_RAMP_PX)
    return np.array(picture)
