"""Scale bars and the legend of a slide's pictures, sized to be read when the picture is 240 px wide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from wsi.findings import FAINTEST, INK, PAPER, coloured, with_dots, with_edge
from wsi.geometry import Frame

_EMS = 24
_ROW_EMS = 1.7
_GREY = (205, 205, 205)  # of tissue, on which the colours are shown
_PROBABLE = 0.95
_KEY_RADIUS = 0.27


def em_px(width_px: int) -> int:
    """Font size for a picture of this width: 10 px once it is 240 px wide."""
    return max(10, math.ceil(width_px / _EMS))


def line_px(width_px: int) -> int:
    """Width of lines in a picture of this width."""
    return max(2, round(width_px / 450))


def with_scale(pixels: NDArray[np.uint8], frame: Frame, *, em: int) -> NDArray[np.uint8]:
    """A scale bar on white in the lower left corner of a picture, uint8 (rows, columns, 3), of this frame."""
    picture = Pillow.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    bar, text = _scale(frame, most_px=pixels.shape[1] // 4)
    height = round(1.5 * em)
    width = round(bar + (1.5 if bar else 1) * em + _width(text, em))
    top = pixels.shape[0] - height
    draw.rectangle((0, top, width, pixels.shape[0]), fill=PAPER)
    _draw_scale(draw, bar, text, left=em // 2, middle=top + height // 2, em=em)
    return np.array(picture)


def legend(frame: Frame, *, width_px: int, threshold: float) -> NDArray[np.uint8]:
    """The strip below pictures of this frame: scale bar, colours, and what full and dotted lines surround.

    Returns:
        uint8 (rows, width_px, 3).
    """
    em = em_px(width_px)
    row = round(_ROW_EMS * em)
    picture = Pillow.new("RGB", (width_px, 2 * row + em // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    middle = em // 4 + row // 2
    bar, text = _scale(frame, most_px=width_px // 5)
    _draw_scale(draw, bar, text, left=em // 2, middle=middle, em=em)
    _draw_ramp(picture, right=width_px - em // 2, middle=middle, em=em, threshold=threshold)
    left = em // 2
    probable = max(threshold, _PROBABLE)
    for with_line, probability, meaning in (
        (with_edge, probable, "lesion"),
        (with_dots, threshold, f"{threshold:.2g} or more, no lesion"),
    ):
        cells, pixels = _deposit(em, probability)
        key = Pillow.fromarray(with_line(pixels, cells, line_px=line_px(width_px)))
        picture.paste(key, (left, middle + row - key.height // 2))
        left += key.width + em // 3
        draw.text((left, middle + row), meaning, fill=INK, font=text_font(em), anchor="lm")
        left += round(_width(meaning, em)) + em
    return np.array(picture)


def _scale(frame: Frame, *, most_px: int) -> tuple[int, str]:
    """Length in px of a bar of 1, 2 or 5 times a power of ten um, and its text; 0 if the resolution is unknown."""
    if frame.mpp is None:
        return 0, "scale unknown"
    length_um = _round_length(most_px * frame.pixel_um)
    return max(1, round(length_um / frame.pixel_um)), length_text(length_um)


def length_text(length_um: float) -> str:
    """A length in mm from 0.1 mm on, in um below."""
    return f"{length_um / 1000:.3g} mm" if length_um >= 100 else f"{length_um:.3g} um"


def _round_length(most_um: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most most_um."""
    power = 10.0 ** math.floor(math.log10(most_um))
    return max(power * step for step in (1, 2, 5) if power * step <= most_um * (1 + 1e-9))


def draw_scale(draw: ImageDraw.ImageDraw, frame: Frame, *, left: int, middle: int, em: int, most_px: int) -> None:
    """Draw a scale bar of at most ``most_px`` and its length."""
    _draw_scale(draw, *_scale(frame, most_px=most_px), left=left, middle=middle, em=em)


def _draw_scale(draw: ImageDraw.ImageDraw, bar: int, text: str, *, left: int, middle: int, em: int) -> None:
    half = max(2, em // 6)
    if bar:
        draw.rectangle((left, middle - half, left + bar - 1, middle + half - 1), fill=INK)
        left += bar + em // 2
    draw.text((left, middle), text, fill=INK, font=text_font(em), anchor="lm")


def _draw_ramp(picture: Pillow.Image, *, right: int, middle: int, em: int, threshold: float) -> None:
    """Draw the colours from 0.1 to 1 as they look on grey tissue, with a mark at the threshold."""
    draw = ImageDraw.Draw(picture)
    font, width, height = text_font(em), round(5.5 * em), round(0.9 * em)
    draw.text((right, middle), "1", fill=INK, font=font, anchor="rm")
    left = round(right - _width("1", em) - em / 3 - width)
    shades = np.linspace(FAINTEST, 1, width)[np.newaxis].repeat(height, axis=0)
    top = middle - height // 2
    picture.paste(Pillow.fromarray(coloured(np.full((height, width, 3), _GREY, dtype=np.uint8), shades)), (left, top))
    edge = max(1, em // 16)
    draw.rectangle((left - edge, top - edge, left + width + edge - 1, top + height + edge - 1), outline=INK, width=edge)
    if FAINTEST < threshold < 1:
        at = left + round((threshold - FAINTEST) / (1 - FAINTEST) * (width - 1))
        draw.rectangle((at - edge, top, at + edge - 1, top + height + em // 3), fill=INK)
    text = f"probability {FAINTEST:g}"
    draw.text((left - em / 3, middle), text, fill=INK, font=font, anchor="rm")


def _deposit(em: int, probability: float) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """The cells and the pixels of a small deposit, painted as on slides."""
    height, width = round(1.4 * em), round(1.8 * em)
    rows, columns = np.indices((height, width))
    cells = np.hypot((rows - height / 2 + 0.5) / height, (columns - width / 2 + 0.5) / width) < _KEY_RADIUS
    paper = np.full((height, width, 3), PAPER, dtype=np.uint8)
    return cells, coloured(paper, np.where(cells, probability, 0.0))


def text_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all text in pictures."""
    return ImageFont.load_default(size=size)


def _width(text: str, em: int) -> float:
    return float(text_font(em).getlength(text))
