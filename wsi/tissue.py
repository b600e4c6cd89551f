"""Where on a slide there is tissue."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from wsi.errors import NoTissueError
from wsi.geometry import Frame, Level
from wsi.raster import Image, Mask
from wsi.slide import Slide

# Chosen to keep: pale tissue (fat septa, mucin, weak eosin) costs inference time, lost tissue costs a metastasis.
_FAINTEST_OD = 0.02
_FAINTEST_CERTAIN_OD = 0.06
_PEN_OD = 0.12
_SMALLEST_UM2 = 150.0 * 150.0
_LARGEST_HOLE_UM2 = 600.0 * 600.0
# measured on one real tile of each CAMELYON17 centre at 16 um/px: green is at least 20 below red, chroma above 27
_PEN_EXCESS = 2
_BLACK_OD = 0.3
_BLACK_CHROMA = 14
_WHITE = 255
_FILL = 30  # of pixels that were never scanned


def find_tissue(slide: Slide, *, um_per_px: float = 16.0) -> Mask:
    """Find the tissue at low magnification: everything that absorbs more light than the glass around it.

    The glass and its noise are measured on the slide itself, and the threshold follows from them alone, so that a large
    dark piece never hides a small pale one (as with Otsu's). Green, blue and black marker strokes and specks under
    150 um are left out; holes up to 600 um that are enclosed by tissue are filled.

    Args:
        slide: its resolution must be known.
        um_per_px: pixel size of the mask.

    Returns:
        Mask of the whole slide, bool (rows, columns), at least one pixel true.

    Raises:
        ResolutionError: the slide's mpp is unknown.
        NoTissueError: nothing on the slide absorbs more than glass.
        TileError: a tile is damaged.
    """
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    image = overview(slide, slide.frame_at(um_per_px))
    density, pen = _density(image.array)
    density = ndimage.gaussian_filter(density, 0.7)
    tissue = density > _threshold(density)
    if pen.any():
        tissue &= ~ndimage.binary_dilation(pen, iterations=2)
    pixel_um2 = image.frame.pixel_um**2
    tissue = _without_specks(tissue, _SMALLEST_UM2 / pixel_um2)
    tissue |= _holes(~tissue, _LARGEST_HOLE_UM2 / pixel_um2)
    if not tissue.any():
        raise NoTissueError(
            slide.path, "no tissue was found", mend="check the slide: it may be blank, or its scan may have failed"
        )
    tissue = ndimage.binary_dilation(tissue, structure=np.ones((3, 3), bool))
    return Mask(frame=image.frame, array=tissue)


def overview(slide: Slide, frame: Frame) -> Image:
    """Everything that any level of a slide knows at a low magnification: (rows, columns) of the frame.

    Tissue may be there although it cannot be looked at: opacity is seen through, and what is white on the level that
    the frame is read from is taken from the next coarser one.

    Raises:
        TileError: a tile is damaged.
    """
    image = slide.read_frame(frame)
    array = _seen_through(slide, image) if slide.has_opacity else image.array
    coarser = [level for level in slide.levels if level.downsample > frame.downsample]
    if coarser:
        array = _filled(slide, frame, array, min(coarser, key=lambda level: level.downsample))
    return Image(frame=frame, array=array)


def _filled(slide: Slide, frame: Frame, array: NDArray[np.uint8], level: Level) -> NDArray[np.uint8]:
    """Pixels with those of a coarser level where they are white and far from any that are not."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    is_white = (array == _WHITE).all(axis=2)
    reach = math.ceil(level.downsample / frame.downsample) + 1  # coarse pixels extend over the edge of tissue
    within = ndimage.binary_erosion(is_white, np.ones((3, 3), bool), iterations=reach, border_value=1)
    if not within.any():
        return array
    coarse = slide.read_frame(slide.frame_of(level)).array
    rows, columns = np.nonzero(within)
    at = level.frame.fractions(*frame.centres(rows, columns))
    inside = tuple(
        fraction.astype(np.int64).clip(0, side - 1) for fraction, side in zip(at, coarse.shape, strict=False)
    )
    filled = array.copy()
    filled[within] = coarse[inside]
    return filled


def _seen_through(slide: Slide, image: Image) -> NDArray[np.uint8]:
    """Pixels with what opacity hides: tissue there was not looked at, but it is tissue. Black fill is nothing."""
    with slide.seen_through() as bare:
        colours = bare.read_frame(image.frame).array
    is_fill = colours.max(axis=2, keepdims=True) < _FILL
    return np.where(is_fill, image.array, colours)


def tissue_area_um2(mask: Mask) -> float:
    """Area of a tissue mask in um2."""
    return float(np.count_nonzero(mask.array)) * mask.frame.pixel_um**2


def covers(mask: Mask, frame: Frame) -> NDArray[np.bool_]:
    """For every pixel of frame, whether any mask pixel that overlaps it is true: bool (rows, columns) of frame."""
    rows, columns = frame.shape
    low_rows, low_columns = mask.frame.fractions(*frame.positions(np.arange(rows), np.arange(columns)))
    step = frame.downsample / mask.frame.downsample
    top, bottom = _span(low_rows, step, mask.array.shape[0])
    left, right = _span(low_columns, step, mask.array.shape[1])
    by_rows = _any_between(mask.array, top, bottom)
    return _any_between(np.ascontiguousarray(by_rows.T), left, right).T


def _any_between(array: NDArray[np.bool_], first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For every i, the OR over rows first[i]..last[i] (exclusive): bool (len(first), columns)."""
    kept = last > first
    found = np.zeros((len(first), array.shape[1]), bool)
    if kept.any():
        pairs = np.stack([first, last], 1)[kept].ravel()
        closed = np.vstack([array, np.zeros((1, array.shape[1]), bool)])  # reduceat needs last within the array
        found[kept] = np.logical_or.reduceat(closed, pairs, axis=0)[::2]
    return found


def _span(low: NDArray[np.float64], step: float, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    # rounding by a millionth of a pixel must not pull in a neighbour
    first = np.floor(low + 1e-6).astype(np.int64)
    last = np.ceil(low + step - 1e-6).astype(np.int64)
    return first.clip(0, size), last.clip(0, size)


def _density(array: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mean optical density over the glass, float32 (rows, columns); and where a marker pen was used."""
    glass = _glass(array)
    table = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 1)[:, None] / glass[None, :])
    density = sum(table[array[..., channel], channel] for channel in range(3)) / 3
    red, green = array[..., 0].astype(np.int16), array[..., 1].astype(np.int16)
    # haematoxylin and eosin both absorb green most: green above red is ink, and so is anything dark without colour
    coloured = (green - red > _PEN_EXCESS) & (density > _PEN_OD)
    pen = coloured | ((np.ptp(array, axis=2) < _BLACK_CHROMA) & (density > _BLACK_OD))
    return density.astype(np.float32), pen


def _glass(array: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour of the empty glass: per channel the commonest value among bright pixels, or 245 if none is bright."""
    bright = array[(array.min(axis=2) > 205) & (array.max(axis=2) < 255)]
    if len(bright) < 0.005 * array[..., 0].size:
        return np.full(3, 245, np.float32)
    return np.array([np.bincount(bright[:, channel], minlength=256).argmax() for channel in range(3)], np.float32)


def _threshold(density: NDArray[np.float32]) -> float:
    """Six times the noise of the glass, measured on the pixels brighter than its commonest colour."""
    noise = density[(density < 0) & (density > -_FAINTEST_OD)]
    sigma = float(np.sqrt(np.mean(noise**2))) if noise.size else 0.0
    return min(max(6 * sigma, _FAINTEST_OD), _FAINTEST_CERTAIN_OD)


def _holes(glass: NDArray[np.bool_], largest_px: float) -> NDArray[np.bool_]:
    """Glass that tissue encloses: components that are small and do not reach the edge of the picture."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    labels, _ = ndimage.label(glass, structure=np.ones((3, 3)))
    is_hole = np.bincount(labels.ravel()) < largest_px
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    is_hole[edge] = False
    is_hole[0] = False
    found: NDArray[np.bool_] = is_hole[labels]
    return found


def _without_specks(mask: NDArray[np.bool_], smallest_px: float) -> NDArray[np.bool_]:
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return mask
    keep = np.bincount(labels.ravel()) >= smallest_px
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept
