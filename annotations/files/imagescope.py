"""Aperio ImageScope XML and HALO's dialect of it: layers of regions, where a region may be cut out of its layer."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import (
    HOLE_GROUP,
    HOLE_OF,
    IGNORED_HOLE_GROUP,
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
from annotations.files.xml import WRITTEN, check_count, elements, is_name, position, quoted, shortened, written
from wsi.store import atomic_text

ROOT = "Annotations"
IN_TAG = "@"
"""Prefix of attributes from the tag of a layer or region, as opposed to those from its list of attributes."""

# ImageScope's numbers, and the words used by other software that writes the format.
_KINDS = {
    "0": "Polygon",
    "1": "Rectangle",
    "2": "Polygon",
    "3": "Measurement",
    "4": "Measurement",
    "5": "PointSet",
    "polygon": "Polygon",
    "rectangle": "Rectangle",
    "ellipse": "Polygon",
    "ruler": "Measurement",
    "arrow": "Measurement",
    "pin": "PointSet",
}
_ELLIPSES = frozenset({"2", "ellipse"})
_NUMBERS = {
    "Polygon": "0",
    "Spline": "0",
    "Rectangle": "1",
    "Measurement": "4",
    "None": "4",
    "PointSet": "5",
    "Dot": "5",
}
_LIKE = {"Dot": "PointSet"}
_ELLIPSE_EDGES = 360
_OF_REGION = frozenset({"Id", "DisplayId", "Text", "NegativeROA", "Length", "Area", "LengthMicrons", "AreaMicrons"})
_OF_LAYER = frozenset({"Id", "Name", "LineColor"})
# What ImageScope itself writes for a layer and a region drawn by hand.
_LAYER_DEFAULTS = {
    "ReadOnly": "0",
    "NameReadOnly": "0",
    "LineColorReadOnly": "0",
    "Incremental": "0",
    "Type": "4",
    "Visible": "1",
    "Selected": "0",
    "MarkupImagePath": "",
    "MacroName": "",
}
# What HALO writes for any layer and region, beside its own names of their kinds.
_HALO_DEFAULTS = {"Visible": "True", "HasEndcaps": "0"}
_REGION_DEFAULTS = {
    "Zoom": "1",
    "Selected": "0",
    "ImageLocation": "",
    "ImageFocus": "-1",
    "InputRegionId": "0",
    "Analyze": "1",
}


def read_imagescope_set(
    path: str | Path, groups: Mapping[str, Role] | None = None, *, unknown: Role | None = None
) -> AnnotationSet:
    """Read all of an ImageScope XML file: annotations, layers as groups, and um per px.

    The group of a region is its layer's name; without one, the layer's attribute ``Name`` or ``Description``; else
    ``Layer`` and the layer's Id, as ImageScope shows it. A region with ``NegativeROA="1"`` is cut out of its layer: in
    a layer of tumour it becomes a cut-out of the group HOLE_GROUP, in any other layer one of IGNORED_HOLE_GROUP. An
    ellipse, which the file holds as its bounding box, becomes a polygon of 360 edges.

    HALO's ``.annotations`` differ in their vertices, ``<V>`` instead of ``<Vertex>``, and in kinds by name (Polygon,
    Rectangle, Ellipse, Ruler, Pin), as its files and public readers of them show (github.com/rharkes/pyhaloxml). Its
    comments, which name their authors, are left out.

    Attributes of regions and layers are kept, those in their tags prefixed with ``@``. What ImageScope recomputes is
    not: the numbers of layers and regions, lengths and areas, and the columns of its table.

    Args:
        path: the XML file.
        groups: roles of further groups; they take precedence over the built-in ones. Case does not matter.
        unknown: the role of groups without a known meaning; with None they are an error.

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no bytes.
        AnnotationFormatError: not XML, a document type, not ImageScope, or an invalid number; says where.
        UnknownGroupError: a group has no known meaning.
    """
    found = _Found(Path(path), known_roles(groups), unknown)
    for ends, element in elements(Path(path), ROOT, "ImageScope"):
        (found.end if ends else found.start)(element)
    return AnnotationSet(annotations=tuple(found.annotations), groups=tuple(found.groups), mpp=found.mpp)


def write_imagescope(
    path: str | Path, annotations: Iterable[Annotation], groups: Iterable[Group] = (), *, mpp: float | None = None
) -> None:
    """Write an ImageScope XML file atomically, a layer for each group; equal annotations yield equal bytes.

    Annotations that a file listed as holes become negative regions of their layer. Cut-outs from other files keep a
    layer of their own. Splines become their polygons, Rectangles their four corners.

    Args:
        path: the XML file; its folder is created.
        annotations: what to write.
        groups: with their colours and attributes; layers are written in this order, then in order of first use.
        mpp: um per level-0 px, if known: ImageScope measures with it.

    Raises:
        ValueError: XML cannot hold a name or attribute.
        StorageError: the file system refuses.
    """
    layers = {group.name: group for group in groups}
    members: dict[str, list[Annotation]] = {name: [] for name in layers}
    for annotation in annotations:
        layer = annotation.attributes.get(HOLE_OF, annotation.group)
        if layer not in layers:
            layers[layer] = Group(name=layer, colour=ROLE_COLOURS[annotation.role])
        members.setdefault(layer, []).append(annotation)
    resolution = "" if mpp is None else f' MicronsPerPixel="{written(mpp)}"'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', WRITTEN, f"<{ROOT}{resolution}>"]
    for number, (name, layer_group) in enumerate(layers.items(), start=1):
        lines.extend(_layer_lines(number, layer_group, members[name], mpp))
    atomic_text(Path(path), "\n".join([*lines, f"</{ROOT}>", ""]))


def is_held(attribute: str) -> bool:
    """Whether ImageScope's files can hold an attribute of this name, on an annotation or a group."""
    if not attribute.startswith(IN_TAG):
        return True
    name = attribute[len(IN_TAG) :]
    return is_name(name) and name not in _OF_REGION | _OF_LAYER


def drawn_outline(annotation: Annotation) -> NDArray[np.float64]:
    """The vertices written for ImageScope: those of the area, or the points where there is none."""
    outline = annotation.outline if annotation.kind in ("Spline", "Rectangle") else None
    return annotation.vertices if outline is None else outline


def _layer_lines(number: int, group: Group, members: Iterable[Annotation], mpp: float | None) -> Iterator[str]:
    tag, listed = _split(group.attributes)
    red, green, blue = group.colour or (0, 0, 0)
    own = {"Id": str(number), "Name": group.name, "LineColor": str(red | green << 8 | blue << 16)}
    yield f"\t<Annotation{_tag({**own, **_LAYER_DEFAULTS, **tag})}>"
    yield from _attribute_lines(listed, "\t\t")
    yield "\t\t<Regions>"
    yield "\t\t\t<RegionAttributeHeaders/>"
    for index, annotation in enumerate(members, start=1):
        yield from _region_lines(index, annotation, mpp)
    yield "\t\t</Regions>"
    yield "\t\t<Plots/>"
    yield "\t</Annotation>"


def _region_lines(number: int, annotation: Annotation, mpp: float | None) -> Iterator[str]:
    vertices = drawn_outline(annotation)
    tag, listed = _split(annotation.attributes)
    listed.pop(HOLE_OF, None)
    kind = tag.pop("Type", "")
    box = _box_of_ellipse(vertices) if kind.casefold() in _ELLIPSES else None
    if box is not None:
        vertices = box
    elif kind.casefold() in _ELLIPSES or _KINDS.get(kind.casefold()) != _LIKE.get(annotation.kind, annotation.kind):
        kind = _NUMBERS[annotation.kind]
    own = {
        "Id": str(number),
        "Type": kind,
        "Text": annotation.name,
        "NegativeROA": "1" if HOLE_OF in annotation.attributes else "0",
        "DisplayId": str(number),
    }
    yield f"\t\t\t<Region{_tag({**own, **_REGION_DEFAULTS, **_sizes(annotation, mpp), **tag})}>"
    yield from _attribute_lines(listed, "\t\t\t\t")
    yield "\t\t\t\t<Vertices>"
    for x, y in vertices:
        yield f'\t\t\t\t\t<Vertex X="{written(x)}" Y="{written(y)}" Z="0"/>'
    yield "\t\t\t\t</Vertices>"
    yield "\t\t\t</Region>"


def _split(attributes: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Attributes of the tag, and those of the list."""
    tag = {name[len(IN_TAG) :]: value for name, value in attributes.items() if name.startswith(IN_TAG)}
    return tag, {name: value for name, value in attributes.items() if not name.startswith(IN_TAG)}


def _attribute_lines(listed: Mapping[str, str], indent: str) -> Iterator[str]:
    yield f"{indent}<Attributes>"
    for index, (name, value) in enumerate(listed.items()):
        yield f'{indent}\t<Attribute Name="{quoted(name)}" Id="{index}" Value="{quoted(value)}"/>'
    yield f"{indent}</Attributes>"


def _sizes(annotation: Annotation, mpp: float | None) -> dict[str, str]:
    """Length and area as ImageScope shows them: along the drawn line, by its signed area."""
    x, y = drawn_outline(annotation).T
    closes = annotation.outline is not None
    end_x, end_y = np.roll(x, -1), np.roll(y, -1)
    steps = np.hypot(end_x - x, end_y - y)
    length = float(steps.sum() if closes else steps[:-1].sum())
    area = abs(float(((x - x[:1]) * (end_y - y[:1]) - (end_x - x[:1]) * (y - y[:1])).sum())) / 2 if closes else 0.0
    sizes = {"Length": f"{length:.1f}", "Area": f"{area:.1f}"}
    if mpp is not None:
        sizes |= {"LengthMicrons": f"{length * mpp:.1f}", "AreaMicrons": f"{area * mpp**2:.1f}"}
    return sizes


def _tag(attributes: Mapping[str, str]) -> str:
    for name in attributes:
        if not is_name(name):
            raise ValueError(f"XML cannot hold an attribute named {name!r}")
    return "".join(f' {name}="{quoted(value)}"' for name, value in attributes.items())


class _Found:
    """What has been read of one file so far."""

    def __init__(self, path: Path, roles: Mapping[str, Role], unknown: Role | None) -> None:
        self.annotations: list[Annotation] = []
        self.groups: list[Group] = []
        self.mpp: float | None = None
        self._path = path
        self._roles = roles
        self._unknown = unknown
        self._layer: dict[str, str] | None = None
        self._listed: dict[str, str] = {}
        self._regions: list[tuple[dict[str, str], dict[str, str], NDArray[np.float64]]] = []
        self._region: dict[str, str] | None = None
        self._region_listed: dict[str, str] = {}
        self._points = array("d")

    def start(self, element: Any) -> None:  # noqa: ANN401  (lxml has no public element type)
        if element.tag == ROOT:
            self.mpp = _resolution(element.get("MicronsPerPixel"))
        elif element.tag == "Annotation":
            check_count(self._path, len(self.groups))
            self._layer, self._listed, self._regions = dict(element.attrib), {}, []
        elif element.tag == "Region":
            check_count(self._path, len(self.annotations) + len(self._regions))
            self._region, self._region_listed, self._points = dict(element.attrib), {}, array("d")

    def end(self, element: Any) -> None:  # noqa: ANN401
        if element.tag in ("Vertex", "V") and self._region is not None:
            self._vertex(element)
        elif element.tag == "Attribute" and self._layer is not None:
            listed = self._listed if self._region is None else self._region_listed
            listed[element.get("Name", "")] = element.get("Value", "")
        elif element.tag == "Region" and self._region is not None and self._layer is not None:
            vertices = np.array(self._points, dtype=np.float64).reshape(-1, 2)
            self._regions.append((self._region, self._region_listed, vertices))
            self._region = None
        elif element.tag == "Annotation" and self._layer is not None:
            self._finish_layer(self._layer)
            self._layer = None

    def _vertex(self, element: Any) -> None:  # noqa: ANN401
        for axis in ("X", "Y"):
            try:
                self._points.append(position(element.get(axis)))
            except ValueError as error:
                raise self._fault(f"{axis} is {error}", vertex=len(self._points) // 2) from None

    def _finish_layer(self, layer: Mapping[str, str]) -> None:
        candidates = [layer.get("Name", ""), self._listed.get("Name", ""), self._listed.get("Description", "")]
        named = [name for name in candidates if name.strip()]
        name = named[0] if named else f"Layer {layer.get('Id', len(self.groups) + 1)}"
        attributes = {**_kept(layer, _OF_LAYER, _LAYER_DEFAULTS), **self._listed}
        self.groups.append(Group(name=name, colour=_colour(layer.get("LineColor")), attributes=attributes))
        for region, listed, vertices in self._regions:
            self.annotations.append(self._annotation(name, region, listed, vertices))

    def _annotation(
        self, layer: str, region: Mapping[str, str], listed: Mapping[str, str], vertices: NDArray[np.float64]
    ) -> Annotation:
        text = region.get("Text", "")
        kind = region.get("Type", "0")
        if kind.casefold() not in _KINDS:
            raise AnnotationFormatError(
                self._path,
                f"Type is {shortened(kind)!r}",
                where=f"layer {layer!r}, region {text or region.get('Id', '')!r}",
                mend="use 0 polygon, 1 rectangle, 2 ellipse, 3 arrow, 4 ruler or 5 point",
            )
        shape = _KINDS[kind.casefold()]
        if kind.casefold() in _ELLIPSES and len(vertices) == 2:
            vertices = _ellipse(vertices)
        elif shape == "PointSet" and len(vertices) == 1:
            shape = "Dot"
        role = self._role(layer, text)
        is_hole = region.get("NegativeROA", "0").strip().lower() in ("1", "true", "yes")
        attributes = {**_kept(region, _OF_REGION, {**_REGION_DEFAULTS, "Type": _NUMBERS[shape]}), **listed}
        group = layer
        if is_hole:
            attributes[HOLE_OF] = layer
            cuts = role is Role.TUMOUR
            group, role = (HOLE_GROUP, Role.CUT_OUT) if cuts else (IGNORED_HOLE_GROUP, Role.IGNORE)
        return Annotation(
            name=text,
            group=group,
            role=role,
            kind=shape,
            vertices=vertices,
            attributes=attributes,
        )

    def _role(self, layer: str, text: str) -> Role:
        role = self._roles.get(group_key(layer), self._unknown)
        if role is None:
            raise UnknownGroupError(
                self._path,
                f"the layer {shortened(layer)!r} has no known meaning",
                where=f"region {text!r}",
                mend=f"rename it, or say its role with --groups; known groups: {', '.join(sorted(self._roles))}",
            )
        return role

    def _fault(self, reason: str, *, vertex: int) -> AnnotationFormatError:
        layer = (self._layer or {}).get("Name", "")
        region = (self._region or {}).get("Id", "")
        return AnnotationFormatError(self._path, reason, where=f"layer {layer!r}, region {region!r}, vertex {vertex}")


def _kept(tag: Mapping[str, str], own: frozenset[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The attributes of a tag that have no field and differ from what ImageScope and HALO write anyway."""
    return {
        IN_TAG + name: value
        for name, value in tag.items()
        if name not in own and value not in (defaults.get(name), _HALO_DEFAULTS.get(name))
    }


def _resolution(text: str | None) -> float | None:
    try:
        mpp = position(text)
    except ValueError:
        return None
    return mpp if mpp > 0 else None


def _colour(text: str | None) -> Colour | None:
    """A Windows COLORREF: red in the lowest byte."""
    if text is None or not text.strip().isdecimal() or len(text) > 10:
        return None
    packed = int(text)
    return packed & 255, packed >> 8 & 255, packed >> 16 & 255


def _ellipse(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ellipse between two opposite corners, as a polygon whose area is off by a twenty-thousandth."""
    centre, radii = box.mean(axis=0), np.abs(box[1] - box[0]) / 2
    angle = np.arange(_ELLIPSE_EDGES) * (2 * math.pi / _ELLIPSE_EDGES)
    polygon: NDArray[np.float64] = centre + radii * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return polygon


def _box_of_ellipse(vertices: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The inverse of _ellipse; None if the vertices have been changed since."""
    if len(vertices) != _ELLIPSE_EDGES:
        return None
    box = np.array([vertices.min(axis=0), vertices.max(axis=0)])
    return box if np.allclose(_ellipse(box), vertices, rtol=0, atol=1e-6) else None
