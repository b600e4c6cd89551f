"""Labelled training patches from one slide: where to look, what is there, and what may be learnt from it.

Lesions are equal: each is looked at as often as any other, so that a few isolated tumour cells count as much as a
metastasis that fills the node. Everything follows from the seed and the slide's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation
from annotations.errors import SamplingError
from annotations.lesion_sites import LesionSite, find_sites
from annotations.patch_labels import IGNORE, LabelRule, PatchClass, PatchLabels
from wsi.geometry import Frame
from wsi.patch_reading import read_patches
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide

TUMOUR, BORDER, NORMAL, NEAR, BACKGROUND, HARD = KINDS = ("tumour", "border", "normal", "near", "background", "hard")

_TRIES = 20  # places looked at for one patch before it is given up
_INK_CANDIDATES = 6  # of so many places off the tissue the darkest is taken: ink, dust, the slide's edge
_IGNORED_AT_MOST = 0.5
_HARD_FROM = 0.5  # of probability: where a model calls normal tissue tumour


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What kinds of patches are drawn.

    Attributes:
        border: of the tumour patches, centred on an outline.
        near: of the normal patches of a slide with tumour, beside a lesion.
        background: of the normal patches, half on the edge of the tissue and half off it.
        turns: whose turn it is among the lesions of a slide: ``lesion`` lets each come as often as any other, ``area``
            as often as it is large.
    """

    border: float = 0.3
    near: float = 0.25
    background: float = 0.1
    turns: Literal["lesion", "area"] = "lesion"

    def __post_init__(self) -> None:
        if min(self.border, self.near, self.background) < 0 or max(self.border, self.near + self.background) > 1:
            raise ValueError(f"shares lie between 0 and 1, got {self}")
        if self.turns not in ("lesion", "area"):
            raise ValueError(f"lesions take turns by lesion or by area, got {self.turns!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchPlace:
    """Where a patch was drawn, without its pixels.

    Attributes:
        kind: one of KINDS: what was looked for.
        frame: of the patch, on its slide.
        target: uint8 (side, side): 1 tumour, 0 anything else, 255 not known.
        label: its class by the rule that was asked for.
        lesion: which of the slide's lesions (outlines at most MERGE_UM apart are one) it was drawn for, in the order of
            the annotations; None for none.
    """

    kind: str
    frame: Frame
    target: NDArray[np.uint8]
    label: PatchClass
    lesion: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchBatch:
    """Patches of one slide.

    Attributes:
        slide, patient: their names.
        centre: number of the medical centre, or None.
        mpp: um per pixel of the patches.
        images: uint8 (n, side, side, 3), RGB.
        targets: uint8 (n, side, side): 1 tumour, 0 anything else, 255 not known.
        x, y: float64 (n,), level-0 position of the outer corner of pixel (0, 0).
        kinds: n of KINDS.
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

    def __post_init__(self) -> None:
        count, side = self.targets.shape[0], self.targets.shape[1]
        if self.images.shape != (count, side, side, 3) or self.targets.shape != (count, side, side):
            raise ValueError(f"images {self.images.shape} and targets {self.targets.shape} do not belong together")
        if not self.x.shape == self.y.shape == (count,) or len(self.kinds) != count:
            raise ValueError(f"{count} patches need as many positions and kinds")

    @property
    def tumour_fraction(self) -> NDArray[np.float64]:
        """float64 (n,): the share of each patch's pixels that are tumour."""
        fraction: NDArray[np.float64] = (self.targets == 1).mean(axis=(1, 2), dtype=np.float64)
        return fraction


def draw_places(
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
    rule: LabelRule | None = None,
) -> Iterator[PatchPlace]:
    """Draw the places of labelled patches on one slide.

    Patches lie on the pixel grid of ``slide.frame_at(mpp)``, the one that inference uses. Tumour patches go round the
    lesions (outlines at most MERGE_UM apart are one) and are tumour by the rule; normal and background patches hold no
    tumour at all. Where a slide has no such place after some tries there are fewer patches than asked for.

    Args:
        slide: its resolution must be known.
        annotations: what was drawn on it, or None where nothing was.
        tissue: where there is tissue.
        mpp: um per pixel of the patches.
        size_px: side of the patches in pixels.
        count_tumour: patches with tumour.
        count_normal: patches without.
        seed: with the slide's name it decides every place.
        negative: the slide is known to hold no tumour at all. Never to be concluded from missing annotations.
        partly_annotated: tumour was left undrawn (a list of such slides comes with CAMELYON16): what lies in no
            outline is then not known, and nothing is normal.
        shares: of the kinds of patches.
        mistakes: what a model found on the slide; hard patches lie where it calls normal tissue tumour.
        count_hard: hard patches without tumour; 0 without ``mistakes``.
        rule: when a patch is tumour; by default when it shows any.

    Raises:
        SamplingError: no annotations for a slide that is not negative; tumour drawn on a slide that is; tumour patches
            wanted without drawn tumour; normal patches wanted from a partly annotated slide.
        ResolutionError: the slide's mpp is not known.
        TileError: a tile is damaged.
    """
    shares = shares or Shares()
    labels = PatchLabels.of(annotations or (), is_partial=partly_annotated)
    whole = slide.frame_at(mpp)
    sites = find_sites(labels.annotations, labels.painting, mpp=whole.pixel_um / whole.downsample)
    _check_claims(
        slide, annotations, sites, negative=negative, partly=partly_annotated, normal=count_normal + count_hard
    )
    if count_tumour and not sites:
        raise SamplingError(
            slide.path, "tumour patches are wanted but no tumour is drawn", mend="check the groups of its annotations"
        )
    sampler = _Sampler(
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
    yield from sampler.tumour(count_tumour - border, count_border=border)
    yield from sampler.normal(tissue, count_normal - background - near)
    yield from sampler.near(tissue, near)
    yield from sampler.background(tissue, background)
    if mistakes is not None:
        yield from sampler.hard(mistakes, count_hard)


def sample_patches(
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
    rule: LabelRule | None = None,
    patient: str | None = None,
    centre: int | None = None,
) -> PatchBatch:
    """Draw labelled patches from one slide and read their pixels.

    Args:
        slide: and all others up to ``rule``: as for draw_places, which decides where the patches lie.
        annotations: see there.
        tissue: see there.
        mpp: see there.
        size_px: see there.
        count_tumour: see there.
        count_normal: see there.
        seed: see there.
        negative: see there.
        partly_annotated: see there.
        shares: see there.
        mistakes: see there.
        count_hard: see there.
        rule: see there.
        patient: written into the batch; the slide's name where None.
        centre: written into the batch.

    Raises:
        SamplingError: as draw_places.
        ResolutionError: the slide's mpp is not known.
        TileError: a tile is damaged.
    """
    found = list(
        draw_places(
            slide,
            annotations,
            tissue,
            mpp=mpp,
            size_px=size_px,
            count_tumour=count_tumour,
            count_normal=count_normal,
            seed=seed,
            negative=negative,
            partly_annotated=partly_annotated,
            shares=shares,
            mistakes=mistakes,
            count_hard=count_hard,
            rule=rule,
        )
    )
    x = np.array([place.frame.x for place in found], np.float64)
    y = np.array([place.frame.y for place in found], np.float64)
    return PatchBatch(
        slide=slide.name,
        patient=patient or slide.name,
        centre=centre,
        mpp=mpp,
        images=read_patches(slide, x, y, downsample=slide.frame_at(mpp).downsample, size_px=size_px, workers=1),
        targets=np.array([place.target for place in found], np.uint8).reshape(len(found), size_px, size_px),
        x=x,
        y=y,
        kinds=tuple(place.kind for place in found),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sampler:
    """Draws places until they hold what their kind promises."""

    slide: Slide
    whole: Frame
    size_px: int
    sites: tuple[LesionSite, ...]
    labels: PatchLabels
    rule: LabelRule
    turns: Literal["lesion", "area"]
    rng: np.random.Generator

    def tumour(self, count: int, *, count_border: int) -> Iterator[PatchPlace]:
        """Inner and border patches; the lesions take turns."""
        # An outline goes near the centre of its patch; a deposit lies anywhere in the middle half, or at the centre
        # where that decides the class.
        jitter = 0 if self.rule.kind == "centre" else 1 / 4
        for number, lesion in enumerate(self._turns(count + count_border)):
            site, place = self.sites[lesion], None
            if number < count_border:
                place = self._first(BORDER, partial(site.border_point, self.rng), 1 / 16, _has_border, lesion)
            place = place or self._first(TUMOUR, partial(site.inner_point, self.rng), jitter, _has_tumour, lesion)
            if place:
                yield place

    def normal(self, tissue: Mask, count: int) -> Iterator[PatchPlace]:
        """Anywhere on the tissue."""
        yield from self._from_cells(NORMAL, tissue.frame, tissue.array, count)

    def near(self, tissue: Mask, count: int) -> Iterator[PatchPlace]:
        """On the tissue, half a patch to two patches from an outline."""
        for lesion in self._turns(count):
            site = self.sites[lesion]
            if place := self._first(NEAR, partial(self._beside, site, tissue), 0, _is_normal, lesion):
                yield place

    def hard(self, mistakes: Heatmap, count: int) -> Iterator[PatchPlace]:
        """Around cells that a model takes for tumour; what holds tumour is left out as in every normal patch."""
        yield from self._from_cells(HARD, mistakes.frame, mistakes.array >= _HARD_FROM, count)

    def background(self, tissue: Mask, count: int) -> Iterator[PatchPlace]:
        """Half on the edge of the tissue, half off it, where of some places the darkest is taken."""
        on_edge = count - count // 2
        yield from self._from_cells(BACKGROUND, tissue.frame, _edge(tissue.array), on_edge)
        for _ in range(count // 2):
            places = [
                place
                for place in self._from_cells(BACKGROUND, tissue.frame, ~tissue.array, _INK_CANDIDATES)
                if not self.slide.is_missing(place.frame)
            ]
            if places:
                yield min(places, key=lambda place: int(self.slide.read_frame(place.frame).array.sum(dtype=np.int64)))

    def _beside(self, site: LesionSite, tissue: Mask) -> tuple[float, float] | None:
        x, y = site.border_point(self.rng)
        angle = self.rng.uniform(0, 2 * np.pi)
        reach = self.rng.uniform(0.5, 2.0) * self.size_px * self.whole.downsample
        x, y = x + reach * float(np.cos(angle)), y + reach * float(np.sin(angle))
        return (x, y) if _holds(tissue, x, y) else None

    def _turns(self, count: int) -> Iterator[int]:
        """Numbers of lesions: in random order, each once before any comes again; or as often as they are large."""
        if self.turns == "area" and self.sites:
            area = np.array([(site.side**2).sum() for site in self.sites])
            yield from self.rng.choice(len(area), count, p=area / area.sum()).tolist()
            return
        order: list[int] = []
        for _ in range(count):
            order = order or self.rng.permutation(len(self.sites)).tolist()
            yield order.pop()

    def _from_cells(self, kind: str, frame: Frame, cells: NDArray[np.bool_], count: int) -> Iterator[PatchPlace]:
        chosen = np.flatnonzero(cells)
        if not len(chosen):
            return

        def place() -> tuple[float, float]:
            row, column = divmod(int(self.rng.choice(chosen)), cells.shape[1])
            jitter = self.rng.uniform(0, 1, 2)
            return frame.x + (column + jitter[0]) * frame.downsample, frame.y + (row + jitter[1]) * frame.downsample

        for _ in range(count):
            if found := self._first(kind, place, 0, _is_normal, None):
                yield found

    def _first(
        self,
        kind: str,
        place: Callable[[], tuple[float, float] | None],
        jitter: float,
        keeps: Callable[[NDArray[np.uint8]], bool],
        lesion: int | None,
    ) -> PatchPlace | None:
        """The first of some places that is as it should be; ``jitter`` in sides of a patch, to each side."""
        wanted: PatchClass = "tumour" if kind in (TUMOUR, BORDER) else "normal"
        for _ in range(_TRIES):
            point = place()
            shift = self.rng.uniform(-jitter, jitter, 2) * self.size_px
            if point is None:
                continue
            frame = self._around(*point, shift)
            target = self.labels.target(frame)
            if keeps(target) and self.labels.class_of(frame, target, self.rule) == wanted:
                return PatchPlace(kind=kind, frame=frame, target=target, label=wanted, lesion=lesion)
        return None

    def _around(self, x: float, y: float, shift: NDArray[np.float64]) -> Frame:
        """The patch on the slide's grid whose centre is nearest to a level-0 position, kept on the slide."""
        row, column = self.whole.fractions(x, y)
        first_row, first_column = (
            _kept(float(at) + float(by) - self.size_px / 2, side - self.size_px)
            for at, by, side in zip((row, column), shift, self.whole.shape, strict=True)
        )
        return self.whole.window(row=first_row, column=first_column, height=self.size_px, width=self.size_px)


def _kept(start: float, last: int) -> int:
    """A patch's first row or column: 0 to ``last``; a slide smaller than a patch lies in its middle."""
    return last // 2 if last < 0 else min(max(round(start), 0), last)


def _has_tumour(target: NDArray[np.uint8]) -> bool:
    return bool((target == 1).any())


def _has_border(target: NDArray[np.uint8]) -> bool:
    return bool((target == 1).any() and (target == 0).any())


def _is_normal(target: NDArray[np.uint8]) -> bool:
    return not (target == 1).any() and bool((target == IGNORE).mean() <= _IGNORED_AT_MOST)


def _holds(mask: Mask, x: float, y: float) -> bool:
    row, column = (int(np.floor(at)) for at in mask.frame.fractions(x, y))
    rows, columns = mask.array.shape
    return 0 <= row < rows and 0 <= column < columns and bool(mask.array[row, column])


def _edge(tissue: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tissue cells with a neighbour, above, below, left or right, that is none."""
    padded = np.pad(tissue, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return tissue & ~inner


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
            mend="give its annotations, or negative=True when its label says so",
        )
    if negative and sites:
        raise SamplingError(
            slide.path, "is said to be negative but tumour is drawn on it", mend="leave the slide out or mend its label"
        )
    if partly and normal:
        raise SamplingError(
            slide.path,
            "is only partly annotated: no normal patches can be drawn from it",
            mend="ask for tumour patches only",
        )
