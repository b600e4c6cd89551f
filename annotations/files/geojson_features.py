"""Annotations as GeoJSON features: one each, except for holes and for parts that a file listed as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from annotations.annotation import HOLE_OF, ROLE_COLOURS, Annotation, Group
from annotations.files.geojson import PART_OF, Feature
from annotations.polygons import to_geometry


def features_of(annotations: Iterable[Annotation], groups: Iterable[Group] = ()) -> list[Feature]:
    """Annotations as features: one each, except for what a file listed as one (holes, parts of a MultiPolygon).

    Outlines are written as their areas: a Spline as its polygon, and an outline that crosses itself in valid pieces,
    because GeoJSON allows no others. Outlines without an area become a point or a line; without a vertex, nothing.

    Args:
        annotations: in the order of the file to write.
        groups: for the colours of the classes; others get the colour of the role.
    """
    colours = {group.name: group.colour for group in groups if group.colour is not None}
    return [
        Feature(
            geometry=_geometry(parts),
            name=parts[0][0].name,
            classification=parts[0][0].group,
            colour=parts[0][0].colour,
            class_colour=colours.get(parts[0][0].group, ROLE_COLOURS[parts[0][0].role]),
            attributes=parts[0][0].attributes,
        )
        for parts in bundled(annotations)
    ]


def bundled(annotations: Iterable[Annotation]) -> list[list[list[Annotation]]]:
    """Which annotations make one feature: for each feature its parts, for each part an outline and its holes.

    A hole joins the last outline of its group that contains it; a hole that none contains stays by itself.
    """
    features: list[list[list[Annotation]]] = []
    shells: dict[str, list[tuple[list[Annotation], shapely.Polygon]]] = {}
    for annotation in annotations:
        if not len(annotation.vertices):
            continue
        outline = annotation.outline
        owner = annotation.attributes.get(HOLE_OF)
        if owner is not None and outline is not None:
            hole = shapely.Polygon(outline)
            candidates = reversed(shells.get(owner, [])) if hole.is_valid else ()
            around = next((part for part, shell in candidates if _contains(shell, hole)), None)
            if around is not None:
                around.append(annotation)
                continue
        part = [annotation]
        number = annotation.attributes.get(PART_OF)
        first = features[-1][0][0] if features else None
        if first and number and (number, annotation.group) == (first.attributes.get(PART_OF), first.group):
            features[-1].append(part)
        else:
            features.append([part])
        shell = shapely.Polygon() if outline is None else shapely.Polygon(outline)
        if shell.is_valid and not shell.is_empty:
            shapely.prepare(shell)
            shells.setdefault(annotation.group, []).append((part, shell))
    return features


def _contains(shell: shapely.Polygon, hole: shapely.Polygon) -> bool:
    left, top, right, bottom = shell.bounds
    hole_left, hole_top, hole_right, hole_bottom = hole.bounds
    within = left <= hole_left and top <= hole_top and hole_right <= right and hole_bottom <= bottom
    return within and bool(shell.covers(hole))


def _geometry(parts: Sequence[Sequence[Annotation]]) -> shapely.Geometry:
    shapes = [_shape(outer, holes) for outer, *holes in parts]
    if len(shapes) == 1:
        return shapes[0]
    if all(isinstance(shape, shapely.Polygon | shapely.MultiPolygon) for shape in shapes):
        return shapely.MultiPolygon([polygon for shape in shapes for polygon in shapely.get_parts(shape)])
    return shapely.GeometryCollection(shapes)


def _shape(outer: Annotation, holes: Sequence[Annotation]) -> shapely.Geometry:
    rings = [ring for ring in (one.outline for one in (outer, *holes)) if ring is not None]
    if outer.outline is not None:
        # The first vertex is repeated even if the drawing already repeats it: the format demands one repetition.
        shell, *inner = (np.vstack([ring, ring[:1]]) for ring in rings)
        polygon = shapely.Polygon(shell, inner)
        if polygon.is_valid:
            return polygon
        area = to_geometry(outer).difference(shapely.union_all([to_geometry(hole) for hole in holes]))
        return shapely.LineString(shell) if area.is_empty else area
    if outer.kind == "PointSet" or (outer.kind == "Dot" and len(outer.vertices) > 1):
        return shapely.MultiPoint(outer.vertices)
    return shapely.Point(outer.vertices[0]) if len(outer.vertices) == 1 else shapely.LineString(outer.vertices)
