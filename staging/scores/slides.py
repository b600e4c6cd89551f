"""Score slides by the probability of metastasis (ROC) or by label, as a whole and centre by centre."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.errata import OUT_OF_SLIDE_TASK
from staging.cohorts.names import CENTRES, centre_name, slide_key
from staging.errors import CohortError, listed
from staging.lesions.labels import SlideLabel
from staging.scores.differences import Difference, Judged, paired_difference
from staging.scores.intervals import FEW, Interval, clustered_interval, heterogeneity, mean_of_shares
from staging.scores.roc import RocScore
from staging.scores.roc import judged as judged_area
from staging.scores.roc import score as score_roc
from staging.stages.pn import BY_NAME, SlideNodes

LABEL_METHOD = "score interval, with the variance over patients; patients are independent"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideRocScore:
    """The slide task of CAMELYON16.

    Attributes:
        whole: the score of all slides.
        centres: the score of each centre that slide names give; None if a centre's slides are of one kind only.
        excluded: slides left out, and why.
        ignored: slides of the predictions that the reference lacks.
        without_patient: slides whose patient is not known: each counts as independent.
    """

    whole: RocScore
    centres: Mapping[str, RocScore | None] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    without_patient: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps, without nan."""
        scored = {name: one for name, one in self.centres.items() if one is not None}
        few = [name for name, one in scored.items() if one.positives + one.negatives < FEW]
        between = heterogeneity({name: (one.auc, one.interval) for name, one in scored.items()}, level=self.whole.level)
        return self.whole.to_json() | {
            "slides": self.whole.positives + self.whole.negatives,
            "centres": {name: None if score is None else score.to_json() for name, score in self.centres.items()},
            "heterogeneity": None if between is None else between.to_json(),
            "warnings": [f"{', '.join(few)}: fewer than {FEW} slides say little about a centre"] if few else [],
            "excluded": dict(self.excluded),
            "slides_without_patient": len(self.without_patient),
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScore:
    """Labels of slides against a reference.

    Attributes:
        confusion: int64 counts, rows reference and columns submission, both in the order of SlideLabel.
        by_patient: int64 (patients, 4, 4), the same of each patient; slides of unknown patients are their own.
        level: confidence level of the intervals.
        centres: the confusion of each centre that slide names give.
        ignored: slides of the submission that the reference lacks.
        without_patient: slides whose patient is not known: each counts as independent.
    """

    confusion: tuple[tuple[int, ...], ...]
    by_patient: NDArray[np.int64]
    level: float = 0.95
    centres: Mapping[str, LabelScore] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    without_patient: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps, without nan.

        ``recall`` is the share of a class's slides that get its label, ``detected`` the share not labelled negative;
        ``accuracy_without_itc`` leaves out the slides that the reference labels ITC.
        """
        counts, each = np.array(self.confusion), self.by_patient
        others = np.array([label is not SlideLabel.ITC for label in SlideLabel])
        names = {label.value: label.rank for label in SlideLabel}
        right = np.diagonal(each, axis1=1, axis2=2)
        recall = {name: self._share(right[:, row], each[:, row].sum(axis=1)) for name, row in names.items()}
        detected = {
            name: self._share(each[:, row, 1:].sum(axis=1), each[:, row].sum(axis=1))
            for name, row in names.items()
            if row > 0
        }
        accuracy = self._share(right.sum(axis=1), each.sum(axis=(1, 2)))
        without_itc = self._share(right[:, others].sum(axis=1), each[:, others].sum(axis=(1, 2)))
        known = [(share, interval) for share, interval in recall.values() if share is not None]
        balanced = mean_of_shares(known) if known else (None, (None, None))  # type: ignore[arg-type]  # of known shares
        between = heterogeneity({name: one.accuracy for name, one in self.centres.items()}, level=self.level)
        record: dict[str, Any] = {
            "slides": int(counts.sum()),
            "patients": len(each),
            "accuracy": accuracy[0],
            "accuracy_interval": list(accuracy[1]),
            "accuracy_without_itc": without_itc[0],
            "accuracy_without_itc_interval": list(without_itc[1]),
            "balanced_accuracy": balanced[0],
            "balanced_accuracy_interval": list(balanced[1]),
            "interval_method": LABEL_METHOD,
            "recall": {name: share for name, (share, _) in recall.items()},
            "recall_intervals": {name: list(interval) for name, (_, interval) in recall.items()},
            "detected": {name: share for name, (share, _) in detected.items()},
            "detected_intervals": {name: list(interval) for name, (_, interval) in detected.items()},
            "level": self.level,
            "labels": list(names),
            "confusion": [list(row) for row in self.confusion],
        }
        if self.centres:
            record["centres"] = {name: score.to_json() for name, score in self.centres.items()}
            record["heterogeneity"] = None if between is None else between.to_json()
        return record | {"slides_without_patient": len(self.without_patient), "ignored": list(self.ignored)}

    @property
    def accuracy(self) -> tuple[float, Interval]:
        """The share of slides with the right label, and its interval; nan without slides."""
        share, interval = self._share(
            np.diagonal(self.by_patient, axis1=1, axis2=2).sum(axis=1), self.by_patient.sum(axis=(1, 2))
        )
        known = share is not None and interval[0] is not None and interval[1] is not None
        return (share, (interval[0], interval[1])) if known else (math.nan, (math.nan, math.nan))  # type: ignore[return-value]  # known

    def judged(self) -> dict[str, Judged]:
        """The accuracy and the balanced accuracy as paired_difference needs them, patient by patient."""
        each = self.by_patient.astype(np.float64)
        right, wholes = np.diagonal(each, axis1=1, axis2=2), each.sum(axis=2)
        known = np.flatnonzero(wholes.sum(axis=0))
        accuracy = right.sum() / wholes.sum()
        of_class = wholes.sum(axis=0)[known]
        recall = right.sum(axis=0)[known] / of_class

        def balanced(level: float) -> Interval:
            shares = [clustered_interval(right[:, row], wholes[:, row], level=level) for row in known]
            return mean_of_shares(shares)[1]  # type: ignore[arg-type]  # no class without slides

        def plain(level: float) -> Interval:
            return clustered_interval(right.sum(axis=1), wholes.sum(axis=1), level=level)[1]  # type: ignore[return-value]  # there are slides

        return {
            "accuracy": Judged(
                value=float(accuracy),
                added=(right.sum(axis=1) - accuracy * wholes.sum(axis=1)) / wholes.sum(),
                interval=plain,
            ),
            "balanced_accuracy": Judged(
                value=float(recall.mean()),
                added=((right[:, known] - recall * wholes[:, known]) / of_class).mean(axis=1),
                interval=balanced,
            ),
        }

    def _share(
        self, parts: NDArray[np.int64], wholes: NDArray[np.int64]
    ) -> tuple[float | None, Interval | tuple[None, None]]:
        return clustered_interval(parts.astype(np.float64), wholes.astype(np.float64), level=self.level)


def score_auc(
    truth: Mapping[str, bool],
    predictions: Mapping[str, float],
    *,
    with_errata: bool = True,
    resamples: int = 10_000,
    seed: int = 0,
    nodes: SlideNodes = BY_NAME,
    source: Path | None = None,
) -> SlideRocScore:
    """Score a probability per slide as CAMELYON16 does: the area under the ROC curve over the slides of the reference.

    Args:
        truth: whether each slide has a metastasis, by slide_key.
        predictions: the probability that it does; other slides are ignored and listed in the result.
        with_errata: leave out the slides that the organisers leave out.
        resamples: bootstrap samples of patients.
        seed: of the bootstrap.
        nodes: which patient each slide is of; a slide of an unknown patient is its own.
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
            [truth[slide] for slide in part],
            [predictions[slide] for slide in part],
            groups=[nodes.patient(slide) or slide for slide in part],
            resamples=resamples,
            seed=seed,
        )

    centres = _centres(slides)
    return SlideRocScore(
        whole=score(slides),
        centres={
            name: score(part) if len({truth[slide] for slide in part}) == 2 else None for name, part in centres.items()
        },
        excluded=excluded,
        ignored=tuple(sorted(predictions.keys() - truth.keys())),
        without_patient=tuple(slide for slide in slides if nodes.patient(slide) is None),
    )


def compare_areas(
    truth: Mapping[str, bool],
    predictions: Mapping[str, float],
    other: Mapping[str, float],
    *,
    with_errata: bool = True,
    nodes: SlideNodes = BY_NAME,
    source: Path | None = None,
) -> Difference:
    """Return the area of one table of probabilities minus that of another, on the slides of score_auc.

    Args:
        truth: as for score_auc.
        predictions: of the one; score_auc has accepted them.
        other: of the other.
        with_errata: as for score_auc.
        nodes: as for score_auc.
        source: the file to name in errors about the other.

    Raises:
        CohortError: slides of the reference have no prediction in the other table.
    """
    slides = [slide for slide in truth if not (with_errata and slide in OUT_OF_SLIDE_TASK)]
    _refuse_missing(source, "prediction", slides, other)
    tumour, groups = [truth[slide] for slide in slides], [nodes.patient(slide) or slide for slide in slides]
    scores = [[table[slide] for slide in slides] for table in (predictions, other)]
    # the area knows nothing but the order
    orders = [np.unique(values, return_inverse=True)[1].tolist() for values in scores]
    one, two = (judged_area(tumour, values, groups=groups) for values in scores)
    return paired_difference(one, two, is_same=orders[0] == orders[1])


def compare_labels(score: LabelScore, other: LabelScore) -> dict[str, Difference]:
    """Return accuracy and balanced accuracy of one table of labels minus those of another, of the same slides."""
    one, two = score.judged(), other.judged()
    is_same = np.array_equal(score.by_patient, other.by_patient)
    return {name: paired_difference(one[name], two[name], is_same=is_same) for name in one}


def score_labels(
    reference: Mapping[str, SlideLabel],
    submission: Mapping[str, SlideLabel],
    *,
    nodes: SlideNodes = BY_NAME,
    source: Path | None = None,
) -> LabelScore:
    """Score labels of slides over the slides of the reference.

    Args:
        reference: the true labels.
        submission: the labels to score; its other slides are ignored and listed in the result.
        nodes: which patient each slide is of; a slide of an unknown patient is its own.
        source: the file to name in errors about the submission.

    Raises:
        CohortError: slides of the reference have no label.
    """
    truth = {slide_key(slide): label for slide, label in reference.items()}
    claimed = {slide_key(slide): label for slide, label in submission.items()}
    _refuse_missing(source, "label", truth, claimed)

    def score(slides: Iterable[str], centres: Mapping[str, LabelScore] | None = None) -> LabelScore:
        slides = list(slides)
        owners, of_slide = np.unique([nodes.patient(slide) or slide for slide in slides], return_inverse=True)
        counts = np.zeros((len(owners), len(SlideLabel), len(SlideLabel)), dtype=np.int64)
        for owner, slide in zip(of_slide.tolist(), slides, strict=True):
            counts[owner, truth[slide].rank, claimed[slide].rank] += 1
        return LabelScore(
            confusion=tuple(tuple(row) for row in counts.sum(axis=0).tolist()),
            by_patient=counts,
            centres=centres or {},
            ignored=() if centres is None else tuple(sorted(claimed.keys() - truth.keys())),
            without_patient=tuple(slide for slide in slides if nodes.patient(slide) is None),
        )

    return score(truth, {name: score(part) for name, part in _centres(truth).items()})


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
