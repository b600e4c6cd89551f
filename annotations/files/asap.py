"""ASAP XML, the annotation format of CAMELYON: reading without trust, writing what ASAP opens."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import KINDS, ROLE_COLOURS, Annotation, AnnotationSet, Group, Role, group_key, known_roles
from annotations.errors import AnnotationFormatError, UnknownGroupError
from annotations.files.xml import (
    DEEPEST,
    WRITTEN,
    check_count,
    colour_of,
    elements,
    hexadecimal,
    is_name,
    position,
    quoted,
    shortened,
    written,
)
from wsi.store import atomic_text

ROOT = "ASAP_Annotations"
_OUTLINE_COLOUR = (244, 250, 88)  # ASAP's colour for a new annotation
_NO_GROUP = "None"
_ORDER = re.compile(r"[0-9]{1,9}")
_OF_ANNOTATION = frozenset({"Name", "Type", "PartOfGroup", "Color"})
_OF_GROUP = frozenset({"Name", "PartOfGroup", "Color"})


def read_asap(path: str | Path, groups: Mapping[str, Role] | None = None) -> tuple[Annotation, ...]:
    """Read the annotations of an ASAP XML file.

    Vertices are sorted by their ``Order``; where several have the same one, the file must have them in order.

    Outlines with fewer than three vertices occur in real files and are kept, but have no area. An unknown group takes
    the role of its nearest known ancestor. A decimal comma is accepted where it can be nothing else (see xml.position).

    Args:
        path: the XML file.
        groups: roles of further groups; they take precedence over the built-in ones. Case does not matter.

    Returns:
        The annotations in the order of the file.

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no bytes.
        AnnotationFormatError: not XML, a document type, not ASAP, or an invalid number; says where.
        UnknownGroupError: a group has no known meaning.
    """
    return read_asap_set(path, groups).annotations


def read_asap_set(
    path: str | Path, groups: Mapping[str, Role] | None = None, *, unknown: Role | None = None
) -> AnnotationSet:
    """Read all of an ASAP XML file: annotations and groups with their nesting, colours and attributes.

    Args:
        path: the XML file.
        groups: as for read_asap.
        unknown: the role of groups without a known meaning; with None they are an error.

    Raises:
        AnnotationError: as for read_asap.
    """
    found = _Found(Path(path))
    for ends, element in elements(Path(path), ROOT, "ASAP annotation"):
        (found.end if ends else found.start)(element)
    return found.annotation_set(groups, unknown)


def write_asap(path: str | Path, annotations: Iterable[Annotation], groups: Iterable[Group] = ()) -> None:
    """Write an ASAP XML file atomically; equal annotations yield equal bytes.

    Positions are written with as many decimals as the same float64 needs to be read back. The given groups come first,
    then those of the annotations in order of first use, coloured by their role. Annotations without a colour get the
    yellow of ASAP's new ones. Attributes of annotations are written like those of groups: ASAP ignores them.

    Args:
        path: the XML file; its folder is created.
        annotations: what to write; roles are not stored, they follow from the groups.
        groups: with their nesting, colours and attributes.

    Raises:
        ValueError: a name, group or attribute holds a character that XML cannot hold, or a group's attribute has a name
            that XML does not allow.
        StorageError: the file system refuses.
    """
    annotations = tuple(annotations)
    lines = ['<?xml version="1.0"?>', WRITTEN, f"<{ROOT}>", "\t<Annotations>"]
    for annotation in annotations:
        lines.extend(_annotation_lines(annotation))
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    for group in _all_groups(annotations, tuple(groups)):
        lines.extend(_group_lines(group))
    lines += ["\t</AnnotationGroups>", f"</{ROOT}>", ""]
    atomic_text(Path(path), "\n".join(lines))


def _all_groups(annotations: Iterable[Annotation], groups: tuple[Group, ...]) -> list[Group]:
    listed = list(groups)
    names = {_NO_GROUP, *(group.name for group in groups)}
    for annotation in annotations:
        if annotation.group not in names:
            names.add(annotation.group)
            listed.append(Group(name=annotation.group, colour=ROLE_COLOURS[annotation.role]))
    # ASAP refuses a file that names a group it does not list.
    for parent in [group.parent for group in groups if group.parent is not None]:
        if parent not in names:
            names.add(parent)
            listed.append(Group(name=parent))
    return listed


def _annotation_lines(annotation: Annotation) -> Iterator[str]:
    colour, attributes = _colour(annotation)
    colour = colour or hexadecimal(_OUTLINE_COLOUR)
    yield (
        f'\t\t<Annotation Name="{quoted(annotation.name)}" Type="{annotation.kind}" '
        f'PartOfGroup="{quoted(annotation.group)}" Color="{colour}">'
    )
    if attributes:
        yield "\t\t\t<Attributes>"
        for name, value in attributes.items():
            yield f'\t\t\t\t<Attribute Name="{quoted(name)}" Value="{quoted(value)}" />'
        yield "\t\t\t</Attributes>"
    yield "\t\t\t<Coordinates>"
    for order, (x, y) in enumerate(annotation.vertices):
        yield f'\t\t\t\t<Coordinate Order="{order}" X="{written(x)}" Y="{written(y)}" />'
    yield "\t\t\t</Coordinates>"
    yield "\t\t</Annotation>"


def _group_lines(group: Group) -> Iterator[str]:
    colour, attributes = _colour(group)
    colour = colour and f' Color="{colour}"'
    yield f'\t\t<Group Name="{quoted(group.name)}" PartOfGroup="{quoted(group.parent or _NO_GROUP)}"{colour}>'
    if attributes:
        yield "\t\t\t<Attributes>"
        for name, value in attributes.items():
            if not is_name(name):
                raise ValueError(f"ASAP cannot hold an attribute named {name!r} (group {group.name!r})")
            yield f'\t\t\t\t<Attribute {name}="{quoted(value)}" />'
        yield "\t\t\t</Attributes>"
    else:
        yield "\t\t\t<Attributes />"
    yield "\t\t</Group>"


def _colour(owner: Annotation | Group) -> tuple[str, dict[str, str]]:
    """The colour as written to the file, or "", and the other attributes."""
    attributes = dict(owner.attributes)
    if owner.colour is not None:
        return hexadecimal(owner.colour), attributes
    return quoted(attributes.pop("Color", "")), attributes


class _Found:
    """What has been read of one file so far; nothing of the tree is needed once an element has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drawn: list[dict[str, Any]] = []
        self._groups: list[Group] = []
        self._open: str | None = None  # the tag of the annotation or group being read
        self._name = ""
        self._attributes: dict[str, str] = {}
        self._orders = array("q")
        self._points = array("d")

    def start(self, element: Any) -> None:  # noqa: ANN401  (lxml has no public element type)
        if element.tag in ("Annotation", "Group"):
            if self._open:
                raise AnnotationFormatError(
                    self._path, "contains another one", where=f"{self._open.lower()} {self._name!r}"
                )
            check_count(self._path, len(self._drawn) + len(self._groups))
            self._open = element.tag
            self._name = element.get("Name", "")
            own = _OF_ANNOTATION if element.tag == "Annotation" else _OF_GROUP
            self._attributes = {name: value for name, value in element.attrib.items() if name not in own}
            self._keep_colour(element)
            self._orders, self._points = array("q"), array("d")

    def end(self, element: Any) -> None:  # noqa: ANN401
        if element.tag == "Coordinate" and self._open == "Annotation":
            self._coordinate(element)
        elif element.tag == "Attribute" and self._open:
            self._attribute(element)
        elif element.tag == "Annotation":
            self._annotation(element)
        elif element.tag == "Group":
            self._group(element)

    def annotation_set(self, groups: Mapping[str, Role] | None, unknown: Role | None) -> AnnotationSet:
        roles = known_roles(groups)
        parents = {group.name: group.parent for group in reversed(self._groups)}
        return AnnotationSet(
            annotations=tuple(
                Annotation(**drawn, role=self._role(drawn["name"], drawn["group"], roles, parents, unknown))
                for drawn in self._drawn
            ),
            groups=tuple(self._groups),
        )

    def _keep_colour(self, element: Any) -> None:  # noqa: ANN401
        """ASAP also accepts colours by name; anything but #RRGGBB is kept as written."""
        text = element.get("Color")
        if text and colour_of(text) is None:
            self._attributes["Color"] = text

    def _coordinate(self, element: Any) -> None:  # noqa: ANN401
        order = element.get("Order")
        if order is not None and not _ORDER.fullmatch(order):
            raise self._fault(f"Order is {shortened(order)!r}, not a whole number")
        for axis in ("X", "Y"):
            try:
                self._points.append(position(element.get(axis)))
            except ValueError as error:
                raise self._fault(f"{axis} is {error}") from None
        self._orders.append(-1 if order is None else int(order))

    def _attribute(self, element: Any) -> None:  # noqa: ANN401
        if self._open == "Annotation" and set(element.attrib) == {"Name", "Value"}:
            self._attributes[element.get("Name")] = element.get("Value")
        else:
            self._attributes.update(element.attrib)

    def _annotation(self, element: Any) -> None:  # noqa: ANN401
        kind = element.get("Type", "None")
        if kind not in KINDS:
            raise AnnotationFormatError(
                self._path,
                f"Type is {shortened(kind)!r}",
                where=f"annotation {self._name!r}",
                mend=f"ASAP's types are {', '.join(KINDS)}",
            )
        self._drawn.append(
            {
                "name": self._name,
                "group": _group_named(element, "PartOfGroup"),
                "kind": kind,
                "vertices": self._vertices(),
                "colour": colour_of(element.get("Color")),
                "attributes": self._attributes,
            }
        )
        self._open = None

    def _vertices(self) -> NDArray[np.float64]:
        vertices = np.array(self._points, dtype=np.float64).reshape(-1, 2)
        orders = np.array(self._orders, dtype=np.int64)
        if not (orders >= 0).any():
            return vertices
        if (orders < 0).any():
            raise AnnotationFormatError(
                self._path, "some vertices have an Order, others do not", where=f"annotation {self._name!r}"
            )
        if (np.diff(orders) >= 0).all():
            return vertices
        sequence = np.argsort(orders, kind="stable")
        repeated = orders[sequence][1:][np.diff(orders[sequence]) == 0]
        if len(repeated):  # two rings in one, or edited: nothing says which vertex comes first
            raise AnnotationFormatError(
                self._path,
                f"several vertices have the Order {repeated[0]}, and the file has them in another sequence",
                where=f"annotation {self._name!r}",
                mend="number them anew",
            )
        return vertices[sequence]

    def _group(self, element: Any) -> None:  # noqa: ANN401
        parent = _group_named(element, "PartOfGroup")
        self._groups.append(
            Group(
                name=_group_named(element, "Name"),
                parent=None if parent == _NO_GROUP else parent,
                colour=colour_of(element.get("Color")),
                attributes=self._attributes,
            )
        )
        self._open = None

    def _role(
        self,
        name: str,
        group: str,
        roles: Mapping[str, Role],
        parents: Mapping[str, str | None],
        unknown: Role | None,
    ) -> Role:
        lineage: list[str] = [group]
        while (role := roles.get(group_key(lineage[-1]))) is None:
            parent = parents.get(lineage[-1])
            if parent is not None and parent not in lineage and len(lineage) < DEEPEST:
                lineage.append(parent)
            elif unknown is not None:
                return unknown
            else:
                raise UnknownGroupError(
                    self._path,
                    f"the group {shortened(group)!r} has no known meaning",
                    where=f"annotation {name!r}",
                    mend=f"rename it, or say its role with --groups; known groups: {', '.join(sorted(roles))}",
                )
        return role

    def _fault(self, reason: str) -> AnnotationFormatError:
        return AnnotationFormatError(self._path, reason, where=f"annotation {self._name!r}, vertex {len(self._orders)}")


def _group_named(element: Any, attribute: str) -> str:  # noqa: ANN401
    name: str = element.get(attribute) or ""
    return name if name.strip() else _NO_GROUP
