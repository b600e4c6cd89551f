"""The outlines of found lesions as files that QuPath and ASAP open."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import shapely

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

    In GeoJSON a lesion is one feature, a MultiPolygon if it was merged from several deposits, so that its size and area
    are there once and sums over features are those of the table. ASAP has no such thing: there each deposit is an
    outline of the lesion's name.

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
        deposits = mask_to_polygons(mask)
        features.append(
            Feature(
                geometry=deposits[0] if len(deposits) == 1 else shapely.MultiPolygon(deposits),
                name=f"lesion {number} ({label})",
                classification=_TUMOUR,
                measurements={
                    "longest diameter um": round(lesion.longest_diameter_um, 1),
                    "area um2": round(lesion.area_um2),
                    "probability": round(lesion.probability, 4),
                },
            )
        )
        outlines += _rings(f"lesion {number}", deposits)
    write_geojson(folder / f"{slide}.geojson", features)
    write_asap(folder / f"{slide}.xml", outlines)


def _rings(name: str, deposits: Iterable[shapely.Polygon]) -> Iterator[Annotation]:
    for part in deposits:
        yield _ring(name, _TUMOUR, Role.TUMOUR, shapely.get_coordinates(part.exterior)[:-1])
        for hole in part.interiors:
            yield _ring(f"{name} hole", _CUT_OUT, Role.CUT_OUT, shapely.get_coordinates(hole)[:-1])


def _ring(name: str, group: str, role: Role, vertices: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Annotation:
    return Annotation(name=name, group=group, role=role, kind="Polygon", vertices=vertices)
