"""CAMELYON16's lesion task on folders: one FROC score from masks and detections of many slides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.errata import OUT_OF_LESION_TASK
from staging.cohorts.names import slide_key
from staging.cohorts.official_format import fault_of_detections
from staging.errors import CohortError, ConfigurationError, ConflictError, listed
from staging.lesions.detections import Detections, read_detections
from staging.scores.differences import Difference, Judged, paired_difference
from staging.scores.evaluation_masks import TrueTumour, find_masks, read_true_tumour
from staging.scores.froc import LEVEL, LEVEL_0_UM, RATES, FrocCurve, SlideHits, slide_hits
from staging.scores.intervals import (
    Interval,
    check_bootstrap,
    effective_interval,
    interval_json,
    jackknife_variance,
    percentile_interval,
)
from staging.stages.pn import BY_NAME, SlideNodes

METHOD = "score interval, with the jackknife variance over patients; patients are independent"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrocScore:
    """How well lesions were found on a set of slides.

    Attributes:
        official: the curve as the organisers compute it; its mean sensitivity at RATES is the score.
        corrected: the curve with every threshold and in full precision.
        intervals: (low, high) of both scores: Wilson's score interval with as many trials as the jackknife variance
            over patients amounts to, at most the lesions that count.
        bootstraps: (low, high) of both scores, the percentile bootstrap over slides; nan if undefined.
        level: of the intervals.
        resamples: number of bootstrap samples.
        seed: of the bootstrap's random numbers.
        slides: hits and false positives on each slide as the organisers find them, by name.
        pyramid_level: the level at which masks were compared.
        tumour_values: number of masks by their value for tumour; ``outlines`` for annotations.
        rules: number of masks by what a coarse pixel stands for, of those that say it.
        excluded: slides left out, and why.
        warnings: what is odd about annotations, by slide.
    """

    official: FrocCurve
    corrected: FrocCurve
    intervals: tuple[Interval, Interval]
    bootstraps: tuple[Interval, Interval]
    level: float
    resamples: int
    seed: int
    slides: tuple[SlideHits, ...]
    pyramid_level: int
    tumour_values: Mapping[str, int]
    rules: Mapping[str, int]
    excluded: Mapping[str, str]
    warnings: Mapping[str, Sequence[str]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps; undefined numbers are None, since JSON has no nan."""
        official, corrected = self.official.sensitivities(), self.corrected.sensitivities()
        table = self.lesion_table()
        return {
            "froc_score": float(official.mean()),
            "rates": list(RATES),
            "sensitivities": official.tolist(),
            "interval": interval_json(self.intervals[0]),
            "interval_method": METHOD,
            "bootstrap": interval_json(self.bootstraps[0]),
            "corrected": {
                "froc_score": float(corrected.mean()),
                "sensitivities": corrected.tolist(),
                "interval": interval_json(self.intervals[1]),
                "bootstrap": interval_json(self.bootstraps[1]),
            },
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "slides": len(self.slides),
            "tumour_slides": sum(bool(slide.targets) for slide in self.slides),
            "lesions": sum(row["status"] != "itc" for row in table),
            "lesions_corrected": self.corrected.lesions,
            "hit": sum(row["status"] == "hit" for row in table),
            "missed": sum(row["status"] == "missed" for row in table),
            "itc": sum(row["status"] == "itc" for row in table),
            "false_positives": sum(slide.false_positives.size for slide in self.slides),
            "pyramid_level": self.pyramid_level,
            "pixel_um": LEVEL_0_UM * (1 << self.pyramid_level),
            "tumour_values": dict(self.tumour_values),
            "reduce": dict(self.rules),
            "excluded": dict(self.excluded),
            "warnings": {slide: list(odd) for slide, odd in self.warnings.items()},
            "lesion_table": table,
        }

    def lesion_table(self) -> list[dict[str, Any]]:
        """Return one row per lesion: hit, missed or itc, and the highest probability on it (no effect if itc)."""
        return [
            {
                "slide": slide.slide,
                "lesion": target.number,
                "status": "itc" if target.is_itc else "missed" if hit is None else "hit",
                "probability": hit,
                "major_axis_um": target.major_axis_px * LEVEL_0_UM * (1 << self.pyramid_level),
                "area_px": target.area_px,
                "x": target.centroid[0],
                "y": target.centroid[1],
            }
            for slide in self.slides
            for target, hit in zip(slide.targets, slide.hits, strict=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """A slide's hits by both scores; its mask's value for tumour, its rule, and what is odd about it."""

    official: SlideHits
    corrected: SlideHits
    kind: str | None = None
    reduce: str | None = None
    warnings: Sequence[str] = ()


def score_slides(
    slides: Collection[SlideHits],
    *,
    corrected: Collection[SlideHits] | None = None,
    pyramid_level: int = LEVEL,
    tumour_values: Mapping[str, int] | None = None,
    rules: Mapping[str, int] | None = None,
    excluded: Mapping[str, str] | None = None,
    warnings: Mapping[str, Sequence[str]] | None = None,
    nodes: SlideNodes = BY_NAME,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> FrocScore:
    """Compute the FROC score of slides from their hits and false positives.

    Args:
        slides: every slide of the set, including normal ones.
        corrected: the same for the corrected score; None if they are the same.
        pyramid_level: the level at which masks were compared.
        tumour_values: for the report only.
        rules: for the report only.
        excluded: for the report only.
        warnings: for the report only.
        nodes: which patient each slide is of; a slide of an unknown patient is its own.
        resamples: bootstrap samples of slides; 0 for none.
        level: of the intervals.
        seed: of the random numbers.

    Raises:
        CohortError: there is no slide, or no lesion that counts (the organisers' code divides by zero).
        ValueError: resamples or level out of range.
    """
    check_bootstrap(resamples, level)
    slides = tuple(slides)
    if not slides:
        raise CohortError(None, "there are no slides to score")
    if all(target.is_itc for slide in slides for target in slide.targets):
        only = " larger than isolated tumour cells" if any(slide.targets for slide in slides) else ""
        raise CohortError(None, f"no slide has a lesion{only}: the sensitivity is undefined", mend="add tumour slides")
    curves = FrocCurve(slides, official=True), FrocCurve([*(corrected or slides)], official=False)
    _, owners = np.unique([nodes.patient(one.slide) or one.slide for one in slides], return_inverse=True)
    intervals = [_interval(curve, slides, owners, level) for curve in curves]
    drawn = [percentile_interval(curve.bootstrap(resamples=resamples, seed=seed), level) for curve in curves]
    return FrocScore(
        official=curves[0],
        corrected=curves[1],
        intervals=(intervals[0], intervals[1]),
        bootstraps=(drawn[0], drawn[1]),
        level=level,
        resamples=resamples,
        seed=seed,
        slides=slides,
        pyramid_level=pyramid_level,
        tumour_values=dict(tumour_values or {}),
        rules=dict(rules or {}),
        excluded=dict(excluded or {}),
        warnings=dict(warnings or {}),
    )


def _interval(curve: FrocCurve, slides: Sequence[SlideHits], owners: NDArray[np.int64], level: float) -> Interval:
    return _interval_of(curve, curve.left_out(owners), slides, owners, level)


def _interval_of(
    curve: FrocCurve,
    left_out: NDArray[np.float64],
    slides: Sequence[SlideHits],
    owners: NDArray[np.int64],
    level: float,
) -> Interval:
    with_lesions = {int(owner) for owner, one in zip(owners, slides, strict=True) if one.targets}
    return effective_interval(
        float(curve.sensitivities().mean()),
        jackknife_variance(left_out),
        count=curve.lesions,
        fewest=max(1, len(with_lesions)),
        level=level,
    )


def compare_scores(score: FrocScore, other: FrocScore, *, nodes: SlideNodes = BY_NAME) -> dict[str, Difference]:
    """Return the official and the corrected score of one submission minus those of another, on the same masks.

    What a patient adds to a score is told by the score without that patient.

    Args:
        score: of the one.
        other: of the other, on the same slides.
        nodes: which patient each slide is of.
    """
    _, owners = np.unique([nodes.patient(one.slide) or one.slide for one in score.slides], return_inverse=True)
    is_same = all(
        one.hits == two.hits and np.array_equal(one.false_positives, two.false_positives)
        for one, two in zip(score.slides, other.slides, strict=True)
    )

    def judged(curve: FrocCurve, slides: Sequence[SlideHits]) -> Judged:
        left_out = curve.left_out(owners)
        return Judged(
            value=float(curve.sensitivities().mean()),
            added=-left_out,
            interval=lambda level: _interval_of(curve, left_out, slides, owners, level),
        )

    return {
        name: paired_difference(judged(one, score.slides), judged(two, other.slides), is_same=is_same)
        for name, one, two in (
            ("official", score.official, other.official),
            ("corrected", score.corrected, other.corrected),
        )
    }


def score_folders(
    masks: Path,
    detections: Path,
    *,
    normal_slides: Collection[str] = (),
    missing_mask_is_normal: bool = False,
    tumour_value: int | None = None,
    pyramid_level: int = LEVEL,
    slide_mpp: float | None = None,
    with_errata: bool = True,
    workers: int | None = None,
    nodes: SlideNodes = BY_NAME,
    resamples: int = 1000,
    seed: int = 0,
) -> FrocScore:
    """Score a folder of detections against a folder of masks.

    Every slide needs one CSV of detections, empty if nothing was found, and a mask unless it is known to be normal.

    Args:
        masks: TIFF, PNG or annotations; see find_masks and read_true_tumour.
        detections: one CSV per slide, named like the slide.
        normal_slides: names of slides without tumour; they need no mask.
        missing_mask_is_normal: treat slides without a mask, or with a blank one, as normal.
        tumour_value: value of the masks' tumour pixels; detected by default.
        pyramid_level: the level at which masks are compared.
        slide_mpp: um per level-0 px of the slides; None for what masks say, else CAMELYON16's 0.243.
        with_errata: leave out the slides that the organisers leave out.
        workers: slides read at a time; one per core by default. It does not change the result.
        nodes: which patient each slide is of.
        resamples: bootstrap samples of slides.
        seed: of the bootstrap.

    Raises:
        CohortError: a slide has no mask or no detections, a mask is blank, or as for score_slides.
        ConflictError: a slide listed as normal has tumour in its mask.
        ConfigurationError: the value of tumour is ambiguous.
        TableError: a row of detections is invalid; it names the line.
        SlideFormatError, AnnotationError: a mask cannot be read.
    """
    mask_of, found_on = find_masks(masks), _find_detections(detections)
    normal = {slide_key(name) for name in normal_slides}
    asked = mask_of.keys() | found_on.keys() | normal
    excluded = {slide: why for slide, why in OUT_OF_LESION_TASK.items() if with_errata and slide in asked}
    names = sorted(asked - excluded.keys())
    _refuse(detections, [name for name in names if name not in found_on], "has no detections for", _NO_DETECTIONS)
    if not missing_mask_is_normal:
        bare = [name for name in names if name not in mask_of and name not in normal]
        _refuse(masks, bare, "has no mask for", _NO_MASK)

    # All tables first, which are quick: a bad line should not be found only after all masks.
    found: dict[str, Detections] = {name: read_detections(found_on[name]) for name in names}

    def work(name: str) -> _Scored:
        """Score a slide; masks are dropped, as many do not fit in memory."""
        path = mask_of.get(name)
        if path is None:
            normal_hits = slide_hits(name, None, found[name])
            return _Scored(official=normal_hits, corrected=normal_hits, warnings=_unofficial(found_on[name]))
        truth = read_true_tumour(path, level=pyramid_level, tumour_value=tumour_value, slide_mpp=slide_mpp)
        _check_truth(name, truth, is_normal=name in normal, blank_is_normal=missing_mask_is_normal)
        kind = None if truth.mask is None else "outlines" if truth.value is None else str(truth.value)
        return _Scored(
            official=slide_hits(name, truth.mask, found[name]),
            corrected=slide_hits(name, truth.corrected, found[name]),
            kind=kind,
            reduce=truth.reduce,
            warnings=(*truth.warnings, *_unofficial(found_on[name])),
        )

    # Threads suffice: decoding and array work release the interpreter lock.
    with ThreadPoolExecutor(workers or cpu_count() or 1) as pool:
        done = list(pool.map(work, names))
    return score_slides(
        [one.official for one in done],
        corrected=[one.corrected for one in done],
        pyramid_level=pyramid_level,
        tumour_values=_tumour_values(masks, [one.kind for one in done if one.kind is not None]),
        rules=Counter(one.reduce for one in done if one.reduce is not None),
        excluded=excluded,
        nodes=nodes,
        warnings={one.official.slide: one.warnings for one in done if one.warnings},
        resamples=resamples,
        seed=seed,
    )


def _unofficial(table: Path) -> tuple[str, ...]:
    """Say that the organisers' script would stop at a table."""
    fault = fault_of_detections(table)
    return () if fault is None else (f"{table.name}: the organisers' script would stop: {fault}",)


_NO_DETECTIONS = "write an empty file for each slide without detections"
_NO_MASK = "list normal slides with --normal-list, or give --missing-mask-is-normal"


def _find_detections(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise CohortError(folder, "there is no such folder", mend="name the folder of the detections")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".csv" and not path.name.startswith(".") and path.is_file():
            slide = slide_key(path.name)
            if slide in found:
                raise CohortError(path, f"is a second table of {slide}", mend=f"keep either this or {found[slide]}")
            found[slide] = path
    if not found:
        raise CohortError(folder, "contains no CSV of detections", mend="write one per slide, named like the slide")
    return found


def _refuse(folder: Path, names: list[str], reason: str, mend: str) -> None:
    if names:
        raise CohortError(folder, f"{reason} {listed(names)}", mend=mend)


def _check_truth(name: str, truth: TrueTumour, *, is_normal: bool, blank_is_normal: bool) -> None:
    if truth.mask is not None and is_normal:
        raise ConflictError(
            truth.path, f"{name} is listed as normal, but its mask has tumour", mend="correct the list of normal slides"
        )
    if truth.mask is None and not (is_normal or blank_is_normal):
        sought = "" if truth.value is None else f" (value {truth.value})"
        raise CohortError(truth.path, f"the mask of {name} has no tumour{sought}", mend=_NO_MASK)


def _tumour_values(folder: Path, kinds: list[str]) -> dict[str, int]:
    """Count masks by value; two values in one folder mean that one of them was misread."""
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    values = sorted(counts.keys() - {"outlines"})
    if len(values) > 1:
        raise ConfigurationError(
            folder,
            f"tumour is {' in some masks and '.join(values)} in others",
            mend="say which with --tumour-value, and score other masks separately",
        )
    return counts
