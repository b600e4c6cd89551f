"""ASAP XML, the annotation format of CAMELYON: reading without trust, writing what ASAP opens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree
from numpy.typing import NDArray

from annotations.annotation import KINDS, ROLE_COLOURS, Annotation, Role, known_roles
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, UnknownGroupError
from wsi.store import atomic_text

_OUTLINE_COLOUR = "#F4FA58"  # what ASAP gives a new annotation
_NO_GROUP = "None"
_FARTHEST_PX = 1e9
_SHOWN_CHARACTERS = 40
# float() takes '1_00', Arabic digits, 'nan' and 'infinity'; the format means plain decimals.
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?")
_ORDER = re.compile(r"[0-9]{1,9}")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_asap(path: str | Path, groups: Mapping[str, Role] | None = None) -> tuple[Annotation, ...]:
    """Read an ASAP XML file.

    Vertices come in the order of their ``Order``. Outlines with fewer than three vertices occur in real files and are
    kept, but have no area. A group that is not known itself takes the role of its nearest known parent group.

    Args:
        path: the XML file.
        groups: roles of further groups; they go before the built-in ones. Case does not matter.

    Returns:
        The annotations in the order of the file.

    Raises:
        AnnotationNotFoundError: there is no such file.
        AnnotationFormatError: not XML, a document type, not ASAP, or a number that is none; names the place.
        UnknownGroupError: a group has no known meaning.
    """
    path = Path(path)
    found = _Found(path)
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise AnnotationFormatError(path, "the file is empty", mend="copy it again")
            file.seek(0)
            # Arguments as measured: any one of them loosened lets a document read other files or exhaust memory.
            events = etree.iterparse(
                file,
                events=("start", "end"),
                load_dtd=False,
                dtd_validation=False,
                resolve_entities=False,
                no_network=True,
                huge_tree=False,
                recover=False,
                remove_comments=True,
                remove_pis=True,
            )
            depth = 0
            for event, element in events:
                if event == "start":
                    depth += 1
                    found.start(element, depth)
                else:
                    depth -= 1
                    found.end(element)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AnnotationNotFoundError(path, "there is no annotation file", mend="check the path") from error
    except OSError as error:
        raise AnnotationFormatError(path, f"cannot be read: {error.strerror or error}") from error
    except etree.LxmlError as error:
        raise AnnotationFormatError(
            path, f"is not well-formed XML: {error}", mend="export it from ASAP again"
        ) from error
    return found.annotations(groups)


def write_asap(path: str | Path, annotations: Iterable[Annotation]) -> None:
    """Write an ASAP XML file: whole or absent, the same bytes for the same annotations.

    Positions are written with as many decimals as bring back the same float64. Groups stand in the order of their
    first use, with one colour for each role.

    Args:
        path: the XML file; its folder is made.
        annotations: what to write; roles are not stored, they follow from the groups.

    Raises:
        ValueError: a name or group holds a character that XML cannot.
        StorageError: the file system refuses.
    """
    annotations = tuple(annotations)
    lines = ['<?xml version="1.0"?>', "<ASAP_Annotations>", "\t<Annotations>"]
    groups: dict[str, Role] = {}
    for annotation in annotations:
        groups.setdefault(annotation.group, annotation.role)
        lines.append(
            f'\t\t<Annotation Name="{_quoted(annotation.name)}" Type="{annotation.kind}" '
            f'PartOfGroup="{_quoted(annotation.group)}" Color="{_OUTLINE_COLOUR}">'
        )
        lines.append("\t\t\t<Coordinates>")
        lines.extend(
            f'\t\t\t\t<Coordinate Order="{order}" X="{_decimal(x)}" Y="{_decimal(y)}" />'
            for order, (x, y) in enumerate(annotation.vertices)
        )
        lines += ["\t\t\t</Coordinates>", "\t\t</Annotation>"]
    lines += ["\t</Annotations>", "\t<AnnotationGroups>"]
    for group, role in groups.items():
        if group != _NO_GROUP:
            lines.append(f'\t\t<Group Name="{_quoted(group)}" PartOfGroup="{_NO_GROUP}" Color="{_hex(role)}">')
            lines += ["\t\t\t<Attributes />", "\t\t</Group>"]
    lines += ["\t</AnnotationGroups>", "</ASAP_Annotations>", ""]
    atomic_text(Path(path), "\n".join(lines))


class _Found:
    """What has been read of one file so far; elements are emptied once they are in here."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._drawn: list[tuple[str, str, str, NDArray[np.float64]]] = []
        self._parents: dict[str, str] = {}
        self._orders: list[int | None] = []
        self._points: list[tuple[float, float]] = []
        self._current: str | None = None

    def start(self, element: Any, depth: int) -> None:  # noqa: ANN401  (lxml has no public element type)
        if depth == 1:
            if element.getroottree().docinfo.doctype:
                raise AnnotationFormatError(
                    self._path, "declares a document type, which may name other files", mend="remove the DOCTYPE line"
                )
            if element.tag != "ASAP_Annotations":
                raise AnnotationFormatError(
                    self._path,
                    f"is not an ASAP annotation file: its root is <{_short(element.tag)}>",
                    mend="ASAP writes <ASAP_Annotations>",
                )
        elif element.tag == "Annotation":
            self._current = element.get("Name", "")
            self._orders, self._points = [], []

    def end(self, element: Any) -> None:  # noqa: ANN401
        if element.tag == "Coordinate" and self._current is not None:
            self._coordinate(element)
        elif element.tag == "Annotation":
            self._annotation(element)
        elif element.tag == "Group":
            self._parents.setdefault(_group(element, "Name"), _group(element, "PartOfGroup"))
        else:
            return
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]

    def annotations(self, groups: Mapping[str, Role] | None) -> tuple[Annotation, ...]:
        roles = known_roles(groups)
        return tuple(
            Annotation(name=name, group=group, role=self._role(name, group, roles), kind=kind, vertices=vertices)
            for name, group, kind, vertices in self._drawn
        )

    def _coordinate(self, element: Any) -> None:  # noqa: ANN401
        order = element.get("Order")
        if order is not None and not _ORDER.fullmatch(order):
            raise self._fault(f"Order is {_short(order)!r}, not a whole number")
        x, y = (self._number(axis, element.get(axis)) for axis in ("X", "Y"))
        self._orders.append(None if order is None else int(order))
        self._points.append((x, y))

    def _number(self, axis: str, text: str | None) -> float:
        if text is None:
            raise self._fault(f"{axis} is missing")
        if not _DECIMAL.fullmatch(text):
            raise self._fault(f"{axis} is {_short(text)!r}, not a decimal number")
        value = float(text)
        if abs(value) > _FARTHEST_PX:
            raise self._fault(f"{axis} is {_short(text)}, no position on a slide")
        return value

    def _annotation(self, element: Any) -> None:  # noqa: ANN401
        kind = element.get("Type", "None")
        if kind not in KINDS:
            raise AnnotationFormatError(
                self._path,
                f"Type is {_short(kind)!r}",
                place=f"annotation {self._current!r}",
                mend=f"ASAP knows {', '.join(KINDS)}",
            )
        vertices = np.array(self._points, dtype=np.float64).reshape(-1, 2)
        if any(order is not None for order in self._orders):
            if any(order is None for order in self._orders):
                raise AnnotationFormatError(
                    self._path, "some vertices have an Order, some have not", place=f"annotation {self._current!r}"
                )
            vertices = vertices[np.argsort(np.array(self._orders, dtype=np.int64), kind="stable")]
        self._drawn.append((self._current or "", _group(element, "PartOfGroup"), kind, vertices))
        self._current = None

    def _role(self, name: str, group: str, roles: Mapping[str, Role]) -> Role:
        lineage: list[str] = [group]
        while (role := roles.get(lineage[-1].strip().casefold())) is None:
            parent = self._parents.get(lineage[-1], _NO_GROUP)
            if parent == _NO_GROUP or parent in lineage:
                raise UnknownGroupError(
                    self._path,
                    f"the group {_short(group)!r} has no known meaning",
                    place=f"annotation {name!r}",
                    mend=f"rename it, or give groups= its role; known groups: {', '.join(sorted(roles))}",
                )
            lineage.append(parent)
        return role

    def _fault(self, reason: str) -> AnnotationFormatError:
        return AnnotationFormatError(
            self._path, reason, place=f"annotation {self._current!r}, vertex {len(self._points)}"
        )


def _group(element: Any, attribute: str) -> str:  # noqa: ANN401
    name: str = element.get(attribute) or ""
    return name if name.strip() else _NO_GROUP


def _short(text: Any) -> str:  # noqa: ANN401  (a tag may be a function in lxml)
    shown = str(text)
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…"


def _quoted(text: str) -> str:
    if fault := _NOT_XML.search(text):
        raise ValueError(f"XML cannot hold the character {fault.group()!r} of {text!r}")
    # Line ends and tabs in attributes would come back as spaces.
    return escape(text).replace("\t", "&#9;").replace("\n", "&#10;").replace("\r", "&#13;")


def _hex(role: Role) -> str:
    return "#" + "".join(f"{part:02X}" for part in ROLE_COLOURS[role])


def _decimal(value: float) -> str:
    return np.format_float_positional(value, trim="-")
