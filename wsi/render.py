"""Pictures for people: thumbnails, heatmaps over the tissue, picture files."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from wsi.errors import OutputNameError
from wsi.geometry import Frame
from wsi.outputs import PICTURES, refuse_suffix
from wsi.raster import Heatmap, Image, Mask
from wsi.slide import Slide
from wsi.store import atomic_bytes

# Viridis (matplotlib, CC0) from its light end in steps of an eighth: equal steps of probability look equal, also to the
# colour-blind. Its blue and violet half is left out, because haematoxylin has those colours.
_RAMP = np.array([(253, 231, 37), (173, 220, 48), (94, 201, 98), (40, 174, 128), (33, 145, 140)], dtype=np.float64)
_FAINTEST = 0.1
_MOST_OPAQUE = 0.8
_LINE = (20, 20, 20)
_OUTLINE = (230, 40, 20)
_INK = (40, 40, 40)
_STRIP_PX = 52
_MARGIN_PX = 14
_FONT_PX = 15
_NARROWEST_PX = 560
_RAMP_PX = 160
_CLEARANCE = 0.15

_PNG_TEXT = PngInfo()
_PNG_TEXT.add_text("Software", "sentinode")
_JPEG: tuple[str, dict[str, Any]] = ("JPEG", {"quality": 92, "subsampling": 0, "comment": b"sentinode"})
# pictures name us as their writer, which is how they are recognised; a PDF with the time of day would differ every time
_TIFF: tuple[str, dict[str, Any]] = ("TIFF", {"compression": "tiff_adobe_deflate", "software": "sentinode"})
_PDF: tuple[str, dict[str, Any]] = (
    "PDF",
    {"producer": "sentinode", "creationDate": time.gmtime(0), "modDate": time.gmtime(0)},
)
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"pnginfo": _PNG_TEXT}),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".pdf": _PDF,
}


def thumbnail(slide: Slide, *, max_px: int = 1200) -> Image:
    """The whole slide, its longer side at most max_px pixels; never finer than level 0.

    Raises:
        TileError: a tile is damaged.
    """
    height, width = slide.frame.shape
    downsample = max(1.0, max(height, width) / max_px)
    return slide.read_frame(
        Frame(
            x=slide.frame.x,
            y=slide.frame.y,
            downsample=downsample,
            shape=(math.ceil(height / downsample), math.ceil(width / downsample)),
            mpp=slide.mpp,
        ),
        exact=False,
    )


def overlay(image: Image, heatmap: Heatmap, *, threshold: float, outlines: Iterable[Mask] = ()) -> NDArray[np.uint8]:
    """Draw a heatmap over a picture of its slide, with a scale bar and a legend below.

    The higher the probability, the darker and more opaque the colour; below 0.1 the tissue is unchanged. A dark line
    surrounds everything that reaches the threshold. If the picture is coarser than the heatmap, its pixels show the
    highest probability beneath them, so that no cell is lost.

    Args:
        image: of the same slide, of any size and position.
        heatmap: probabilities.
        threshold: probability surrounded by the line.
        outlines: lesions to outline in red, for example those that count.

    Returns:
        uint8 (rows + 52, columns, 3); at least 560 columns, narrower pictures padded with white.
    """
    probability = _on_grid(heatmap.array, heatmap.frame, image.frame)
    picture = _blended(image.array.astype(np.float64), probability)
    picture[_rim(probability >= threshold)] = _LINE
    for mask in outlines:
        cells = _on_grid(mask.array.astype(np.float32), mask.frame, image.frame) >= 0.5
        rim = _rim(cells)
        picture[_rim(cells | rim) | rim] = _OUTLINE
    rows, columns = probability.shape
    canvas = np.full((rows + _STRIP_PX, max(columns, _NARROWEST_PX), 3), 255, dtype=np.uint8)
    canvas[:rows, :columns] = np.rint(picture)
    return _with_legend(canvas, image.frame, threshold)


def save_png(path: str | PathLike[str], array: NDArray[np.uint8]) -> None:
    """Write uint8 (rows, columns, 3) as RGB or (rows, columns) as grey, atomically.

    Raises:
        OutputNameError: the path does not end in .png.
        OutputExistsError: a folder, a link or a device is there.
        StorageError: it cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise OutputNameError(path, f"ends in {path.suffix or 'nothing'}, but a PNG is written", mend="end it in .png")
    save_picture(path, array)


def save_picture(path: str | PathLike[str], array: NDArray[np.uint8]) -> None:
    """Write uint8 (rows, columns, 3) as RGB or (rows, columns) as grey, atomically, in the format of the suffix.

    Raises:
        OutputNameError: the path ends in none of ``PICTURES``.
        OutputExistsError: a folder, a link or a device is there.
        StorageError: it cannot be written.
    """
    path = Path(path)
    refuse_suffix(path, PICTURES, what="a picture", is_strict=True)
    form, options = _FORMATS[path.suffix.lower()]
    data = BytesIO()
    Pillow.fromarray(array).save(data, format=form, **options)
    atomic_bytes(path, data.getvalue())


def _on_grid(values: NDArray[np.float32], source: Frame, target: Frame) -> NDArray[np.float64]:
    """Values on source's grid at target's pixels: linear between cell centres, 0 beyond source.

    A pixel of target that contains cells gets at least the highest of them.
    """
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    x, _ = target.centres(0, np.arange(target.shape[1]))
    _, y = target.centres(np.arange(target.shape[0]), 0)
    rows, _ = source.fractions(source.x, y)
    _, columns = source.fractions(x, source.y)
    grid = np.meshgrid(rows - 0.5, columns - 0.5, indexing="ij")
    result = ndimage.map_coordinates(values.astype(np.float64), grid, order=1, mode="grid-constant", cval=0.0)
    cells = np.nonzero(values)
    row, column = (np.floor(at).astype(np.int64) for at in target.fractions(*source.centres(*cells)))
    within = (row >= 0) & (row < target.shape[0]) & (column >= 0) & (column < target.shape[1])
    np.maximum.at(result, (row[within], column[within]), values[cells][within])
    return np.asarray(result)


def _blended(picture: NDArray[np.float64], probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3): the picture under the colours of its (...) probabilities; unchanged up to 0.1."""
    share = ((probability - _FAINTEST) / (1 - _FAINTEST)).clip(0, 1)
    opacity = share[..., np.newaxis] ** 0.7 * _MOST_OPAQUE
    blended: NDArray[np.float64] = picture + (_colours(share) - picture) * opacity
    return blended


def _colours(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) sRGB 0..255 of the ramp at 0..1 of its length, linear between its colours."""
    steps = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(share, steps, channel) for channel in _RAMP.T], axis=-1)


def _rim(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels outside ``cells`` that touch it by side or corner."""
    padded = np.pad(cells, 1)
    height, width = cells.shape
    near = np.zeros_like(cells)
    for row in range(3):
        for column in range(3):
            near |= padded[row : row + height, column : column + width]
    return near & ~cells


def _with_legend(canvas: NDArray[np.uint8], frame: Frame, threshold: float) -> NDArray[np.uint8]:
    """The canvas with scale bar and colour ramp drawn into its bottom rows."""
    picture = Pillow.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=_FONT_PX)
    middle = canvas.shape[0] - _STRIP_PX // 2
    _draw_scale(draw, font, frame, middle=middle, most_px=canvas.shape[1] // 4)
    _draw_ramp(draw, font, right=canvas.shape[1] - _MARGIN_PX, middle=middle, threshold=threshold)
    return np.array(picture)


def _draw_scale(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    frame: Frame,
    *,
    middle: int,
    most_px: int,
) -> None:
    """Draw a bar of 1, 2 or 5 times a power of ten um, or a note if the resolution is unknown."""
    if frame.mpp is None:
        draw.text((_MARGIN_PX, middle), "scale unknown", fill=_INK, font=font, anchor="lm")
        return
    length_um = _round_length(most_px * frame.pixel_um)
    right = _MARGIN_PX + max(1, round(length_um / frame.pixel_um)) - 1
    draw.rectangle((_MARGIN_PX, middle - 3, right, middle + 2), fill=_INK)
    draw.text((right + 10, middle), _length_text(length_um), fill=_INK, font=font, anchor="lm")


def _round_length(most_um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most most_um."""
    power = 10.0 ** math.floor(math.log10(most_um))
    return max(power * step for step in (1, 2, 5) if power * step <= most_um * (1 + 1e-9))


def _length_text(length_um: float) -> str:
    return f"{length_um / 1000:g} mm" if length_um >= 100 else f"{length_um:g} um"


def _draw_ramp(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    right: int,
    middle: int,
    threshold: float,
) -> None:
    """Draw the colours from 0.1 to 1 as they look on white, a mark at the threshold, and their meaning."""
    left = right - 10 - _RAMP_PX
    shades = np.linspace(_FAINTEST, 1, _RAMP_PX)
    for step, colour in enumerate(np.rint(_blended(np.full((_RAMP_PX, 3), 255.0), shades)).astype(int)):
        draw.line((left + step, middle - 12, left + step, middle), fill=tuple(colour.tolist()))
    draw.rectangle((left, middle - 12, left + _RAMP_PX - 1, middle), outline=_INK)
    marks = [_FAINTEST, 1.0]
    if _FAINTEST < threshold < 1:
        marks.append(threshold)
    for value in marks:
        at = left + (value - _FAINTEST) / (1 - _FAINTEST) * (_RAMP_PX - 1)
        draw.line((at, middle - 12, at, middle + 4), fill=_INK)
        clear = value != threshold or min(abs(value - _FAINTEST), abs(value - 1)) > _CLEARANCE
        if clear:
            draw.text((at, middle + 5), f"{value:.2g}", fill=_INK, font=font, anchor="mt")
    draw.text((left - 10, middle - 6), "metastasis, probability", fill=_INK, font=font, anchor="rm")
