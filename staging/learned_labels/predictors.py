"""Numbers that summarise a heatmap, for a learned label.

The predictors are those of the best entries of CAMELYON17 (P. Bandi et al., IEEE Transactions on Medical Imaging 38(2),
2019): the share of tissue that is tumour at several thresholds, and shape and probabilities of the two largest lesions.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from annotations.measures import MERGE_GAP_UM
from staging.lesions.finding import measure_heatmap
from staging.lesions.shape import LesionShape
from wsi.raster import Heatmap

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
OUTLINE_THRESHOLD = 0.5
_LARGEST = 2
_OF_TISSUE = ("area_share", "probability_share")
_OF_LESION = (
    "longest_diameter_um",
    "major_axis_um",
    "area_um2",
    "box_um2",
    "eccentricity",
    "aspect_ratio",
    "extent",
    "solidity",
    "probability_max",
    "probability_mean",
    "probability_min",
)
PREDICTOR_NAMES = (
    "probability_max",
    "lesions",
    *(f"{name}_{threshold:g}" for threshold, name in product(THRESHOLDS, _OF_TISSUE)),
    *(f"lesion_{number}_{name}" for number, name in product(range(1, _LARGEST + 1), _OF_LESION)),
)

_SHAPE_WORDS = {
    "longest_diameter_um": "longest diameter",
    "major_axis_um": "major axis",
    "area_um2": "area",
    "box_um2": "area of its box",
    "aspect_ratio": "width to length",
    "extent": "share of its box",
    "solidity": "share of its convex hull",
    "probability_max": "highest probability",
    "probability_mean": "mean probability",
    "probability_min": "lowest probability",
}


def in_words(name: str) -> str:
    """A predictor's name as a picture shows it."""
    if name == "probability_max":
        return "highest probability of the slide"
    if name == "lesions":
        return "number of lesions"
    of_tissue, _, threshold = name.rpartition("_")
    if of_tissue in _OF_TISSUE:
        return f"tissue of {threshold} or more: {'its share' if of_tissue == 'area_share' else 'its probability'}"
    _, number, shape = name.split("_", 2)
    return f"{('longest', 'second')[int(number) - 1]} lesion: {_SHAPE_WORDS.get(shape, shape)}"


def slide_predictors(heatmap: Heatmap, *, merge_gap_um: float = MERGE_GAP_UM) -> NDArray[np.float64]:
    """Compute the predictors of a slide, in the order of PREDICTOR_NAMES; those of missing lesions are 0.

    ``area_share_t`` is the share of tissue cells with probability at least t, ``probability_share_t`` the sum of
    their probabilities divided by the number of tissue cells. Lesions are outlined at 0.5; the largest is the longest.

    Args:
        heatmap: its frame must know its mpp.
        merge_gap_um: largest gap within a lesion.

    Returns:
        float64 (len(PREDICTOR_NAMES),).

    Raises:
        ResolutionError: mpp is unknown.
    """
    lesions, _ = measure_heatmap(heatmap, threshold=OUTLINE_THRESHOLD, merge_gap_um=merge_gap_um)
    values = heatmap.array.astype(np.float64)
    tissue = max(1, int(heatmap.tissue.sum()))
    found = [float(values.max()), float(len(lesions))]
    for threshold in THRESHOLDS:
        reached = values[values >= threshold]
        found += [len(reached) / tissue, float(reached.sum()) / tissue]
    for number in range(_LARGEST):
        found += _of_lesion(lesions[number]) if number < len(lesions) else [0.0] * len(_OF_LESION)
    return np.array(found)


def _of_lesion(lesion: LesionShape) -> list[float]:
    return [
        lesion.longest_diameter_um,
        lesion.major_axis_um,
        lesion.area_um2,
        lesion.area_um2 / lesion.extent,
        lesion.eccentricity,
        lesion.minor_axis_um / lesion.major_axis_um,
        lesion.extent,
        lesion.solidity,
        lesion.probability_max,
        lesion.probability_mean,
        lesion.probability_min,
    ]
