"""Labelled training patches from one slide: where they are drawn, how many of each kind, and which are allowed.

All lesions are drawn from equally often, so that a few isolated tumour cells count as much as a metastasis that fills
the node. Everything is determined by the seed and the slide's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation
from annotations.errors import SamplingError
from annotations.patches.labels import LabelRule, PatchLabels
from annotations.patches.sampler import (
    BACKGROUND,
    BORDER,
    HARD,
    HARD_CHOICE,
    KINDS,
    NEAR,
    NORMAL,
    TUMOUR,
    DrawnPatch,
    HardChoice,
    PatchSampler,
)
from annotations.patches.sites import LesionSite, find_sites
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide

__all__ = [
    "BACKGROUND",
    "BORDER",
    "HARD",
    "HARD_CHOICE",
    "KINDS",
    "NEAR",
    "NORMAL",
    "TUMOUR",
    "DrawnPatch",
    "HardChoice",
    "PatchBatch",
    "Shares",
    "draw_patches",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How the kinds of patches share a slide's patches.

    Attributes:
        border: of the tumour patches, centred on an outline. If no such position is tumour by the rule, one within the
            lesion is used, unless all must be on outlines (1).
        near: of the normal patches of a slide with tumour, beside a lesion.
        background: of the normal patches, half on the edge of the tissue and half off it.
        turns: how the lesions of a slide take turns: ``lesion`` draws from each equally often, ``area`` in
            proportion to its area.
    """

    border: float = 0.3
    near: float = 0.25
    background: float = 0.1
    turns: Literal["lesion", "area"] = "lesion"

    def __post_init__(self) -> None:
        if min(self.border, self.near, self.background) < 0 or max(self.border, self.near + self.background) > 1:
            raise ValueError(f"shares must lie between 0 and 1, got {self}")
        if self.turns not in ("lesion", "area"):
            raise ValueError(f"lesions must take turns by lesion or by area, got {self.turns!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchBatch:
    """Patches of one slide.

    Attributes:
        slide, patient: their names.
        centre: number of the medical centre, or None.
        mpp: um per pixel of the patches.
        images: uint8 (n, side, side, 3), RGB.
        targets: uint8 (n, side, side): 1 tumour, 0 anything else, 255 unknown.
        x, y: float64 (n,), level-0 position of the outer corner of pixel (0, 0).
        kinds: n of KINDS.
        split: of the patient (train, validation, test, or a fold).
    """

    slide: str
    patient: str
    centre: int | None
    mpp: float
    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    kinds: tuple[str, ...]
    split: str = "train"

    def __post_init__(self) -> None:
        count, side = self.targets.shape[0], self.targets.shape[1]
        if self.images.shape != (count, side, side, 3) or self.targets.shape != (count, side, side):
            raise ValueError(f"images {self.images.shape} and targets {self.targets.shape} do not match")
        if not self.x.shape == self.y.shape == (count,) or len(self.kinds) != count:
            raise ValueError(f"{count} patches need as many positions and kinds")

    @property
    def tumour_fraction(self) -> NDArray[np.float64]:
        """float64 (n,): the share of each patch's pixels that are tumour."""
        fraction: NDArray[np.float64] = (self.targets == 1).mean(axis=(1, 2), dtype=np.float64)
        return fraction


def draw_patches(
    slide: Slide,
    annotations: Sequence[Annotation] | None,
    tissue: Mask,
    *,
    mpp: float,
    size_px: int,
    count_tumour: int,
    count_normal: int,
    seed: int,
    negative: bool,
    partly_annotated: bool = False,
    shares: Shares | None = None,
    mistakes: Heatmap | None = None,
    count_hard: int = 0,
    hard_choice: HardChoice = HARD_CHOICE,
    rule: LabelRule | None = None,
) -> Iterator[DrawnPatch]:
    """Draw the positions of labelled patches on one slide.

    Patches lie on the pixel grid of ``slide.frame_at(mpp)``, the one that inference uses. Tumour patches rotate through
    the lesions (outlines at most MERGE_GAP_UM apart are one) and are tumour by the rule; normal and background patches
    hold no tumour at all. If no such position is found after a number of tries there are fewer patches than requested.

    Args:
        slide: its resolution must be known.
        annotations: what was drawn on it, or None if nothing was.
        tissue: where there is tissue.
        mpp: um per pixel of the patches.
        size_px: side of the patches in pixels.
        count_tumour: patches with tumour.
        count_normal: patches without.
        seed: determines every position, with the slide's name.
        negative: the slide is known to hold no tumour at all. Never infer it from missing annotations.
        partly_annotated: tumour was left undrawn (CAMELYON16 lists such slides): everything outside the outlines is
            then unknown, and nothing is normal.
        shares: of the kinds of patches.
        mistakes: a model's heatmap of the slide; hard patches lie where it calls normal tissue tumour.
        count_hard: hard patches without tumour; 0 without ``mistakes``.
        hard_choice: ``even`` draws them uniformly from the cells with a probability of at least 0.5. ``worst`` takes
            these cells by falling probability, ties row by row from the top left: the patch is centred on its cell, as
            far as it stays on the slide, and begins at least half a side away, along x or y, from every earlier hard
            patch, so that one blob of false positives does not take them all. No randomness is involved.
        rule: when a patch is tumour; by default when it shows any.

    Raises:
        SamplingError: no annotations for a slide that is not negative; tumour drawn on a slide that is; tumour patches
            requested without drawn tumour; normal patches requested from a partly annotated slide.
        ResolutionError: the slide's mpp is unknown.
        TileError: a tile is damaged.
        ValueError: ``hard_choice`` is neither even nor worst.
    """
    if hard_choice not in get_args(HardChoice):
        raise ValueError(f"hard_choice must be even or worst, got {hard_choice!r}")
    shares = shares or Shares()
    labels = PatchLabels.of(annotations or (), is_partial=partly_annotated)
    whole = slide.frame_at(mpp)
    sites = find_sites(labels.annotations, labels.painting, mpp=whole.pixel_um / whole.downsample)
    _check_claims(
        slide, annotations, sites, negative=negative, partly=partly_annotated, normal=count_normal + count_hard
    )
    if count_tumour and not sites:
        raise SamplingError(
            slide.path,
            "tumour patches were requested but no tumour is drawn",
            mend="check the groups of its annotations",
        )
    sampler = PatchSampler(
        slide=slide,
        whole=whole,
        size_px=size_px,
        sites=sites,
        labels=labels,
        rule=rule or LabelRule(),
        turns=shares.turns,
        rng=_generator(seed, slide.name),
    )
    border = 0 if partly_annotated else round(count_tumour * shares.border)
    background = round(count_normal * shares.background)
    near = round(count_normal * shares.near) if sites else 0
    yield from sampler.tumour(count_tumour - border, count_border=border, only_border=shares.border == 1)
    yield from sampler.normal(tissue, count_normal - background - near)
    yield from sampler.near(tissue, near)
    yield from sampler.background(tissue, background)
    if mistakes is not None:
        yield from sampler.hard(mistakes, count_hard, choice=hard_choice)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8])])


def _check_claims(
    slide: Slide,
    annotations: Sequence[Annotation] | None,
    sites: Sequence[LesionSite],
    *,
    negative: bool,
    partly: bool,
    normal: int,
) -> None:
    if annotations is None and not negative:
        raise SamplingError(
            slide.path,
            "has no annotations and is not known to be negative: nothing on it can be called normal",
            mend="pass its annotations, or negative=True if its label says so",
        )
    if negative and sites:
        raise SamplingError(
            slide.path,
            "is said to be negative but tumour is drawn on it",
            mend="leave the slide out or correct its label",
        )
    if partly and normal:
        raise SamplingError(
            slide.path,
            "is only partly annotated: no normal patches can be drawn from it",
            mend="ask for tumour patches only",
        )
