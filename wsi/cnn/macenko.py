"""Stain normalisation on the device: each image's own stains, replaced by reference ones.

M. Macenko et al., "A method for normalizing histology slides for quantitative analysis", ISBI 2009; reference stains
and constants are those of the authors' published example. Optical density is that of ``wsi.stain``.
"""

from __future__ import annotations

import torch

_FAINTEST = 0.15
"""Pixels with a lower optical density in any channel are background (the paper's beta)."""
_PERCENT = 1.0
"""The paper's alpha: the stains are the directions at this percentile of the angles and at 100 minus it."""
_REFERENCE = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
_REFERENCE_STRENGTH = (1.9705, 1.0308)
_FEWEST = 64
"""With fewer stained pixels the stains of an image cannot be estimated: it is left unchanged."""


def normalise(density: torch.Tensor) -> torch.Tensor:
    """Replace each image's haematoxylin and eosin by the reference's.

    Args:
        density: float32 (n, 3, rows, columns), optical density of red, green and blue.

    Returns:
        The same shape. Images with fewer than 64 stained pixels, or with one stain only, are unchanged.
    """
    flat = density.flatten(2)
    stained = (flat > _FAINTEST).all(dim=1)
    counts = stained.sum(dim=1)
    stains = _stains(flat, stained, counts)
    # the two concentrations that explain a pixel best, by the normal equations of two unknowns
    first, second = stains.unbind(dim=1)
    overlap = (first * second).sum(dim=1)
    determinant = 1 - overlap**2
    usable = (counts >= _FEWEST) & (determinant > 1e-3)
    along = [_along(flat, stain) for stain in (first, second)]
    safe = torch.where(usable, determinant, torch.ones_like(determinant))[:, None]
    amounts = (
        (along[0] - overlap[:, None] * along[1]) / safe,
        (along[1] - overlap[:, None] * along[0]) / safe,
    )
    result = torch.zeros_like(flat)
    for amount, reference, strength in zip(amounts, _REFERENCE, _REFERENCE_STRENGTH, strict=True):
        highest = _percentile(amount, stained, counts, 99.0).clamp_min(1e-3)
        colour = torch.tensor(reference, dtype=flat.dtype, device=flat.device)
        result += (amount * (strength / highest)[:, None])[:, None, :] * colour[None, :, None]
    return torch.where(usable[:, None, None], result.clamp_min(0), flat).view_as(density)


def _stains(flat: torch.Tensor, stained: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Unit vectors of haematoxylin (the redder absorber) and eosin: (n, 2, 3)."""
    weight = stained.to(flat.dtype)[:, None, :]
    share = 1 / counts.clamp_min(1).to(flat.dtype)
    mean = (flat * weight).sum(dim=2) * share[:, None]
    centred = (flat - mean[:, :, None]) * weight
    rows = [
        torch.stack([(centred[:, one] * centred[:, other]).sum(dim=1) for other in range(3)], dim=1) for one in range(3)
    ]
    covariance = torch.stack(rows, dim=1).double() * share.double()[:, None, None]
    # the plane of the two largest eigenvectors; only 3 x 3 numbers per image, so the CPU does as well as a GPU
    _, vectors = torch.linalg.eigh(covariance.cpu())
    plane = vectors[:, :, 1:].to(flat.device).to(flat.dtype)
    sign = torch.where(plane[:, :1] < 0, -1.0, 1.0)
    across, main = (plane * sign).unbind(dim=2)
    angles = torch.atan2(_along(flat, across), _along(flat, main))
    ends = []
    for percent in (_PERCENT, 100 - _PERCENT):
        angle = _percentile(angles, stained, counts, percent)[:, None]
        ends.append(main * torch.cos(angle) + across * torch.sin(angle))
    low, high = ends
    is_low_first = (low[:, :1] > high[:, :1])[:, :, None]
    pair, other = torch.stack([low, high], dim=1), torch.stack([high, low], dim=1)
    chosen = torch.where(is_low_first, pair, other)
    length: torch.Tensor = chosen.norm(dim=2, keepdim=True)
    return chosen / length.clamp_min(1e-6)


def _along(flat: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    """Scalar product of each pixel with its image's vector: (n, 3, pixels) and (n, 3) to (n, pixels)."""
    return flat[:, 0] * vector[:, 0:1] + flat[:, 1] * vector[:, 1:2] + flat[:, 2] * vector[:, 2:3]


def _percentile(values: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor, percent: float) -> torch.Tensor:
    """The percentile of the chosen values of each row, linear between two: (n, pixels) to (n,); 0 of none."""
    ordered = torch.where(chosen, values, torch.inf).sort(dim=1).values
    rank = (counts - 1).clamp_min(0).to(torch.float64) * (percent / 100)
    low = rank.floor().long()
    high = torch.minimum(low + 1, (counts - 1).clamp_min(0))
    share = (rank - low).to(values.dtype)
    below, above = (ordered.gather(1, at[:, None])[:, 0] for at in (low, high))
    found = torch.where(share > 0, below + (above - below) * share, below)
    return torch.where(counts > 0, found, torch.zeros_like(found))
