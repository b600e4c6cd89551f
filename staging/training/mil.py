"""Whole slides classified: attention heads that learn from slide labels alone, applied to the features of tiles."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from staging.cohorts.camelyon import read_label_table
from staging.cohorts.errata import OUT_OF_SLIDE_TASK
from staging.cohorts.names import slide_key
from staging.cohorts.references import read_truth
from staging.csv_rows import csv_text
from staging.errors import ConfigurationError, NoSlidesError, TableError
from staging.lesions.labels import SlideLabel
from staging.lesions.seen import SEEN_COLUMNS, Seen, SeenRule, seen_json
from staging.runs.config import refuse_other_settings
from staging.scores.roc import area_under_curve
from staging.stages.pn import BY_NAME, SlideNodes
from staging.training.mil_features import alone, bags_of, check_recipe, open_features, recipe_of
from wsi.errors import ArtefactError, CheckpointError, PathologyError, StorageError
from wsi.lock import OutputLock
from wsi.store import atomic_text, json_text, storage, sweep

if TYPE_CHECKING:
    from wsi.cnn.encoders.features import SlideFeatures
    from wsi.cnn.encoders.mil import MilHead
    from wsi.cnn.encoders.mil_training import MilResult, MilTraining

RECORD = "mil.json"
"""File in the output that records the head."""

_TWO = ("negative", "positive")
_COLUMNS = ("slide", "label", "probability")
"""Columns before the probability of each class; ``probability`` is that of anything but negative."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedHead:
    """A trained head and its evaluation.

    Attributes:
        head: file of the head.
        unseen: table of predictions for slides by heads that were not trained on their patients.
        auc_unseen: area under the ROC curve of that table.
        folds: number of heads that made it.
        slides: number of slides of each class.
        patients: number of patients.
        without_patient: slides that count as patients of their own.
        left_out: slides that were not used, and why.
        without_features: slides of the reference without features, by key.
        seen: how much of each slide's tissue its features show.
        quarantined: slides whose features cannot be used, and why.
    """

    head: Path
    unseen: Path
    auc_unseen: float
    folds: int
    slides: Mapping[str, int]
    patients: int
    without_patient: int
    left_out: Mapping[str, str]
    without_features: tuple[str, ...]
    seen: Mapping[str, Seen]
    quarantined: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {
            "head": str(self.head),
            "unseen": str(self.unseen),
            "auc_unseen": round(self.auc_unseen, 4),
            "folds": self.folds,
            "slides": dict(self.slides),
            "patients": self.patients,
            "slides_without_patient": self.without_patient,
            "left_out": dict(self.left_out),
            "without_features": list(self.without_features),
            **seen_json(self.seen, self.quarantined),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedSlides:
    """The predictions of a head.

    Attributes:
        table: file with the probabilities of each slide.
        slides: number of slides classified.
        trained_on: number of these that the head was trained on.
        seen: how much of each slide's tissue its features show.
        quarantined: slides whose features cannot be used, and why.
    """

    table: Path
    slides: int
    trained_on: int
    seen: Mapping[str, Seen]
    quarantined: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for json.dumps."""
        return {
            "probabilities": str(self.table),
            "slides": self.slides,
            "trained_on": self.trained_on,
            **seen_json(self.seen, self.quarantined),
        }


def train_mil(
    features: Sequence[Path],
    reference: Path,
    output: Path,
    *,
    classes: Literal[2, 4] = 2,
    nodes: SlideNodes = BY_NAME,
    options: MilTraining,
    device: str = "auto",
    workers: int | None = None,
    seen_rule: SeenRule | None = None,
    on_round: Callable[[int, int], None] | None = None,
) -> TrainedHead:
    """Train a head on slide labels, and classify every slide with a head that was not trained on its patient.

    Args:
        features: directories of features, or single Zarr folders.
        reference: a table of slide labels.
        output: file of the head; ``.unseen.csv`` is written beside it.
        classes: 2 (negative, positive) or 4 (those of SlideLabel).
        nodes: which patient each slide is of.
        options: of the training.
        device: auto, cpu or cuda.
        workers: folds trained at a time; None for one per core.
        seen_rule: which features are set aside because they show too little of the tissue; None for SeenRule().
        on_round: called with (rounds done, total rounds).

    Raises:
        ConfigurationError: the output is a directory.
        TableError: a table cannot be read, or labels none of the slides.
        NoSlidesError: there are no features, or none can be used.
        DuplicateSlideError: a slide has features twice.
        ArtefactError: features were not all made alike, or cannot be read.
        PathologyError: there are too few patients, or the device is missing.
        StorageError: the output cannot be written.
    """
    from wsi.cnn.device import pick_device  # noqa: PLC0415  (loads torch)
    from wsi.cnn.encoders.mil import save_head  # noqa: PLC0415
    from wsi.cnn.encoders.mil_training import train_head  # noqa: PLC0415

    pick_device(device)  # before anything is read
    if output.is_dir():
        raise ConfigurationError(output, "is a directory", mend="name a file, head.safetensors")
    names, labels = _labels(reference, classes)
    rule = seen_rule or SeenRule()
    found, quarantined = open_features(features, rule)
    left_out = {slide.name: why for slide in found if (why := _why_left_out(slide.name, labels)) is not None}
    used = [slide for slide in found if slide.name not in left_out]
    _check_some(used, reference, quarantined)
    bags = bags_of(used, labels, nodes)
    result = train_head(
        bags,
        class_names=names,
        recipe=recipe_of(used),
        options=options,
        device=device,
        workers=workers,
        on_round=on_round,
    )
    save_head(output, result.head)
    table = output.with_suffix(".unseen.csv")
    truth = {bag.slide: bag.label for bag in sorted(bags, key=lambda bag: bag.slide)}
    seen = {slide.name: rule.judge(slide.coverage) for slide in used}
    atomic_text(table, _unseen_table(result, names, truth, seen))
    return TrainedHead(
        head=output,
        unseen=table,
        auc_unseen=area_under_curve(
            [label > 0 for label in truth.values()], [float(result.unseen[slide][1:].sum()) for slide in truth]
        ),
        folds=max(result.folds.values()) + 1,
        slides={name: sum(label == rank for label in truth.values()) for rank, name in enumerate(names)},
        patients=len({bag.patient for bag in bags}),
        without_patient=sum(bag.patient == alone(bag.slide) for bag in bags),
        left_out=left_out,
        without_features=tuple(sorted(labels.keys() - {slide_key(slide.name) for slide in found})),
        seen=seen,
        quarantined=quarantined,
    )


def judge_slides(
    head: Path,
    features: Sequence[Path],
    output: Path,
    *,
    device: str = "auto",
    seen_rule: SeenRule | None = None,
) -> JudgedSlides:
    """Classify slides with a head: their probabilities in one table, and for each slide where the head looked.

    Args:
        head: a head from train_mil.
        features: directories of features, or single Zarr folders.
        output: a directory for probabilities.csv, and attention/ with a Zarr folder and a PNG per slide.
        device: auto, cpu or cuda.
        seen_rule: which features are set aside because they show too little of the tissue; None for SeenRule().

    Raises:
        CheckpointError: the head cannot be used.
        ConfigurationError: the output was made with another head.
        NoSlidesError: there are no features.
        DuplicateSlideError: a slide has features twice.
        StorageError: the output cannot be written.
    """
    from wsi.cnn.encoders.mil import load_head  # noqa: PLC0415  (loads torch)

    trained = load_head(head).to(device)
    settings = {"head": trained.digest, "classes": list(trained.class_names), "recipe": dict(trained.recipe)}
    refuse_other_settings(output, settings, record=RECORD)
    rule = seen_rule or SeenRule()
    found, quarantined = open_features(features, rule)
    seen: dict[str, Seen] = {}
    rows: list[tuple[str, ...]] = []
    with OutputLock(output) as lock:
        sweep(output / "attention")
        atomic_text(output / RECORD, json_text(settings))
        for slide in found:
            try:
                row = _judged(trained, slide, output / "attention")
                seen[slide.name] = rule.judge(slide.coverage)
                rows.append((*row, *seen[slide.name].cells))
            except (CheckpointError, StorageError):
                raise
            except PathologyError as error:
                quarantined[slide.name] = error.reason
        lock.check()
        _forget(output / "attention", quarantined)
        table = output / "probabilities.csv"
        atomic_text(table, csv_text((*_COLUMNS, *trained.class_names, *SEEN_COLUMNS), rows))
    known = trained.provenance.get("slides")
    return JudgedSlides(
        table=table,
        slides=len(rows),
        trained_on=sum(row[0] in known for row in rows) if isinstance(known, dict) else 0,
        seen=seen,
        quarantined=quarantined,
    )


def _judged(head: MilHead, slide: SlideFeatures, folder: Path) -> tuple[str, ...]:
    """Write the slide's attention and return its row of the table."""
    from wsi.cnn.encoders.attention import AttentionMap, save_attention_png, write_attention  # noqa: PLC0415

    check_recipe(slide, head.recipe)
    if slide.width != head.shape.width:
        reason = f"has {slide.width} features per tile, but the head takes {head.shape.width}"
        raise ArtefactError(slide.path, reason)
    verdict = head.judge(slide.load())
    attention = AttentionMap.of(slide, verdict.attention)
    made_from = {"head": head.digest, "features": slide.provenance}
    write_attention(folder / f"{slide.name}.zarr", attention, made_from)
    save_attention_png(folder / f"{slide.name}.png", attention)
    return _row(slide.name, head.class_names, verdict.probabilities)


def _unseen_table(result: MilResult, names: Sequence[str], truth: Mapping[str, int], seen: Mapping[str, Seen]) -> str:
    rows = (
        (*_row(slide, names, result.unseen[slide]), names[label], result.folds[slide], *seen[slide].cells)
        for slide, label in truth.items()
    )
    return csv_text((*_COLUMNS, *names, "reference", "fold", *SEEN_COLUMNS), rows)


def _row(slide: str, names: Sequence[str], probabilities: Iterable[float]) -> tuple[str, ...]:
    """Return the slide, its likeliest class, the probability of all but the first class, and that of each class."""
    _, *others = each = [float(value) for value in probabilities]
    likeliest = each.index(max(each))
    return slide, names[likeliest], f"{sum(others):.9g}", *(f"{value:.9g}" for value in each)


def _forget(folder: Path, slides: Iterable[str]) -> None:
    """Remove an earlier call's results for slides that cannot be classified now: the table no longer has them."""
    with storage(folder):
        for name in slides:
            if (folder / f"{name}.zarr").is_dir():
                shutil.rmtree(folder / f"{name}.zarr")
            (folder / f"{name}.png").unlink(missing_ok=True)


def _labels(reference: Path, classes: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the classes, and the number of each slide's class by slide key."""
    if classes == len(_TWO):
        return _TWO, {slide: int(is_positive) for slide, is_positive in read_truth(reference).items()}
    names = tuple(label.value for label in SlideLabel)
    return names, {slide_key(slide): label.rank for slide, label in read_label_table(reference).items()}


def _why_left_out(slide: str, labels: Mapping[str, int]) -> str | None:
    key = slide_key(slide)
    if key in OUT_OF_SLIDE_TASK:
        return OUT_OF_SLIDE_TASK[key]
    return None if key in labels else "the reference has no label for it"


def _check_some(used: Sequence[object], reference: Path, quarantined: Mapping[str, str]) -> None:
    if not used and quarantined:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(quarantined.items()))
        raise NoSlidesError(None, f"no features can be used: {reasons:.500}", mend="make them again")
    if not used:
        raise TableError(reference, "labels none of the slides with features", mend="compare the names in both")
