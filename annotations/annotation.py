"""What a pathologist drew: outlines in level-0 px, and what their groups mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

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
ROLE_COLOURS: Mapping[Role, tuple[int, int, int]] = MappingProxyType(
    {Role.TUMOUR: (255, 0, 0), Role.CUT_OUT: (0, 170, 0), Role.TISSUE: (0, 0, 255), Role.IGNORE: (128, 128, 128)}
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """One outline or set of points.

    Attributes:
        name: as drawn; not unique.
        group: the group as written in the file.
        role: what the group means.
        kind: one of KINDS; a Spline is taken as the polygon through its points.
        vertices: float64 (n, 2), columns x, y in level-0 px, in drawing order; an outline closes itself.
    """

    name: str
    group: str
    role: Role
    kind: str
    vertices: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"an annotation's kind is one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.vertices.dtype != np.float64 or self.vertices.ndim != 2 or self.vertices.shape[1] != 2:
            raise ValueError(f"vertices are float64 (n, 2), got {self.vertices.dtype} {self.vertices.shape}")
        if not np.isfinite(self.vertices).all():
            raise ValueError("vertices are finite")

    @property
    def outline(self) -> NDArray[np.float64] | None:
        """float64 (n, 2) x, y of the closed outline, or None where there is no area to fill.

        Real files hold outlines of one or two vertices (a click too many): they are kept, but have no area. A Rectangle
        given by two opposite corners gets its other two.
        """
        if self.kind not in AREA_KINDS:
            return None
        if self.kind == "Rectangle" and len(self.vertices) == 2:
            (left, top), (right, bottom) = self.vertices
            return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        return self.vertices if len(self.vertices) >= 3 else None


def known_roles(groups: Mapping[str, Role] | None) -> dict[str, Role]:
    """GROUP_ROLES with a caller's own groups added (or put in their place); keys case-folded."""
    return {**GROUP_ROLES, **{name.strip().casefold(): role for name, role in (groups or {}).items()}}
