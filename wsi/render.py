"""Pictures for people: slides beside what was found on them, lesions close up, picture files."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw
from PIL.PngImagePlugin import PngInfo

from wsi.errors import OutputNameError
from wsi.findings import INK, PAPER, Findings
from wsi.geometry import Frame, Region, Window
from wsi.legends import em_px, legend, line_px, text_font, with_scale
from wsi.outputs import PICTURES, refuse_suffix
from wsi.raster import Image
from wsi.slide import Slide
from wsi.store import atomic_bytes

PICTURE_PX = 1000
"""The longer side of a slide in its picture."""
_NARROWEST_PX = 560
_SMALL_SHARE = 1 / 30
"""Of a picture's width: shorter lesions cover less than 8 px once the picture is 240 px wide."""
_MOST_INSETS = 3
_INSET_UM = 300.0
_INSET_LESIONS = 2.5
"""An inset is at least this many times as high as its lesion is long."""

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


def thumbnail(slide: Slide, *, max_px: int = PICTURE_PX) -> Image:
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


def slide_picture(slide: Slide, findings: Findings, *, boxes: Sequence[Region] = ()) -> NDArray[np.uint8]:
    """Draw a slide as it is and, beside it, what was found on it, with a scale bar and a legend below.

    The second picture is grey under the colours of the probabilities; below 0.1 it has none. Full lines surround
    lesions, dotted ones what reaches the threshold and is none. Up to three lesions too small to see, the first ones,
    are enlarged below, in the slide's own colours, each with a scale bar and a line to its position.

    Args:
        slide: an open slide.
        findings: on this slide.
        boxes: regions to mark with numbers from 1 on, instead of enlarging lesions.

    Returns:
        uint8 (rows, columns, 3), of at least 560 columns: the two side by side, one above the other if the slide is
        wider than high.

    Raises:
        TileError: a tile is damaged.
    """
    image = thumbnail(slide, max_px=PICTURE_PX)
    rows, columns = image.frame.shape
    gap = max(4, PICTURE_PX // 100)
    is_wide = columns > rows
    top, left = (rows + gap, 0) if is_wide else (0, columns + gap)
    width, height = max(left + columns, _NARROWEST_PX), top + rows
    insets = [] if boxes else _insets(slide, findings, image.frame, width=width, gap=gap)
    rest = [inset.array for inset in insets[:1]]
    strip = legend(image.frame, width_px=width, threshold=findings.threshold)
    canvas = np.full((height + sum(gap + one.shape[0] for one in rest) + strip.shape[0], width, 3), 255, np.uint8)
    canvas[:rows, :columns] = image.array
    canvas[top:height, left : left + columns] = findings.shaded(image, line_px=line_px(width))
    canvas[-strip.shape[0] :] = strip
    frame = image.frame.part(Window.between(row=-top, column=-left, bottom=height - top, right=width - left))
    if boxes:
        return _with_boxes(canvas, frame, boxes)
    return _with_insets(canvas, frame, insets, top=height + gap, gap=gap)


def close_up(
    slide: Slide, findings: Findings, *, x: float, y: float, side_um: float, side_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a square around a level-0 position, as it is and with the edges of what was found, both with a scale bar.

    Returns:
        Twice uint8 (side_px, side_px, 3), whatever the slide's own resolution; white beyond the slide.

    Raises:
        ResolutionError: mpp is unknown.
        TileError: a tile is damaged.
    """
    downsample = side_um / side_px / slide.frame.pixel_um
    image = slide.read_frame(_frame_around(slide, x, y, downsample=downsample, shape=(side_px, side_px)), exact=False)
    em = em_px(side_px)
    drawn = image.array, findings.edged(image, line_px=2 * line_px(side_px))
    return with_scale(drawn[0], image.frame, em=em), with_scale(drawn[1], image.frame, em=em)


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


def _insets(slide: Slide, findings: Findings, frame: Frame, *, width: int, gap: int) -> list[Image]:
    """The enlarged lesions, from left to right on the slide: together as wide as the picture, a third as high."""
    regions = [mask.frame.region for mask in findings.lesions]
    sides = [max(region.width, region.height) for region in regions]
    limit = width * _SMALL_SHARE * frame.downsample
    small = [(region, side) for region, side in zip(regions, sides, strict=True) if side < limit][:_MOST_INSETS]
    if not small:
        return []
    least = 0 if frame.mpp is None else _INSET_UM / frame.mpp
    side = max(least, _INSET_LESIONS * max(side for _, side in small))
    shape = width // 3, (width - gap * (len(small) - 1)) // len(small)
    insets = []
    for region, _ in sorted(small, key=lambda one: (one[0].x, one[0].y)):
        x, y = region.x + region.width / 2, region.y + region.height / 2
        image = slide.read_frame(_frame_around(slide, x, y, downsample=side / min(shape), shape=shape), exact=False)
        drawn = with_scale(findings.edged(image, line_px=2 * line_px(width)), image.frame, em=em_px(width))
        insets.append(Image(frame=image.frame, array=drawn))
    return insets


def _frame_around(slide: Slide, x: float, y: float, *, downsample: float, shape: tuple[int, int]) -> Frame:
    rows, columns = shape
    x, y = x - columns / 2 * downsample, y - rows / 2 * downsample
    return Frame(x=x, y=y, downsample=downsample, shape=shape, mpp=slide.mpp)


def _with_insets(
    canvas: NDArray[np.uint8], frame: Frame, insets: Sequence[Image], *, top: int, gap: int
) -> NDArray[np.uint8]:
    """Paste insets below ``top``, each framed, with a box around its region and a line to it."""
    picture = Pillow.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    thick = line_px(canvas.shape[1])
    left = 0
    for inset in insets:
        rows, columns = inset.frame.shape
        box = _box(frame, inset.frame.region, least=2 * thick)
        above = (box[0] + box[2]) // 2, box[3]
        below = left + columns // 2, top
        for ink, wider in ((PAPER, thick), (INK, 0)):
            draw.line((above, below), fill=ink, width=thick + wider)
            _outline(draw, box, ink, thick + wider)
        picture.paste(Pillow.fromarray(inset.array), (left, top))
        draw.rectangle((left, top, left + columns - 1, top + rows - 1), outline=INK, width=thick)
        left += columns + gap
    return np.array(picture)


def _with_boxes(canvas: NDArray[np.uint8], frame: Frame, boxes: Sequence[Region]) -> NDArray[np.uint8]:
    picture = Pillow.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    em, thick = em_px(canvas.shape[1]), line_px(canvas.shape[1])
    for number, region in enumerate(boxes, start=1):
        box = _box(frame, region, least=2 * thick)
        for ink, wider in ((PAPER, thick), (INK, 0)):
            _outline(draw, box, ink, thick + wider)
        at = box[2] + thick, box[1]
        draw.text(at, str(number), fill=INK, font=text_font(em), anchor="lm", stroke_width=thick, stroke_fill=PAPER)
    return np.array(picture)


def _box(frame: Frame, region: Region, *, least: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a region in px of a frame, at least ``least`` px from its middle."""
    rows, columns = frame.fractions(np.array([region.x, region.right]), np.array([region.y, region.bottom]))
    (top, bottom), (left, right) = rows.tolist(), columns.tolist()
    across, down = max(least, (right - left) / 2), max(least, (bottom - top) / 2)
    x, y = (left + right) / 2, (top + bottom) / 2
    return round(x - across), round(y - down), round(x + across), round(y + down)


def _outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], ink: tuple[int, int, int], width: int) -> None:
    grown = width // 2
    left, top, right, bottom = box
    draw.rectangle((left - grown, top - grown, right + grown, bottom + grown), outline=ink, width=width)
