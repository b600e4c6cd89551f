"""Annotation files of any format: read by content, written by suffix, converted without silent losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import shapely

from annotations.annotation import (
    HOLE_GROUP,
    HOLE_OF,
    IGNORED_HOLE_GROUP,
    Annotation,
    AnnotationSet,
    Role,
    group_key,
    known_roles,
)
from annotations.errors import AnnotationFormatError, AnnotationNotFoundError, EmptyFileError
from annotations.files.asap import ROOT as ASAP_ROOT
from annotations.files.asap import read_asap_set, write_asap
from annotations.files.geojson import PART_OF, RESERVED_ATTRIBUTES, read_geojson_set, write_geojson
from annotations.files.geojson_features import bundled, features_of
from annotations.files.imagescope import ROOT as IMAGESCOPE_ROOT
from annotations.files.imagescope import is_held, read_imagescope_set, write_imagescope
from annotations.files.xml import WRITTEN, is_name, root_of
from annotations.splines import TOLERANCE_PX
from wsi.inputs import open_regular
from wsi.outputs import FileKind, has

CROSSING = "outlines that cross themselves are split into their areas"
"""A loss: see ``losses``."""
SUFFIXES = frozenset({".xml", ".geojson", ".json", ".annotations"})
"""Suffixes that tell annotation files from slides and masks; HALO's ``.annotations`` are only read."""

_LEADING = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"


class Format(Enum):
    """A kind of annotation file; the value is its name. HALO's dialect counts as ImageScope XML."""

    ASAP = "ASAP XML"
    GEOJSON = "GeoJSON"
    IMAGESCOPE = "ImageScope XML"


def read_annotations(path: str | Path, groups: Mapping[str, Role] | None = None) -> tuple[Annotation, ...]:
    """Read the annotations of a file of any known format.

    Args:
        path: ASAP XML, ImageScope XML (or HALO's) or GeoJSON, recognised by content, not by name.
        groups: roles of further groups; they take precedence over the built-in ones. Case does not matter.

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no content.
        AnnotationFormatError: not a known format, or damaged; says where.
        UnknownGroupError: a group has no known meaning.
    """
    return read_annotation_set(path, groups).annotations


def read_annotation_set(
    path: str | Path, groups: Mapping[str, Role] | None = None, *, unknown: Role | None = None
) -> AnnotationSet:
    """Read all of a file of any known format: annotations, groups, resolution.

    Args:
        path: as for read_annotations.
        groups: as for read_annotations.
        unknown: the role of groups without a known meaning; with None they are an error.

    Raises:
        AnnotationError: as for read_annotations.
    """
    readers = {
        Format.ASAP: read_asap_set,
        Format.GEOJSON: read_geojson_set,
        Format.IMAGESCOPE: read_imagescope_set,
    }
    return readers[format_of(path)](path, groups, unknown=unknown)


def write_annotations(
    path: str | Path, annotations: AnnotationSet | Iterable[Annotation], form: Format | None = None
) -> None:
    """Write annotations in the format that the file's name implies.

    Args:
        path: ``.geojson`` and ``.json`` are GeoJSON, ``.imagescope.xml`` is ImageScope's, any other ``.xml`` ASAP's.
        annotations: with their groups, where known. losses() lists what the format cannot hold.
        form: overrides the name.

    Raises:
        AnnotationFormatError: the name implies no known format, or a name inside has characters the format cannot hold.
        StorageError: the file system refuses.
    """
    path = Path(path)
    form = form or format_named(path)
    drawn = annotations if isinstance(annotations, AnnotationSet) else AnnotationSet(annotations=tuple(annotations))
    groups = [replace(group, attributes=_held(group.attributes, form)) for group in drawn.groups]
    held = [replace(one, attributes=_held(one.attributes, form, of_group=False)) for one in drawn.annotations]
    try:
        if form is Format.ASAP:
            write_asap(path, held, groups)
        elif form is Format.GEOJSON:
            write_geojson(path, features_of(held, groups))
        else:
            write_imagescope(path, held, groups, mpp=drawn.mpp)
    except ValueError as error:
        raise AnnotationFormatError(path, f"cannot be written: {error}", mend="rename what it names") from error


def convert_annotations(
    source: Path, target: Path, form: Format | None = None, *, allows_empty: bool = False
) -> dict[str, Any]:
    """Convert an annotation file into another format. Groups need no known meaning: unknown ones count as tumour.

    Args:
        source: of any known format.
        target: its name implies the format, as for write_annotations.
        form: overrides the name.
        allows_empty: a file without a vertex is not an error.

    Returns:
        ``source`` and ``target`` (names of the formats), ``annotations``, ``vertices`` and ``groups`` (counts of what
        was read), ``lost``: what the target cannot hold, each with the names it applies to; empty if nothing is lost;
        and ``warnings``: what is odd about the source.

    Raises:
        EmptyFileError: nothing is drawn in the source.
        AnnotationError: as for read_annotations and write_annotations.
        StorageError: the file system refuses.
    """
    form = form or format_named(target)
    drawn = read_annotation_set(source, unknown=Role.TUMOUR)
    if not (allows_empty or any(len(one.vertices) for one in drawn.annotations)):
        raise EmptyFileError(source, "nothing is drawn in it", mend="check the file, or give --allow-empty")
    write_annotations(target, drawn, form)
    return {
        "source": format_of(source).value,
        "target": form.value,
        "annotations": len(drawn.annotations),
        "vertices": sum(len(one.vertices) for one in drawn.annotations),
        "groups": len(drawn.groups),
        "lost": losses(drawn, form),
        "warnings": list(drawn.warnings),
    }


def format_named(path: str | Path) -> Format:
    """The format that a file's name implies.

    Raises:
        AnnotationFormatError: the suffix is unknown.
    """
    name = Path(path).name.casefold()
    if name.endswith((".geojson", ".json")):
        return Format.GEOJSON
    if name.endswith(".imagescope.xml"):
        return Format.IMAGESCOPE
    if name.endswith(".xml"):
        return Format.ASAP
    raise AnnotationFormatError(
        path, "has no known suffix", mend="use .xml (ASAP), .imagescope.xml (ImageScope) or .geojson (QuPath)"
    )


def format_of(path: str | Path) -> Format:
    """The format of a file, by its content.

    Raises:
        AnnotationNotFoundError: there is no such file.
        EmptyFileError: it has no content.
        AnnotationFormatError: the format is unknown.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            head = file.read(4096).lstrip(_LEADING)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise AnnotationNotFoundError(path, "there is no annotation file", mend="check the path") from error
    except OSError as error:
        raise AnnotationFormatError(path, f"cannot be read: {error.strerror or error}") from error
    if not head:
        raise EmptyFileError(path, "the file is empty", mend="copy it again")
    if head.startswith((b"{", b"[")):
        return Format.GEOJSON
    root = root_of(path) if head.startswith(b"<") else None
    if root == ASAP_ROOT:
        return Format.ASAP
    if root == IMAGESCOPE_ROOT:
        return Format.IMAGESCOPE
    reason = f"its root is <{root[:40]}>" if root else "it is neither XML nor JSON"
    raise AnnotationFormatError(
        path, f"is not an annotation file: {reason}", mend="use ASAP XML, ImageScope XML or GeoJSON"
    )


def file_kind(path: Path) -> FileKind:
    """The kind of output file that a name implies; any other suffix is refused when it is checked."""
    known = SUFFIXES - {".annotations"}
    form = format_named(path) if path.suffix.lower() in known else Format.GEOJSON
    # drawings of others, and ours that were changed since, have no such mark
    is_one = {
        Format.ASAP: has(b"<", f"{WRITTEN}\n<{ASAP_ROOT}".encode()),
        Format.GEOJSON: has(b"{", b'"generator": "sentinode"'),
        Format.IMAGESCOPE: has(b"<", f"{WRITTEN}\n<{IMAGESCOPE_ROOT}".encode()),
    }[form]
    return FileKind(
        name=f"a file of {form.value} written by sentinode",
        suffixes=tuple(sorted(known)),
        is_one=is_one,
        is_strict=True,
    )


def losses(drawn: AnnotationSet, form: Format) -> dict[str, list[str]]:
    """What a format cannot hold of an AnnotationSet.

    In GeoJSON an outline that crosses itself is split into its areas. Whether they lie inside a cut-out, and so are
    tumour again, is then decided for each of them instead of for the whole outline.

    Returns:
        The names of the annotations, groups or attributes affected, by kind of loss.
    """
    rules = {Format.ASAP: _lost_in_asap, Format.GEOJSON: _lost_in_geojson, Format.IMAGESCOPE: _lost_in_imagescope}
    lost: dict[str, list[str]] = {}
    for reason, name in (*_attributes_lost(drawn, form), *rules[form](drawn)):
        lost.setdefault(reason, []).append(name)
    return lost


def _held(attributes: Mapping[str, str], form: Format, *, of_group: bool = True) -> dict[str, str]:
    """Those attributes that a format can hold."""
    if form is Format.IMAGESCOPE:
        return {name: text for name, text in attributes.items() if is_held(name)}
    if form is Format.ASAP:
        return {name: text for name, text in attributes.items() if not of_group or is_name(name)}
    structural = RESERVED_ATTRIBUTES & {"id", PART_OF, HOLE_OF}
    return {name: text for name, text in attributes.items() if name not in RESERVED_ATTRIBUTES or name in structural}


def _attributes_lost(drawn: AnnotationSet, form: Format) -> Iterator[tuple[str, str]]:
    for one in drawn.annotations:
        if not one.group.strip():
            yield "groups without a name", one.name
    for group in drawn.groups:
        kept = {} if form is Format.GEOJSON else _held(group.attributes, form)
        for name in group.attributes.keys() - kept.keys():
            yield "attributes of groups", f"{group.name}: {name}"
    for one in drawn.annotations:
        for name in one.attributes.keys() - _held(one.attributes, form, of_group=False).keys():
            yield "attributes of annotations", f"{one.name}: {name}"


def _lost_in_asap(drawn: AnnotationSet) -> Iterator[tuple[str, str]]:
    if drawn.mpp is not None:
        yield "the resolution", f"{drawn.mpp:g} um per px"


def _lost_in_geojson(drawn: AnnotationSet) -> Iterator[tuple[str, str]]:
    used = {one.group for one in drawn.annotations}
    if drawn.mpp is not None:
        yield "the resolution", f"{drawn.mpp:g} um per px"
    for group in drawn.groups:
        if group.parent is not None:
            yield "the nesting of groups", group.name
        if group.name not in used:
            yield "groups without annotations", group.name
    for one in drawn.annotations:
        if reason := _reshaped_by_geojson(one):
            yield reason, one.name
    yield from _lost_with_holes(drawn)


def _lost_with_holes(drawn: AnnotationSet) -> Iterator[tuple[str, str]]:
    """What is lost where several annotations make one feature: only the first keeps name, colour and attributes."""
    for parts in bundled(drawn.annotations):
        first = parts[0][0]
        for outer, *holes in parts:
            if HOLE_OF in outer.attributes:
                yield "holes that no outline contains become annotations of their own", outer.name
            for one in (outer, *holes):
                if _own_words(one) != _own_words(first):
                    yield "names, colours and attributes of holes and parts", one.name
            for hole in holes:
                if hole.group != HOLE_GROUP:
                    yield "groups of holes", hole.name


def _reshaped_by_geojson(one: Annotation) -> str | None:
    outline, count = one.outline, len(one.vertices)
    if not count:
        return "annotations without a vertex are left out"
    if outline is None:
        same = {"Dot": count == 1, "PointSet": True, "Measurement": count > 1}
        return None if same.get(one.kind, False) else "outlines without an area become points or lines"
    if not shapely.Polygon(outline).is_valid:
        return CROSSING
    if one.kind == "Spline":
        return f"splines become polygons, within {TOLERANCE_PX:g} px"
    return "rectangles become polygons" if one.kind == "Rectangle" else None


def _own_words(one: Annotation) -> tuple[object, ...]:
    return one.name, one.colour, {name: text for name, text in one.attributes.items() if name not in (HOLE_OF, PART_OF)}


def _lost_in_imagescope(drawn: AnnotationSet) -> Iterator[tuple[str, str]]:
    for name, count in Counter(group.name for group in drawn.groups).items():
        if count > 1:
            yield "groups of the same name become one", name
    for group in drawn.groups:
        if group.parent is not None:
            yield "the nesting of groups", group.name
    for one in drawn.annotations:
        if reason := _reshaped_by_imagescope(one):
            yield reason, one.name
        if one.colour is not None:
            yield "colours of annotations", one.name
        if HOLE_OF in one.attributes and one.group != _hole_group(one):
            yield "groups of holes", one.name
    layers = [one.attributes.get(HOLE_OF, one.group) for one in drawn.annotations]
    order = list(dict.fromkeys([*(group.name for group in drawn.groups), *layers]))
    ranks = [order.index(layer) for layer in layers]
    if ranks != sorted(ranks):
        yield "the order of annotations between groups", ", ".join(dict.fromkeys(layers))


def _hole_group(hole: Annotation) -> str:
    """The group that reading assigns to it, by the meaning of its layer."""
    meaning = known_roles(None).get(group_key(hole.attributes[HOLE_OF]), Role.TUMOUR)
    return HOLE_GROUP if meaning is Role.TUMOUR else IGNORED_HOLE_GROUP


def _reshaped_by_imagescope(one: Annotation) -> str | None:
    if one.kind == "Spline":
        return f"splines become polygons, within {TOLERANCE_PX:g} px"
    if one.kind == "Rectangle" and len(one.vertices) == 2:
        return "rectangles become their four corners"
    if one.kind == "None" or (one.kind == "Dot") != (one.kind in ("Dot", "PointSet") and len(one.vertices) == 1):
        return "kinds: None becomes a line, a set of one point a dot"
    return None
