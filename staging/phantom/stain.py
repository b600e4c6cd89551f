"""The five centres of the phantom cohort: their stain colours, optics, scanners and habits of annotation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

H_UNIT = 160
"""Canvas value of the haematoxylin of an ordinary lymphocyte nucleus."""
E_UNIT = 80
"""Canvas value of the eosin of ordinary collagen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Centre:
    """One hospital with its laboratory and its scanner.

    The optical densities are natural logarithms, red, green and blue. They were measured on one real level-0 field of
    each CAMELYON17 centre (CC0): patient_006_node_1, patient_024_node_2, patient_056_node_1, patient_066_node_1 and
    patient_097_node_3, in this order. As in Macenko et al. (ISBI 2009) the extremes are taken: eosin is the median of
    the 6 % of stained pixels that absorb the least red for their green, haematoxylin the mean of the 12 % darkest
    pixels minus a quarter of that eosin. The blur makes the ratio of horizontal gradient to contrast of drawn cortex
    rank as in these fields.

    Attributes:
        index: 0 to 4, as in CAMELYON17.
        haematoxylin, eosin: optical density of a lymphocyte nucleus and of collagen.
        glass: RGB of the empty slide.
        blur_um: standard deviation of the optics' Gaussian.
        mpp_factor: um per px relative to the coarsest scanner (0.226 to 0.25 um/px, Litjens et al., GigaScience 2018).
        philips: whether the scanner writes Philips files with missing tiles.
        tumour_group, cut_out_group: names of the annotation groups.
    """

    index: int
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[int, int, int]
    blur_um: float
    mpp_factor: float
    philips: bool
    tumour_group: str
    cut_out_group: str


CENTRES: tuple[Centre, ...] = (
    Centre(
        index=0,
        haematoxylin=(0.94, 1.42, 0.84),
        eosin=(0.24, 0.68, 0.44),
        glass=(247, 244, 247),
        blur_um=0.15,
        mpp_factor=0.972,
        philips=False,
        tumour_group="metastases",
        cut_out_group="normal",
    ),
    Centre(
        index=1,
        haematoxylin=(1.44, 2.09, 1.13),
        eosin=(0.42, 0.92, 0.64),
        glass=(243, 241, 242),
        blur_um=0.18,
        mpp_factor=0.972,
        philips=False,
        tumour_group="Tumor",
        cut_out_group="Exclusion",
    ),
    Centre(
        index=2,
        haematoxylin=(1.14, 1.45, 0.51),
        eosin=(0.33, 0.98, 0.36),
        glass=(238, 233, 245),
        blur_um=0.13,
        mpp_factor=0.904,
        philips=False,
        tumour_group="metastases",
        cut_out_group="normal",
    ),
    Centre(
        index=3,
        haematoxylin=(1.74, 2.64, 1.32),
        eosin=(0.46, 1.3, 0.88),
        glass=(246, 240, 241),
        blur_um=0.27,
        mpp_factor=0.972,
        philips=True,
        tumour_group="Tumor",
        cut_out_group="Exclusion",
    ),
    Centre(
        index=4,
        haematoxylin=(0.92, 1.23, 0.54),
        eosin=(0.2, 0.72, 0.28),
        glass=(241, 238, 244),
        blur_um=0.12,
        mpp_factor=1.0,
        philips=False,
        tumour_group="metastases",
        cut_out_group="normal",
    ),
)


@lru_cache(maxsize=len(CENTRES))
def colours(centre: Centre) -> NDArray[np.uint32]:
    """Compute the colour of every pair of concentrations under the centre's stain (Beer-Lambert).

    Returns:
        uint32 (65536,): index ``haematoxylin * 256 + eosin`` in canvas values; bytes red, green, blue, 0 in memory.
    """
    h = (np.arange(256, dtype=np.float64) / H_UNIT)[:, None, None] * np.array(centre.haematoxylin)
    e = (np.arange(256, dtype=np.float64) / E_UNIT)[None, :, None] * np.array(centre.eosin)
    rgbx = np.zeros((256, 256, 4), dtype=np.uint8)
    # the scanner's own flare: nothing on a real slide is darker than about 3 % of the light
    rgbx[..., :3] = np.rint(np.array(centre.glass) * (0.03 + 0.97 * np.exp(-(h + e))))
    return rgbx.reshape(65536, 4).view(np.uint32)[:, 0]
