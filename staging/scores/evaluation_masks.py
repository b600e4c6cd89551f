"""Files with the true tumour of slides, read at the level at which CAMELYON16 scores lesions.

Pyramids (TIFF), plain pictures of the level (TIFF, PNG) and annotations of any format are read. Which value means
tumour differs between sources: 0/255 (CAMELYON16), 1 tumour and 2 normal (ASAP, CAMELYON17), 1 tissue and 2 tumour (the
object store), 0/1. So 2 is ambiguous, and the user must say what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from annotations.annotation import Annotation, Role
from annotations.files.formats import SUFFIXES as ANNOTATIONS
from annotations.files.formats import read_annotation_set
from annotations.painting import Painting
from staging.cohorts.names import slide_key
from staging.errors import CohortError
from staging.lesions.mask_values import tumour_value_of
from staging.scores.froc import LEVEL, LEVEL_0_UM, EvaluationMask, evaluation_mask, grown_px
from wsi.errors import SlideFormatError
from wsi.geometry import Frame, Level, TileGrid
from wsi.mask_rules import MASK_RULE, MaskRule, grown_warnings, rule_in
from wsi.readers.resolution import UNSTATED
from wsi.slide import Slide

PYRAMIDS = frozenset({".tif", ".tiff"})
SUFFIXES = PYRAMIDS | ANNOTATIONS | {".png"}

_FARTHEST_RATIO = 1.25  # of the pixel sizes of the stored and the requested level; CAMELYON16's own differ by 1.08
_COARSEST_SLIDE_UM = 1.3  # a mask of other programs with larger pixels is a reduced one
_ROUNDING = 0.01  # of a level's size, in the measured downsample
_MOST_PIXELS = 400_000_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrueTumour:
    """The contents of a mask file.

    Attributes:
        path: the file.
        value: of its tumour pixels; None if it has outlines, or if it has no tumour and no value was given.
        mask: its lesions as the organisers find them; None if nothing in it is tumour.
        corrected: its lesions for the corrected score: of outlines those of pixels whose centre is inside, else the
            same.
        reduce: what a pixel of the mask stands for, if the file says so.
        warnings: what is odd about annotations, or about a mask.
    """

    path: Path
    value: int | None
    mask: EvaluationMask | None
    corrected: EvaluationMask | None
    reduce: str | None = None
    warnings: tuple[str, ...] = ()


def find_masks(folder: Path) -> dict[str, Path]:
    """Find the mask of each slide in a folder and below, by slide_key.

    ``Tumor_001_Mask.tif``, ``tumor_001_mask.png`` and ``tumor_001.xml`` all belong to tumor_001.

    Raises:
        CohortError: there is no such folder, no mask in it, or two masks of one slide.
    """
    if not folder.is_dir():
        raise CohortError(folder, "there is no such folder", mend="name the folder of the masks")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        slide = slide_key(path.name).removesuffix("_mask")
        if slide in found:
            raise CohortError(path, f"is a second mask of {slide}", mend=f"keep either this or {found[slide]}")
        found[slide] = path
    if not found:
        raise CohortError(folder, "contains no masks", mend=f"known suffixes are {' '.join(sorted(SUFFIXES))}")
    return found


def read_true_tumour(
    path: Path,
    *,
    level: int = LEVEL,
    tumour_value: int | None = None,
    slide_mpp: float | None = None,
    groups: Mapping[str, Role] | None = None,
) -> TrueTumour:
    """Read a mask and make its evaluation mask.

    From a pyramid it reads the level whose pixels are nearest to 0.243 um times 2**level or, if it does not state its
    pixel size, whose downsample is nearest to 2**level. A file of one level without a pixel size is taken to be that
    level. Lesions are compared in level-0 px of the slide: sentinode's masks say how many of these a pixel is, the
    organisers' are 2**level wide, and of others ``slide_mpp`` says it. Missing tiles are background. Outlines are
    painted at the level. The organisers' masks were painted on level 0, and their pyramids keep the upper left of 2 x 2
    px: a pixel of level 5 is tumour if level-0 pixel (32 column, 32 row) is. So are outlines for the official score;
    for the corrected one a pixel's centre decides.

    Args:
        path: a TIFF, a PNG or annotations.
        level: the pyramid level that is scored.
        tumour_value: value of the mask's tumour pixels; detected by default.
        slide_mpp: um per level-0 px of the slide; None for what the mask says, else CAMELYON16's 0.243.
        groups: roles of additional groups of annotations.

    Raises:
        SlideFormatError: it is damaged, a colour picture, or lacks the level; or it is of one level, and the pixel size
            that it states cannot be believed; or the slide's pixel size is needed and unknown.
        ConfigurationError: its values are ambiguous, and none was given.
        AnnotationError: annotations are damaged or have an unknown group.
    """
    if path.suffix.lower() in ANNOTATIONS:
        drawn = read_annotation_set(path, groups)
        mask, corrected = _masks_of_outlines(path, drawn.annotations, level, _side_px(level, slide_mpp))
        return TrueTumour(path=path, value=None, mask=mask, corrected=corrected, warnings=drawn.warnings)
    is_pyramid = path.suffix.lower() in PYRAMIDS
    read = _pyramid(path, level, slide_mpp) if is_pyramid else _level_picture(path, level, slide_mpp)
    values, rule = read.values, read.rule
    value = tumour_value
    if value is None:
        value = tumour_value_of(path, _present(values), option="--tumour-value")
    tumour = values == value
    mask = evaluation_mask(tumour, level=level, downsample=read.downsample) if tumour.any() else None
    reduce = None if rule is None else rule.reduce
    return TrueTumour(path=path, value=value, mask=mask, corrected=mask, reduce=reduce, warnings=read.warnings)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Level:
    """A level of a mask.

    Attributes:
        values: uint8 (rows, columns), 0 where tiles are missing.
        downsample: level-0 px of the slide per pixel.
        rule: what a pixel stands for, if the file says so.
        warnings: what is odd about that.
    """

    values: NDArray[np.uint8]
    downsample: float
    rule: MaskRule | None = None
    warnings: tuple[str, ...] = ()


def _side_px(level: int, slide_mpp: float | None) -> float:
    """Return how many level-0 px of the slide a pixel of the level is; 2**level on slides like CAMELYON16's."""
    exact = float(1 << level)
    if slide_mpp is None or _are_near(slide_mpp, LEVEL_0_UM):
        return exact
    return LEVEL_0_UM * exact / slide_mpp


def _are_near(one: float, other: float) -> bool:
    return max(one / other, other / one) <= _FARTHEST_RATIO


def _level_picture(path: Path, level: int, slide_mpp: float | None) -> _Level:
    """A picture of the level, which does not say how large its pixels are.

    Raises:
        SlideFormatError: as _picture_values, or the slide is not like CAMELYON16's.
    """
    if slide_mpp is not None and not _are_near(slide_mpp, LEVEL_0_UM):
        mend = "give masks as TIFF, or annotations"
        raise SlideFormatError(path, "does not say how large its pixels are", mend=mend)
    return _Level(values=_picture_values(path), downsample=float(1 << level))


def _present(values: NDArray[np.uint8]) -> list[int]:
    """Return the values that occur, lowest first; row by row, since an index of a whole level takes 8 bytes a pixel."""
    is_present = np.zeros(256, dtype=np.bool_)
    for row in values:
        is_present[row] = True
    return [int(value) for value in np.nonzero(is_present)[0]]


def _pyramid(path: Path, level: int, slide_mpp: float | None) -> _Level:
    try:
        slide = Slide.open(path)
    except SlideFormatError:
        # A TIFF in strips is not a slide, but it may be a picture of the level.
        try:
            return _level_picture(path, level, slide_mpp)
        except SlideFormatError:
            pass
        raise
    with slide:
        rule = rule_in(slide.properties.get(MASK_RULE, ""))
        frame = slide.frame_of(_level_of(slide, level, rule))
        stored = min(slide.levels, key=lambda one: abs(one.downsample - frame.downsample))
        values = _grey(path, slide.read_frame(frame).array).copy()
        grid = TileGrid(frame=frame, tile_shape=stored.tile_shape)
        for row, column in grid:
            if slide.is_missing(grid.tile(row, column)):
                values[grid.window(row, column).slices] = 0
        return _Level(
            values=values,
            downsample=_downsample(slide, stored, rule, level, slide_mpp),
            rule=rule,
            warnings=grown_warnings(rule, stored.downsample),
        )


def _downsample(slide: Slide, stored: Level, rule: MaskRule | None, level: int, slide_mpp: float | None) -> float:
    """Return how many level-0 px of the slide a pixel of a mask's level is.

    Raises:
        SlideFormatError: the mask does not say it, nor can it be told.
    """
    if rule is not None:
        return rule.downsample * _halved(stored.downsample)
    if slide_mpp is not None and slide.mpp is not None and not _are_near(slide_mpp, LEVEL_0_UM):
        return slide.mpp * stored.downsample / slide_mpp
    is_known = slide_mpp is not None or slide.mpp is None or len(slide.levels) == 1 or _are_near(slide.mpp, LEVEL_0_UM)
    if not is_known and slide.mpp is not None and slide.mpp < _COARSEST_SLIDE_UM:
        raise SlideFormatError(
            slide.path,
            f"has pixels of {slide.mpp:.4g} um, and does not say whether the slide's are as large",
            mend="give --slide-mpp, the um per px of the slide's finest level",
        )
    return _side_px(level, slide_mpp)


def _halved(downsample: float) -> float:
    """The power of two that a measured downsample is, up to the rounding of a level's size."""
    power = float(2 ** round(math.log2(downsample)))
    return power if abs(power / downsample - 1) < _ROUNDING else downsample


def _level_of(slide: Slide, level: int, rule: MaskRule | None) -> Level:
    if slide.mpp is None and len(slide.levels) == 1:
        doubts = [doubt for doubt in slide.mpp_warnings if doubt not in UNSTATED.warnings]
        if doubts:
            raise SlideFormatError(slide.path, "; ".join(doubts), mend="save the mask with the right pixel size")
        return slide.levels[0]
    finest = 1.0 if rule is None else rule.downsample
    unit, wanted = (slide.mpp, LEVEL_0_UM * (1 << level)) if slide.mpp is not None else (finest, float(1 << level))
    sizes = {stored: unit * stored.downsample / wanted for stored in slide.levels}
    nearest = min(sizes, key=lambda stored: abs(math.log(sizes[stored])))
    if max(sizes[nearest], 1 / sizes[nearest]) > _FARTHEST_RATIO:
        kind = "um" if slide.mpp is not None else "times level 0"
        shown = ", ".join(f"{size * wanted:.4g}" for size in sizes.values())
        raise SlideFormatError(
            slide.path,
            f"has no level near {wanted:.4g} {kind}: its levels have pixels of {shown}",
            mend="give masks with that level, or another --level",
        )
    return nearest


def _picture_values(path: Path) -> NDArray[np.uint8]:
    try:
        with Pillow.open(path, formats=("PNG", "TIFF")) as picture:
            if getattr(picture, "n_frames", 1) > 1:
                raise SlideFormatError(path, "has several pictures that are not a pyramid", mend="keep the mask only")
            # A palette's indices are the values of the mask; its colours are only for display.
            values = np.asarray(picture)
            mode = picture.mode
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError) as error:
        if isinstance(error, SlideFormatError):
            raise
        raise SlideFormatError(path, f"cannot be opened as a mask: {error}", mend="save it as PNG or TIFF") from error
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.ndim == 3 and mode in ("RGB", "RGBA"):
        return _grey(path, values)
    if values.ndim != 2 or values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise SlideFormatError(path, f"has pixels of mode {mode}, not integers from 0 to 255")
    return values.astype(np.uint8)


def _grey(path: Path, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = colours[..., 0]
    if not (np.array_equal(grey, colours[..., 1]) and np.array_equal(grey, colours[..., 2])):
        raise SlideFormatError(path, "is a colour picture, not a mask", mend="give masks with one value per pixel")
    return grey


def _masks_of_outlines(
    path: Path, annotations: tuple[Annotation, ...], level: int, side: float
) -> tuple[EvaluationMask | None, EvaluationMask | None]:
    """By the level-0 pixels in the upper left corners, and by the pixels' centres."""
    outlines = [
        annotation.outline
        for annotation in annotations
        if annotation.role is Role.TUMOUR and annotation.outline is not None
    ]
    if not outlines:
        return None, None
    margin = math.ceil(grown_px(level)) + 1
    points = np.concatenate(outlines) / side
    left, top = (math.floor(low) - margin for low in points.min(axis=0))
    right, bottom = (math.ceil(high) + margin for high in points.max(axis=0))
    if (right - left) * (bottom - top) > _MOST_PIXELS:
        spanned = f"{(right - left) * side:.0f} x {(bottom - top) * side:.0f} level-0 px"
        raise SlideFormatError(
            path,
            f"its outlines span {spanned}, more than a slide",
            mend="correct the outline that lies far out",
        )
    frame = Frame(x=left * side, y=top * side, downsample=side, shape=(bottom - top, right - left), mpp=None)
    shift = (side - 1) / 2  # from the centre of a pixel to that of its first level-0 pixel
    painting = Painting.of(annotations)

    def found(grid: Frame) -> EvaluationMask | None:
        painted = painting.mask(grid).array
        if not painted.any():
            return None
        return evaluation_mask(painted, level=level, downsample=side, origin=(top, left), is_whole=False)

    return found(replace(frame, x=frame.x - shift, y=frame.y - shift)), found(frame)
