"""Whether contours lie on the tissue of their slide, or fit that of another better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from annotations.annotation import Annotation
from annotations.painting import Painting
from wsi.errors import SlideError
from wsi.raster import Mask
from wsi.readers.resolution import Mpp
from wsi.slide import Slide
from wsi.tissue import find_tissue

_GOOD, _POOR, _BETTER = 0.9, 0.5, 0.2


def share_on(annotations: Iterable[Annotation], tissue: Mask) -> float | None:
    """The share of the outlined tumour that lies on tissue, 0 to 1; None if nothing is outlined.

    Pixels of the mask that an outline touches count, so that small lesions do.
    """
    tumour = Painting.of(annotations).mask(tissue.frame, reduce="max").array
    return float((tumour & tissue.array).sum() / tumour.sum()) if tumour.any() else None


def is_fit(share: float | None) -> bool:
    """Whether as much of the outlined tumour lies on tissue as an outline drawn a little generously leaves there."""
    return share is None or share >= _GOOD


def misfit(
    annotations: Sequence[Annotation], share: float | None, others: Iterable[Path], *, mpp: Mpp | None = None
) -> str | None:
    """Say that contours lie off the tissue, or fit another slide better; None if they fit well.

    Args:
        annotations: of a slide.
        share: of their tumour on its tissue.
        others: slides that they may have been swapped with.
        mpp: um per level-0 px of slides that state none, or for all.
    """
    if share is None or is_fit(share):
        return None
    best, where = share + _BETTER, None
    for path in others:
        try:
            with Slide.open(path, mpp=mpp) as slide:
                other = share_on(annotations, find_tissue(slide))
        except SlideError:  # said where that slide is read
            continue
        if other is not None and other > best:
            best, where = other, path
    here = f"only {share:.0%} of the outlined tumour lies on tissue"
    if where is not None:
        return f"{here}, but {best:.0%} on that of {where.name}: the annotations may be swapped"
    return f"{here}: the annotations may be of another slide" if share < _POOR else None
