"""Train a slide classifier on the heatmaps of one folder, and apply it to those of another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from staging.bars import watched
from staging.cohorts.camelyon import read_label_table
from staging.cohorts.names import slide_key
from staging.csv_rows import csv_text
from staging.errors import CohortError
from staging.learned_labels.importance_picture import importance_picture
from staging.learned_labels.predictors import PREDICTOR_NAMES, in_words, slide_predictors
from staging.learned_labels.training import Recipe, gather, train_classifier
from staging.learned_labels.trees import SlideClassifier, read_classifier, write_classifier
from staging.lesions.labels import SlideLabel
from staging.lesions.seen import SEEN_COLUMNS, Seen, SeenRule, heatmaps_folder, look_through, seen_json
from wsi.errors import ArtefactError, CheckpointError
from wsi.heatmap_store import read_heatmap
from wsi.render import save_png
from wsi.store import atomic_text


def train_on_heatmaps(
    heatmaps: Path, reference: Path, output: Path, recipe: Recipe, seen_rule: SeenRule | None = None
) -> dict[str, Any]:
    """Train a classifier on a folder of heatmaps and a table of labels; write it with a picture of its importances.

    Heatmaps that ``seen_rule`` (by default SeenRule()) sets aside are left out with their rows of the table.

    Returns:
        What was made, and how well it does on unseen slides, for JSON.

    Raises:
        CohortError: heatmaps and labels do not match, or cannot be split as the recipe says.
        ArtefactError, ResolutionError: a heatmap cannot be used.
        StorageError: a file cannot be written.
    """
    seen, faults = _look_through(heatmaps, seen_rule)
    set_aside = {slide_key(name) for name in faults}
    labels = {name: label for name, label in read_label_table(reference).items() if slide_key(name) not in set_aside}
    slides = gather(tuple(seen), labels, split=recipe.split, reference=reference)
    model = train_classifier(slides, recipe)
    write_classifier(output, model)
    picture = output.with_suffix(".png")
    title = f"What the {recipe.kind} looks at: {len(slides.names)} slides"
    save_png(picture, importance_picture([*map(in_words, model.predictors)], model.importances, title=title))
    made = {"model": str(output), "importances": str(picture), "limits": _limits(model)}
    made |= {key: value for key, value in model.provenance.items() if key != "names"}
    return made | seen_json({path.stem: one for path, one in seen.items()}, faults)


def label_heatmaps(model: Path, heatmaps: Path, output: Path, seen_rule: SeenRule | None = None) -> dict[str, Any]:
    """Write the label that a classifier gives each heatmap in a folder, except those that ``seen_rule`` sets aside.

    Returns:
        What was done, for JSON.

    Raises:
        CheckpointError: the classifier cannot be read, or was trained on predictors other than this version's.
        ArtefactError, ResolutionError: a heatmap cannot be used.
        CohortError: every heatmap is set aside.
        StorageError: a file cannot be written.
    """
    classifier = read_classifier(model)
    seen, faults = _look_through(heatmaps, seen_rule)
    atomic_text(output, learned_label_table(classifier, seen, model=model))
    names = {str(name) for name in classifier.provenance.get("names", ())}
    known = sorted(path.stem for path in seen if slide_key(path.stem) in names)
    made = {"labels": str(output), "slides": len(seen), "model": str(model), "limits": _limits(classifier)}
    made["trained_on"] = len(known)
    return made | seen_json({path.stem: one for path, one in seen.items()}, faults)


def _look_through(folder: Path, rule: SeenRule | None) -> tuple[dict[Path, Seen], dict[str, str]]:
    seen, faults = look_through(find_heatmaps(folder), rule or SeenRule())
    if not seen:
        raise CohortError(folder, f"has no heatmap to use: {'; '.join(faults.values()):.300}")
    return seen, faults


def find_heatmaps(folder: Path) -> list[Path]:
    """Find the heatmaps in a folder or in the output of a run, by name.

    Raises:
        ArtefactError: there are none.
    """
    found = sorted(heatmaps_folder(folder).glob("[!.]*.zarr"))
    if not found:
        raise ArtefactError(folder, "contains no heatmaps", mend="name the heatmaps folder of a run")
    return found


def learned_label_table(
    classifier: SlideClassifier, heatmaps: Mapping[Path, Seen], *, model: Path | None = None
) -> str:
    """Format one row per slide: its label, the probability of each label, and how much of it was seen, for stage.

    Raises:
        CheckpointError: the classifier was trained on predictors other than this version's.
        ArtefactError, ResolutionError: a heatmap cannot be used.
    """
    if classifier.predictors != PREDICTOR_NAMES:
        raise CheckpointError(model, "was trained on other predictors", mend="train it again with this version")
    looked_at = watched(heatmaps, count=len(heatmaps), verb="slides labelled", name=lambda path: path.stem)
    shares = classifier.predict(np.array([slide_predictors(read_heatmap(path)) for path in looked_at]))
    rows = (
        (path.stem, label.value, *(f"{share:.6f}" for share in row), *seen.cells)
        for (path, seen), label, row in zip(heatmaps.items(), classifier.label(shares), shares.tolist(), strict=True)
    )
    return csv_text(("slide", "label", *(label.value for label in SlideLabel), *SEEN_COLUMNS), rows)


def _limits(classifier: SlideClassifier) -> dict[str, float]:
    return dict(zip(("itc", "micro", "macro"), classifier.limits, strict=True))
