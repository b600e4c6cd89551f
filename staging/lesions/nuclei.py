"""Count nuclei in an H&E image: colour deconvolution, then blobs in the haematoxylin.

A nucleus is a maximum in position and scale of the normalised Laplacian of Gaussian of the haematoxylin density (T.
Lindeberg, International Journal of Computer Vision 30(2), 1998), for diameters of 0.75 to 1.35 times the stated one. A
disc of that diameter and of density c above its surroundings has the response 2/e * c at its centre, so a limit on the
response is a limit on c.

The count is for the 200-cell rule (staging.lesions.labels.SizeRule). Nuclei with centres nearer than half a diameter
count as one; fragments and the nuclei of lymphocytes and stroma in the lesion count as cells, too. On real level-0
tiles, counts of small dense nuclei are right to within about a fifth; of large pale nuclei some are missed and others
counted twice, so that the sum may be half too large. Counts near 200 need a look at the slide.
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
"""Share of the contrast of dense nuclei that a nucleus must reach; see find_nuclei."""

FAINTEST = 0.1
"""Least haematoxylin density of a nucleus above its surroundings: below it the image has no nuclei."""

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
    """Find the centres of the nuclei in an image.

    Stains differ by a factor of two between laboratories, so a nucleus must stand out by ``contrast`` times as much as
    the densest do (the 99.5th percentile of the responses), and by FAINTEST.

    Args:
        image: H&E; its pixels may be at most COARSEST_UM.
        within: a mask on any grid of the same slide; nuclei with centres outside it are left out.
        nucleus_um: typical diameter of a nucleus.
        contrast: 0 to 1.

    Returns:
        float64 (n, 2), x and y in level-0 px, from top to bottom.

    Raises:
        ResolutionError: mpp is unknown, or the pixels are too coarse to see nuclei.
        ValueError: the diameter or the contrast is out of range.
    """
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    if not (0 < nucleus_um < math.inf and 0 <= contrast <= 1):
        raise ValueError(
            f"a nucleus needs a diameter above 0 um and a contrast of 0 to 1, got {nucleus_um}, {contrast}"
        )
    pixel_um = image.frame.pixel_um
    if pixel_um > COARSEST_UM:
        raise ResolutionError(
            None,
            f"pixels of {pixel_um:.3g} um are too coarse to see nuclei",
            mend=f"read the slide at {COARSEST_UM:g} um or finer",
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
    """Compute the response to discs of this diameter (px): their density above the surroundings, at their centres."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    sigma = diameter / 2 / math.sqrt(2)
    found: NDArray[np.float32] = ndimage.gaussian_laplace(haematoxylin, sigma, mode="nearest")
    return found * np.float32(-(sigma**2) / _ANSWER)


def _apart(centres: NDArray[np.int64], radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Select positions, strongest first, that are not within the radius of a stronger one that is kept: bool (n,)."""
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
