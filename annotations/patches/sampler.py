"""Sampling labelled patches on one slide: positions are tried until the patch holds what its kind promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.patches.labels import IGNORE, LabelRule, PatchClass, PatchLabels
from annotations.patches.sites import LesionSite
from wsi.geometry import Frame, Window
from wsi.raster import Heatmap, Mask
from wsi.slide import Slide

TUMOUR, BORDER, NORMAL, NEAR, BACKGROUND, HARD = KINDS = ("tumour", "border", "normal", "near", "background", "hard")
HardChoice = Literal["even", "worst"]
"""Which false positives become patches: a uniform draw, or the most probable ones, apart from each other."""
HARD_CHOICE: HardChoice = "worst"
"""The default."""

_TRIES = 20  # positions tried for one patch before giving up
_INK_CANDIDATES = 6  # the darkest of so many positions off the tissue is used: ink, dust, the slide's edge
_IGNORED_AT_MOST = 0.5
_HARD_FROM = 0.5  # a probability: from here on a model calls normal tissue tumour


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnPatch:
    """Where a patch was drawn, without its pixels.

    Attributes:
        kind: one of KINDS: what was sampled for.
        frame: of the patch, on its slide.
        target: uint8 (side, side): 1 tumour, 0 anything else, 255 unknown.
        label: its class by the requested rule.
        lesion: which of the slide's lesions (outlines at most MERGE_GAP_UM apart are one) it was drawn for, in the
            order of the annotations; None for none.
    """

    kind: str
    frame: Frame
    target: NDArray[np.uint8]
    label: PatchClass
    lesion: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PatchSampler:
    """Draws positions until the patch holds what its kind promises.

    Attributes:
        slide: what is drawn from.
        whole: its frame at the resolution of the patches; these lie on its grid.
        size_px: their side.
        sites: the slide's lesions.
        labels: what is known about every pixel.
        rule: when a patch is tumour.
        turns: how the lesions take turns: equally often, or in proportion to their area.
        rng: determines every position except those of the worst mistakes.
    """

    slide: Slide
    whole: Frame
    size_px: int
    sites: tuple[LesionSite, ...]
    labels: PatchLabels
    rule: LabelRule
    turns: Literal["lesion", "area"]
    rng: np.random.Generator

    def tumour(self, count: int, *, count_border: int, only_border: bool = False) -> Iterator[DrawnPatch]:
        """Inner and border patches; the lesions take turns.

        If no border position is tumour by the rule an inner one is used, or none with ``only_border``.
        """
        # An outline lies near the centre of its patch; a deposit anywhere in the middle half, or at the centre if that
        # decides the class.
        jitter = 0 if self.rule.kind == "centre" else 1 / 4
        for number, lesion in enumerate(self._turns(count + count_border)):
            site, patch = self.sites[lesion], None
            if number < count_border:
                patch = self._first(BORDER, partial(site.border_point, self.rng), 1 / 16, _has_border, lesion)
            if patch is None and not only_border:
                patch = self._first(TUMOUR, partial(site.inner_point, self.rng), jitter, _has_tumour, lesion)
            if patch:
                yield patch

    def normal(self, tissue: Mask, count: int) -> Iterator[DrawnPatch]:
        """Anywhere on the tissue."""
        yield from self._from_cells(NORMAL, tissue.frame, tissue.array, count)

    def near(self, tissue: Mask, count: int) -> Iterator[DrawnPatch]:
        """On the tissue, half a patch to two patches from an outline."""
        for lesion in self._turns(count):
            site = self.sites[lesion]
            if patch := self._first(NEAR, partial(self._beside, site, tissue), 0, _is_normal, lesion):
                yield patch

    def hard(self, mistakes: Heatmap, count: int, *, choice: HardChoice) -> Iterator[DrawnPatch]:
        """Around cells that a model takes for tumour; patches with tumour are left out, as for every normal kind."""
        if choice == "worst":
            yield from self._worst(mistakes, count)
        else:
            yield from self._from_cells(HARD, mistakes.frame, mistakes.array >= _HARD_FROM, count)

    def background(self, tissue: Mask, count: int) -> Iterator[DrawnPatch]:
        """Half on the edge of the tissue, half off it, there at the darkest of several positions."""
        on_edge = count - count // 2
        yield from self._from_cells(BACKGROUND, tissue.frame, _edge(tissue.array), on_edge)
        for _ in range(count // 2):
            patches = [
                patch
                for patch in self._from_cells(BACKGROUND, tissue.frame, ~tissue.array, _INK_CANDIDATES)
                if not self.slide.is_missing(patch.frame)
            ]
            if patches:
                yield min(patches, key=lambda patch: int(self.slide.read_frame(patch.frame).array.sum(dtype=np.int64)))

    def _beside(self, site: LesionSite, tissue: Mask) -> tuple[float, float] | None:
        x, y = site.border_point(self.rng)
        angle = self.rng.uniform(0, 2 * np.pi)
        reach = self.rng.uniform(0.5, 2.0) * self.size_px * self.whole.downsample
        x, y = x + reach * float(np.cos(angle)), y + reach * float(np.sin(angle))
        return (x, y) if _holds(tissue, x, y) else None

    def _turns(self, count: int) -> Iterator[int]:
        """Indices of lesions: in random order, each once before any is repeated; or in proportion to their area."""
        if self.turns == "area" and self.sites:
            area = np.array([(site.side**2).sum() for site in self.sites])
            yield from self.rng.choice(len(area), count, p=area / area.sum()).tolist()
            return
        order: list[int] = []
        for _ in range(count):
            order = order or self.rng.permutation(len(self.sites)).tolist()
            yield order.pop()

    def _from_cells(self, kind: str, frame: Frame, cells: NDArray[np.bool_], count: int) -> Iterator[DrawnPatch]:
        chosen = np.flatnonzero(cells)
        if not len(chosen):
            return

        def draw_point() -> tuple[float, float]:
            row, column = divmod(int(self.rng.choice(chosen)), cells.shape[1])
            jitter = self.rng.uniform(0, 1, 2)
            x, y = frame.positions(row + jitter[1], column + jitter[0])
            return float(x), float(y)

        for _ in range(count):
            if found := self._first(kind, draw_point, 0, _is_normal, None):
                yield found

    def _worst(self, mistakes: Heatmap, count: int) -> Iterator[DrawnPatch]:
        """Patches centred on cells of falling probability, each half a side or more from all others."""
        cells = _Mistakes.on(mistakes, self.whole, self.size_px)
        while count and (cell := cells.worst()):
            row, column = cells.corner(*cell)
            frame = self.whole.part(Window(row=row, column=column, height=self.size_px, width=self.size_px))
            target = self.labels.target(frame)
            patch = self._judged(HARD, frame, target, _is_normal, None)
            if patch:
                cells.drop_around(*cell)
                count -= 1
                yield patch
            else:
                cells.drop_unfit(*cell, target)

    def _first(
        self,
        kind: str,
        draw_point: Callable[[], tuple[float, float] | None],
        jitter: float,
        keeps: Callable[[NDArray[np.uint8]], bool],
        lesion: int | None,
    ) -> DrawnPatch | None:
        """The first position that holds what its kind promises; ``jitter`` in sides of a patch, in each direction."""
        for _ in range(_TRIES):
            point = draw_point()
            shift = self.rng.uniform(-jitter, jitter, 2) * self.size_px
            if point is None:
                continue
            frame = self._around(*point, shift)
            found = self._judged(kind, frame, self.labels.target(frame), keeps, lesion)
            if found:
                return found
        return None

    def _judged(
        self,
        kind: str,
        frame: Frame,
        target: NDArray[np.uint8],
        keeps: Callable[[NDArray[np.uint8]], bool],
        lesion: int | None,
    ) -> DrawnPatch | None:
        """The patch, if it holds what its kind promises."""
        wanted: PatchClass = "tumour" if kind in (TUMOUR, BORDER) else "normal"
        if keeps(target) and self.labels.class_of(frame, target, self.rule) == wanted:
            return DrawnPatch(kind=kind, frame=frame, target=target, label=wanted, lesion=lesion)
        return None

    def _around(self, x: float, y: float, shift: NDArray[np.float64]) -> Frame:
        """The patch on the slide's grid whose centre is nearest to a level-0 position, kept on the slide."""
        row, column = self.whole.fractions(x, y)
        first_row, first_column = (
            _kept(float(at) + float(by) - self.size_px / 2, side - self.size_px)
            for at, by, side in zip((row, column), shift, self.whole.shape, strict=True)
        )
        return self.whole.part(Window(row=first_row, column=first_column, height=self.size_px, width=self.size_px))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Mistakes:
    """The cells that a patch may still be centred on; nothing is sorted, so that 50 million cells are manageable.

    Attributes:
        probability: float32 (rows, columns), owned; 0 for dropped cells.
        highest: float32 (rows,), the highest of each row.
        tops, lefts: int64 (rows,) and (columns,), ascending: where on the slide's grid a cell's patch begins.
        size_px: side of the patches.
    """

    probability: NDArray[np.float32]
    highest: NDArray[np.float32]
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    size_px: int

    @classmethod
    def on(cls, heatmap: Heatmap, whole: Frame, size_px: int) -> _Mistakes:
        """All cells of a heatmap, for patches on the grid of ``whole``."""
        tops, lefts = (
            np.array([_kept(centre - size_px / 2, side - size_px) for centre in centres.tolist()], np.int64)
            for centres, side in zip(_cell_centres(heatmap.frame, whole), whole.shape, strict=True)
        )
        return cls(
            probability=heatmap.array.copy(),
            highest=heatmap.array.max(axis=1),
            tops=tops,
            lefts=lefts,
            size_px=size_px,
        )

    def worst(self) -> tuple[int, int] | None:
        """Row and column of the most probable cell, the first of equal ones row by row; None if all are low."""
        row = int(self.highest.argmax())
        return (row, int(self.probability[row].argmax())) if self.highest[row] >= _HARD_FROM else None

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The first row and column of a cell's patch on the slide's grid."""
        return int(self.tops[row]), int(self.lefts[column])

    def drop_around(self, row: int, column: int) -> None:
        """Drop every cell whose patch begins less than half a side from this one's, along both axes."""
        rows, columns = self._within((self.size_px - 1) // 2, row, column)
        self._drop(rows, columns, np.True_)

    def drop_unfit(self, row: int, column: int, target: NDArray[np.uint8]) -> None:
        """Drop a cell whose patch is unfit, and all whose patches share so much of it that they must be unfit, too.

        Otherwise every cell of a metastasis, where a good model is most certain, would have to be tried.
        """
        self._drop(*self._within(0, row, column), np.True_)
        rows, columns = self._within(self.size_px - 1, row, column)
        down, right = self.tops[rows] - self.tops[row], self.lefts[columns] - self.lefts[column]
        ignored = _counts(target == IGNORE, down, right) / target.size
        self._drop(rows, columns, (_counts(target == 1, down, right) > 0) | (ignored > _IGNORED_AT_MOST))

    def _within(self, reach: int, row: int, column: int) -> tuple[slice, slice]:
        """Cells whose patches begin at most ``reach`` px from this one's."""
        rows, columns = (
            slice(int(np.searchsorted(starts, start - reach)), int(np.searchsorted(starts, start + reach, "right")))
            for starts, start in zip((self.tops, self.lefts), self.corner(row, column), strict=True)
        )
        return rows, columns

    def _drop(self, rows: slice, columns: slice, which: NDArray[np.bool_] | np.bool_) -> None:
        self.probability[rows, columns][which] = 0
        self.highest[rows] = self.probability[rows].max(axis=1)


def _cell_centres(cells: Frame, whole: Frame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fractional rows (n,) and columns (m,) of ``whole`` at which the centres of n x m cells lie."""
    x, _ = cells.centres(0, np.arange(cells.shape[1]))
    _, y = cells.centres(np.arange(cells.shape[0]), 0)
    return whole.fractions(0, y)[0], whole.fractions(x, 0)[1]


def _counts(pixels: NDArray[np.bool_], down: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many set pixels of a square remain inside it when it is shifted by each of n x m steps: int64 (n, m)."""
    side = len(pixels)
    sums = np.zeros((side + 1, side + 1), np.int64)
    sums[1:, 1:] = pixels.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    first_row, last_row = np.maximum(down, 0)[:, None], np.minimum(side + down, side)[:, None]
    first_column, last_column = np.maximum(right, 0), np.minimum(side + right, side)
    return (
        sums[last_row, last_column]
        - sums[first_row, last_column]
        - sums[last_row, first_column]
        + sums[first_row, first_column]
    )


def _kept(start: float, last: int) -> int:
    """A patch's first row or column, clamped to 0 .. ``last``; a slide smaller than a patch is centred in it."""
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
    """Tissue cells with a neighbour above, below, left or right that is not tissue."""
    padded = np.pad(tissue, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return tissue & ~inner
