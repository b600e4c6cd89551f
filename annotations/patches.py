"""Labelled training patches from one slide: where to look, what is there, and what may be learnt from it.

Lesions are equal: each is looked at as often as any other, so that a few isolated tumour cells count as much as a
metastasis that fills the node. Everything follows from the seed and the slide's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from annotations.annotation import Annotation, Role
from annotations.errors import SamplingError
from annotations.lesion_sites import LesionSite, find_sites
from annotations.rasterize import Painting, polygon_mask
from wsi.geometry import Frame
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide

TUMOUR, BORDER, NORMAL, NEAR, BACKGROUND, HARD = KINDS = ("tumour", "border", "normal", "near", "background", "hard")
IGNORE = 255

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
    """

    border: float = 0.3
    near: float = 0.25
    background: float = 0.1

    def __post_init__(self) -> None:
        if min(self.border, self.near, self.background) < 0 or max(self.border, self.near + self.background) > 1:
            raise ValueError(f"shares lie between 0 and 1, got {self}")


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
    patient: str | None = None,
    centre: int | None = None,
) -> PatchBatch:
    """Draw labelled patches from one slide.

    Patches lie on the pixel grid of ``slide.frame_at(mpp)``, the one that inference uses. Tumour patches go round the
    lesions (outlines at most MERGE_UM apart are one); normal and background patches hold no tumour. Where a slide has
    no such place after some tries there are fewer patches than asked for.

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
        patient: written into the batch; the slide's name where None.
        centre: written into the batch.

    Raises:
        SamplingError: no annotations for a slide that is not negative; tumour drawn on a slide that is; tumour patches
            wanted without drawn tumour; normal patches wanted from a partly annotated slide.
        ResolutionError: the slide's mpp is not known.
        TileError: a tile is damaged.
    """
    shares = shares or Shares()
    drawn = tuple(annotations or ())
    whole = slide.frame_at(mpp)
    painting = Painting.of(drawn)
    sites = find_sites(drawn, painting, mpp=whole.pixel_um / whole.downsample)
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
        labels=_Labels(annotations=drawn, painting=painting, partly=partly_annotated),
        rng=_generator(seed, slide.name),
    )
    border = 0 if partly_annotated else round(count_tumour * shares.border)
    background = round(count_normal * shares.background)
    near = round(count_normal * shares.near) if sites else 0
    found = [
        *sampler.tumour(count_tumour - border, count_border=border),
        *sampler.normal(tissue, count_normal - background - near),
        *sampler.near(tissue, near),
        *sampler.background(tissue, background),
        *(sampler.hard(mistakes, count_hard) if mistakes is not None else ()),
    ]
    shape = (len(found), size_px, size_px)
    return PatchBatch(
        slide=slide.name,
        patient=patient or slide.name,
        centre=centre,
        mpp=mpp,
        images=np.array([slide.read_frame(patch.frame).array for patch in found], np.uint8).reshape(*shape, 3),
        targets=np.array([patch.target for patch in found], np.uint8).reshape(shape),
        x=np.array([patch.frame.x for patch in found], np.float64),
        y=np.array([patch.frame.y for patch in found], np.float64),
        kinds=tuple(patch.kind for patch in found),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Patch:
    kind: str
    frame: Frame
    target: NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Labels:
    """What the annotations say about every pixel."""

    annotations: tuple[Annotation, ...]
    painting: Painting
    partly: bool

    def target(self, frame: Frame) -> NDArray[np.uint8]:
        tumour = self.painting.mask(frame).array
        target = tumour.astype(np.uint8)
        if self.partly:
            target[~(tumour | self._inside(Role.CUT_OUT, frame))] = IGNORE
        target[self._inside(Role.IGNORE, frame)] = IGNORE
        return target

    def _inside(self, role: Role, frame: Frame) -> NDArray[np.bool_]:
        outlines = [annotation.outline for annotation in self.annotations if annotation.role is role]
        return polygon_mask([outline for outline in outlines if outline is not None], frame).array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sampler:
    """Draws places until they hold what their kind promises."""

    slide: Slide
    whole: Frame
    size_px: int
    sites: tuple[LesionSite, ...]
    labels: _Labels
    rng: np.random.Generator

    def tumour(self, count: int, *, count_border: int) -> Iterator[_Patch]:
        """Inner and border patches; the lesions take turns."""
        for number, site in enumerate(self._turns(count + count_border)):
            patch = None
            # An outline goes near the centre of its patch; a deposit lies anywhere in the middle half.
            if number < count_border:
                patch = self._first(BORDER, partial(site.border_point, self.rng), 1 / 16, _has_border)
            patch = patch or self._first(TUMOUR, partial(site.inner_point, self.rng), 1 / 4, _has_tumour)
            if patch:
                yield patch

    def normal(self, tissue: Mask, count: int) -> Iterator[_Patch]:
        """Anywhere on the tissue."""
        yield from self._from_cells(NORMAL, tissue.frame, tissue.array, count)

    def near(self, tissue: Mask, count: int) -> Iterator[_Patch]:
        """On the tissue, half a patch to two patches from an outline."""
        for site in self._turns(count):
            if patch := self._first(NEAR, partial(self._beside, site, tissue), 0, _is_normal):
                yield patch

    def hard(self, mistakes: Heatmap, count: int) -> Iterator[_Patch]:
        """Around cells that a model takes for tumour; what holds tumour is left out as in every normal patch."""
        yield from self._from_cells(HARD, mistakes.frame, mistakes.array >= _HARD_FROM, count)

    def background(self, tissue: Mask, count: int) -> Iterator[_Patch]:
        """Half on the edge of the tissue, half off it, where of some places the darkest is taken."""
        on_edge = count - count // 2
        yield from self._from_cells(BACKGROUND, tissue.frame, _edge(tissue.array), on_edge)
        for _ in range(count // 2):
            places = [
                patch
                for patch in self._from_cells(BACKGROUND, tissue.frame, ~tissue.array, _INK_CANDIDATES)
                if not self.slide.is_missing(patch.frame)
            ]
            if places:
                yield min(places, key=lambda patch: int(self.slide.read_frame(patch.frame).array.sum(dtype=np.int64)))

    def _beside(self, site: LesionSite, tissue: Mask) -> tuple[float, float] | None:
        x, y = site.border_point(self.rng)
        angle = self.rng.uniform(0, 2 * np.pi)
        reach = self.rng.uniform(0.5, 2.0) * self.size_px * self.whole.downsample
        x, y = x + reach * float(np.cos(angle)), y + reach * float(np.sin(angle))
        return (x, y) if _holds(tissue, x, y) else None

    def _turns(self, count: int) -> Iterator[LesionSite]:
        """Lesions in random order, each once before any comes again."""
        order: list[int] = []
        for _ in range(count):
            order = order or self.rng.permutation(len(self.sites)).tolist()
            yield self.sites[order.pop()]

    def _from_cells(self, kind: str, frame: Frame, cells: NDArray[np.bool_], count: int) -> Iterator[_Patch]:
        chosen = np.flatnonzero(cells)
        if not len(chosen):
            return

        def place() -> tuple[float, float]:
            row, column = divmod(int(self.rng.choice(chosen)), cells.shape[1])
            jitter = self.rng.uniform(0, 1, 2)
            return frame.x + (column + jitter[0]) * frame.downsample, frame.y + (row + jitter[1]) * frame.downsample

        for _ in range(count):
            if patch := self._first(kind, place, 0, _is_normal):
                yield patch

    def _first(
        self,
        kind: str,
        place: Callable[[], tuple[float, float] | None],
        jitter: float,
        keeps: Callable[[NDArray[np.uint8]], bool],
    ) -> _Patch | None:
        """The first of some places whose target is as it should be; ``jitter`` in sides of a patch, to each side."""
        for _ in range(_TRIES):
            point = place()
            shift = self.rng.uniform(-jitter, jitter, 2) * self.size_px
            if point is None:
                continue
            frame = self._around(*point, shift)
            target = self.labels.target(frame)
            if keeps(target):
                return _Patch(kind=kind, frame=frame, target=target)
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
