"""Detected against annotated lesions, as CAMELYON16 scores them: evaluation mask, hits, FROC curve.

The rules are those of the organisers' Evaluation_FROC.py (Ehteshami Bejnordi; JAMA 318 (2017) 2199-2210), including its
oddities: the lowest score is never used as a threshold, and scores of hits are kept as float32. So of a hit and a false
positive with equal scores, say 0.3, the hit may pass a threshold that the false positive does not. The corrected score
uses every threshold and float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from staging.errors import TableError
from staging.lesions.detections import Detections

LEVEL = 5
"""Pyramid level at which masks are compared."""
LEVEL_0_UM = 0.243
"""Assumed for every slide, whatever its file states."""
GROWTH_UM = 75.0
"""Pixels less than half of this from tumour belong to it: tumours 75 um or less apart are one lesion."""
ITC_UM = 275.0
"""Shorter lesions are isolated tumour cells: 200 um plus the growth."""
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per slide at which the sensitivity is averaged."""
LEVELS = (3, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One lesion of the evaluation mask.

    Attributes:
        number: from 1, by the first pixel from the top.
        major_axis_px: of the ellipse with the same second moments, in pixels of the evaluated level.
        is_itc: too short to count.
        area_px: its pixels.
        centroid: (x, y) in level-0 px, mean of its pixels' centres.
    """

    number: int
    major_axis_px: float
    is_itc: bool
    area_px: int
    centroid: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvaluationMask:
    """The lesions of one slide, as used by the score.

    Attributes:
        level: of the pyramid; a pixel is 0.243 um times 2**level wide.
        downsample: level-0 px of the slide per pixel; 2**level on CAMELYON16's slides.
        shape: (rows, columns) of the slide at that level; None if unknown.
        labels: int32, the lesion's number or 0, of the window that contains all lesions.
        row, column: start of the window.
        targets: the lesions.
    """

    level: int
    downsample: float
    shape: tuple[int, int] | None
    labels: NDArray[np.int32]
    row: int
    column: int
    targets: tuple[Target, ...]

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the numbers of the lesions at pixels of the level; 0 for none."""
        rows, columns = rows - self.row, columns - self.column
        height, width = self.labels.shape
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        found = np.zeros(rows.shape, dtype=np.int32)
        found[inside] = self.labels[rows[inside], columns[inside]]
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlideHits:
    """Hits and false positives among the detections on one slide.

    Attributes:
        slide: name of the slide.
        targets: its lesions; none on a normal slide.
        hits: for each lesion the highest probability of a detection on it, or None.
        false_positives: float64, the probabilities of detections outside all lesions.
    """

    slide: str
    targets: tuple[Target, ...]
    hits: tuple[float | None, ...]
    false_positives: NDArray[np.float64]


def grown_px(level: int) -> float:
    """Return the distance to tumour, in pixels of a level, below which a pixel belongs to it: 4.82253 at level 5."""
    return GROWTH_UM / (LEVEL_0_UM * (1 << level) * 2)


def itc_px(level: int) -> float:
    """Return the major axis, in pixels of a level, below which a lesion is ITC: 35.36523 at level 5."""
    return ITC_UM / (LEVEL_0_UM * (1 << level))


def evaluation_mask(
    tumour: NDArray[np.bool_],
    *,
    level: int = LEVEL,
    downsample: float | None = None,
    origin: tuple[int, int] = (0, 0),
    is_whole: bool = True,
) -> EvaluationMask:
    """Find the lesions of a slide: tumour grown by less than 37.5 um, holes filled, 8-connected components.

    Equal to using the distance transform of the whole slide, but only the window around the tumour is computed.

    Args:
        tumour: bool (rows, columns) at the level, with at least one pixel set.
        level: pyramid level, within LEVELS.
        downsample: level-0 px of the slide per pixel; None for 2**level.
        origin: (row, column) of the slide at which the array begins.
        is_whole: the array is the whole slide; otherwise it is the part with all tumour, with a margin of grown_px
            around it, and positions outside it are background.

    Raises:
        ValueError: no tumour (the organisers' code invents a lesion there), or a level out of range.
    """
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    if not LEVELS[0] <= level <= LEVELS[1]:
        raise ValueError(f"the evaluated level must be {LEVELS[0]} to {LEVELS[1]}, got {level}")
    rows, columns = np.nonzero(tumour.any(axis=1))[0], np.nonzero(tumour.any(axis=0))[0]
    if not rows.size:
        raise ValueError("an evaluation mask needs tumour")
    downsample = float(1 << level) if downsample is None else downsample
    reach = math.ceil(grown_px(level))
    top, left = max(0, int(rows[0]) - reach), max(0, int(columns[0]) - reach)
    window = tumour[top : int(rows[-1]) + reach + 1, left : int(columns[-1]) + reach + 1]
    labels, _ = ndimage.label(_grown(window, grown_px(level)), structure=np.ones((3, 3)))
    labels = _filled(labels.astype(np.int32, copy=False))
    top, left = top + origin[0], left + origin[1]
    return EvaluationMask(
        level=level,
        downsample=downsample,
        shape=(tumour.shape[0], tumour.shape[1]) if is_whole else None,
        labels=labels,
        row=top,
        column=left,
        targets=tuple(
            _target(
                number, labels[slices] == number, (top + slices[0].start, left + slices[1].start), level, downsample
            )
            for number, slices in enumerate(ndimage.find_objects(labels), start=1)
        ),
    )


def slide_hits(slide: str, mask: EvaluationMask | None, detections: Detections) -> SlideHits:
    """Sort the detections on a slide into hits and false positives.

    Positions are truncated to whole level-0 px and divided by the mask's downsample, as the organisers do. Several
    detections on one lesion are one hit, with the highest probability.

    Args:
        slide: name of the slide.
        mask: its lesions; None for a normal slide, on which every detection is a false positive.
        detections: in level-0 px.

    Raises:
        TableError: a detection is outside the mask (the organisers' code stops, or wraps around to the other side).
    """
    if mask is None:
        return SlideHits(slide=slide, targets=(), hits=(), false_positives=detections.probability)
    rows, columns = (
        np.floor(np.trunc(along) / mask.downsample).astype(np.int64) for along in (detections.y, detections.x)
    )
    if mask.shape is not None:
        outside = (rows < 0) | (columns < 0) | (rows >= mask.shape[0]) | (columns >= mask.shape[1])
        if outside.any():
            first = int(np.argmax(outside))
            bottom, right = (size * mask.downsample for size in mask.shape)
            raise TableError(
                detections.path,
                f"the detection at x {detections.x[first]:g}, y {detections.y[first]:g} lies outside the mask of "
                f"{slide}, which ends at x {right:.0f}, y {bottom:.0f}",
                where=detections.where(first),
                mend="give positions in px of the slide's finest level",
            )
    found = mask.at(rows, columns)
    best = np.full(len(mask.targets) + 1, -1.0)
    np.maximum.at(best, found, detections.probability)
    return SlideHits(
        slide=slide,
        targets=mask.targets,
        hits=tuple(None if probability < 0 else float(probability) for probability in best[1:]),
        false_positives=detections.probability[found == 0],
    )


class FrocCurve:
    """Sensitivity against false positives per slide, for any weighting of the slides.

    Args:
        slides: the hits and false positives on each slide.
        official: as the organisers compute it; otherwise with every threshold and in float64.
    """

    def __init__(self, slides: Sequence[SlideHits], *, official: bool) -> None:
        self._official = official
        self._countable = np.array([sum(not target.is_itc for target in one.targets) for one in slides], dtype=np.int64)
        alarms = [one.false_positives for one in slides]
        scores = [np.array(_scores(one, official=official), dtype=np.float64) for one in slides]
        alarm, self._alarm_slide = _descending(alarms)
        hit, self._hit_slide = _descending(scores)
        thresholds = np.unique(np.concatenate([alarm, hit]))[::-1]
        self._alarms = _at_least(alarm, thresholds)
        self._exact_hits = _at_least(hit, thresholds)
        # The organisers compare a float32 array with the threshold, which NumPy then converts to float32.
        self._hits = _at_least(hit, thresholds.astype(np.float32).astype(np.float64)) if official else self._exact_hits

    @property
    def lesions(self) -> int:
        """The lesions that count."""
        return int(self._countable.sum())

    def points(self, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the curve as float64 (n, 2): false positives per slide and sensitivity, from (0, 0) on.

        Args:
            weights: how often each slide counts; once by default.

        Returns:
            The curve; sensitivities are nan if no lesion counts.
        """
        weights = np.ones(self._countable.size, dtype=np.int64) if weights is None else weights
        alarms = _running(weights[self._alarm_slide])
        hits = _running(weights[self._hit_slide])
        false_positives, found = alarms[self._alarms], hits[self._hits]
        if self._official:
            # The threshold that everything reaches is the lowest score: the organisers leave it out.
            used = false_positives + hits[self._exact_hits] < alarms[-1] + hits[-1]
            false_positives, found = false_positives[used], found[used]
        lesions = int((weights * self._countable).sum())
        rates = np.stack([false_positives / weights.sum(), found / lesions if lesions else found * math.nan], axis=1)
        return np.concatenate([np.zeros((1, 2)), rates])

    def sensitivities(self, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the sensitivity at RATES, linear between the points of the curve; its mean is the score."""
        points = self.points(weights)
        return np.interp(RATES, points[:, 0], points[:, 1])

    def left_out(self, owners: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the score without each owner's slides; nan if no slide is left, or no lesion that counts.

        Args:
            owners: number of each slide's patient, from 0.
        """
        kept = [(owners != owner).astype(np.int64) for owner in range(int(owners.max()) + 1)]
        return np.array([self.sensitivities(one).mean() if one.any() else math.nan for one in kept])

    def bootstrap(self, *, resamples: int, seed: int) -> NDArray[np.float64]:
        """Return (resamples,) scores of bootstrap samples of slides; nan if no lesion of a sample counts."""
        slides = self._countable.size
        random = np.random.default_rng(seed)
        share = np.full(slides, 1 / slides)
        return np.array([self.sensitivities(random.multinomial(slides, share)).mean() for _ in range(resamples)])


def _scores(slide: SlideHits, *, official: bool) -> list[float]:
    """The scores of lesions: officially 0 for every lesion that is ITC or missed, otherwise of hits only."""
    best = [
        None if target.is_itc else probability for target, probability in zip(slide.targets, slide.hits, strict=True)
    ]
    if official:
        return [float(np.float32(probability or 0.0)) for probability in best]
    return [probability for probability in best if probability is not None]


def _descending(scores: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return all scores in descending order, and the index of the slide of each."""
    values = np.concatenate([np.empty(0), *scores])
    slides = np.repeat(np.arange(len(scores)), [one.size for one in scores])
    order = np.argsort(-values, kind="stable")
    return values[order], slides[order]


def _at_least(descending: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count the scores that reach each threshold."""
    return np.searchsorted(-descending, -thresholds, side="right").astype(np.int64)


def _running(weights: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(weights)])


def _grown(tumour: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Pixels less than ``radius`` from tumour; only its rim has neighbours that are not tumour yet."""
    padded = np.pad(tumour, 1, constant_values=True)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(tumour & ~inner)
    reach = math.ceil(radius)
    height, width = tumour.shape
    grown = np.pad(tumour, reach)
    flat = grown.reshape(-1)
    start = (rows + reach) * (width + 2 * reach) + columns + reach
    for down in range(-reach, reach + 1):
        for aside in range(-reach, reach + 1):
            if 0 < math.hypot(down, aside) < radius:
                flat[start + down * (width + 2 * reach) + aside] = True
    return grown[reach : reach + height, reach : reach + width]


def _filled(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill the holes of every component and renumber; a component in a hole becomes part of the one around it."""
    from scipy import ndimage  # noqa: PLC0415  (slow import)

    for number, slices in enumerate(ndimage.find_objects(labels), start=1):
        window = labels[slices]
        window[ndimage.binary_fill_holes(window == number)] = number
    left = np.bincount(labels.reshape(-1)) > 0
    left[0] = False
    numbers = np.where(left, np.cumsum(left), 0).astype(np.int32)
    return np.asarray(numbers[labels])


def _target(number: int, inside: NDArray[np.bool_], corner: tuple[int, int], level: int, downsample: float) -> Target:
    rows, columns = np.nonzero(inside)
    axis = major_axis(rows, columns)
    x, y = (
        (start + float(along.mean()) + 0.5) * downsample for start, along in ((corner[1], columns), (corner[0], rows))
    )
    return Target(
        number=number,
        major_axis_px=axis,
        is_itc=axis < itc_px(level),
        area_px=rows.size,
        centroid=(x, y),
    )


def major_axis(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
    """Compute the major axis of the ellipse with the same second central moments as some pixels, in pixels.

    As in scikit-image's regionprops (skimage/measure/_regionprops.py, axis_major_length): four times the root of the
    larger eigenvalue of the covariance of the pixels' centres, each taken as a point. A single pixel has 0, without the
    1/12 that MATLAB's regionprops adds for a pixel's own extent.
    """
    row, column = rows - rows.mean(), columns - columns.mean()
    down, across, mixed = (row * row).mean(), (column * column).mean(), (row * column).mean()
    larger = (down + across) / 2 + math.sqrt(4 * mixed**2 + (down - across) ** 2) / 2
    return 4 * math.sqrt(max(0.0, larger))
