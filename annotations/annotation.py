"""What a pathologist drew: outlines in level-0 px, and what their groups mean."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from annotations.splines import flatten

Colour = tuple[int, int, int]
"""Red, green, blue, each 0..255."""

HOLE_OF = "hole of"
"""Attribute of an outline that the file lists as a hole of the outlines before it; the value is their group."""

HOLE_GROUP = "Exclusion"
"""Group of outlines that a file lists as holes of tumour: CAMELYON16's word for them."""

IGNORED_HOLE_GROUP = "Ignore"
"""Group of outlines that a file lists as holes of anything else: they must not cut tumour."""

# ASAP's annotation types (ASAP, annotation/Annotation.cpp).
KINDS = ("None", "Dot", "Polygon", "Spline", "PointSet", "Measurement", "Rectangle")
AREA_KINDS = frozenset({"Polygon", "Spline", "Rectangle"})


class Role(Enum):
    """What the inside of an outline is."""

    TUMOUR = "tumour"
    CUT_OUT = "cut out of tumour"
    TISSUE = "tissue"
    IGNORE = "ignore"


# CAMELYON16: "_0" and "_1" tumour, "_2" cut out; "Tumor", "Exclusion" and "None" in later releases. CAMELYON17:
# "metastases" and "normal". The others are renamings met in published copies. Keys are case-folded.
GROUP_ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "_0": Role.TUMOUR,
        "_1": Role.TUMOUR,
        "_2": Role.CUT_OUT,
        "tumor": Role.TUMOUR,
        "tumour": Role.TUMOUR,
        "metastasis": Role.TUMOUR,
        "metastases": Role.TUMOUR,
        "exclusion": Role.CUT_OUT,
        "none": Role.CUT_OUT,
        "normal": Role.CUT_OUT,
        "negative": Role.CUT_OUT,
        "tissue": Role.TISSUE,
        "trash": Role.IGNORE,
        "ignore": Role.IGNORE,
        "ignore*": Role.IGNORE,
    }
)

# Red, green, blue, as the published ASAP files colour tumour and cut-outs.
ROLE_COLOURS: Mapping[Role, Colour] = MappingProxyType(
    {Role.TUMOUR: (255, 0, 0), Role.CUT_OUT: (0, 170, 0), Role.TISSUE: (0, 0, 255), Role.IGNORE: (128, 128, 128)}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """One outline or set of points.

    Attributes:
        name: as drawn; not unique.
        group: the group as written in the file.
        role: what the group means.
        kind: one of KINDS.
        vertices: float64 (n, 2), columns x, y in level-0 px, in drawing order; an outline closes itself.
        colour: red, green, blue, or None where the file has none.
        attributes: whatever else the file says about it, under the file's own names.
    """

    name: str
    group: str
    role: Role
    kind: str
    vertices: NDArray[np.float64]
    colour: Colour | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an annotation's kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.vertices.dtype != np.float64 or self.vertices.ndim != 2 or self.vertices.shape[1] != 2:
            raise ValueError(f"vertices must be float64 (n, 2), got {self.vertices.dtype} {self.vertices.shape}")
        if not np.isfinite(self.vertices).all():
            raise ValueError("vertices must be finite")
        _check_colour(self.colour)

    @property
    def outline(self) -> NDArray[np.float64] | None:
        """float64 (n, 2) x, y of the closed outline, or None where there is no area to fill.

        Real files hold outlines of one or two vertices (a click too many): they are kept, but have no area. A Rectangle
        given by two opposite corners gets its other two. A Spline becomes the curve that ASAP draws through its
        vertices, as a polygon that lies within splines.TOLERANCE_PX of it.
        """
        if self.kind not in AREA_KINDS:
            return None
        if self.kind == "Rectangle" and len(self.vertices) == 2:
            (left, top), (right, bottom) = self.vertices
            return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        drawn = flatten(self.vertices) if self.kind == "Spline" else self.vertices
        return drawn if len(drawn) >= 3 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A group of annotations as a file lists it (ImageScope: a layer; QuPath: a class).

    Attributes:
        name: annotations name it as their group.
        parent: the group it is part of, or None.
        colour: red, green, blue, or None where the file has none.
        attributes: whatever else the file says about it, under the file's own names.
    """

    name: str
    parent: str | None = None
    colour: Colour | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_colour(self.colour)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnnotationSet:
    """Everything an annotation file holds.

    Attributes:
        annotations: in the order of the file.
        groups: in the order of the file; a group may have no annotations.
        mpp: um per level-0 px, where the file says so.
        warnings: what is odd about the file, a line each; the rest of it was read.
    """

    annotations: tuple[Annotation, ...]
    groups: tuple[Group, ...] = ()
    mpp: float | None = None
    warnings: tuple[str, ...] = ()


def _check_colour(colour: Colour | None) -> None:
    if colour is not None and not (len(colour) == 3 and all(0 <= part <= 255 for part in colour)):
        raise ValueError(f"a colour must be red, green, blue, each 0..255, got {colour}")


def group_key(name: str) -> str:
    """A group's name for comparison: in Unicode's form NFC, case-folded, without the spaces around it."""
    return unicodedata.normalize("NFC", name.strip()).casefold()


def known_roles(groups: Mapping[str, Role] | None) -> dict[str, Role]:
    """GROUP_ROLES with a caller's own groups added, which take precedence, by group_key."""
    return {**GROUP_ROLES, **{group_key(name): role for name, role in (groups or {}).items()}}
