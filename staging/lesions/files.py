"""Measure the lesions of files, all in the same way: heatmaps, masks and annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from annotations.annotation import Role
from annotations.files.formats import read_annotation_set
from annotations.groups import require_role
from annotations.measures import measure_lesions
from staging.csv_rows import csv_text
from staging.errors import ConfigurationError
from staging.lesions.components import bands_of
from staging.lesions.finding import measure_heatmap, measure_mask
from staging.lesions.labels import SizeRule
from staging.lesions.masks import MaskFile
from staging.lesions.settings import LesionSettings, unknown_settings
from staging.lesions.shape import LesionShape, measure_polygons
from wsi.errors import ResolutionError
from wsi.heatmap_store import read_heatmap
from wsi.raster import Mask
from wsi.readers.resolution import Mpp, um_of
from wsi.slide import Slide

SHAPE_COLUMNS = (
    "slide",
    "lesion",
    "class",
    "longest_diameter_um",
    "major_axis_um",
    "minor_axis_um",
    "eccentricity",
    "area_um2",
    "perimeter_um",
    "extent",
    "solidity",
    "probability_max",
    "probability_mean",
    "probability_min",
    "x",
    "y",
    "left",
    "top",
    "width",
    "height",
    "deposits",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredFile:
    """The lesions of one file.

    Attributes:
        shapes: largest first.
        masks: their cells, in the same order, of a heatmap; None for other files.
        tumour_value: the value of tumour pixels of a mask; None for other files.
        reduce: what a pixel of a mask stands for, if it says so; None for other files.
        warnings: what is odd about annotations, a mask, or the settings of a heatmap.
    """

    shapes: tuple[LesionShape, ...]
    masks: tuple[Mask, ...] | None = None
    tumour_value: int | None = None
    reduce: str | None = None
    warnings: tuple[str, ...] = ()


def measure_heatmap_file(path: Path, settings: LesionSettings, *, with_holes_filled: bool = False) -> MeasuredFile:
    """Find and measure the lesions of a published heatmap.

    Raises:
        ArtefactError: it is not a published heatmap.
        ResolutionError: its mpp is unknown.
    """
    shapes, masks = measure_heatmap(
        read_heatmap(path),
        threshold=settings.threshold.value,
        merge_gap_um=settings.merge_gap_um.value,
        smallest_um=settings.smallest_um.value,
        peak=settings.peak.value,
        with_holes_filled=with_holes_filled,
    )
    return MeasuredFile(shapes=shapes, masks=masks, warnings=unknown_settings(path, settings))


def measure_mask_file(
    path: Path,
    *,
    mpp: Mpp | None,
    value: int | None,
    level: int,
    merge_gap_um: float,
    smallest_um: float,
    with_holes_filled: bool = False,
    allows_empty: bool = False,
) -> MeasuredFile:
    """Find and measure the lesions of a mask pyramid or picture of any size.

    Raises:
        ConfigurationError: it has no tumour and is not allowed to.
        SlideError: it cannot be opened or read, is a colour picture, or has no resolution and none was given.
        ConfigurationError: its values are ambiguous and none was given, or it has no such level.
    """
    with Slide.open(path, mpp=mpp) as slide:
        if slide.mpp is None:
            raise ResolutionError(path, "does not state its pixel size", mend="give it with --slide-mpp")
        mask = MaskFile(slide, value=value, level=level)
        shapes = measure_mask(
            bands_of(mask),
            mask.frame,
            merge_gap_um=merge_gap_um,
            smallest_um=smallest_um,
            with_holes_filled=with_holes_filled,
        )
    if not (mask.has_tumour or allows_empty):
        reason = f"has no tumour (value {mask.value}) on level {level}"
        raise ConfigurationError(path, reason, mend="check the file and --tumour-value, or give --allow-empty")
    return MeasuredFile(
        shapes=shapes,
        tumour_value=mask.value,
        reduce=None if mask.rule is None else mask.rule.reduce,
        warnings=mask.warnings,
    )


def measure_drawing(
    path: Path, *, mpp: Mpp | None, merge_gap_um: float, smallest_um: float, allows_empty: bool = False
) -> MeasuredFile:
    """Measure the lesions of an annotation file on its polygons.

    Raises:
        AnnotationError: it cannot be read, or has no tumour and is not allowed to.
        ResolutionError: it does not state its resolution and none was given.
    """
    drawn = read_annotation_set(path)
    if not allows_empty:
        require_role(drawn.annotations, Role.TUMOUR, path)
    known = drawn.mpp if mpp is None else um_of(mpp, drawn.mpp)
    if known is None:
        raise ResolutionError(path, "does not state its pixel size", mend="give it with --slide-mpp")
    found = measure_polygons(measure_lesions(drawn.annotations, mpp=known, merge_gap_um=merge_gap_um), mpp=known)
    return MeasuredFile(
        shapes=tuple(one for one in found if one.longest_diameter_um >= smallest_um), warnings=drawn.warnings
    )


def shape_table(shapes: Mapping[str, Sequence[LesionShape]], rule: SizeRule) -> str:
    """Format one row per lesion with all measurements: um, positions and boxes in level-0 px."""
    rows = (
        (slide, number, rule.label(one.longest_diameter_um).value, *_cells(one))
        for slide, found in shapes.items()
        for number, one in enumerate(found, start=1)
    )
    return csv_text(SHAPE_COLUMNS, rows)


def _cells(one: LesionShape) -> tuple[object, ...]:
    return (
        f"{one.longest_diameter_um:.1f}",
        f"{one.major_axis_um:.1f}",
        f"{one.minor_axis_um:.1f}",
        f"{one.eccentricity:.4f}",
        f"{one.area_um2:.0f}",
        f"{one.perimeter_um:.1f}",
        f"{one.extent:.4f}",
        f"{one.solidity:.4f}",
        f"{one.probability_max:.4f}",
        f"{one.probability_mean:.4f}",
        f"{one.probability_min:.4f}",
        f"{one.centroid[0]:.1f}",
        f"{one.centroid[1]:.1f}",
        one.region.x,
        one.region.y,
        one.region.width,
        one.region.height,
        one.deposits,
    )
