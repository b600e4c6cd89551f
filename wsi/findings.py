"""What was found on a slide, painted over pixels: probabilities as colours, lesions as edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Image, Mask

# ColorBrewer's YlOrBr (Cynthia Brewer, Apache-2.0): it darkens evenly, so that the colour-blind see the same order, and
# is far from haematoxylin, eosin and green and blue ink. Yellow ink and DAB are near: the tissue below is grey.
_RAMP = np.array([(255, 255, 212), (254, 217, 142), (254, 153, 41), (217, 95, 14), (153, 52, 4)], dtype=np.float64)
FAINTEST = 0.1
"""The lowest probability that gets a colour."""
_OPACITY = 0.85
_FULL_FROM = 0.1
_GREY_SHARE = 0.6
_REC_709 = np.array([0.2126, 0.7152, 0.0722])
EDGE = (190, 255, 0)
"""A yellow-green that shines: no stain and no marking ink has it, and its lightness stands out to every eye."""
INK = (20, 20, 20)
PAPER = (255, 255, 255)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """What pictures of a slide show.

    Attributes:
        heatmap: the probabilities.
        threshold: of this probability and more is what edges surround.
        lesions: the cells of those that count, on the heatmap's grid; their edges are full lines, all others dotted.
    """

    heatmap: Heatmap
    threshold: float
    lesions: tuple[Mask, ...] = ()

    def probability(self, frame: Frame) -> NDArray[np.float64]:
        """(rows, columns) of a frame: linear between the centres of cells, 0 beyond the heatmap.

        A pixel that contains centres of cells has at least the highest of them: none is lost on coarse pictures.
        """
        cut = _near(self.heatmap.frame, frame)
        if cut is None:
            return np.zeros(frame.shape)
        source, window = cut
        return _on_grid(self.heatmap.array[window], source, frame)

    def inside(self, frame: Frame) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The pixels of a frame that belong to lesions, and those that only reach the threshold."""
        return self._split(frame, self.probability(frame))

    def shaded(self, image: Image, *, line_px: int) -> NDArray[np.uint8]:
        """The picture in pale grey under the colours of its probabilities, with edges; see ``edged``."""
        probability = self.probability(image.frame)
        return self._with_edges(coloured(image.array, probability), self._split(image.frame, probability), line_px)

    def edged(self, image: Image, *, line_px: int) -> NDArray[np.uint8]:
        """The picture as it is, with lines of ``line_px`` px around lesions, dotted ones around what is none."""
        return self._with_edges(image.array, self.inside(image.frame), line_px)

    def _split(self, frame: Frame, probability: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        reached = probability >= self.threshold
        counted = np.zeros(frame.shape, dtype=np.bool_)
        for mask in self.lesions:
            # interpolation reaches as far as the centres of the cells around
            cut = _near(frame, mask.frame.part(Window.whole(mask.frame.shape).grown(1)))
            if cut is not None:
                part, window = cut
                counted[window] |= _on_grid(mask.array.astype(np.float32), mask.frame, part) > 0
        return reached & counted, reached & ~counted

    @staticmethod
    def _with_edges(
        pixels: NDArray[np.uint8], inside: tuple[NDArray[np.bool_], NDArray[np.bool_]], line_px: int
    ) -> NDArray[np.uint8]:
        lesions, others = inside
        return with_edge(with_dots(pixels, others, line_px=line_px), lesions, line_px=line_px)


def coloured(pixels: NDArray[np.uint8], probability: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Colour pixels, uint8 (..., 3), by their (...) probabilities; all below is pale grey, so every hue is ours."""
    grey = 255 - (255 - pixels @ _REC_709) * _GREY_SHARE
    share = ((probability - FAINTEST) / (1 - FAINTEST)).clip(0, 1)[..., np.newaxis]
    opacity = (share / _FULL_FROM).clip(0, 1) * _OPACITY
    mixed = grey[..., np.newaxis] * (1 - opacity) + ramp(share[..., 0]) * opacity
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def ramp(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) sRGB 0..255 of the ramp at 0..1 of its length, linear between its colours."""
    steps = np.linspace(0, 1, len(_RAMP))
    return np.stack([np.interp(share, steps, channel) for channel in _RAMP.T], axis=-1)


def with_edge(pixels: NDArray[np.uint8], cells: NDArray[np.bool_], *, line_px: int) -> NDArray[np.uint8]:
    """Draw a bright line of ``line_px`` px, cased in black, around cells, bool (rows, columns); nothing on them."""
    casing = max(1, line_px // 2)
    drawn = pixels.copy()
    drawn[_ring(cells, 0, 2 * casing + line_px)] = INK
    drawn[_ring(cells, casing, casing + line_px)] = EDGE
    return drawn


def with_dots(pixels: NDArray[np.uint8], cells: NDArray[np.bool_], *, line_px: int) -> NDArray[np.uint8]:
    """Draw a line of ``line_px`` px around cells, bool (rows, columns), of black and white dots; nothing on them."""
    rows, columns = (np.arange(side) // (2 * line_px) for side in cells.shape)
    line, is_black = _ring(cells, 0, line_px), np.add.outer(rows, columns) % 2 == 0
    drawn = pixels.copy()
    drawn[line] = PAPER
    drawn[line & is_black] = INK
    return drawn


def _ring(cells: NDArray[np.bool_], first: int, last: int) -> NDArray[np.bool_]:
    """The pixels outside cells, from the px after ``first`` to the px ``last``, counted from their edge."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    if not cells.any():
        return np.zeros_like(cells)
    away = ndimage.distance_transform_edt(~cells)
    return np.asarray((away > (first + 0.5 if first else 0)) & (away < last + 0.5))


def _near(source: Frame, target: Frame) -> tuple[Frame, tuple[slice, slice]] | None:
    """The part of source under target and a pixel around it, with its slices; None if they do not touch."""
    window = source.window_of(target.region).grown(2).clipped(source.shape)
    return None if window is None else (source.part(window), window.slices)


def _on_grid(values: NDArray[np.float32], source: Frame, target: Frame) -> NDArray[np.float64]:
    """Values on source's grid at target's pixels; see Findings.probability."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    rows, columns = _centres_on(source, target)
    grid = np.meshgrid(rows - 0.5, columns - 0.5, indexing="ij")
    result = ndimage.map_coordinates(values, grid, output=np.float64, order=1, mode="grid-constant", cval=0.0)
    rows, columns = _centres_on(target, source)
    down, first_rows = _held(rows, target.shape[0])
    across, first_columns = _held(columns, target.shape[1])
    if down.size and across.size:
        # rows first, which reads a heatmap of a hundred million cells once and copies nothing of it
        highest = np.maximum.reduceat(values[: first_rows[-1]], first_rows[:-1], axis=0)
        highest = np.maximum.reduceat(highest[:, : first_columns[-1]], first_columns[:-1], axis=1)
        at = np.ix_(down, across)
        result[at] = np.maximum(result[at], highest)
    return np.asarray(result)


def _centres_on(grid: Frame, frame: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The fractional rows and columns on a grid of the centres of a frame's rows and columns."""
    x, _ = frame.centres(0, np.arange(frame.shape[1]))
    _, y = frame.centres(np.arange(frame.shape[0]), 0)
    return grid.fractions(grid.x, y)[0], grid.fractions(x, grid.y)[1]


def _held(positions: NDArray[np.float64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pixels, of ``size`` along an axis, that hold ascending positions, and the index of the first in each.

    The index after the last one follows.
    """
    pixels = np.floor(positions).astype(np.int64)
    first, last = np.searchsorted(pixels, [0, size])
    held, starts = np.unique(pixels[first:last], return_index=True)
    return held, np.append(first + starts, last)
