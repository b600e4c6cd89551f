"""What the annotations of a slide say about its patches: a class for every pixel, and one for the whole patch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.painting import Painting, polygon_mask
from wsi.geometry import Frame

IGNORE = 255
"""The target of pixels about which nothing is known."""

PatchClass = Literal["tumour", "normal", "unknown"]
CLASSES: tuple[PatchClass, ...] = ("tumour", "normal", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    """When a patch counts as tumour.

    Attributes:
        kind: ``any``: it shows tumour at all. ``centre``: the level-0 point at its centre lies in tumour. ``area``: at
            least ``share`` of its pixels are tumour.
        share: for ``area``, above 0 and at most 1.
    """

    kind: Literal["any", "centre", "area"] = "any"
    share: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("any", "centre", "area"):
            raise ValueError(f"a patch must be labelled by any, centre or area, got {self.kind!r}")
        if (self.kind == "area") != (self.share is not None) or not 0 < (1 if self.share is None else self.share) <= 1:
            raise ValueError(f"area needs a share above 0 and at most 1, the others none; got {self.share}")

    @classmethod
    def parse(cls, text: str) -> LabelRule:
        """``any``, ``centre`` or ``area:0.5``.

        Raises:
            ValueError: it is none of these.
        """
        kind, _, share = text.strip().lower().partition(":")
        if kind == "area":
            return cls(kind="area", share=float(share or "nan"))
        if kind in ("any", "centre") and not share:
            return cls(kind="any" if kind == "any" else "centre")
        raise ValueError(f"a patch must be labelled by any, centre or area:SHARE, got {text!r}")

    def __str__(self) -> str:
        return self.kind if self.share is None else f"{self.kind}:{self.share:g}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchLabels:
    """The annotations of one slide, ready to label patches with. Build it with PatchLabels.of.

    Attributes:
        annotations: all of the slide.
        painting: their tumour.
        is_partial: tumour was left undrawn, so that everything outside the outlines is unknown.
    """

    annotations: tuple[Annotation, ...]
    painting: Painting
    is_partial: bool

    @classmethod
    def of(cls, annotations: Iterable[Annotation], *, is_partial: bool = False) -> PatchLabels:
        """Prepare the outlines."""
        drawn = tuple(annotations)
        return cls(annotations=drawn, painting=Painting.of(drawn), is_partial=is_partial)

    def target(self, frame: Frame) -> NDArray[np.uint8]:
        """Uint8 (rows, columns): 1 where the centre of a pixel lies in tumour, 0 where not, 255 where unknown."""
        tumour = self.painting.mask(frame).array
        target = tumour.astype(np.uint8)
        if self.is_partial:
            target[~(tumour | self._inside(Role.CUT_OUT, frame))] = IGNORE
        target[self._inside(Role.IGNORE, frame)] = IGNORE
        return target

    def class_of(self, frame: Frame, target: NDArray[np.uint8], rule: LabelRule) -> PatchClass:
        """The class of a patch by a rule.

        Args:
            frame: of the patch.
            target: its ``target``.
            rule: decides the class.

        Returns:
            ``unknown`` by centre if the centre is unknown; by any and area if less than half of the pixels are known
            and these do not make it tumour.
        """
        if rule.kind == "centre":
            value = int(self.target(centre_of(frame))[0, 0])
            return "unknown" if value == IGNORE else "tumour" if value else "normal"
        share = float((target == 1).mean())
        if share > 0 if rule.share is None else share >= rule.share:
            return "tumour"
        return "unknown" if (target == IGNORE).mean() > 0.5 else "normal"

    def _inside(self, role: Role, frame: Frame) -> NDArray[np.bool_]:
        outlines = [annotation.outline for annotation in self.annotations if annotation.role is role]
        return polygon_mask([outline for outline in outlines if outline is not None], frame).array


def centre_of(frame: Frame) -> Frame:
    """The one-pixel frame (1 level-0 px) around the point at a frame's centre."""
    rows, columns = frame.shape
    x, y = frame.positions(rows / 2, columns / 2)
    return Frame(x=float(x) - 0.5, y=float(y) - 0.5, downsample=1.0, shape=(1, 1), mpp=frame.mpp)
