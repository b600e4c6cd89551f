"""Score slides by the probability of metastasis (ROC) or by label, as a whole and centre by centre."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.errata import OUT_OF_SLIDE_TASK
from staging.cohorts.names import CENTRES, centre_name, slide_key
from staging.errors import CohortError, listed
from staging.lesions.labels import SlideLabel
from staging.scores.roc import RocScore
from staging.scores.roc import score as score_roc


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRocScore:
    """The slide task of CAMELYON16.

    Attributes:
        whole: the score of all slides.
        centres: the score of each centre that slide names give; None if a centre's slides are of one kind only.
        excluded: slides left out, and why.
        ignored: slides of the predictions that the reference lacks.
    """

    whole: RocScore
    centres: Mapping[str, RocScore | None] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps, without nan."""
        return self.whole.to_json() | {
            "slides": self.whole.positives + self.whole.negatives,
            "centres": {name: None if score is None else score.to_json() for name, score in self.centres.items()},
            "excluded": dict(self.excluded),
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """Labels of slides against a reference.

    Attributes:
        confusion: int64 counts, rows reference and columns submission, both in the order of SlideLabel.
        level: confidence level of the intervals.
        centres: the confusion of each centre that slide names give.
        ignored: slides of the submission that the reference lacks.
    """

    confusion: tuple[tuple[int, ...], ...]
    level: float = 0.95
    centres: Mapping[str, LabelScore] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps, without nan.

        ``recall`` is the share of a class's slides that get its label, ``detected`` the share not labelled negative;
        ``accuracy_without_itc`` leaves out the slides that the reference labels ITC.
        """
        counts = np.array(self.confusion)
        others = np.array([label is not SlideLabel.ITC for label in SlideLabel])
        rows = {label.value: counts[label.rank] for label in SlideLabel}
        recall = {name: self._share(row[rank], row.sum()) for rank, (name, row) in enumerate(rows.items())}
        detected = {name: self._share(row[1:].sum(), row.sum()) for name, row in list(rows.items())[1:]}
        accuracy = self._share(np.trace(counts), counts.sum())
        without_itc = self._share(np.diag(counts)[others].sum(), counts[others].sum())
        record: dict[str, Any] = {
            "slides": int(counts.sum()),
            "accuracy": accuracy[0],
            "accuracy_interval": list(accuracy[1]),
            "accuracy_without_itc": without_itc[0],
            "accuracy_without_itc_interval": list(without_itc[1]),
            "recall": {name: share for name, (share, _) in recall.items()},
            "recall_intervals": {name: list(interval) for name, (_, interval) in recall.items()},
            "detected": {name: share for name, (share, _) in detected.items()},
            "detected_intervals": {name: list(interval) for name, (_, interval) in detected.items()},
            "level": self.level,
            "labels": list(rows),
            "confusion": [list(row) for row in self.confusion],
        }
        if self.centres:
            record["centres"] = {name: score.to_json() for name, score in self.centres.items()}
        return record | {"ignored": list(self.ignored)}

    def _share(
        self, part: np.integer[Any], whole: np.integer[Any]
    ) -> tuple[float | None, tuple[float, float] | tuple[None, None]]:
        return wilson_interval(int(part), int(whole), level=self.level)


def wilson_interval(
    part: int, whole: int, *, level: float = 0.95
) -> tuple[float | None, tuple[float, float] | tuple[None, None]]:
    """Compute a share and its score interval (Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212); None for 0 of 0."""
    if whole == 0:
        return None, (None, None)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = part / whole
    middle = share + z * z / (2 * whole)
    reach = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole))
    scale = 1 + z * z / whole
    low = 0.0 if part == 0 else (middle - reach) / scale
    high = 1.0 if part == whole else (middle + reach) / scale
    return share, (low, high)


def score_auc(
    truth: Mapping[str, bool],
    predictions: Mapping[str, float],
    *,
    with_errata: bool = True,
    resamples: int = 10_000,
    seed: int = 0,
    source: Path | None = None,
) -> SlideRocScore:
    """Score a probability per slide as CAMELYON16 does: the area under the ROC curve over the slides of the reference.

    Args:
        truth: whether each slide has a metastasis, by slide_key.
        predictions: the probability that it does; other slides are ignored and listed in the result.
        with_errata: leave out the slides that the organisers leave out.
        resamples: bootstrap samples of slides.
        seed: of the bootstrap.
        source: the file to name in errors about the predictions.

    Raises:
        CohortError: slides of the reference have no prediction, or all slides are of one kind.
    """
    excluded = {slide: why for slide, why in OUT_OF_SLIDE_TASK.items() if with_errata and slide in truth}
    slides = [slide for slide in truth if slide not in excluded]
    _refuse_missing(source, "prediction", slides, predictions)
    if len({truth[slide] for slide in slides}) < 2:
        raise CohortError(
            None,
            "all slides are of one kind: the ROC curve is undefined",
            mend="score tumour and normal slides together",
        )

    def score(part: Iterable[str]) -> RocScore:
        part = list(part)
        return score_roc(
            [truth[slide] for slide in part], [predictions[slide] for slide in part], resamples=resamples, seed=seed
        )

    centres = _centres(slides)
    return SlideRocScore(
        whole=score(slides),
        centres={
            name: score(part) if len({truth[slide] for slide in part}) == 2 else None for name, part in centres.items()
        },
        excluded=excluded,
        ignored=tuple(sorted(predictions.keys() - truth.keys())),
    )


def score_labels(
    reference: Mapping[str, SlideLabel], submission: Mapping[str, SlideLabel], *, source: Path | None = None
) -> LabelScore:
    """Score labels of slides over the slides of the reference.

    Args:
        reference: the true labels.
        submission: the labels to score; its other slides are ignored and listed in the result.
        source: the file to name in errors about the submission.

    Raises:
        CohortError: slides of the reference have no label.
    """
    truth = {slide_key(slide): label for slide, label in reference.items()}
    claimed = {slide_key(slide): label for slide, label in submission.items()}
    _refuse_missing(source, "label", truth, claimed)

    def confusion(slides: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        counts: NDArray[np.int64] = np.zeros((len(SlideLabel), len(SlideLabel)), dtype=np.int64)
        for slide in slides:
            counts[truth[slide].rank, claimed[slide].rank] += 1
        return tuple(tuple(int(count) for count in row) for row in counts)

    return LabelScore(
        confusion=confusion(truth),
        centres={name: LabelScore(confusion=confusion(part)) for name, part in _centres(truth).items()},
        ignored=tuple(sorted(claimed.keys() - truth.keys())),
    )


def _centres(slides: Iterable[str]) -> dict[str, list[str]]:
    """Group slides by centre, in the centres' order; those whose name gives none are left out."""
    parts: dict[str, list[str]] = {}
    for slide in slides:
        centre = centre_name(slide)
        if centre is not None:
            parts.setdefault(centre, []).append(slide)
    return {centre: parts[centre] for centre in CENTRES if centre in parts}


def _refuse_missing(source: Path | None, noun: str, slides: Iterable[str], given: Mapping[str, object]) -> None:
    missing = [slide for slide in slides if slide not in given]
    if missing:
        raise CohortError(source, f"there is no {noun} for {listed(missing)}", mend=f"add a {noun} for every slide")
