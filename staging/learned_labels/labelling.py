"""Train a slide classifier on the heatmaps of one folder, and apply it to those of another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from staging.cohorts.camelyon import read_label_table
from staging.csv_rows import csv_text
from staging.learned_labels.importance_picture import importance_picture
from staging.learned_labels.predictors import PREDICTOR_NAMES, slide_predictors
from staging.learned_labels.training import Recipe, gather, train_classifier
from staging.learned_labels.trees import SlideClassifier, read_classifier, write_classifier
from staging.lesions.labels import SlideLabel
from wsi.errors import ArtefactError, CheckpointError
from wsi.heatmap_store import read_heatmap
from wsi.render import save_png
from wsi.store import atomic_text


def train_on_heatmaps(heatmaps: Path, reference: Path, output: Path, recipe: Recipe) -> dict[str, Any]:
    """Train a classifier on a folder of heatmaps and a table of labels; write it with a picture of its importances.

    Returns:
        What was made, and how well it does on unseen slides, for JSON.

    Raises:
        CohortError: heatmaps and labels do not match, or cannot be split as the recipe says.
        ArtefactError, ResolutionError: a heatmap cannot be used.
        StorageError: a file cannot be written.
    """
    slides = gather(find_heatmaps(heatmaps), read_label_table(reference), split=recipe.split, reference=reference)
    model = train_classifier(slides, recipe)
    write_classifier(output, model)
    picture = output.with_suffix(".png")
    title = f"What the {recipe.kind} looks at: {len(slides.names)} slides"
    save_png(picture, importance_picture(model.predictors, model.importances, title=title))
    return {"model": str(output), "importances": str(picture), "limits": _limits(model), **model.provenance}


def label_heatmaps(model: Path, heatmaps: Path, output: Path) -> dict[str, Any]:
    """Write the label that a classifier gives each heatmap in a folder.

    Returns:
        What was done, for JSON.

    Raises:
        CheckpointError: the classifier cannot be read, or was trained on predictors other than this version's.
        ArtefactError, ResolutionError: a heatmap cannot be used.
        StorageError: a file cannot be written.
    """
    classifier, found = read_classifier(model), find_heatmaps(heatmaps)
    atomic_text(output, learned_label_table(classifier, found, model=model))
    return {"labels": str(output), "slides": len(found), "model": str(model), "limits": _limits(classifier)}


def find_heatmaps(folder: Path) -> list[Path]:
    """Find the heatmaps in a folder, by name.

    Raises:
        ArtefactError: there are none.
    """
    found = sorted(folder.glob("*.zarr"))
    if not found:
        raise ArtefactError(folder, "contains no heatmaps", mend="name the heatmaps folder of a run")
    return found


def learned_label_table(classifier: SlideClassifier, heatmaps: Sequence[Path], *, model: Path | None = None) -> str:
    """Format one row per slide: its label and the probability of each label; stage takes both.

    Raises:
        CheckpointError: the classifier was trained on predictors other than this version's.
        ArtefactError, ResolutionError: a heatmap cannot be used.
    """
    if classifier.predictors != PREDICTOR_NAMES:
        raise CheckpointError(model, "was trained on other predictors", mend="train it again with this version")
    shares = classifier.predict(np.array([slide_predictors(read_heatmap(path)) for path in heatmaps]))
    rows = (
        (path.stem, label.value, *(f"{share:.6f}" for share in row))
        for path, label, row in zip(heatmaps, classifier.label(shares), shares.tolist(), strict=True)
    )
    return csv_text(("slide", "label", *(label.value for label in SlideLabel)), rows)


def _limits(classifier: SlideClassifier) -> dict[str, float]:
    return dict(zip(("itc", "micro", "macro"), classifier.limits, strict=True))
