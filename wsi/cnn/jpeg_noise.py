"""JPEG artefacts, on the device: the effect of compression at a given quality on pixels, without a file.

ITU-T T.81 (1992), annex K: its example quantisation tables; the quality scale is the Independent JPEG Group's; colours
as in JFIF, with one chroma value for 2 x 2 pixels, which is what most scanners store.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)


def compressed(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Images as read back from a JPEG file.

    Args:
        images: float32 (n, 3, rows, columns), RGB on the 0..255 scale.
        quality: (n,), 1 to 100, of each image.

    Returns:
        Float32, the same shape, within 0..255.
    """
    rows, columns = images.shape[2:]
    padded = functional.pad(images, (0, -columns % 16, 0, -rows % 16), mode="replicate").round()
    red, green, blue = padded.unbind(dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    blues = functional.avg_pool2d(0.564334 * (blue - luma), 2)
    reds = functional.avg_pool2d(0.713267 * (red - luma), 2)
    scale = torch.where(quality < 50, 5000 / quality.clamp_min(1), 200 - 2 * quality).to(images.dtype)
    luma = _quantised(luma - 128, _LUMA, scale) + 128
    blues, reds = (
        # interpolate as decoders do by default: three quarters of the nearer coarse pixel, a quarter of the next
        functional.interpolate(_quantised(chroma, _CHROMA, scale)[:, None], scale_factor=2, mode="bilinear")[:, 0]
        for chroma in (blues, reds)
    )
    found = torch.stack([luma + 1.402 * reds, luma - 0.344136 * blues - 0.714136 * reds, luma + 1.772 * blues], dim=1)
    return found[:, :, :rows, :columns].round().clamp(0, 255)


def _quantised(plane: torch.Tensor, table: tuple[tuple[int, ...], ...], scale: torch.Tensor) -> torch.Tensor:
    """A plane (n, rows, columns) after cosine transform and quantisation of its 8 x 8 blocks."""
    steps = torch.tensor(table, dtype=plane.dtype, device=plane.device)
    steps = ((steps * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)[:, None, :, None, :]
    cosines = _cosines(plane)
    count, rows, columns = plane.shape
    blocks = plane.view(count, rows // 8, 8, columns // 8, 8)
    found = torch.einsum("ui,nriqj,vj->nruqv", cosines, blocks, cosines)
    kept = (found / steps).round() * steps
    return torch.einsum("ui,nruqv,vj->nriqj", cosines, kept, cosines).reshape(count, rows, columns)


def _cosines(like: torch.Tensor) -> torch.Tensor:
    """The orthonormal cosine transform of eight values, (frequency, sample)."""
    sample = torch.arange(8, dtype=torch.float64)
    rows = torch.cos((2 * sample + 1)[None, :] * sample[:, None] * (math.pi / 16)) / 2
    rows[0] /= math.sqrt(2)
    return rows.to(like.dtype).to(like.device)
