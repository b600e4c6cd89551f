"""GeoJSON as QuPath writes and reads it; positions are level-0 px."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import shapely
from numpy.typing import NDArray

from annotations.annotation import (
    HOLE_GROUP,
    HOLE_OF,
    ROLE_COLOURS,
    Annotation,
    AnnotationSet,
    Colour,
    Group,
    Role,
    group_key,
    known_roles,
)
from annotations.errors import AnnotationFormatError, UnknownGroupError
from annotations.files.geojson_stream import features_in
from annotations.files.xml import FARTHEST_PX, shortened
from wsi.store import atomic_text

UNCLASSIFIED = "Unclassified"  # QuPath's word for an object without a class
PART_OF = "part of"
"""Attribute of outlines that belong to one feature (a MultiPolygon); the value is the feature's number."""

_MOST_NAMED = 8
_UNKNOWN_COLOUR = (200, 200, 0)
_POINT_KINDS = {"Point": "Dot", "MultiPoint": "PointSet", "LineString": "Measurement"}
# Properties that have a field in Annotation and Feature.
_OWN_PROPERTIES = frozenset({"name", "classification", "color"})
# What QuPath writes for any annotation.
_DEFAULTS: Mapping[str, tuple[Any, ...]] = {"objectType": ("annotation",), "measurements": ({}, [])}
RESERVED_ATTRIBUTES = _OWN_PROPERTIES | {"id", PART_OF, HOLE_OF}
"""Attributes that are not properties of a feature: the format expresses them otherwise, or uses the name itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feature:
    """One object to write.

    Attributes:
        geometry: in level-0 px, not empty.
        name: shown in QuPath's list.
        classification: its class, which read_geojson takes as its group.
        measurements: numbers by name.
        colour: of the object; None to use its class's.
        class_colour: of its class; None to use that of its role among the built-in groups.
        attributes: its ``id`` and other properties (isLocked, objectType ...) by name, as returned by
            read_geojson_set.
    """

    geometry: shapely.Geometry
    name: str
    classification: str
    measurements: Mapping[str, float] = field(default_factory=dict)
    colour: Colour | None = None
    class_colour: Colour | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


def write_geojson(path: str | Path, features: Sequence[Feature]) -> None:
    """Write a FeatureCollection of QuPath annotations atomically; equal features yield equal bytes.

    Raises:
        ValueError: a geometry is empty, or a number is not finite.
        StorageError: the file system refuses.
    """
    written = [json.dumps(_feature(feature), allow_nan=False, ensure_ascii=False) for feature in features]
    lines = ",\n".join(written)
    atomic_text(Path(path), f'{{"type": "FeatureCollection", "generator": "sentinode", "features": [\n{lines}\n]}}\n')


def read_geojson(path: str | Path, groups: Mapping[str, Role] | None = None) -> tuple[Annotation, ...]:
    """Read the annotations of QuPath's GeoJSON: a FeatureCollection, a list of features, one feature or one geometry.

    The group of a feature is its classification; without one, its name if that is a known group; else
    ``Unclassified``, which means nothing unless ``groups`` says so. A MultiPolygon becomes several annotations. A hole
    in tumour becomes a cut-out of the group HOLE_GROUP, after its outline; a hole in anything else becomes part of the
    outline, which then runs around it and back. Read feature by feature: memory is needed for the annotations, not for
    the text of the file.

    Args:
        path: the file.
        groups: roles of further groups; they take precedence over the built-in ones. Case does not matter.

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no content.
        AnnotationFormatError: not JSON, not GeoJSON, an invalid position, or more than memory holds; names the feature.
        UnknownGroupError: a group has no known meaning.
    """
    return read_geojson_set(path, groups).annotations


def read_geojson_set(
    path: str | Path, groups: Mapping[str, Role] | None = None, *, unknown: Role | None = None
) -> AnnotationSet:
    """Read all of QuPath's GeoJSON: the annotations, and the classes with their colours as groups.

    Properties without a field in Annotation (isLocked, objectType, measurements ...) are kept in its attributes as JSON
    (strings unquoted), the feature's id among them. What is left out is counted in ``warnings``: features without a
    geometry, which RFC 7946 allows, and measurements that are NaN or infinite, which QuPath writes.

    Args:
        path: the file.
        groups: as for read_geojson.
        unknown: the role of groups without a known meaning; with None they are an error.

    Raises:
        AnnotationError: as for read_geojson.
    """
    path = Path(path)
    roles = known_roles(groups)
    annotations: list[Annotation] = []
    classes: dict[str, Colour | None] = {}
    bare, unmeasured = _Tally("feature", "without a geometry"), _Tally("measurement", "without a finite value")
    for number, (feature, lost) in enumerate(features_in(path)):
        where = f"feature {number}"
        if not isinstance(feature, dict) or "geometry" not in feature:
            raise AnnotationFormatError(path, "has no geometry", where=where)
        if feature["geometry"] is None:
            bare.add(str(number))
            continue
        if not isinstance(feature["geometry"], dict):
            raise AnnotationFormatError(path, "has no geometry", where=where)
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        for measurement in lost:
            unmeasured.add(f"{number} ({measurement!r})")
        name, group, role = _meaning(path, where, properties, roles, unknown)
        classification = properties.get("classification")
        if isinstance(classification, dict):
            classes[group] = classes.get(group) or _colour(classification)
        attributes = _attributes(path, where, feature, properties)
        _refuse_half_characters(path, where, (name, group, *attributes, *attributes.values()))
        outlines = list(_outlines(path, where, feature["geometry"], role))
        if not outlines:
            bare.add(str(number))
        if sum(not is_hole for _, _, is_hole in outlines) > 1:
            attributes[PART_OF] = str(number)
        annotations += [
            Annotation(
                name=name,
                group=HOLE_GROUP if is_hole else group,
                role=Role.CUT_OUT if is_hole else role,
                kind=kind,
                vertices=outline,
                colour=_colour(properties),
                attributes={**attributes, HOLE_OF: group} if is_hole else attributes,
            )
            for kind, outline, is_hole in outlines
        ]
    return AnnotationSet(
        annotations=tuple(annotations),
        groups=tuple(Group(name=name, colour=colour) for name, colour in classes.items()),
        warnings=tuple(tally.text() for tally in (bare, unmeasured) if tally.count),
    )


class _Tally:
    """What was left out: how many, and the first of them by name."""

    def __init__(self, kind: str, state: str) -> None:
        self.count = 0
        self._kind, self._state = kind, state
        self._named: list[str] = []

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= _MOST_NAMED:
            self._named.append(name)

    def text(self) -> str:
        rest = self.count - len(self._named)
        named = ", ".join(self._named) + (f" and {rest} more" if rest else "")
        features = f"feature {named}" if self.count == 1 else f"features {named}"
        return f"left out {self.count} {self._kind}{'' if self.count == 1 else 's'} {self._state}: {features}"


def _feature(feature: Feature) -> dict[str, Any]:
    if feature.geometry.is_empty:
        raise ValueError(f"{feature.name!r} has an empty geometry")
    role = known_roles(None).get(group_key(feature.classification))
    colour = feature.class_colour or (ROLE_COLOURS[role] if role else _UNKNOWN_COLOUR)
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "name": feature.name,
        "classification": {"name": feature.classification, "color": list(colour)},
        "measurements": {name: float(value) for name, value in feature.measurements.items()},
    }
    if feature.classification == UNCLASSIFIED and group_key(feature.name) not in known_roles(None):
        del properties["classification"]
    if feature.colour is not None:
        properties["color"] = list(feature.colour)
    further = {name: text for name, text in feature.attributes.items() if name not in RESERVED_ATTRIBUTES}
    properties.update({name: _value(text) for name, text in further.items()})
    identifier = {"id": feature.attributes["id"]} if "id" in feature.attributes else {}
    geometry = shapely.geometry.mapping(feature.geometry)
    return {"type": "Feature", **identifier, "geometry": geometry, "properties": properties}


def _attributes(path: Path, where: str, feature: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, str]:
    try:
        attributes = {
            name: _text(value)
            for name, value in properties.items()
            if name not in _OWN_PROPERTIES and value not in _DEFAULTS.get(name, ())
        }
    except RecursionError as error:
        raise AnnotationFormatError(path, "its properties are nested too deeply", where=where) from error
    if isinstance(feature.get("id"), str):
        attributes["id"] = feature["id"]
    return attributes


def _text(value: Any) -> str:  # noqa: ANN401  (whatever JSON can hold)
    """A property as text: strings unquoted, unless they look like the JSON of something else."""
    if isinstance(value, str) and not _is_json_of_other(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def _value(text: str) -> Any:  # noqa: ANN401
    """The inverse of _text."""
    if _is_json_of_other(text):
        return json.loads(text)
    if text.startswith('"'):
        try:
            inner = json.loads(text)
        except ValueError:
            return text
        return inner if _is_json_of_other(inner) else text
    return text


def _is_json_of_other(text: str) -> bool:
    """Whether text is the JSON of something other than a string."""
    try:
        value = json.loads(text, parse_constant=_refuse)
        return not isinstance(value, str) and json.dumps(value, ensure_ascii=False) == text
    except (ValueError, RecursionError):
        return False


def _colour(holder: Mapping[str, Any]) -> Colour | None:
    """``color`` is a list of red, green, blue; until QuPath 0.3 ``colorRGB`` was a Java int, alpha in its top byte."""
    colour, packed = holder.get("color"), holder.get("colorRGB")
    if isinstance(colour, list) and len(colour) >= 3 and all(_is_byte(part) for part in colour[:3]):
        return colour[0], colour[1], colour[2]
    if isinstance(packed, int) and not isinstance(packed, bool):
        return packed >> 16 & 255, packed >> 8 & 255, packed & 255
    return None


def _is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _refuse_half_characters(path: Path, where: str, texts: Iterable[str]) -> None:
    """Refuse text that JSON can escape, but no file can hold: half of a surrogate pair.

    Raises:
        AnnotationFormatError: there is one.
    """
    for text in texts:
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            fault = f"the text {shortened(text)!r} has half of a character (a lone surrogate)"
            raise AnnotationFormatError(path, fault, where=where, mend="correct it, or export it again")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _meaning(
    path: Path, where: str, properties: Mapping[str, Any], roles: Mapping[str, Role], unknown: Role | None
) -> tuple[str, str, Role]:
    """(name, group, role) of a feature."""
    name, classification = properties.get("name"), properties.get("classification")
    if isinstance(classification, dict):
        parts = classification.get("names")
        classification = classification.get("name") or (": ".join(map(str, parts)) if parts else None)
    name = name if isinstance(name, str) else ""
    candidates = [str(classification)] if classification else [*([name] if name else []), UNCLASSIFIED]
    for group in candidates:
        if role := roles.get(group_key(group)):
            return name, group, role
    if unknown is not None:
        return name, str(classification) if classification else UNCLASSIFIED, unknown
    raise UnknownGroupError(
        path,
        f"the group {candidates[0]!r} has no known meaning",
        where=where,
        mend=f"rename it, or say its role with --groups; known groups: {', '.join(sorted(roles))}",
    )


def _outlines(
    path: Path, where: str, geometry: Mapping[str, Any], role: Role
) -> Iterator[tuple[str, NDArray[np.float64], bool]]:
    """(kind, vertices, whether it is a hole of a tumour) of a geometry's parts."""
    kind, content = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        members = geometry.get("geometries")
        for member in members if isinstance(members, list) else ():
            if not isinstance(member, dict) or member.get("type") == kind:
                raise AnnotationFormatError(path, "holds a collection within a collection", where=where)
            yield from _outlines(path, where, member, role)
    elif kind in _POINT_KINDS:
        yield _POINT_KINDS[kind], _points(path, where, [content] if kind == "Point" else content), False
    elif kind in ("Polygon", "MultiPolygon"):
        for polygon in _listed(path, where, [content] if kind == "Polygon" else content):
            rings = [_open(_points(path, where, ring)) for ring in _listed(path, where, polygon)]
            if not rings:
                continue
            if role is Role.TUMOUR:
                yield "Polygon", rings[0], False
                yield from (("Polygon", hole, True) for hole in rings[1:])
            else:
                yield "Polygon", _around(rings), False
    else:
        raise AnnotationFormatError(
            path, f"has a geometry of type {str(kind)[:40]!r}", where=where, mend="use polygons, points or lines"
        )


def _listed(path: Path, where: str, value: Any) -> list[Any]:  # noqa: ANN401
    if not isinstance(value, list):
        raise AnnotationFormatError(path, "its coordinates are not a list", where=where)
    return value


def _points(path: Path, where: str, points: Any) -> NDArray[np.float64]:  # noqa: ANN401
    listed = _listed(path, where, points)
    vertices = _vertices(listed)
    if vertices is not None:
        return vertices
    for number, point in enumerate(listed):
        if not (isinstance(point, list) and len(point) >= 2 and all(_is_position(value) for value in point[:2])):
            raise AnnotationFormatError(
                path, f"{str(point)[:40]!r} is not a position on a slide", where=f"{where}, vertex {number}"
            )
    return np.array([point[:2] for point in listed], dtype=np.float64).reshape(-1, 2)


def _vertices(points: list[Any]) -> NDArray[np.float64] | None:
    """All positions at once; None if any is odd, or if there is none."""
    try:
        # numpy would take texts and truth values for numbers
        if not set(map(type, chain.from_iterable(points))) <= {int, float}:
            return None
        vertices = np.array(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if vertices.ndim != 2 or vertices.shape[1] < 2 or not (np.abs(vertices[:, :2]) <= FARTHEST_PX).all():
        return None
    return np.ascontiguousarray(vertices[:, :2])


def _is_position(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -FARTHEST_PX <= value <= FARTHEST_PX


def _open(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the last vertex where it repeats the first."""
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _around(rings: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """One outline along the first ring and, in the opposite sense, along its holes, where the winding number is 0."""
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
