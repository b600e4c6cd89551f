"""GeoJSON as QuPath writes and reads it; positions are level-0 px."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import shapely
from numpy.typing import NDArray

from annotations.annotation import ROLE_COLOURS, Annotation, Role, known_roles
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, UnknownGroupError
from wsi.store import atomic_text

UNCLASSIFIED = "Unclassified"  # QuPath's word for an object without a class
HOLE_GROUP = "Exclusion"
_FARTHEST_PX = 1e9
_UNKNOWN_COLOUR = (200, 200, 0)
_POINT_KINDS = {"Point": "Dot", "MultiPoint": "PointSet", "LineString": "Measurement"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feature:
    """One object to write.

    Attributes:
        geometry: in level-0 px, not empty.
        name: shown in QuPath's list.
        classification: its class, which read_geojson takes as its group.
        measurements: numbers by name.
    """

    geometry: shapely.Geometry
    name: str
    classification: str
    measurements: Mapping[str, float] = field(default_factory=dict)


def write_geojson(path: str | Path, features: Sequence[Feature]) -> None:
    """Write a FeatureCollection of QuPath annotations: whole or absent, the same bytes for the same features.

    Raises:
        ValueError: a geometry is empty, or a number is not finite.
        StorageError: the file system refuses.
    """
    written = [json.dumps(_feature(feature), allow_nan=False, ensure_ascii=False) for feature in features]
    lines = ",\n".join(written)
    atomic_text(Path(path), f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n')


def read_geojson(path: str | Path, groups: Mapping[str, Role] | None = None) -> tuple[Annotation, ...]:
    """Read QuPath's GeoJSON: a FeatureCollection, a list of features, one feature or one geometry.

    The group of a feature is its classification; without one its name, where that is a known group; else
    ``Unclassified``, which means nothing unless ``groups`` says so. A MultiPolygon becomes several annotations. A hole
    of a tumour becomes a cut-out of the group HOLE_GROUP; a hole of anything else becomes part of the outline, which
    then runs around it and back.

    Args:
        path: the file.
        groups: roles of further groups; they go before the built-in ones. Case does not matter.

    Raises:
        AnnotationNotFoundError: there is no such file.
        AnnotationFormatError: not JSON, not GeoJSON, or a position that is none; names the feature.
        UnknownGroupError: a group has no known meaning.
    """
    path = Path(path)
    roles = known_roles(groups)
    annotations: list[Annotation] = []
    for number, feature in enumerate(_features(path, _parsed(path))):
        place = f"feature {number}"
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            raise AnnotationFormatError(path, "has no geometry", place=place)
        properties = feature.get("properties")
        name, group, role = _meaning(path, place, properties if isinstance(properties, dict) else {}, roles)
        for kind, outline, is_hole in _outlines(path, place, feature["geometry"], role):
            annotations.append(
                Annotation(
                    name=name,
                    group=HOLE_GROUP if is_hole else group,
                    role=Role.CUT_OUT if is_hole else role,
                    kind=kind,
                    vertices=outline,
                )
            )
    return tuple(annotations)


def _feature(feature: Feature) -> dict[str, Any]:
    if feature.geometry.is_empty:
        raise ValueError(f"{feature.name!r} has an empty geometry")
    role = known_roles(None).get(feature.classification.casefold())
    colour = ROLE_COLOURS[role] if role else _UNKNOWN_COLOUR
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(feature.geometry),
        "properties": {
            "objectType": "annotation",
            "name": feature.name,
            "classification": {"name": feature.classification, "color": list(colour)},
            "measurements": {name: float(value) for name, value in feature.measurements.items()},
        },
    }


def _parsed(path: Path) -> Any:  # noqa: ANN401  (whatever the file holds)
    try:
        text = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AnnotationNotFoundError(path, "there is no annotation file", mend="check the path") from error
    except OSError as error:
        raise AnnotationFormatError(path, f"cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise AnnotationFormatError(path, "the file is empty", mend="export it again")
    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise AnnotationFormatError(
            path, f"is not JSON: {error.msg}", place=f"line {error.lineno}", mend="export it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationFormatError(path, f"is not JSON: {error}", mend="export it again") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _features(path: Path, content: Any) -> Sequence[Any]:  # noqa: ANN401
    if isinstance(content, list):
        return content
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        features: Sequence[Any] = content["features"]
        return features
    if kind == "Feature":
        return [content]
    if isinstance(content, dict) and ("coordinates" in content or "geometries" in content):
        return [{"geometry": content}]
    raise AnnotationFormatError(path, "is not GeoJSON", mend="export it from QuPath as GeoJSON")


def _meaning(path: Path, place: str, properties: Mapping[str, Any], roles: Mapping[str, Role]) -> tuple[str, str, Role]:
    """(name, group, role) of a feature."""
    name, classification = properties.get("name"), properties.get("classification")
    if isinstance(classification, dict):
        parts = classification.get("names")
        classification = classification.get("name") or (": ".join(map(str, parts)) if parts else None)
    name = name if isinstance(name, str) else ""
    candidates = [str(classification)] if classification else [*([name] if name else []), UNCLASSIFIED]
    for group in candidates:
        if role := roles.get(group.strip().casefold()):
            return name, group, role
    raise UnknownGroupError(
        path,
        f"the group {candidates[0]!r} has no known meaning",
        place=place,
        mend=f"rename it, or give groups= its role; known groups: {', '.join(sorted(roles))}",
    )


def _outlines(
    path: Path, place: str, geometry: Mapping[str, Any], role: Role
) -> Iterator[tuple[str, NDArray[np.float64], bool]]:
    """(kind, vertices, whether it is a hole of a tumour) of a geometry's parts."""
    kind, content = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        members = geometry.get("geometries")
        for member in members if isinstance(members, list) else ():
            if not isinstance(member, dict) or member.get("type") == kind:
                raise AnnotationFormatError(path, "holds a collection within a collection", place=place)
            yield from _outlines(path, place, member, role)
    elif kind in _POINT_KINDS:
        yield _POINT_KINDS[kind], _points(path, place, [content] if kind == "Point" else content), False
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in _listed(path, place, [content] if kind == "Polygon" else content):
            rings = [_open(_points(path, place, ring)) for ring in _listed(path, place, polygon)]
            if not rings:
                continue
            if role is Role.TUMOUR:
                yield "Polygon", rings[0], False
                yield from (("Polygon", hole, True) for hole in rings[1:])
            else:
                yield "Polygon", _around(rings), False
    else:
        raise AnnotationFormatError(
            path, f"has a geometry of type {str(kind)[:40]!r}", place=place, mend="use polygons, points or lines"
        )


def _listed(path: Path, place: str, value: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise AnnotationFormatError(path, "its coordinates are no list", place=place)
    return value


def _points(path: Path, place: str, points: Any) -> NDArray[np.float64]:  # noqa: ANN401
    for number, point in enumerate(_listed(path, place, points)):
        if not (isinstance(point, list) and len(point) >= 2 and all(_is_position(value) for value in point[:2])):
            raise AnnotationFormatError(
                path, f"{str(point)[:40]!r} is no position on a slide", place=f"{place}, vertex {number}"
            )
    return np.array([point[:2] for point in points], dtype=np.float64).reshape(-1, 2)


def _is_position(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FARTHEST_PX <= value <= _FARTHEST_PX


def _open(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the last vertex where it repeats the first."""
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _around(rings: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One outline that runs along the first ring and, the other way round, along its holes: there it winds to zero."""
    outer = rings[0]
    parts = [outer]
    for hole in rings[1:]:
        if len(hole) >= 3:
            turned = hole if _signed_area(hole) * _signed_area(outer) < 0 else hole[::-1]
            parts += [outer[:1], turned, turned[:1]]
    return np.concatenate(parts)


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = (ring - ring[:1]).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
