"""Nuclei counted in an H&E picture: colour deconvolution, then blobs in the haematoxylin.

A nucleus is a maximum in place and scale of the normalised Laplacian of Gaussian of the haematoxylin density (T.
Lindeberg, International Journal of Computer Vision 30(2), 1998), for diameters of 0.75 to 1.35 times the stated one. A
disc of that diameter and of density c above its surroundings answers with 2/e * c at its centre, so that the limit on
the answer is one on c.

The count serves the rule of 200 cells (staging.lesions.labels.SizeRule). Nuclei whose centres are nearer than half a
diameter count as one; fragments and the nuclei of lymphocytes and stroma in the lesion count as cells too. Looked at
on real level-0 tiles, dense small nuclei come out right within about a fifth; of large pale nuclei some are missed
and others counted twice, so that the sum may be half too large. Counts near 200 decide nothing without a look at the
slide.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from staging.lesions.settings import NUCLEUS_UM
from wsi.errors import ResolutionError
from wsi.raster import Image, Mask
from wsi.stain import separate

CONTRAST = 0.25
"""Of the spread between surroundings and dense nuclei that a nucleus must reach; see find_nuclei."""

FAINTEST = 0.1
"""Haematoxylin density above the surroundings that counts at all: below, there is no nucleus in the picture."""

COARSEST_UM = 1.0
_ANSWER = 2 / math.e
_SIZES = (0.75, 1.0, 1.35)


def find_nuclei(
    image: Image,
    *,
    within: Mask | None = None,
    nucleus_um: float = NUCLEUS_UM,
    contrast: float = CONTRAST,
) -> NDArray[np.float64]:
    """The centres of the nuclei in a picture.

    Stains differ by a factor of two between laboratories, so a nucleus must stand out by ``contrast`` times what the
    densest do (the 99.5th percentile of the answers), and by FAINTEST.

    Args:
        image: of H&E; its pixels may be COARSEST_UM at most.
        within: a mask on any grid of the same slide; nuclei whose centre it does not hold are left out.
        nucleus_um: typical diameter of a nucleus.
        contrast: 0 to 1.

    Returns:
        float64 (n, 2), x and y in level-0 px, from top to bottom.

    Raises:
        ResolutionError: mpp is not known, or the pixels are too coarse to see nuclei.
        ValueError: the diameter or the contrast is out of range.
    """
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    if not (0 < nucleus_um < math.inf and 0 <= contrast <= 1):
        raise ValueError(f"a nucleus has a diameter above 0 um and a contrast of 0 to 1, got {nucleus_um}, {contrast}")
    pixel_um = image.frame.pixel_um
    if pixel_um > COARSEST_UM:
        raise ResolutionError(
            None, f"pixels of {pixel_um:.3g} um show no nuclei", mend=f"read the slide at {COARSEST_UM:g} um or finer"
        )
    haematoxylin, _ = separate(image.array)
    diameters = np.array([share * nucleus_um / pixel_um for share in _SIZES])
    answers = np.stack([_answers(haematoxylin, diameter) for diameter in diameters])
    is_peak = answers == ndimage.maximum_filter(answers, size=3, mode="constant", cval=-np.inf)
    limit = max(FAINTEST, contrast * float(np.percentile(answers.max(axis=0), 99.5)))
    size, rows, columns = np.nonzero(is_peak & (answers >= limit))
    order = np.argsort(-answers[size, rows, columns], kind="stable")
    candidates = np.stack([rows, columns], axis=1)[order]
    kept = candidates[_apart(candidates, diameters[size[order]] / 2)]
    kept = kept[np.lexsort((kept[:, 1], kept[:, 0]))]
    x, y = image.frame.centres(kept[:, 0], kept[:, 1])
    centres = np.stack([x, y], axis=1)
    return centres if within is None else centres[_inside(within, x, y)]


def _answers(haematoxylin: NDArray[np.float32], diameter: float) -> NDArray[np.float32]:
    """What discs of this diameter (px) answer: their density above the surroundings, at their centres."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    sigma = diameter / 2 / math.sqrt(2)
    found: NDArray[np.float32] = ndimage.gaussian_laplace(haematoxylin, sigma, mode="nearest")
    return found * np.float32(-(sigma**2) / _ANSWER)


def _apart(centres: NDArray[np.int64], radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of some positions, strongest first, are not within the radius of a stronger one that is kept: bool (n,)."""
    from scipy.spatial import cKDTree  # noqa: PLC0415  (slow import)

    kept = np.ones(len(centres), dtype=np.bool_)
    if not len(centres):
        return kept
    near = cKDTree(centres).query_ball_point(centres, radii)
    for number, others in enumerate(near):
        if kept[number]:
            kept[[other for other in others if other > number]] = False
    return kept


def _inside(mask: Mask, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    rows, columns = (np.floor(one).astype(np.int64) for one in mask.frame.fractions(x, y))
    height, width = mask.frame.shape
    known = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    held: NDArray[np.bool_] = mask.array[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    return known & held
