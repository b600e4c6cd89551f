"""The outlines of found lesions as files that QuPath and ASAP open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from annotations.annotation import Annotation, Role
from annotations.files.asap import write_asap
from annotations.files.geojson import Feature, write_geojson
from annotations.polygons import mask_to_polygons
from staging.lesions.finding import Lesion
from staging.lesions.labels import SizeRule
from wsi.raster import Mask

# the organisers' CAMELYON17 groups, so that the file can be read back as annotations
_TUMOUR, _CUT_OUT = "metastases", "normal"


def write_outlines(folder: Path, slide: str, lesions: Sequence[Lesion], masks: Sequence[Mask], rule: SizeRule) -> None:
    """Write ``<slide>.geojson`` (QuPath) and ``<slide>.xml`` (ASAP); both exist, and are empty, without lesions.

    Args:
        folder: the target folder.
        slide: the slide's id.
        lesions: from find_lesions.
        masks: their cells, in the same order.
        rule: the size limits that labelled the slide, for the label of each lesion.

    Raises:
        StorageError: a file cannot be written.
    """
    features: list[Feature] = []
    outlines: list[Annotation] = []
    for number, (lesion, mask) in enumerate(zip(lesions, masks, strict=True), start=1):
        label = rule.label(lesion.longest_diameter_um).value
        for geometry in mask_to_polygons(mask):
            features.append(
                Feature(
                    geometry=geometry,
                    name=f"lesion {number} ({label})",
                    classification=_TUMOUR,
                    measurements={
                        "longest diameter um": round(lesion.longest_diameter_um, 1),
                        "area um2": round(lesion.area_um2),
                        "probability": round(lesion.probability, 4),
                    },
                )
            )
            outlines += _rings(f"lesion {number}", geometry)
    write_geojson(folder / f"{slide}.geojson", features)
    write_asap(folder / f"{slide}.xml", outlines)


def _rings(name: str, geometry: object) -> Iterator[Annotation]:
    import shapely  # noqa: PLC0415  (slow import)

    for part in shapely.get_parts(geometry):
        yield _ring(name, _TUMOUR, Role.TUMOUR, shapely.get_coordinates(part.exterior)[:-1])
        for hole in part.interiors:
            yield _ring(f"{name} hole", _CUT_OUT, Role.CUT_OUT, shapely.get_coordinates(hole)[:-1])


def _ring(name: str, group: str, role: Role, vertices: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Annotation:
    return Annotation(name=name, group=group, role=role, kind="Polygon", vertices=vertices)
